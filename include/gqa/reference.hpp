// SPDX-License-Identifier: Apache-2.0
/// @file
/// The definition of attention in plain Eigen and double precision: slow and obvious. It reads the same views as the functors, so that
/// anything can be held against it. Needs Eigen.
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <limits>
#include <optional>
#include <span>

#include "gqa/detail/reference_rows.hpp"
#include "gqa/kv_cache_view.hpp"
#include "gqa/tensor_view.hpp"
#include "gqa/variant.hpp"

namespace gqa {

/// What reference_attention returns. Row i·Hq + h belongs to query token i and query head h.
struct ReferenceResult {
  Eigen::MatrixXd out;  ///< (n_q · Hq) × Dv
  Eigen::VectorXd lse;  ///< n_q · Hq: natural logarithm of the sum of exp(score); −∞ where nothing is visible
};

namespace detail::inline GQA_ABI {

template <Variant V>
ReferenceResult reference_attention(const ConstTensorView& q, const KvCacheView& kv, const V& variant,
                                    std::optional<double> scale, std::span<const Index> positions, Index sequence) {
  reference_check(q, kv, positions);
  reference_check_variant(q, kv, variant, positions, sequence);
  bool sink_in_lse = true;
  if constexpr (SinkVariant<V> && SaysSinkInLse<V>) sink_in_lse = variant.sink_in_lse();
  ReferenceResult result{Eigen::MatrixXd::Zero(q.tokens * q.heads, kv.value_dim),
                         Eigen::VectorXd::Constant(q.tokens * q.heads, -std::numeric_limits<double>::infinity())};
  for_each_reference_row(q, kv, variant, scale, positions, sequence, [&](const ReferenceRow& row) {
    const Index i = row.context.query * q.heads + row.context.query_head;
    if (sink_in_lse) result.lse[i] = row.sink;
    if (!row.attends) return;
    Eigen::VectorXd output = row.values * row.weight / row.total();
    reference_rotate(output, kv.v_rotation);
    reference_change_output(variant, row.context, output);
    result.out.row(i) = output.transpose();
    result.lse[i] = sink_in_lse ? row.max + std::log(row.total())
                                : row.largest + std::log((row.score.array() - row.largest).exp().sum());
  });
  return result;
}

}  // namespace detail::inline GQA_ABI

/// out ← attention(q, kv) by definition, for each query token i at position p_i and each query head h:
///
///     s_t = score(scale · q_ih · k_t,h/G)   for the t in visible_range(p_i) that the mask lets p_i and h see
///     out_ih = Σ_t exp(s_t) v_t,h/G / z,   lse_ih = log z,   z = Σ_t exp(s_t) + exp(sink)
///
/// with q rotated and outputs turned back where the view says that keys and values are rotated,
/// times the variant's output factor and gate, in double precision throughout (a variant's score functor sees a float unless it takes and returns double; expressions are evaluated in
/// double, but for the numbers that they capture). Rows for which nothing is visible, or everything is scored −∞, give zeros and the sink as
/// lse, or −∞. A sink that the variant leaves out of the log-sum-exp is not in lse.
/// @param q         n_q × Hq × D
/// @param kv        n_kv tokens × Hkv × (D, Dv); Hkv divides Hq
/// @param variant   what is visible, and how scores change
/// @param scale     default 1/√D
/// @param positions of the query tokens, n_q of them; empty: n_kv − n_q + i
/// @param sequence  the index in a batch that the variant is told
/// @throws ArgumentError if the views, the positions or the variant are wrong
/// Thread safe. Reads nothing but visible rows.
template <Variant V>
GQA_ALWAYS_INLINE ReferenceResult reference_attention(const ConstTensorView& q, const KvCacheView& kv, const V& variant,
                                                      std::optional<double> scale = std::nullopt,
                                                      std::span<const Index> positions = {}, Index sequence = 0) {
  return detail::reference_attention(q, kv, variant, scale, positions, sequence);
}

/// The same with the default variant, Causal.
GQA_ALWAYS_INLINE ReferenceResult reference_attention(const ConstTensorView& q, const KvCacheView& kv) {
  return detail::reference_attention(q, kv, Causal{}, std::nullopt, {}, 0);
}

}  // namespace gqa
