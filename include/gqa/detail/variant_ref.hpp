// SPDX-License-Identifier: Apache-2.0
/// @file
/// A variant with its type erased, so that checking, planning and the task loop are compiled once.
#pragma once

#include <type_traits>

#include "gqa/detail/path/kernels.hpp"
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
  Refine (*refine)(const Kernels&) = nullptr;          ///< the mask, compiled for a path
  SoftmaxKernel (*softmax)(const Kernels&) = nullptr;  ///< the softmax of changed scores, compiled for a path
  float (*sink)(const void* variant, const RowContext& row) = nullptr;
  void (*put_trees)(const void* variant, const RowContext& row, TreeSlots slots) = nullptr;  ///< of its expressions
  Index constants = 0;                                                                       ///< of these
  Index lookups = 0;
  void (*check)(const void* variant) = nullptr;  ///< throws if the variant's own parameters are wrong

  /// Whether VariantRows are wanted.
  GQA_ALWAYS_INLINE bool asks_of_rows() const noexcept { return refine != nullptr || softmax != nullptr; }
};

/// Whether V has a member of a name, of whatever kind and access: then the name is ambiguous in a class that has another one of another
/// base. Of a final class only a public one that is not overloaded is found.
struct OptionalMembers {
  int is_visible, visible_bits, visible, score, sink, check;
};
template <class V>
struct WithOptionalMembers : V, OptionalMembers {};

#define GQA_DETAIL_HAS_MEMBER(name)                          \
  template <class V>                                         \
  consteval bool has_##name() {                              \
    if constexpr (!std::is_class_v<V>) return false;         \
    else if constexpr (std::is_final_v<V>) return requires { \
        &V::name;                                            \
      };                                                     \
    else return !requires {                                  \
        &WithOptionalMembers<V>::name;                       \
      };                                                     \
  }
GQA_DETAIL_HAS_MEMBER(is_visible)
GQA_DETAIL_HAS_MEMBER(visible_bits)
GQA_DETAIL_HAS_MEMBER(visible)
GQA_DETAIL_HAS_MEMBER(score)
GQA_DETAIL_HAS_MEMBER(sink)
GQA_DETAIL_HAS_MEMBER(check)
#undef GQA_DETAIL_HAS_MEMBER

/// Says in sentences which member of a variant has a form that would not be called.
template <class V>
consteval void check_members() {
  static_assert(!has_is_visible<V>() || MaskOfPair<V> || MaskOfContext<V>,
                "The variant's is_visible cannot be called: it must be public, bool is_visible(gqa::Index "
                "query_position, gqa::Index key_position, gqa::Index query_head) const, or bool is_visible(const "
                "gqa::RowContext& row, gqa::Index key_position) const");
  static_assert(!has_visible_bits<V>() || MaskOfWords<V>,
                "The variant's visible_bits cannot be called: it must be public, std::uint64_t visible_bits(const "
                "gqa::RowContext& row, gqa::Index block_begin) const");
  static_assert(!has_visible<V>() || MaskExpression<V>,
                "The variant's visible cannot be called: it must be public, auto visible(const gqa::RowContext& row, "
                "auto k) const, and return a condition of gqa::expression");
  static_assert(mask_forms<V> <= 1,
                "The variant has several masks: it must have one of is_visible, visible_bits and visible");
  static_assert(
      !has_score<V>() || ScoreExpression<V> || ScoreOfContext<V> || ScoreOfPair<V>,
      "The variant's score cannot be called: it must be public, float score(float score, gqa::Index "
      "query_position, gqa::Index key_position, gqa::Index query_head) const, or float score(float score, const "
      "gqa::RowContext& row, gqa::Index key_position) const, or auto score(auto s, const gqa::RowContext& row, "
      "auto k) const, and return a value of gqa::expression");
  static_assert(!has_score<V>() || ScoringVariant<V>, "The variant has several scores: it must have one form of score");
  static_assert(!has_sink<V>() || SinkVariant<V>,
                "The variant's sink cannot be called: it must be public, float sink(const gqa::RowContext& row) const");
  static_assert(
      !has_check<V>() || requires(const V& variant) { variant.check(); },
      "The variant's check cannot be called: it must be public, void check() const");
}

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

template <Variant V>
VariantRef variant_ref(const V& variant) noexcept {
  check_members<V>();
  VariantRef ref;
  ref.variant = &variant;
  ref.ranges = ranges_of<V>;
  ref.range = [](const void* self, const QueryContext& query, Index kv_length, PositionRange* ranges) {
    get_ranges(*static_cast<const V*>(self), query, kv_length, ranges);
  };
  if constexpr (MaskExpression<V>) ref.refine = [](const Kernels& kernels) { return visible_on<V>(kernels); };
  else if constexpr (MaskingVariant<V>)
    ref.refine = [](const Kernels&) -> VariantRef::Refine { return refine_candidates<V>; };
  if constexpr (ScoringVariant<V>) ref.softmax = [](const Kernels& kernels) { return softmax_on<V>(kernels); };
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
  if constexpr (requires { variant.check(); })
    ref.check = [](const void* self) { static_cast<const V*>(self)->check(); };
  return ref;
}

}  // namespace gqa::detail::inline GQA_ABI
