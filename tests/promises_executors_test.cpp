// SPDX-License-Identifier: Apache-2.0
// Any number of threads, any executor, tasks in any order = serial.
#include <gtest/gtest.h>

#include <chrono>

#include "gqa/thread_pool.hpp"
#include "support/executors.hpp"
#include "support/problem.hpp"

namespace gqa::test {
namespace {

constexpr Index kHeads = 4;
constexpr Index kKvHeads = 2;
constexpr Index kValueDim = 16;

/// A batch with every kind of work in it: a long decode that is split along the sequence, verify, chunk and prefill.
class Workload {
 public:
  explicit Workload(const Types& types) : types_(types) {
    const std::pair<Index, Index> lengths[] = {
        {1, 4 * detail::kSpan + 100}, {70, 70}, {5, 2 * detail::kSpan}, {66, detail::kSpan + 66}, {1, 20}, {0, 5}};
    for (const auto& [n_q, n_kv] : lengths) {
      const Problem p = make_problem({kHeads, kKvHeads, 16, kValueDim, n_q, n_kv}, 70 + queries_.size());
      queries_.emplace_back(p.q, types.q);
      caches_.push_back(store_cache(p.kv, types.k, types.v, {}));
    }
  }

  template <class V = Causal>
  Result run(Path path, const ExecutorRef& executor, const V& variant = {}) const {
    How how{path, types_.out};
    how.executor = executor;
    std::vector<Output> outputs;
    for (const Tensor& q : queries_) outputs.emplace_back(types_.out, q.view().tokens, kHeads, kValueDim);
    std::vector<Sequence> batch;
    for (std::size_t i = 0; i < queries_.size(); ++i)
      batch.push_back({queries_[i].const_view(), caches_[i].view(), outputs[i].view(), {}, outputs[i].lse()});
    functor_(batch, variant, how.options());
    Result all;
    for (const Output& output : outputs) all.append(output.result());
    return all;
  }

 private:
  Types types_;
  std::vector<Tensor> queries_;
  std::vector<StoredCaches> caches_;
  DynamicAttention functor_;
};

class Executors : public PerPathAndType {};

TEST_P(Executors, AnyNumberOfThreadsIsSerial) {
  const Workload workload(all_of(type()));
  const Result serial = workload.run(path(), {});
  for (const int threads : {1, 2, 3, 7}) {
    SCOPED_TRACE(describe(on(path()), all_of(type()), "threads", threads));
    ThreadsExecutor plain{threads};
    EXPECT_TRUE(same_bits(serial, workload.run(path(), plain))) << "std::thread";
    ThreadPoolExecutor pool(threads);
    for (int repeat = 0; repeat < 2; ++repeat)
      EXPECT_TRUE(same_bits(serial, workload.run(path(), pool))) << "Eigen's thread pool, call " << repeat;
#if defined(_OPENMP)
    OpenMpExecutor openmp{threads};
    EXPECT_TRUE(same_bits(serial, workload.run(path(), openmp))) << "OpenMP";
#endif
  }
#if !defined(_OPENMP)
  RecordProperty("executors_not_run", "OpenMP: this build is without -fopenmp");
#endif
}

TEST_P(Executors, TasksInAnyOrderAreSerial) {
  const Workload workload(cache_of(type()));
  const Result serial = workload.run(path(), {});
  BackwardExecutor backward;
  EXPECT_TRUE(same_bits(serial, workload.run(path(), backward))) << on(path()) << ", backward";
  for (const Index concurrency : {2, 3, 5, 16, 1000})
    for (const std::uint64_t seed : {10u, 20u, 30u}) {
      ShuffledExecutor shuffled{seed, concurrency};
      EXPECT_TRUE(same_bits(serial, workload.run(path(), shuffled)))
          << on(path()) << ", shuffled with seed " << seed << " as if " << concurrency << " ran at once";
    }
}

/// Full attention that holds threads up now and then, so that they finish in every order, and help each other.
struct Dawdling {
  mutable std::atomic<std::uint32_t> calls{0};
  PositionRange visible_range(Index, Index kv_length) const { return {0, kv_length}; }
  bool is_visible(Index, Index, Index) const {
    const std::uint32_t call = calls.fetch_add(1, std::memory_order_relaxed);
    if ((call * 2654435761u) >> 20 == 0) std::this_thread::sleep_for(std::chrono::microseconds(call % 7 * 100));
    return true;
  }
};

TEST_P(Executors, TasksThatFinishInAnyOrderAreSerial) {
  const Workload workload(cache_of(type()));
  const Result serial = workload.run(path(), {}, Full{});
  for (const int threads : {2, 5}) {
    ThreadsExecutor executor{threads};
    for (int repeat = 0; repeat < 3; ++repeat)
      EXPECT_TRUE(same_bits(serial, workload.run(path(), executor, Dawdling{}))) << on(path()) << ", " << threads << " threads";
  }
}

/// Full attention that, at its first look at the positions [begin, end), waits until no other thread gets on: what lies there is
/// finished last.
struct LateOnes {
  Index begin;
  Index end;
  mutable std::atomic<std::uint32_t> others{0};
  mutable std::atomic<bool> waited{false};
  PositionRange visible_range(Index, Index kv_length) const { return {0, kv_length}; }
  bool is_visible(Index, Index key_position, Index) const {
    if (key_position < begin || key_position >= end) {
      others.fetch_add(1, std::memory_order_relaxed);
    } else if (!waited.exchange(true)) {
      for (std::uint32_t seen = ~others.load(); seen != others.load();) {
        seen = others.load();
        std::this_thread::sleep_for(std::chrono::milliseconds(3));
      }
    }
    return true;
  }
};

TEST_P(Executors, WhicheverSpanIsFinishedLast) {
  constexpr Index spans = 5;
  const Problem p = make_problem({2, 1, 16, 16, 1, spans * detail::kSpan}, 77);
  const Tensor q(p.q, cache_of(type()).q);
  const StoredCaches kv = store_cache(p.kv, type(), type(), {});
  const Result serial = attend(q.const_view(), kv.view(), {path()}, Full{});
  for (Index late = 0; late < spans; ++late) {
    ThreadsExecutor threads{3};
    How how{path()};
    how.executor = threads;
    const LateOnes variant{late * detail::kSpan, (late + 1) * detail::kSpan};
    EXPECT_TRUE(same_bits(serial, attend(q.const_view(), kv.view(), how, variant))) << on(path()) << ", span " << late;
    EXPECT_TRUE(variant.waited.load());
  }
}

TEST_P(Executors, HoldsForWindowsAndFullAttentionToo) {
  const Workload workload(cache_of(type()));
  SCOPED_TRACE(describe(on(path()), cache_of(type())));
  ShuffledExecutor shuffled{7, 3};
  ThreadsExecutor threads{3};
  const Result window = workload.run(path(), {}, CausalWindow{700});
  EXPECT_TRUE(same_bits(window, workload.run(path(), shuffled, CausalWindow{700})));
  EXPECT_TRUE(same_bits(window, workload.run(path(), threads, CausalWindow{700})));
  const Result full = workload.run(path(), {}, Full{});
  EXPECT_TRUE(same_bits(full, workload.run(path(), shuffled, Full{})));
  EXPECT_TRUE(same_bits(full, workload.run(path(), threads, Full{})));
}

// Work is cut by lengths only: what an executor says of itself changes no bit, and how many share the work at most.
TEST_P(Executors, TheCutDoesNotFollowTheExecutor) {
  const Workload workload(cache_of(type()));
  CountingExecutor boastful;
  boastful.claimed_concurrency = 1000000;
  const Result expected = workload.run(path(), boastful);
  EXPECT_GT(boastful.most_tasks, 10) << on(path());
  for (const Index claimed : {1, 3, 64, 100000}) {
    CountingExecutor modest;
    modest.claimed_concurrency = claimed;
    EXPECT_TRUE(same_bits(expected, workload.run(path(), modest))) << on(path()) << ", concurrency " << claimed;
    EXPECT_EQ(modest.most_tasks, std::min(claimed, boastful.most_tasks));
    EXPECT_EQ(modest.calls, boastful.calls);
  }
}

class Cut : public PerPath {};

// These tests would prove nothing if there were but one task: a long decode must be split along the sequence, and a prefill into
// tiles.
TEST_P(Cut, ALongDecodeAndALongPrefillAreManyTasks) {
  const Problem decode = make_problem({2, 1, 8, 8, 1, 4 * detail::kSpan + 1}, 80);
  CountingExecutor executor;
  executor.claimed_concurrency = 1000;
  How how{path()};
  how.executor = executor;
  static_cast<void>(solve(decode, {}, how));
  EXPECT_GE(executor.most_tasks, 5) << on(path()) << ": a decode over five spans with one KV head";

  executor.most_tasks = 0;
  const Problem prefill = make_problem({2, 1, 8, 8, 300, 300}, 81);
  static_cast<void>(solve(prefill, {}, how));
  EXPECT_GE(executor.most_tasks, 600 / detail::kTileRows) << on(path()) << ": a prefill of 600 rows with one KV head";

  executor.most_tasks = 0;
  const Problem heads = make_problem({8, 8, 8, 8, 150, 150}, 82);
  static_cast<void>(solve(heads, {}, how));
  EXPECT_GE(executor.most_tasks, 8) << on(path()) << ": a prefill with eight KV heads";
}

INSTANTIATE_TEST_SUITE_P(EveryPath, Executors, Executors::cases(), Executors::name);
INSTANTIATE_TEST_SUITE_P(EveryPath, Cut, Cut::cases(), Cut::name);

}  // namespace
}  // namespace gqa::test
