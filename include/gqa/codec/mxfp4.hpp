// SPDX-License-Identifier: Apache-2.0
/// @file
/// MXFP4: blocks of 32 4-bit floats with a power of two as their scale, as OCP's "Microscaling Formats (MX) Specification" has them.
#pragma once

#include "gqa/codec/quants.hpp"

namespace gqa::detail {
/// Twice what the codes of e2m1 are worth.
alignas(16) inline constexpr std::int8_t kFloatNibbles[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
}  // namespace gqa::detail

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI {

/// Half of 2^(code − 127); NaN for 255.
GQA_ALWAYS_INLINE float half_of_e8m0(std::byte code) noexcept {
  const auto exponent = static_cast<std::uint32_t>(code);
  if (exponent == 255) return float_of_bits(0x7fc00000u);
  return float_of_bits(exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23);
}

/// To nearest, ties to even; from 6 on it is 6.
GQA_ALWAYS_INLINE int e2m1_of_float(float x) noexcept {
  const float size = float_of_bits(bits_of_float(x) & kMagnitudeBits);
  const int code = (size > 0.25f ? 1 : 0) + (size >= 0.75f ? 1 : 0) + (size > 1.25f ? 1 : 0) + (size >= 1.75f ? 1 : 0) +
                   (size > 2.5f ? 1 : 0) + (size >= 3.5f ? 1 : 0) + (size > 5.0f ? 1 : 0);
  return code != 0 && x < 0.0f ? code + 8 : code;
}

inline __attribute__((noinline)) void encode_mxfp4(const float* x, std::byte* block) {
  const std::uint32_t largest = largest_bits(x);
  if (largest >= kInfinityBits) {
    std::memset(block, 0, 17);
    put_byte(block, 0, 255);
    return;
  }
  const std::uint32_t exponent = largest >> 23;  // of what is at least 4 then, by the largest e2m1's
  const std::uint32_t scale = exponent < 2 ? 0 : exponent - 2;
  const float factor = float_of_bits((254u - scale) << 23);
  int code[kQuants];
  for (Index i = 0; i < kQuants; ++i) code[i] = e2m1_of_float(x[i] * factor);
  put_byte(block, 0, static_cast<int>(scale));
  put_nibbles(block + 1, code);
}
inline __attribute__((noinline)) void decode_mxfp4(const std::byte* block, float* to) {
  const float d = half_of_e8m0(*block);
  for (Index i = 0; i < kQuants; ++i) to[i] = static_cast<float>(kFloatNibbles[nibble_at(block + 1, i)]) * d;
}

}  // namespace gqa::detail::inline GQA_ABI

GQA_END_PLAIN_REGION()

namespace gqa {

/// MXFP4, 4.25 bits an element: a block of 32 is {e8m0 scale, 16 bytes with e2m1 codes as Q4_0 has its nibbles}, in ggml's order of bytes. A
/// code is worth ±{0, 0.5, 1, 1.5, 2, 3, 4, 6} times 2^(scale − 127); a scale of 255 is NaN. Rows are whole blocks of any alignment.
///
/// Encoding is that of OCP's MX specification 1.0: the scale is the power of two of the largest magnitude, less that of 4; codes to nearest,
/// ties to even, within ±6. ggml's quantize_row_mxfp4_ref stores the same but for ties, of which it takes the smaller magnitude. A block with
/// a NaN or an infinity is all NaN.
struct Mxfp4 {
  static constexpr KvType type{detail::ggml_blocks(13, 17, 1)};
  static constexpr const char* name = "mxfp4";

  template <Element From>
  GQA_ALWAYS_INLINE static void encode(const std::byte* from, Index step, Index dim, std::byte* row, std::byte*) {
    detail::encode_blocks<From>(from, step, dim, row, 17, detail::encode_mxfp4);
  }
  GQA_ALWAYS_INLINE static void decode(const std::byte* row, const std::byte*, Index dim, float* to) {
    detail::decode_blocks(row, dim, 17, detail::decode_mxfp4, to);
  }
};

template <>
struct CodecWithId<13> {
  using type = Mxfp4;
};

}  // namespace gqa
