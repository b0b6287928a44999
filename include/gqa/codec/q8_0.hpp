// SPDX-License-Identifier: Apache-2.0
/// @file
/// ggml's q8_0: blocks of 32 signed bytes with an f16 scale.
#pragma once

#include "gqa/codec/quants.hpp"

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI {

inline __attribute__((noinline)) void encode_q8_0(const float* x, std::byte* block) {
  const std::uint32_t largest = largest_bits(x);
  if (largest >= kInfinityBits) return put_nan_block(block, 34);
  const float d = float_of_bits(largest) / 127.0f;
  const float factor = inverse(d);
  put_f16(block, d);
  for (Index i = 0; i < kQuants; ++i) put_byte(block, 2 + i, round_away(clamped(x[i] * factor, -127.0f, 127.0f)));
}
inline __attribute__((noinline)) void decode_q8_0(const std::byte* block, float* to) {
  const float d = f16_at(block);
  for (Index i = 0; i < kQuants; ++i) to[i] = static_cast<float>(signed_byte_at(block, 2 + i)) * d;
}

}  // namespace gqa::detail::inline GQA_ABI

GQA_END_PLAIN_REGION()

namespace gqa {

/// ggml's q8_0, 8.5 bits an element: a block of 32 is {f16 d, 32 signed bytes q}, worth d · q. Rows are whole blocks, aligned to 2 bytes.
///
/// Encoding gives the bytes of ggml's quantize_row_q8_0_ref (every operation rounded, none contracted) for finite elements: d is the largest
/// magnitude / 127, q to nearest, ties away from zero, by the f32 d. From 8.3 million on d is no finite f16. Elements so small that 1/d is no
/// number are ±127 times a d of zero. A block with a NaN or an infinity is all NaN.
struct Q8_0 {
  static constexpr KvType type{detail::ggml_blocks(3, 34, 2)};
  static constexpr const char* name = "q8_0";

  template <Element From>
  GQA_ALWAYS_INLINE static void encode(const std::byte* from, Index step, Index dim, std::byte* row, std::byte*) {
    detail::encode_blocks<From>(from, step, dim, row, 34, detail::encode_q8_0);
  }
  GQA_ALWAYS_INLINE static void decode(const std::byte* row, const std::byte*, Index dim, float* to) {
    detail::decode_blocks(row, dim, 34, detail::decode_q8_0, to);
  }
};

template <>
struct CodecWithId<3> {
  using type = Q8_0;
};

}  // namespace gqa
