// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a query attends to: full, causal, causal with a sliding window, and the concept that a user's own variant models.
#pragma once

#include <array>
#include <concepts>
#include <type_traits>
#include <utility>

#include "gqa/error.hpp"

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

/// Ranges that a variant returns for a query.
template <class V>
inline constexpr Index ranges_of =
    ranges_in<std::remove_cvref_t<decltype(std::declval<const V&>().visible_range(Index{}, Index{}))>>;

/// ranges[0 … ranges_of<V>) ← what the variant says.
template <class V>
GQA_ALWAYS_INLINE void get_ranges(const V& variant, Index query_position, Index kv_length, PositionRange* ranges) {
  const auto seen = variant.visible_range(query_position, kv_length);
  if constexpr (std::is_same_v<std::remove_cv_t<decltype(seen)>, PositionRange>) {
    *ranges = seen;
  } else {
    for (const PositionRange& range : seen) *ranges++ = range;
  }
}

}  // namespace detail::inline GQA_ABI

/// A variant says which positions a query sees and, if it likes, changes scores. It is a struct of the caller's with these members:
///
/// | member | |
/// | --- | --- |
/// | `PositionRange visible_range(Index query_position, Index kv_length) const` | required: what a query sees lies in it |
/// | `std::array<PositionRange, N> visible_range(…) const` | or in any of up to 8 ranges, in any order, such as first tokens and a window |
/// | `bool is_visible(Index query_position, Index key_position, Index query_head) const` | refines the ranges pair by pair |
/// | `float score(float score, Index query_position, Index key_position, Index query_head) const` | changes a scaled score |
/// | `void check() const` | throws if the variant's own parameters are wrong; called before any work |
///
/// A member with one of these names that has another form, that is private, or whose constraints are not met is refused at compile time.
///
/// What is promised of their use:
/// - Nothing outside the ranges is read, also no entry of a page table; blocks of 64 tokens outside them cost nothing, and blocks in which
///   is_visible hides everything cost its calls alone.
/// - A range may reach below 0 and beyond the cache; it is clipped. Any position is allowed, also ones that the cache does not have:
///   those of the queries are the last ones of the cache, or Sequence::positions.
/// - is_visible is asked for pairs of which the key lies in a range and in the cache; score, for pairs that are visible besides. How often, in
///   which order and on which thread is open, so both must be functions of their arguments and of what does not change during the call:
///   that is what keeps a row's bits the same in every batch and chunking. They are called from several threads at once.
/// - A score of −∞ gives a weight of exactly zero, but the token counts as seen: a NaN in its values shows. Masks belong in is_visible. A
///   row that sees nothing, or whose scores are all −∞, is zero, and its log-sum-exp is −∞.
/// - What they throw reaches the caller of the functor, once all threads have stopped. Outputs are undefined then; functor, caches and
///   executor are as usable as before.
///
/// A score is compiled with your unit's flags: where those have fused multiply-adds, your products and sums may be fused.
template <class V>
concept Variant = requires(const V& variant, Index position) {
  variant.visible_range(position, position);
}
&&(detail::ranges_of<V> > 0);

/// Variant that refines its ranges pair by pair.
template <class V>
concept MaskingVariant = Variant<V> && requires(const V& variant, Index position) {
  { variant.is_visible(position, position, position) } -> std::convertible_to<bool>;
};

/// Variant that changes scores.
template <class V>
concept ScoringVariant = Variant<V> && requires(const V& variant, Index position) {
  { variant.score(1.0f, position, position, position) } -> std::convertible_to<float>;
};

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
