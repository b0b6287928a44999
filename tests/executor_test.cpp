// SPDX-License-Identifier: Apache-2.0
// Executors run every task exactly once and return when all are done: the serial one, OpenMP, Eigen's thread pool, a user's.
#include "gqa/executor.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "gqa/thread_pool.hpp"
#include "support/executors.hpp"
#include "support/sanitizers.hpp"
#if defined(__linux__) && defined(__x86_64__) && !GQA_TEST_IS_SANITIZED
#include <sys/resource.h>
#define GQA_TEST_LIMITS_MEMORY  // sanitizers reserve terabytes of addresses, and emulators do not keep to limits
#endif

namespace gqa::test {
namespace {

static_assert(Executor<SerialExecutor> && Executor<const SerialExecutor>);
static_assert(Executor<ThreadPoolExecutor> && Executor<const ThreadPoolExecutor>);
static_assert(Executor<ThreadsExecutor> && Executor<ShuffledExecutor> && Executor<CountingExecutor>);
static_assert(!Executor<int> && !Executor<Eigen::ThreadPool>);
static_assert(sizeof(ExecutorRef) <= 3 * sizeof(void*), "a reference is passed by value");
#if defined(_OPENMP)
static_assert(Executor<OpenMpExecutor>);
#endif

/// Counts how often each task ran, and how many ran at once.
class Tally {
 public:
  explicit Tally(Index count) : runs_(static_cast<std::size_t>(count)) {}

  TaskRef work() {
    return {this, [](void* self, Index task) { static_cast<Tally*>(self)->run(task); }};
  }
  bool each_ran_once() const {
    for (const std::atomic<int>& runs : runs_)
      if (runs.load() != 1) return false;
    return true;
  }
  Index most_at_once() const { return most_.load(); }

 private:
  void run(Index task) {
    const Index now = running_.fetch_add(1) + 1;
    for (Index most = most_.load(); now > most && !most_.compare_exchange_weak(most, now);) {
    }
    if (task % 16 == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
    runs_[static_cast<std::size_t>(task)].fetch_add(1);
    running_.fetch_sub(1);
  }
  std::vector<std::atomic<int>> runs_;
  std::atomic<Index> running_{0};
  std::atomic<Index> most_{0};
};

template <class E>
void runs_every_task_once(E& executor) {
  const ExecutorRef ref(executor);
  EXPECT_EQ(ref.concurrency(), static_cast<Index>(executor.concurrency()));
  for (const Index count : {0, 1, 2, 3, 7, 64, 1000}) {
    Tally tally(count);
    ref.parallel_for(count, tally.work());
    EXPECT_TRUE(tally.each_ran_once()) << count << " tasks";
    EXPECT_LE(tally.most_at_once(), ref.concurrency()) << count << " tasks";
  }
}

TEST(ExecutorRef, IsSerialByDefault) {
  const ExecutorRef serial;
  EXPECT_EQ(serial.concurrency(), 1);
  std::vector<Index> order;
  serial.parallel_for(4, TaskRef(&order, [](void* to, Index task) { static_cast<std::vector<Index>*>(to)->push_back(task); }));
  EXPECT_EQ(order, (std::vector<Index>{0, 1, 2, 3}));
}

TEST(ExecutorRef, RefersAndDoesNotCopy) {
  CountingExecutor counting;
  const ExecutorRef ref(counting);
  const ExecutorRef copy = ref;
  Tally tally(5);
  copy.parallel_for(5, tally.work());
  EXPECT_EQ(counting.most_tasks, 5);
  counting.claimed_concurrency = 9;
  EXPECT_EQ(ref.concurrency(), 9);
}

TEST(ExecutorRef, TakesConstExecutors) {
  const SerialExecutor serial;
  const ThreadPoolExecutor pool(2);
  runs_every_task_once(serial);
  runs_every_task_once(pool);
}

TEST(Executors, RunEveryTaskOnce) {
  SerialExecutor serial;
  runs_every_task_once(serial);
  BackwardExecutor backward;
  runs_every_task_once(backward);
  ShuffledExecutor shuffled;
  runs_every_task_once(shuffled);
  ThreadsExecutor threads{3};
  runs_every_task_once(threads);
}

#if defined(_OPENMP)
TEST(OpenMp, RunsEveryTaskOnceWithAnyNumberOfThreads) {
  for (const int threads : {0, 1, 2, 3, 7}) {
    OpenMpExecutor openmp{threads};
    EXPECT_GE(openmp.concurrency(), 1);
    runs_every_task_once(openmp);
  }
}
#endif

TEST(ThreadPool, OwnsSoManyThreads) {
  for (const int threads : {1, 2, 3, 7}) {
    ThreadPoolExecutor pool(threads);
    EXPECT_EQ(pool.concurrency(), threads);
    for (int i = 0; i < 5; ++i) runs_every_task_once(pool);
  }
}

TEST(ThreadPool, UsesTheHostProgramsPool) {
  Eigen::ThreadPool host(3);
  ThreadPoolExecutor all(host);
  EXPECT_EQ(all.concurrency(), 4) << "its threads and the caller";
  runs_every_task_once(all);
  ThreadPoolExecutor two(host, 2);
  EXPECT_EQ(two.concurrency(), 2);
  runs_every_task_once(two);
  ThreadPoolExecutor many(host, 100);
  EXPECT_EQ(many.concurrency(), 4);
}

TEST(ThreadPool, NeedsAThread) {
  for (const int threads : {0, -1}) {
    try {
      ThreadPoolExecutor pool(threads);
      ADD_FAILURE() << threads << " threads were accepted";
    } catch (const ArgumentError& error) {
      EXPECT_EQ(std::string(error.what()), "gqa: threads is " + std::to_string(threads) + "; expected 1 or more");
    }
  }
  Eigen::ThreadPool host(1);
  EXPECT_THROW(ThreadPoolExecutor(host, 0), ArgumentError);
}

TEST(ThreadPoolDeathTest, SaysSoWhereTheSystemStartsFewerThreads) {
#if defined(GQA_TEST_LIMITS_MEMORY)
  const auto ask_for_too_many = [] {
    const rlimit limit{rlim_t{1} << 30, rlim_t{1} << 30};  // bytes of addresses: stacks of some hundred threads at most
    if (setrlimit(RLIMIT_AS, &limit) != 0) std::_Exit(3);
    try {
      const ThreadPoolExecutor pool(2000);
    } catch (const ArgumentError& error) {
      std::fputs(error.what(), stderr);
      std::_Exit(0);
    }
    std::_Exit(1);
  };
  EXPECT_EXIT(ask_for_too_many(), testing::ExitedWithCode(0), "threads.*2000.*no more than the system starts");
#else
  GTEST_SKIP() << "the memory of this kind of program cannot be limited";
#endif
}

// A second thread really helps: two tasks that wait for each other can only end if both run.
TEST(ThreadPool, RunsTasksAtTheSameTime) {
  ThreadPoolExecutor pool(2);
  std::atomic<int> arrived{0};
  pool.parallel_for(2, TaskRef(&arrived, [](void* context, Index) {
                      auto& count = *static_cast<std::atomic<int>*>(context);
                      count.fetch_add(1);
                      while (count.load() < 2) std::this_thread::yield();
                    }));
  EXPECT_EQ(arrived.load(), 2);
}

// The caller does the work itself when all the pool's threads are busy with something else.
TEST(ThreadPool, DoesNotWaitForThreadsThatAreBusyElsewhere) {
  std::atomic<bool> release{false};
  std::atomic<int> busy{0};
  Eigen::ThreadPool host(2);  // ends first: its threads read the two
  for (int i = 0; i < 2; ++i)
    host.Schedule([&] {
      busy.fetch_add(1);
      while (!release.load()) std::this_thread::yield();
    });
  while (busy.load() < 2) std::this_thread::yield();
  {
    ThreadPoolExecutor executor(host);
    Tally tally(20);
    executor.parallel_for(20, tally.work());
    EXPECT_TRUE(tally.each_ran_once());
  }  // the executor is gone before the pool gets round to its helpers
  release.store(true);
}

// Calls from the pool's own threads, on all of them at once: each can finish without the others.
TEST(ThreadPool, MayBeUsedFromItsOwnThreads) {
  Eigen::ThreadPool host(3);
  ThreadPoolExecutor executor(host);
  std::vector<std::unique_ptr<Tally>> tallies;
  for (int i = 0; i < 6; ++i) tallies.push_back(std::make_unique<Tally>(40));
  std::atomic<int> finished{0};
  for (auto& tally : tallies)
    host.Schedule([&executor, &finished, work = tally.get()] {
      executor.parallel_for(40, work->work());
      finished.fetch_add(1);
    });
  while (finished.load() < 6) std::this_thread::yield();
  for (const auto& tally : tallies) EXPECT_TRUE(tally->each_ran_once());
}

TEST(ThreadPool, MayBeNested) {
  ThreadPoolExecutor pool(3);
  std::atomic<int> inner{0};
  struct Context {
    ThreadPoolExecutor& pool;
    std::atomic<int>& inner;
  } context{pool, inner};
  pool.parallel_for(5, TaskRef(&context, [](void* c, Index) {
                      auto& outer = *static_cast<Context*>(c);
                      outer.pool.parallel_for(7, TaskRef(&outer.inner, [](void* count, Index) {
                                                static_cast<std::atomic<int>*>(count)->fetch_add(1);
                                              }));
                    }));
  EXPECT_EQ(inner.load(), 35);
}

TEST(ThreadPool, ServesSeveralThreadsAtOnce) {
  ThreadPoolExecutor pool(3);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller)
    callers.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        Tally tally(1 + i % 9);
        pool.parallel_for(1 + i % 9, tally.work());
        if (!tally.each_ran_once()) wrong.fetch_add(1);
      }
    });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong.load(), 0);
}

}  // namespace
}  // namespace gqa::test
