// SPDX-License-Identifier: Apache-2.0
// The contiguous and the ring cache: what they hold. Beside this file: kv_cache_storage_test.cpp (conversion, memory,
// errors), kv_cache_paged_test.cpp (pages) and kv_cache_attention_test.cpp (with the functors).
#include "gqa/kv_cache.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/owned_caches.hpp"

namespace gqa::test {
namespace {

template <class Cache>
concept Copyable = std::is_copy_constructible_v<Cache> || std::is_copy_assignable_v<Cache>;
static_assert(!Copyable<ContiguousKvCache> && !Copyable<RingKvCache>, "copies of caches must not happen by accident");
static_assert(std::is_nothrow_move_constructible_v<ContiguousKvCache> &&
              std::is_nothrow_move_assignable_v<ContiguousKvCache>);
static_assert(std::is_nothrow_move_constructible_v<RingKvCache> && std::is_nothrow_move_assignable_v<RingKvCache>);

// --- contiguous ------------------------------------------------------------------------------------------------------

TEST(ContiguousKvCache, HoldsWhatWasAppendedInEveryTypeAndLayout) {
  const KvNumbers numbers(20, kDims, 1);
  for (const ElementType k_type : kTypes)
    for (const ElementType v_type : kTypes)
      for (const KvLayout layout : kLayouts)
        for (const ElementType from : kTypes) {
          SCOPED_TRACE(types_and_layout(k_type, v_type, layout) + ", appended as " + element_name(from));
          const KvSource source(numbers, from, from);
          ContiguousKvCache cache(config(20, k_type, v_type, layout));
          Index length = 0;
          for (const Index count : {1, 4, 0, 7, 1, 7}) {
            source.append_to(cache, length, count);
            length += count;
            ASSERT_EQ(cache.length(), length);
            ASSERT_TRUE(holds(cache.view(), source, length));
          }
          EXPECT_EQ(length, cache.capacity());
        }
}

TEST(ContiguousKvCache, ViewSaysHowItIsLaidOut) {
  const ContiguousKvCache heads(config(20, ElementType::bf16, ElementType::f16, KvLayout::head_major));
  const KvCacheView view = heads.view();
  EXPECT_EQ(view.storage, Storage::contiguous);
  EXPECT_EQ(view.length, 0);
  EXPECT_EQ(view.kv_heads, 3);
  EXPECT_EQ(view.head_dim, 5);
  EXPECT_EQ(view.value_dim, 4);
  EXPECT_EQ(view.k_type, ElementType::bf16);
  EXPECT_EQ(view.v_type, ElementType::f16);
  EXPECT_EQ(view.k_strides.token, 5);
  EXPECT_EQ(view.k_strides.head, 20 * 5);
  EXPECT_EQ(view.v_strides.token, 4);
  EXPECT_EQ(view.v_strides.head, 20 * 4);
  EXPECT_EQ(heads.bytes(), 20 * 3 * (5 + 4) * 2);

  const ContiguousKvCache tokens(config(20, ElementType::f32, ElementType::f32, KvLayout::token_major));
  EXPECT_EQ(tokens.view().k_strides.token, 3 * 5);
  EXPECT_EQ(tokens.view().k_strides.head, 5);
  EXPECT_EQ(tokens.view().v_strides.token, 3 * 4);
  EXPECT_EQ(tokens.view().v_strides.head, 4);
}

TEST(ContiguousKvCache, DefaultsAreF32HeadMajorAndValuesLikeKeys) {
  const ContiguousKvCache plain({.kv_heads = 2, .head_dim = 6, .capacity = 9});
  EXPECT_EQ(plain.view().k_type, ElementType::f32);
  EXPECT_EQ(plain.view().v_type, ElementType::f32);
  EXPECT_EQ(plain.view().value_dim, 6);
  EXPECT_EQ(plain.view().k_strides.head, 9 * 6);
  const ContiguousKvCache half({.kv_heads = 2, .head_dim = 6, .k_type = ElementType::f16, .capacity = 9});
  EXPECT_EQ(half.view().v_type, ElementType::f16);
}

TEST(ContiguousKvCache, TakesRowsWithAnyStrides) {
  const KvNumbers numbers(12, kDims, 2);
  for (const TensorLayout layout : kTensorLayouts)
    for (const ElementType to : {ElementType::f32, ElementType::bf16}) {
      SCOPED_TRACE(std::string(layout_name(layout)) + " to " + element_name(to));
      const KvSource source(numbers, ElementType::f32, ElementType::f16, layout);
      ContiguousKvCache cache(config(12, to, to));
      source.append_to(cache, 0, 5);
      source.append_to(cache, 5, 7);
      EXPECT_TRUE(holds(cache.view(), source, 12));
    }
}

TEST(ContiguousKvCache, TakesVectorsArraysAndSpans) {
  ContiguousKvCache cache({.kv_heads = 1, .head_dim = 2, .value_dim = 1, .capacity = 8});
  const std::vector<float> k{1, 2, 3, 4};
  const std::array<bf16, 2> v{bf16(5.0f), bf16(6.0f)};
  cache.append(k, v);
  const float k_row[] = {7, 8};
  std::vector<f16> v_row{f16(9.0f)};
  cache.append(k_row, std::span(v_row));
  ASSERT_EQ(cache.length(), 3);
  const float keys[] = {1, 2, 3, 4, 7, 8};
  const float values[] = {5, 6, 9};
  for (Index p = 0; p < 3; ++p) {
    EXPECT_EQ(stored(cache.view(), true, p, 0, 0), keys[2 * p]);
    EXPECT_EQ(stored(cache.view(), true, p, 0, 1), keys[2 * p + 1]);
    EXPECT_EQ(stored(cache.view(), false, p, 0, 0), values[p]);
  }
}

TEST(ContiguousKvCache, TruncatesClearsAndGoesOn) {
  const KvSource first(KvNumbers(20, kDims, 3)), second(KvNumbers(20, kDims, 4));
  ContiguousKvCache cache(config(20));
  first.append_to(cache, 0, 15);
  cache.truncate(15);
  EXPECT_TRUE(holds(cache.view(), first, 15));
  cache.truncate(6);
  EXPECT_TRUE(holds(cache.view(), first, 6));
  first.append_to(cache, 6, 14);
  EXPECT_TRUE(holds(cache.view(), first, 20));
  cache.clear();
  EXPECT_EQ(cache.length(), 0);
  second.append_to(cache, 0, 20);
  EXPECT_TRUE(holds(cache.view(), second, 20));
  cache.truncate(0);
  EXPECT_EQ(cache.view().length, 0);
}

TEST(ContiguousKvCache, FullLeavesEverythingAsItWas) {
  const KvSource source(KvNumbers(20, kDims, 5)), other(KvNumbers(20, kDims, 6));
  ContiguousKvCache cache(config(10));
  source.append_to(cache, 0, 8);
  EXPECT_EQ(message_of<StorageExhausted>([&] { other.append_to(cache, 0, 3); }),
            "gqa: the contiguous cache has room for 2 of 10 tokens; appending needs 3");
  EXPECT_TRUE(holds(cache.view(), source, 8));
  source.append_to(cache, 8, 2);
  EXPECT_TRUE(holds(cache.view(), source, 10));
  EXPECT_THROW(other.append_to(cache, 0, 1), StorageExhausted);
  EXPECT_NO_THROW(other.append_to(cache, 0, 0));
  EXPECT_TRUE(holds(cache.view(), source, 10));
}

TEST(ContiguousKvCache, MemoryNeverMoves) {
  const KvSource source(KvNumbers(20, kDims, 7));
  ContiguousKvCache cache(config(20));
  source.append_to(cache, 0, 4);
  const KvCacheView before = cache.view();
  source.append_to(cache, 4, 10);
  EXPECT_EQ(cache.view().k, before.k);
  EXPECT_EQ(cache.view().v, before.v);
  EXPECT_TRUE(holds(before, source, 4));

  ContiguousKvCache moved = std::move(cache);
  EXPECT_EQ(moved.view().k, before.k);
  EXPECT_TRUE(holds(moved.view(), source, 14));
  EXPECT_EQ(cache.length(), 0);  // NOLINT: moved from, and what is left then is stated
  EXPECT_EQ(cache.capacity(), 0);
  EXPECT_EQ(cache.view().k, nullptr);
  EXPECT_EQ(message_of<ArgumentError>([&] { source.append_to(cache, 0, 1); }),  // NOLINT: moved from
            "gqa: cache is empty (moved from); expected a cache that has memory");

  cache = std::move(moved);
  EXPECT_TRUE(holds(cache.view(), source, 14));
  ContiguousKvCache& same = cache;
  cache = std::move(same);
  EXPECT_TRUE(holds(cache.view(), source, 14));
}

// --- ring ------------------------------------------------------------------------------------------------------------

TEST(RingKvCache, HoldsTheLastTokensAtAbsolutePositions) {
  const KvNumbers numbers(60, kDims, 8);
  for (const ElementType k_type : kTypes)
    for (const ElementType v_type : kTypes)
      for (const KvLayout layout : kLayouts)
        for (const ElementType from : kTypes) {
          SCOPED_TRACE(types_and_layout(k_type, v_type, layout) + ", appended as " + element_name(from));
          const KvSource source(numbers, from, from);
          RingKvCache cache(config(11, k_type, v_type, layout));
          Index length = 0;
          for (const Index count : {1, 4, 0, 6, 1, 10, 11, 25, 2}) {  // fills exactly, wraps, goes round more than once
            source.append_to(cache, length, count);
            length += count;
            const Index first = length > 11 ? length - 11 : 0;
            ASSERT_EQ(cache.length(), length);
            ASSERT_EQ(cache.first_position(), first);
            ASSERT_EQ(cache.view().first_position(), first);
            ASSERT_TRUE(holds(cache.view(), source, first, length));
          }
          EXPECT_EQ(cache.view().storage, Storage::ring);
          EXPECT_EQ(cache.view().capacity, 11);
          EXPECT_EQ(cache.capacity(), 11);
        }
}

TEST(RingKvCache, ChunkIsTokenByToken) {
  const KvSource source(KvNumbers(50, kDims, 9));
  for (Index capacity = 1; capacity <= 12; ++capacity)
    for (Index chunk = 1; chunk <= 30; ++chunk) {
      RingKvCache at_once(config(capacity)), one_by_one(config(capacity));
      source.append_to(at_once, 0, 7);
      source.append_to(at_once, 7, chunk);
      for (Index i = 0; i < 7 + chunk; ++i) source.append_to(one_by_one, i, 1);
      const Index first = one_by_one.first_position();
      ASSERT_EQ(at_once.first_position(), first);
      ASSERT_TRUE(holds(at_once.view(), source, first, 7 + chunk)) << capacity << " slots, chunk of " << chunk;
      ASSERT_TRUE(holds(one_by_one.view(), source, first, 7 + chunk)) << capacity << " slots";
    }
}

TEST(RingKvCache, TruncatedRingSaysWhatItLost) {
  const KvSource source(KvNumbers(60, kDims, 10));
  for (const ElementType type : kTypes) {
    SCOPED_TRACE(element_name(type));
    RingKvCache cache(config(8, type, type));
    source.append_to(cache, 0, 20);  // holds 12 … 19
    cache.truncate(17);              // 12 … 16; what lay at 9 … 11 was overwritten by 17 … 19
    EXPECT_EQ(cache.length(), 17);
    EXPECT_EQ(cache.first_position(), 12);
    EXPECT_TRUE(holds(cache.view(), source, 12, 17));
    EXPECT_EQ(cache.view().first_position(), 12);

    source.append_to(cache, 17, 1);  // covers the slot of 9
    EXPECT_EQ(cache.first_position(), 12);
    EXPECT_TRUE(holds(cache.view(), source, 12, 18));
    EXPECT_EQ(cache.view().first_position(), 12);
    cache.truncate(13);  // a second time, before the first loss has been covered
    EXPECT_EQ(cache.first_position(), 12);
    EXPECT_TRUE(holds(cache.view(), source, 12, 13));
    EXPECT_EQ(cache.view().first_position(), 12);
    source.append_to(cache, 13, 20);
    EXPECT_EQ(cache.first_position(), 25);
    EXPECT_TRUE(holds(cache.view(), source, 25, 33));
    cache.truncate(32);  // one token less: one token lost
    EXPECT_EQ(cache.view().first_position(), 25);
    EXPECT_TRUE(holds(cache.view(), source, 25, 32));
  }
}

TEST(RingKvCache, TruncatesFreelyUntilItHasGoneRound) {
  const KvSource source(KvNumbers(20, kDims, 11));
  RingKvCache cache(config(8));
  source.append_to(cache, 0, 8);
  cache.truncate(3);
  EXPECT_TRUE(holds(cache.view(), source, 3));
  source.append_to(cache, 3, 17);
  EXPECT_TRUE(holds(cache.view(), source, 12, 20));
  EXPECT_EQ(message_of<ArgumentError>([&] { cache.truncate(11); }),
            "gqa: length is 11; expected 0, or between the oldest position held, 12, and the next one, 20");
  EXPECT_THROW(cache.truncate(21), ArgumentError);
  EXPECT_THROW(cache.truncate(-1), ArgumentError);
  EXPECT_TRUE(holds(cache.view(), source, 12, 20));
  cache.truncate(12);  // nothing is left but the position
  EXPECT_EQ(cache.first_position(), 12);
  source.append_to(cache, 12, 3);
  EXPECT_TRUE(holds(cache.view(), source, 12, 15));
  cache.truncate(0);
  EXPECT_EQ(cache.first_position(), 0);
  source.append_to(cache, 0, 5);
  EXPECT_TRUE(holds(cache.view(), source, 5));
  source.append_to(cache, 5, 10);
  cache.clear();
  EXPECT_EQ(cache.length(), 0);
  EXPECT_EQ(cache.first_position(), 0);
  source.append_to(cache, 0, 2);
  EXPECT_TRUE(holds(cache.view(), source, 2));
}

TEST(RingKvCache, TakesVectorsAndMoves) {
  RingKvCache cache({.kv_heads = 1, .head_dim = 1, .capacity = 2});
  cache.append(std::vector<float>{1, 2, 3}, std::vector<float>{4, 5, 6});
  RingKvCache moved = std::move(cache);
  EXPECT_EQ(moved.length(), 3);
  EXPECT_EQ(moved.first_position(), 1);
  EXPECT_EQ(stored(moved.view(), true, 2, 0, 0), 3.0f);
  EXPECT_EQ(stored(moved.view(), false, 1, 0, 0), 5.0f);
  EXPECT_EQ(moved.bytes(), 16);
  EXPECT_THROW(cache.append(std::vector<float>{1}, std::vector<float>{1}), ArgumentError);  // NOLINT: moved from
  RingKvCache other({.kv_heads = 1, .head_dim = 1, .capacity = 5});
  other = std::move(moved);
  EXPECT_EQ(other.capacity(), 2);
  EXPECT_EQ(other.length(), 3);
}

TEST(RingKvCache, LengthThatDoesNotFitIsNamed) {
  RingKvCache cache({.kv_heads = 1, .head_dim = 1, .capacity = 2});
  cache.append(std::vector<float>{1}, std::vector<float>{1});
  const float one = 1.0f;
  const ConstTensorView endless(&one, std::numeric_limits<Index>::max(), 1, 1, TensorStrides{0, 0, 0});
  EXPECT_EQ(message_of<ArgumentError>([&] { cache.append(endless, endless); }),
            "gqa: k.tokens is 9223372036854775807; expected a length that fits in 63 bits");
  EXPECT_EQ(cache.length(), 1);
}

}  // namespace
}  // namespace gqa::test
