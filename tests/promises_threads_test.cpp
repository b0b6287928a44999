// SPDX-License-Identifier: Apache-2.0
// One functor, and one pool, used from several threads at the same time.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "gqa/thread_pool.hpp"
#include "support/executors.hpp"
#include "support/problem.hpp"

namespace gqa::test {
namespace {

/// Runs `body(i)` on `count` threads at once.
template <class Body>
void at_the_same_time(int count, const Body& body) {
  std::atomic<int> ready{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i)
    threads.emplace_back([&, i] {
      ready.fetch_add(1);
      while (ready.load() < count) std::this_thread::yield();
      body(i);
    });
  for (std::thread& thread : threads) thread.join();
}

struct Work {
  Problem problem;
  Tensor q;
  StoredCaches kv;
  Result expected;
};

/// Problems of different sizes, so that scratch is acquired and replaced while others use theirs.
std::vector<Work> make_work(Path path, ElementType type) {
  std::vector<Work> work;
  for (const auto& [n_q, n_kv] :
       {std::pair<Index, Index>{1, 2 * detail::kSpan + 9}, {40, 40}, {3, 70}, {1, 65}, {20, detail::kSpan + 20}}) {
    const Problem p = make_problem({4, 2, 16, 16, n_q, n_kv}, 90 + work.size());
    const Types types = cache_of(type);
    work.push_back({p, Tensor(p.q, types.q), store_cache(p.kv, types.k, types.v, {}), solve(p, types, {path})});
  }
  return work;
}

class Threads : public PerPathAndType {};

TEST_P(Threads, ManyCallOneConstFunctor) {
  const std::vector<Work> work = make_work(path(), type());
  const GroupedQueryAttention<4, 2, 16> functor;
  std::atomic<int> wrong{0};
  at_the_same_time(4, [&](int thread) {
    for (std::size_t i = 0; i < 2 * work.size(); ++i) {
      const Work& mine = work[(i + static_cast<std::size_t>(thread)) % work.size()];
      if (!same_bits(mine.expected, attend(mine.q.const_view(), mine.kv.view(), {path()}, Causal{}, {}, functor)))
        wrong.fetch_add(1);
    }
  });
  EXPECT_EQ(wrong.load(), 0) << on(path()) << ", " << element_name(type());
}

TEST_P(Threads, ManyUseOnePool) {
  const std::vector<Work> work = make_work(path(), type());
  const DynamicAttention functor;
  ThreadPoolExecutor pool(3);
  std::atomic<int> wrong{0};
  at_the_same_time(3, [&](int thread) {
    How how{path()};
    how.executor = pool;
    for (std::size_t i = 0; i < 2 * work.size(); ++i) {
      const Work& mine = work[(i + static_cast<std::size_t>(thread)) % work.size()];
      if (!same_bits(mine.expected, attend(mine.q.const_view(), mine.kv.view(), how, Causal{}, {}, functor)))
        wrong.fetch_add(1);
    }
  });
  EXPECT_EQ(wrong.load(), 0) << on(path()) << ", " << element_name(type());
}

/// Says that it runs one task at a time, and runs them four at a time.
struct Understating {
  static Index concurrency() { return 1; }
  static void parallel_for(Index count, const TaskRef& task) {
    std::atomic<Index> next{0};
    at_the_same_time(4, [&](int) {
      for (Index i = next.fetch_add(1); i < count; i = next.fetch_add(1)) task(i);
    });
  }
};

// There is scratch for one task then, and a call has no more.
TEST_P(Threads, AnExecutorThatUnderstatesItsConcurrencyIsSafe) {
  const std::vector<Work> work = make_work(path(), type());
  Understating executor;
  How how{path()};
  how.executor = executor;
  for (int round = 0; round < 10; ++round)
    for (const Work& mine : work)
      EXPECT_TRUE(same_bits(mine.expected, attend(mine.q.const_view(), mine.kv.view(), how))) << on(path());
}

// Scratch of a call that may wander between threads: the functor outlives the threads that called it.
TEST_P(Threads, AFunctorMayBeCopiedMovedAndCalledFromThreadsThatCome) {
  const std::vector<Work> work = make_work(path(), type());
  auto first = std::make_unique<DynamicAttention>();
  std::thread([&] {
    EXPECT_TRUE(same_bits(work[0].expected, attend(work[0].q.const_view(), work[0].kv.view(), {path()}, Causal{}, {}, *first)));
  }).join();
  const DynamicAttention copy = *first;
  DynamicAttention assigned;
  assigned = *first;
  EXPECT_TRUE(same_bits(work[1].expected, attend(work[1].q.const_view(), work[1].kv.view(), {path()}, Causal{}, {}, *first)));
  first.reset();
  EXPECT_TRUE(same_bits(work[2].expected, attend(work[2].q.const_view(), work[2].kv.view(), {path()}, Causal{}, {}, copy)));
  EXPECT_TRUE(same_bits(work[4].expected, attend(work[4].q.const_view(), work[4].kv.view(), {path()}, Causal{}, {}, assigned)));
}

INSTANTIATE_TEST_SUITE_P(EveryPath, Threads, Threads::cases(), Threads::name);

}  // namespace
}  // namespace gqa::test
