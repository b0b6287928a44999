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
#include <string>
#include <vector>

#include "gqa/detail/check_views.hpp"
#include "gqa/detail/tree_value.hpp"
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

/// `width` elements of `type`, `step` elements apart, from element `first` of `data` on.
inline Eigen::VectorXd reference_row(const void* data, ElementType type, Index first, Index width, Index step) {
  Eigen::VectorXd row(width);
  for (Index j = 0; j < width; ++j) {
    const Index at = first + j * step;
    if (type == ElementType::f32) row[j] = static_cast<double>(static_cast<const float*>(data)[at]);
    if (type == ElementType::bf16)
      row[j] = static_cast<double>(float_from_bf16(static_cast<const std::uint16_t*>(data)[at]));
    if (type == ElementType::f16)
      row[j] = static_cast<double>(float_from_f16(static_cast<const std::uint16_t*>(data)[at]));
  }
  return row;
}

/// Each block of a row ← its Hadamard transform over √block; its own inverse.
inline void reference_rotate(Eigen::VectorXd& row, Index block) {
  if (block == 0) return;
  for (Index half = 1; half < block; half *= 2)
    for (Index i = 0; i < row.size(); ++i) {
      if ((i & half) != 0) continue;
      const double sum = row[i] + row[i + half];
      row[i + half] = row[i] - row[i + half];
      row[i] = sum;
    }
  row /= std::sqrt(static_cast<double>(block));
}

/// Fails on what would be read wrongly or outside of memory.
inline void reference_check(const ConstTensorView& q, const KvCacheView& kv, std::span<const Index> positions) {
  const auto extent = [](const char* name, Index given, Index most) {
    if (given < 1 || given > most) fail(name, given, "1 to " + to_text(most));
  };
  if (q.tokens < 0 || q.tokens > kMaxQueries) fail("q.tokens", q.tokens, "0 to 2^40");
  extent("q.heads", q.heads, kMaxHeads);
  extent("q.dim", q.dim, kMaxWidth);
  extent("kv.kv_heads", kv.kv_heads, kMaxHeads);
  extent("kv.value_dim", kv.value_dim, kMaxWidth);
  if (kv.head_dim != q.dim) fail("kv.head_dim", kv.head_dim, "q.dim = " + to_text(q.dim));
  if (q.heads % kv.kv_heads != 0) fail("kv.kv_heads", kv.kv_heads, "a divisor of q.heads = " + to_text(q.heads));
  if (!positions.empty() && positions.size() != static_cast<std::size_t>(q.tokens))
    fail("positions.size()", to_text(positions.size()), "q.tokens = " + to_text(q.tokens) + ", or none");
  if (!(Checked(q.tokens) * q.heads * kv.value_dim).at_most(Index{1} << 37))
    fail("q.tokens", q.tokens, "one with which the results take at most 2^40 bytes");
  check_tensor({}, kQueryNames, q);
  check_span({}, "positions.data()", positions, " positions");
  check_cache({}, kv);
  if (kv.earlier_count != 0) check_list({}, kv);
  for (Index i = 0; i <= kv.earlier_count; ++i) {
    const KvCacheView& part = kv.part(i);
    const ArgumentName name{0, false, i < kv.earlier_count ? i : -1};
    if (name.part >= 0) check_part_extents(name, part, kv);
    if (name.part >= 0) check_cache(name, part);
    if (!part.k_type.is_element()) fail(name("kv.k_type"), codec_name(part.k_type), "plain elements: f32, bf16 or f16");
    if (!part.v_type.is_element()) fail(name("kv.v_type"), codec_name(part.v_type), "plain elements: f32, bf16 or f16");
  }
}

/// Element offset of the row of `position` and `head` in the part that holds it.
inline Index reference_offset(const KvCacheView& kv, const KvStrides& strides, Index position, Index head) {
  Index slot = kv.storage == Storage::contiguous ? position - kv.oldest : position;
  Index page = 0;
  const Index first = kv.first_position_of_part();
  if (position < first)
    fail("position " + to_text(position), "visible",
         "positions from kv.first_position() = " + to_text(first) + " on: the cache has no other");
  if (kv.storage == Storage::ring) slot = position % kv.capacity;
  if (kv.storage == Storage::paged) {
    slot = position % kv.page_size;
    page = kv.page_table[position / kv.page_size];
    if (page < 0 || page >= kv.pool_pages)
      fail("kv.page_table[" + to_text(position / kv.page_size) + "]", page,
           "a page in [0, " + to_text(kv.pool_pages) + "), less than pool_pages");
  }
  return page * strides.page + slot * strides.token + head * strides.head;
}

/// The score that the variant makes of a scaled product; a `score` that is generic in its first argument stays in double.
template <Variant V>
double reference_score(const V& variant, double product, const RowContext& row, Index key_position) {
  if constexpr (ScoreExpression<V>)
    return tree_value(variant.score(expression::Score{}, row, expression::Key{}), product, key_position);
  else if constexpr (ScoreOfContext<V>)
    return static_cast<double>(variant.score(static_cast<float>(product), row, key_position));
  else if constexpr (requires {
                       { variant.score(product, row.position, key_position, row.query_head) } -> std::same_as<double>;
                     })
    return variant.score(product, row.position, key_position, row.query_head);
  else if constexpr (ScoringVariant<V>)
    return static_cast<double>(variant.score(static_cast<float>(product), row.position, key_position, row.query_head));
  else return product;
}

/// Whether the variant's masks let a row see a key: composed ones may have two, of which one is an expression.
template <Variant V>
bool reference_visible(const V& variant, const RowContext& row, Index key_position) {
  if constexpr (MaskExpression<V>) {
    if (!tree_value(variant.visible(row, expression::Key{}), 0.0, key_position)) return false;
  }
  if constexpr (MaskOfWords<V>)
    return ((variant.visible_bits(row, key_position / 64 * 64) >> (key_position % 64)) & 1u) != 0;
  else if constexpr (MaskOfContext<V>) return variant.is_visible(row, key_position);
  else if constexpr (MaskOfPair<V>) return variant.is_visible(row.position, key_position, row.query_head);
  else return true;
}

template <Variant V>
ReferenceResult reference_attention(const ConstTensorView& q, const KvCacheView& kv, const V& variant,
                                    std::optional<double> scale, std::span<const Index> positions, Index sequence) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  reference_check(q, kv, positions);
  if constexpr (requires { variant.check(); }) variant.check();
  if constexpr (requires { variant.check(SequenceContext{}); })
    variant.check(sequence_context(sequence, q.heads, kv.kv_heads, q.tokens, kv.length, kv.value_dim, positions));
  bool sink_in_lse = true;
  if constexpr (SinkVariant<V> && SaysSinkInLse<V>) sink_in_lse = variant.sink_in_lse();
  const double factor = scale.value_or(1.0 / std::sqrt(static_cast<double>(q.dim)));
  const Index group = q.heads / kv.kv_heads;
  ReferenceResult result{Eigen::MatrixXd::Zero(q.tokens * q.heads, kv.value_dim),
                         Eigen::VectorXd::Constant(q.tokens * q.heads, -infinity)};
  for (Index token = 0; token < q.tokens; ++token) {
    const Index position =
        positions.empty() ? kv.length - q.tokens + token : positions[static_cast<std::size_t>(token)];
    std::vector<bool> in_range(static_cast<std::size_t>(kv.length), false);
    PositionRange ranges[kMaxRanges];
    get_ranges(variant, QueryContext{position, token, sequence}, kv.length, ranges);
    for (Index i = 0; i < ranges_of<V>; ++i)
      for (Index t = (std::max<Index>)(ranges[i].begin, 0); t < (std::min)(ranges[i].end, kv.length); ++t)
        in_range[static_cast<std::size_t>(t)] = true;
    for (Index head = 0; head < q.heads; ++head) {
      const RowContext context{{position, token, sequence}, head};
      double sink = -infinity;
      if constexpr (SinkVariant<V>) sink = static_cast<double>(variant.sink(context));
      std::vector<Index> visible;
      for (Index t = 0; t < kv.length; ++t) {
        if (!in_range[static_cast<std::size_t>(t)]) continue;
        if (reference_visible(variant, context, t)) visible.push_back(t);
      }
      const Index row = token * q.heads + head;
      if (sink_in_lse) result.lse[row] = sink;
      if (visible.empty()) continue;

      Eigen::VectorXd query =
          reference_row(q.data, q.type, token * q.strides.token + head * q.strides.head, q.dim, q.strides.dim);
      reference_rotate(query, kv.k_rotation);
      const auto count = static_cast<Index>(visible.size());
      Eigen::VectorXd score(count);
      Eigen::MatrixXd values(kv.value_dim, count);
      for (Index c = 0; c < count; ++c) {
        const Index t = visible[static_cast<std::size_t>(c)];
        const KvCacheView& part = kv.part(kv.part_of(t));
        const Eigen::VectorXd key =
            reference_row(part.k, part.k_type, reference_offset(part, part.k_strides, t, head / group), kv.head_dim, 1);
        score[c] = reference_score(variant, factor * query.dot(key), context, t);
        values.col(c) = reference_row(part.v, part.v_type, reference_offset(part, part.v_strides, t, head / group),
                                      kv.value_dim, 1);
      }

      const double largest = score.maxCoeff<Eigen::PropagateNaN>();
      if (std::isinf(largest) && largest < 0.0) continue;  // all is scored −∞: nothing is attended to
      const double max = sink > largest ? sink : largest;
      const Eigen::VectorXd weight = (score.array() - max).exp();
      const double of_sink = std::exp(sink - max);
      Eigen::VectorXd output = values * weight / (weight.sum() + of_sink);
      reference_rotate(output, kv.v_rotation);
      result.out.row(row) = output.transpose();
      result.lse[row] = sink_in_lse ? max + std::log(weight.sum() + of_sink)
                                    : largest + std::log((score.array() - largest).exp().sum());
      if constexpr (HasOutputFactor<V>) result.out.row(row) *= static_cast<double>(variant.output_factor(context));
      if constexpr (HasOutputGate<V>) {
        const GateRow gate = variant.output_gate(context);
        const Eigen::VectorXd logits = reference_row(gate.data, gate.type, 0, kv.value_dim, 1);
        result.out.row(row).array() /= 1.0 + (-logits.transpose().array()).exp();
      }
    }
  }
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
