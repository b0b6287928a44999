// SPDX-License-Identifier: Apache-2.0
/// @file
/// From what a user asks of an owning cache to its memory and the view of it.
#pragma once

#include <optional>
#include <utility>

#include "gqa/detail/kv_rows.hpp"
#include "gqa/kv_encoding.hpp"

namespace gqa {

/// Order of an owning cache's memory, and of each page of a pool.
enum class KvLayout : std::uint8_t {
  head_major,  ///< (head, token, dim): a head's tokens side by side, so that reading the cache is one stream per head
  token_major  ///< (token, head, dim): a token's heads side by side, so that appending is one write
};

namespace detail {

/// Which tokens have rows of plain elements besides.
struct KvPlainFormat {
  Index first_tokens;
  Index newest_tokens;
  ElementType type;
};

/// What the configurations have in common.
struct KvRowFormat {
  Index kv_heads;
  Index head_dim;
  Index value_dim;  // 0: head_dim
  KvEncoding k_type;
  std::optional<KvEncoding> v_type;  // none: k_type
  Index k_rotation;                  // 0: none
  Index v_rotation;
  KvLayout layout;
  KvPlainFormat plain;
};

inline namespace GQA_ABI {

template <class Config>
GQA_ALWAYS_INLINE KvRowFormat row_format(const Config& config) {
  return {config.kv_heads,   config.head_dim, config.value_dim,
          config.k_type,     config.v_type,   config.k_rotation,
          config.v_rotation, config.layout,   {config.first_tokens, config.newest_tokens, config.plain_type}};
}

/// What encodes keys and values; null for plain elements.
struct KvCodecs {
  const RowCodec* k = nullptr;
  const RowCodec* v = nullptr;
  GQA_ALWAYS_INLINE constexpr KvCodecs() noexcept {}
  GQA_ALWAYS_INLINE constexpr KvCodecs(const RowCodec* keys, const RowCodec* values) noexcept : k(keys), v(values) {}
};

/// Memory of K and V, and the view of it with no token in it yet.
struct KvMemory {
  KvCacheView view{};
  KvCodecs codecs{};
  Buffer k{};  // rows, then scales, where the codec has them outside
  Buffer v{};
};

/// How a cache stores keys or values, `width` elements a row.
inline void check_stored(const char* member, const KvEncoding& format, const char* width_name, Index width) {
  const KvType type = format;
  check_type({}, member, type);
  if (format.codec() == nullptr && !type.is_element())
    fail(member, "the type of " + codec_name(type), "plain elements, or the codec itself, which rows are encoded by");
  check_width({}, width_name, width, type);
}

/// Heads, widths and types, checked; neither strides nor memory yet.
inline KvCacheView describe_rows(const KvRowFormat& format) {
  if (format.kv_heads < 1) fail("config.kv_heads", format.kv_heads, "1 or more");
  if (format.head_dim < 1) fail("config.head_dim", format.head_dim, "1 or more");
  if (format.value_dim < 0) fail("config.value_dim", format.value_dim, "1 or more, or 0 for head_dim");
  KvCacheView view{};
  view.kv_heads = format.kv_heads;
  view.head_dim = format.head_dim;
  view.value_dim = format.value_dim == 0 ? format.head_dim : format.value_dim;
  view.k_type = format.k_type;
  view.v_type = format.v_type.value_or(format.k_type);
  view.k_rotation = format.k_rotation;
  view.v_rotation = format.v_rotation;
  check_stored("config.k_type", format.k_type, "config.head_dim", view.head_dim);
  const char* const value_width = format.value_dim == 0 ? "config.head_dim" : "config.value_dim";
  check_stored("config.v_type", format.v_type.value_or(format.k_type), value_width, view.value_dim);
  check_rotation({}, "config.k_rotation", view.k_rotation, "config.head_dim", view.head_dim);
  check_rotation({}, "config.v_rotation", view.v_rotation, value_width, view.value_dim);
  if (format.layout != KvLayout::head_major && format.layout != KvLayout::token_major)
    fail("config.layout", static_cast<Index>(format.layout), "KvLayout::head_major or KvLayout::token_major");
  return view;
}

/// Bytes of the memory of keys or of values.
struct RoomBytes {
  Index rows;  ///< of them; scales begin there, where the codec has them outside of rows: one for each
  Index all;
};
inline RoomBytes room_bytes(const char* argument, Index slots, Index kv_heads, Index dim, KvType type) {
  constexpr Index most = kMostBytes / 2;  // so that neither rounding up nor an offset within overflows
  if ((Checked(dim) * type.block_bytes()).at_most(most)) {
    const Checked rows = Checked(kv_heads) * type.stride_bytes(type.row_stride(dim)) * slots;
    if (type.scale_bytes() == 0 && rows.at_most(most)) return {rows.value(), rows.value()};
    const Index line = kCacheLineBytes;
    if (rows.at_most(most - line)) {
      const Index begin = (rows.value() + line - 1) / line * line;
      const Checked all = Checked(kv_heads) * type.scale_bytes() * slots + begin;
      if (all.at_most(most)) return {begin, all.value()};
    }
  }
  fail(argument, slots, "tokens * kv_heads * width elements that fit in the address space");
}

inline KvStrides layout_strides(KvLayout layout, Index kv_heads, Index run, Index dim) {
  return layout == KvLayout::head_major ? KvStrides::head_major(kv_heads, run, dim)
                                        : KvStrides::token_major(kv_heads, dim, run);
}

/// @param argument names the number of slots in an error
/// @param slots    tokens there is room for
/// @param run      tokens laid out as one piece: all slots, or a page's
inline KvMemory allocate_slots(const KvRowFormat& format, const char* argument, Index slots, Index run) {
  KvCacheView view = describe_rows(format);
  const RoomBytes k_bytes = room_bytes(argument, slots, view.kv_heads, view.head_dim, view.k_type);
  const RoomBytes v_bytes = room_bytes(argument, slots, view.kv_heads, view.value_dim, view.v_type);
  const auto strides = [&](Index width) { return layout_strides(format.layout, view.kv_heads, run, width); };
  view.k_strides = strides(view.k_type.row_stride(view.head_dim));
  view.v_strides = strides(view.v_type.row_stride(view.value_dim));
  Buffer k(k_bytes.all, "keys");
  Buffer v(v_bytes.all, "values");
  view.k = k.as<void>();
  view.v = v.as<void>();
  if (view.k_type.scale_bytes() != 0) view.k_scales = {k.as<std::byte>() + k_bytes.rows, strides(1)};
  if (view.v_type.scale_bytes() != 0) view.v_scales = {v.as<std::byte>() + v_bytes.rows, strides(1)};
  const KvCodecs codecs(format.k_type.codec(), format.v_type.value_or(format.k_type).codec());
  return {view, codecs, std::move(k), std::move(v)};
}

/// The memory of a cache's keys, or of its values, to be written. Scales lie behind the rows, in the same buffer.
inline KvRoom room_of(const Buffer& buffer, const RowCodec* codec, KvType type, Index dim, const KvStrides& strides,
                      const KvScales& scales) {
  auto* const of_view = static_cast<const std::byte*>(scales.data);
  auto* const rows = buffer.as<std::byte>();
  return {rows, type, dim, strides, of_view == nullptr ? nullptr : rows + (of_view - rows), scales.strides, codec};
}
/// Those of a KvSlots, a KvPool or a KvMemory.
template <class Cache>
inline KvRoom key_room(const Cache& cache) {
  const KvCacheView& view = cache.view;
  return room_of(cache.k, cache.codecs.k, view.k_type, view.head_dim, view.k_strides, view.k_scales);
}
template <class Cache>
inline KvRoom value_room(const Cache& cache) {
  const KvCacheView& view = cache.view;
  return room_of(cache.v, cache.codecs.v, view.v_type, view.value_dim, view.v_strides, view.v_scales);
}

}  // namespace GQA_ABI
}  // namespace detail
}  // namespace gqa
