// SPDX-License-Identifier: Apache-2.0
/// @file
/// Members of variants that would not be called, found and named.
#pragma once

#include <type_traits>

#include "gqa/variant.hpp"

namespace gqa::detail {

/// Whether V has a member of a name, of whatever kind and access: then the name is ambiguous in a class that has another one of another
/// base. Of a final class only a public one that is not overloaded is found.
struct OptionalMembers {
  int visible_range, is_visible, visible_bits, visible, score, sink, sink_in_lse, output_factor, output_gate, check;
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
GQA_DETAIL_HAS_MEMBER(visible_range)
GQA_DETAIL_HAS_MEMBER(is_visible)
GQA_DETAIL_HAS_MEMBER(visible_bits)
GQA_DETAIL_HAS_MEMBER(visible)
GQA_DETAIL_HAS_MEMBER(score)
GQA_DETAIL_HAS_MEMBER(sink)
GQA_DETAIL_HAS_MEMBER(sink_in_lse)
GQA_DETAIL_HAS_MEMBER(output_factor)
GQA_DETAIL_HAS_MEMBER(output_gate)
GQA_DETAIL_HAS_MEMBER(check)
#undef GQA_DETAIL_HAS_MEMBER

/// Says in sentences which member of a variant has a form that would not be called.
template <class V>
consteval void check_members() {
  static_assert(!has_visible_range<V>() || RangesOfContext<V> || RangesOfPosition<V>,
                "The variant's visible_range cannot be called: it must be public, and take (gqa::Index query_position, "
                "gqa::Index kv_length) const, or (const gqa::QueryContext& query, gqa::Index kv_length) const");
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
  static_assert(int{MaskOfWords<V>} + int{MaskOfPair<V>} + int{MaskOfContext<V>} <= 1,
                "The variant has several masks: it must have one of is_visible and visible_bits, in one form");
  static_assert(
      !has_score<V>() || Scores<V>,
      "The variant's score cannot be called: it must be public, float score(float score, gqa::Index "
      "query_position, gqa::Index key_position, gqa::Index query_head) const, or float score(float score, const "
      "gqa::RowContext& row, gqa::Index key_position) const, or auto score(auto s, const gqa::RowContext& row, "
      "auto k) const, and return a value of gqa::expression");
  static_assert(int{ScoreExpression<V>} + int{ScoreOfContext<V>} + int{ScoreOfPair<V>} <= 1,
                "The variant has several scores: it must have one form of score");
  static_assert(!has_sink<V>() || HasSink<V>,
                "The variant's sink cannot be called: it must be public, float sink(const gqa::RowContext& row) const");
  static_assert(!has_sink_in_lse<V>() || SaysSinkInLse<V>,
                "The variant's sink_in_lse cannot be called: it must be public, bool sink_in_lse() const");
  static_assert(!has_output_factor<V>() || HasOutputFactor<V>,
                "The variant's output_factor cannot be called: it must be public, float output_factor(const "
                "gqa::RowContext& row) const");
  static_assert(!has_output_gate<V>() || HasOutputGate<V>,
                "The variant's output_gate cannot be called: it must be public, gqa::GateRow output_gate(const "
                "gqa::RowContext& row) const");
  static_assert(
      !has_check<V>() || requires(const V& variant) { variant.check(); } ||
          requires(const V& variant, const SequenceContext& sequence) { variant.check(sequence); },
      "The variant's check cannot be called: it must be public, void check() const, or void check(const "
      "gqa::SequenceContext& sequence) const");
}

}  // namespace gqa::detail
