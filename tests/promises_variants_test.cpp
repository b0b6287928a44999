// SPDX-License-Identifier: Apache-2.0
// Every variant, the library's and a user's: right against the definition, and the same bits in every chunking, storage and batch.
#include <gtest/gtest.h>

#include "support/executors.hpp"
#include "support/problem.hpp"
#include "support/reference_check.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

class Variants : public PerPathAndType {
 protected:
  /// Everything that is asked of a variant.
  template <class V>
  void hold(const V& variant, const char* name) const {
    constexpr Index length = detail::kSpan + 90;
    constexpr Index queries = 70;  // 140 rows for a KV head: more than a tile, and across a span boundary
    const Types types = cache_of(type());
    const Problem p = make_problem({4, 2, 24, 16, queries, length}, 141);
    SCOPED_TRACE(describe(on(path()), types, p.shape, name));
    const Tensor q(p.q, types.q);
    const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
    const How how{path()};
    const Result whole = attend(q.const_view(), kv.view(), how, variant);

    // Right: a few tokens, which decode alone and so hold the rest to it by the next comparison.
    std::vector<Index> positions;
    for (Index token = 0; token < queries; ++token) positions.push_back(length - queries + token);
    const std::span<const Index> all(positions);
    for (const Index token : {0, 1, 10, 20, 21, 68, 69})
      EXPECT_TRUE(within_bound(q.const_view().slice(token, 1), kv.view(), how, variant, whole.slice(token, 1),
                               all.subspan(static_cast<std::size_t>(token), 1)))
          << "token " << token;

    // The same bits token by token, in chunks, and in other storage. Positions are given, as Full sees the whole cache.
    for (Index token = 0; token < queries; token += path() == Path::portable ? 13 : 1)
      ASSERT_TRUE(same_bits(whole.slice(token, 1), attend(q.const_view().slice(token, 1), kv.view(), how, variant,
                                                          all.subspan(static_cast<std::size_t>(token), 1))))
          << "token " << token << " alone";
    for (const auto& [first, count] : {std::pair<Index, Index>{0, 33}, {33, 37}})
      EXPECT_TRUE(same_bits(whole.slice(first, count),
                            attend(q.const_view().slice(first, count), kv.view(), how, variant,
                                   all.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)))))
          << "chunk from " << first;
    for (const Place& place : {paged_place(7), contiguous_place(CacheLayout::head_major, length + 9)}) {
      const StoredCaches other = store_cache(p.kv, types.k, types.v, place);
      EXPECT_TRUE(same_bits(whole, attend(q.const_view(), other.view(), how, variant))) << place.name();
    }
    ShuffledExecutor shuffled{3, 2};
    How in_disorder = how;
    in_disorder.executor = shuffled;
    EXPECT_TRUE(same_bits(whole, attend(q.const_view(), kv.view(), in_disorder, variant))) << "shuffled tasks";
  }
};

TEST_P(Variants, Full) { hold(gqa::Full{}, "full"); }
TEST_P(Variants, Causal) { hold(gqa::Causal{}, "causal"); }
TEST_P(Variants, CausalWindow) {
  for (const Index window : {Index{1}, Index{64}, Index{100}, detail::kSpan + 1, Index{1} << 62})
    hold(gqa::CausalWindow{window}, "window");
}
TEST_P(Variants, UsersDocuments) { hold(PackedDocuments{100}, "packed documents"); }
TEST_P(Variants, UsersMask) { hold(Sieve{}, "sieve"); }
TEST_P(Variants, UsersSinksAndWindow) { hold(SinksAndWindow{4, 40}, "sinks and window"); }
TEST_P(Variants, UsersSinksAndWindowAsRanges) {
  for (const Index window : {1, 40, 100, 700}) hold(SinksAndWindowRanges{4, window}, "sinks and window as ranges");
}
TEST_P(Variants, UsersEmptyRows) { hold(StrictlyBeforeOdd{}, "nothing for even positions"); }
TEST_P(Variants, UsersAlibi) { hold(Alibi{}, "ALiBi"); }
TEST_P(Variants, UsersSoftCap) { hold(SoftCap{1.5f}, "soft cap"); }
TEST_P(Variants, UsersCapAndAlibiAsAnExpression) { hold(CapAndAlibi{1.5f}, "soft cap and ALiBi, an expression"); }
TEST_P(Variants, UsersSinks) { hold(Sinks{}, "sinks"); }
TEST_P(Variants, UsersMaskOfWords) { hold(SieveOfWords{}, "sieve by words"); }
TEST_P(Variants, UsersExpressionOfEverything) {
  Random random(151);
  std::vector<float> bias(4 * (detail::kSpan + 90));
  for (float& x : bias) x = random.normal();
  std::vector<std::int32_t> document(detail::kSpan + 90);
  for (std::size_t i = 0; i < document.size(); ++i) document[i] = static_cast<std::int32_t>(i / 90 % 3);
  hold(Everything{bias.data(), document.data()}, "biases, documents and sinks");
}
TEST_P(Variants, UsersMaskAndScoresWithMinusInfinity) { hold(SieveWithScores{}, "sieve with scores"); }

/// Scores everything −∞.
struct NothingScored : gqa::Causal {
  float score(float, Index, Index, Index) const { return -INFINITY; }
};

TEST_P(Variants, ARowThatIsAllMinusInfinityIsZero) {
  const Problem p = make_problem({2, 1, 16, 16, 3, 2 * detail::kSpan}, 142);
  const Result result = solve(p, all_of(type()), {path()}, NothingScored{});
  for (const float x : result.out) EXPECT_EQ(x, 0.0f);
  for (const float x : result.lse) EXPECT_EQ(x, -INFINITY);
}

/// The identity as a score functor: natural units are scaled to log2 after it instead of before, so that it is close to Causal and
/// no more.
struct Identity : gqa::Causal {
  float score(float score, Index, Index, Index) const { return score; }
};

TEST_P(Variants, AScoreFunctorSeesTheScaledProduct) {
  const Problem p = make_problem({2, 1, 16, 16, 3, 100}, 143);
  const Types types = cache_of(type());
  const Tensor q(p.q, types.q);
  const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
  for (const float scale : {0.25f, 1.0f, -0.5f}) {
    How how{path()};
    how.scale = scale;
    EXPECT_TRUE(
        within_bound(q.const_view(), kv.view(), how, gqa::Causal{}, attend(q.const_view(), kv.view(), how, Identity{})))
        << on(path()) << ", " << types << ", scale " << scale;
    EXPECT_TRUE(within_bound(q.const_view(), kv.view(), how, gqa::Causal{},
                             attend(q.const_view(), kv.view(), how, gqa::Causal{})))
        << on(path()) << ", " << types << ", scale " << scale;
  }
}

/// Counts what it is asked; blocks outside the ranges must not be asked about.
struct Counting {
  Index window;
  std::shared_ptr<std::atomic<Index>> asked = std::make_shared<std::atomic<Index>>(0);
  std::shared_ptr<std::atomic<Index>> outside = std::make_shared<std::atomic<Index>>(0);
  PositionRange visible_range(Index query_position, Index kv_length) const {
    return gqa::CausalWindow{window}.visible_range(query_position, kv_length);
  }
  bool is_visible(Index query_position, Index key_position, Index) const {
    asked->fetch_add(1);
    if (key_position > query_position || key_position <= query_position - window) outside->fetch_add(1);
    return true;
  }
};

TEST_P(Variants, WhatARangeHidesIsNotAskedAbout) {
  const Problem p = make_problem({4, 2, 8, 8, 40, 3 * detail::kSpan}, 144);
  const Counting variant{50};
  const Result result = solve(p, cache_of(type()), {path()}, variant);
  EXPECT_EQ(variant.asked->load(), 40 * 4 * 50) << "each visible pair of each query head once";
  EXPECT_EQ(variant.outside->load(), 0);
  EXPECT_TRUE(same_bits(result, solve(p, cache_of(type()), {path()}, gqa::CausalWindow{50})));
}

// First tokens and a window of a long sequence: the pages between may be gone.
TEST_P(Variants, WhatLiesBetweenRangesIsNotTouched) {
  constexpr Index length = 9 * detail::kSpan + 50;
  constexpr Index page = 16;
  const Types types = cache_of(type());
  for (const Index queries : {Index{1}, Index{5}, Index{40}}) {
    const Problem p = make_problem({4, 2, 24, 16, queries, length}, 145);
    const Tensor q(p.q, types.q);
    const StoredCaches kv = store_cache(p.kv, types.k, types.v, paged_place(page));
    KvCacheView holes = kv.view();
    std::vector<std::int32_t> table(holes.page_table, holes.page_table + holes.page_table_size);
    const SinksAndWindowRanges ranges{4, 100};
    for (Index i = 1; i < (length - queries - 100) / page; ++i) table[static_cast<std::size_t>(i)] = -1;
    holes.page_table = table.data();
    for (const Index workers : {1, 3}) {
      ShuffledExecutor shuffled{5, workers};
      How how{path()};
      how.executor = shuffled;
      EXPECT_TRUE(same_bits(attend(q.const_view(), kv.view(), {path()}, SinksAndWindow{4, 100}),
                            attend(q.const_view(), holes, how, ranges)))
          << on(path()) << ", " << types << ", " << queries << " query tokens";
    }
    table[0] = -1;
    EXPECT_THROW(static_cast<void>(attend(q.const_view(), holes, {path()}, ranges)), ArgumentError);
  }
}

/// Hides all of some blocks, and gives the number of times that it is asked.
struct WholeBlocksHidden : gqa::Causal {
  std::shared_ptr<std::atomic<Index>> asked = std::make_shared<std::atomic<Index>>(0);
  bool is_visible(Index query_position, Index key_position, Index query_head) const {
    asked->fetch_add(1);
    return key_position == query_position || (key_position / detail::kBlock + query_head) % 3 == 0;
  }
};

TEST_P(Variants, HiddenBlocksAreAskedAboutOnceAndLeftOut) {
  constexpr Index length = 2 * detail::kSpan + 10;
  for (const Index heads : {1, 2, 4}) {
    const Problem p = make_problem({4, heads, 16, 16, 3, length}, 146);
    const Tensor q(p.q, cache_of(type()).q);
    const StoredCaches kv = store_cache(p.kv, type(), type(), paged_place(64));
    const WholeBlocksHidden variant;
    const Result result = attend(q.const_view(), kv.view(), {path()}, variant);
    EXPECT_EQ(variant.asked->load(), 4 * (3 * length - 3));
    EXPECT_TRUE(within_bound(q.const_view(), kv.view(), {path()}, variant, result))
        << on(path()) << ", " << heads << " KV heads";
  }
}

INSTANTIATE_TEST_SUITE_P(EveryPath, Variants, Variants::cases(), Variants::name);

}  // namespace
}  // namespace gqa::test
