// SPDX-License-Identifier: Apache-2.0
// Where a row of a cache lies, by the formula of KvCacheView's documentation.
#pragma once

#include "gqa/kv_cache_view.hpp"

namespace gqa::test {

/// Of a position and head, in the plane of keys or of values that has this base, type and strides.
inline const std::byte* row_address(const KvCacheView& view, const void* base, ElementType type,
                                    const KvStrides& strides, Index position, Index head) {
  Index slot = view.storage == Storage::contiguous ? position - view.oldest : position;
  Index page = 0;
  if (view.storage == Storage::ring) slot = position % view.capacity;
  if (view.storage == Storage::paged) {
    slot = position % view.page_size;
    page = view.page_table[position / view.page_size];
  }
  return static_cast<const std::byte*>(base) +
         (page * strides.page + slot * strides.token + head * strides.head) * element_bytes(type);
}

}  // namespace gqa::test
