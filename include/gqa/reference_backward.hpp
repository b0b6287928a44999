// SPDX-License-Identifier: Apache-2.0
/// @file
/// The gradients of attention in plain Eigen and double precision: slow and obvious, what faster ones are held to. Needs Eigen.
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "gqa/detail/reference_rows.hpp"
#include "gqa/detail/tree_slope.hpp"
#include "gqa/detail/variant_members.hpp"
#include "gqa/kv_cache_view.hpp"
#include "gqa/tensor_view.hpp"
#include "gqa/variant.hpp"

namespace gqa {

/// What reference_backward returns: derivatives of the sum of d_out ∘ out. Row i·Hq + h belongs to query token i and query head h; row
/// t·Hkv + g of d_k and d_v to position kv.first_position() + t and KV head g, for each of the n_kv − kv.first_position() positions.
struct ReferenceGradients {
  Eigen::MatrixXd d_q;     ///< (n_q · Hq) × D
  Eigen::MatrixXd d_k;     ///< (positions · Hkv) × D
  Eigen::MatrixXd d_v;     ///< (positions · Hkv) × Dv
  Eigen::VectorXd d_sink;  ///< n_q · Hq: by the sink of each query row; 0 where the variant has none
  /// For each lookup of the score expression, in the order of writing: (n_q · Hq) × n_kv, by the number that each pair of a query row and a
  /// key looks up. Not summed over pairs that share one, such as the query tokens of a bias by distance.
  std::vector<Eigen::MatrixXd> d_lookups;
};

namespace detail::inline GQA_ABI {

/// Fails on what reference_check does not look at; after it. `lookups` of the score expression.
inline void reference_check_backward(const ConstTensorView& q, const KvCacheView& kv, const ConstTensorView& d_out,
                                     int lookups) {
  const auto extent = [](const char* name, Index given, const char* what, Index wanted) {
    if (given != wanted) fail(name, given, what + to_text(wanted));
  };
  extent("d_out.tokens", d_out.tokens, "q.tokens = ", q.tokens);
  extent("d_out.heads", d_out.heads, "q.heads = ", q.heads);
  extent("d_out.dim", d_out.dim, "kv.value_dim = ", kv.value_dim);
  check_tensor({}, kGradientOutNames, d_out);
  const auto plain = [](const char* name, Index rotation) {
    if (rotation != 0) fail(name, rotation, "0: gradients are of rows that are not rotated");
  };
  plain("kv.k_rotation", kv.k_rotation);
  plain("kv.v_rotation", kv.v_rotation);
  const Index wider = q.dim > kv.value_dim ? q.dim : kv.value_dim;
  if (!(Checked(stored_positions(kv)) * kv.kv_heads * wider).at_most(Index{1} << 37) ||
      !(Checked(q.tokens) * q.heads * kv.length * lookups).at_most(Index{1} << 37))
    fail("kv.length", kv.length, "one with which the gradients take at most 2^40 bytes each");
}

/// The derivative of the variant's score by its scaled product.
template <Variant V>
double reference_slope(const V& variant, double product, const RowContext& row, Index key_position) {
  if constexpr (ScoreExpression<V>)
    return tree_slope<ByScore>(variant.score(expression::Score{}, row, expression::Key{}), product, key_position);
  else return 1.0;
}

/// by_lookup[l](i, key_position) ← d_score times the derivative of the score by lookup l, for each of them; of a weight of 0 d_score.
template <Variant V, int... L>
void reference_lookup_gradients(const V& variant, double product, const RowContext& row, Index key_position,
                                double d_score, bool weightless, Index i, std::vector<Eigen::MatrixXd>& by_lookup,
                                std::integer_sequence<int, L...>) {
  const auto tree = variant.score(expression::Score{}, row, expression::Key{});
  ((by_lookup[static_cast<std::size_t>(L)](i, key_position) =
        weightless ? d_score : d_score * tree_slope<ByLookup<L>>(tree, product, key_position)),
   ...);
}

/// Adds what one query row has to the gradients. `d_output`: Dv, by the row's output before its factor and gate.
template <Variant V>
void add_reference_gradients(const KvCacheView& kv, const V& variant, double scale, Index group, Index query_heads,
                             const ReferenceRow& row, const Eigen::VectorXd& d_output, ReferenceGradients& gradients) {
  const Index i = row.context.query * query_heads + row.context.query_head;
  const Index kv_head = row.context.query_head / group;
  const double total = row.total();
  const Eigen::VectorXd p = row.weight / total;
  const Eigen::VectorXd d_p = row.values.transpose() * d_output;
  const double delta = p.dot(d_p);
  if constexpr (SinkVariant<V>) gradients.d_sink[i] = -row.of_sink / total * delta;
  for (Index c = 0; c < p.size(); ++c) {
    const Index t = row.visible[static_cast<std::size_t>(c)];
    const Index at = (t - kv.first_position()) * kv.kv_heads + kv_head;
    gradients.d_v.row(at) += p[c] * d_output.transpose();
    const double d_score = p[c] * (d_p[c] - delta);
    const bool weightless = std::fpclassify(p[c]) == FP_ZERO;  // a score of −∞ may have a slope that is no number
    const double d_product = weightless ? d_score : d_score * reference_slope(variant, row.product[c], row.context, t);
    gradients.d_q.row(i) += scale * d_product * reference_key(kv, t, kv_head).transpose();
    gradients.d_k.row(at) += scale * d_product * row.query.transpose();
    if constexpr (ScoreSize<V>::lookups > 0)
      reference_lookup_gradients(variant, row.product[c], row.context, t, d_score, weightless, i, gradients.d_lookups,
                                 std::make_integer_sequence<int, ScoreSize<V>::lookups>{});
  }
}

template <Variant V>
ReferenceGradients reference_backward(const ConstTensorView& q, const KvCacheView& kv, const ConstTensorView& d_out,
                                      const V& variant, std::optional<double> scale, std::span<const Index> positions,
                                      Index sequence) {
  check_members<V>();
  static_assert(!Scores<V> || ScoreExpression<V>,
                "The variant's score has no derivative: it must be an expression, auto score(auto s, const "
                "gqa::RowContext& row, auto k) const, and not a function of one float");
  constexpr int lookups = ScoreSize<V>::lookups;
  reference_check(q, kv, positions);
  reference_check_backward(q, kv, d_out, lookups);
  reference_check_variant(q, kv, variant, positions, sequence);
  const Index rows = q.tokens * q.heads;
  const Index kv_rows = stored_positions(kv) * kv.kv_heads;
  ReferenceGradients gradients{
      Eigen::MatrixXd::Zero(rows, q.dim), Eigen::MatrixXd::Zero(kv_rows, kv.head_dim),
      Eigen::MatrixXd::Zero(kv_rows, kv.value_dim), Eigen::VectorXd::Zero(rows),
      std::vector<Eigen::MatrixXd>(static_cast<std::size_t>(lookups), Eigen::MatrixXd::Zero(rows, kv.length))};
  for_each_reference_row(q, kv, variant, scale, positions, sequence, [&](const ReferenceRow& row) {
    if (!row.attends) return;
    const Index first = row.context.query * d_out.strides.token + row.context.query_head * d_out.strides.head;
    Eigen::VectorXd d_output = reference_row(d_out.data, d_out.type, first, kv.value_dim, d_out.strides.dim);
    reference_change_output(variant, row.context, d_output);
    add_reference_gradients(kv, variant, reference_scale(q, scale), q.heads / kv.kv_heads, q.heads, row, d_output,
                            gradients);
  });
  return gradients;
}

}  // namespace detail::inline GQA_ABI

/// The gradients of Σ d_out ∘ out, `out` being what reference_attention makes of the same arguments. For each query row, with z, s_t and the visible
/// t as they are there, g its row of d_out times the variant's output factor and gate, and k_t and v_t of KV head h/G:
///
///     p_t = exp(s_t) / z,   δ = Σ_t p_t (g · v_t),   ds_t = p_t (g · v_t − δ),   dx_t = ds_t · ∂score/∂x at x_t = scale · q · k_t
///     d_q = scale · Σ_t dx_t k_t,   d_k,t += scale · dx_t q,   d_v,t += p_t g,   d_sink = −δ exp(sink) / z,   d_lookup,t = ds_t · ∂score/∂lookup
///
/// in double precision throughout (Dao et al. 2022, "FlashAttention", appendix B.4, for the softmax; the rest is the chain rule). Where a score expression has a
/// kink, a slope of one side is taken: of min, max and select that of the operand which is the value, of abs at 0 it is 0; a condition has none.
/// A pair whose weight p_t is 0 has none, whatever the slope of its score: of a score of −∞ that may be no number. Rows that attend to nothing
/// have zeros, and add none. Not among the gradients: by the scale, by the constants of an expression, by output factors and gates.
/// @param q         n_q × Hq × D
/// @param kv        n_kv tokens × Hkv × (D, Dv), not rotated; Hkv divides Hq
/// @param d_out     n_q × Hq × Dv: by the outputs. Any layout; may be, or overlap, any of the inputs
/// @param variant   what is visible, and how scores change: by an expression, if at all
/// @param scale     default 1/√D
/// @param positions of the query tokens, n_q of them; empty: n_kv − n_q + i
/// @param sequence  the index in a batch that the variant is told
/// @throws ArgumentError if the views, the positions or the variant are wrong
/// Thread safe. Reads nothing but visible rows, and those of d_out.
template <Variant V>
GQA_ALWAYS_INLINE ReferenceGradients reference_backward(const ConstTensorView& q, const KvCacheView& kv,
                                                        const ConstTensorView& d_out, const V& variant,
                                                        std::optional<double> scale = std::nullopt,
                                                        std::span<const Index> positions = {}, Index sequence = 0) {
  return detail::reference_backward(q, kv, d_out, variant, scale, positions, sequence);
}

}  // namespace gqa
