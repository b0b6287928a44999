// SPDX-License-Identifier: Apache-2.0
// A pool that does not say how many tasks it runs at once is not an executor.
// expected: Executor
// expected: concurrency
#include "gqa/options.hpp"

struct Pool {
  void parallel_for(gqa::Index count, const gqa::TaskRef& work) {
    for (gqa::Index task = 0; task < count; ++task) work(task);
  }
#ifndef GQA_WRONG
  gqa::Index concurrency() const { return 1; }
#endif
};

int main() {
  Pool pool;
  gqa::Options options;
  options.executor = gqa::ExecutorRef(pool);
  return options.executor.concurrency() == 1 ? 0 : 1;
}
