// SPDX-License-Identifier: Apache-2.0
// Derivatives of score expressions: of each operation, worked out by hand, and by which part of a tree they are.
#include "gqa/detail/tree_slope.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace gqa::test {
namespace {

using detail::ByLookup;
using detail::ByScore;
using detail::tree_slope;
using expression::Key;
using expression::Score;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class E>
double by_score(const E& tree, double score, Index key_position = 0) {
  return tree_slope<ByScore>(tree, score, key_position);
}

TEST(TreeSlope, OfLeavesIsOneOfTheScoreAndElseZero) {
  const float bias[] = {7.0f};
  EXPECT_EQ(by_score(Score{}, 3.0), 1.0);
  EXPECT_EQ(by_score(Key{}, 3.0, 5), 0.0);
  EXPECT_EQ(by_score(expression::Constant(2.0f), 3.0), 0.0);
  EXPECT_EQ(by_score(lookup(bias, Key{}), 3.0), 0.0);
}

TEST(TreeSlope, OfArithmeticIsThatOfCalculus) {
  EXPECT_EQ(by_score(Score{} + 5.0f, 3.0), 1.0);
  EXPECT_EQ(by_score(5.0f + Score{} + Score{}, 3.0), 2.0);
  EXPECT_EQ(by_score(Score{} - Key{}, 3.0, 2), 1.0);
  EXPECT_EQ(by_score(Key{} - Score{}, 3.0, 2), -1.0);
  EXPECT_EQ(by_score(-Score{}, 3.0), -1.0);
  EXPECT_EQ(by_score(4.0f * Score{}, 3.0), 4.0);
  EXPECT_EQ(by_score(Score{} * Score{}, 3.0), 6.0);
  EXPECT_EQ(by_score(Score{} / 4.0f, 3.0), 0.25);
  EXPECT_EQ(by_score(8.0f / Score{}, 4.0), -0.5);
  EXPECT_EQ(by_score(Score{} / (1.0f + Score{}), 3.0), 1.0 / 16.0);
  EXPECT_EQ(by_score(fma(Score{}, 4.0f, Key{}), 3.0, 9), 4.0);
  EXPECT_EQ(by_score(fma(Key{}, Score{}, 1.0f), 3.0, 9), 9.0);
  EXPECT_EQ(by_score(fma(Key{}, 2.0f, Score{}), 3.0, 9), 1.0);
  EXPECT_EQ(by_score(fma(Score{}, Score{}, Score{}), 3.0), 7.0);
}

// The same functions of the standard library on both sides, so the same bits but for tanh, whose slope is rounded a few times.
TEST(TreeSlope, OfFunctions) {
  for (const double x : {0.25, 1.0, 3.5}) {
    EXPECT_EQ(by_score(exp(Score{}), x), std::exp(x));
    EXPECT_EQ(by_score(log(Score{}), x), 1.0 / x);
    EXPECT_EQ(by_score(exp(Score{} * Score{}), x), std::exp(x * x) * (2.0 * x));
    const double cosh = std::cosh(x);
    EXPECT_NEAR(by_score(tanh(Score{}), x), 1.0 / (cosh * cosh), 8.0 * 0x1p-52) << x;
  }
  EXPECT_EQ(by_score(tanh(Score{}), 0.0), 1.0);
  EXPECT_EQ(by_score(tanh(Score{}), 400.0), 0.0);
  EXPECT_EQ(by_score(abs(Score{}), 2.0), 1.0);
  EXPECT_EQ(by_score(abs(Score{}), -2.0), -1.0);
  EXPECT_EQ(by_score(abs(Score{}), 0.0), 0.0);
  EXPECT_EQ(by_score(abs(Score{}), -0.0), 0.0);
  EXPECT_EQ(by_score(abs(3.0f * Score{}), -2.0), -3.0);
}

TEST(TreeSlope, OfMinimaAndMaximaIsThatOfTheOperandThatIsTheValue) {
  const auto least = min(2.0f * Score{}, 3.0f * Score{});
  const auto most = max(2.0f * Score{}, 3.0f * Score{});
  EXPECT_EQ(by_score(least, 1.0), 2.0);
  EXPECT_EQ(by_score(least, -1.0), 3.0);
  EXPECT_EQ(by_score(most, 1.0), 3.0);
  EXPECT_EQ(by_score(most, -1.0), 2.0);
  EXPECT_EQ(by_score(least, 0.0), 3.0);  // of equal ones the second
  EXPECT_EQ(by_score(most, 0.0), 3.0);
  EXPECT_EQ(by_score(min(Score{}, 4.0f), 5.0), 0.0);
  EXPECT_EQ(by_score(max(Score{}, 4.0f), 5.0), 1.0);
  EXPECT_TRUE(std::isnan(by_score(min(log(Score{}) * Score{}, 1.0f), std::nan(""))));
}

TEST(TreeSlope, OfASelectionIsThatOfTheChosenBranch) {
  const auto tree = select(Score{} < 2.0f, 3.0f * Score{}, 5.0f * Score{});
  EXPECT_EQ(by_score(tree, 1.0), 3.0);
  EXPECT_EQ(by_score(tree, 2.0), 5.0);
  const auto chosen_by_key = select(!(Key{} == 4) && (Key{} < 9 || Key{} <= 9), Score{} * Score{}, 1.0f);
  EXPECT_EQ(by_score(chosen_by_key, 3.0, 5), 6.0);
  EXPECT_EQ(by_score(chosen_by_key, 3.0, 4), 0.0);
}

// What is not chosen may have any slope, and what does not depend on the score any value.
TEST(TreeSlope, InfinitiesElsewhereDoNotShow) {
  EXPECT_EQ(by_score(select(Score{} > 0.0f, log(Score{}), 1.0f), 0.0), 0.0);
  EXPECT_EQ(by_score(max(log(Score{}), -2.0f), 0.0), 0.0);
  EXPECT_EQ(by_score(Score{} + log(Key{}), 3.0, 0), 1.0);            // −∞
  EXPECT_EQ(by_score(Score{} + 1.0f / Key{} * Key{}, 3.0, 0), 1.0);  // ∞ · 0
  EXPECT_EQ(by_score(Key{} * log(Key{}) + 2.0f * Score{}, 3.0, 0), 2.0);
  EXPECT_EQ(by_score(fma(log(Key{}), Key{}, Score{}), 3.0, 0), 1.0);
  EXPECT_EQ(by_score(log(Key{}) * Score{}, 3.0, 0), -kInfinity);
  const float infinite[] = {std::numeric_limits<float>::infinity()};
  EXPECT_EQ(tree_slope<ByLookup<0>>(lookup(infinite, Key{}) * 2.0f + log(0.0f * Score{}), 1.0, 0), 2.0);
}

TEST(TreeSlope, LookupsAreCountedInTheOrderOfWriting) {
  const float a[] = {1.0f, 2.0f}, b[] = {3.0f, 5.0f};
  const std::int32_t c[] = {7, 11};
  const bf16 d[] = {bf16(13.0f), bf16(17.0f)};
  // Lookups 0 and 1 stand in a condition: they are counted, and have no slope.
  const auto tree =
      select(lookup(a, Key{}) < lookup(b, Key{}), fma(lookup(b, Key{}), lookup(c, Key{}), Score{}), 0.0f) +
      lookup(d, Key{}) / lookup(a, Key{}) - lookup(a, Key{}) * lookup(a, Key{});
  EXPECT_EQ(by_score(tree, 9.0, 1), 1.0);
  EXPECT_EQ(tree_slope<ByLookup<0>>(tree, 9.0, 1), 0.0);
  EXPECT_EQ(tree_slope<ByLookup<1>>(tree, 9.0, 1), 0.0);
  EXPECT_EQ(tree_slope<ByLookup<2>>(tree, 9.0, 1), 11.0);
  EXPECT_EQ(tree_slope<ByLookup<3>>(tree, 9.0, 1), 5.0);
  EXPECT_EQ(tree_slope<ByLookup<4>>(tree, 9.0, 1), 0.5);
  EXPECT_EQ(tree_slope<ByLookup<5>>(tree, 9.0, 1), -17.0 / 4.0);
  EXPECT_EQ(tree_slope<ByLookup<6>>(tree, 9.0, 1), -2.0);  // each of two lookups of one number by itself
  EXPECT_EQ(tree_slope<ByLookup<7>>(tree, 9.0, 1), -2.0);
  EXPECT_EQ(tree_slope<ByLookup<8>>(tree, 9.0, 1), 0.0);  // there is none
}

}  // namespace
}  // namespace gqa::test
