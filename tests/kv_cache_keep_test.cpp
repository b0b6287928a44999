// SPDX-License-Identifier: Apache-2.0
// Tokens that are kept and move together, and keys that are changed where they are: contents, shared pages, and what is refused.
// Random calls beside a model: kv_cache_keep_model_test.cpp.
#include <gtest/gtest.h>

#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "gqa/kv_cache.hpp"
#include "support/int8/int8.hpp"
#include "support/owned_caches.hpp"

namespace gqa::test {
namespace {

std::vector<Index> count_to(Index end) {
  std::vector<Index> all(static_cast<std::size_t>(end));
  std::iota(all.begin(), all.end(), Index{0});
  return all;
}

// The cache holds these tokens of the source, in that order, from its first position on.
template <class Cache>
testing::AssertionResult holds_tokens(const Cache& cache, const KvSource& source, const std::vector<Index>& tokens) {
  const KvCacheView view = cache.view();
  ContiguousKvCache expected({.kv_heads = view.kv_heads,
                              .head_dim = view.head_dim,
                              .value_dim = view.value_dim,
                              .k_type = view.k_type,
                              .v_type = view.v_type,
                              .capacity = static_cast<Index>(tokens.size()) + 1});
  for (const Index token : tokens) source.append_to(expected, token, 1);
  return same_rows(view, expected.view());
}

struct Kept {
  Index first;
  std::vector<Index> tokens;
};
const std::vector<Kept>& cases() {
  static const std::vector<Kept> all{{20, {0, 2, 5, 9, 15}},
                                     {20, {}},
                                     {20, {0, 1, 2}},
                                     {20, {19}},
                                     {40, {}},
                                     {21, {3, 4, 5, 6}},
                                     {39, {0}},
                                     {13, count_to(27)},
                                     {20, {0, 1, 7, 8, 19}},
                                     {25, {0, 14}}};
  return all;
}

// Forty tokens, some of which are kept, and a few more behind them.
template <class Cache>
void expect_kept(Cache& cache, const KvSource& source, const Kept& kept) {
  source.append_to(cache, 0, 40);
  cache.keep(kept.first, kept.tokens);
  std::vector<Index> left = count_to(kept.first);
  for (const Index token : kept.tokens) left.push_back(kept.first + token);
  ASSERT_EQ(cache.length(), static_cast<Index>(left.size()));
  EXPECT_TRUE(holds_tokens(cache, source, left));
  for (const Index token : {40, 41, 42}) left.push_back(token);
  source.append_to(cache, 40, 3);
  EXPECT_TRUE(holds_tokens(cache, source, left));
}

TEST(KvCacheKeep, ListedTokensMoveTogetherInEveryCache) {
  const KvSource source(KvNumbers(43, kDims, 321));
  for (const ElementType type : kTypes)
    for (const KvLayout layout : kLayouts)
      for (const Kept& kept : cases()) {
        SCOPED_TRACE(types_and_layout(type, ElementType::bf16, layout) + ", from " + std::to_string(kept.first) + " " +
                     std::to_string(kept.tokens.size()) + " tokens");
        ContiguousKvCache contiguous(config(43, type, ElementType::bf16, layout));
        expect_kept(contiguous, source, kept);
        for (const Index capacity : {28, 33, 43}) {
          RingKvCache ring(config(capacity, type, ElementType::bf16, layout));
          expect_kept(ring, source, kept);
          EXPECT_EQ(ring.first_position(), std::max(std::max(Index{40}, ring.length()) - capacity, Index{0}));
        }
        for (const Index page_size : kPageSizes) {
          PagedKvPool pool(pool_config(page_size, 50, type, ElementType::bf16, layout));
          PagedSequence paged = pool.sequence();
          expect_kept(paged, source, kept);
          EXPECT_EQ(50 - pool.free_pages(), (paged.length() + page_size - 1) / page_size);
        }
      }
}

TEST(KvCacheKeep, ErasedTokensMakeRoomForThoseBehind) {
  const KvSource source(KvNumbers(43, kDims, 322));
  const auto check = [&](auto& cache, Index first, Index last) {
    source.append_to(cache, 0, 40);
    cache.erase(first, last);
    std::vector<Index> left = count_to(40);
    left.erase(left.begin() + first, left.begin() + last);
    EXPECT_TRUE(holds_tokens(cache, source, left)) << first << " to " << last;
  };
  for (const auto& [first, last] : std::vector<std::pair<Index, Index>>{
           {20, 25}, {20, 20}, {20, 40}, {39, 40}, {40, 40}, {21, 22}, {13, 39}, {16, 32}}) {
    ContiguousKvCache contiguous(config(40));
    check(contiguous, first, last);
    RingKvCache ring(config(29));
    check(ring, first, last);
    for (const Index page_size : kPageSizes) {
      PagedKvPool pool(pool_config(page_size, 50));
      PagedSequence paged = pool.sequence();
      check(paged, first, last);
    }
  }
}

TEST(KvCacheKeep, ScalesOutsideOfRowsMoveWithThem) {
  // A cache as open_slots makes it, of a codec that has such scales.
  constexpr Index tokens = 6, heads = 2, dim = 8;
  detail::KvSlots cache;
  cache.slots = tokens;
  cache.k = detail::Buffer(tokens * heads * (dim + 4), "keys");
  cache.v = detail::Buffer(tokens * heads * (dim + 4), "values");
  cache.view.k_type = cache.view.v_type = ::test::Int8::type;
  cache.view.kv_heads = heads;
  cache.view.head_dim = cache.view.value_dim = dim;
  cache.view.length = tokens;
  cache.view.k_strides = cache.view.v_strides = KvStrides::head_major(heads, tokens, dim);
  cache.view.k_scales = {cache.k.as<std::byte>() + tokens * heads * dim, KvStrides::head_major(heads, tokens, 1)};
  cache.view.v_scales = {cache.v.as<std::byte>() + tokens * heads * dim, KvStrides::head_major(heads, tokens, 1)};
  for (detail::Buffer* plane : {&cache.k, &cache.v})
    for (Index row = 0; row < tokens * heads; ++row) {
      std::memset(plane->as<std::byte>() + row * dim, static_cast<int>(row), dim);
      const float scale = static_cast<float>(100 + row);
      std::memcpy(plane->as<std::byte>() + tokens * heads * dim + row * 4, &scale, 4);
    }
  detail::keep_tokens(cache, 1, std::vector<Index>{1, 4});
  for (detail::Buffer* plane : {&cache.k, &cache.v})
    for (Index head = 0; head < heads; ++head)
      for (const auto& [position, from] : {std::pair<Index, Index>{0, 0}, {1, 2}, {2, 5}}) {
        float scale = 0.0f;
        std::memcpy(&scale, plane->as<std::byte>() + tokens * heads * dim + (head * tokens + position) * 4, 4);
        EXPECT_EQ(scale, static_cast<float>(100 + head * tokens + from));
        EXPECT_EQ(plane->as<std::byte>()[(head * tokens + position) * dim + 7],
                  static_cast<std::byte>(head * tokens + from));
      }
}

// --- shared pages ----------------------------------------------------------------------------------------------------

TEST(PagedKeep, CopiesOnlySharedPagesThatRowsMoveInto) {
  const KvSource source(KvNumbers(40, kDims, 323));
  PagedKvPool pool(pool_config(8, 20));
  PagedSequence a = pool.sequence();
  source.append_to(a, 0, 40);  // five pages
  PagedSequence b = a.fork();
  const std::vector<std::int32_t> before = pages_of(a);
  b.keep(12, std::vector<Index>{0, 1, 9, 20});  // of page 1 the first six stay, two come from pages 2 and 4
  EXPECT_EQ(b.pages().size(), 2u);
  EXPECT_EQ(b.pages()[0], before[0]);
  EXPECT_NE(b.pages()[1], before[1]);
  EXPECT_EQ(pages_of(a), before);
  EXPECT_EQ(pool.free_pages(), 14);
  EXPECT_EQ(pool.reference_count(before[1]), 1);
  EXPECT_TRUE(holds(a.view(), source, 40));
  std::vector<Index> left = count_to(14);
  left.insert(left.end(), {21, 32});
  EXPECT_TRUE(holds_tokens(b, source, left));
  PagedSequence c = a.fork();
  c.keep(10, count_to(20));  // as they are: nothing to copy
  EXPECT_EQ(pool.free_pages(), 14);
  EXPECT_EQ(pages_of(c), std::vector<std::int32_t>(before.begin(), before.begin() + 4));
  a.release();
  c.keep(0, std::vector<Index>{29});
  EXPECT_NE(c.pages()[0], before[0]);
  EXPECT_TRUE(holds_tokens(c, source, {29}));
  EXPECT_TRUE(holds_tokens(b, source, left));
  c.release();
  const std::vector<std::int32_t> alone = pages_of(b);
  b.keep(5, std::vector<Index>{6, 10});  // nobody else has them: in place
  EXPECT_EQ(pages_of(b), std::vector<std::int32_t>{alone.front()});
  EXPECT_TRUE(holds_tokens(b, source, {0, 1, 2, 3, 4, 11, 32}));
}

TEST(PagedKeep, WithoutPagesForTheCopiesChangesNothing) {
  const KvSource source(KvNumbers(40, kDims, 324));
  PagedKvPool pool(pool_config(8, 6));
  PagedSequence a = pool.sequence();
  source.append_to(a, 0, 40);
  PagedSequence b = a.fork();
  const Snapshot before(pool, b);
  EXPECT_EQ(message_of<StorageExhausted>([&] { b.erase(4, 20); }),
            "gqa: the pool has 1 of 6 pages free; keeping tokens needs 3, for copies of pages that other sequences use "
            "too");
  struct Negate {
    void change(const KeyRow& row) const noexcept { row.elements[0] = -row.elements[0]; }
  };
  EXPECT_EQ(message_of<StorageExhausted>([&] { b.change_keys(15, 17, Negate{}); }),
            "gqa: the pool has 1 of 6 pages free; changing keys needs 2, for copies of pages that other sequences use "
            "too");
  EXPECT_EQ(Snapshot(pool, b), before);
  EXPECT_TRUE(holds(a.view(), source, 40));
  b.erase(32, 33);  // one page
  b.truncate(16);
  a.truncate(8);
  b.change_keys(15, 16, Negate{});
  EXPECT_EQ(stored(b.view(), true, 15, 1, 0), -source.k.at(15, 1, 0));
  EXPECT_EQ(stored(b.view(), true, 14, 1, 0), source.k.at(14, 1, 0));
  EXPECT_TRUE(holds(a.view(), source, 8));
}

// --- keys changed where they are -------------------------------------------------------------------------------------

template <class Cache>
void expect_changed(Cache& cache, const KvSource& source, Index oldest) {
  source.append_to(cache, 0, 40);
  std::vector<std::vector<Index>> calls, expected_calls;
  cache.change_keys(25, 25, Adder{1.0f, &calls});
  EXPECT_TRUE(calls.empty());
  cache.change_keys(20, 37, Adder{8.0f, &calls});
  for (Index position = 20; position < 37; ++position)
    for (Index head = 0; head < kDims.kv_heads; ++head)
      expected_calls.push_back({position, position - 20, head, kDims.head_dim});
  std::sort(calls.begin(), calls.end());
  EXPECT_EQ(calls, expected_calls);
  const KvCacheView view = cache.view();
  for (Index position = oldest; position < 40; ++position)
    for (Index head = 0; head < kDims.kv_heads; ++head) {
      for (Index d = 0; d < kDims.head_dim; ++d) {
        const float before = rounded_to(view.k_type, source.k.at(position, head, d));
        ASSERT_EQ(stored(view, true, position, head, d),
                  position >= 20 && position < 37 ? rounded_to(view.k_type, before + 8.0f) : before);
      }
      for (Index d = 0; d < kDims.value_dim; ++d)
        ASSERT_EQ(stored(view, false, position, head, d), rounded_to(view.v_type, source.v.at(position, head, d)));
    }
}

TEST(KvCacheChangeKeys, EachRowOnceAndNoOther) {
  const KvSource source(KvNumbers(40, kDims, 325));
  for (const ElementType type : kTypes)
    for (const KvLayout layout : kLayouts) {
      SCOPED_TRACE(types_and_layout(type, type, layout));
      ContiguousKvCache contiguous(config(40, type, type, layout));
      expect_changed(contiguous, source, 0);
      RingKvCache ring(config(24, type, type, layout));  // the range goes around its end
      expect_changed(ring, source, 16);
      for (const Index page_size : kPageSizes) {
        PagedKvPool pool(pool_config(page_size, 100, type, type, layout));
        PagedSequence paged = pool.sequence();
        expect_changed(paged, source, 0);
        PagedSequence fork = paged.fork();
        std::vector<std::vector<Index>> calls;
        const Index free = pool.free_pages();
        fork.change_keys(20, 37, Adder{-8.0f, &calls});
        EXPECT_EQ(free - pool.free_pages(), 36 / page_size - 20 / page_size + 1);
        EXPECT_EQ(stored(paged.view(), true, 20, 0, 0),
                  rounded_to(type, rounded_to(type, source.k.at(20, 0, 0)) + 8.0f));
        EXPECT_EQ(stored(fork.view(), true, 39, 2, 4), rounded_to(type, source.k.at(39, 2, 4)));
        EXPECT_EQ(stored(fork.view(), false, 39, 2, 3), rounded_to(type, source.v.at(39, 2, 3)));
        fork.change_keys(20, 37, Adder{1.0f, &calls});  // its own pages now
        EXPECT_EQ(free - pool.free_pages(), 36 / page_size - 20 / page_size + 1);
      }
    }
}

// --- what is refused -------------------------------------------------------------------------------------------------

template <class Cache>
void expect_refusals(Cache& cache, Index oldest) {
  const KvSource source(KvNumbers(10, kDims, 326));
  source.append_to(cache, 0, 10);
  const auto keep = [&](Index first, const std::vector<Index>& tokens) {
    return message_of<ArgumentError>([&] { cache.keep(first, tokens); });
  };
  const std::string held =
      "; expected between the oldest position held, " + std::to_string(oldest) + ", and the next position, 10";
  constexpr Index most = std::numeric_limits<Index>::max(), least = std::numeric_limits<Index>::min();
  EXPECT_EQ(keep(oldest - 1, {}), "gqa: first is " + std::to_string(oldest - 1) + held);
  EXPECT_EQ(keep(11, {}), "gqa: first is 11" + held);
  EXPECT_EQ(keep(most, {}), "gqa: first is 9223372036854775807" + held);
  EXPECT_EQ(keep(least, {}), "gqa: first is -9223372036854775808" + held);
  EXPECT_EQ(keep(6, {4}), "gqa: tokens[0] is 4; expected 0 or more, and less than length - first = 4");
  EXPECT_EQ(keep(6, {-1}), "gqa: tokens[0] is -1; expected 0 or more, and less than length - first = 4");
  EXPECT_EQ(keep(6, {most}),
            "gqa: tokens[0] is 9223372036854775807; expected 0 or more, and less than length - first = 4");
  const std::string order = "; expected more than the one before it, and less than length - first = 4";
  EXPECT_EQ(keep(6, {1, 0}), "gqa: tokens[1] is 0" + order);
  EXPECT_EQ(keep(6, {0, 2, 2}), "gqa: tokens[2] is 2" + order);
  EXPECT_EQ(keep(6, {3, most}), "gqa: tokens[1] is 9223372036854775807" + order);
  EXPECT_EQ(keep(6, {3, least}), "gqa: tokens[1] is -9223372036854775808" + order);
  EXPECT_EQ(keep(10, {0}), "gqa: tokens[0] is 0; expected 0 or more, and less than length - first = 0");
  EXPECT_EQ(message_of<ArgumentError>([&] { cache.keep(6, std::span<const Index>(static_cast<Index*>(nullptr), 2)); }),
            "gqa: tokens.data() is null; expected a pointer to 2 tokens");
  std::vector<std::vector<Index>> calls;
  const auto range = [&](Index first, Index last) {
    const std::string erased = message_of<ArgumentError>([&] { cache.erase(first, last); });
    const std::string changed = message_of<ArgumentError>([&] { cache.change_keys(first, last, Adder{1.0f, &calls}); });
    EXPECT_EQ(erased, changed);
    return erased;
  };
  EXPECT_EQ(range(oldest - 1, 9), "gqa: first is " + std::to_string(oldest - 1) + held);
  EXPECT_EQ(range(11, 11), "gqa: first is 11" + held);
  EXPECT_EQ(range(least, most), "gqa: first is -9223372036854775808" + held);
  EXPECT_EQ(range(7, 6), "gqa: last is 6; expected between first, 7, and the next position, 10");
  EXPECT_EQ(range(7, 11), "gqa: last is 11; expected between first, 7, and the next position, 10");
  EXPECT_EQ(range(7, least), "gqa: last is -9223372036854775808; expected between first, 7, and the next position, 10");
  struct Refuses {
    void change(const KeyRow&) const noexcept { ADD_FAILURE() << "called"; }
    void check(const KeyRows& rows) const {
      EXPECT_EQ(rows.first_position, 7);
      EXPECT_EQ(rows.tokens, 2);
      EXPECT_EQ(rows.heads, kDims.kv_heads);
      EXPECT_EQ(rows.dim, kDims.head_dim);
      throw ArgumentError("no");
    }
  };
  EXPECT_EQ(message_of<ArgumentError>([&] { cache.change_keys(7, 9, Refuses{}); }), "no");
  EXPECT_TRUE(calls.empty());
  EXPECT_TRUE(holds(cache.view(), source, oldest, 10));
}

TEST(KvCacheKeep, WrongArgumentsAreNamedAndNothingChanges) {
  ContiguousKvCache contiguous(config(12));
  expect_refusals(contiguous, 0);
  RingKvCache ring(config(6));
  expect_refusals(ring, 4);
  PagedKvPool pool(pool_config(4, 6));
  PagedSequence paged = pool.sequence();
  expect_refusals(paged, 0);
  PagedSequence fork = paged.fork();
  EXPECT_EQ(pool.free_pages(), 3);
  PagedSequence empty;
  std::vector<std::vector<Index>> calls;
  const std::string message =
      "gqa: sequence is empty (default constructed, released or moved from); expected a sequence made by a pool";
  EXPECT_EQ(message_of<ArgumentError>([&] { empty.keep(0, {}); }), message);
  EXPECT_EQ(message_of<ArgumentError>([&] { empty.erase(0, 0); }), message);
  EXPECT_EQ(message_of<ArgumentError>([&] { empty.change_keys(0, 0, Adder{1.0f, &calls}); }), message);
  ContiguousKvCache moved = std::move(contiguous);
  EXPECT_THROW(contiguous.change_keys(0, 0, Adder{1.0f, &calls}), ArgumentError);  // NOLINT: moved from
  EXPECT_THROW(contiguous.erase(0, 1), ArgumentError);                             // NOLINT: moved from
  contiguous.keep(0, {});                                                          // NOLINT: moved from
}

}  // namespace
}  // namespace gqa::test
