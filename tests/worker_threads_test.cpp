// SPDX-License-Identifier: Apache-2.0
// How workers claim tasks: one by one, or as many as a stage has while there are enough for all.
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "gqa/gqa.hpp"

namespace gqa::detail {
namespace {

TEST(WorkerTasks, OneWorkerTakesAsManyAsItMay) {
  WorkerTasks tasks;
  tasks.end = 10;
  EXPECT_EQ(tasks.claim(), 0);
  EXPECT_EQ(tasks.claim_more(1, 7, 1), 7);
  EXPECT_EQ(tasks.claim(), 8);
  EXPECT_EQ(tasks.claim_more(9, 7, 1), 1) << "no more than there are";
  EXPECT_GE(tasks.claim(), tasks.end);
}

TEST(WorkerTasks, EachLeavesTheOthersTheirShare) {
  WorkerTasks tasks;
  tasks.end = 20;
  EXPECT_EQ(tasks.claim(), 0);
  EXPECT_EQ(tasks.claim_more(1, 7, 4), 4) << "a quarter of 19";
  EXPECT_EQ(tasks.claim(), 5);
  EXPECT_EQ(tasks.claim_more(6, 7, 4), 3) << "of 14";
  tasks.next = 17;
  EXPECT_EQ(tasks.claim(), 17);
  EXPECT_EQ(tasks.claim_more(18, 7, 4), 0) << "of 2";
  EXPECT_EQ(tasks.claim(), 18);
}

TEST(WorkerTasks, NothingThatAnotherHasClaimedIsTaken) {
  WorkerTasks tasks;
  tasks.end = 10;
  const Index mine = tasks.claim();
  EXPECT_EQ(tasks.claim(), 1);
  EXPECT_EQ(tasks.claim_more(mine + 1, 7, 1), 0);
  EXPECT_EQ(tasks.claim(), 2);
}

// Every task once, whatever workers get in each other's way.
TEST(WorkerTasks, ThreadsShareThemOut) {
  constexpr Index count = 20000;
  constexpr int workers = 4;
  WorkerTasks tasks;
  tasks.end = count;
  std::vector<std::atomic<int>> taken(count);
  const auto work = [&] {
    for (Index task; (task = tasks.claim()) < tasks.end;) {
      const Index all = 1 + tasks.claim_more(task + 1, 7, workers);
      for (Index i = task; i < task + all; ++i) taken[static_cast<std::size_t>(i)].fetch_add(1);
    }
  };
  std::vector<std::thread> team;
  for (int i = 0; i < workers; ++i) team.emplace_back(work);
  for (std::thread& thread : team) thread.join();
  for (const std::atomic<int>& times : taken) ASSERT_EQ(times.load(), 1);
}

TEST(SpansOf, CountsThoseThatARangeReaches) {
  EXPECT_EQ(spans_of({0, kSpan}), 1);
  EXPECT_EQ(spans_of({0, kSpan + 1}), 2);
  EXPECT_EQ(spans_of({kSpan - 1, kSpan + 1}), 2);
  EXPECT_EQ(spans_of({3 * kSpan + 5, 3 * kSpan + 6}), 1);
  EXPECT_EQ(spans_of({5, 5}), 1) << "a call of one task";
}

}  // namespace
}  // namespace gqa::detail
