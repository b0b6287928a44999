// SPDX-License-Identifier: Apache-2.0
// A call that is stopped, or whose variant throws, ends soon, says so, and leaves functor, caches and executor usable.
#include <gtest/gtest.h>

#include <mutex>
#include <optional>
#include <span>
#include <stdexcept>
#include <thread>

#include "gqa/thread_pool.hpp"
#include "support/executors.hpp"
#include "support/problem.hpp"

namespace gqa::test {
namespace {

using detail::kSpan;

/// Does something at the n-th pair that it is asked about.
template <class Action>
struct AtPair {
  Index n;
  Action action;
  mutable std::atomic<Index> asked{0};
  AtPair(Index at, Action what) : n(at), action(what) {}
  PositionRange visible_range(Index query_position, Index kv_length) const {
    return Causal{}.visible_range(query_position, kv_length);
  }
  bool is_visible(Index, Index, Index) const {
    if (asked.fetch_add(1) == n) action();
    return true;
  }
};

struct Oops : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] void oops() { throw Oops("from the variant"); }

/// Throws in one of its members, at the n-th call of it in a call of the functor.
enum class Member { visible_range, is_visible, score, check };
struct Throwing {
  Member member;
  Index n;
  mutable std::atomic<Index> calls{0};
  Throwing(Member which, Index at) : member(which), n(at) {}
  void at(Member here) const {
    if (here == member && calls.fetch_add(1) == n) oops();
  }
  PositionRange visible_range(Index query_position, Index kv_length) const {
    at(Member::visible_range);
    return Causal{}.visible_range(query_position, kv_length);
  }
  bool is_visible(Index, Index, Index) const {
    at(Member::is_visible);
    return true;
  }
  float score(float score, Index, Index, Index) const {
    at(Member::score);
    return score;
  }
  void check() const { at(Member::check); }
};

class Ends : public PerPath {
 protected:
  Ends() : problem_(make_problem({4, 2, 16, 16, 70, 3 * kSpan + 70}, 211)) {}
  void SetUp() override {
    PerPath::SetUp();
    if (IsSkipped()) return;
    q_.emplace(problem_.q, ElementType::bf16);
    kv_.emplace(store_cache(problem_.kv, ElementType::bf16, ElementType::bf16, paged_place(32)));
  }
  template <class V>
  Result run(const V& variant, const ExecutorRef& executor, CallControl* control = nullptr) {
    Output out(ElementType::f32, 70, 4, 16);
    Options options = How{path()}.options();
    options.executor = executor;
    options.control = control;
    functor_(Sequence{q_->const_view(), kv_->view(), out.view(), {}, out.lse()}, variant, options);
    return out.result();
  }

  Problem problem_;
  std::optional<Tensor> q_;
  std::optional<StoredCaches> kv_;
  DynamicAttention functor_;
};

TEST_P(Ends, WhatAVariantThrowsReachesTheCaller) {
  ThreadPoolExecutor pool(3);
  const Result expected = run(Throwing(Member::score, -1), {});
  const ExecutorRef executors[] = {ExecutorRef(), ExecutorRef(pool)};
  for (const ExecutorRef& executor : executors) {
    for (const Member member : {Member::visible_range, Member::is_visible, Member::score, Member::check}) {
      // Ranges are asked for at least twice for each of 70 tokens: to plan, and by the first worker. How often besides depends on who is first.
      for (const Index n : {0, 70, member == Member::visible_range ? 130 : 300}) {
        if (member == Member::check && n > 0) continue;
        try {
          static_cast<void>(run(Throwing(member, n), executor));
          ADD_FAILURE() << "nothing came of what member " << static_cast<int>(member) << " threw";
        } catch (const Oops& error) {
          EXPECT_STREQ(error.what(), "from the variant");
        }
        ASSERT_TRUE(same_bits(expected, run(Throwing(Member::score, -1), executor))) << "afterwards, on " << on(path());
      }
    }
  }
}

TEST_P(Ends, AStoppedCallThrowsAndAllIsUsable) {
  ThreadPoolExecutor pool(3);
  const Result expected = run(Causal{}, {});
  const ExecutorRef executors[] = {ExecutorRef(), ExecutorRef(pool)};
  for (const ExecutorRef& executor : executors) {
    CallControl control;
    const AtPair stop(5000, [&] { control.stop = true; });
    EXPECT_THROW(static_cast<void>(run(stop, executor, &control)), Stopped) << on(path());
    EXPECT_LT(control.done.load(), control.total.load());
    EXPECT_LT(stop.asked.load(), 70 * 4 * (3 * kSpan + 35)) << "the rest was not computed";
    EXPECT_THROW(static_cast<void>(run(Causal{}, executor, &control)), Stopped) << "stop is not reset";
    control.stop = false;
    EXPECT_TRUE(same_bits(expected, run(Causal{}, executor, &control))) << on(path());
    EXPECT_EQ(control.done.load(), control.total.load());
  }
}

TEST_P(Ends, ProgressRisesToItsTotal) {
  ThreadsExecutor threads{3};
  CallControl control;
  Index seen = 0;
  bool rises = true;
  std::mutex mutex;
  struct Looking {
    const CallControl& control;
    Index& seen;
    bool& rises;
    std::mutex& mutex;
    PositionRange visible_range(Index query_position, Index kv_length) const {
      return Causal{}.visible_range(query_position, kv_length);
    }
    bool is_visible(Index, Index key_position, Index) const {
      if (key_position % 64 != 0) return true;
      const std::lock_guard lock(mutex);
      const Index now = control.done.load();
      rises = rises && now >= seen && now <= control.total.load();
      seen = now;
      return true;
    }
  };
  static_cast<void>(run(Looking{control, seen, rises, mutex}, threads, &control));
  EXPECT_TRUE(rises) << on(path());
  EXPECT_GT(seen, 0);
  EXPECT_EQ(control.done.load(), control.total.load());
  EXPECT_GT(control.total.load(), 10);
}

INSTANTIATE_TEST_SUITE_P(EveryPath, Ends, Ends::cases(), Ends::name);

// A call with nothing to do has no parts, and is stopped as well.
TEST(Stop, ACallWithNothingToDo) {
  CallControl control;
  control.done = control.total = 7;
  Options options;
  options.control = &control;
  const DynamicAttention functor;
  functor(std::span<const Sequence>{}, options);
  EXPECT_EQ(control.done.load(), 0);
  EXPECT_EQ(control.total.load(), 0);
  control.stop = true;
  EXPECT_THROW(functor(std::span<const Sequence>{}, options), Stopped);
}

// From a thread that is not the call's.
TEST(Stop, FromAnotherThread) {
  const Problem p = make_problem({8, 8, 64, 64, 1500, 1500}, 212);
  const Tensor q(p.q, ElementType::f32);
  const StoredCaches kv = store_cache(p.kv, ElementType::f32, ElementType::f32, {});
  Output out(ElementType::f32, 1500, 8, 64);
  CallControl control;
  Options options;
  options.path = Path::portable;  // slow enough
  options.control = &control;
  std::thread other([&] {
    while (control.done.load() == 0) std::this_thread::yield();
    control.stop = true;
  });
  EXPECT_THROW(DynamicAttention{}(q.const_view(), kv.view(), out.view(), options), Stopped);
  other.join();
  EXPECT_LT(control.done.load(), control.total.load());
}

}  // namespace
}  // namespace gqa::test
