// SPDX-License-Identifier: Apache-2.0
/// @file
/// Eigen's thread pool as an executor. Needs Eigen (3.4 or 5) and threads.
#pragma once

#include <Eigen/Core>
#if __has_include(<Eigen/ThreadPool>)
#include <Eigen/ThreadPool>
#else
#include <unsupported/Eigen/CXX11/ThreadPool>
#endif

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gqa/error.hpp"
#include "gqa/executor.hpp"

namespace gqa {
namespace detail {

/// One parallel_for in flight. Helpers in the pool's queues may start after its tasks are done and the caller has gone on, so
/// it is counted, and goes back to the list it came from when the last of them has looked at it.
struct PoolJob {
  struct List {
    std::mutex mutex{};
    std::vector<std::unique_ptr<PoolJob>> idle{};
  };
  std::shared_ptr<List> home{};    ///< keeps the list alive while the job is in flight
  TaskRef work{nullptr, nullptr};  ///< followed only after a task has been claimed: the caller is waiting then
  Index count = 0;
  std::atomic<Index> next{0};        ///< the next task to claim
  std::atomic<Index> unfinished{0};  ///< tasks not yet done
  std::atomic<int> done{0};          ///< 1 when none is left
  std::atomic<int> users{0};         ///< the caller and the helpers that still hold the job
};

}  // namespace detail

namespace detail::inline GQA_ABI {

inline PoolJob* take_job(const std::shared_ptr<PoolJob::List>& list, Index count, const TaskRef& work, int users) {
  std::unique_ptr<PoolJob> job;
  {
    const std::lock_guard<std::mutex> lock(list->mutex);
    if (!list->idle.empty()) {
      job = std::move(list->idle.back());
      list->idle.pop_back();
    }
  }
  if (job == nullptr) job = std::make_unique<PoolJob>();
  job->home = list;
  job->work = work;
  job->count = count;
  job->next.store(0, std::memory_order_relaxed);
  job->unfinished.store(count, std::memory_order_relaxed);
  job->done.store(0, std::memory_order_relaxed);
  job->users.store(users, std::memory_order_release);
  return job.release();
}

inline void leave_job(PoolJob* job) {
  if (job->users.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  const std::shared_ptr<PoolJob::List> list = std::move(job->home);
  const std::lock_guard<std::mutex> lock(list->mutex);
  list->idle.emplace_back(job);
}

/// Claims and runs tasks until none is left to claim.
inline void work_on(PoolJob& job) {
  for (Index task = job.next.fetch_add(1, std::memory_order_relaxed); task < job.count;
       task = job.next.fetch_add(1, std::memory_order_relaxed)) {
    job.work(task);
    if (job.unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      job.done.store(1, std::memory_order_release);
      job.done.notify_one();
    }
  }
}

inline void run_on_pool(Eigen::ThreadPoolInterface& pool, const std::shared_ptr<PoolJob::List>& jobs, Index helpers,
                        Index count, const TaskRef& work) {
  PoolJob* const job = take_job(jobs, count, work, static_cast<int>(helpers) + 1);
  for (Index i = 0; i < helpers; ++i)
    pool.Schedule([job] {  // one pointer: std::function stores it in place and allocates nothing
      work_on(*job);
      leave_job(job);
    });
  work_on(*job);
  while (job->done.load(std::memory_order_acquire) == 0) job->done.wait(0);
  leave_job(job);
}

/// A number of the process; the same for all where there is no fork.
inline Index this_process() noexcept {
#if __has_include(<unistd.h>)
  return static_cast<Index>(::getpid());
#else
  return 0;
#endif
}

inline Index checked_threads(Index threads) {
  if (threads < 1) fail("threads", threads, "1 or more");
  return threads;
}
/// The same for a pool of its own: Eigen's counts those of its threads that wait in 14 bits; and where the system does not start one of them,
/// it waits for the others for ever. So they are tried first, where there are exceptions to say it.
inline Index checked_pool(Index threads) {
  if (checked_threads(threads) >= 1 << 14) fail("threads", threads, "fewer than 16384");
#if defined(__cpp_exceptions)
  std::vector<std::thread> tried;
  std::mutex start;
  std::unique_lock<std::mutex> hold(start);
  bool started = true;
  try {
    tried.reserve(static_cast<std::size_t>(threads - 1));
    while (static_cast<Index>(tried.size()) < threads - 1)
      tried.emplace_back([&start] { const std::lock_guard<std::mutex> wait(start); });
  } catch (const std::exception&) {  // std::system_error, or there is no memory for one more
    started = false;
  }
  hold.unlock();
  for (std::thread& thread : tried) thread.join();
  if (!started)
    fail("threads", threads, ("no more than the system starts, " + std::to_string(tried.size() + 1) + " now").c_str());
#endif
  return threads;
}

}  // namespace detail::inline GQA_ABI

/// Runs the tasks on Eigen's thread pool and on the calling thread, which takes part and then waits for nothing but tasks
/// that are running: not for pool threads that are busy elsewhere. A call from one of the pool's own threads is therefore fine.
///
/// Thread safety: several threads may use one executor at the same time.
/// Fork: the child of a process has none of its parent's threads. An executor that was made before the fork runs the child's tasks on the calling
/// thread, and is destroyed without waiting for anybody; the child makes one of its own to have threads.
/// Allocation: none once a few calls have been made (those of Eigen's own pool aside: it makes none for these tasks).
class ThreadPoolExecutor {
 public:
  /// Owns a pool of `threads` − 1 threads: with the caller, `threads` of them. @throws ArgumentError unless threads is 1 to 16383, and the
  /// system starts so many
  GQA_ALWAYS_INLINE explicit ThreadPoolExecutor(int threads)
      : concurrency_(detail::checked_pool(threads)),
        owned_(threads > 1 ? std::make_unique<Eigen::ThreadPool>(threads - 1) : nullptr),
        pool_(owned_.get()) {}

  /// Uses the host program's pool, which must outlive the executor and every call; all its threads and the caller, or
  /// `threads` in all if that is fewer. @throws ArgumentError if threads < 1
  GQA_ALWAYS_INLINE explicit ThreadPoolExecutor(Eigen::ThreadPoolInterface& pool)
      : concurrency_(Index{pool.NumThreads()} + 1), pool_(&pool) {}
  GQA_ALWAYS_INLINE ThreadPoolExecutor(Eigen::ThreadPoolInterface& pool, int threads)
      : concurrency_((std::min)(detail::checked_threads(threads), Index{pool.NumThreads()} + 1)), pool_(&pool) {}

  GQA_ALWAYS_INLINE ~ThreadPoolExecutor() {
    if (owner_ != detail::this_process())
      static_cast<void>(owned_.release());  // would wait for threads that are not there
  }
  ThreadPoolExecutor(const ThreadPoolExecutor&) = delete;
  ThreadPoolExecutor& operator=(const ThreadPoolExecutor&) = delete;

  /// The largest number of tasks that run at the same time, the caller's included.
  GQA_ALWAYS_INLINE Index concurrency() const noexcept { return concurrency_; }

  /// Runs work(0) … work(count − 1), each once; returns when all are done.
  GQA_ALWAYS_INLINE void parallel_for(Index count, const TaskRef& work) const {
    const Index helpers = (std::min)(concurrency_, count) - 1;
    if (helpers <= 0 || owner_ != detail::this_process()) return SerialExecutor::parallel_for(count, work);
    detail::run_on_pool(*pool_, jobs_, helpers, count, work);
  }

 private:
  Index concurrency_;
  Index owner_ = detail::this_process();  // whose threads the pool's are
  std::shared_ptr<detail::PoolJob::List> jobs_ = std::make_shared<detail::PoolJob::List>();
  std::unique_ptr<Eigen::ThreadPool> owned_{};  // after jobs_: its threads are joined first
  Eigen::ThreadPoolInterface* pool_;
};

}  // namespace gqa
