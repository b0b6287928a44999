// SPDX-License-Identifier: Apache-2.0
/// @file
/// The query rows of the definition in double precision, one after the other: what each sees, and the weights that it gives to that. Needs Eigen.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "gqa/detail/check_views.hpp"
#include "gqa/detail/tree_value.hpp"
#include "gqa/kv_cache_view.hpp"
#include "gqa/tensor_view.hpp"
#include "gqa/variant.hpp"

namespace gqa::detail::inline GQA_ABI {

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

/// The scale of q·k: 1/√D unless told.
inline double reference_scale(const ConstTensorView& q, std::optional<double> scale) {
  return scale.value_or(1.0 / std::sqrt(static_cast<double>(q.dim)));
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

/// What the variant itself refuses.
template <Variant V>
void reference_check_variant(const ConstTensorView& q, const KvCacheView& kv, const V& variant,
                             std::span<const Index> positions, Index sequence) {
  if constexpr (requires { variant.check(); }) variant.check();
  if constexpr (requires { variant.check(SequenceContext{}); })
    variant.check(sequence_context(sequence, q.heads, kv.kv_heads, q.tokens, kv.length, kv.value_dim, positions));
}

/// Key or value row of a position and KV head, in the part that holds it.
inline Eigen::VectorXd reference_key(const KvCacheView& kv, Index position, Index head) {
  const KvCacheView& part = kv.part(kv.part_of(position));
  return reference_row(part.k, part.k_type, reference_offset(part, part.k_strides, position, head), kv.head_dim, 1);
}
inline Eigen::VectorXd reference_value(const KvCacheView& kv, Index position, Index head) {
  const KvCacheView& part = kv.part(kv.part_of(position));
  return reference_row(part.v, part.v_type, reference_offset(part, part.v_strides, position, head), kv.value_dim, 1);
}

/// A query row: one query token and query head.
struct ReferenceRow {
  RowContext context{};
  double sink = -std::numeric_limits<double>::infinity();
  std::vector<Index> visible{};  ///< positions, ascending; each has an element, or a column, of what follows
  bool attends = false;      ///< to anything; else nothing is visible or all is scored −∞, and there are no weights
  Eigen::VectorXd query{};   ///< D: rotated as the keys are
  Eigen::MatrixXd values{};  ///< Dv × visible
  Eigen::VectorXd product{};  ///< scale · q·k
  Eigen::VectorXd score{};    ///< what the variant makes of it
  double largest = 0.0;       ///< score
  double max = 0.0;           ///< of the scores and the sink
  Eigen::VectorXd weight{};   ///< exp(score − max)
  double of_sink = 0.0;       ///< exp(sink − max)

  double total() const { return weight.sum() + of_sink; }
};

/// Calls visit(row) for each query row in order, query tokens outermost, of arguments that have been checked.
template <Variant V, class Visit>
void for_each_reference_row(const ConstTensorView& q, const KvCacheView& kv, const V& variant,
                            std::optional<double> scale, std::span<const Index> positions, Index sequence,
                            const Visit& visit) {
  const double factor = reference_scale(q, scale);
  const Index group = q.heads / kv.kv_heads;
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
      ReferenceRow row;
      row.context = {{position, token, sequence}, head};
      if constexpr (SinkVariant<V>) row.sink = static_cast<double>(variant.sink(row.context));
      for (Index t = 0; t < kv.length; ++t) {
        if (!in_range[static_cast<std::size_t>(t)]) continue;
        if (reference_visible(variant, row.context, t)) row.visible.push_back(t);
      }
      if (!row.visible.empty()) {
        row.query =
            reference_row(q.data, q.type, token * q.strides.token + head * q.strides.head, q.dim, q.strides.dim);
        reference_rotate(row.query, kv.k_rotation);
        const auto count = static_cast<Index>(row.visible.size());
        row.product.resize(count);
        row.score.resize(count);
        row.values.resize(kv.value_dim, count);
        for (Index c = 0; c < count; ++c) {
          const Index t = row.visible[static_cast<std::size_t>(c)];
          row.product[c] = factor * row.query.dot(reference_key(kv, t, head / group));
          row.score[c] = reference_score(variant, row.product[c], row.context, t);
          row.values.col(c) = reference_value(kv, t, head / group);
        }
        row.largest = row.score.maxCoeff<Eigen::PropagateNaN>();
        row.attends = !(std::isinf(row.largest) && row.largest < 0.0);
      }
      if (row.attends) {
        row.max = row.sink > row.largest ? row.sink : row.largest;
        row.weight = (row.score.array() - row.max).exp();
        for (Index c = 0; c < row.score.size(); ++c)  // Eigen's is no less than 2⁻¹⁰²⁴
          if (row.score[c] < std::numeric_limits<double>::lowest()) row.weight[c] = 0.0;
        row.of_sink = std::exp(row.sink - row.max);
      }
      visit(row);
    }
  }
}

/// A row of Dv numbers ← the row times the variant's output factor, and its elements times the sigmoids of the gate's logits.
template <Variant V>
void reference_change_output([[maybe_unused]] const V& variant, [[maybe_unused]] const RowContext& context,
                             [[maybe_unused]] Eigen::VectorXd& row) {
  if constexpr (HasOutputFactor<V>) row *= static_cast<double>(variant.output_factor(context));
  if constexpr (HasOutputGate<V>) {
    const GateRow gate = variant.output_gate(context);
    const Eigen::VectorXd logits = reference_row(gate.data, gate.type, 0, row.size(), 1);
    for (Index j = 0; j < row.size(); ++j) row[j] /= 1.0 + std::exp(-logits[j]);
  }
}

}  // namespace gqa::detail::inline GQA_ABI
