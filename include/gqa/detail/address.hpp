// SPDX-License-Identifier: Apache-2.0
/// @file
/// From positions to addresses: the one place that knows contiguous, ring and paged storage apart.
#pragma once

#include "gqa/detail/kernel_types.hpp"
#include "gqa/kv_cache_view.hpp"

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
  Index first = 0;       ///< tokens of the block that are wanted
  Index last = 0;
};

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

/// Kernels step over tokens that a block does not have; so where there is no second slot, whose distance could be anything, it is 0.
[[gnu::noinline]] inline ByteStrides byte_strides(const KvCacheView& kv, const KvStrides& strides,
                                                  KvType type) noexcept {
  const Index slots = kv.storage == Storage::contiguous ? kv.length - kv.oldest
                      : kv.storage == Storage::ring     ? kv.capacity
                                                        : kv.page_size;
  return {slots > 1 && kv.length > 1 ? type.stride_bytes(strides.token) : 0, type.stride_bytes(strides.head),
          type.stride_bytes(strides.page)};
}

/// Bits [first, last), 0 <= first <= last <= 64.
inline std::uint64_t bit_range(Index first, Index last) noexcept {
  if (first >= last) return 0;
  const std::uint64_t below_last = last == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << last) - 1;
  return below_last & ~((std::uint64_t{1} << first) - 1);
}

inline Place locate(const KvCacheView& kv, Index position) noexcept {
  if (kv.storage == Storage::ring) {
    const Index slot = position % kv.capacity;
    return {0, slot, kv.capacity - slot};
  }
  if (kv.storage == Storage::paged) {
    const Index slot = position % kv.page_size;
    return {kv.page_table[position / kv.page_size], slot, kv.page_size - slot};
  }
  return {0, position - kv.oldest, kv.length - position};
}

/// Finds the rows of the blocks of a part of a sequence. One for the tasks of a sequence that a worker takes: it keeps the table of offsets
/// that every block in one run shares, and tables of their own for the last `kept` blocks that are not in one run: those of a stage and the
/// one after it.
class AddressBook {
 public:
  AddressBook() noexcept = default;  // of nothing
  AddressBook(const KvCacheView& kv, Index* tables, Index stage_blocks) noexcept
      : kv_(&kv),
        k_(byte_strides(kv, kv.k_strides, kv.k_type)),
        v_(byte_strides(kv, kv.v_strides, kv.v_type)),
        k_row_bytes_(kv.k_type.row_bytes(kv.head_dim)),
        v_row_bytes_(kv.v_type.row_bytes(kv.value_dim)),
        uniform_(tables),
        scattered_(tables + 2 * kBlock),
        kept_(stage_blocks + 1) {
    Index k = 0, v = 0;
    for (Index t = 0; t < kBlock; ++t, k += k_.token, v += v_.token) {
      uniform_[t] = k;
      uniform_[kBlock + t] = v;
    }
  }

  /// Entries that `tables` needs.
  static constexpr Index table_size(Index stage_blocks) noexcept { return (stage_blocks + 2) * 2 * kBlock; }

  /// Rows of those tokens of the block at `begin` whose bits are set in `seen`. A token between them that nobody sees, which may lie
  /// in a page that is gone, gets the address of the one before it. Valid for the next `stage_blocks` calls.
  BlockAddress block(Index begin, std::uint64_t seen) noexcept {
    if (seen == 0) return {};
    const Index first = __builtin_ctzll(seen);
    const Index last = kBlock - __builtin_clzll(seen);
    Place place = locate(*kv_, begin + first);
    // Where the block would begin before the first slot, no address is worked out from there.
    if (place.run >= last - first && place.slot >= first && seen == bit_range(first, last))
      return {place.page * k_.page + (place.slot - first) * k_.token,
              place.page * v_.page + (place.slot - first) * v_.token,
              uniform_,
              uniform_ + kBlock,
              true,
              begin,
              first,
              last};
    turn_ = turn_ + 1 == kept_ ? 0 : turn_ + 1;
    Index* const offsets = scattered_ + turn_ * 2 * kBlock;
    Index until = first + place.run;  // where the run of `place` ends
    for (Index t = first; t < last; ++t) {
      if (((seen >> t) & 1u) == 0) {
        offsets[t] = offsets[t - 1];
        offsets[kBlock + t] = offsets[kBlock + t - 1];
        continue;
      }
      if (t >= until) {
        place = locate(*kv_, begin + t);
        until = t + place.run;
      }
      const Index slot = place.slot + place.run - (until - t);
      offsets[t] = place.page * k_.page + slot * k_.token;
      offsets[kBlock + t] = place.page * v_.page + slot * v_.token;
    }
    return {0, 0, offsets, offsets + kBlock, false, begin, first, last};
  }

  /// True if a head's rows follow each other in memory, over pages of some size at least.
  bool follows() const noexcept {
    constexpr Index run = Index{4} << 10;  // bytes
    const bool packed = k_.token == k_row_bytes_ && v_.token == v_row_bytes_;
    return packed && (kv_->storage != Storage::paged || kv_->page_size * k_.token >= run);
  }
  /// True if that goes on for a page only, and pages are short: for loads that are to be followed, or for rows that are prefetched in
  /// equal steps from block to block.
  bool hops(Streaming streaming) const noexcept {
    constexpr Index run = Index{32} << 10;
    if (kv_->storage != Storage::paged) return false;
    return streaming == Streaming::prefetched ? kv_->page_size % kBlock != 0 : kv_->page_size * k_.token < run;
  }

  /// True if the rows of so many heads follow each other from the last of a token to the first of the next one.
  bool dense(Index heads) const noexcept { return k_.token == heads * k_.head && v_.token == heads * v_.head; }

  const ByteStrides& k_strides() const noexcept { return k_; }
  const ByteStrides& v_strides() const noexcept { return v_; }
  Index k_row_bytes() const noexcept { return k_row_bytes_; }
  Index v_row_bytes() const noexcept { return v_row_bytes_; }

 private:
  const KvCacheView* kv_ = nullptr;
  ByteStrides k_{};
  ByteStrides v_{};
  Index k_row_bytes_ = 0;
  Index v_row_bytes_ = 0;
  Index* uniform_ = nullptr;    // 2 × kBlock: K then V
  Index* scattered_ = nullptr;  // kept_ times 2 × kBlock, used in turn
  Index kept_ = 0;
  Index turn_ = 0;
};

}  // namespace gqa::detail::inline GQA_ABI
