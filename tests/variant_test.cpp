// SPDX-License-Identifier: Apache-2.0
// The ranges of the library's variants, and what counts as a variant.
#include "gqa/variant.hpp"

#include <gtest/gtest.h>

#include <cstdint>

#include "support/variants.hpp"

namespace gqa {
namespace {

static_assert(Variant<Full> && Variant<Causal> && Variant<CausalWindow>);
static_assert(!MaskingVariant<Causal> && !ScoringVariant<Causal>);
static_assert(Variant<test::Sieve> && MaskingVariant<test::Sieve> && !ScoringVariant<test::Sieve>);
static_assert(ScoringVariant<test::Alibi> && !MaskingVariant<test::Alibi>);
static_assert(ScoringVariant<test::SieveWithScores> && MaskingVariant<test::SieveWithScores>);
static_assert(!Variant<int> && !Variant<PositionRange>);

struct ReturnsABool {
  bool visible_range(Index, Index) const { return true; }
};
struct NotConst {
  PositionRange visible_range(Index, Index) { return {}; }
};
static_assert(!Variant<ReturnsABool> && !Variant<NotConst>);

template <class V>
std::pair<Index, Index> range_of(const V& variant, Index position, Index length) {
  const PositionRange range = variant.visible_range(position, length);
  return {range.begin, range.end};
}
using Range = std::pair<Index, Index>;

TEST(Variants, FullSeesEverything) {
  EXPECT_EQ(range_of(Full{}, 0, 10), Range(0, 10));
  EXPECT_EQ(range_of(Full{}, 9, 10), Range(0, 10));
  EXPECT_EQ(range_of(Full{}, -5, 10), Range(0, 10));
  EXPECT_EQ(range_of(Full{}, 3, 0), Range(0, 0));
}

TEST(Variants, CausalSeesItselfAndWhatIsBefore) {
  EXPECT_EQ(range_of(Causal{}, 0, 10), Range(0, 1));
  EXPECT_EQ(range_of(Causal{}, 9, 10), Range(0, 10));
  EXPECT_EQ(range_of(Causal{}, 20, 10), Range(0, 10));
  EXPECT_EQ(range_of(Causal{}, INTPTR_MAX, 10), Range(0, 10)) << "no overflow";
  const PositionRange before = Causal{}.visible_range(-1, 10);
  EXPECT_LE(before.end, before.begin) << "before the beginning there is nothing";
}

TEST(Variants, AWindowCountsItsOwnPosition) {
  EXPECT_EQ(range_of(CausalWindow{1}, 5, 10), Range(5, 6));
  EXPECT_EQ(range_of(CausalWindow{3}, 5, 10), Range(3, 6));
  EXPECT_EQ(range_of(CausalWindow{6}, 5, 10), Range(0, 6));
  EXPECT_EQ(range_of(CausalWindow{7}, 5, 10), Range(0, 6));
  EXPECT_EQ(range_of(CausalWindow{INTPTR_MAX}, 5, 10), Range(0, 6));
  EXPECT_EQ(range_of(CausalWindow{4}, 12, 10), Range(9, 10)) << "a position past the cache sees what its window reaches";
  EXPECT_EQ(range_of(CausalWindow{4}, INTPTR_MAX, 10).second, 10) << "no overflow";
}

TEST(Variants, AWindowNeedsAPosition) {
  CausalWindow{1}.check();
  for (const Index window : {Index{0}, Index{-1}, Index{INTPTR_MIN}}) {
    try {
      CausalWindow{window}.check();
      ADD_FAILURE() << "a window of " << window << " was accepted";
    } catch (const ArgumentError& error) {
      EXPECT_EQ(std::string(error.what()),
                "gqa: variant.window is " + std::to_string(window) + "; expected 1 or more positions");
    }
  }
}

static_assert(Causal{}.visible_range(3, 10).end == 4, "ranges are constant expressions");
static_assert(CausalWindow{2}.visible_range(3, 10).begin == 2);

}  // namespace
}  // namespace gqa
