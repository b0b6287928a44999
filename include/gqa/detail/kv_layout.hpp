// SPDX-License-Identifier: Apache-2.0
/// @file
/// From what a user asks of an owning cache to its memory and the view of it.
#pragma once

#include <limits>
#include <optional>
#include <utility>

#include "gqa/detail/kv_rows.hpp"

namespace gqa {

/// Order of an owning cache's memory, and of each page of a pool.
enum class KvLayout : std::uint8_t {
  head_major,  ///< (head, token, dim): a head's tokens side by side, so that reading the cache is one stream per head
  token_major  ///< (token, head, dim): a token's heads side by side, so that appending is one write
};

namespace detail {

/// What the configurations have in common.
struct KvRowFormat {
  Index kv_heads;
  Index head_dim;
  Index value_dim;  // 0: head_dim
  ElementType k_type;
  std::optional<ElementType> v_type;  // none: k_type
  KvLayout layout;
};

inline namespace GQA_ABI {

template <class Config>
GQA_ALWAYS_INLINE KvRowFormat row_format(const Config& config) {
  return {config.kv_heads, config.head_dim, config.value_dim, config.k_type, config.v_type, config.layout};
}

/// Memory of K and V, and the view of it with no token in it yet.
struct KvMemory {
  KvCacheView view{};
  Buffer k;
  Buffer v;
};

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
  check_type({}, "config.k_type", view.k_type);
  check_type({}, "config.v_type", view.v_type);
  if (format.layout != KvLayout::head_major && format.layout != KvLayout::token_major)
    fail("config.layout", static_cast<Index>(format.layout), "KvLayout::head_major or KvLayout::token_major");
  return view;
}

inline Index plane_bytes(const char* argument, Index slots, Index kv_heads, Index dim, ElementType type) {
  const Checked bytes = Checked(kv_heads) * dim * element_bytes(type) * slots;
  // Half of the address space stays free, so that neither rounding up nor an offset within overflows.
  if (!bytes.at_most((std::numeric_limits<Index>::max)() / 2))
    fail(argument, slots, "tokens * kv_heads * width elements that fit in the address space");
  return bytes.value();
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
  const Index k_bytes = plane_bytes(argument, slots, view.kv_heads, view.head_dim, view.k_type);
  const Index v_bytes = plane_bytes(argument, slots, view.kv_heads, view.value_dim, view.v_type);
  view.k_strides = layout_strides(format.layout, view.kv_heads, run, view.head_dim);
  view.v_strides = layout_strides(format.layout, view.kv_heads, run, view.value_dim);
  Buffer k(k_bytes, "keys");
  Buffer v(v_bytes, "values");
  view.k = k.as<void>();
  view.v = v.as<void>();
  return {view, std::move(k), std::move(v)};
}

}  // namespace GQA_ABI
}  // namespace detail
}  // namespace gqa
