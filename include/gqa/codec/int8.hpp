// SPDX-License-Identifier: Apache-2.0
/// @file
/// Signed bytes with one f32 scale a row, in a plane of its own.
#pragma once

#include "gqa/codec/quants.hpp"

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI {

/// The scale of a row whose largest magnitude is given, as bits, and becomes `most` · scale; NaN for what is not finite.
inline float row_scale(std::uint32_t largest, float most) noexcept {
  return largest >= kInfinityBits ? float_of_bits(0x7fc00000u) : float_of_bits(largest) / most;
}
/// x / scale to nearest, ties to even, within ±most; 0 where that is no number.
GQA_ALWAYS_INLINE int quotient(float x, float scale, float most) noexcept {
  return round_even(clamped(x / scale, -most, most));
}

inline __attribute__((noinline)) void encode_int8(const float* x, Index count, float scale, std::byte* to) {
  for (Index i = 0; i < count; ++i) put_byte(to, i, quotient(x[i], scale, 127.0f));
}
inline __attribute__((noinline)) void decode_int8(const std::byte* row, float scale, Index dim, float* to) {
  for (Index d = 0; d < dim; ++d) to[d] = static_cast<float>(signed_byte_at(row, d)) * scale;
}

/// Encodes up to 32 elements by their row's scale.
using ScaledEncoder = void (*)(const float* x, Index count, float scale, std::byte* to);

/// row ← `dim` elements by `scale`, 32 of them in so many bytes.
template <Element From>
inline void encode_scaled(const std::byte* from, Index step, Index dim, float scale, std::byte* row, Index bytes,
                          ScaledEncoder encode) {
  float x[kQuants];
  for (Index d = 0; d < dim; d += kQuants, row += bytes) {
    const Index count = dim - d < kQuants ? dim - d : kQuants;
    gather_quants<From>(from + d * step * static_cast<Index>(sizeof(From)), step, count, x);
    encode(x, count, scale, row);
  }
}

}  // namespace gqa::detail::inline GQA_ABI

GQA_END_PLAIN_REGION()

namespace gqa {

/// Int8, 8 bits an element and an f32 scale a row outside of it (KvScales): element d is worth scale · row[d], a signed byte. Any width and
/// alignment.
///
/// Encoding: scale = largest magnitude / 127; bytes are element / scale to nearest, ties to even, within ±127. −128 is never written, and
/// decoded if it is there. All zeros have scale 0, as have rows so small that the quotient is no number. A row with a NaN or an infinity
/// gets the scale NaN, and is all NaN.
struct Int8 {
  static constexpr KvType type{{.id = 5, .block_bytes = 1, .alignment = 1, .scale_bytes = 4}};
  static constexpr const char* name = "int8";

  template <Element From>
  GQA_ALWAYS_INLINE static void encode(const std::byte* from, Index step, Index dim, std::byte* row,
                                       std::byte* scales) {
    const float scale = detail::row_scale(detail::largest_of_row<From>(from, step, dim), 127.0f);
    detail::encode_scaled<From>(from, step, dim, scale, row, detail::kQuants, detail::encode_int8);
    std::memcpy(scales, &scale, sizeof scale);
  }
  GQA_ALWAYS_INLINE static void decode(const std::byte* row, const std::byte* scales, Index dim, float* to) {
    detail::decode_int8(row, detail::float_at(scales), dim, to);
  }
};

template <>
struct CodecWithId<5> {
  using type = Int8;
};

}  // namespace gqa
