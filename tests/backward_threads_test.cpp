// SPDX-License-Identifier: Apache-2.0
// Backward calls on threads: one functor and one pool for many callers; calls that are stopped, or whose variant throws, end.
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <stdexcept>
#include <thread>

#include "gqa/thread_pool.hpp"
#include "gqa/variants.hpp"
#include "support/backward_call.hpp"
#include "support/executors.hpp"

namespace gqa::test {
namespace {

class BackwardThreads : public PerPath {
 protected:
  Shape shape() const { return path() == Path::portable ? Shape{4, 2, 4, 4, 40, 560} : Shape{4, 2, 16, 12, 70, 820}; }
};

template <class Body>
void at_the_same_time(int count, const Body& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back([&body, i] { body(i); });
  for (std::thread& thread : threads) thread.join();
}

struct Work {
  StoredProblem problem;
  Output forward;
  Gradients expected;
  Work(const Shape& shape, std::uint64_t seed, Path path)
      : problem(shape, seed, seed % 2 == 0 ? ElementType::bf16 : ElementType::f32),
        forward(run_forward(problem.inputs(), {.path = path}, Causal{})),
        expected(run_backward(problem.inputs(), forward, {.path = path}, Causal{})) {}
};

TEST_P(BackwardThreads, ManyCallOneFunctorAndOnePool) {
  std::vector<Work> work;
  std::uint64_t seed = 1201;
  for (const Shape& shape : {Shape{4, 2, 16, 12, 9, 530}, {4, 2, 16, 12, 70, 70}, {2, 1, 8, 8, 1, 300}})
    work.emplace_back(shape, seed++, path());
  const DynamicAttentionBackward functor;
  ThreadPoolExecutor pool(3);
  std::atomic<int> wrong{0};
  at_the_same_time(3, [&](int thread) {
    for (std::size_t i = 0; i < 2 * work.size(); ++i) {
      Work& mine = work[(i + static_cast<std::size_t>(thread)) % work.size()];
      BackwardHow how{.path = path()};
      if (i % 2 == 0) how.executor = pool;
      if (!same_gradients(mine.expected, run_backward(mine.problem.inputs(), mine.forward, how, Causal{}, {}, functor)))
        wrong.fetch_add(1);
    }
  });
  EXPECT_EQ(wrong.load(), 0) << on(path());
}

struct Oops : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Does something at the n-th call of one of its members while it is armed.
enum class Member { visible_range, is_visible, score, sink };
struct Acting {
  Member member = Member::is_visible;
  Index n = -1;
  const std::function<void()>* action = nullptr;
  mutable std::atomic<Index> calls{0};

  void at(Member here) const {
    if (here == member && calls.fetch_add(1) == n) (*action)();
  }
  PositionRange visible_range(Index query_position, Index kv_length) const {
    at(Member::visible_range);
    return Causal{}.visible_range(query_position, kv_length);
  }
  bool is_visible(Index, Index, Index) const {
    at(Member::is_visible);
    return true;
  }
  auto score(auto s, const RowContext& row, auto k) const {
    at(Member::score);
    static constexpr float none[1] = {};
    return s + 0.0625f * static_cast<float>(row.query_head) + expression::lookup(none, k, 0);
  }
  float sink(const RowContext&) const {
    at(Member::sink);
    return 0.5f;
  }
};

class BackwardEnds : public BackwardThreads {
 protected:
  struct Fixture {
    StoredProblem problem;
    Output forward;
    std::vector<float> sum = std::vector<float>(1);
    DynamicAttentionBackward functor{};
    CallControl control{};
  };
  Fixture fixture() const {
    StoredProblem p(shape(), 1211, ElementType::bf16, paged_place(32));
    Output forward = run_forward(p.inputs(), {.path = path()}, Acting{});
    return {std::move(p), std::move(forward)};
  }
  /// Sums over all pairs, where units wait for each other whole, or none.
  Gradients run(Fixture& f, const Acting& variant, const ExecutorRef& executor, bool sums) const {
    const LookupGradient lookups[] = {{0, f.sum, {0, 0, 0, 0}, 0}};
    BackwardHow how{.path = path(), .executor = executor, .control = &f.control};
    if (sums) how.lookups = lookups;
    return run_backward(f.problem.inputs(), f.forward, how, variant, {}, f.functor);
  }
  /// Calls of a member in a whole call.
  Index calls_of(Fixture& f, Member member) const {
    const Acting counting{member, -1, nullptr};
    static_cast<void>(run(f, counting, {}, false));
    return counting.calls.load();
  }
};

constexpr Member kMembers[] = {Member::visible_range, Member::is_visible, Member::score, Member::sink};

TEST_P(BackwardEnds, WhatAVariantThrowsReachesTheCaller) {
  Fixture f = fixture();
  const Gradients expected = run(f, Acting{}, {}, false);
  const std::function<void()> oops = [] { throw Oops("from the variant"); };
  ThreadPoolExecutor pool(3);
  ThreadsExecutor fresh{5};
  BackwardExecutor reversed;
  for (const Member member : kMembers) {
    const Index calls = calls_of(f, member);
    for (const ExecutorRef& executor : {ExecutorRef(), ExecutorRef(pool), ExecutorRef(fresh), ExecutorRef(reversed)})
      for (const bool sums : {false, true})
        for (const Index n : {Index{0}, calls / 3, calls - calls / 8 - 1}) {
          const Acting variant{member, n, &oops};
          EXPECT_THROW(static_cast<void>(run(f, variant, executor, sums)), Oops)
              << static_cast<int>(member) << " at " << n << " of " << calls;
        }
    EXPECT_TRUE(same_gradients(expected, run(f, Acting{}, pool, false))) << "afterwards";
  }
}

TEST_P(BackwardEnds, AStoppedCallThrowsAndAllIsUsable) {
  Fixture f = fixture();
  const Gradients expected = run(f, Acting{}, {}, false);
  const std::function<void()> stop = [&] { f.control.stop = true; };
  ThreadPoolExecutor pool(3);
  ThreadsExecutor fresh{5};
  for (const ExecutorRef& executor : {ExecutorRef(), ExecutorRef(pool), ExecutorRef(fresh)})
    for (const bool sums : {false, true}) {
      const Index calls = calls_of(f, Member::is_visible);
      for (const Index n : {Index{0}, calls / 2}) {
        const Acting variant{Member::is_visible, n, &stop};
        EXPECT_THROW(static_cast<void>(run(f, variant, executor, sums)), Stopped) << n;
        EXPECT_LT(f.control.done.load(), f.control.total.load());
        EXPECT_THROW(static_cast<void>(run(f, Acting{}, executor, sums)), Stopped) << "stop is not reset";
        f.control.stop = false;
      }
      EXPECT_TRUE(same_gradients(expected, run(f, Acting{}, executor, sums)));
      EXPECT_EQ(f.control.done.load(), f.control.total.load());
      EXPECT_GT(f.control.total.load(), 3);
    }
}

TEST_P(BackwardEnds, ProgressCountsSequencesOfEveryKind) {
  const Shape shapes[] = {{4, 2, 4, 4, 40, 300}, {4, 2, 4, 4, 0, 300}, {4, 2, 4, 4, 3, 0}, {4, 2, 4, 4, 0, 0}};
  for (std::size_t count = 1; count <= std::size(shapes); ++count) {
    std::vector<StoredProblem> problems;
    std::vector<Output> outputs;
    std::vector<GradientTensors> memory;
    std::vector<Sequence> batch;
    std::vector<SequenceGradients> gradients;
    problems.reserve(count);
    outputs.reserve(count);
    memory.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      const BackwardInputs in =
          problems.emplace_back(shapes[std::size(shapes) - 1 - i], 1221, ElementType::f32).inputs();
      outputs.push_back(run_forward(in, {.path = path()}, Causal{}));
      batch.push_back({in.q, in.kv, outputs[i].view(), {}, outputs[i].lse()});
      gradients.push_back(memory.emplace_back(GradientTensors::of<Causal>(in)).gradients(in.d_out));
    }
    CallControl control;
    control.done = control.total = 7;
    BackwardHow how{.path = path(), .control = &control};
    const DynamicAttentionBackward functor;
    functor(batch, gradients, how.options());
    EXPECT_EQ(control.done.load(), control.total.load()) << count << " sequences";
    control.stop = true;
    EXPECT_THROW(functor(batch, gradients, how.options()), Stopped) << count << " sequences";
  }
}

INSTANTIATE_TEST_SUITE_P(EveryPath, BackwardThreads, BackwardThreads::cases(), BackwardThreads::name);
INSTANTIATE_TEST_SUITE_P(EveryPath, BackwardEnds, BackwardEnds::cases(), BackwardEnds::name);

/// Leaves its first task out.
struct Lazy {
  static Index concurrency() { return 4; }
  static void parallel_for(Index count, const TaskRef& work) {
    for (Index i = 1; i < count; ++i) work(i);
  }
};
TEST(BackwardExecutors, OneThatLeavesTasksOutIsNamed) {
  const StoredProblem p({4, 2, 8, 8, 20, 600}, 1231, ElementType::f32);
  Output forward = run_forward(p.inputs(), {.path = best_f32_path()}, Causal{});
  Lazy lazy;
  try {
    static_cast<void>(run_backward(p.inputs(), forward, {.path = best_f32_path(), .executor = lazy}, Causal{}));
    ADD_FAILURE() << "nothing was thrown";
  } catch (const ArgumentError& error) {
    EXPECT_NE(std::string(error.what()).find("options.executor"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace gqa::test
