// SPDX-License-Identifier: Apache-2.0
// Several workers at one fold: every span is computed once, states are merged in order, nobody waits, and memory for states that cannot be
// merged yet is bounded.
#include <gtest/gtest.h>

#include <chrono>
#include <limits>
#include <thread>
#include <vector>

#include "support/executors.hpp"
#include "support/problem.hpp"
#include "support/stepped_call.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

using detail::kSpan;

TEST(WorkerShares, ThreadsShareThemOut) {
  constexpr Index count = 20000;
  detail::WorkerShare share;
  share.end = count;
  std::vector<std::atomic<int>> taken(count);
  std::vector<std::thread> team;
  for (int i = 0; i < 4; ++i)
    team.emplace_back([&] {
      for (Index fold; (fold = share.claim()) < share.end;) taken[static_cast<std::size_t>(fold)].fetch_add(1);
    });
  for (std::thread& thread : team) thread.join();
  for (const std::atomic<int>& times : taken) ASSERT_EQ(times.load(), 1);
  EXPECT_TRUE(share.exhausted());
}

TEST(SpansOf, CountsThoseThatARangeReaches) {
  EXPECT_EQ(detail::spans_of({0, kSpan}), 1);
  EXPECT_EQ(detail::spans_of({0, kSpan + 1}), 2);
  EXPECT_EQ(detail::spans_of({kSpan - 1, kSpan + 1}), 2);
  EXPECT_EQ(detail::spans_of({3 * kSpan + 5, 3 * kSpan + 6}), 1);
  EXPECT_EQ(detail::spans_of({5, 5}), 1) << "a fold has one span at least";
}

TEST(Deposits, AreBounded) {
  EXPECT_EQ(detail::deposits_of_worker(1000000, 1, 4096), 0) << "alone, a worker merges at once";
  EXPECT_EQ(detail::deposits_of_worker(1000000, 2, 4096), 64);
  EXPECT_EQ(detail::deposits_of_worker(1000000, 2, std::size_t{1} << 17), 8);
  EXPECT_EQ(detail::deposits_of_worker(1000000, 2, std::size_t{1} << 24), 8) << "large states, too: a stage's";
  EXPECT_EQ(detail::deposits_of_worker(5, 4, 4096), 2) << "no more than there are spans";
}

/// Full attention that is held up, now here, now there, for long enough that other workers run out of room for states.
struct HeldUp {
  std::uint32_t seed;
  mutable std::atomic<std::uint32_t> calls{0};
  explicit HeldUp(std::uint32_t s) : seed(s) {}
  PositionRange visible_range(Index, Index kv_length) const { return {0, kv_length}; }
  bool is_visible(Index, Index key_position, Index) const {
    const std::uint32_t call = calls.fetch_add(1, std::memory_order_relaxed) + seed;
    if (key_position % kSpan == 5 && (call * 2654435761u) >> 28 == 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(1 + call % 5));
    return true;
  }
};

class Folds : public PerPath {};

TEST_P(Folds, WhoeverIsLateChangesNoBit) {
  // One fold of many spans; a few with more rows than a group; several tiles of several spans each.
  const Shape shapes[] = {{2, 1, 8, 8, 1, 40 * kSpan}, {6, 2, 8, 8, 3, 12 * kSpan + 7}, {4, 1, 8, 8, 70, 6 * kSpan}};
  for (const Shape& shape : shapes) {
    const Problem p = make_problem(shape, 201);
    const Tensor q(p.q, ElementType::f32);
    const StoredCaches kv = store_cache(p.kv, ElementType::f32, ElementType::bf16, {});
    const Result serial = attend(q.const_view(), kv.view(), {path()}, Full{});
    for (const int threads : {2, 3, 8}) {
      ThreadsExecutor executor{threads};
      How how{path()};
      how.executor = executor;
      const HeldUp variant{static_cast<std::uint32_t>(threads)};
      EXPECT_TRUE(same_bits(serial, attend(q.const_view(), kv.view(), how, variant)))
          << on(path()) << ", " << threads << " threads, " << shape.n_q << " query tokens";
      EXPECT_EQ(variant.calls.load(), static_cast<std::uint32_t>(shape.n_q * shape.n_kv * shape.query_heads))
          << "every pair once: no span is computed twice";
    }
  }
}

/// A worker that gets no further than its first span until all others have returned: they run out of room, and leave it the rest.
struct FirstOneStands {
  const std::atomic<Index>& returned;
  Index wait_for;
  mutable std::atomic<bool> first{true};
  FirstOneStands(const std::atomic<Index>& workers_returned, Index others)
      : returned(workers_returned), wait_for(others) {}
  PositionRange visible_range(Index, Index kv_length) const { return {0, kv_length}; }
  bool is_visible(Index, Index key_position, Index) const {
    if (key_position == 0 && first.exchange(false))
      while (returned.load() < wait_for) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return true;
  }
};

/// Counts the workers that have returned.
struct ReturningExecutor {
  int threads;
  std::atomic<Index>& returned;
  Index concurrency() const { return threads; }
  void parallel_for(Index count, const TaskRef& work) const {
    std::vector<std::thread> team;
    for (Index task = 0; task < count; ++task)
      team.emplace_back([&, task] {
        work(task);
        returned.fetch_add(1);
      });
    for (std::thread& thread : team) thread.join();
  }
};

TEST_P(Folds, NobodyWaitsForAWorkerThatStands) {
  const Problem p = make_problem({2, 1, 8, 8, 1, 400 * kSpan}, 202);
  const Tensor q(p.q, ElementType::f32);
  const StoredCaches kv = store_cache(p.kv, ElementType::bf16, ElementType::bf16, {});
  const Result serial = attend(q.const_view(), kv.view(), {path()}, Full{});
  std::atomic<Index> returned{0};
  ReturningExecutor executor{3, returned};
  How how{path()};
  how.executor = executor;
  const FirstOneStands variant(returned, 2);
  EXPECT_TRUE(same_bits(serial, attend(q.const_view(), kv.view(), how, variant))) << on(path());
}

/// Runs a call's tasks from the last one on, or leaves some of them out.
struct Forgetful {
  Index run = 0;
  static Index concurrency() { return 4; }
  void parallel_for(Index count, const TaskRef& work) const {
    for (Index task = 0; task < std::min(count, run); ++task) work(task);
  }
};

TEST_P(Folds, AnExecutorThatLeavesTasksOutIsNoticed) {
  const Problem p = make_problem({2, 1, 8, 8, 1, 10 * kSpan}, 203);
  const Tensor q(p.q, ElementType::f32);
  const StoredCaches kv = store_cache(p.kv, ElementType::f32, ElementType::f32, {});
  Output out(ElementType::f32, 1, 2, 8);
  for (const Index run : {Index{0}, Index{3}}) {
    Forgetful executor{run};
    How how{path()};
    how.executor = executor;
    try {
      DynamicAttention{}(Sequence{q.const_view(), kv.view(), out.view()}, how.options());
      ADD_FAILURE() << "nothing was said of an executor that ran " << run << " of 4 tasks";
    } catch (const ArgumentError& error) {
      EXPECT_EQ(std::string(error.what()),
                "gqa: options.executor is one that ran " + std::to_string(run) +
                    " of 4 tasks; expected parallel_for to run every task once before it returns");
    }
  }
}

TEST_P(Folds, EveryWorkerGetsSpansWhateverTheTiles) {
  // 33 query tokens are more than a tile of a group of four; two of 128 heads on one KV head as well.
  for (const Shape& shape : {Shape{32, 8, 8, 8, 33, 40 * kSpan}, Shape{128, 1, 8, 8, 2, 40 * kSpan}}) {
    CountingExecutor executor;
    executor.claimed_concurrency = 64;
    How how{path()};
    how.executor = executor;
    static_cast<void>(solve(make_problem(shape, 204), all_of(ElementType::bf16), how));
    EXPECT_EQ(executor.most_tasks, 64) << on(path());
  }
}

TEST_P(Folds, AShortCallWakesNobody) {
  const Index before = detail::time_worth_a_worker().exchange(2000);
  CountingExecutor executor;
  executor.claimed_concurrency = 64;
  How how{path()};
  how.executor = executor;
  static_cast<void>(solve(make_problem({8, 8, 64, 64, 1, 40}, 205), all_of(ElementType::bf16), how));
  EXPECT_EQ(executor.most_tasks, 1) << on(path()) << ": 8 heads of 40 tokens take about a microsecond";
  static_cast<void>(solve(make_problem({8, 8, 64, 64, 1, 3000}, 206), all_of(ElementType::bf16), how));
  EXPECT_EQ(executor.most_tasks, 6) << on(path()) << ": heads side by side, six spans";
  detail::time_worth_a_worker().store(before);
}

TEST_P(Folds, TheFirstSpanMayBeMergedLikeAnyOther) {
  // Two workers come to a fold at once. One has the total for a moment, to see how far it is; the other one finds it held, and is faster.
  Problem p = make_problem({4, 2, 16, 16, 3, 6 * kSpan}, 207);
  for (const float strange : {1.0f, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    p.kv.k.at(7, 0, 3) = strange;
    p.kv.v.at(9, 1, 5) = strange;
    const Tensor q(p.q, ElementType::f32);
    const StoredCaches kv = store_cache(p.kv, ElementType::f32, ElementType::f32, {});
    How how{path()};
    how.scale = SteppedCall::kScale;
    const Result serial = attend(q.const_view(), kv.view(), how, Full{});
    Output out(ElementType::f32, 3, 4, 16);
    const Sequence sequence{q.const_view(), kv.view(), out.view(), {}, out.lse()};
    SteppedCall workers({&sequence, 1}, Full{}, path());
    detail::CallPlan& call = workers.call();
    ASSERT_LT(call.folds, 2) << "heads side by side: one fold";
    detail::FoldProgress& fold = call.progress[0];
    {
      detail::SequenceTasks of_one = workers.tasks(0, 0);
      detail::SequenceTasks of_other = workers.tasks(1, 0);
      const Index spans = of_one.enter(0, 0);
      ASSERT_EQ(of_other.enter(0, 0), spans);
      detail::FoldShare one(call, 0, fold, of_one, spans);
      detail::FoldShare other(call, 1, fold, of_other, spans);
      fold.held.store(true);
      detail::Claim first = other.claim(false);
      fold.held.store(false);
      ASSERT_GT(first.count, 0);
      ASSERT_EQ(first.first, 0);
      ASSERT_FALSE(first.in_order);
      detail::Claim second = one.claim(false);
      ASSERT_GT(second.count, 0);
      ASSERT_FALSE(second.in_order);
      of_one.run(second);
      one.finish(second);
      of_other.run(first);
      other.finish(first);
    }
    detail::run_worker(call, 0);
    EXPECT_TRUE(same_bits(serial, out.result())) << on(path()) << ", with " << strange;
  }
}

TEST_P(Folds, ATileMaySeeMoreSpansThanThePlanHas) {
  // What a plan looks at are the first and the last query tokens. Of 300 that see one span there, those in the middle see many; another
  // sequence of the call, with smaller states, is planned to have many.
  const Problem decode = make_problem({2, 2, 8, 8, 1, 20 * kSpan}, 208);
  const Problem prefill = make_problem({2, 2, 8, 8, 300, 20 * kSpan}, 209);
  std::vector<Index> positions(300, 3);
  for (std::size_t i = 130; i < 170; ++i) positions[i] = 20 * kSpan - 1;
  const StoredCaches caches[] = {store_cache(decode.kv, ElementType::f32, ElementType::f32, {}),
                                 store_cache(prefill.kv, ElementType::f32, ElementType::f32, {})};
  const Tensor queries[] = {{decode.q, ElementType::f32}, {prefill.q, ElementType::f32}};
  struct Outputs {
    Output of_decode{ElementType::f32, 1, 2, 8};
    Output of_prefill{ElementType::f32, 300, 2, 8};
  };
  const auto batch_into = [&](Outputs& to) {
    return std::vector<Sequence>{
        {queries[0].const_view(), caches[0].view(), to.of_decode.view(), {}, to.of_decode.lse()},
        {queries[1].const_view(), caches[1].view(), to.of_prefill.view(), positions, to.of_prefill.lse()}};
  };
  const auto with = [&](const ExecutorRef& executor) {
    Outputs outputs;
    How how{path()};
    how.executor = executor;
    DynamicAttention{}(batch_into(outputs), how.options());
    Result all = outputs.of_decode.result();
    all.append(outputs.of_prefill.result());
    return all;
  };
  const Result serial = with({});
  ThreadsExecutor threads{8};
  for (int repeat = 0; repeat < 5; ++repeat) EXPECT_TRUE(same_bits(serial, with(threads))) << on(path());

  Outputs untouched;
  const std::vector<Sequence> batch = batch_into(untouched);
  SteppedCall workers(batch, Causal{}, path());
  detail::SequenceTasks tasks = workers.tasks(0, 1);
  const Index fold = workers.call().sequences[1].first_fold + 1;  // the middle tile
  const Index spans = tasks.enter(fold, 0);
  ASSERT_EQ(spans, 20);
  ASSERT_EQ(tasks.planned_spans(), 1);
  detail::FoldProgress& progress = detail::Worker::publish(workers.call().progress[0], fold, spans);
  progress.held.store(true);
  EXPECT_EQ(detail::FoldShare(workers.call(), 0, progress, tasks, spans).claim(false).count, 0)
      << "there is no room for a state that is not merged at once";
}

INSTANTIATE_TEST_SUITE_P(EveryPath, Folds, Folds::cases(), Folds::name);

}  // namespace
}  // namespace gqa::test
