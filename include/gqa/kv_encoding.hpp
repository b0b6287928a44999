// SPDX-License-Identifier: Apache-2.0
/// @file
/// How an owning cache stores its keys or values.
#pragma once

#include "gqa/detail/row_encoders.hpp"

namespace gqa {

/// How an owning cache stores keys or values: plain elements, of a type that may be known at run time only, or a codec, the library's or a
/// program's own:
///
///     gqa::ContiguousKvCache cache({.kv_heads = 8, .head_dim = 128, .k_type = gqa::Q8_0{}, .v_type = gqa::Q4_0{}, .capacity = 8192});
///
/// A codec is given itself, not as its KvType, which says how rows lie and not how they are encoded: so a program has the encoders that it
/// names, and no others.
class KvEncoding {
 public:
  /// Rows of f32 elements.
  GQA_ALWAYS_INLINE constexpr KvEncoding() noexcept {}
  GQA_ALWAYS_INLINE constexpr KvEncoding(ElementType elements) noexcept : type_(elements) {}
  /// Of plain elements; caches refuse other types.
  GQA_ALWAYS_INLINE constexpr KvEncoding(KvType elements) noexcept : type_(elements) {}
  template <Codec C>
  GQA_ALWAYS_INLINE constexpr KvEncoding(C) noexcept : type_(C::type) {
    if constexpr (!KvType(C::type).is_element()) codec_ = &detail::kRowCodec<C>;
  }

  GQA_ALWAYS_INLINE constexpr operator KvType() const noexcept { return type_; }
  /// Null for plain elements.
  GQA_ALWAYS_INLINE constexpr const detail::RowCodec* codec() const noexcept { return codec_; }

 private:
  KvType type_{};
  const detail::RowCodec* codec_ = nullptr;
};

}  // namespace gqa
