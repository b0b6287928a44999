// SPDX-License-Identifier: Apache-2.0
/// @file
/// Variants whose masks are ranges: what lies outside costs nothing. Positions are those of the sequence.
#pragma once

#include <array>
#include <span>

#include "gqa/variant.hpp"

namespace gqa {

/// A query sees `before` positions before its own, its own, and `after` behind it: encoders with local attention (ModernBERT, Longformer).
struct TwoSidedWindow {
  Index before;
  Index after;
  /// @throws ArgumentError unless both are 0 or more
  GQA_ALWAYS_INLINE void check() const {
    if (before < 0) detail::fail("variant.before", before, "0 or more positions");
    if (after < 0) detail::fail("variant.after", after, "0 or more positions");
  }
  GQA_ALWAYS_INLINE constexpr PositionRange visible_range(Index query_position, Index kv_length) const noexcept {
    const Index begin = query_position > before ? query_position - before : 0;
    if (query_position < 0 && after < -(query_position + 1)) return {};  // what is behind it ends before position 0
    const Index left = kv_length - after;                                // positions whose windows end within the cache
    return {begin, query_position < left ? query_position + after + 1 : kv_length};
  }
};

/// The first `prefix` positions see each other; from there on it is causal (prefix language models, T5's decoder with a prefix, PaliGemma).
struct PrefixLm {
  Index prefix;
  /// @throws ArgumentError unless prefix >= 0
  GQA_ALWAYS_INLINE void check() const {
    if (prefix < 0) detail::fail("variant.prefix", prefix, "0 or more positions");
  }
  GQA_ALWAYS_INLINE constexpr PositionRange visible_range(Index query_position, Index kv_length) const noexcept {
    const PositionRange causal = Causal{}.visible_range(query_position, kv_length);
    const Index all = prefix < kv_length ? prefix : kv_length;
    return {0, query_position >= 0 && query_position < prefix && all > causal.end ? all : causal.end};
  }
};

/// A query sees the first `first` positions and a causal window of `window` (StreamingLLM's attention sinks, Xiao et al. 2023). What lies
/// between is not read, and its pages may be gone.
struct FirstTokensAndWindow {
  Index first;
  Index window;
  /// @throws ArgumentError unless first >= 0 and window >= 1
  GQA_ALWAYS_INLINE void check() const {
    if (first < 0) detail::fail("variant.first", first, "0 or more positions");
    CausalWindow{window}.check();
  }
  GQA_ALWAYS_INLINE constexpr std::array<PositionRange, 2> visible_range(Index query_position,
                                                                         Index kv_length) const noexcept {
    const PositionRange recent = CausalWindow{window}.visible_range(query_position, kv_length);
    return {PositionRange{0, first < recent.end ? first : recent.end}, recent};
  }
};

/// Causal within chunks of `chunk` positions, the first from 0 on (Llama 4's local layers).
struct ChunkedLocal {
  Index chunk;
  /// @throws ArgumentError unless chunk >= 1
  GQA_ALWAYS_INLINE void check() const {
    if (chunk < 1) detail::fail("variant.chunk", chunk, "1 or more positions");
  }
  GQA_ALWAYS_INLINE constexpr PositionRange visible_range(Index query_position, Index kv_length) const noexcept {
    const Index begin = query_position > 0 ? query_position / chunk * chunk : 0;
    return {begin, Causal{}.visible_range(query_position, kv_length).end};
  }
};

/// Causal, but for blocks of positions that see each other whole: images among text (Gemma 3), or a block of draft tokens over a causal prefix.
struct CausalWithBlocks {
  std::span<const PositionRange> blocks;  ///< in ascending order, without overlap
  /// @throws ArgumentError unless they are in order
  GQA_ALWAYS_INLINE void check() const {
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      if (blocks[i].end < blocks[i].begin || (i > 0 && blocks[i].begin < blocks[i - 1].end))
        detail::fail("variant.blocks[" + detail::to_text(i) + "].begin", blocks[i].begin,
                     "ranges in ascending order that do not overlap");
    }
  }
  GQA_ALWAYS_INLINE constexpr PositionRange visible_range(Index query_position, Index kv_length) const noexcept {
    const PositionRange causal = Causal{}.visible_range(query_position, kv_length);
    std::size_t low = 0;  // the first block that ends behind the query
    for (std::size_t high = blocks.size(); low < high;) {
      const std::size_t middle = (low + high) / 2;
      if (blocks[middle].end > query_position) high = middle;
      else low = middle + 1;
    }
    if (low == blocks.size() || blocks[low].begin > query_position) return causal;
    const Index end = blocks[low].end < kv_length ? blocks[low].end : kv_length;
    return {0, end > causal.end ? end : causal.end};
  }
};

/// Documents one after the other in one sequence, as offsets: document i has the positions [offsets[i], offsets[i + 1]). A query sees its own
/// document: what lies before it, or, with `causal` off, all of it. Positions outside of all see nothing.
struct PackedDocuments {
  std::span<const Index> offsets;  ///< documents + 1, ascending
  bool causal = true;
  /// @throws ArgumentError unless there are two offsets, and they ascend
  GQA_ALWAYS_INLINE void check() const {
    if (offsets.size() < 2)
      detail::fail("variant.offsets.size()", static_cast<Index>(offsets.size()), "2 or more: documents + 1");
    for (std::size_t i = 1; i < offsets.size(); ++i) {
      if (offsets[i] < offsets[i - 1])
        detail::fail("variant.offsets[" + detail::to_text(i) + "]", offsets[i],
                     "no less than the one before, " + detail::to_text(offsets[i - 1]));
    }
  }
  GQA_ALWAYS_INLINE constexpr PositionRange visible_range(Index query_position, Index kv_length) const noexcept {
    std::size_t low = 0;  // the first offset behind the query
    for (std::size_t high = offsets.size(); low < high;) {
      const std::size_t middle = (low + high) / 2;
      if (offsets[middle] > query_position) high = middle;
      else low = middle + 1;
    }
    if (low == 0 || low == offsets.size()) return {};
    return {offsets[low - 1], causal ? Causal{}.visible_range(query_position, kv_length).end : offsets[low]};
  }
};

/// The tokens of each sequence of a batch that are there, the others being padding: a range for each sequence. To be composed with Causal or
/// what else a model has.
struct ValidTokens {
  std::span<const PositionRange> of_sequence;
  /// @throws ArgumentError if the call has more sequences than there are ranges
  GQA_ALWAYS_INLINE void check(const SequenceContext& sequence) const {
    if (sequence.sequence >= static_cast<Index>(of_sequence.size()))
      detail::fail("variant.of_sequence.size()", static_cast<Index>(of_sequence.size()),
                   "a range for each sequence, " + detail::to_text(sequence.sequence + 1) + " at least");
  }
  GQA_ALWAYS_INLINE constexpr PositionRange visible_range(const QueryContext& query, Index) const noexcept {
    return of_sequence[static_cast<std::size_t>(query.sequence)];
  }
};

}  // namespace gqa
