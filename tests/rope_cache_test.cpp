// SPDX-License-Identifier: Apache-2.0
// Keys that are shifted in a cache: bits, accuracy by the stored type, and a context whose middle has gone.
#include <gtest/gtest.h>

#include <cmath>
#include <complex>
#include <string>
#include <tuple>
#include <vector>

#include "gqa/gqa.hpp"
#include "gqa/rope.hpp"
#include "support/owned_caches.hpp"
#include "support/rope_cases.hpp"

namespace gqa::test {
namespace {

constexpr KvDims kShape{2, 64, 8};
constexpr Index kTokens = 90;

KvCacheConfig shape(Index capacity, ElementType type) {
  return config(capacity, type, ElementType::f32, KvLayout::head_major, kShape);
}
KvPoolConfig pool_shape(Index page_size, ElementType type) {
  return pool_config(page_size, 200, type, ElementType::f32, KvLayout::head_major, kShape);
}

// Runs `test` on a cache of every kind.
template <class Test>
void in_every_cache(ElementType type, const Test& test) {
  ContiguousKvCache contiguous(shape(kTokens, type));
  test(contiguous);
  RingKvCache ring(shape(kTokens - 10, type));
  test(ring);
  for (const Index page_size : {1, 7, 64}) {
    PagedKvPool pool(pool_shape(page_size, type));
    PagedSequence paged = pool.sequence();
    test(paged);
  }
}

class RopeInCaches : public testing::TestWithParam<RopeCase> {
 protected:
  ElementType type() const { return std::get<1>(GetParam()); }
  RopeOptions options() const { return {.dims = 48, .pairs = std::get<0>(GetParam())}; }
};

TEST_P(RopeInCaches, AShiftedKeyHasTheBitsOfItsRowShifted) {
  const KvSource source(KvNumbers(kTokens, kShape, 331));
  RopeOptions of_axes = options();
  of_axes.sections = {10, 14};
  for (const RopeOptions& each : {options(), of_axes}) {
    const Rope rope(each, kTokens);
    in_every_cache(type(), [&](auto& cache) {
      cache.append(source.k.const_view(), source.v.const_view(), rope.keys());
      std::vector<std::vector<float>> expected;
      for (Index position = 10; position < kTokens; ++position)
        for (Index head = 0; head < kShape.kv_heads; ++head) {
          std::vector<float>& row = expected.emplace_back();
          for (Index d = 0; d < kShape.head_dim; ++d) row.push_back(stored(cache.view(), true, position, head, d));
          if (position >= 30 && position < 88) rope.shift(TensorView(row.data(), 1, 1, kShape.head_dim), -17);
          for (float& x : row) x = rounded_to(type(), x);
        }
      cache.change_keys(30, 88, rope.shift(-17));
      auto row = expected.begin();
      for (Index position = 10; position < kTokens; ++position)
        for (Index head = 0; head < kShape.kv_heads; ++head, ++row)
          for (Index d = 0; d < kShape.head_dim; ++d)
            ASSERT_EQ(stored(cache.view(), true, position, head, d), (*row)[static_cast<std::size_t>(d)])
                << position << ", " << head << ", " << d;
    });
  }
}

TEST_P(RopeInCaches, AShiftIsAsAccurateAsRopeShiftSays) {
  const KvNumbers numbers(kTokens, kShape, 332);
  const KvSource source(numbers);
  RopeOptions yarn = options();
  yarn.scaling = RopeScaling::yarn;
  yarn.factor = 8.0;
  yarn.original_positions = 4096;
  // Stored twice, each time with a relative error of u; sines, cosines and sums of f32 are rounded twice besides.
  const double u = type() == ElementType::f32 ? 0.0 : type() == ElementType::bf16 ? 0x1p-8 : 0x1p-11;
  const double least = type() == ElementType::f16 ? 0x1p-23 : 0.0;  // denormals
  double worst = 0.0;
  for (const RopeOptions& each : {options(), yarn}) {
    const Rope rope(each, 22000);
    for (const Index by : {-20000, -30, 1, 100000}) {
      std::vector<Index> positions;
      for (Index t = 0; t < kTokens; ++t) positions.push_back(20000 + 13 * t);
      ContiguousKvCache cache(shape(kTokens, type()));
      cache.append(source.k.const_view(), source.v.const_view(), rope.keys(positions));
      cache.change_keys(0, kTokens, rope.shift(by));
      const bool split = each.pairs == RopePairs::half_split;
      for (Index t = 0; t < kTokens; ++t)
        for (Index head = 0; head < kShape.kv_heads; ++head)
          for (Index i = 0; i < 24; ++i) {
            const Index a = split ? i : 2 * i, b = split ? i + 24 : 2 * i + 1;
            const double angle = static_cast<double>(positions[static_cast<std::size_t>(t)] + by) *
                                 rope.frequencies()[static_cast<std::size_t>(i)];
            const auto exact = std::complex<double>(numbers.k.at(t, head, a), numbers.k.at(t, head, b)) *
                               std::polar(rope.attention_factor(), angle);
            const double size = std::abs(exact);
            const double bound = size * (3.0 * u + 0x1p-22) + least;
            const double errors[] = {std::abs(stored(cache.view(), true, t, head, a) - exact.real()),
                                     std::abs(stored(cache.view(), true, t, head, b) - exact.imag())};
            for (const double error : errors) {
              ASSERT_LE(error, bound) << "by " << by << ", token " << t << ", pair " << i;
              worst = std::max(worst, error / bound);
            }
          }
    }
  }
  EXPECT_GT(worst, 0.3) << "a bound of any use";
}

TEST_P(RopeInCaches, WithoutItsMiddleAContextIsAFreshOne) {
  // What the rows differ by: that of the test above, and the fresh row's own rounding.
  const double u = type() == ElementType::f32 ? 0.0 : type() == ElementType::bf16 ? 0x1p-8 : 0x1p-11;
  const KvSource source(KvNumbers(kTokens, kShape, 333));
  const Rope rope(options(), kTokens);
  constexpr Index a = 20, b = 47;
  Random random(334);
  std::vector<float> q(4 * kShape.head_dim);
  for (float& x : q) x = 0.1f * random.normal();
  const ConstTensorView query(q.data(), 1, 4, kShape.head_dim);
  const GroupedQueryAttention<dynamic, dynamic, dynamic> attention;
  in_every_cache(type(), [&](auto& cache) {
    cache.append(source.k.const_view(), source.v.const_view(), rope.keys());
    cache.erase(a, b);
    cache.change_keys(a, cache.length(), rope.shift(a - b));
    ContiguousKvCache fresh(shape(kTokens, type()));
    fresh.append(source.k.const_view().slice(0, a), source.v.const_view().slice(0, a), rope.keys());
    fresh.append(source.k.const_view().slice(b, kTokens - b), source.v.const_view().slice(b, kTokens - b), rope.keys());
    const Index length = fresh.length();
    ASSERT_EQ(cache.length(), length);
    std::vector<float> out(4 * kShape.value_dim), expected(out.size());
    constexpr CausalWindow window{kTokens - (b - a) - 10};  // what the ring has, too
    attention(query, cache.view(), TensorView(out.data(), 1, 4, kShape.value_dim), window);
    attention(query, fresh.view(), TensorView(expected.data(), 1, 4, kShape.value_dim), window);
    double largest_key = 0.0, largest_value = 0.0, query_sum = 0.0;
    for (Index t = 0; t < kTokens; ++t)
      for (Index head = 0; head < kShape.kv_heads; ++head) {
        for (Index d = 0; d < kShape.head_dim; ++d)
          largest_key = std::max(largest_key, std::sqrt(2.0) * std::abs(double{source.k.at(t, head, d)}));
        for (Index d = 0; d < kShape.value_dim; ++d)
          largest_value = std::max(largest_value, std::abs(double{source.v.at(t, head, d)}));
      }
    for (Index head = 0; head < 4; ++head) {
      double sum = 0.0;
      for (Index d = 0; d < kShape.head_dim; ++d)
        sum += std::abs(double{q[static_cast<std::size_t>(head * kShape.head_dim + d)]});
      query_sum = std::max(query_sum, sum);
    }
    const double score_error = query_sum / 8.0 * largest_key * (4.0 * u + 0x1p-21);
    const double bound = (std::exp(2.0 * score_error) - 1.0) * largest_value + 0x1p-20 * largest_value;
    for (std::size_t i = 0; i < out.size(); ++i) EXPECT_NEAR(out[i], expected[i], bound);
    EXPECT_LT(bound, type() == ElementType::f32 ? 1e-4 : 0.3 * largest_value) << "a bound of any use";
    // Without the shift they are no neighbours.
    cache.change_keys(a, length, rope.shift(b - a));
    attention(query, cache.view(), TensorView(out.data(), 1, 4, kShape.value_dim), window);
    double most = 0.0;
    for (std::size_t i = 0; i < out.size(); ++i) most = std::max(most, std::abs(double{out[i]} - double{expected[i]}));
    EXPECT_GT(most, type() == ElementType::f32 ? bound : 0.01);
  });
}

INSTANTIATE_TEST_SUITE_P(All, RopeInCaches, rope_cases(), rope_case_name);

TEST(RopeInCache, AForksShiftLeavesTheOtherAlone) {
  const KvSource source(KvNumbers(kTokens, kShape, 335));
  const Rope rope({.dims = 64}, kTokens);
  PagedKvPool pool(pool_shape(16, ElementType::bf16));
  PagedSequence a = pool.sequence(), untouched = pool.sequence();
  for (PagedSequence* each : {&a, &untouched}) each->append(source.k.const_view(), source.v.const_view(), rope.keys());
  PagedSequence b = a.fork();
  b.erase(16, 40);
  b.change_keys(16, b.length(), rope.shift(16 - 40));
  EXPECT_TRUE(same_rows(a.view(), untouched.view()));
  EXPECT_EQ(b.pages()[0], a.pages()[0]);
  ContiguousKvCache alone(shape(kTokens, ElementType::bf16));
  alone.append(source.k.const_view(), source.v.const_view(), rope.keys());
  alone.erase(16, 40);
  alone.change_keys(16, alone.length(), rope.shift(16 - 40));
  EXPECT_TRUE(same_rows(b.view(), alone.view()));
}

TEST(RopeInCache, WrongShiftsAreNamedAndNothingChanges) {
  const KvSource source(KvNumbers(8, kDims, 336));
  ContiguousKvCache cache(config(8));
  source.append_to(cache, 0, 8);
  const Rope rope({.dims = 4}, 8), wide({.dims = 6}, 8);
  EXPECT_EQ(message_of<ArgumentError>([&] { static_cast<void>(rope.shift((Index{1} << 32) + 1)); }),
            "gqa: by is 4294967297; expected -2^32 to 2^32 positions");
  EXPECT_EQ(message_of<ArgumentError>([&] { cache.change_keys(2, 5, wide.shift(1)); }),
            "gqa: k.dim is 5; expected the rope's dims = 6 or more");
  EXPECT_TRUE(holds(cache.view(), source, 8));
}

}  // namespace
}  // namespace gqa::test
