// SPDX-License-Identifier: Apache-2.0
// What may run at the same time: attention over one sequence of a pool while another one, which shares pages, changes.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "gqa/attention.hpp"
#include "gqa/kv_cache.hpp"
#include "support/owned_caches.hpp"
#include "support/paths.hpp"
#include "support/problem.hpp"

namespace gqa::test {
namespace {

TEST(PagedKvPoolThreads, ReadersGoOnWhileAnotherSequenceIsWritten) {
  const KvDims dims{.kv_heads = 2, .head_dim = 16, .value_dim = 16};
  const KvSource source(KvNumbers(200, dims, 1)), other(KvNumbers(200, dims, 2));
  PagedKvPool pool({.kv_heads = 2, .head_dim = 16, .page_size = 16, .pages = 40});
  PagedSequence prompt = pool.sequence();
  source.append_to(prompt, 0, 100);  // ends within a page
  const PagedSequence read = prompt.fork();

  const Shape shape{.query_heads = 4, .kv_heads = 2, .head_dim = 16, .value_dim = 16, .n_q = 1, .n_kv = 1};
  const Tensor q(make_problem(shape, 3).q, ElementType::f32);
  How how;
  how.path = best_f32_path();
  const Result expected = attend(q.const_view(), read.view(), how);

  std::atomic<bool> done = false;
  std::atomic<int> rounds = 0;
  std::atomic<int> differences = 0;
  const auto reader = [&] {
    const KvCacheView view = read.view();
    do {
      if (!same_bits(expected, attend(q.const_view(), view, how))) ++differences;
      ++rounds;
    } while (!done);
  };
  std::thread readers[] = {std::thread(reader), std::thread(reader)};
  for (int step = 0; step < 200 || rounds < 20; ++step) {
    PagedSequence writer = prompt.fork();
    other.append_to(writer, 100, 1);  // copies the shared page
    other.append_to(writer, 101, 40);
    PagedSequence branch = writer.fork(110);
    other.append_to(branch, 110, 20);
    writer.truncate(96);
    other.append_to(writer, 96, 10);
  }
  done = true;
  for (std::thread& thread : readers) thread.join();
  EXPECT_EQ(differences, 0);
  EXPECT_EQ(pool.free_pages(), 40 - 7);
  EXPECT_TRUE(holds(read.view(), source, 100));
}

}  // namespace
}  // namespace gqa::test
