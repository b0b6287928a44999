// SPDX-License-Identifier: Apache-2.0
/// @file
/// Numbers of 4 bits with one f32 scale a row, in a plane of its own.
#pragma once

#include "gqa/codec/int8.hpp"
#include "gqa/codec/q4_0.hpp"

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI {

inline __attribute__((noinline)) void encode_int4(const float* x, Index, float scale, std::byte* to) {
  int code[kQuants];
  for (Index i = 0; i < kQuants; ++i) code[i] = quotient(x[i], scale, 7.0f) + 8;
  put_nibbles(to, code);
}
inline __attribute__((noinline)) void decode_int4(const std::byte* row, float scale, Index dim, float* to) {
  for (Index d = 0; d < dim; ++d)
    to[d] = static_cast<float>(nibble_at(row + d / kQuants * 16, d % kQuants) - 8) * scale;
}

}  // namespace gqa::detail::inline GQA_ABI

GQA_END_PLAIN_REGION()

namespace gqa {

/// Int4, 4 bits an element and an f32 scale a row outside of it (KvScales). 32 elements are 16 bytes, those with q + 8 of elements 0 … 15 in
/// their lower halves and of 16 … 31 in their upper ones, worth scale · q. Any width, the last 32 filled with zeros; any alignment; strides
/// are multiples of 32.
///
/// Encoding: scale = largest magnitude / 7; q is element / scale to nearest, ties to even, within ±7; zeros, and what is not finite, as Int8
/// has them. −8 is never written, and decoded if it is there.
struct Int4 {
  static constexpr KvType type{{.id = 6, .block_shift = 5, .block_bytes = 16, .alignment = 1, .scale_bytes = 4}};
  static constexpr const char* name = "int4";
  static constexpr int integer_bits = 4;  // as Int8 has it

  template <Element From>
  GQA_ALWAYS_INLINE static void encode(const std::byte* from, Index step, Index dim, std::byte* row,
                                       std::byte* scales) {
    const float scale = detail::row_scale(detail::largest_of_row<From>(from, step, dim), 7.0f);
    detail::encode_scaled<From>(from, step, dim, scale, row, 16, detail::encode_int4);
    std::memcpy(scales, &scale, sizeof scale);
  }
  GQA_ALWAYS_INLINE static void decode(const std::byte* row, const std::byte* scales, Index dim, float* to) {
    detail::decode_int4(row, detail::float_at(scales), dim, to);
  }
};

template <>
struct CodecWithId<6> {
  using type = Int4;
};

}  // namespace gqa
