// SPDX-License-Identifier: Apache-2.0
/// @file
/// ik_llama.cpp's q8_KV: signed bytes behind one f32 scale and their sum.
#pragma once

#include "gqa/codec/quants.hpp"

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI {

inline __attribute__((noinline)) std::int32_t encode_q8_kv(const float* x, Index count, float factor, std::byte* to) {
  std::int32_t sum = 0;
  for (Index i = 0; i < count; ++i) {
    const int q = round_even(clamped(x[i] * factor, -127.0f, 127.0f));
    put_byte(to, i, q);
    sum += q;
  }
  return sum;
}
/// row ← scale, sum, bytes.
template <Element From>
inline void encode_q8_kv_row(const std::byte* from, Index step, Index dim, std::byte* row) {
  const std::uint32_t largest = largest_of_row<From>(from, step, dim);
  const float d = largest >= kInfinityBits ? float_of_bits(0x7fc00000u) : float_of_bits(largest) / 127.0f;
  const float factor = inverse(d);
  std::int32_t sum = 0;
  float x[kQuants];
  for (Index i = 0; i < dim; i += kQuants) {
    const Index count = dim - i < kQuants ? dim - i : kQuants;
    gather_quants<From>(from + i * step * static_cast<Index>(sizeof(From)), step, count, x);
    sum += encode_q8_kv(x, count, factor, row + 8 + i);
  }
  std::memcpy(row, &d, sizeof d);
  std::memcpy(row + 4, &sum, sizeof sum);
}
inline __attribute__((noinline)) void decode_q8_kv(const std::byte* row, Index dim, float* to) {
  const float d = float_at(row);
  for (Index i = 0; i < dim; ++i) to[i] = static_cast<float>(signed_byte_at(row, 8 + i)) * d;
}

}  // namespace gqa::detail::inline GQA_ABI

GQA_END_PLAIN_REGION()

namespace gqa {

/// ik_llama.cpp's q8_KV, 8 bits an element and 8 bytes a row: {f32 d, int32 sum of the bytes, signed bytes q}, worth d · q. Strides are in
/// bytes: a row of `dim` elements is dim + 8 of them. Any width, where that program has multiples of 32 only; any alignment.
///
/// Encoding gives the bytes of its quantize_row_q8_KV for finite elements, if the largest magnitude is no denormal number: d is that / 127, q
/// is x · (1/d) to nearest, ties to even, within ±127. A row with a NaN or an infinity is all NaN.
struct Q8Kv {
  static constexpr KvType type{{.id = 10, .block_bytes = 1, .row_extra = 8, .alignment = 1}};
  static constexpr const char* name = "q8_KV";

  template <Element From>
  GQA_ALWAYS_INLINE static void encode(const std::byte* from, Index step, Index dim, std::byte* row, std::byte*) {
    detail::encode_q8_kv_row<From>(from, step, dim, row);
  }
  GQA_ALWAYS_INLINE static void decode(const std::byte* row, const std::byte*, Index dim, float* to) {
    detail::decode_q8_kv(row, dim, to);
  }
};

template <>
struct CodecWithId<10> {
  using type = Q8Kv;
};

}  // namespace gqa
