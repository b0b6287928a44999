// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a query attends to: full, causal, causal with a sliding window, and the concept that a user's own variant models.
#pragma once

#include <array>
#include <concepts>
#include <type_traits>
#include <utility>

#include "gqa/error.hpp"
#include "gqa/expression.hpp"

namespace gqa {

/// Positions begin, begin + 1, …, end − 1. Empty when end <= begin.
struct PositionRange {
  Index begin = 0;
  Index end = 0;
};

namespace detail {

/// Ranges that a variant may return for one query.
inline constexpr Index kMaxRanges = 8;

template <class T>
inline constexpr Index ranges_in = 0;
template <>
inline constexpr Index ranges_in<PositionRange> = 1;
template <std::size_t N>
inline constexpr Index ranges_in<std::array<PositionRange, N>> = N <= kMaxRanges ? static_cast<Index>(N) : 0;

}  // namespace detail

namespace detail::inline GQA_ABI {

/// What either form of visible_range takes.
struct AnyQuery {
  operator Index() const;
  operator QueryContext() const;
};
/// Forms of visible_range: of the query's context, or of its position alone.
template <class V>
concept RangesOfContext = requires(const V& variant, const QueryContext& query, Index kv_length) {
  variant.visible_range(query, kv_length);
};
template <class V>
concept RangesOfPosition = requires(const V& variant, Index position, Index kv_length) {
  variant.visible_range(position, kv_length);
};
template <class V>
GQA_ALWAYS_INLINE auto ranges_for(const V& variant, const QueryContext& query, Index kv_length) {
  if constexpr (RangesOfContext<V>) return variant.visible_range(query, kv_length);
  else if constexpr (RangesOfPosition<V>) return variant.visible_range(query.position, kv_length);
}

/// Ranges that a variant returns for a query.
template <class V>
inline constexpr Index ranges_of =
    ranges_in<std::remove_cv_t<decltype(ranges_for(std::declval<const V&>(), QueryContext{}, Index{}))>>;

/// ranges[0 … ranges_of<V>) ← what the variant says.
template <class V>
GQA_ALWAYS_INLINE void get_ranges(const V& variant, const QueryContext& query, Index kv_length, PositionRange* ranges) {
  const auto seen = ranges_for(variant, query, kv_length);
  if constexpr (std::is_same_v<std::remove_cv_t<decltype(seen)>, PositionRange>) {
    *ranges = seen;
  } else {
    for (const PositionRange& range : seen) *ranges++ = range;
  }
}

}  // namespace detail::inline GQA_ABI

/// A variant says what a query sees and, if it likes, how scores change. It is a struct of the caller's with members for the stages of a
/// score's way, of which the first is required and each other one may have one of its forms (all const):
///
/// | stage | member |
/// | --- | --- |
/// | visible range | `PositionRange visible_range(Index query_position, Index kv_length)`: what a query sees lies in it |
/// | | `std::array<PositionRange, N> visible_range(…)`: or in any of up to 8 ranges, in any order, such as first tokens and a window |
/// | | either of them with `const QueryContext& query` in the place of its position |
/// | mask | `bool is_visible(Index query_position, Index key_position, Index query_head)`: refines the ranges pair by pair |
/// | | `bool is_visible(const RowContext& row, Index key_position)` |
/// | | `std::uint64_t visible_bits(const RowContext& row, Index block_begin)`: bit t says whether the row sees block_begin + t, a multiple of 64 |
/// | | `auto visible(const RowContext& row, auto k)`: a condition, evaluated on vectors: see gqa::expression |
/// | score | `float score(float score, Index query_position, Index key_position, Index query_head)`: changes a scaled score, one at a time |
/// | | `float score(float score, const RowContext& row, Index key_position)` |
/// | | `auto score(auto s, const RowContext& row, auto k)`: an expression, evaluated on vectors: several times as fast |
/// | sink | `float sink(const RowContext& row)`: a learned score of a key without a value, which takes its share of the weights |
/// | | `bool sink_in_lse()`: whether it counts in the log-sum-exp; it does unless the variant says otherwise |
/// | output | `float output_factor(const RowContext& row)`: the row's output is multiplied by it |
/// | | `GateRow output_gate(const RowContext& row)`: and each of its elements by the sigmoid of a logit of its own |
/// | check | `void check()`: throws if the variant's own parameters are wrong; called before any work |
/// | | `void check(const SequenceContext& sequence)`: or if they do not fit a sequence of the call; called for each |
///
/// A member with one of these names that has another form, that is private, or whose constraints are not met is refused at compile time, and
/// so are two forms of one stage, but for `visible` beside another form of the mask: then a row sees what both let it see.
///
/// What is promised of their use:
/// - Nothing outside the ranges is read, also no entry of a page table; blocks of 64 tokens outside them cost nothing, and blocks in which
///   the mask hides everything cost its calls alone.
/// - A range may reach below 0 and beyond the cache; it is clipped. Any position is allowed, also ones that the cache does not have:
///   those of the queries are the last ones of the cache, or Sequence::positions.
/// - is_visible is asked for pairs of which the key lies in a range and in the cache; score, for pairs that are visible besides. How often, in
///   which order and on which thread is open, so both must be functions of their arguments and of what does not change during the call:
///   that is what keeps a row's bits the same in every batch and chunking. They are called from several threads at once. QueryContext::query
///   and ::sequence say where a row stands in its call, for masks and biases that are stored so: what a variant makes of them is its own.
/// - A score of −∞ gives a weight of exactly zero, but the token counts as seen: a NaN in its values shows. Masks belong in the mask stage. A
///   row that sees nothing, or whose scores are all −∞, is zero, and its log-sum-exp is −∞.
/// - A sink is in natural units, as scores are after their change: exp(sink) joins the sum of weights that outputs are divided by, and the
///   log-sum-exp. Of −∞ it changes nothing.
/// - A factor and a gate change an output once it is there, in f32, before it is rounded to its type; the log-sum-exp has nothing of them.
/// - What they throw reaches the caller of the functor, once all threads have stopped. Outputs are undefined then; functor, caches and
///   executor are as usable as before.
///
/// What a variant costs, from the least to the most:
/// - ranges: nothing beside the tokens in them. Blocks outside are not read, and a range that ends within a block costs no call;
/// - masks of words: a call for each row and block of 64 tokens that is in range; a block that no row sees is not computed;
/// - expressions, masks and scores: their operations on the path's vectors; a division, exp, log or tanh more than the others, a lookup
///   the reading of its numbers, which for a bias of every pair may be more than the cache itself;
/// - is_visible and scalar scores: a call a pair, on no vector: the slowest form of either.
/// What is the same for a whole row (a slope, a scale, whether the query is a global token) is computed once a row and call: it belongs before
/// the leaves `s` and `k`. Figures: benchmarks/README.md.
///
/// A score that is computed one at a time is compiled with your unit's flags: where those have fused multiply-adds, your products and sums may
/// be fused. An expression's bits do not depend on flags.
template <class V>
concept Variant = requires(const V& variant, const detail::AnyQuery& query, Index kv_length) {
  variant.visible_range(query, kv_length);
}
&&(detail::ranges_of<V> > 0);

namespace detail {

/// Forms of the mask.
template <class V>
concept MaskOfPair = requires(const V& variant, Index position) {
  { variant.is_visible(position, position, position) } -> std::convertible_to<bool>;
};
template <class V>
concept MaskOfContext = requires(const V& variant, const RowContext& row, Index position) {
  { variant.is_visible(row, position) } -> std::convertible_to<bool>;
};
template <class V>
concept MaskOfWords = requires(const V& variant, const RowContext& row, Index position) {
  { variant.visible_bits(row, position) } -> std::same_as<std::uint64_t>;
};
template <class V>
concept MaskExpression = requires(const V& variant, const RowContext& row, const expression::Key& key) {
  { variant.visible(row, key) } -> expression::Condition;
};
/// One that baseline code works out.
template <class V>
concept PlainMask = MaskOfPair<V> || MaskOfContext<V> || MaskOfWords<V>;

/// Forms of the score.
template <class V>
concept ScoreExpression = requires(const V& variant, const expression::Score& score, const RowContext& row,
                                   const expression::Key& key) {
  { variant.score(score, row, key) } -> expression::Value;
};
template <class V>
concept ScoreOfContext = !ScoreExpression<V> && requires(const V& variant, const RowContext& row, Index position) {
  { variant.score(1.0f, row, position) } -> std::convertible_to<float>;
};
template <class V>
concept ScoreOfPair = requires(const V& variant, Index position) {
  { variant.score(1.0f, position, position, position) } -> std::convertible_to<float>;
};

template <class V>
concept Scores = ScoreExpression<V> || ScoreOfContext<V> || ScoreOfPair<V>;

template <class V>
concept HasSink = requires(const V& variant, const RowContext& row) {
  { variant.sink(row) } -> std::convertible_to<float>;
};
/// One that is left out of the log-sum-exp, if it says so.
template <class V>
concept SaysSinkInLse = requires(const V& variant) {
  { variant.sink_in_lse() } -> std::convertible_to<bool>;
};

/// The trees' types, and how many numbers they have.
template <class V>
struct ScoreTreeOf {
  using Sizes = SumOfSizes<>;
};
template <ScoreExpression V>
struct ScoreTreeOf<V> {
  using Type = decltype(std::declval<const V&>().score(expression::Score{}, RowContext{}, expression::Key{}));
  using Sizes = TreeSize<Type>;
};
template <class V>
using ScoreTree = typename ScoreTreeOf<V>::Type;
template <class V>
using ScoreSize = typename ScoreTreeOf<V>::Sizes;
template <class V>
struct VisibleTreeOf {
  using Sizes = SumOfSizes<>;
};
template <MaskExpression V>
struct VisibleTreeOf<V> {
  using Type = decltype(std::declval<const V&>().visible(RowContext{}, expression::Key{}));
  using Sizes = TreeSize<Type>;
};
template <class V>
using VisibleTree = typename VisibleTreeOf<V>::Type;
template <class V>
using VisibleSize = typename VisibleTreeOf<V>::Sizes;

template <class V>
concept HasOutputFactor = requires(const V& variant, const RowContext& row) {
  { variant.output_factor(row) } -> std::convertible_to<float>;
};
template <class V>
concept HasOutputGate = requires(const V& variant, const RowContext& row) {
  { variant.output_gate(row) } -> std::convertible_to<GateRow>;
};

}  // namespace detail

/// Variant that refines its ranges.
template <class V>
concept MaskingVariant = Variant<V> &&(detail::PlainMask<V> || detail::MaskExpression<V>);

/// Variant that changes scores.
template <class V>
concept ScoringVariant = Variant<V> && detail::Scores<V>;

/// Variant with a sink.
template <class V>
concept SinkVariant = Variant<V> && detail::HasSink<V>;

/// Variant that changes outputs.
template <class V>
concept OutputVariant = Variant<V> &&(detail::HasOutputFactor<V> || detail::HasOutputGate<V>);

/// Every query sees every token (bidirectional and cross attention).
struct Full {
  GQA_ALWAYS_INLINE constexpr PositionRange visible_range(Index, Index kv_length) const noexcept {
    return {0, kv_length};
  }
};

/// A query sees its own position and everything before it. What that is follows from the query's position in the cache, not in q: the queries
/// are the last n_q tokens of the cache (aligned at the bottom right) unless Sequence::positions says otherwise.
struct Causal {
  GQA_ALWAYS_INLINE constexpr PositionRange visible_range(Index query_position, Index kv_length) const noexcept {
    return {0, query_position < kv_length ? query_position + 1 : kv_length};
  }
};

/// A query sees its own position and the `window` − 1 before it (window >= 1). Mistral's and Gemma's sliding window.
struct CausalWindow {
  Index window;
  /// @throws ArgumentError unless window >= 1
  GQA_ALWAYS_INLINE void check() const {
    if (window < 1) detail::fail("variant.window", window, "1 or more positions");
  }
  GQA_ALWAYS_INLINE constexpr PositionRange visible_range(Index query_position, Index kv_length) const noexcept {
    const Index begin = query_position >= window ? query_position - window + 1 : 0;
    return {begin, query_position < kv_length ? query_position + 1 : kv_length};
  }
};

}  // namespace gqa
