// SPDX-License-Identifier: Apache-2.0
// The reference itself, against numbers worked out by hand and loops written with nothing but the standard library.
#include "gqa/reference.hpp"

#include <gtest/gtest.h>

#include "support/caches.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

// Two keys whose scores differ by ln 3: weights 1/4 and 3/4.
TEST(Reference, WeighsByTheExponentialOfTheScore) {
  const float q[] = {1.0f, 0.0f};
  const float log3 = std::log(3.0f);
  const float k[] = {0.0f, 5.0f, log3, -7.0f};
  const float v[] = {4.0f, 8.0f, 0.0f, -8.0f};
  const KvCacheView kv = KvCacheView::contiguous(k, v, {2, 1, 2});
  const ReferenceResult r = reference_attention(ConstTensorView(q, 1, 1, 2), kv, Full{}, 1.0);
  EXPECT_NEAR(r.out(0, 0), 1.0, 1e-7);
  EXPECT_NEAR(r.out(0, 1), -4.0, 1e-6);
  EXPECT_NEAR(r.lse[0], std::log(4.0), 1e-7);
}

TEST(Reference, ScalesByTheRootOfTheHeadDimUnlessTold) {
  const float q[] = {2.0f, 2.0f, 2.0f, 2.0f};
  const float k[] = {1.0f, 1.0f, 1.0f, 1.0f};
  const float v[] = {3.0f};
  const KvCacheView kv = KvCacheView::contiguous(k, v, {1, 1, 4, 1});
  const ConstTensorView query(q, 1, 1, 4);
  EXPECT_DOUBLE_EQ(reference_attention(query, kv).lse[0], 4.0);  // 8 / √4
  EXPECT_DOUBLE_EQ(reference_attention(query, kv, Causal{}, 0.5).lse[0], 4.0);
  EXPECT_DOUBLE_EQ(reference_attention(query, kv, Causal{}, -1.0).lse[0], -8.0);
  EXPECT_DOUBLE_EQ(reference_attention(query, kv).out(0, 0), 3.0);
}

// Values 1, 2, 4, … and equal keys: a row's output tells which tokens it averaged.
class Visibility : public testing::Test {
 protected:
  std::vector<float> q_ = std::vector<float>(3 * 2, 0.0f);
  std::vector<float> k_ = std::vector<float>(5, 1.0f);
  std::vector<float> v_ = {1, 2, 4, 8, 16};
  KvCacheView kv_ = KvCacheView::contiguous(k_.data(), v_.data(), {5, 1, 1});
  ConstTensorView query_{q_.data(), 3, 2, 1};
};

TEST_F(Visibility, CausalIsAlignedWithTheEndOfTheCache) {
  const ReferenceResult r = reference_attention(query_, kv_);
  ASSERT_EQ(r.out.rows(), 6);
  for (Index head = 0; head < 2; ++head) {
    EXPECT_DOUBLE_EQ(r.out(0 * 2 + head, 0), 7.0 / 3.0);
    EXPECT_DOUBLE_EQ(r.out(1 * 2 + head, 0), 15.0 / 4.0);
    EXPECT_DOUBLE_EQ(r.out(2 * 2 + head, 0), 31.0 / 5.0);
    EXPECT_DOUBLE_EQ(r.lse[2 * 2 + head], std::log(5.0));
  }
}

TEST_F(Visibility, PositionsWindowsAndMasksAreHonoured) {
  const std::vector<Index> positions = {0, 4, 2};
  const ReferenceResult causal = reference_attention(query_, kv_, Causal{}, 1.0, positions);
  EXPECT_DOUBLE_EQ(causal.out(0, 0), 1.0);
  EXPECT_DOUBLE_EQ(causal.out(2, 0), 31.0 / 5.0);
  EXPECT_DOUBLE_EQ(causal.out(4, 0), 7.0 / 3.0);
  const ReferenceResult window = reference_attention(query_, kv_, CausalWindow{2}, 1.0, positions);
  EXPECT_DOUBLE_EQ(window.out(0, 0), 1.0);
  EXPECT_DOUBLE_EQ(window.out(2, 0), 12.0);
  EXPECT_DOUBLE_EQ(window.out(4, 0), 3.0);
  const ReferenceResult full = reference_attention(query_, kv_, Full{}, 1.0, positions);
  for (Index row = 0; row < 6; ++row) EXPECT_DOUBLE_EQ(full.out(row, 0), 31.0 / 5.0);
  const ReferenceResult sinks = reference_attention(query_, kv_, SinksAndWindow{1, 2}, 1.0, positions);
  EXPECT_DOUBLE_EQ(sinks.out(2, 0), (1.0 + 8.0 + 16.0) / 3.0);
}

TEST_F(Visibility, ARowThatSeesNothingIsZeroAndMinusInfinity) {
  v_[0] = NAN;
  k_[0] = NAN;
  const ReferenceResult r = reference_attention(query_, kv_, StrictlyBeforeOdd{}, 1.0, std::vector<Index>{0, 2, 4});
  EXPECT_EQ(r.out.cwiseAbs().maxCoeff(), 0.0);
  for (Index row = 0; row < 6; ++row) EXPECT_EQ(r.lse[row], -INFINITY);
  kv_.length = 0;
  EXPECT_EQ(reference_attention(query_, kv_).lse[0], -INFINITY);
}

TEST_F(Visibility, ANaNThatIsSeenShows) {
  v_[3] = NAN;
  const ReferenceResult r = reference_attention(query_, kv_);
  EXPECT_FALSE(std::isnan(r.out(0, 0)));
  EXPECT_TRUE(std::isnan(r.out(2, 0)));
  EXPECT_FALSE(std::isnan(r.lse[2]));
  k_[3] = NAN;
  EXPECT_TRUE(std::isnan(reference_attention(query_, kv_).lse[2]));
}

/// 2·score as a float functor and as a generic one.
struct Doubled : Causal {
  float score(float s, Index, Index, Index) const { return 2.0f * s; }
};
struct GenericDoubled : Causal {
  template <class T>
  T score(T s, Index, Index, Index) const {
    return T{2} * s;
  }
};

TEST(Reference, ScoreFunctorsAreApplied) {
  const float q[] = {0.1f};
  const float k[] = {0.3f, 0.7f};
  const float v[] = {1.0f, 5.0f};
  const KvCacheView kv = KvCacheView::contiguous(k, v, {2, 1, 1});
  const ConstTensorView query(q, 1, 1, 1);
  const double doubled = reference_attention(query, kv, Causal{}, 2.0).lse[0];
  EXPECT_NEAR(reference_attention(query, kv, Doubled{}, 1.0).lse[0], doubled, 1e-7);
  EXPECT_DOUBLE_EQ(reference_attention(query, kv, GenericDoubled{}, 1.0).lse[0], doubled);
}

// The whole, with groups, strides, types and storages, against plain loops.
TEST(Reference, IsThePlainLoopForEveryStorageAndType) {
  const Index length = 40, heads = 4, kv_heads = 2, dim = 5, value_dim = 3, queries = 6;
  Random random(181);
  Numbers q(queries, heads, dim);
  LogicalCache cache{Numbers(length, kv_heads, dim), Numbers(length, kv_heads, value_dim)};
  for (float& x : q.values) x = random.normal();
  for (float& x : cache.k.values) x = random.normal();
  for (float& x : cache.v.values) x = random.normal();
  for (const ElementType type : {ElementType::f32, ElementType::bf16, ElementType::f16})
    for (const Place& place : {contiguous_place(CacheLayout::interleaved), paged_place(7, CacheLayout::reversed),
                               ring_place(20, CacheLayout::head_major)}) {
      const Tensor query(q, type, TensorLayout::dim_major);
      const StoredCaches kv = store_cache(cache, type, place);
      const ReferenceResult r = reference_attention(query.const_view(), kv.view(), CausalWindow{10});
      for (Index i = 0; i < queries; ++i)
        for (Index h = 0; h < heads; ++h) {
          const Index position = length - queries + i;
          double sum = 0.0;
          std::vector<double> out(static_cast<std::size_t>(value_dim), 0.0);
          for (Index t = position - 9; t <= position; ++t) {
            double score = 0.0;
            for (Index d = 0; d < dim; ++d)
              score += static_cast<double>(rounded_to(type, q.at(i, h, d))) *
                       static_cast<double>(rounded_to(type, cache.k.at(t, h / 2, d)));
            const double weight = std::exp(score / std::sqrt(5.0));
            sum += weight;
            for (Index d = 0; d < value_dim; ++d)
              out[static_cast<std::size_t>(d)] += weight * static_cast<double>(rounded_to(type, cache.v.at(t, h / 2, d)));
          }
          for (Index d = 0; d < value_dim; ++d)
            ASSERT_NEAR(r.out(i * heads + h, d), out[static_cast<std::size_t>(d)] / sum, 1e-13) << place.name();
          ASSERT_NEAR(r.lse[i * heads + h], std::log(sum), 1e-13);
        }
    }
}

}  // namespace
}  // namespace gqa::test
