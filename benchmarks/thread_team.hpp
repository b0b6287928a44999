// SPDX-License-Identifier: Apache-2.0
/// @file
/// A few threads that start together: what limits are measured with, and an executor for the library's calls.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "gqa/executor.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gqa::bench {

/// `size` threads, the calling one included. Between calls the others spin for some microseconds and then sleep, so that a
/// measurement is not charged for waking them and an idle program costs nothing. Models gqa::Executor.
/// Not to be used from two threads at a time.
class ThreadTeam {
 public:
  explicit ThreadTeam(int size) : size_(size < 1 ? 1 : size) {
    for (int member = 1; member < size_; ++member) workers_.emplace_back([this, member] { serve(member); });
  }
  ~ThreadTeam() {
    stop_ = true;
    epoch_.fetch_add(1);
    epoch_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const noexcept { return size_; }

  /// job(0) … job(size − 1), one on each thread, at the same time; job(0) on the calling one.
  template <class Job>
  void run(Job&& job) {
    using Plain = std::remove_reference_t<Job>;
    context_ = const_cast<void*>(static_cast<const void*>(&job));
    call_ = [](void* context, int member) { (*static_cast<Plain*>(context))(member); };
    busy_.store(size_ - 1, std::memory_order_relaxed);
    epoch_.fetch_add(1);
    if (size_ > 1) epoch_.notify_all();
    call_(context_, 0);
    while (busy_.load(std::memory_order_acquire) != 0) pause();
  }

  gqa::Index concurrency() const noexcept { return size_; }
  void parallel_for(gqa::Index count, const gqa::TaskRef& work) {
    if (size_ == 1 || count <= 1) return gqa::SerialExecutor::parallel_for(count, work);
    std::atomic<gqa::Index> next{0};
    run([&](int) {
      for (gqa::Index task = next.fetch_add(1); task < count; task = next.fetch_add(1)) work(task);
    });
  }

 private:
  static void pause() noexcept {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

  void serve(int member) {
    unsigned seen = 0;
    for (;;) {
      for (int turn = 0; turn < 4000 && epoch_.load(std::memory_order_acquire) == seen; ++turn) pause();
      epoch_.wait(seen, std::memory_order_acquire);
      seen = epoch_.load(std::memory_order_acquire);
      if (stop_) return;
      call_(context_, member);
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  int size_;
  std::vector<std::thread> workers_;
  std::atomic<unsigned> epoch_{0};
  std::atomic<int> busy_{0};
  std::atomic<bool> stop_{false};
  void* context_ = nullptr;
  void (*call_)(void*, int) = nullptr;
};

}  // namespace gqa::bench
