// SPDX-License-Identifier: Apache-2.0
/// @file
/// How rows of keys and values get into an owning cache: checked, converted to the stored type, written to their slots.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>

#include "gqa/detail/check_views.hpp"
#include "gqa/detail/kv_buffer.hpp"
#include "gqa/kv_cache_view.hpp"
#include "gqa/tensor_view.hpp"

namespace gqa::detail {

/// Keys or values of a cache, as memory that may be written.
struct KvRoom {
  std::byte* data;
  KvType type;
  Index dim;
  KvStrides strides;
  std::byte* scales;  // outside of rows; or null
  KvStrides scale_strides;

  /// The row of a slot, and its scale.
  GQA_ALWAYS_INLINE std::byte* row(Index page, Index slot, Index head) const noexcept {
    return data + type.stride_bytes(page * strides.page + slot * strides.token + head * strides.head);
  }
  GQA_ALWAYS_INLINE std::byte* scale(Index page, Index slot, Index head) const noexcept {
    if (scales == nullptr) return nullptr;
    return scales +
           (page * scale_strides.page + slot * scale_strides.token + head * scale_strides.head) * type.scale_bytes();
  }
};

/// Anything that std::span takes (a vector, an array, a span) whose elements are float, bf16, f16 or a type with the
/// same bits.
template <class R>
concept ElementRange = Element<typename decltype(std::span(std::declval<const R&>()))::element_type>;

inline namespace GQA_ABI {

/// row ← `dim` elements, `step` of them apart, as a codec stores them.
using RowEncoder = void (*)(const std::byte* from, Index step, Index dim, std::byte* row, std::byte* scale);

template <class Codec, class From>
inline void encode_row(const std::byte* from, Index step, Index dim, std::byte* row, std::byte* scale) {
  Codec::template encode<From>(from, step, dim, row, scale);
}
template <class Codec>
inline RowEncoder encoder_of(ElementType from) {
  if (from == ElementType::f32) return encode_row<Codec, float>;
  if (from == ElementType::bf16) return encode_row<Codec, bf16>;
  return encode_row<Codec, f16>;
}
/// Of a type that is one of the library's codecs.
template <int Id = 0>
inline RowEncoder row_encoder(KvType to, ElementType from) {
  if constexpr (Id + 1 < CodecList::size)
    if (to.id() != Id) return row_encoder<Id + 1>(to, from);
  return encoder_of<typename CodecWithId<Id>::type>(from);
}

/// rows (tokens × heads × dim) → slots slot, slot + 1, … of physical page `page` (0 where there are no pages).
inline void write_rows(const KvRoom& room, Index page, Index slot, const ConstTensorView& rows) {
  const RowEncoder encode = row_encoder(room.type, rows.type);
  const Index bytes = element_bytes(rows.type);
  const auto* from = static_cast<const std::byte*>(rows.data);
  for (Index head = 0; head < rows.heads; ++head)
    for (Index token = 0; token < rows.tokens; ++token)
      encode(from + (head * rows.strides.head + token * rows.strides.token) * bytes, rows.strides.dim, room.dim,
             room.row(page, slot + token, head), room.scale(page, slot + token, head));
}

/// The first `tokens` slots of a page → those of another one: bytes, whatever they mean.
inline void copy_slots(const KvRoom& room, Index heads, Index from, Index to, Index tokens) noexcept {
  const auto row_bytes = static_cast<std::size_t>(room.type.row_bytes(room.dim));
  for (Index head = 0; head < heads; ++head)
    for (Index token = 0; token < tokens; ++token) {
      std::memcpy(room.row(to, token, head), room.row(from, token, head), row_bytes);
      if (room.scales != nullptr)
        std::memcpy(room.scale(to, token, head), room.scale(from, token, head),
                    static_cast<std::size_t>(room.type.scale_bytes()));
    }
}

inline void check_rows(const TensorNames& names, const char* tokens, const char* heads, const char* width,
                       const ConstTensorView& rows, Index kv_heads, const char* cache_width, Index dim) {
  if (rows.tokens < 0) fail(tokens, rows.tokens, "0 or more");
  if (rows.heads != kv_heads) fail(heads, rows.heads, "the cache's kv_heads = " + to_text(kv_heads));
  if (rows.dim != dim) fail(width, rows.dim, Text("the cache's ") + cache_width + " = " + to_text(dim));
  if (rows.tokens > 0 && rows.data == nullptr) fail(names.data, "null", "a pointer to the rows");
  check_tensor({}, names, rows);
}

inline void check_not_moved_from(Index kv_heads) {
  if (kv_heads == 0) fail("cache", "empty (moved from)", "a cache that has memory");
}

/// What append takes: k (tokens × Hkv × D) and v (tokens × Hkv × Dv), each in any element type and with any strides.
inline void check_append(const KvCacheView& cache, const ConstTensorView& k, const ConstTensorView& v) {
  check_not_moved_from(cache.kv_heads);
  check_rows(kAppendedKeyNames, "k.tokens", "k.heads", "k.dim", k, cache.kv_heads, "head_dim", cache.head_dim);
  check_rows(kAppendedValueNames, "v.tokens", "v.heads", "v.dim", v, cache.kv_heads, "value_dim", cache.value_dim);
  if (v.tokens != k.tokens) fail("v.tokens", v.tokens, "k.tokens = " + to_text(k.tokens));
}

/// Packed (token, head, dim) elements as rows; as many tokens as there are elements for.
template <Element T, std::size_t Extent>
inline ConstTensorView packed_rows(const char* name, std::span<T, Extent> elements, Index kv_heads, Index dim) {
  check_not_moved_from(kv_heads);
  const auto size = static_cast<Index>(elements.size());
  const Index token = kv_heads * dim;
  if (size % token != 0) fail(Text(name) + ".size()", size, "a multiple of the elements of a token, " + to_text(token));
  return ConstTensorView(elements.data(), size / token, kv_heads, dim);
}

inline void check_truncate(Index length, Index first, Index current) {
  if (length < 0 || length > current || (length < first && length != 0))
    fail("length", length,
         first == 0
             ? "between 0 and the tokens held, " + to_text(current)
             : "0, or between the oldest position held, " + to_text(first) + ", and the next one, " + to_text(current));
}

}  // namespace GQA_ABI
}  // namespace gqa::detail
