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
struct KvPlane {
  std::byte* data;
  ElementType type;
  Index dim;
  KvStrides strides;
};

/// Anything that std::span takes (a vector, an array, a span) whose elements are float, bf16, f16 or a type with the
/// same bits.
template <class R>
concept ElementRange = Element<typename decltype(std::span(std::declval<const R&>()))::element_type>;

inline namespace GQA_ABI {

template <class To, class From>
inline void copy_row(std::byte* to, const std::byte* from, Index dim, Index step) {
  if constexpr (std::is_same_v<To, From>) {
    if (step == 1) {
      std::memmove(to, from, static_cast<std::size_t>(dim) * sizeof(To));  // rows may come from where they go
      return;
    }
  }
  auto* out = typed<To>(to);
  const auto* in = typed<const From>(from);
  for (Index i = 0; i < dim; ++i) {
    if constexpr (std::is_same_v<To, From>) out[i] = in[i * step];
    else out[i] = static_cast<To>(static_cast<float>(in[i * step]));
  }
}

/// Copies one row of `dim` elements, `step` elements apart in the source and packed in the destination.
using RowCopy = void (*)(std::byte* to, const std::byte* from, Index dim, Index step);

template <class To>
inline RowCopy row_copy_to(ElementType from) {
  if (from == ElementType::f32) return copy_row<To, float>;
  if (from == ElementType::bf16) return copy_row<To, bf16>;
  return copy_row<To, f16>;
}

inline RowCopy row_copy(ElementType to, ElementType from) {
  if (to == ElementType::f32) return row_copy_to<float>(from);
  if (to == ElementType::bf16) return row_copy_to<bf16>(from);
  return row_copy_to<f16>(from);
}

/// rows (tokens × heads × dim) → slots slot, slot + 1, … of physical page `page` (0 where there are no pages).
inline void write_rows(const KvPlane& plane, Index page, Index slot, const ConstTensorView& rows) {
  const RowCopy copy = row_copy(plane.type, rows.type);
  const Index to_bytes = element_bytes(plane.type);
  const Index from_bytes = element_bytes(rows.type);
  std::byte* to = plane.data + (page * plane.strides.page + slot * plane.strides.token) * to_bytes;
  const auto* from = static_cast<const std::byte*>(rows.data);
  for (Index head = 0; head < rows.heads; ++head)
    for (Index token = 0; token < rows.tokens; ++token)
      copy(to + (head * plane.strides.head + token * plane.strides.token) * to_bytes,
           from + (head * rows.strides.head + token * rows.strides.token) * from_bytes, plane.dim, rows.strides.dim);
}

/// The first `tokens` slots of a page, as rows to read.
inline ConstTensorView page_rows(const KvPlane& plane, Index heads, Index page, Index tokens) {
  ConstTensorView rows;
  rows.data = plane.data + page * plane.strides.page * element_bytes(plane.type);
  rows.type = plane.type;
  rows.tokens = tokens;
  rows.heads = heads;
  rows.dim = plane.dim;
  rows.strides = {plane.strides.token, plane.strides.head, 1};
  return rows;
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
