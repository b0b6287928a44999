// SPDX-License-Identifier: Apache-2.0
// Shipped variants given sizes and positions that do not fit: refused by name before any array of the caller's is read, or taken as they are
// where any number is allowed. The sanitizer presets see what a wrong sum would do.
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "gqa/variants.hpp"
#include "support/paths.hpp"
#include "support/problem.hpp"
#include "support/reference_check.hpp"

namespace gqa::test {
namespace {

__extension__ typedef __int128 Wide;  // in which sums of any two positions fit

constexpr Index kLeast = std::numeric_limits<Index>::min();
constexpr Index kMost = std::numeric_limits<Index>::max();

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const ArgumentError& error) {
    return error.what();
  }
  return "accepted";
}

/// What a call and the reference say of a variant, the same: four query heads, three queries, ten tokens.
template <class V>
std::string refused(const V& variant, std::vector<Index> positions = {}) {
  const Problem p = make_problem({4, 2, 8, 8, 3, 10}, 1);
  const Tensor q(p.q, ElementType::f32);
  const StoredCaches kv = store_cache(p.kv, ElementType::f32, ElementType::f32, {});
  const std::string said =
      refusal([&] { attend(q.const_view(), kv.view(), {best_f32_path()}, compose(Full{}, variant), positions); });
  EXPECT_EQ(said == "accepted", refusal([&] {
                                  reference_attention(q.const_view(), kv.view(), compose(Full{}, variant), std::nullopt,
                                                      positions);
                                }) == "accepted");
  return said;
}

TEST(HostileVariants, DistanceBiasesReachEveryGivenPosition) {
  const std::vector<float> bias(4 * 12);
  const DistanceBias part{bias, 12, -2};  // distances −2 … 9
  EXPECT_EQ(refused(part), "accepted");
  EXPECT_EQ(refused(part, {7, 8, 9}), "accepted");
  EXPECT_NE(refused(part, {7, 10, 9}).find("variant.distances"), std::string::npos);
  EXPECT_NE(refused(part, {7, 6, 9}).find("variant.least"), std::string::npos);
  EXPECT_NE(refused(part, {kLeast, 8, 9}).find("variant.least"), std::string::npos);
  EXPECT_NE(refused(part, {7, 8, kMost}).find("variant.distances"), std::string::npos);
}

TEST(HostileVariants, DistanceBiasesWhoseSizeIsNoNumber) {
  const Index huge = Index{1} << 62;  // times four heads is 2^64
  EXPECT_NE(refused(DistanceBias{{}, huge, -2}).find("variant.bias.size()"), std::string::npos);
  EXPECT_NE(refused(DistanceBias{{}, 0, kLeast}).find("variant.distances"), std::string::npos);
}

TEST(HostileVariants, TheTableOfT5) {
  std::vector<float> table(32 * 4);
  std::vector<float> bias(4 * 20);
  const auto fill = [&](Index heads, bool two_sided, Index buckets, Index max_distance) {
    return refusal([&] { DistanceBias::fill_t5(table, heads, two_sided, buckets, max_distance, -3, 20, bias); });
  };
  EXPECT_EQ(fill(4, true, 32, 128), "accepted");
  EXPECT_EQ(fill(4, true, 32, 9), "accepted");
  EXPECT_NE(fill(4, true, 32, 8).find("max_distance"), std::string::npos);
  EXPECT_NE(fill(4, false, 32, 16).find("max_distance"), std::string::npos);
  EXPECT_NE(fill(4, false, 1, 128).find("buckets"), std::string::npos);
  EXPECT_NE(fill(0, false, 32, 128).find("heads"), std::string::npos);
  EXPECT_NE(fill(Index{1} << 60, false, 32, 128).find("table.size()"), std::string::npos);
}

TEST(HostileVariants, ViewsWhoseOffsetsAreNoNumbers) {
  const std::vector<float> numbers(4 * 3 * 10);
  const auto said = [&](Index heads, Index keys, BroadcastView<float>::Strides strides) {
    return refused(AdditiveBias{BroadcastView<float>(numbers.data(), 1, heads, 3, keys, strides)});
  };
  EXPECT_EQ(said(4, 10, {0, 30, 10, 1}), "accepted");
  EXPECT_NE(said(4, 10, {0, kMost, 10, 1}).find("variant.bias.strides.head"), std::string::npos);
  EXPECT_NE(said(4, 10, {0, 30, kLeast, 1}).find("variant.bias.strides.query"), std::string::npos);
  EXPECT_NE(said(1, 10, {0, 0, 0, Index{1} << 60}).find("variant.bias.strides.key"), std::string::npos);
  EXPECT_NE(refused(AdditiveBias{BroadcastView<float>(numbers.data(), 1, 4, 3, Index{1} << 62)}).find("strides"),
            std::string::npos);
}

TEST(HostileVariants, NothingIsAskedForASequenceWithoutQueries) {
  const Problem p = make_problem({4, 2, 8, 8, 0, 10}, 1);
  const Tensor q(p.q, ElementType::f32);
  const StoredCaches kv = store_cache(p.kv, ElementType::f32, ElementType::f32, {});
  const auto said = [&](const auto& part) {
    return refusal([&] { attend(q.const_view(), kv.view(), {best_f32_path()}, compose(Full{}, part)); });
  };
  EXPECT_EQ(said(AdditiveBias{BroadcastView<float>(nullptr, 1, 4, 0, 10)}), "accepted");
  const std::vector<float> bias(4);
  EXPECT_EQ(said(DistanceBias{bias, 1, 0}), "accepted");
  EXPECT_NE(said(DistanceBias{bias, 2, 0}).find("variant.bias.size()"), std::string::npos);
  EXPECT_NE(refused(AdditiveBias{BroadcastView<float>(nullptr, 1, 4, 3, 10)}).find("variant.bias.data"),
            std::string::npos);
}

TEST(HostileVariants, SizesThatOnlyTheReferenceWouldHaveMissed) {
  const std::vector<float> few(3);
  EXPECT_NE(refused(Alibi{few}).find("variant.slopes.size()"), std::string::npos);
  EXPECT_NE(refused(LearnedSinks{few}).find("variant.logits.size()"), std::string::npos);
}

/// The ranges and bits that a variant gives for any position are those of its definition.
template <class V, class Sees>
void hold_anywhere(const V& variant, const Sees& sees) {
  constexpr Index length = 300;
  for (const Index position : {kLeast, kLeast + 1, -Index{1000}, -Index{65}, -Index{1}, Index{0}, Index{5}, Index{299},
                               Index{300}, Index{364}, kMost - 63, kMost - 1, kMost}) {
    PositionRange ranges[detail::kMaxRanges];
    detail::get_ranges(variant, QueryContext{position, 0, 0}, length, ranges);
    for (Index key = 0; key < length; ++key) {
      bool seen = false;
      for (Index i = 0; i < detail::ranges_of<V>; ++i) seen |= ranges[i].begin <= key && key < ranges[i].end;
      if (seen) seen = detail::reference_visible(variant, RowContext{{position, 0, 0}, 0}, key);
      ASSERT_EQ(seen, sees(static_cast<Wide>(position), static_cast<Wide>(key)))
          << "position " << position << ", key " << key;
    }
  }
}

TEST(HostileVariants, AnyPositionIsAllowed) {
  for (const Index size : {Index{1}, Index{64}, Index{1000}, Index{1} << 62, kMost - 40, kMost}) {
    hold_anywhere(TwoSidedWindow{size, size},
                  [&](Wide p, Wide k) { return k >= p - Wide{size} && k <= p + Wide{size}; });
    hold_anywhere(DilatedWindow{size, 7}, [&](Wide p, Wide k) {
      return p >= 0 && k <= p && (p - k) % Wide{size} == 0 && (p - k) / Wide{size} < 7;
    });
    const Index offsets[] = {0, 1, 2};
    const Index keys[] = {0, 1};
    hold_anywhere(BlockSparse{size, size, offsets, keys},
                  [&](Wide p, Wide k) { return p >= 0 && p / Wide{size} < 2 && p / Wide{size} == k / Wide{size}; });
  }
  const PositionTemperature hot{1, 0.5f};
  EXPECT_EQ(hot.score(expression::Score{}, RowContext{{kMost, 0, 0}, 0}, expression::Key{}).a.value,
            static_cast<float>(1.0 + 0.5 * std::log1p(0x1p63)));
  EXPECT_EQ(hot.score(expression::Score{}, RowContext{{-7, 0, 0}, 0}, expression::Key{}).a.value, 1.0f);
}

}  // namespace
}  // namespace gqa::test
