// SPDX-License-Identifier: Apache-2.0
/// @file
/// Values of tokens that some rows must not see. 0 × NaN is not 0: where such values are no finite numbers, weights of zero are not enough, and
/// the block is `careful`: kernels then take hidden values as zero, row by row.
#pragma once

#include <cstring>

#include "gqa/detail/plan.hpp"

namespace gqa::detail::inline GQA_ABI {

/// Finds the careful blocks of a task's stages, and adds values.
///
/// Of many rows, a block's hidden values are looked at beforehand. Of few rows, values are read from memory once, and to look at them is to
/// read them; so outputs tell afterwards: if one is no finite number, hidden values are looked at, and if it was theirs, the stage's values
/// are added once more, to the state as it was.
class HiddenValues {
 public:
  HiddenValues(Index value_dim, const TaskScratch& scratch) noexcept
      : value_dim_(value_dim), units_(scratch.units), kept_(scratch.kept_state), state_bytes_(scratch.state_bytes) {}

  /// Goes on to values of another codec.
  void take(const CodecKernels& values) noexcept { values_ = &values; }

  /// A block of a stage that is being planned. `hidden`: its tokens in [first, last) that some row does not see.
  void mark(Block& block, std::uint64_t hidden) const {
    block.hidden = hidden;
    block.careful = hidden != 0 && kept_ == nullptr && values_->nonfinite(block, hidden, value_dim_);
  }

  /// tile.o ← α · tile.o + weights · V, for every unit of the stage.
  void accumulate(const QueryTile& tile, const Stage& stage, Prefetcher& prefetcher) const {
    if (kept_ == nullptr || !hides(stage)) return values_->accumulate(tile, stage, prefetcher);
    std::memcpy(kept_, tile.m, state_bytes_);
    values_->accumulate(tile, stage, prefetcher);
    if (all_finite(tile.o, stage.heads * tile.rows * tile.o_stride) || !find_careful(stage)) return;
    std::memcpy(tile.m, kept_, state_bytes_);
    Prefetcher nothing;
    values_->accumulate(tile, stage, nothing);
  }

 private:
  static bool hides(const Stage& stage) noexcept {
    std::uint64_t hidden = 0;
    for (Index i = 0; i < stage.blocks * stage.heads; ++i) hidden |= stage.units[i].hidden;
    return hidden != 0;
  }
  static bool all_finite(const float* o, Index count) noexcept {
    std::uint32_t found = 0;
    for (Index i = 0; i < count; ++i) {
      std::uint32_t bits;
      std::memcpy(&bits, o + i, sizeof bits);
      found |= (bits & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
    }
    return found == 0;
  }
  bool find_careful(const Stage& stage) const {
    bool found = false;
    for (Index i = 0; i < stage.blocks * stage.heads; ++i) {
      Block& block = units_[stage.units - units_ + i];
      block.careful = block.hidden != 0 && values_->nonfinite(block, block.hidden, value_dim_);
      found |= block.careful;
    }
    return found;
  }

  const CodecKernels* values_ = nullptr;
  Index value_dim_;
  Block* units_;
  std::byte* kept_;  // where the state is kept meanwhile; null: blocks are looked at beforehand
  std::size_t state_bytes_;
};

}  // namespace gqa::detail::inline GQA_ABI
