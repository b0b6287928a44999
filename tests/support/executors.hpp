// SPDX-License-Identifier: Apache-2.0
// Executors that only tests want: plain threads, a shuffled order, a count of tasks.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

#include "gqa/executor.hpp"
#include "random.hpp"

namespace gqa::test {

/// Fresh std::threads for each call, as many as `threads`, the caller one of them.
struct ThreadsExecutor {
  int threads = 1;
  Index concurrency() const { return threads; }
  void parallel_for(Index count, const TaskRef& work) const {
    std::atomic<Index> next{0};
    const auto run = [&] {
      for (Index task = next.fetch_add(1); task < count; task = next.fetch_add(1)) work(task);
    };
    std::vector<std::thread> team;
    for (int i = 1; i < threads; ++i) team.emplace_back(run);
    run();
    for (std::thread& thread : team) thread.join();
  }
};

/// One thread, tasks in a seeded random order that differs from call to call. A call's first one does all of its work, from where its own
/// share begins.
struct ShuffledExecutor {
  std::uint64_t seed = 1;
  Index pretended_concurrency = 1;  ///< what concurrency() says: results must not depend on it
  Index concurrency() const { return pretended_concurrency; }
  void parallel_for(Index count, const TaskRef& work) {
    for (const Index task : permutation(count, seed++)) work(task);
  }
};

/// One thread, tasks from the last to the first. Of a call's work, the last share first.
struct BackwardExecutor {
  static Index concurrency() { return 4; }
  static void parallel_for(Index count, const TaskRef& work) {
    for (Index task = count; task > 0; --task) work(task - 1);
  }
};

/// Serial, and remembers how many tasks the largest parallel_for had.
struct CountingExecutor {
  Index most_tasks = 0;
  Index calls = 0;
  Index claimed_concurrency = 1;
  Index concurrency() const { return claimed_concurrency; }
  void parallel_for(Index count, const TaskRef& work) {
    most_tasks = std::max(most_tasks, count);
    ++calls;
    SerialExecutor::parallel_for(count, work);
  }
};

}  // namespace gqa::test
