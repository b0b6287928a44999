// SPDX-License-Identifier: Apache-2.0
// Against the definition in double precision: the error stays within a bound derived from the types (support/reference_check.hpp),
// over several input distributions and lengths from 0 to 10,000.
#include <gtest/gtest.h>

#include "support/problem.hpp"
#include "support/reference_check.hpp"

namespace gqa::test {
namespace {

constexpr Distribution kEveryDistribution[] = {Distribution::normal,       Distribution::sinks,
                                               Distribution::large_scores, Distribution::dominant_key,
                                               Distribution::equal_keys,   Distribution::denormal};

class Accuracy : public PerPathAndType {
 protected:
  template <class V = Causal>
  ErrorReport measure(const Problem& p, const Types& types, How how, const V& variant = {}) const {
    how.out = types.out;
    const Tensor q(p.q, types.q);
    const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
    return compare_with_reference(q.const_view(), kv.view(), how, variant, attend(q.const_view(), kv.view(), how, variant));
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
    return path() == Path::amx && type() != ElementType::bf16 && kUsualProducts == Products::bf16_terms;
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
  for (const Distribution distribution : {Distribution::normal, Distribution::sinks, Distribution::equal_keys})
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

// Equal values: whatever the weights, their mean is the value. The weights' errors cancel, and what stays are the roundings of the
// two sums.
TEST_P(Accuracy, EqualValuesComeOutToAFewRoundings) {
  Problem p = make_problem({4, 2, 64, 16, 4, 1600}, 179, Distribution::sinks);
  for (float& x : p.kv.v.values) x = 0.75f;
  const double tolerance = has_f32_arithmetic_only(path()) || by_terms() ? 1e-5 : 0x1p-7;
  for (const float x : solve(p, cache_of(type()), {path()}).out) ASSERT_NEAR(static_cast<double>(x), 0.75, tolerance);
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
