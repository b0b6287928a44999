// SPDX-License-Identifier: Apache-2.0
/// @file
/// 8-bit floats as OCP's "8-bit Floating Point Specification" has them, e4m3 and e5m2, with an f32 scale in a plane of its own.
#pragma once

#include "gqa/codec/int8.hpp"

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI {

/// An 8-bit float of so many bits of mantissa.
template <int Mantissa>
struct Fp8Format {
  static constexpr int bias = Mantissa == 3 ? 7 : 15;
  static constexpr int largest = Mantissa == 3 ? 0x7e : 0x7b;  ///< of finite numbers
  static constexpr float largest_value = Mantissa == 3 ? 448.0f : 57344.0f;
  static constexpr std::uint32_t nan = 0x7f;
};

/// To nearest, ties to even; beyond the largest number it is that, and what is not finite is an infinity where there are any, else NaN.
template <int Mantissa>
inline int fp8_of_float(float x) noexcept {
  using Format = Fp8Format<Mantissa>;
  const std::uint32_t bits = bits_of_float(x);
  const std::uint32_t magnitude = bits & kMagnitudeBits;
  const int sign = static_cast<int>(bits >> 24 & 0x80u);
  if (magnitude >= kInfinityBits) return sign | (Mantissa == 2 && magnitude == kInfinityBits ? 0x7c : 0x7f);
  constexpr std::uint32_t dropped = 23 - Mantissa;
  constexpr auto least_exponent =
      static_cast<std::uint32_t>(128 - Format::bias);  // of normal numbers, as an f32 has it
  int code;
  if (magnitude < least_exponent << 23) {  // denormal: multiples of 2^(1 − bias − Mantissa)
    code = round_even(float_of_bits(magnitude) * float_of_bits((254u - least_exponent + Mantissa) << 23));
  } else {
    const std::uint32_t rounded = magnitude + (1u << (dropped - 1)) - 1u + (magnitude >> dropped & 1u);
    code = static_cast<int>((rounded >> dropped) - ((least_exponent - 1u) << Mantissa));
  }
  return sign | (code > Format::largest ? Format::largest : code);
}
template <int Mantissa>
inline float float_of_fp8(int code) noexcept {
  const auto bits = static_cast<std::uint32_t>(code);
  // Exponent and mantissa as an f32's are those of a number that is too small, denormal numbers too.
  const float scaled = float_of_bits((bits & 0x7fu) << (23 - Mantissa)) *
                       float_of_bits(static_cast<std::uint32_t>(254 - Fp8Format<Mantissa>::bias) << 23);
  const bool finite = static_cast<int>(bits & 0x7fu) <= Fp8Format<Mantissa>::largest;
  const std::uint32_t magnitude = bits_of_float(scaled) | (finite ? 0u : kInfinityBits);
  return float_of_bits(magnitude | (bits & 0x80u) << 24);
}

template <int Mantissa>
inline __attribute__((noinline)) void encode_fp8(const float* x, Index count, float scale, std::byte* to) {
  for (Index i = 0; i < count; ++i) put_byte(to, i, fp8_of_float<Mantissa>(scale != 0.0f ? x[i] / scale : x[i] * 0.0f));
}
template <int Mantissa>
inline __attribute__((noinline)) void decode_fp8(const std::byte* row, float scale, Index dim, float* to) {
  for (Index d = 0; d < dim; ++d) to[d] = float_of_fp8<Mantissa>(byte_at(row, d)) * scale;
}

/// The largest finite magnitude of a row.
template <Element From>
inline float largest_finite(const std::byte* from, Index step, Index dim) {
  float x[kQuants];
  std::uint32_t most = 0;
  for (Index d = 0; d < dim; d += kQuants) {
    const Index count = dim - d < kQuants ? dim - d : kQuants;
    gather_quants<From>(from + d * step * static_cast<Index>(sizeof(From)), step, count, x);
    for (Index i = 0; i < kQuants; ++i) {
      const std::uint32_t magnitude = bits_of_float(x[i]) & kMagnitudeBits;
      most = magnitude > most && magnitude < kInfinityBits ? magnitude : most;
    }
  }
  return float_of_bits(most);
}
template <int Mantissa, Element From>
inline void encode_fp8_row(const std::byte* from, Index step, Index dim, std::byte* row, std::byte* scales) {
  const float scale = largest_finite<From>(from, step, dim) / Fp8Format<Mantissa>::largest_value;
  encode_scaled<From>(from, step, dim, scale, row, kQuants, encode_fp8<Mantissa>);
  std::memcpy(scales, &scale, sizeof scale);
}

}  // namespace gqa::detail::inline GQA_ABI

GQA_END_PLAIN_REGION()

namespace gqa {

namespace detail {
/// Both formats.
template <int Id, int Mantissa>
struct Fp8 {
  static constexpr KvType type{{.id = Id, .block_bytes = 1, .alignment = 1, .scale_bytes = 4}};

  template <Element From>
  GQA_ALWAYS_INLINE static void encode(const std::byte* from, Index step, Index dim, std::byte* row,
                                       std::byte* scales) {
    encode_fp8_row<Mantissa, From>(from, step, dim, row, scales);
  }
  GQA_ALWAYS_INLINE static void decode(const std::byte* row, const std::byte* scales, Index dim, float* to) {
    decode_fp8<Mantissa>(row, float_at(scales), dim, to);
  }
};
}  // namespace detail

/// 8-bit floats e4m3 (OCP's "fn": no infinities, the largest is 448), 8 bits an element and an f32 scale outside of rows (KvScales): element d
/// is worth scale · row[d]. A scale a head, or one for all, is strides of 0. Any width and alignment.
///
/// Encoding: scale = the row's largest finite magnitude / 448; bytes are element / scale to nearest, ties to even, within ±448. A NaN, or an
/// infinity, is a NaN.
struct Fp8E4M3 : detail::Fp8<11, 3> {
  static constexpr const char* name = "fp8_e4m3";
};
/// 8-bit floats e5m2 (the largest is 57344), as Fp8E4M3. A NaN is a NaN and an infinity an infinity.
struct Fp8E5M2 : detail::Fp8<12, 2> {
  static constexpr const char* name = "fp8_e5m2";
};

template <>
struct CodecWithId<11> {
  using type = Fp8E4M3;
};
template <>
struct CodecWithId<12> {
  using type = Fp8E5M2;
};

}  // namespace gqa
