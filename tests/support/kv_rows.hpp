// SPDX-License-Identifier: Apache-2.0
// Where rows of a cache are.
#pragma once

#include "gqa/detail/address.hpp"
#include "gqa/kv_cache_view.hpp"

namespace gqa::test {

/// Where the row of a position and head is, and its scale.
struct At {
  std::byte* row;
  std::byte* scale;
};
inline At row_at(const KvCacheView& kv, bool keys, Index position, Index head) {
  const detail::Place place = detail::locate(kv, position);
  const KvType type = keys ? kv.k_type : kv.v_type;
  const auto offset = [&](const KvStrides& strides) {
    return place.page * strides.page + place.slot * strides.token + head * strides.head;
  };
  const KvScales& scales = keys ? kv.k_scales : kv.v_scales;
  auto* const rows = static_cast<std::byte*>(const_cast<void*>(keys ? kv.k : kv.v));
  auto* const scale = static_cast<std::byte*>(const_cast<void*>(scales.data));
  return {rows + type.stride_bytes(offset(keys ? kv.k_strides : kv.v_strides)),
          scale == nullptr ? nullptr : scale + offset(scales.strides) * type.scale_bytes()};
}

}  // namespace gqa::test
