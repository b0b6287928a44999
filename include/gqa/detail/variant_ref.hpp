// SPDX-License-Identifier: Apache-2.0
/// @file
/// A variant with its type erased, so that checking, planning and the task loop are compiled once.
#pragma once

#include <type_traits>

#include "gqa/detail/path/kernels.hpp"
#include "gqa/detail/variant_members.hpp"
#include "gqa/options.hpp"
#include "gqa/variant.hpp"

namespace gqa::detail {

/// Refers to a variant for the length of a call. Absent parts are null.
struct VariantRef {
  using Range = void (*)(const void* variant, const QueryContext& query, Index kv_length, PositionRange* ranges);
  /// Keeps the bits t of `candidates`, one at least, whose position block_begin + t a row sees.
  using Refine = std::uint64_t (*)(const VariantRows& rows, Index row, Index block_begin, std::uint64_t candidates);

  const void* variant = nullptr;
  const Sequence* batch = nullptr;  ///< the call's first sequence
  Range range = nullptr;
  Index ranges = 1;                                    ///< how many ranges `range` gives, at most kMaxRanges
  Refine refine = nullptr;                             ///< the mask of pairs or words
  Refine (*visible)(const Kernels&) = nullptr;         ///< that of an expression, compiled for a path
  bool scores = false;                                 ///< the variant changes scores
  SoftmaxKernel (*softmax)(const Kernels&) = nullptr;  ///< the softmax of these, compiled for a path
  float (*sink)(const void* variant, const RowContext& row) = nullptr;
  bool sink_in_lse = true;
  void (*change_output)(const void* variant, const RowContext& row, OutputChange& change) = nullptr;
  FinishKernel (*finish)(const Kernels&) = nullptr;  ///< what changes outputs, compiled for a path
  void (*put_trees)(const void* variant, const RowContext& row, TreeSlots slots) = nullptr;  ///< of its expressions
  Index constants = 0;                                                                       ///< of these
  Index lookups = 0;
  void (*check)(const void* variant) = nullptr;  ///< throws if the variant's own parameters are wrong
  void (*check_sequence)(const void* variant, const SequenceContext& sequence) = nullptr;  ///< or do not fit a sequence

  /// Those of the candidates, one at least, that the masks let a row see; `by_expression` is what visible() gave, or null.
  GQA_ALWAYS_INLINE std::uint64_t refined(Refine by_expression, const VariantRows& rows, Index row, Index block_begin,
                                          std::uint64_t candidates) const {
    if (refine != nullptr) candidates = refine(rows, row, block_begin, candidates);
    return by_expression == nullptr || candidates == 0 ? candidates : by_expression(rows, row, block_begin, candidates);
  }
  /// Whether VariantRows are wanted.
  GQA_ALWAYS_INLINE bool asks_of_rows() const noexcept { return masks() || scores; }
  GQA_ALWAYS_INLINE bool masks() const noexcept { return refine != nullptr || visible != nullptr; }
};

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

/// The mask of pairs or of words.
template <class V>
std::uint64_t refine_candidates(const VariantRows& rows, Index row, Index block_begin, std::uint64_t candidates) {
  const V& variant = *static_cast<const V*>(rows.variant);
  const RowContext& context = rows.row[row];
  if constexpr (MaskOfWords<V>) {
    return variant.visible_bits(context, block_begin) & candidates;
  } else {
    std::uint64_t visible = 0;
    for (std::uint64_t rest = candidates; rest != 0; rest &= rest - 1) {
      const int t = __builtin_ctzll(rest);
      bool seen;
      if constexpr (MaskOfContext<V>) seen = variant.is_visible(context, block_begin + t);
      else seen = variant.is_visible(context.position, block_begin + t, context.query_head);
      if (seen) visible |= std::uint64_t{1} << t;
    }
    return visible;
  }
}

/// All but the softmax.
template <Variant V>
VariantRef variant_parts(const V& variant) {
  check_members<V>();
  VariantRef ref;
  ref.variant = &variant;
  ref.ranges = ranges_of<V>;
  ref.range = [](const void* self, const QueryContext& query, Index kv_length, PositionRange* ranges) {
    get_ranges(*static_cast<const V*>(self), query, kv_length, ranges);
  };
  if constexpr (PlainMask<V>) ref.refine = refine_candidates<V>;
  if constexpr (MaskExpression<V>) ref.visible = [](const Kernels& kernels) { return visible_on<V>(kernels); };
  ref.scores = ScoringVariant<V>;
  if constexpr (ScoreExpression<V> || MaskExpression<V>) {
    ref.constants = ScoreSize<V>::constants + VisibleSize<V>::constants;
    ref.lookups = ScoreSize<V>::lookups + VisibleSize<V>::lookups;
    ref.put_trees = [](const void* self, const RowContext& row, TreeSlots slots) {
      if constexpr (ScoreExpression<V>)
        slots.put(static_cast<const V*>(self)->score(expression::Score{}, row, expression::Key{}));
      if constexpr (MaskExpression<V>) slots.put(static_cast<const V*>(self)->visible(row, expression::Key{}));
    };
  }
  if constexpr (SinkVariant<V>)
    ref.sink = [](const void* self, const RowContext& row) {
      return static_cast<float>(static_cast<const V*>(self)->sink(row));
    };
  if constexpr (SinkVariant<V> && SaysSinkInLse<V>) ref.sink_in_lse = variant.sink_in_lse();
  if constexpr (OutputVariant<V>) {
    ref.change_output = [](const void* self, const RowContext& row, OutputChange& change) {
      const V& of = *static_cast<const V*>(self);
      if constexpr (HasOutputFactor<V>) change.factor = static_cast<float>(of.output_factor(row));
      if constexpr (HasOutputGate<V>) change.gate = of.output_gate(row);
    };
    ref.finish = [](const Kernels& kernels) { return finish_on<V>(kernels); };
  }
  if constexpr (requires { variant.check(); })
    ref.check = [](const void* self) { static_cast<const V*>(self)->check(); };
  if constexpr (requires { variant.check(SequenceContext{}); })
    ref.check_sequence = [](const void* self, const SequenceContext& sequence) {
      static_cast<const V*>(self)->check(sequence);
    };
  return ref;
}

template <Variant V>
VariantRef variant_ref(const V& variant) {
  VariantRef ref = variant_parts(variant);
  if constexpr (ScoringVariant<V>) ref.softmax = [](const Kernels& kernels) { return softmax_on<V>(kernels); };
  return ref;
}

}  // namespace gqa::detail::inline GQA_ABI
