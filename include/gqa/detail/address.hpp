// SPDX-License-Identifier: Apache-2.0
/// @file
/// From positions to addresses: the one place that knows contiguous, ring and paged storage apart.
#pragma once

#include "gqa/detail/kernel_types.hpp"
#include "gqa/kv_cache_view.hpp"
#include "gqa/variant.hpp"

namespace gqa::detail {

/// Strides of a view in bytes.
struct ByteStrides {
  Index token = 0;
  Index head = 0;
  Index page = 0;
};

/// Where a position lies: the slot within its page (or the whole storage), and how many positions follow in the next slots.
struct Place {
  Index page = 0;
  Index slot = 0;
  Index run = 0;
};

/// Offsets of the rows of one block, for K and for V: row t of head h is at base + h · head stride + offset[t] bytes.
struct BlockAddress {
  Index k_base = 0;
  Index v_base = 0;
  const Index* k_offset = nullptr;
  const Index* v_offset = nullptr;
  bool uniform = false;  ///< offset[t] = t · token stride
  Index begin = 0;       ///< the block's first position, a multiple of kBlock
  Index first = 0;       ///< tokens of the block that are asked for
  Index last = 0;
};

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

inline ByteStrides byte_strides(const KvStrides& strides, ElementType type) noexcept {
  const Index bytes = element_bytes(type);
  return {strides.token * bytes, strides.head * bytes, strides.page * bytes};
}

inline Place locate(const KvCacheView& kv, Index position) noexcept {
  switch (kv.storage) {
    case Storage::contiguous: return {0, position, kv.length - position};
    case Storage::ring: {
      const Index slot = position % kv.capacity;
      return {0, slot, kv.capacity - slot};
    }
    case Storage::paged: {
      const Index slot = position % kv.page_size;
      return {kv.page_table[position / kv.page_size], slot, kv.page_size - slot};
    }
  }
  return {};
}

/// Finds the rows of a sequence's blocks. One per task: it keeps the table of offsets that every block in one run shares, and
/// tables of their own for the last two blocks that are not in one run.
class AddressBook {
 public:
  AddressBook(const KvCacheView& kv, Index* tables) noexcept
      : kv_(kv),
        k_(byte_strides(kv.k_strides, kv.k_type)),
        v_(byte_strides(kv.v_strides, kv.v_type)),
        uniform_(tables),
        scattered_(tables + 2 * kBlock) {
    for (Index t = 0; t < kBlock; ++t) {
      uniform_[t] = t * k_.token;
      uniform_[kBlock + t] = t * v_.token;
    }
  }

  /// Entries that `tables` needs.
  static constexpr Index kTableSize = 6 * kBlock;

  /// Rows of the positions in `range`, a part of the block that starts at `begin`. Valid until the call after the next.
  BlockAddress block(Index begin, const PositionRange& range) noexcept {
    const Index first = range.begin - begin;
    const Index last = range.end - begin;
    Place place = locate(kv_, range.begin);
    if (place.run >= last - first)
      return {place.page * k_.page + (place.slot - first) * k_.token, place.page * v_.page + (place.slot - first) * v_.token,
              uniform_, uniform_ + kBlock, true, begin, first, last};
    other_ = !other_;
    Index* const offsets = scattered_ + (other_ ? 2 * kBlock : 0);
    for (Index t = first; t < last;) {
      place = locate(kv_, begin + t);
      for (Index i = 0; i < place.run && t < last; ++i, ++t) {
        offsets[t] = place.page * k_.page + (place.slot + i) * k_.token;
        offsets[kBlock + t] = place.page * v_.page + (place.slot + i) * v_.token;
      }
    }
    return {0, 0, offsets, offsets + kBlock, false, begin, first, last};
  }

  const ByteStrides& k_strides() const noexcept { return k_; }
  const ByteStrides& v_strides() const noexcept { return v_; }

 private:
  const KvCacheView& kv_;
  ByteStrides k_;
  ByteStrides v_;
  Index* uniform_;    // 2 × kBlock: K then V
  Index* scattered_;  // twice 2 × kBlock, used in turn
  bool other_ = false;
};

}  // namespace gqa::detail::inline GQA_ABI
