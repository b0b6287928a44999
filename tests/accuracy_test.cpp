// SPDX-License-Identifier: Apache-2.0
// Against the definition in double precision: the error stays within a bound derived from the types (support/reference_check.hpp),
// over several input distributions and lengths from 0 to 10,000.
#include <gtest/gtest.h>

#include "support/problem.hpp"
#include "support/reference_check.hpp"

namespace gqa::test {
namespace {

constexpr Distribution kEveryDistribution[] = {
    Distribution::normal,     Distribution::sinks,      Distribution::large_scores, Distribution::dominant_key,
    Distribution::equal_keys, Distribution::far_values, Distribution::denormal};

class Accuracy : public PerPathAndType {
 protected:
  template <class V = Causal>
  ErrorReport measure(const Problem& p, const Types& types, How how, const V& variant = {}) const {
    how.out = types.out;
    const Tensor q(p.q, types.q);
    const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
    return compare_with_reference(q.const_view(), kv.view(), how, variant,
                                  attend(q.const_view(), kv.view(), how, variant));
  }

  template <class V = Causal>
  void hold(const Problem& p, const Types& types, How how, const V& variant = {}) {
    const ErrorReport report = measure(p, types, how, variant);
    EXPECT_LE(report.largest_share_of_bound, 1.0)
        << on(path()) << "; " << types << "; " << p.shape << "; " << report.worst;
    EXPECT_LT(report.largest_eta, 0.5) << "the bound says nothing";
    largest_share_ = std::max(largest_share_, report.largest_share_of_bound);
  }

  /// True if calls here take numbers of the type as sums of two bf16 terms.
  bool by_terms() const {
    return path() == Path::amx && type() != ElementType::bf16 && usual_products() == Products::bf16_terms;
  }

  void TearDown() override { RecordProperty("largest_share_of_bound", std::to_string(largest_share_)); }
  double largest_share_ = 0.0;
};

TEST_P(Accuracy, EveryDistribution) {
  for (const Distribution distribution : kEveryDistribution)
    for (const auto& [n_q, n_kv] : {std::pair<Index, Index>{1, 2 * detail::kSpan + 60}, {9, 200}, {33, 33}})
      for (const Types& types : {cache_of(type()), all_of(type())}) {
        SCOPED_TRACE(distribution_name(distribution));
        How how{path()};
        // Of scores of 10,000, 2⁻¹⁶ is so much that no bound would say anything. Of 300 it is what one asks for.
        if (by_terms() && distribution == Distribution::large_scores) how.scale = 0.125f / 32.0f;
        hold(make_problem({4, 2, 64, 64, n_q, n_kv}, 171, distribution), types, how);
      }
}

TEST_P(Accuracy, EveryLengthFromNothingToTenThousand) {
  for (const Index n_kv : {0, 1, 2, 3, 15, 16, 17, 63, 64, 65, 511, 512, 513, 1600, 10000})
    hold(make_problem({4, 2, 40, 24, 1, n_kv}, 172, Distribution::sinks), cache_of(type()), {path()});
  hold(make_problem({2, 1, 128, 128, 3, 10000}, 173), all_of(type()), {path()});
}

TEST_P(Accuracy, EveryVariantOfTheLibrary) {
  for (const Distribution distribution : {Distribution::normal, Distribution::sinks}) {
    const Problem p = make_problem({4, 2, 64, 32, 12, detail::kSpan + 70}, 174, distribution);
    hold(p, cache_of(type()), {path()}, Full{});
    hold(p, cache_of(type()), {path()}, Causal{});
    hold(p, cache_of(type()), {path()}, CausalWindow{100});
  }
}

TEST_P(Accuracy, EveryScale) {
  for (const float scale : {0.0f, 1.0f, 0.0441f, -0.3f}) {
    How how{path()};
    how.scale = scale;
    hold(make_problem({2, 1, 32, 32, 5, 150}, 175), cache_of(type()), how);
  }
}

TEST_P(Accuracy, EveryPairOfQueryAndOutputTypes) {
  for (const ElementType q : kEveryType)
    for (const ElementType out : kEveryType)
      hold(make_problem({4, 2, 64, 64, 3, 200}, 176), {q, type(), type(), out}, {path()});
}

TEST_P(Accuracy, RoundedToBf16ProductsWhereTheCallerAcceptsIt) {
  How how{path()};
  how.products = Products::bf16;
  for (const Distribution distribution :
       {Distribution::normal, Distribution::sinks, Distribution::equal_keys, Distribution::far_values})
    hold(make_problem({4, 2, 64, 64, 5, detail::kSpan + 100}, 177, distribution), cache_of(type()), how);
}

// A row of one visible key is that key's value, whatever the score: nothing is added or multiplied that is not exact.
TEST_P(Accuracy, OneVisibleKeyIsExactlyItsValue) {
  const Problem p = make_problem({4, 2, 64, 64, 20, 300}, 178, Distribution::large_scores);
  const Types types = cache_of(type());
  const Result result = solve(p, types, {path()}, CausalWindow{1});
  for (Index token = 0; token < 20; ++token)
    for (Index head = 0; head < 4; ++head)
      for (Index d = 0; d < 64; ++d) {
        const float value = rounded_to(type(), p.kv.v.at(280 + token, head / 2, d));
        if (by_terms() && type() == ElementType::f32) {  // but for what two terms do not hold of a value
          ASSERT_NEAR(static_cast<double>(result.at(token, head, d) / value), 1.0, 0x1p-17) << on(path());
        } else {
          ASSERT_EQ(result.at(token, head, d), value) << on(path());
        }
      }
}

// Equal values: whatever the weights, their mean is the value. The weights' errors cancel, because outputs are divided by the sum of the
// weights that values were multiplied with, as they were rounded; what stays are the roundings of the two sums. Were they divided by the
// sum of the weights before rounding, bf16 products would be off by some 2⁻¹⁰, thirty times as much.
TEST_P(Accuracy, EqualValuesComeOutToTheRoundingsOfTwoSums) {
  for (const Index head_dim : {64, 40})
    for (const Index n_kv : {1, 2, 5, 63, 100, 512, 1600})
      for (const Index n_q : {Index{1}, std::min<Index>(n_kv, 23)}) {
        const Shape shape{4, 2, head_dim, 48, n_q, n_kv};
        Problem p = make_problem(shape, 179, Distribution::sinks);
        std::vector<float> value(48);
        Random random(180);
        for (float& x : value) x = rounded_to(ElementType::bf16, random.normal() + 2.0f);
        for (Index t = 0; t < n_kv; ++t)
          for (Index h = 0; h < 2; ++h)
            for (Index d = 0; d < 48; ++d) p.kv.v.at(t, h, d) = value[static_cast<std::size_t>(d)];
        // An addition a token; eight rescalings a span; three roundings a merge; the other sum's and the quotient's are fewer than 40.
        const double spans = std::ceil(static_cast<double>(n_kv) / static_cast<double>(detail::kSpan));
        const double tokens = static_cast<double>(std::min(n_kv, detail::kSpan));
        const double tolerance = (tokens + 16.0 + 6.0 * spans + 40.0) * 0x1p-24;
        const Result result = solve(p, cache_of(type()), {path()});
        for (Index token = 0; token < n_q; ++token)
          for (Index head = 0; head < 4; ++head)
            for (Index d = 0; d < 48; ++d) {
              const auto expected = static_cast<double>(value[static_cast<std::size_t>(d)]);
              ASSERT_NEAR(static_cast<double>(result.at(token, head, d)) / expected, 1.0, tolerance)
                  << on(path()) << "; " << shape << "; token " << token << ", head " << head << ", dim " << d;
            }
      }
}

// On the AMX path it is of those that values meet.
TEST_P(Accuracy, TheLogSumExpIsOfWeightsBeforeTheyAreRounded) {
  if (path() == Path::amx) GTEST_SKIP() << "it has the sum of the weights as values meet them";
  const Problem p = make_problem({4, 2, 64, 16, 20, 600}, 181);
  const Tensor q(p.q, type());
  const StoredCaches kv = store_cache(p.kv, type(), type(), {});
  const Result result = attend(q.const_view(), kv.view(), {path()}, Causal{});
  const ReferenceResult reference = reference_attention(q.const_view(), kv.view(), Causal{});
  for (std::size_t row = 0; row < result.lse.size(); ++row)  // scores of about 6 with 20 roundings, and 30 of the sum
    ASSERT_NEAR(static_cast<double>(result.lse[row]), reference.lse[static_cast<Index>(row)], 1e-5) << on(path());
}

// bf16 products take denormal bf16 numbers as zero; the f32 arithmetic takes them as they are.
TEST_P(Accuracy, DenormalsAreZeroForBf16ProductsAlone) {
  if (type() == ElementType::f16) GTEST_SKIP() << "f16 has no numbers of this size";
  constexpr float least_normal = 0x1p-126f;
  Problem p = make_problem({2, 1, 32, 32, 1, 1}, 182);
  for (Index d = 0; d < 32; ++d) p.kv.v.at(0, 0, d) = d % 2 == 0 ? least_normal : 0.5f * least_normal;
  const Result result = solve(p, cache_of(type()), {path()});
  const bool bf16_products = !has_f32_arithmetic_only(path()) && (type() == ElementType::bf16 || by_terms());
  for (Index head = 0; head < 2; ++head)
    for (Index d = 0; d < 32; ++d) {
      const float expected = d % 2 == 0 ? least_normal : bf16_products ? 0.0f : 0.5f * least_normal;
      ASSERT_EQ(result.at(0, head, d), expected) << on(path()) << "; dim " << d;
    }
}

// The bound is worth something: for ordinary inputs it is of the size that the types make one expect.
TEST_P(Accuracy, TheBoundIsNotLoose) {
  const Problem p = make_problem({4, 2, 64, 64, 3, 600}, 180);
  const ErrorReport f32_out = measure(p, cache_of(type()), {path()});
  const bool bf16_products = !has_f32_arithmetic_only(path()) && type() == ElementType::bf16;
  EXPECT_LT(f32_out.largest_bound, bf16_products ? 0.03 : by_terms() ? 4e-4 : 1e-4) << on(path());
  EXPECT_GT(f32_out.largest_share_of_bound, 1e-4) << on(path());
  if (by_terms()) {
    EXPECT_LT(f32_out.largest_error, 1e-5) << "one of three products left out would show as 1e-4";
  }
  RecordProperty("largest_error", std::to_string(f32_out.largest_error));
}

INSTANTIATE_TEST_SUITE_P(EveryPath, Accuracy, Accuracy::cases(), Accuracy::name);

}  // namespace
}  // namespace gqa::test
