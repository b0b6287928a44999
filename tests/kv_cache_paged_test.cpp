// SPDX-License-Identifier: Apache-2.0
// Sequences in pages: contents, pages that come and go, sharing and copy on write. Running out, errors and a model of
// it all: kv_cache_pool_test.cpp.
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "gqa/kv_cache.hpp"
#include "support/owned_caches.hpp"

namespace gqa::test {
namespace {

static_assert(!std::is_copy_constructible_v<PagedSequence> && !std::is_copy_assignable_v<PagedSequence>);
static_assert(!std::is_copy_constructible_v<PagedKvPool> && !std::is_copy_assignable_v<PagedKvPool>);
static_assert(std::is_nothrow_move_constructible_v<PagedSequence> && std::is_nothrow_move_assignable_v<PagedSequence>);
static_assert(std::is_nothrow_move_constructible_v<PagedKvPool> && std::is_nothrow_move_assignable_v<PagedKvPool>);

// --- contents --------------------------------------------------------------------------------------------------------

TEST(PagedSequence, HoldsWhatWasAppendedInEveryTypeAndLayout) {
  const KvNumbers numbers(150, kDims, 1);
  for (const Index page_size : kPageSizes)
    for (const ElementType k_type : kTypes)
      for (const ElementType v_type : kTypes)
        for (const KvLayout layout : kLayouts) {
          SCOPED_TRACE("page size " + std::to_string(page_size) + ", " + types_and_layout(k_type, v_type, layout));
          const KvSource source(numbers, ElementType::f32, ElementType::bf16);
          PagedKvPool pool(pool_config(page_size, 300, k_type, v_type, layout));
          PagedSequence other = pool.sequence(), sequence = pool.sequence();
          Index length = 0;
          for (const Index count : {1, 5, 0, 1, 7, 50, 64, 22}) {
            source.append_to(sequence, length, count);
            source.append_to(other, 0, 1);  // takes pages in between
            length += count;
            ASSERT_TRUE(holds(sequence.view(), source, length));
            ASSERT_EQ(sequence.length(), length);
            ASSERT_EQ(static_cast<Index>(sequence.pages().size()), (length + page_size - 1) / page_size);
          }
        }
}

TEST(PagedSequence, ViewSaysHowItIsLaidOut) {
  PagedKvPool heads(pool_config(16, 10, ElementType::bf16, ElementType::f16, KvLayout::head_major));
  PagedSequence sequence = heads.sequence();
  const std::vector<float> k(3 * 5), v(3 * 4);
  sequence.append(k, v);
  const KvCacheView view = sequence.view();
  EXPECT_EQ(view.storage, Storage::paged);
  EXPECT_EQ(view.length, 1);
  EXPECT_EQ(view.page_size, 16);
  EXPECT_EQ(view.pool_pages, 10);
  EXPECT_EQ(view.page_table_size, 1);
  EXPECT_EQ(view.page_table, sequence.pages().data());
  EXPECT_EQ(view.k_type, ElementType::bf16);
  EXPECT_EQ(view.v_type, ElementType::f16);
  EXPECT_EQ(view.k_strides.token, 5);
  EXPECT_EQ(view.k_strides.head, 16 * 5);
  EXPECT_EQ(view.k_strides.page, 3 * 16 * 5);
  EXPECT_EQ(view.v_strides.page, 3 * 16 * 4);
  EXPECT_EQ(heads.bytes(), 10 * 16 * 3 * (5 + 4) * 2);
  EXPECT_EQ(heads.pages(), 10);
  EXPECT_EQ(heads.page_size(), 16);

  PagedKvPool tokens(pool_config(16, 10, ElementType::f32, ElementType::f32, KvLayout::token_major));
  EXPECT_EQ(tokens.sequence().view().k_strides.token, 3 * 5);
  EXPECT_EQ(tokens.sequence().view().k_strides.head, 5);
  EXPECT_EQ(tokens.sequence().view().k_strides.page, 16 * 3 * 5);
}

TEST(PagedSequence, ChunkIsTokenByToken) {
  const KvSource source(KvNumbers(80, kDims, 2));
  for (const Index page_size : kPageSizes)
    for (Index first = 0; first <= 17; ++first)
      for (const Index chunk : {1, 6, 7, 8, 16, 60}) {
        PagedKvPool pool(pool_config(page_size, 200));
        PagedSequence at_once = pool.sequence(), one_by_one = pool.sequence();
        source.append_to(at_once, 0, first);
        source.append_to(at_once, first, chunk);
        for (Index i = 0; i < first + chunk; ++i) source.append_to(one_by_one, i, 1);
        ASSERT_TRUE(holds(at_once.view(), source, first + chunk)) << page_size << ", " << first << " + " << chunk;
        ASSERT_TRUE(holds(one_by_one.view(), source, first + chunk)) << page_size;
        ASSERT_EQ(at_once.pages().size(), one_by_one.pages().size());
      }
}

// --- pages come and go -----------------------------------------------------------------------------------------------

TEST(PagedKvPool, CountsPages) {
  const KvSource source(KvNumbers(100, kDims, 3));
  PagedKvPool pool(pool_config(16, 12));
  EXPECT_EQ(pool.free_pages(), 12);
  PagedSequence sequence = pool.sequence();
  EXPECT_EQ(pool.free_pages(), 12);
  for (const auto& [tokens, free] : std::map<Index, Index>{{1, 11}, {16, 11}, {17, 10}, {33, 9}, {96, 6}}) {
    source.append_to(sequence, sequence.length(), tokens - sequence.length());
    EXPECT_EQ(pool.free_pages(), free) << tokens;
  }
  sequence.truncate(96);
  EXPECT_EQ(pool.free_pages(), 6);
  sequence.truncate(81);
  EXPECT_EQ(pool.free_pages(), 6);
  sequence.truncate(80);
  EXPECT_EQ(pool.free_pages(), 7);
  sequence.truncate(5);
  EXPECT_EQ(pool.free_pages(), 11);
  EXPECT_TRUE(holds(sequence.view(), source, 5));
  source.append_to(sequence, 5, 60);
  EXPECT_TRUE(holds(sequence.view(), source, 65));
  sequence.clear();
  EXPECT_EQ(pool.free_pages(), 12);
  EXPECT_EQ(sequence.length(), 0);
  EXPECT_TRUE(sequence.pages().empty());
  source.append_to(sequence, 0, 20);
  EXPECT_TRUE(holds(sequence.view(), source, 20));
  sequence.release();
  EXPECT_EQ(pool.free_pages(), 12);
  EXPECT_FALSE(sequence);
  {
    PagedSequence inner = pool.sequence();
    source.append_to(inner, 0, 33);
    EXPECT_EQ(pool.free_pages(), 9);
    PagedSequence moved = std::move(inner);
    EXPECT_EQ(pool.free_pages(), 9);
    EXPECT_FALSE(inner);  // NOLINT(bugprone-use-after-move): what is left is stated
    EXPECT_TRUE(moved);
    EXPECT_TRUE(holds(moved.view(), source, 33));
    PagedSequence replaced = pool.sequence();
    source.append_to(replaced, 0, 100 - 33);
    EXPECT_EQ(pool.free_pages(), 4);
    replaced = std::move(moved);  // gives back its five pages
    EXPECT_EQ(pool.free_pages(), 9);
    EXPECT_TRUE(holds(replaced.view(), source, 33));
    PagedSequence& same = replaced;
    replaced = std::move(same);
    EXPECT_TRUE(holds(replaced.view(), source, 33));
  }
  EXPECT_EQ(pool.free_pages(), 12);
}

TEST(PagedKvPool, SequencesOutliveTheHandleAndMovesOfIt) {
  const KvSource source(KvNumbers(30, kDims, 4));
  PagedSequence survivor;
  {
    PagedKvPool first(pool_config(7, 10));
    survivor = first.sequence();
    source.append_to(survivor, 0, 10);
    PagedKvPool second = std::move(first);
    EXPECT_EQ(second.free_pages(), 8);
    source.append_to(survivor, 10, 10);
    EXPECT_EQ(second.free_pages(), 7);
    PagedKvPool third(pool_config(7, 1));
    third = std::move(second);
    EXPECT_EQ(third.free_pages(), 7);
    EXPECT_EQ(message_of<ArgumentError>([&] { static_cast<void>(first.sequence()); }),  // NOLINT: moved from
              "gqa: pool is empty (moved from); expected a pool with pages");
  }
  source.append_to(survivor, 20, 10);
  PagedSequence fork = survivor.fork();
  survivor.release();
  EXPECT_TRUE(holds(fork.view(), source, 30));
}

TEST(PagedSequence, ReservedTableNeverMoves) {
  const KvSource source(KvNumbers(100, kDims, 5));
  PagedKvPool pool(pool_config(1, 100));
  PagedSequence sequence = pool.sequence();
  source.append_to(sequence, 0, 3);
  sequence.reserve(100);
  EXPECT_EQ(pool.free_pages(), 97);
  const KvCacheView before = sequence.view();
  for (Index i = 3; i < 100; ++i) source.append_to(sequence, i, 1);
  EXPECT_EQ(sequence.view().page_table, before.page_table);
  EXPECT_EQ(sequence.view().k, before.k);
  EXPECT_TRUE(holds(before, source, 3));
  EXPECT_TRUE(holds(sequence.view(), source, 100));
  sequence.reserve(10);  // never shrinks
  EXPECT_EQ(sequence.view().page_table, before.page_table);
  EXPECT_EQ(message_of<ArgumentError>([&] { sequence.reserve(101); }),
            "gqa: tokens is 101; expected 0 to the pool's 100");
  EXPECT_THROW(sequence.reserve(-1), ArgumentError);
}

// --- sharing ---------------------------------------------------------------------------------------------------------

TEST(PagedSequence, ForkSharesPagesAndCopiesOnlyThePartialOneOnWrite) {
  const KvSource source(KvNumbers(100, kDims, 6)), other(KvNumbers(100, kDims, 7));
  for (const KvLayout layout : kLayouts)
    for (const ElementType type : kTypes) {
      SCOPED_TRACE(types_and_layout(type, type, layout));
      PagedKvPool pool(pool_config(16, 20, type, type, layout));
      PagedSequence a = pool.sequence();
      source.append_to(a, 0, 40);  // two full pages and 8 tokens
      PagedSequence b = a.fork();
      EXPECT_EQ(pool.free_pages(), 17);
      EXPECT_EQ(pages_of(b), pages_of(a));
      for (const std::int32_t page : a.pages()) EXPECT_EQ(pool.reference_count(page), 2);
      EXPECT_TRUE(holds(b.view(), source, 40));

      const std::vector<std::int32_t> before = pages_of(a);
      b.append(other.k.const_view().slice(40, 1), other.v.const_view().slice(40, 1));
      EXPECT_EQ(pool.free_pages(), 16);
      EXPECT_EQ(pages_of(a), before);
      EXPECT_EQ(b.pages()[0], before[0]);
      EXPECT_EQ(b.pages()[1], before[1]);
      EXPECT_NE(b.pages()[2], before[2]);
      EXPECT_EQ(pool.reference_count(before[0]), 2);
      EXPECT_EQ(pool.reference_count(before[2]), 1);
      EXPECT_EQ(pool.reference_count(b.pages()[2]), 1);
      EXPECT_TRUE(holds(a.view(), source, 40));

      // Both go on; neither disturbs the other, and full pages stay shared.
      source.append_to(a, 40, 20);
      b.append(other.k.const_view().slice(41, 30), other.v.const_view().slice(41, 30));
      EXPECT_TRUE(holds(a.view(), source, 60));
      EXPECT_TRUE(holds(b.view(), other, 40, 71));
      KvCacheView prefix = b.view();
      prefix.length = 40;
      EXPECT_TRUE(holds(prefix, source, 40));
      EXPECT_EQ(pages_of(a)[2], before[2]);
      EXPECT_EQ(pool.reference_count(before[1]), 2);
      EXPECT_EQ(pool.free_pages(), 20 - 2 - 2 - 3);

      a.release();
      EXPECT_EQ(pool.reference_count(before[0]), 1);
      EXPECT_EQ(pool.reference_count(before[2]), 0);
      EXPECT_TRUE(holds(prefix, source, 40));
      b.release();
      EXPECT_EQ(pool.free_pages(), 20);
    }
}

TEST(PagedSequence, FullLastPageIsNeverCopied) {
  const KvSource source(KvNumbers(40, kDims, 8));
  PagedKvPool pool(pool_config(16, 10));
  PagedSequence a = pool.sequence();
  source.append_to(a, 0, 32);
  PagedSequence b = a.fork();
  EXPECT_EQ(b.pages_to_append(1), 1);
  source.append_to(b, 32, 1);
  EXPECT_EQ(b.pages()[1], a.pages()[1]);
  EXPECT_EQ(pool.free_pages(), 7);
}

TEST(PagedSequence, WriterMayBeTheOriginalOrTheFork) {
  const KvSource source(KvNumbers(40, kDims, 9)), other(KvNumbers(40, kDims, 10));
  PagedKvPool pool(pool_config(16, 10));
  PagedSequence a = pool.sequence();
  source.append_to(a, 0, 20);
  PagedSequence b = a.fork(), c = b.fork();
  EXPECT_EQ(pool.reference_count(a.pages()[1]), 3);
  other.append_to(a, 20, 5);  // the original writes: it is the one that gets a copy
  source.append_to(b, 20, 5);
  EXPECT_EQ(pool.reference_count(c.pages()[1]), 1);
  const std::int32_t own = c.pages()[1];
  source.append_to(c, 20, 10);  // the last user of the page writes in place
  EXPECT_EQ(c.pages()[1], own);
  EXPECT_TRUE(holds(b.view(), source, 25));
  EXPECT_TRUE(holds(c.view(), source, 30));
  EXPECT_TRUE(holds(a.view(), other, 20, 25));
}

TEST(PagedSequence, ForkOfAPrefix) {
  const KvSource source(KvNumbers(60, kDims, 11)), other(KvNumbers(60, kDims, 12));
  for (const Index page_size : kPageSizes)
    for (const Index tokens : {0, 1, 6, 7, 16, 20, 49, 50}) {
      SCOPED_TRACE("page size " + std::to_string(page_size) + ", prefix " + std::to_string(tokens));
      PagedKvPool pool(pool_config(page_size, 150));
      PagedSequence a = pool.sequence();
      source.append_to(a, 0, 50);
      const Index free = pool.free_pages();
      PagedSequence b = a.fork(tokens);
      EXPECT_EQ(pool.free_pages(), free);
      EXPECT_EQ(b.length(), tokens);
      EXPECT_TRUE(holds(b.view(), source, tokens));
      other.append_to(b, tokens, 60 - tokens);
      EXPECT_TRUE(holds(b.view(), other, tokens, 60));
      EXPECT_TRUE(holds(a.view(), source, 50));
      KvCacheView prefix = b.view();
      prefix.length = tokens;
      EXPECT_TRUE(holds(prefix, source, tokens));
      EXPECT_EQ(message_of<ArgumentError>([&] { static_cast<void>(a.fork(51)); }),
                "gqa: tokens is 51; expected between 0 and the tokens held, 50");
      EXPECT_THROW(static_cast<void>(a.fork(-1)), ArgumentError);
    }
}

TEST(PagedSequence, TruncatedIntoASharedPageIsCopiedBeforeItIsWritten) {
  const KvSource source(KvNumbers(40, kDims, 13)), other(KvNumbers(40, kDims, 14));
  PagedKvPool pool(pool_config(16, 10));
  PagedSequence a = pool.sequence();
  source.append_to(a, 0, 32);
  PagedSequence b = a.fork();
  b.truncate(18);  // into a page that was full
  EXPECT_EQ(pool.free_pages(), 8);
  EXPECT_EQ(b.pages_to_append(1), 1);
  other.append_to(b, 18, 3);
  EXPECT_EQ(pool.free_pages(), 7);
  EXPECT_TRUE(holds(a.view(), source, 32));
  EXPECT_TRUE(holds(b.view(), other, 18, 21));
  a.truncate(0);
  EXPECT_EQ(pool.reference_count(b.pages()[0]), 1);
  EXPECT_EQ(pool.free_pages(), 8);
}

}  // namespace
}  // namespace gqa::test
