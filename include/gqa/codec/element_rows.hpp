// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the codecs of plain rows have in common: elements side by side, each rounded on its own.
#pragma once

#include <cstring>

#include "gqa/codec/with_id.hpp"

namespace gqa::detail {

/// Rows of `T` elements side by side.
template <Element T>
struct ElementRows {
  static constexpr KvType type = ElementTraits<T>::type;
  static constexpr const char* name = element_name(ElementTraits<T>::type);
  /// Bytes of an element.
  static constexpr Index bytes = sizeof(T);

  /// row ← `dim` elements that lie `step` elements apart: to nearest, ties to even. Those of the same type keep their bits.
  template <Element From>
  GQA_ALWAYS_INLINE static void encode(const std::byte* from, Index step, Index dim, std::byte* row, std::byte*) {
    if constexpr (std::is_same_v<T, From>) {
      if (step == 1) {
        std::memmove(row, from, static_cast<std::size_t>(dim) * sizeof(T));  // rows may come from where they go
        return;
      }
    }
    auto* out = typed<T>(row);
    const auto* in = typed<const From>(from);
    for (Index i = 0; i < dim; ++i) {
      if constexpr (std::is_same_v<T, From>) out[i] = in[i * step];
      else out[i] = static_cast<T>(static_cast<float>(in[i * step]));
    }
  }
  /// to[0 … dim) ← the row.
  GQA_ALWAYS_INLINE static void decode(const std::byte* row, const std::byte*, Index dim, float* to) {
    const auto* in = typed<const T>(row);
    for (Index i = 0; i < dim; ++i) to[i] = static_cast<float>(in[i]);
  }
};

}  // namespace gqa::detail
