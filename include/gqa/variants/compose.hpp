// SPDX-License-Identifier: Apache-2.0
/// @file
/// Variants made of parts: compose(Causal{}, SoftCap{50}, Alibi{slopes}).
#pragma once

#include "gqa/detail/tree_value.hpp"
#include "gqa/detail/variant_members.hpp"
#include "gqa/variant.hpp"

namespace gqa {

template <class A, class B>
struct Composition;

namespace detail {

/// Two parts; base of the stages that they make together.
template <class A, class B>
struct Parts {
  A first;
  B second;
};

template <class V>
concept HasRanges = RangesOfContext<V> || RangesOfPosition<V>;
template <class V>
concept HasCheck = requires(const V& variant) {
  variant.check();
};
template <class V>
concept HasSequenceCheck = requires(const V& variant, const SequenceContext& sequence) {
  variant.check(sequence);
};

/// Ranges of both: what lies in one of each.
template <class A, class B>
struct ComposedRanges : Parts<A, B> {
  GQA_ALWAYS_INLINE auto visible_range(const QueryContext& query, Index kv_length) const
      requires(HasRanges<A> || HasRanges<B>) {
    if constexpr (HasRanges<A> && HasRanges<B>) {
      static_assert(ranges_of<A> * ranges_of<B> <= kMaxRanges, "the parts' ranges cut each other into more than 8");
      PositionRange a[kMaxRanges];
      PositionRange b[kMaxRanges];
      get_ranges(this->first, query, kv_length, a);
      get_ranges(this->second, query, kv_length, b);
      std::array<PositionRange, static_cast<std::size_t>(ranges_of<A> * ranges_of<B>)> both;
      for (Index i = 0; i < ranges_of<A>; ++i)
        for (Index j = 0; j < ranges_of<B>; ++j)
          both[static_cast<std::size_t>(i * ranges_of<B> + j)] = {a[i].begin > b[j].begin ? a[i].begin : b[j].begin,
                                                                  a[i].end < b[j].end ? a[i].end : b[j].end};
      if constexpr (both.size() == 1) return both[0];
      else return both;
    } else if constexpr (HasRanges<A>) {
      return ranges_for(this->first, query, kv_length);
    } else {
      return ranges_for(this->second, query, kv_length);
    }
  }
};

/// Which bits of a block a part's plain mask lets a row see.
template <class V>
GQA_ALWAYS_INLINE std::uint64_t plain_bits(const V& variant, const RowContext& row, Index block_begin) {
  if constexpr (MaskOfWords<V>) {
    return variant.visible_bits(row, block_begin);
  } else {
    std::uint64_t bits = 0;
    for (Index t = 0; t < 64; ++t) {
      bool seen;
      if constexpr (MaskOfContext<V>) seen = variant.is_visible(row, block_begin + t);
      else seen = variant.is_visible(row.position, block_begin + t, row.query_head);
      bits |= std::uint64_t{seen} << t;
    }
    return bits;
  }
}

/// Plain masks of both.
template <class A, class B, class Base, bool Any = PlainMask<A> || PlainMask<B>,
          bool Pairs = !MaskOfWords<A> && !MaskOfWords<B>>
struct ComposedPlainMask : Base {};
template <class A, class B, class Base>
struct ComposedPlainMask<A, B, Base, true, true> : Base {
  GQA_ALWAYS_INLINE bool is_visible(const RowContext& row, Index key_position) const {
    return sees(this->first, row, key_position) && sees(this->second, row, key_position);
  }

 private:
  template <class V>
  static GQA_ALWAYS_INLINE bool sees(const V& variant, const RowContext& row, Index key_position) {
    if constexpr (MaskOfContext<V>) return variant.is_visible(row, key_position);
    else if constexpr (MaskOfPair<V>) return variant.is_visible(row.position, key_position, row.query_head);
    else return true;
  }
};
template <class A, class B, class Base>
struct ComposedPlainMask<A, B, Base, true, false> : Base {
  GQA_ALWAYS_INLINE std::uint64_t visible_bits(const RowContext& row, Index block_begin) const {
    std::uint64_t bits = ~std::uint64_t{0};
    if constexpr (PlainMask<A>) bits &= plain_bits(this->first, row, block_begin);
    if constexpr (PlainMask<B>) bits &= plain_bits(this->second, row, block_begin);
    return bits;
  }
};

/// Conditions of both.
template <class A, class B, class Base, bool Any = MaskExpression<A> || MaskExpression<B>>
struct ComposedCondition : Base {};
template <class A, class B, class Base>
struct ComposedCondition<A, B, Base, true> : Base {
  GQA_ALWAYS_INLINE auto visible(const RowContext& row, const expression::Key& k) const {
    if constexpr (MaskExpression<A> && MaskExpression<B>)
      return this->first.visible(row, k) && this->second.visible(row, k);
    else if constexpr (MaskExpression<A>) return this->first.visible(row, k);
    else return this->second.visible(row, k);
  }
};

/// A part's score of one pair. Expressions are evaluated in double here, and rounded once.
template <class V>
GQA_ALWAYS_INLINE float one_score(const V& variant, float score, const RowContext& row, Index key_position) {
  if constexpr (ScoreExpression<V>)
    return static_cast<float>(tree_value(variant.score(expression::Score{}, row, expression::Key{}),
                                         static_cast<double>(score), key_position));
  else if constexpr (ScoreOfContext<V>) return static_cast<float>(variant.score(score, row, key_position));
  else if constexpr (ScoreOfPair<V>)
    return static_cast<float>(variant.score(score, row.position, key_position, row.query_head));
  else return score;
}

/// Scores of both, the first part's first: an expression, if both are or have none.
template <class V>
inline constexpr bool has_no_plain_score = ScoreExpression<V> || !Scores<V>;
template <class A, class B, class Base, bool Any = Scores<A> || Scores<B>,
          bool Expression = has_no_plain_score<A>&& has_no_plain_score<B>>
struct ComposedScore : Base {};
template <class A, class B, class Base>
struct ComposedScore<A, B, Base, true, true> : Base {
  template <expression::Value S>
  GQA_ALWAYS_INLINE auto score(const S& s, const RowContext& row, const expression::Key& k) const {
    if constexpr (ScoreExpression<A> && ScoreExpression<B>)
      return this->second.score(this->first.score(s, row, k), row, k);
    else if constexpr (ScoreExpression<A>) return this->first.score(s, row, k);
    else return this->second.score(s, row, k);
  }
};
template <class A, class B, class Base>
struct ComposedScore<A, B, Base, true, false> : Base {
  GQA_ALWAYS_INLINE float score(float score, const RowContext& row, Index key_position) const {
    return one_score(this->second, one_score(this->first, score, row, key_position), row, key_position);
  }
};

/// The sink of one of them.
template <class A, class B, class Base, bool Any = HasSink<A> || HasSink<B>>
struct ComposedSink : Base {};
template <class A, class B, class Base>
struct ComposedSink<A, B, Base, true> : Base {
  static_assert(!(HasSink<A> && HasSink<B>), "both parts have a sink: a row has one");
  GQA_ALWAYS_INLINE float sink(const RowContext& row) const {
    if constexpr (HasSink<A>) return static_cast<float>(this->first.sink(row));
    else return static_cast<float>(this->second.sink(row));
  }
  GQA_ALWAYS_INLINE bool sink_in_lse() const {
    if constexpr (SaysSinkInLse<A>) return this->first.sink_in_lse();
    else if constexpr (SaysSinkInLse<B>) return this->second.sink_in_lse();
    else return true;
  }
};

/// Factors of both, one after the other.
template <class A, class B, class Base, bool Any = HasOutputFactor<A> || HasOutputFactor<B>>
struct ComposedFactor : Base {};
template <class A, class B, class Base>
struct ComposedFactor<A, B, Base, true> : Base {
  GQA_ALWAYS_INLINE float output_factor(const RowContext& row) const {
    if constexpr (HasOutputFactor<A> && HasOutputFactor<B>)
      return static_cast<float>(this->first.output_factor(row)) * static_cast<float>(this->second.output_factor(row));
    else if constexpr (HasOutputFactor<A>) return static_cast<float>(this->first.output_factor(row));
    else return static_cast<float>(this->second.output_factor(row));
  }
};

/// The gate of one of them.
template <class A, class B, class Base, bool Any = HasOutputGate<A> || HasOutputGate<B>>
struct ComposedGate : Base {};
template <class A, class B, class Base>
struct ComposedGate<A, B, Base, true> : Base {
  static_assert(!(HasOutputGate<A> && HasOutputGate<B>), "both parts have an output gate: a row has one");
  GQA_ALWAYS_INLINE GateRow output_gate(const RowContext& row) const {
    if constexpr (HasOutputGate<A>) return this->first.output_gate(row);
    else return this->second.output_gate(row);
  }
};

template <class A, class B>
using ComposedBeforeSink = ComposedScore<A, B, ComposedCondition<A, B, ComposedPlainMask<A, B, ComposedRanges<A, B>>>>;
template <class A, class B>
using ComposedStages = ComposedGate<A, B, ComposedFactor<A, B, ComposedSink<A, B, ComposedBeforeSink<A, B>>>>;

}  // namespace detail

/// Two variants, or parts of variants, as one: what both let a row see, with the scores of the first changed by the second, the sink and the
/// gate of the one that has one, the output factors of both, and the checks of both.
template <class A, class B>
struct Composition : detail::ComposedStages<A, B> {
  /// @throws what its parts throw
  GQA_ALWAYS_INLINE void check(const SequenceContext& sequence) const {
    check_part(this->first, sequence);
    check_part(this->second, sequence);
  }

 private:
  template <class V>
  static GQA_ALWAYS_INLINE void check_part(const V& variant, [[maybe_unused]] const SequenceContext& sequence) {
    detail::check_members<V>();
    if constexpr (detail::HasCheck<V>) variant.check();
    if constexpr (detail::HasSequenceCheck<V>) variant.check(sequence);
  }
};

/// A variant made of parts, each a struct with some of the members of a Variant; one at least says what is in range. What is visible is what all
/// let a row see; scores are changed by one part after the other, in order; one part may have a sink, and one a gate. Parts are kept by value.
///
///     attention(q, kv, out, compose(Causal{}, SoftCap{50.0f}, Alibi{slopes}));
///
/// Where all changes of scores are expressions, so is what they make together; one that is computed one score at a time makes it all so.
template <class A, class B>
GQA_ALWAYS_INLINE Composition<A, B> compose(const A& first, const B& second) {
  return {{{{{{{{{first, second}}}}}}}}};
}
template <class A, class B, class... More>
GQA_ALWAYS_INLINE auto compose(const A& first, const B& second, const More&... more) requires(sizeof...(More) > 0) {
  return compose(compose(first, second), more...);
}

}  // namespace gqa
