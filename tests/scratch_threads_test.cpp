// SPDX-License-Identifier: Apache-2.0
// A functor's scratch between calls: reused, given back, never waited for, and usable after a fork.
#include "gqa/detail/scratch.hpp"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "gqa/thread_pool.hpp"
#include "support/problem.hpp"
#include "support/sanitizers.hpp"

namespace gqa::test {
namespace {

using detail::ScratchCache;

TEST(Scratch, IsReusedAndGrows) {
  ScratchCache cache;
  ScratchCache::Buffer* const first = cache.acquire(100);
  cache.put_back(first);
  EXPECT_EQ(cache.acquire(50), first);
  cache.put_back(first);
  ScratchCache::Buffer* const larger = cache.acquire(1000);
  EXPECT_GE(larger->bytes, 1000u);
  cache.put_back(larger);
  EXPECT_EQ(cache.acquire(100), larger) << "in the place of the one that was too small";
  cache.put_back(larger);
}

TEST(Scratch, IsGivenBack) {
  ScratchCache cache;
  ScratchCache::Buffer* const held = cache.acquire(100);
  cache.put_back(cache.acquire(100));
  cache.release();  // AddressSanitizer would tell of what is lost, or freed twice
  cache.release();
  cache.put_back(held);
  EXPECT_EQ(cache.acquire(100), held);
  cache.put_back(held);
}

TEST(Scratch, OneThreadAfterTheOtherUsesTheSame) {
  ScratchCache cache;
  std::set<void*> buffers;
  for (int i = 0; i < 40; ++i)
    std::thread([&] {
      ScratchCache::Buffer* const buffer = cache.acquire(100);
      buffers.insert(buffer);
      cache.put_back(buffer);
    }).join();
  EXPECT_EQ(buffers.size(), 1u);
}

TEST(Scratch, NoBufferIsInTwoHands) {
  ScratchCache cache;
  std::atomic<int> wrong{0};
  std::vector<std::thread> team;
  for (int thread = 0; thread < 6; ++thread)
    team.emplace_back([&, thread] {
      for (int i = 0; i < 3000; ++i) {
        ScratchCache::Buffer* const one = cache.acquire(64);
        ScratchCache::Buffer* const two = cache.acquire(static_cast<std::size_t>(64 + i % 3 * 64));
        auto* const a = reinterpret_cast<int*>(one->data());
        auto* const b = reinterpret_cast<int*>(two->data());
        *a = thread;
        *b = thread + 100;
        if (i % 64 == 0) std::this_thread::yield();
        if (*a != thread || *b != thread + 100) wrong.fetch_add(1);
        cache.put_back(one);
        cache.put_back(two);
        if (i % 500 == 0) cache.release();
      }
    });
  for (std::thread& thread : team) thread.join();
  EXPECT_EQ(wrong.load(), 0);
}

// A thread of high priority and one of low share a processor and a functor. Whoever waits for the other by spinning waits for good.
TEST(Scratch, ThreadsOfTwoPrioritiesOnOneProcessorGetOn) {
  const Problem p = make_problem({2, 1, 8, 8, 1, 4}, 221);
  const Tensor q(p.q, ElementType::f32);
  const StoredCaches kv = store_cache(p.kv, ElementType::f32, ElementType::f32, {});
  const DynamicAttention functor;
  std::atomic<bool> refused{false};
  std::atomic<int> done{0};
  const auto work = [&](int priority, int calls) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    sched_param parameters{};
    parameters.sched_priority = priority;
    if (pthread_setaffinity_np(pthread_self(), sizeof one, &one) != 0 ||
        pthread_setschedparam(pthread_self(), SCHED_FIFO, &parameters) != 0) {
      refused = true;
      return;
    }
    Output out(ElementType::f32, 1, 2, 8);
    for (int i = 0; i < calls; ++i) {
      functor(q.const_view(), kv.view(), out.view());
      if (priority > 1 && i % 10 == 0)
        std::this_thread::sleep_for(std::chrono::microseconds(20));  // so that it comes in the middle
    }
    done.fetch_add(1);
  };
  std::thread low(work, 1, 30000);
  std::thread high(work, 2, 3000);
  low.join();
  high.join();
  if (refused) GTEST_SKIP() << "this process may not have threads of real-time priority";
  EXPECT_EQ(done.load(), 2);
}

// A process that forks while it has threads: ThreadSanitizer does not follow it; AddressSanitizer (GCC 12's) does not hold its allocator's locks
// over the fork, so that the child waits for ever for one that a thread of the parent had, for instance one that has just started.

/// Runs `body` in a child process. True if it returned.
template <class Body>
bool in_a_child(const Body& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // rather than wait for ever
    body();
    _exit(0);
  }
  int status = -1;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TEST(Fork, AChildCallsAndDestroysWhatItsParentHad) {
  if (GQA_TEST_IS_SANITIZED) GTEST_SKIP() << "sanitizers hold locks of their own when a process with threads forks";
  const Problem p = make_problem({4, 2, 16, 16, 3, 3 * detail::kSpan}, 222);
  const Tensor q(p.q, ElementType::f32);
  const StoredCaches kv = store_cache(p.kv, ElementType::f32, ElementType::f32, {});
  auto functor = std::make_unique<DynamicAttention>();
  auto pool = std::make_unique<ThreadPoolExecutor>(4);
  How how{active_path().path};
  how.executor = *pool;
  const Result expected = attend(q.const_view(), kv.view(), how, Causal{}, {}, *functor);
  EXPECT_TRUE(in_a_child([&] {
    const Result again = attend(q.const_view(), kv.view(), how, Causal{}, {}, *functor);
    if (!same_bits(expected, again)) _exit(1);
    functor.reset();
    pool.reset();  // its threads are the parent's
    ThreadPoolExecutor own(3);
    How with_own = how;
    with_own.executor = own;
    if (!same_bits(expected, attend(q.const_view(), kv.view(), with_own))) _exit(2);
  }));
  EXPECT_TRUE(same_bits(expected, attend(q.const_view(), kv.view(), how, Causal{}, {}, *functor)))
      << "the parent's are as before";
}

TEST(Fork, WhileOtherThreadsAreInACall) {
  if (GQA_TEST_IS_SANITIZED) GTEST_SKIP() << "sanitizers hold locks of their own when a process with threads forks";
  const Problem p = make_problem({4, 2, 16, 16, 3, 2 * detail::kSpan}, 223);
  const Tensor q(p.q, ElementType::f32);
  const StoredCaches kv = store_cache(p.kv, ElementType::f32, ElementType::f32, {});
  const DynamicAttention functor;
  ThreadPoolExecutor pool(3);
  std::atomic<bool> end{false};
  std::thread busy([&] {
    How how{active_path().path};
    how.executor = pool;
    while (!end) static_cast<void>(attend(q.const_view(), kv.view(), how, Causal{}, {}, functor));
  });
  for (int i = 0; i < 10; ++i)
    EXPECT_TRUE(in_a_child([&] {
      Output out(ElementType::f32, 3, 4, 16);
      Options options;
      options.executor = pool;
      functor(q.const_view(), kv.view(), out.view(), options);
    }));
  end = true;
  busy.join();
}

}  // namespace
}  // namespace gqa::test
