// SPDX-License-Identifier: Apache-2.0
// The page pool at its limits: out of pages, wrong arguments, and thousands of random calls beside a model.
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gqa/kv_cache.hpp"
#include "support/owned_caches.hpp"

namespace gqa::test {
namespace {

// --- running out -----------------------------------------------------------------------------------------------------

TEST(PagedKvPool, ExhaustedByAChunkLeavesEverythingAsItWas) {
  const KvSource source(KvNumbers(200, kDims, 15)), other(KvNumbers(200, kDims, 16));
  for (const Index page_size : {1, 7, 16}) {
    SCOPED_TRACE("page size " + std::to_string(page_size));
    PagedKvPool pool(pool_config(page_size, 6));
    PagedSequence a = pool.sequence(), b = pool.sequence();
    source.append_to(a, 0, 2 * page_size);
    source.append_to(b, 0, page_size);
    const Index most = 4 * page_size;
    for (const Index tokens : {most + 1, most + page_size, Index{200} - page_size}) {
      const Snapshot before(pool, b);
      EXPECT_THROW(other.append_to(b, page_size, tokens), StorageExhausted) << tokens;
      EXPECT_EQ(Snapshot(pool, b), before);
      EXPECT_TRUE(holds(a.view(), source, 2 * page_size));
      EXPECT_TRUE(holds(b.view(), source, page_size));
    }
    source.append_to(b, page_size, 3 * page_size);  // what fits still does
    EXPECT_TRUE(holds(b.view(), source, 4 * page_size));
    EXPECT_EQ(pool.free_pages(), 0);
    EXPECT_THROW(source.append_to(a, 2 * page_size, 1), StorageExhausted);
    b.truncate(page_size);
    source.append_to(a, 2 * page_size, 3 * page_size);
    EXPECT_TRUE(holds(a.view(), source, 5 * page_size));
    EXPECT_TRUE(holds(b.view(), source, page_size));
  }
}

TEST(PagedKvPool, ExhaustedByCopyOnWriteLeavesEverythingAsItWas) {
  const KvSource source(KvNumbers(100, kDims, 17));
  PagedKvPool pool(pool_config(16, 3));
  PagedSequence a = pool.sequence();
  source.append_to(a, 0, 40);
  std::optional<PagedSequence> b = a.fork();
  EXPECT_EQ(pool.free_pages(), 0);
  for (PagedSequence* writer : {&a, &*b}) {
    EXPECT_EQ(writer->pages_to_append(8), 1);
    const Snapshot before(pool, *writer);
    EXPECT_EQ(message_of<StorageExhausted>([&] { source.append_to(*writer, 40, 1); }),
              "gqa: the pool has 0 of 3 pages free; appending 1 tokens needs 1");
    EXPECT_EQ(Snapshot(pool, *writer), before);
    EXPECT_TRUE(holds(a.view(), source, 40));
    EXPECT_TRUE(holds(b->view(), source, 40));
  }
  b.reset();
  EXPECT_EQ(a.pages_to_append(8), 0);
  source.append_to(a, 40, 8);  // alone now: no copy, no new page
  EXPECT_TRUE(holds(a.view(), source, 48));
}

TEST(PagedKvPool, CopyOnWriteAndNewPagesAreCountedTogether) {
  const KvSource source(KvNumbers(100, kDims, 18)), other(KvNumbers(100, kDims, 19));
  PagedKvPool pool(pool_config(16, 4));
  PagedSequence a = pool.sequence();
  source.append_to(a, 0, 24);
  PagedSequence b = a.fork();
  EXPECT_EQ(b.pages_to_append(0), 0);
  EXPECT_EQ(b.pages_to_append(8), 1);
  EXPECT_EQ(b.pages_to_append(24), 2);
  EXPECT_EQ(b.pages_to_append(25), 3);
  const Snapshot before(pool, b);
  EXPECT_EQ(message_of<StorageExhausted>([&] { other.append_to(b, 24, 25); }),
            "gqa: the pool has 2 of 4 pages free; appending 25 tokens needs 3");
  EXPECT_EQ(Snapshot(pool, b), before);
  EXPECT_TRUE(holds(b.view(), source, 24));
  other.append_to(b, 24, 24);
  EXPECT_TRUE(holds(b.view(), other, 24, 48));
  EXPECT_TRUE(holds(a.view(), source, 24));
  EXPECT_EQ(pool.free_pages(), 0);
}

// --- errors ----------------------------------------------------------------------------------------------------------

TEST(PagedKvPool, WrongConfigurationIsNamed) {
  const auto error_of = [](auto&& change) {
    KvPoolConfig wrong = pool_config(16, 4);
    change(wrong);
    return message_of<ArgumentError>([&] { PagedKvPool pool(wrong); });
  };
  EXPECT_EQ(error_of([](auto& c) { c.kv_heads = -1; }), "gqa: config.kv_heads is -1; expected 1 or more");
  EXPECT_EQ(error_of([](auto& c) { c.head_dim = 0; }), "gqa: config.head_dim is 0; expected 1 or more");
  EXPECT_EQ(error_of([](auto& c) { c.page_size = 0; }), "gqa: config.page_size is 0; expected 1 or more");
  EXPECT_EQ(error_of([](auto& c) { c.pages = 0; }),
            "gqa: config.pages is 0; expected 1 to 2147483647, so that a page table entry can name each");
  EXPECT_EQ(error_of([](auto& c) { c.pages = Index{1} << 31; }),
            "gqa: config.pages is 2147483648; expected 1 to 2147483647, so that a page table entry can name each");
  EXPECT_EQ(error_of([](auto& c) { c.page_size = Index{1} << 62; }),
            "gqa: config.pages is 4; expected pages * page_size tokens that fit in 63 bits");
  EXPECT_EQ(error_of([](auto& c) { c.page_size = Index{1} << 57; }),
            "gqa: config.pages * page_size is 576460752303423488; expected tokens * kv_heads * width elements that fit "
            "in the address space");
  EXPECT_EQ(error_of([](auto& c) { c.k_type = static_cast<ElementType>(4); }),
            "gqa: config.k_type is 4; expected ElementType::f32, bf16 or f16");
}

TEST(PagedSequence, WrongRowsAreNamedAndNothingChanges) {
  const KvSource source(KvNumbers(20, kDims, 20));
  PagedKvPool pool(pool_config(16, 4));
  PagedSequence sequence = pool.sequence();
  source.append_to(sequence, 0, 3);
  const Snapshot before(pool, sequence);
  const ConstTensorView k = source.k.const_view(), v = source.v.const_view();
  EXPECT_EQ(message_of<ArgumentError>([&] { sequence.append(k, v.slice(0, 19)); }),
            "gqa: v.tokens is 19; expected k.tokens = 20");
  EXPECT_EQ(message_of<ArgumentError>([&] { sequence.append(k, k); }),
            "gqa: v.dim is 5; expected the cache's value_dim = 4");
  EXPECT_EQ(message_of<ArgumentError>([&] { sequence.append(k.slice_heads(0, 1), v); }),
            "gqa: k.heads is 1; expected the cache's kv_heads = 3");
  EXPECT_EQ(message_of<ArgumentError>([&] { sequence.append(std::vector<float>(7), std::vector<float>(12)); }),
            "gqa: k.size() is 7; expected a multiple of the elements of a token, 15");
  EXPECT_EQ(message_of<ArgumentError>([&] { sequence.truncate(4); }),
            "gqa: length is 4; expected between 0 and the tokens held, 3");
  EXPECT_EQ(message_of<ArgumentError>([&] { static_cast<void>(sequence.pages_to_append(-1)); }),
            "gqa: tokens is -1; expected 0 or more");
  EXPECT_EQ(message_of<ArgumentError>([&] { static_cast<void>(pool.reference_count(4)); }),
            "gqa: page is 4; expected 0 to 3");
  EXPECT_THROW(static_cast<void>(pool.reference_count(-1)), ArgumentError);
  EXPECT_EQ(Snapshot(pool, sequence), before);
  EXPECT_TRUE(holds(sequence.view(), source, 3));
}

TEST(PagedSequence, EmptyHandleSaysSo) {
  const KvSource source(KvNumbers(2, kDims, 21));
  PagedSequence empty;
  EXPECT_FALSE(empty);
  EXPECT_EQ(empty.length(), 0);
  EXPECT_EQ(empty.view().kv_heads, 0);
  EXPECT_TRUE(empty.pages().empty());
  const std::string message =
      "gqa: sequence is empty (default constructed, released or moved from); expected a sequence made by a pool";
  EXPECT_EQ(message_of<ArgumentError>([&] { source.append_to(empty, 0, 1); }), message);
  EXPECT_EQ(message_of<ArgumentError>([&] { empty.append(std::vector<float>(1), std::vector<float>(1)); }), message);
  EXPECT_EQ(message_of<ArgumentError>([&] { empty.truncate(0); }), message);
  EXPECT_EQ(message_of<ArgumentError>([&] { static_cast<void>(empty.fork()); }), message);
  EXPECT_EQ(message_of<ArgumentError>([&] { empty.reserve(1); }), message);
  EXPECT_EQ(message_of<ArgumentError>([&] { static_cast<void>(empty.pages_to_append(1)); }), message);
  empty.clear();
  empty.release();
}

// --- against a model -------------------------------------------------------------------------------------------------

// Random calls on several sequences, beside a model in which a sequence is the list of the numbers it was given.
TEST(PagedKvPool, AgreesWithAModelOverRandomCalls) {
  struct Modelled {
    PagedSequence sequence;
    std::vector<float> tokens;
  };
  for (const Index page_size : kPageSizes) {
    SCOPED_TRACE("page size " + std::to_string(page_size));
    constexpr Index kPages = 24;
    PagedKvPool pool({.kv_heads = 2, .head_dim = 2, .value_dim = 1, .page_size = page_size, .pages = kPages});
    Random random(static_cast<std::uint64_t>(page_size));
    std::vector<Modelled> all(6);
    for (Modelled& m : all) m.sequence = pool.sequence();
    Index exhausted = 0, copies = 0;
    float next = 0.0f;
    for (int step = 0; step < 3000; ++step) {
      Modelled& m = all[static_cast<std::size_t>(random.below(6))];
      const auto length = static_cast<Index>(m.tokens.size());
      const Index free = pool.free_pages();
      switch (random.below(8)) {
        default: {  // append
          const Index count = 1 + random.below(random.below(3) == 0 ? 3 * page_size + 2 : 3);
          std::vector<float> fresh, k, v;
          for (Index i = 0; i < count; ++i) {
            next += 1.0f;
            fresh.push_back(next);
            k.insert(k.end(), {next, next + 0.25f, next + 0.5f, next + 0.75f});
            v.insert(v.end(), {-next, -next - 0.5f});
          }
          const Index needed = m.sequence.pages_to_append(count);
          const bool shared = length % page_size != 0 && pool.reference_count(m.sequence.pages().back()) > 1;
          if (needed > free) {
            ++exhausted;
            const Snapshot before(pool, m.sequence);
            ASSERT_THROW(m.sequence.append(k, v), StorageExhausted);
            ASSERT_EQ(Snapshot(pool, m.sequence), before);
          } else {
            m.sequence.append(k, v);
            m.tokens.insert(m.tokens.end(), fresh.begin(), fresh.end());
            copies += shared ? 1 : 0;
            ASSERT_EQ(pool.free_pages(), free - needed);
          }
          break;
        }
        case 0: {
          const Index keep = random.below(length + 1);
          m.sequence.truncate(keep);
          m.tokens.resize(static_cast<std::size_t>(keep));
          break;
        }
        case 1: {
          Modelled& target = all[static_cast<std::size_t>(random.below(6))];
          const Index prefix = random.below(2) == 0 ? length : random.below(length + 1);
          std::vector<float> tokens(m.tokens.begin(), m.tokens.begin() + prefix);
          target.sequence = m.sequence.fork(prefix);
          target.tokens = std::move(tokens);
          break;
        }
        case 2:
          if (random.below(3) == 0) {
            m.sequence.clear();
            m.tokens.clear();
          }
          break;
      }
      // The accounts: a page's count is the number of tables it stands in, and the others are free.
      std::vector<Index> uses(kPages);
      for (const Modelled& one : all)
        for (const std::int32_t page : one.sequence.pages()) ++uses[static_cast<std::size_t>(page)];
      for (Index page = 0; page < kPages; ++page)
        ASSERT_EQ(pool.reference_count(page), uses[static_cast<std::size_t>(page)]) << "step " << step;
      ASSERT_EQ(pool.free_pages(), std::count(uses.begin(), uses.end(), Index{0}));
      for (const Modelled& one : all) {
        const KvCacheView view = one.sequence.view();
        ASSERT_EQ(view.length, static_cast<Index>(one.tokens.size()));
        // All of the short ones, and a random place of the long ones.
        const Index stride = view.length > 64 ? 1 + view.length / 16 : 1;
        for (Index p = random.below(stride); p < view.length; p += stride) {
          const float token = one.tokens[static_cast<std::size_t>(p)];
          ASSERT_EQ(stored(view, true, p, 0, 1), token + 0.25f) << "step " << step << ", position " << p;
          ASSERT_EQ(stored(view, true, p, 1, 1), token + 0.75f) << "step " << step << ", position " << p;
          ASSERT_EQ(stored(view, false, p, 1, 0), -token - 0.5f) << "step " << step << ", position " << p;
        }
      }
    }
    EXPECT_GT(exhausted, 20);
    EXPECT_GE(copies, page_size > 1 ? 20 : 0);
    for (Modelled& m : all) m.sequence.release();
    EXPECT_EQ(pool.free_pages(), kPages);
  }
}

}  // namespace
}  // namespace gqa::test
