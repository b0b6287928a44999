// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a query attends to: full, causal, causal with a sliding window, and the concept that a user's own variant models.
#pragma once

#include <concepts>

#include "gqa/error.hpp"

namespace gqa {

/// Positions begin, begin + 1, …, end − 1. Empty when end <= begin.
struct PositionRange {
  Index begin = 0;
  Index end = 0;
};

/// A variant says which positions a query sees and, if it likes, changes scores.
///
/// Required:  PositionRange visible_range(Index query_position, Index kv_length) const
///            — nothing outside it is read; blocks outside it are never computed.
/// Optional:  bool is_visible(Index query_position, Index key_position, Index query_head) const
///            — refines the range pair by pair (a tree mask, documents packed in one sequence).
/// Optional:  float score(float score, Index query_position, Index key_position, Index query_head) const
///            — changes a scaled score (ALiBi, soft cap). Must be a pure function of its arguments.
///            It is compiled with your unit's flags: where those have fused multiply-adds, your products and sums may be fused.
///            A token with score −∞ has weight zero but is still seen: a NaN in its values shows. Masks belong in is_visible.
///            void check() const
///            — throws if the variant's own parameters are wrong; called before any work.
///
/// All are called from several threads at once. A row's result may depend on nothing else, which is what keeps it the same
/// bits in every batch and chunking.
template <class V>
concept Variant = requires(const V& variant, Index position) {
  { variant.visible_range(position, position) } -> std::same_as<PositionRange>;
};

/// Variant that refines its range pair by pair.
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

/// A query sees its own position and everything before it.
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
