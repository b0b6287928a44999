// SPDX-License-Identifier: Apache-2.0
// Fields of views replaced by hostile numbers, types and pointers. Source: whatever has below(count), a number in [0, count).
#pragma once

#include <limits>
#include <type_traits>
#include <vector>

#include "gqa/kv_cache_view.hpp"
#include "gqa/tensor_view.hpp"

namespace gqa::test {

template <class Source>
Index hostile_number(Source& source, Index was) {
  constexpr Index kMin = std::numeric_limits<Index>::min();
  constexpr Index kMax = std::numeric_limits<Index>::max();
  const Index power = Index{1} << source.below(63);
  switch (source.below(12)) {
    case 0: return 0;
    case 1: return 1;
    case 2: return -1;
    case 3: return power;
    case 4: return -power;
    case 5: return kMax;
    case 6: return kMin;
    case 7: return was == kMax ? was : was + 1;
    case 8: return was == kMin ? was : was - 1;
    case 9: return was == kMin ? was : -was;
    case 10: return kMax - power;
    default: return was / 2;
  }
}
template <class Source>
ElementType hostile_type(Source& source) {
  return static_cast<ElementType>(source.below(5) == 0 ? source.below(256) : source.below(3));
}
template <class Source, class T>
T* hostile_pointer(Source& source, T* was) {
  if (source.below(3) == 0) return nullptr;
  using Byte = std::conditional_t<std::is_const_v<T>, const std::byte, std::byte>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(was) + (was == nullptr ? 0 : source.below(9)));
}
template <class Source>
void spoil_strides(Source& source, TensorStrides& strides) {
  Index* const all[] = {&strides.token, &strides.head, &strides.dim};
  Index& one = *all[source.below(3)];
  one = hostile_number(source, one);
}
template <class Source>
void spoil_strides(Source& source, KvStrides& strides) {
  Index* const all[] = {&strides.token, &strides.head, &strides.page};
  Index& one = *all[source.below(3)];
  one = hostile_number(source, one);
}
template <class Source, class View>
void spoil_tensor(Source& source, View& view) {
  Index* const extents[] = {&view.tokens, &view.heads, &view.dim};
  switch (source.below(6)) {
    case 0: view.data = hostile_pointer(source, view.data); break;
    case 1: view.type = hostile_type(source); break;
    case 2:
    case 3: spoil_strides(source, view.strides); break;
    default: {
      Index& extent = *extents[source.below(3)];
      extent = hostile_number(source, extent);
    }
  }
}
template <class Source>
void spoil_cache(Source& source, KvCacheView& kv, std::vector<std::int32_t>& table) {
  Index* const numbers[] = {&kv.length,   &kv.length, &kv.kv_heads,  &kv.head_dim,   &kv.value_dim,
                            &kv.capacity, &kv.oldest, &kv.page_size, &kv.pool_pages, &kv.page_table_size};
  switch (source.below(9)) {
    case 0: kv.k = hostile_pointer(source, kv.k); break;
    case 1: kv.v = hostile_pointer(source, kv.v); break;
    case 2: (source.below(2) == 0 ? kv.k_type : kv.v_type) = hostile_type(source); break;
    case 3: kv.storage = static_cast<Storage>(source.below(4)); break;
    case 4: spoil_strides(source, kv.k_strides); break;
    case 5: spoil_strides(source, kv.v_strides); break;
    case 6:
      if (table.empty()) break;
      if (source.below(4) == 0) kv.page_table = hostile_pointer(source, kv.page_table);
      else
        table[static_cast<std::size_t>(source.below(static_cast<Index>(table.size())))] =
            static_cast<std::int32_t>(hostile_number(source, 1));
      break;
    default: {
      Index& number = *numbers[source.below(10)];
      number = hostile_number(source, number);
    }
  }
}

}  // namespace gqa::test
