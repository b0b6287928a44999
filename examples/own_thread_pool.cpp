// SPDX-License-Identifier: Apache-2.0
// A host program has threads of its own. This is all it takes to run attention on them: see HostExecutor.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <functional>
#include <latch>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "gqa/gqa.hpp"

namespace {

// Stands for what the host program already has: threads, and a queue of jobs for them.
class HostPool {
 public:
  explicit HostPool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this](std::stop_token stop) { serve(stop); });
  }
  int size() const { return static_cast<int>(threads_.size()); }
  void submit(std::function<void()> job) {
    {
      const std::lock_guard lock(mutex_);
      jobs_.push_back(std::move(job));
    }
    ready_.notify_one();
  }

 private:
  void serve(std::stop_token stop) {
    while (true) {
      std::unique_lock lock(mutex_);
      if (!ready_.wait(lock, stop, [this] { return !jobs_.empty(); })) return;
      const std::function<void()> job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
    }
  }

  std::mutex mutex_;
  std::condition_variable_any ready_;
  std::deque<std::function<void()>> jobs_;
  std::vector<std::jthread> threads_;  // last: they stop before what they use is gone
};

// The adapter: a gqa::Executor. Each of the pool's threads takes the next task until none is left. Not to be used from a
// job of the same pool, which would wait for threads that may all be waiting.
struct HostExecutor {
  HostPool& pool;
  gqa::Index concurrency() const { return pool.size(); }
  void parallel_for(gqa::Index count, const gqa::TaskRef& work) const {
    std::atomic<gqa::Index> next{0};
    std::latch done(pool.size());
    for (int i = 0; i < pool.size(); ++i)
      pool.submit([&] {
        for (gqa::Index task = next++; task < count; task = next++) work(task);
        done.count_down();
      });
    done.wait();
  }
};
static_assert(gqa::Executor<HostExecutor>);

std::vector<gqa::bf16> random_values(int count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<gqa::bf16> values;
  for (int i = 0; i < count; ++i) values.emplace_back(normal(random));
  return values;
}

}  // namespace

int main() {
  constexpr int query_heads = 32, kv_heads = 8, head_dim = 128;
  const gqa::GroupedQueryAttention<query_heads, kv_heads, head_dim> attention;
  HostPool pool(static_cast<int>(std::max(2u, std::thread::hardware_concurrency())));
  HostExecutor executor{pool};
  gqa::Options on_the_pool;
  on_the_pool.executor = executor;

  bool same = true;
  std::printf("%d threads of the host's own pool\n%8s %8s %12s %12s %s\n", pool.size(), "queries", "cached",
              "serial ms", "pool ms", "same bits");
  struct Case {
    int queries;
    int cached;
  };
  for (const Case& c : {Case{1, 16384}, Case{256, 2048}}) {  // a long decode, a chunk of a prefill
    const int queries = c.queries;
    const int cached = c.cached;
    const std::vector<gqa::bf16> k = random_values(cached * kv_heads * head_dim, 1);
    const std::vector<gqa::bf16> v = random_values(cached * kv_heads * head_dim, 2);
    const std::vector<gqa::bf16> q = random_values(queries * query_heads * head_dim, 3);
    const gqa::KvCacheView cache = gqa::KvCacheView::contiguous(k.data(), v.data(), {cached, kv_heads, head_dim});

    const auto run = [&](const gqa::Options& options, std::vector<float>& out) {
      out.assign(static_cast<std::size_t>(queries * query_heads * head_dim), 0.0f);
      double best = 1e9;
      for (int repeat = 0; repeat < 3; ++repeat) {
        const auto start = std::chrono::steady_clock::now();
        attention(gqa::ConstTensorView(q.data(), queries, query_heads, head_dim), cache,
                  gqa::TensorView(out.data(), queries, query_heads, head_dim), options);
        best =
            std::min(best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
      }
      return best;
    };
    std::vector<float> serial;
    std::vector<float> pooled;
    const double serial_ms = run({}, serial);
    const double pool_ms = run(on_the_pool, pooled);
    std::printf("%8d %8d %12.2f %12.2f %s\n", queries, cached, serial_ms, pool_ms, serial == pooled ? "yes" : "NO");
    same = same && serial == pooled;
  }
  return same ? 0 : 1;
}
