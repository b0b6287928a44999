// SPDX-License-Identifier: Apache-2.0
// Holds a result against the definition in double precision, within a bound that follows from the types.
//
// Where the bound comes from. u = 2⁻²⁴ is half a unit in the last place of f32; γ(n) = n·u / (1 − n·u) bounds n roundings.
//
// Scores, in units of log2:  σ_t = c·q·k_t  with  c = scale · log2 e.
//   Roundings on the way of each product: 4 in c (square root, quotient, log2 e, product), 1 in c·q_i, one per fused addition in
//   its lane, ⌈D/16⌉, and 4 in the tree over 16 lanes. Hence |σ̂_t − σ_t| ≤ e_t = γ(⌈D/16⌉ + 9) · c · Σ_i |q_i·k_ti|.
//   bf16 products are exact in f32. vdpbf16ps adds two of them to each of 16 lanes; a tile product adds chains of 16 and then one
//   sum a chunk of 32 dims: at most ⌈D/16⌉ + 26 roundings with those of the scale.
//   Sums of two bf16 terms leave a share of each product out (left_out). What is added is one product more for each term beyond the
//   first, 1.02 times as large in all as |q_i·k_ti|: three additions a chunk instead of one.
//   A score functor works in float on natural units: 4 more roundings of |s| · log2 e, its argument's error taken as it comes (the
//   functors in these tests have slopes of at most 2).
//
// Weights:  p_t = 2^(σ_t − m).
//   The rounding of σ̂_t − m̂, and of each m_old − m_new by which the weight is scaled later, adds u times a part of m − σ_t; the
//   parts add up to m − σ_t. Each of the 1 + R exponentials is off by ε (2⁻²² here; the polynomial promises 2⁻²²·⁴), each of the
//   R rescalings rounds once. R ≤ blocks in a span + spans + 1, merges of super-spans among them: a span's state goes through at most 64 of its
//   own super-span and one for each super-span. So the weight is off by a factor within 1 ± δ_t,
//       δ_t = 2^(e_t + u·(m − σ_t) + …) · (1 + ε + u)^(1 + R) − 1.
//   What underflows (2^x for x < −126 is 0) is less than 2⁻¹²⁶ of the largest weight.
//   Paths with bf16 products round p_t to bf16 once, half a unit being 2⁻⁸, after an exponential that is good to 2⁻¹¹. Two terms hold it
//   to 2⁻¹⁷ and, as what is denormal is zero, 2⁻¹²⁶ of the largest weight. So p̂_t = p_t·(1 + a_t), |a_t| ≤ δ_t, and the sum of weights
//   that outputs are divided by has the same p̂_t as the sum of values: what is rounded, is rounded in both.
//
// Sums: a term of Σ p_t·v_t goes through at most min(n, span) fused additions, one rescaling a block and three roundings in each
//   merge of spans: γ(N_o). The sum of weights has 16 short lanes: γ(N_l). With two terms it goes through one product of 16 fused and
//   one plain addition, and three sums for each half block that follows; the sum of weights through two for each. Products of both
//   lose what left_out says.
//
// Output: o = Σ w_t·v_t with w_t = p_t / Σ p. With g_t and h_t for the roundings of the two sums,
//       ô = Σ w_t·(1 + a_t)·(1 + g_t)·v_t / Σ w_t·(1 + a_t)·(1 + h_t),   |g_t| ≤ γ(N_o), |h_t| ≤ γ(N_l), and as Σ w_t·(v_t − o) = 0:
//       |ô − o| ≤ Σ w_t·(δ_t·|v_t − o| + (1 + δ_t)·(γ(N_o)·|v_t| + γ(N_l)·|o|)) / (1 − η) + 3u·|o| + the output type's rounding,
//       η = Σ w_t·δ_t + γ(N_l).
//   A weight's error counts by its value's distance from the output: values that are all alike come out to the roundings of two sums.
//   A sink is a token whose value is zero; where it is left out of the log-sum-exp, weights of the output and weights of lse differ.
//   Integers (How::integers): a query's elements are off by half a step of largest|q_i| / most each, which counts by Σ|k_ti|; a weight times its
//   value's scale s_t by half a step of the block's largest, which counts by |v_t / s_t|, and is 0 where that is below 2⁻¹⁰⁰. Exact sums, and six roundings of scales and products.
//   A factor f of the output multiplies error and all; f itself is off by 2 roundings and an exponential, the product by one more.
// Rotations (views whose keys or values are rotated): q is H·q/√b here, and what a block's transform adds up goes through log2 b sums, the norm
//   and the product with it: an element is off by r = γ(log2 b + 2)·Σ_block |x|/√b, and a product q·k_t by Σ_i r_i·|k_ti|. Where products are
//   bf16 the rotated query is rounded to that, where they are of terms it is a sum of them. Outputs are bounded as they are before they are turned
//   back; then an element is off by Σ_block of its block's bounds over √b, and by r.
//   lse = ln Σ exp(s_t) is off by at most −ln(1 − η) and its own rounding; on Path::avx512bf16 and Path::neon_bf16 it has the weights before they are rounded.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "gqa/reference.hpp"
#include "integer_model.hpp"
#include "problem.hpp"

namespace gqa::test {

/// How far results were from the reference.
struct ErrorReport {
  double largest_error = 0.0;           ///< of any output element
  double largest_share_of_bound = 0.0;  ///< error / bound; a result is right if this is at most 1
  double largest_bound = 0.0;
  double largest_eta = 0.0;  ///< the relative error of a row's sum of weights; a bound with η near 1 says nothing
  std::string worst;
};

/// As how many bf16 numbers the call takes an input: 0 stands for the f32 arithmetic.
inline int bf16_terms(const ConstTensorView& q, const KvCacheView& kv, const How& how) {
  if (has_f32_arithmetic_only(how.path)) return 0;
  if (q.type == ElementType::bf16 && kv.k_type == ElementType::bf16 && kv.v_type == ElementType::bf16) return 1;
  if (how.products == Products::bf16) return 1;
  return how.products == Products::bf16_terms && how.path == Path::amx ? 2 : 0;
}

/// The share of a product of two sums of terms that is left out. x = x₁ + x₂ + a, and as x₁ is the nearest bf16 and x₂ the one nearest
/// to the rest, |x₂| ≤ 2⁻⁸ |x| and |a| ≤ 2⁻¹⁷ |x|. x·y less x₁·y₁ + x₁·y₂ + x₂·y₁ is x₂·y₂ + a·y + x·b − a·b. A bf16 has x₂ = a = 0,
/// an f16 a = 0.
inline double left_out(ElementType x, ElementType y) {
  const auto second = [](ElementType type) { return type == ElementType::bf16 ? 0.0 : 0x1p-8; };
  const auto rest = [](ElementType type) { return type == ElementType::f32 ? 0x1p-17 : 0.0; };
  return second(x) * second(y) + rest(x) + rest(y) + rest(x) * rest(y);
}

/// What each output element is multiplied by at the end, if the variant that was called has such a part and `variant`, here, has none.
using OutputChange = std::function<double(Index token, Index head, Index d)>;

/// For each element what its block adds up to, over √block: what a rotation makes of errors at most. 0: elements as they are.
inline Eigen::VectorXd spread_by_rotation(const Eigen::VectorXd& x, Index block) {
  if (block == 0) return x;
  Eigen::VectorXd spread(x.size());
  for (Index i = 0; i < x.size(); i += block)
    spread.segment(i, block).setConstant(x.segment(i, block).sum() / std::sqrt(static_cast<double>(block)));
  return spread;
}

template <class V>
ErrorReport compare_with_reference(const ConstTensorView& q, const KvCacheView& kv, const How& how, const V& variant,
                                   const Result& result, std::span<const Index> positions = {},
                                   const OutputChange& change = nullptr) {
  constexpr double u = 0x1p-24;
  constexpr double ln2 = 0.693147180559945309417;
  const auto gamma = [](double n) { return n * u / (1.0 - n * u); };
  const std::optional<double> scale = how.scale.has_value() ? std::optional<double>(*how.scale) : std::nullopt;
  const ReferenceResult reference = reference_attention(q, kv, variant, scale, positions);

  const int terms = bf16_terms(q, kv, how);
  const bool inputs_rounded = terms == 1 && how.products == Products::bf16;
  const double factor = scale.value_or(1.0 / std::sqrt(static_cast<double>(q.dim))) / ln2;
  const double dim = static_cast<double>(q.dim);
  const double spans = std::ceil(static_cast<double>(kv.length) / static_cast<double>(detail::kSpan)) + 1.0;
  const double blocks = static_cast<double>(detail::kSpan / detail::kBlock);
  const double rescalings = blocks + spans;
  const double exponential = 0x1p-22;
  const double weight_rounding = terms == 1 ? 0x1p-8 + 0x1p-11 : terms == 2 ? 0x1p-17 : 0.0;
  // bf16 products of NEON: two chains of dim / 4 sums each, rounded to odd, which is off by two roundings to nearest.
  const bool to_odd = terms == 1 && how.path == Path::neon_bf16;
  const double score_roundings = to_odd       ? std::ceil(dim / 8.0) * 4.0 + 26.0
                                 : terms == 2 ? 1.02 * (3.0 * std::ceil(dim / 32.0) + 24.0)
                                 : terms == 1 ? std::ceil(dim / 16.0) + 26.0
                                              : std::ceil(dim / 16.0) + 9.0;
  const double input_rounding = inputs_rounded ? 0x1p-8 : 0.0;
  const ElementType query_type = kv.k_rotation > 1 ? ElementType::f32 : q.type;
  const double lost_of_score =
      terms == 2 ? left_out(query_type, kv.k_type) : 2.0 * input_rounding * (1.0 + input_rounding);
  // A weight counts here as it was split: a sum of two terms exactly, as an f16 is.
  const double lost_of_value = terms == 2 ? left_out(ElementType::f16, kv.v_type) : input_rounding;
  // Least step of a sum: bf16 products flush denormals, and with two terms three of them make one.
  const double tiny = terms == 2 ? 0x1p-124 : terms == 1 ? 0x1p-126 : 0x1p-149;
  const double tokens = std::min(static_cast<double>(kv.length), static_cast<double>(detail::kSpan));
  const double n_o = (terms == 2 ? 1.02 * (3.0 * std::ceil(tokens / 32.0) + 20.0) : tokens) + blocks + 3.0 * spans +
                     (to_odd ? 4.0 : 0.0);
  const double n_l =
      (terms == 2 ? 2.0 * std::ceil(tokens / 32.0) + 1.0 : 0.0) + blocks + 3.0 * spans + (to_odd ? 12.0 : 8.0);
  const double out_relative = how.out == ElementType::bf16 ? 0x1p-8 : how.out == ElementType::f16 ? 0x1p-11 : 0.0;
  const double out_absolute = how.out == ElementType::f16    ? 0x1p-25
                              : how.out == ElementType::bf16 ? 0x1p-134
                                                             : 0x1p-150;

  const auto turn_roundings = [&](Index block) {
    return block <= 1 ? 0.0 : gamma(std::log2(static_cast<double>(block)) + 2.0);
  };
  const double query_roundings = turn_roundings(kv.k_rotation);
  const double output_roundings = turn_roundings(kv.v_rotation);
  const double query_as_bf16 = terms == 1 && !inputs_rounded && kv.k_rotation > 1 ? 0x1p-8 : 0.0;

  ErrorReport report;
  const auto judge = [&](double actual, double expected, double bound, const char* what, Index token, Index head,
                         Index d) {
    double error = std::abs(actual - expected);
    if (actual == expected) error = 0.0;  // infinities of one sign
    const double share = error == 0.0 ? 0.0 : error / bound;
    if (!(share <= report.largest_share_of_bound)) {
      report.largest_share_of_bound = std::isnan(share) ? std::numeric_limits<double>::infinity() : share;
      report.worst = describe(what, "token", token, "head", head, "dim", d, "is", actual, "expected", expected, "error",
                              error, "bound", bound);
    }
    if (d >= 0) {
      report.largest_error = std::max(report.largest_error, error);
      report.largest_bound = std::max(report.largest_bound, bound);
    }
  };

  const Index group = q.heads / kv.kv_heads;
  for (Index token = 0; token < q.tokens; ++token) {
    const Index position =
        positions.empty() ? kv.length - q.tokens + token : positions[static_cast<std::size_t>(token)];
    PositionRange ranges[detail::kMaxRanges];
    detail::get_ranges(variant, QueryContext{position, token, 0}, kv.length, ranges);
    const auto in_range = [&](Index t) {
      return std::any_of(ranges, ranges + detail::ranges_of<V>,
                         [&](const PositionRange& r) { return r.begin <= t && t < r.end; });
    };
    for (Index head = 0; head < q.heads; ++head) {
      const Index row = token * q.heads + head;
      Eigen::VectorXd query =
          detail::reference_row(q.data, q.type, token * q.strides.token + head * q.strides.head, q.dim, q.strides.dim);
      Eigen::VectorXd query_error = query_roundings * spread_by_rotation(query.cwiseAbs(), kv.k_rotation);
      detail::reference_rotate(query, kv.k_rotation);
      query_error += query_as_bf16 * (query.cwiseAbs() + query_error);
      const double lse = reference.lse[row];
      Eigen::VectorXd expected = reference.out.row(row).transpose();  // as it is before it is turned back
      detail::reference_rotate(expected, kv.v_rotation);
      double eta = gamma(n_l);
      double eta_of_lse = gamma(n_l);
      double underflow = 0.0;
      const auto are_integers = [&](bool keys, Index t) {
        return how.integers != nullptr && integers(how.integers->part(how.integers->part_of(t)), keys);
      };
      double most = 32639.0;
      for (Index dims = 512; dims < q.dim; dims *= 2) most = std::floor(most / 2.0);
      const double half_step = 0.5 * (1.0 + 0x1p-20);
      double largest = 0.0;  // weight times scale, of a block
      Eigen::VectorXd values = Eigen::VectorXd::Zero(kv.value_dim);
      Eigen::VectorXd lost = values;
      const auto end_block = [&] {
        lost += (largest < 0x1p-99 ? largest : half_step * largest / 32639.0) * values;
        largest = 0.0;
        values.setZero();
      };
      Eigen::VectorXd spread = Eigen::VectorXd::Zero(kv.value_dim);
      const RowContext context{{position, token, 0}, head};
      double total = lse;              // logarithm of the sum that outputs are divided by
      if constexpr (SinkVariant<V>) {  // a token whose value is zero; its weight is merged, not rounded
        const double sink = static_cast<double>(variant.sink(context));
        bool in_lse = true;
        if constexpr (detail::SaysSinkInLse<V>) in_lse = variant.sink_in_lse();
        if (!in_lse && !std::isinf(sink)) total = std::max(lse, sink) + std::log1p(std::exp(-std::abs(lse - sink)));
        const double weight = std::isinf(sink) ? 0.0 : std::exp(sink - total);
        const double delta =
            weight == 0.0 ? 0.0 : std::exp2(gamma(4.0) * std::abs(sink) / ln2) * (1.0 + exponential) * (1.0 + u) - 1.0;
        eta += weight * delta;
        if (in_lse) eta_of_lse += weight * delta;
        spread += weight * (delta + (1.0 + delta) * gamma(n_l)) * expected.cwiseAbs();
      }
      for (Index t = 0; t < kv.length; ++t) {
        if (t % detail::kBlock == 0) end_block();
        if (!in_range(t) || !detail::reference_visible(variant, context, t)) continue;
        const Eigen::VectorXd key = detail::reference_row(
            kv.k, kv.k_type, detail::reference_offset(kv, kv.k_strides, t, head / group), q.dim, 1);
        const Eigen::VectorXd value = detail::reference_row(
            kv.v, kv.v_type, detail::reference_offset(kv, kv.v_strides, t, head / group), kv.value_dim, 1);
        const double product = query.dot(key) * factor * ln2;
        const double score = detail::reference_score(variant, product, context, t);  // natural units
        const double magnitude = factor * query.cwiseAbs().dot(key.cwiseAbs());
        double e = (gamma(score_roundings) + lost_of_score) * magnitude +
                   factor * query_error.dot(key.cwiseAbs()) * (1.0 + gamma(score_roundings) + lost_of_score) +
                   dim * tiny * (1.0 + key.cwiseAbs().maxCoeff() + query.cwiseAbs().maxCoeff());
        if (are_integers(true, t))
          e += half_step * factor * query.cwiseAbs().maxCoeff() / most * key.cwiseAbs().sum() + gamma(6.0) * magnitude;
        if (ScoringVariant<V>) e = 2.0 * e + gamma(6.0) * (std::abs(score) + std::abs(product)) / ln2;
        const double below = std::max(0.0, total - score) / ln2;  // at least m − σ_t, as total ≥ m
        const double weight = std::exp(score - total);
        const double unrounded =
            weight == 0.0 ? 1.0
                          : std::exp2(e + u * (below + 2.0 * e)) * std::pow(1.0 + exponential + u, 1.0 + rescalings);
        const double delta = weight == 0.0 ? 0.0 : unrounded * (1.0 + weight_rounding) - 1.0;
        eta += weight * delta;
        eta_of_lse += std::exp(score - lse) * (how.path == Path::amx ? delta : unrounded - 1.0);
        if (are_integers(false, t)) {
          float of_row;
          std::memcpy(&of_row, row_at(how.integers->part(how.integers->part_of(t)), false, t, head / group).scale,
                      sizeof of_row);
          const double s = std::abs(static_cast<double>(of_row));
          largest = std::max(largest, weight * (1.0 + delta) * s);
          if (s > 0.0) values += value.cwiseAbs() / s;
        }
        const double of_sum = gamma(n_o) + lost_of_value * (1.0 + gamma(n_o));
        spread += weight * (delta * (value - expected).cwiseAbs() +
                            (1.0 + delta) * (of_sum * value.cwiseAbs() + gamma(n_l) * expected.cwiseAbs()));
        underflow += 0x1p-125 * (value.cwiseAbs().maxCoeff() + expected.cwiseAbs().maxCoeff()) + tiny;
      }
      end_block();
      spread += lost;
      report.largest_eta = std::max(report.largest_eta, eta);
      const Eigen::VectorXd before =
          (spread / (1.0 - eta) + 3.0 * u * expected.cwiseAbs()).array() + underflow;  // bounds, before they are turned
      const Eigen::VectorXd turned = spread_by_rotation(before, kv.v_rotation) +
                                     output_roundings * spread_by_rotation(expected.cwiseAbs() + before, kv.v_rotation);
      detail::reference_rotate(expected, kv.v_rotation);
      for (Index d = 0; d < kv.value_dim; ++d) {
        const double factor_of_output = change ? change(token, head, d) : 1.0;
        const double changed = factor_of_output * expected[d];
        const double size = std::abs(changed);
        double exact = turned[d] * std::abs(factor_of_output);
        if (change) exact += 5.0 * 0x1p-23 * size + 0x1p-120 * (1.0 + std::abs(expected[d]));
        const double bound = exact + out_relative * (size + exact) + out_absolute;
        judge(static_cast<double>(result.at(token, head, d)), changed, bound, "out", token, head, d);
      }
      const double lse_bound = -std::log1p(-eta_of_lse) + 2.0 * u * std::abs(lse) + 0x1p-125;
      judge(static_cast<double>(result.lse_at(token, head)), lse, lse_bound, "lse", token, head, -1);
    }
  }
  return report;
}

template <class V>
testing::AssertionResult within_bound(const ConstTensorView& q, const KvCacheView& kv, const How& how, const V& variant,
                                      const Result& result, std::span<const Index> positions = {}) {
  const ErrorReport report = compare_with_reference(q, kv, how, variant, result, positions);
  if (report.largest_eta >= 0.5)
    return testing::AssertionFailure() << "the bound says nothing: weights may be off by " << report.largest_eta;
  if (report.largest_share_of_bound <= 1.0) return testing::AssertionSuccess();
  return testing::AssertionFailure() << report.largest_share_of_bound << " times the bound: " << report.worst;
}

}  // namespace gqa::test
