// SPDX-License-Identifier: Apache-2.0
// How far gradients may be from those by definition, derived from types, for each element.
//
// u = 2⁻²⁴ is a rounding of f32, b = 2⁻⁸ one to bf16. Of a query row and a token that it sees, in double precision: x = scale · q·k, s the
// score, f′ its slope, p the weight, g the gradient of the row's output times what the variant multiplies that by, dP = g·v, δ = Σ d_out ∘ out,
// ds = p (dP − δ), dx = ds f′. A sum of n terms by multiply-adds is off by n u of the sum of its terms' magnitudes. So
//
//   x     e_x  = (D + 4) u scale Σ|q||k|                      scaled; and b of it for each operand that is rounded to bf16
//   s     e_s  = |f′|ₘₐₓ e_x + roundings u magnitude           ScoreErrors says these of an expression
//   p     e_p  = p ρ,  ρ = exp(e_s + |lse given − lse| + 4 u (|s| + |lse|) + 16 u) − 1
//                                                             scores and lse in units of log2, their difference, and exp2, which is off by few u
//   dP    e_dP = ((Dv + 4) u + e_g + e_v) Σ|g||v|             e_g: 16 u for a gate's sigmoid and a factor; b where rounded to bf16
//   δ     e_δ  = Σ|d_out||out given − out| + (Dv + 8) u Σ|d_out||out given|
//   ds    e_ds = (p + e_p) (e_dP + e_δ + 2 u (|dP| + |δ|)) + (e_p + 2 u p) |dP − δ|
//   dx    e_dx = e_ds |f′| + |ds| (curvature e_x + slope_roundings u) + 2 u |dx|, and b |dx| where it is rounded to bf16
//   d_v   Σ (e_p + b p) |g| + p |g| e_g,   d_q   scale Σ e_dx |k| + |dx| |k| e_k,   d_k   scale Σ e_dx |q| + |dx| |q| e_q
//                                                             and as many u of the sums of magnitudes as there are terms, and 8 more
//   d_sink   share (ρ |δ| + e_δ) + 2 u |share δ|,   share = exp(sink − lse)
//
// "Given" is what the backward call was: its lse and outputs are the forward call's, whose own accuracy other tests hold. Products of two
// errors are less than a tenth of the errors where these are below 2⁻⁵. Weights below 2⁻¹²⁵ and denormal terms may be zero: 2⁻¹²⁰ each.
#pragma once

#include <algorithm>
#include <cmath>

#include "backward_call.hpp"
#include "gqa/reference_backward.hpp"

namespace gqa::test {

/// Of a variant's change of scores, see above.
struct ScoreErrors {
  double largest_slope = 1.0;
  double curvature = 0.0;  ///< the largest second derivative, by the score or by it and a lookup
  double roundings = 0.0;
  double magnitude = 0.0;
  double slope_roundings = 0.0;  ///< times u: error of a slope
};

template <class V>
bool sink_in_lse(const V& variant) {
  if constexpr (detail::SaysSinkInLse<V>) return variant.sink_in_lse();
  return true;
}

class GradientBound {
 public:
  /// `reference_kv`: f32 rows that the call's cache stands for, or the cache itself.
  template <class V>
  GradientBound(const BackwardInputs& in, const KvCacheView& reference_kv, Output& given, const BackwardHow& how,
                const V& variant, const ScoreErrors& errors = {})
      : group_(in.q.heads / in.kv.kv_heads), heads_(in.q.heads) {
    // The default is a rounded number, the same for both.
    const float scale = how.scale.value_or(detail::default_scale(in.q.dim));
    const bool products_of_bf16 =
        detail::path_arithmetic(how.path) != detail::Arithmetic::f32 &&
        (how.products == Products::bf16 ||
         (in.q.type == ElementType::bf16 && in.d_out.type == ElementType::bf16 && detail::is_bf16(in.kv)));
    expected_ = reference_backward(in.q, reference_kv, in.d_out, variant, static_cast<double>(scale), in.positions);
    bound_ = zeros(expected_);
    magnitude_ = zeros(expected_);
    b_ = products_of_bf16 ? 0x1p-8 : 0.0;
    const auto rounded = [&](bool stored_as_bf16) { return stored_as_bf16 ? 0.0 : b_; };
    errors_ = errors;
    scale_ = std::abs(static_cast<double>(scale));
    e_q_ = rounded(in.q.type == ElementType::bf16);
    e_k_ = rounded(detail::is_bf16(in.kv));
    e_g_ = rounded(in.d_out.type == ElementType::bf16 && !OutputVariant<V>) + (OutputVariant<V> ? 16.0 * u : 0.0);
    detail::for_each_reference_row(
        in.q, reference_kv, variant, static_cast<double>(scale), in.positions, 0,
        [&](const detail::ReferenceRow& row) { add(in, reference_kv, given, variant, row); });
    const auto columns = static_cast<double>(in.kv.length) / 256.0 + 2.0;
    const auto rows = static_cast<double>(in.q.tokens * group_);
    bound_.d_q += (static_cast<double>(in.kv.length) + columns + 8.0) * u * magnitude_.d_q;
    bound_.d_k += (rows + 8.0) * u * magnitude_.d_k;
    bound_.d_v += (rows + 8.0) * u * magnitude_.d_v;
    for (auto* all : {&bound_.d_q, &bound_.d_k, &bound_.d_v}) *all *= 1.1;
    for (auto& lookups : bound_.d_lookups) lookups *= 1.1;
    bound_.d_sink *= 1.1;
  }

  const ReferenceGradients& expected() const { return expected_; }
  const ReferenceGradients& bound() const { return bound_; }

  /// A bound that is not small says nothing: each is below a share of the largest sum of terms' magnitudes, or of 1.
  testing::AssertionResult is_small() const {
    const double share = b_ > 0.0 ? 0.5 : 0x1p-8;
    const auto small = [&](const Eigen::MatrixXd& bound, const Eigen::MatrixXd& magnitude) {
      return bound.size() == 0 || bound.maxCoeff() <= share * std::max(1.0, magnitude.maxCoeff());
    };
    if (small(bound_.d_q, magnitude_.d_q) && small(bound_.d_k, magnitude_.d_k) && small(bound_.d_v, magnitude_.d_v))
      return testing::AssertionSuccess();
    return testing::AssertionFailure() << "the bounds say little: up to " << bound_.d_q.maxCoeff() << ", "
                                       << bound_.d_k.maxCoeff() << " and " << bound_.d_v.maxCoeff();
  }
  /// Every element is within its bound.
  testing::AssertionResult holds(const Gradients& actual) const {
    for (const auto& result :
         {within("d_q", expected_.d_q, bound_.d_q, actual.d_q), within("d_k", expected_.d_k, bound_.d_k, actual.d_k),
          within("d_v", expected_.d_v, bound_.d_v, actual.d_v)})
      if (!result) return result;
    for (Index i = 0; i < static_cast<Index>(actual.d_sink.size()); ++i) {
      const auto x = static_cast<double>(actual.d_sink[static_cast<std::size_t>(i)]);
      if (!(std::abs(x - expected_.d_sink[i]) <= bound_.d_sink[i]))
        return testing::AssertionFailure() << "d_sink[" << i << "] is " << x << ", should be " << expected_.d_sink[i]
                                           << " within " << bound_.d_sink[i];
    }
    return testing::AssertionSuccess();
  }
  /// The gradient by a lookup: element(i, h, t) says where a pair's is, `initial` what all elements were before.
  template <class Element>
  testing::AssertionResult lookups_hold(int lookup, const std::vector<float>& actual, float initial,
                                        const Element& element) const {
    const auto number = static_cast<std::size_t>(lookup);
    const Eigen::MatrixXd& expected = expected_.d_lookups[number];
    std::vector<double> sum(actual.size(), static_cast<double>(initial)), bound(actual.size(), 0.0);
    std::vector<double> size(actual.size(), std::abs(static_cast<double>(initial))), terms(actual.size(), 1.0);
    for (Index row = 0; row < expected.rows(); ++row)
      for (Index t = 0; t < expected.cols(); ++t) {
        const double by = bound_.d_lookups[number](row, t);
        if (by <= 0.0) continue;  // not visible
        const auto at = static_cast<std::size_t>(element(row / heads_, row % heads_, t));
        sum[at] += expected(row, t);
        bound[at] += by;
        size[at] += std::abs(expected(row, t)) + by;
        terms[at] += 1.0;
      }
    for (std::size_t i = 0; i < actual.size(); ++i)
      if (!(std::abs(static_cast<double>(actual[i]) - sum[i]) <= bound[i] + terms[i] * u * size[i]))
        return testing::AssertionFailure()
               << "element " << i << " of lookup " << lookup << " is " << actual[i] << ", should be " << sum[i]
               << " within " << bound[i] + terms[i] * u * size[i];
    return testing::AssertionSuccess();
  }

 private:
  static constexpr double u = 0x1p-24;
  static constexpr double kNothing = 0x1p-120;

  static ReferenceGradients zeros(ReferenceGradients like) {
    for (auto* all : {&like.d_q, &like.d_k, &like.d_v}) all->setZero();
    for (auto& lookups : like.d_lookups) lookups.setZero();
    like.d_sink.setZero();
    return like;
  }

  template <class V>
  void add(const BackwardInputs& in, const KvCacheView& kv, Output& given, const V& variant,
           const detail::ReferenceRow& row) {
    if (!row.attends) return;
    const Index token = row.context.query, head = row.context.query_head;
    const Index i = token * heads_ + head, kv_head = head / group_;
    const auto dim = static_cast<double>(in.q.dim), value_dim = static_cast<double>(in.kv.value_dim);
    const double total = row.total();
    const Eigen::VectorXd p = row.weight / total;
    Eigen::VectorXd out = row.values * p;
    detail::reference_change_output(variant, row.context, out);
    const Index first = token * in.d_out.strides.token + head * in.d_out.strides.head;
    const Eigen::VectorXd d_out =
        detail::reference_row(in.d_out.data, in.d_out.type, first, in.kv.value_dim, in.d_out.strides.dim);
    Eigen::VectorXd g = d_out;
    detail::reference_change_output(variant, row.context, g);
    const Eigen::VectorXd g_size = g.cwiseAbs();
    double delta = 0.0, e_delta = 0.0;
    for (Index d = 0; d < out.size(); ++d) {
      const auto o = static_cast<double>(given.tensor().at(token, head, d));
      delta += d_out[d] * out[d];
      e_delta += std::abs(d_out[d]) * (std::abs(o - out[d]) + (value_dim + 8.0) * u * std::abs(o));
    }
    double e_lse = 0.0, lse = row.max + std::log(total);
    {
      double stored = lse;
      if constexpr (SinkVariant<V>) {
        if (!sink_in_lse(variant)) {
          stored = row.max + std::log(row.weight.sum());
          e_lse = 8.0 * u * (1.0 + std::abs(lse));
        }
      }
      e_lse += std::abs(static_cast<double>(given.lse()[static_cast<std::size_t>(i)]) - stored);
      const double common = e_lse + 4.0 * u * (std::abs(row.sink) + std::abs(lse)) + 16.0 * u;
      const double share = row.of_sink / total;
      if (share > 0.0)
        bound_.d_sink[i] =
            share * (std::expm1(common) * std::abs(delta) + e_delta + 2.0 * u * std::abs(delta)) + kNothing;
    }
    const Eigen::VectorXd q = row.query.cwiseAbs();
    for (Index c = 0; c < p.size(); ++c) {
      const Index t = row.visible[static_cast<std::size_t>(c)];
      const Index at = (t - kv.first_position()) * kv.kv_heads + kv_head;
      const Eigen::VectorXd k = detail::reference_key(kv, t, kv_head).cwiseAbs();
      const Eigen::VectorXd v = row.values.col(c);
      const double slope =
          p[c] > 0.0 ? std::abs(detail::reference_slope(variant, row.product[c], row.context, t)) : 0.0;
      const double e_x = ((dim + 4.0) * u + e_q_ + e_k_) * scale_ * q.dot(k) + kNothing;
      const double e_s = errors_.largest_slope * e_x + errors_.roundings * u * errors_.magnitude;
      const double size = p[c] > 0.0 ? std::abs(row.score[c]) + std::abs(lse) : 0.0;
      const double e_p = p[c] * std::expm1(e_s + e_lse + 4.0 * u * size + 16.0 * u) + kNothing;
      const double d_p = g.dot(v);
      const double e_d_p = ((value_dim + 4.0) * u + e_g_ + e_k_) * g_size.dot(v.cwiseAbs()) + kNothing;
      const double away = std::abs(d_p - delta);
      const double e_ds = (p[c] + e_p) * (e_d_p + e_delta + 2.0 * u * (std::abs(d_p) + std::abs(delta))) +
                          (e_p + 2.0 * u * p[c]) * away;
      const double e_slope = errors_.curvature * e_x + errors_.slope_roundings * u;
      const double dx = p[c] * away * slope;
      const double e_dx = e_ds * slope + (p[c] * away + e_ds) * e_slope + (2.0 * u + b_) * dx + kNothing;
      bound_.d_v.row(at) += ((e_p + b_ * p[c] + p[c] * e_g_) * g_size).transpose();
      magnitude_.d_v.row(at) += (p[c] * g_size).transpose();
      bound_.d_q.row(i) += (scale_ * (e_dx + dx * e_k_) * k).transpose();
      magnitude_.d_q.row(i) += (scale_ * dx * k).transpose();
      bound_.d_k.row(at) += (scale_ * (e_dx + dx * e_q_) * q).transpose();
      magnitude_.d_k.row(at) += (scale_ * dx * q).transpose();
      for (std::size_t l = 0; l < bound_.d_lookups.size(); ++l) {
        const double by_lookup = std::abs(expected_.d_lookups[l](i, t));
        bound_.d_lookups[l](i, t) = e_ds * errors_.largest_slope + (p[c] * away + e_ds) * e_slope + 2.0 * u * by_lookup;
      }
    }
  }

  static testing::AssertionResult within(const char* what, const Eigen::MatrixXd& expected,
                                         const Eigen::MatrixXd& bound, const Numbers& actual) {
    if (expected.rows() != actual.tokens * actual.heads || expected.cols() != actual.dim)
      return testing::AssertionFailure() << what << " has another shape";
    for (Index t = 0; t < actual.tokens; ++t)
      for (Index h = 0; h < actual.heads; ++h)
        for (Index d = 0; d < actual.dim; ++d) {
          const Index row = t * actual.heads + h;
          const auto x = static_cast<double>(actual.at(t, h, d));
          if (!(std::abs(x - expected(row, d)) <= bound(row, d)))
            return testing::AssertionFailure()
                   << what << " of token " << t << ", head " << h << ", dim " << d << " is " << x << ", should be "
                   << expected(row, d) << " within " << bound(row, d);
        }
    return testing::AssertionSuccess();
  }

  Index group_, heads_;
  ReferenceGradients expected_{}, bound_{}, magnitude_{};
  ScoreErrors errors_{};
  double b_ = 0.0, scale_ = 1.0, e_q_ = 0.0, e_k_ = 0.0, e_g_ = 0.0;
};

/// Forward and backward, held to the definition.
template <class V = Causal>
testing::AssertionResult gradients_are_right(const BackwardInputs& in, const BackwardHow& how, const V& variant = {},
                                             const ScoreErrors& errors = {}) {
  Output given = run_forward(in, how, variant);
  const Gradients actual = run_backward(in, given, how, variant);
  return GradientBound(in, in.kv, given, how, variant, errors).holds(actual);
}

}  // namespace gqa::test
