// SPDX-License-Identifier: Apache-2.0
/// @file
/// Keys and values of a column, staged as words when a row first sees them.
#pragma once

#include "gqa/detail/backward/plan.hpp"

namespace gqa::detail::inline GQA_ABI {

inline void clear_floats(float* floats, Index count) noexcept {
  std::memset(floats, 0, static_cast<std::size_t>(count) * sizeof(float));
}

/// Whether no lane of an even number of words, of whose bits those of `mask` count, reaches its sign when `added` is added.
inline bool below_signs(const float* words, Index count, std::uint64_t mask, std::uint64_t added,
                        std::uint64_t signs) noexcept {
  std::uint64_t found = 0;
  for (Index i = 0; i < count; i += 2) {
    std::uint64_t bits;
    std::memcpy(&bits, words + i, sizeof bits);
    found |= (bits & mask) + added;
  }
  return (found & signs) == 0;
}
/// Whether all of an even number of words, f32 or pairs of bf16, are finite: of exponents, ones alone reach the sign when 1 is added.
inline bool all_finite(const float* words, Index count, Index elements) noexcept {
  return elements == 1 ? below_signs(words, count, 0x7f8000007f800000u, 0x0080000000800000u, 0x8000000080000000u)
                       : below_signs(words, count, 0x7f807f807f807f80u, 0x0080008000800080u, 0x8000800080008000u);
}
/// Whether an even number of floats are finite as the elements of words: half a unit of bf16 more, and large ones round to infinity.
inline bool all_finite_as(Index elements, const float* floats, Index count) noexcept {
  return elements == 1 ? all_finite(floats, count, 1)
                       : below_signs(floats, count, 0x7fffffff7fffffffu, 0x0080800000808000u, 0x8000000080000000u);
}

/// The blocks of a column: those of their tokens that some row has seen; zeros for the others. Nothing of a token is read before.
class ColumnRows {
 public:
  ColumnRows(const CallPlan& call, const BackwardScratch& scratch) noexcept : call_(call), scratch_(scratch) {}

  /// Goes on to a column of a KV head, of which nothing is there yet.
  void enter(const Sequence& sequence, const BackwardKernels& kernels, Index kv_head) noexcept {
    sequence_ = &sequence;
    kernels_ = &kernels;
    kv_head_ = kv_head;
    part_ = nullptr;
    for (std::uint64_t& tokens : tokens_) tokens = 0;
  }

  /// Adds those of `tokens` to block number b that are not there yet.
  void stage(const Block& block, Index b, std::uint64_t tokens) {
    tokens &= ~tokens_[b];
    if (tokens == 0) return;
    if (tokens_[b] == 0) {
      clear_rows(b);
      clear_sums(b);
    }
    add(block, b, tokens);
  }
  /// Block number b has these tokens and no others; its sums stay.
  void stage_alone(const Block& block, Index b, std::uint64_t tokens) {
    clear_rows(b);
    tokens_[b] = 0;
    add(block, b, tokens);
  }

  /// Those that are there.
  std::uint64_t tokens(Index b) const noexcept { return tokens_[b]; }

  /// Whether all their keys and values are finite.
  bool is_finite(Index b) noexcept {
    if (!looked_at_[b]) {
      const Index elements = kernels_->word_elements;
      looked_at_[b] = true;
      finite_[b] = all_finite(keys(b), kBlock * scratch_.tile.head_width / elements, elements) &&
                   all_finite(values(b), kBlock * scratch_.tile.value_width / elements, elements);
    }
    return finite_[b];
  }

  /// The sums of blocks that nobody saw ← 0.
  void clear_unseen() const noexcept {
    for (Index b = 0; b < kColumnBlocks; ++b)
      if (tokens_[b] == 0) clear_sums(b);
  }

 private:
  void add(Block block, Index b, std::uint64_t tokens) {
    const KvCacheView& part = go_on_to(block.begin);
    const BlockAddress at = addresses_.block(block.begin, tokens);
    block.k = static_cast<const std::byte*>(part.k) + at.k_base + kv_head_ * addresses_.k_strides().head;
    block.v = static_cast<const std::byte*>(part.v) + at.v_base + kv_head_ * addresses_.v_strides().head;
    block.k_offset = at.k_offset;
    block.v_offset = at.v_offset;
    if (has_scales(part)) {
      call_.coded->find_scales(part, at, tokens, kv_head_, 1, *scratch_.asked.scales);
      block.scales = scratch_.asked.scales->head;
    }
    const BackwardTile& tile = scratch_.tile;
    kernels_->stage_keys[part.k_type.id()](tile, b, block, tokens);
    kernels_->stage_values[part.v_type.id()](tile, b, block, tokens);
    kernels_->turn_keys(tile, b);
    tokens_[b] |= tokens;
    looked_at_[b] = false;
  }
  /// The part of the sequence that a block lies in.
  const KvCacheView& go_on_to(Index begin) {
    const KvCacheView& part = sequence_->kv.part(sequence_->kv.part_of(begin));
    if (&part != part_) {
      part_ = &part;
      addresses_ = AddressBook(part, scratch_.asked.tables, 1);
    }
    return part;
  }
  float* keys(Index b) const noexcept {
    return scratch_.tile.keys + b * kBlock * scratch_.tile.head_width / kernels_->word_elements;
  }
  float* values(Index b) const noexcept {
    return scratch_.tile.values + b * kBlock * scratch_.tile.value_width / kernels_->word_elements;
  }
  void clear_rows(Index b) const noexcept {
    clear_floats(keys(b), kBlock * scratch_.tile.head_width / kernels_->word_elements);
    clear_floats(values(b), kBlock * scratch_.tile.value_width / kernels_->word_elements);
  }
  void clear_sums(Index b) const noexcept {
    const BackwardTile& tile = scratch_.tile;
    clear_floats(tile.d_k + b * kBlock * tile.head_width, kBlock * tile.head_width);
    clear_floats(tile.d_v + b * kBlock * tile.value_width, kBlock * tile.value_width);
  }

  const CallPlan& call_;
  const BackwardScratch& scratch_;
  const Sequence* sequence_ = nullptr;
  const BackwardKernels* kernels_ = nullptr;
  Index kv_head_ = 0;
  const KvCacheView* part_ = nullptr;
  AddressBook addresses_{};
  std::uint64_t tokens_[kColumnBlocks] = {};
  bool looked_at_[kColumnBlocks] = {};  // finite_ is known
  bool finite_[kColumnBlocks] = {};
};

}  // namespace gqa::detail::inline GQA_ABI
