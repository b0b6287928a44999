// SPDX-License-Identifier: Apache-2.0
/// @file
/// What codecs other than plain elements need besides: distances in whole blocks, and scales that lie outside of rows, checked, and found
/// for the blocks of a stage. Functors for caches of plain elements have none of this compiled into them.
#pragma once

#include "gqa/detail/address.hpp"
#include "gqa/detail/check_overlap.hpp"

namespace gqa::detail {

/// Where the scales of one block of a stage are, and the offsets that its heads share: keys' and values'.
struct StageScales {
  BlockScales head[kTileRows];  ///< as many as a task may have heads
  Index offset[2 * kBlock];
};

/// What a functor for such codecs has besides.
struct CodedRows {
  /// Fails on the first wrong stride or scale of a sequence whose arguments are right otherwise.
  void (*check)(const ArgumentName&, const Sequence&);
  /// The scales of one block's rows for heads [first_head, first_head + heads). Tokens whose bit in `there` is off, which may lie in a page
  /// that is gone, get those of the one before.
  void (*find_scales)(const KvCacheView&, const BlockAddress&, std::uint64_t there, Index first_head, Index heads,
                      StageScales&);
};

/// Whether keys and values are plain elements.
GQA_ALWAYS_INLINE bool is_plain(const KvCacheView& kv) noexcept {
  return kv.k_type.is_element() && kv.v_type.is_element();
}
/// Whether keys or values have scales outside of rows.
GQA_ALWAYS_INLINE bool has_scales(const KvCacheView& kv) noexcept {
  return kv.k_type.scale_bytes() != 0 || kv.v_type.scale_bytes() != 0;
}

inline constexpr TensorNames kKeyScaleNames{"kv.k_type",
                                            "kv.k_scales.data",
                                            "kv.k_scales.dim",
                                            "kv.k_scales.strides.token",
                                            "kv.k_scales.strides.head",
                                            "kv.k_scales.strides.page"};
inline constexpr TensorNames kValueScaleNames{"kv.v_type",
                                              "kv.v_scales.data",
                                              "kv.v_scales.dim",
                                              "kv.v_scales.strides.token",
                                              "kv.v_scales.strides.head",
                                              "kv.v_scales.strides.page"};

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

/// The scales of keys or of values, `width` elements a row: there, where a scale may be, and not where outputs go.
inline void check_scales(const ArgumentName& name, const TensorNames& names, const Sequence& sequence,
                         const KvScales& scales, KvType type, Index width) {
  const KvCacheView& kv = sequence.kv;
  const Index bytes = type.scale_bytes();
  if (bytes == 0) return;
  const bool paged = kv.storage == Storage::paged;
  const Index slots = paged ? kv.page_size : kv.storage == Storage::ring ? kv.capacity : kv.length - kv.oldest;
  if (scales.data == nullptr && kv.length > 0) fail_null(name, names.data, "the scales of rows of " + codec_name(type));
  if (!is_aligned(scales.data, bytes)) fail_misaligned(name, names.data, bytes);
  Reach reach;
  reach.add(name, names.token, slots, scales.strides.token);
  reach.add(name, names.head, kv.kv_heads, scales.strides.head);
  reach.add(name, names.last, paged ? kv.pool_pages : 1, scales.strides.page);
  reach.add(name, names.strides, width, scales.dim);
  if (kv.length <= 0) return;
  const TensorStrides steps{scales.strides.token, scales.strides.head, scales.dim};
  const RowLayout scale{.id = static_cast<std::uint8_t>(type.id()), .block_bytes = static_cast<std::uint16_t>(bytes)};
  reach.around(name, names, scales.data, KvType(scale), 1, steps);
  if (paged || sequence.q.tokens <= 0) return;
  const Index held = kv.length < slots ? kv.length : slots;
  const Elements lies{scales.data, bytes, held, kv.kv_heads, scales.dim == 0 ? 1 : width, steps};
  if (overlap(sequence.out, lies)) fail_overlap(name, "out", name(names.data));
  const ConstTensorView lse(sequence.lse.data(), static_cast<Index>(sequence.lse.size()), 1, 1);
  if (overlap(lse, lies)) fail_overlap(name, "lse", name(names.data));
}
/// Distances between rows of blocks of several elements.
inline void check_blocks(const ArgumentName& name, const TensorNames& names, const KvStrides& strides, KvType type) {
  const auto check = [&](const char* member, Index stride) {
    const Index block = type.block_elements();
    if (stride % block != 0) fail(name(member), stride, "whole blocks of " + to_text(block) + " elements");
  };
  check(names.token, strides.token);
  check(names.head, strides.head);
  check(names.last, strides.page);
}
inline void check_coded(const ArgumentName& name, const Sequence& sequence) {
  const KvCacheView& kv = sequence.kv;
  check_width(name, "kv.head_dim", kv.head_dim, kv.k_type);
  check_width(name, "kv.value_dim", kv.value_dim, kv.v_type);
  check_blocks(name, kKeyNames, kv.k_strides, kv.k_type);
  check_blocks(name, kValueNames, kv.v_strides, kv.v_type);
  check_scales(name, kKeyScaleNames, sequence, kv.k_scales, kv.k_type, kv.head_dim);
  check_scales(name, kValueScaleNames, sequence, kv.v_scales, kv.v_type, kv.value_dim);
}

inline void find_scales(const KvCacheView& kv, const BlockAddress& at, std::uint64_t there, Index first_head,
                        Index heads, StageScales& scales) {
  const Index k_bytes = kv.k_type.scale_bytes();
  const Index v_bytes = kv.v_type.scale_bytes();
  Index* const k_offset = scales.offset;
  Index* const v_offset = scales.offset + kBlock;
  const auto offset_of = [](const Place& place, const KvStrides& strides) {
    return place.page * strides.page + place.slot * strides.token;
  };
  const bool even = at.uniform;  // slots follow each other
  for (Index t = at.first; t < at.last && !even; ++t) {
    if (((there >> t) & 1u) == 0) {
      k_offset[t] = k_offset[t - 1];
      v_offset[t] = v_offset[t - 1];
      continue;
    }
    const Place place = locate(kv, at.begin + t);
    k_offset[t] = offset_of(place, kv.k_scales.strides) * k_bytes;
    v_offset[t] = offset_of(place, kv.v_scales.strides) * v_bytes;
  }
  const Place first = locate(kv, at.begin + at.first);
  const auto span = [&](const KvScales& given, Index bytes, Index head, const Index* offset) {
    if (bytes == 0) return RowSpan{};
    const std::byte* const base = static_cast<const std::byte*>(given.data) + head * given.strides.head * bytes;
    if (!even) return RowSpan{base, offset, 0};
    const Index step = given.strides.token * bytes;
    const std::byte* const slots = base + offset_of(first, given.strides) * bytes;
    if (step == bytes)  // of pages they lie anywhere, a few lines of each
      for (Index line = 0; line < (at.last - at.first) * bytes; line += 64) __builtin_prefetch(slots + line, 0, 3);
    return RowSpan{slots - at.first * step, nullptr, step};
  };
  for (Index j = 0; j < heads; ++j)
    ::new (scales.head + j) BlockScales{span(kv.k_scales, k_bytes, first_head + j, k_offset),
                                        span(kv.v_scales, v_bytes, first_head + j, v_offset), kv.k_scales.dim * k_bytes,
                                        kv.v_scales.dim * v_bytes};
}

/// Those of a functor for a set of codecs; null, if all of them are plain elements.
inline constexpr CodedRows kCodedRows{check_coded, find_scales};
template <unsigned Types>
constexpr const CodedRows* coded_rows() noexcept {
  if constexpr (bits_of(Types) > kLastElementType + 1) return &kCodedRows;
  else return nullptr;
}

}  // namespace gqa::detail::inline GQA_ABI
