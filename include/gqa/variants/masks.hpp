// SPDX-License-Identifier: Apache-2.0
/// @file
/// Masks that are no ranges: boolean tensors, dilated windows, lists of blocks, and trees of draft tokens. Blocks of 64 keys of which no row of
/// a tile sees anything are never read. Those without visible_range are parts, to be composed with one that has it.
#pragma once

#include <span>

#include "gqa/variant.hpp"
#include "gqa/variants/broadcast_view.hpp"

namespace gqa {

namespace detail {

/// Bit t ← whether first[t · stride] is not 0, for t in [0, count), count <= 64.
template <class T>
GQA_ALWAYS_INLINE std::uint64_t nonzero_bits(const T* first, Index stride, Index count) noexcept {
  std::uint64_t bits = 0;
  Index t = 0;
  if constexpr (sizeof(T) ==
                1) {  // eight at a time: whether a byte is not 0 to its highest bit, and these to the highest byte
    for (; stride == 1 && t + 8 <= count; t += 8) {
      std::uint64_t bytes;
      __builtin_memcpy(&bytes, first + t, 8);
      constexpr std::uint64_t low = 0x7f7f7f7f7f7f7f7fu;
      const std::uint64_t high = (((bytes & low) + low) | bytes) & ~low;
      bits |= ((high >> 7) * 0x0102040810204080u >> 56) << t;
    }
  }
  for (; t < count; ++t) bits |= std::uint64_t{first[t * stride] != T{}} << t;
  return bits;
}

}  // namespace detail

/// A query row sees the keys whose flags are not 0: T is bool or std::uint8_t.
template <class T>
struct BooleanMask {
  BroadcastView<T> allowed;
  /// @throws ArgumentError if the flags do not fit the call
  GQA_ALWAYS_INLINE void check(const SequenceContext& sequence) const { allowed.check("allowed", sequence); }
  GQA_ALWAYS_INLINE constexpr PositionRange visible_range(Index, Index kv_length) const noexcept {
    return {0, kv_length};
  }
  GQA_ALWAYS_INLINE std::uint64_t visible_bits(const RowContext& row, Index block_begin) const noexcept {
    const Index left = allowed.keys - block_begin;
    if (left <= 0) return 0;
    return detail::nonzero_bits(allowed.row(row) + block_begin * allowed.strides.key, allowed.strides.key,
                                left < 64 ? left : Index{64});
  }
};
template <class T>
BooleanMask(BroadcastView<T>) -> BooleanMask<T>;

/// Causal, of every `step`-th position back from a query's own, `count` of them (Longformer's dilated window, Beltagy et al. 2020).
struct DilatedWindow {
  Index step;
  Index count;
  /// @throws ArgumentError unless both are 1 or more
  GQA_ALWAYS_INLINE void check() const {
    if (step < 1) detail::fail("variant.step", step, "1 or more positions");
    if (count < 1) detail::fail("variant.count", count, "1 or more positions");
  }
  GQA_ALWAYS_INLINE constexpr PositionRange visible_range(Index query_position, Index kv_length) const noexcept {
    const PositionRange causal = Causal{}.visible_range(query_position, kv_length);
    if (query_position < 0 || count > query_position / step) return causal;
    return {query_position - (count - 1) * step, causal.end};
  }
  GQA_ALWAYS_INLINE constexpr std::uint64_t visible_bits(const RowContext& row, Index block_begin) const noexcept {
    std::uint64_t bits = 0;
    if (row.position < 0) return bits;
    Index t = row.position % step - block_begin % step;
    if (t < 0) t += step;
    for (; t < 64; t += step) {
      bits |= std::uint64_t{1} << t;
      if (step >= 64) break;  // and t + step may be no number
    }
    return bits;
  }
};

/// Blocks of queries see lists of blocks of keys (BigBird, MInference, FlexAttention's block masks): block b of queries, the positions
/// [b · query_block, (b + 1) · query_block), sees the blocks of keys numbered keys[offsets[b]] … keys[offsets[b + 1]) in ascending order,
/// block j being the positions [j · key_block, (j + 1) · key_block). All heads alike.
struct BlockSparse {
  Index query_block;
  Index key_block;
  std::span<const Index> offsets;  ///< blocks of queries + 1
  std::span<const Index> keys;
  /// @throws ArgumentError if blocks are empty, or a list is not in ascending order or reaches beyond `keys`
  GQA_ALWAYS_INLINE void check() const {
    using detail::fail;
    using detail::to_text;
    if (query_block < 1) fail("variant.query_block", query_block, "1 or more positions");
    if (key_block < 1) fail("variant.key_block", key_block, "1 or more positions");
    const auto listed = static_cast<Index>(keys.size());
    for (std::size_t b = 0; b < offsets.size(); ++b) {
      const Index least = b == 0 ? 0 : offsets[b - 1];
      if (offsets[b] < least || offsets[b] > listed)
        fail("variant.offsets[" + to_text(b) + "]", offsets[b],
             "between " + to_text(least) + " and keys.size() = " + to_text(listed));
    }
    for (std::size_t b = 1; b < offsets.size(); ++b) {
      for (Index i = offsets[b - 1]; i < offsets[b]; ++i) {
        const Index key = keys[static_cast<std::size_t>(i)];
        if (key < 0 || (i > offsets[b - 1] && key <= keys[static_cast<std::size_t>(i - 1)]))
          fail("variant.keys[" + to_text(i) + "]", key, "0 or more, and ascending within a block of queries");
      }
    }
  }
  GQA_ALWAYS_INLINE constexpr PositionRange visible_range(Index query_position, Index kv_length) const noexcept {
    const Index b = query_position / query_block;
    if (query_position < 0 || b >= static_cast<Index>(offsets.size()) - 1) return {};
    const Index first = offsets[static_cast<std::size_t>(b)];
    const Index last = offsets[static_cast<std::size_t>(b + 1)];
    if (first == last) return {};
    const auto begin_of = [&](Index i) {  // a block that begins behind the cache stays there
      const Index number = keys[static_cast<std::size_t>(i)];
      return number > kv_length / key_block ? kv_length : number * key_block;
    };
    const Index end = begin_of(last - 1);
    return {begin_of(first), kv_length - end > key_block ? end + key_block : kv_length};
  }
  GQA_ALWAYS_INLINE constexpr std::uint64_t visible_bits(const RowContext& row, Index block_begin) const noexcept {
    const auto b = static_cast<std::size_t>(row.position / query_block);
    const Index from = block_begin / key_block;
    Index low = offsets[b];  // the first listed block that may reach the 64 keys
    for (Index high = offsets[b + 1]; low < high;) {
      const Index middle = (low + high) / 2;
      if (keys[static_cast<std::size_t>(middle)] >= from) high = middle;
      else low = middle + 1;
    }
    std::uint64_t bits = 0;
    for (; low < offsets[b + 1] && keys[static_cast<std::size_t>(low)] <= (block_begin + 63) / key_block; ++low) {
      const Index begin = keys[static_cast<std::size_t>(low)] * key_block - block_begin;
      const Index end = begin + key_block;
      const std::uint64_t below = end >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << end) - 1;
      bits |= begin <= 0 ? below : below & (~std::uint64_t{0} << begin);
    }
    return bits;
  }
};

/// Draft tokens in a tree, verified in one call (speculative decoding; SpecInfer, Miao et al. 2023; Medusa). The query tokens of a sequence
/// are the tree's nodes, in the cache behind `prefix` tokens in the same order: node i sees the prefix, its ancestors, and itself. Give each
/// node's position, prefix + depth, to what turns queries and keys (RoPE); Sequence::positions has to say nothing here.
struct DraftTree {
  Index prefix;                              ///< tokens before the first node
  std::span<const std::int32_t> parents;     ///< of each node: one before it, or −1: the prefix
  std::span<const std::uint64_t> ancestors;  ///< nodes × words_a_node(nodes), of fill_ancestors

  static GQA_ALWAYS_INLINE constexpr Index words_a_node(Index nodes) noexcept { return (nodes + 63) / 64; }
  /// ancestors[i] ← bit j says whether node i sees node j. As many words as words_a_node() says for each node.
  /// @throws ArgumentError if a parent is not before its node, or there are too few words
  static GQA_ALWAYS_INLINE void fill_ancestors(std::span<const std::int32_t> parents,
                                               std::span<std::uint64_t> ancestors) {
    const auto nodes = static_cast<Index>(parents.size());
    const Index words = words_a_node(nodes);
    if (static_cast<Index>(ancestors.size()) < nodes * words)
      detail::fail("ancestors.size()", static_cast<Index>(ancestors.size()),
                   "nodes * words_a_node(nodes) = " + detail::to_text(nodes * words) + " or more");
    check_parents("parents", parents);
    for (Index i = 0; i < nodes; ++i) {
      std::uint64_t* const mine = ancestors.data() + i * words;
      const Index parent = parents[static_cast<std::size_t>(i)];
      for (Index word = 0; word < words; ++word)
        mine[word] = parent < 0 ? 0 : ancestors[static_cast<std::size_t>(parent * words + word)];
      mine[i / 64] |= std::uint64_t{1} << (i % 64);
    }
  }

  /// @throws ArgumentError if a parent is not before its node, or if nodes and words do not fit the call
  GQA_ALWAYS_INLINE void check(const SequenceContext& sequence) const {
    const auto nodes = static_cast<Index>(parents.size());
    check_parents("variant.parents", parents);
    if (nodes != sequence.queries)
      detail::fail("variant.parents.size()", nodes, "q.tokens = " + detail::to_text(sequence.queries));
    if (prefix < 0 || prefix != sequence.kv_length - nodes)
      detail::fail("variant.prefix", prefix,
                   "kv.length - q.tokens = " + detail::to_text(sequence.kv_length - sequence.queries));
    if (static_cast<Index>(ancestors.size()) < nodes * words_a_node(nodes))
      detail::fail("variant.ancestors.size()", static_cast<Index>(ancestors.size()),
                   "nodes * words_a_node(nodes) = " + detail::to_text(nodes * words_a_node(nodes)) + " or more");
  }
  GQA_ALWAYS_INLINE constexpr PositionRange visible_range(const QueryContext& query, Index) const noexcept {
    return {0, prefix + query.query + 1};
  }
  GQA_ALWAYS_INLINE constexpr std::uint64_t visible_bits(const RowContext& row, Index block_begin) const noexcept {
    const Index first = block_begin - prefix;  // the node at bit 0
    if (first <= -64) return ~std::uint64_t{0};
    const Index words = words_a_node(static_cast<Index>(parents.size()));
    const std::uint64_t* const mine = ancestors.data() + row.query * words;
    if (first < 0) return (mine[0] << -first) | ((std::uint64_t{1} << -first) - 1);
    const Index word = first / 64;
    const Index shift = first % 64;
    std::uint64_t bits = word < words ? mine[word] >> shift : 0;
    if (shift != 0 && word + 1 < words) bits |= mine[word + 1] << (64 - shift);
    return bits;
  }

 private:
  static GQA_ALWAYS_INLINE void check_parents(const char* name, std::span<const std::int32_t> parents) {
    for (std::size_t i = 0; i < parents.size(); ++i) {
      if (parents[i] < -1 || parents[i] >= static_cast<std::int32_t>(i))
        detail::fail(detail::Text(name) + "[" + detail::to_text(i) + "]", parents[i],
                     "a node before it, or -1 for the prefix");
    }
  }
};

}  // namespace gqa
