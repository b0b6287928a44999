// SPDX-License-Identifier: Apache-2.0
/// @file
/// What codecs of small integers have in common: rows as floats, 32 at a time, their largest magnitude, and rounding.
///
/// Everything that is stored is computed in f32, every operation rounded to nearest, ties to even, whatever the unit's flags say; and with
/// subnormal numbers, as long as nobody has switched them off: owning caches see to that.
#pragma once

#include <cstdint>
#include <cstring>

#include "gqa/codec/with_id.hpp"
#include "gqa/detail/plain_region.hpp"

namespace gqa::detail {

/// Elements that encoders take at a time, and that most formats have in a block.
inline constexpr Index kQuants = 32;

/// What blocks of 32 elements and their scale are, as ggml has them.
GQA_ALWAYS_INLINE constexpr RowLayout ggml_blocks(std::uint8_t id, std::uint16_t bytes, std::uint8_t alignment) {
  return {.id = id, .block_shift = 5, .block_bytes = bytes, .alignment = alignment, .whole_blocks = true};
}

/// A table of what codes of four bits are worth, as floats.
template <const std::int8_t (&Table)[16]>
struct FloatsOf {
  alignas(64) float of[16];
  consteval FloatsOf() noexcept : of{} {
    for (int i = 0; i < 16; ++i) of[i] = static_cast<float>(Table[i]);
  }
};
template <const std::int8_t (&Table)[16]>
inline constexpr FloatsOf<Table> kFloatsOf{};

}  // namespace gqa::detail

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI {

/// to[0 … 32) ← `count` elements, `step` of them apart; zeros behind them.
template <Element From>
inline void gather_quants(const std::byte* from, Index step, Index count, float* to) {
  const auto* in = typed<const From>(from);
  for (Index i = 0; i < count; ++i) to[i] = static_cast<float>(in[i * step]);
  for (Index i = count; i < kQuants; ++i) to[i] = 0.0f;
}

/// Encodes one block: 32 floats.
using BlockEncoder = void (*)(const float* x, std::byte* block);

/// row ← `dim` elements of From, `step` apart, in blocks of so many bytes, the last one filled with zeros.
template <Element From>
inline void encode_blocks(const std::byte* from, Index step, Index dim, std::byte* row, Index bytes,
                          BlockEncoder encode) {
  float x[kQuants];
  for (Index d = 0; d < dim; d += kQuants, row += bytes) {
    const Index count = dim - d < kQuants ? dim - d : kQuants;
    gather_quants<From>(from + d * step * static_cast<Index>(sizeof(From)), step, count, x);
    encode(x, row);
  }
}

/// Decodes one block.
using BlockDecoder = void (*)(const std::byte* block, float* to);

/// to[0 … dim) ← blocks of so many bytes.
inline void decode_blocks(const std::byte* row, Index dim, Index bytes, BlockDecoder decode, float* to) {
  for (Index d = 0; d < dim; d += kQuants, row += bytes) {
    if (dim - d >= kQuants) {
      decode(row, to + d);
      continue;
    }
    float x[kQuants];
    decode(row, x);
    std::memcpy(to + d, x, static_cast<std::size_t>(dim - d) * sizeof(float));
  }
}

inline constexpr std::uint32_t kMagnitudeBits = 0x7fffffffu;
inline constexpr std::uint32_t kInfinityBits = 0x7f800000u;
GQA_ALWAYS_INLINE std::uint32_t bits_of_float(float x) noexcept { return __builtin_bit_cast(std::uint32_t, x); }
GQA_ALWAYS_INLINE float float_of_bits(std::uint32_t bits) noexcept { return __builtin_bit_cast(float, bits); }

/// The largest magnitude of 32 floats, as bits, or `most`: those of a NaN or an infinity are above all others.
GQA_ALWAYS_INLINE std::uint32_t largest_bits(const float* x, std::uint32_t most = 0) noexcept {
  for (Index i = 0; i < kQuants; ++i) {
    const std::uint32_t magnitude = bits_of_float(x[i]) & kMagnitudeBits;
    most = magnitude > most ? magnitude : most;
  }
  return most;
}
/// The first of 32 finite floats that has the largest magnitude, which is given; 0 where all are.
GQA_ALWAYS_INLINE float first_largest(const float* x, std::uint32_t largest) noexcept {
  for (Index i = 0; i < kQuants && largest != 0; ++i)
    if ((bits_of_float(x[i]) & kMagnitudeBits) == largest) return x[i];
  return 0.0f;
}

/// The largest magnitude of a row, as bits.
template <Element From>
inline std::uint32_t largest_of_row(const std::byte* from, Index step, Index dim) {
  float x[kQuants];
  std::uint32_t most = 0;
  for (Index d = 0; d < dim; d += kQuants) {
    const Index count = dim - d < kQuants ? dim - d : kQuants;
    gather_quants<From>(from + d * step * static_cast<Index>(sizeof(From)), step, count, x);
    most = largest_bits(x, most);
  }
  return most;
}

/// x within [low, high]; 0 where it is NaN, by its bits: a compiler may have been told that there are none.
GQA_ALWAYS_INLINE float clamped(float x, float low, float high) noexcept {
  const float number = (bits_of_float(x) & kMagnitudeBits) > kInfinityBits ? 0.0f : x;
  return number < low ? low : number > high ? high : number;
}
/// To nearest, ties to even, of numbers below 2^21.
GQA_ALWAYS_INLINE int round_even(float x) noexcept {
  constexpr float shift = 12582912.0f;  // 1.5 · 2^23: what is added to it has no fraction
  return static_cast<int>(bits_of_float(x + shift) - bits_of_float(shift));
}
/// To nearest, ties away from zero, as roundf does; of numbers that are integers when truncated.
GQA_ALWAYS_INLINE int round_away(float x) noexcept {
  const int whole = static_cast<int>(x);
  const float rest = x - static_cast<float>(whole);
  return whole + (rest >= 0.5f ? 1 : 0) - (rest <= -0.5f ? 1 : 0);
}

GQA_ALWAYS_INLINE void put_byte(std::byte* to, Index at, int value) noexcept {
  to[at] = static_cast<std::byte>(static_cast<std::uint8_t>(value));
}
GQA_ALWAYS_INLINE int byte_at(const std::byte* from, Index at) noexcept { return static_cast<int>(from[at]); }
GQA_ALWAYS_INLINE int signed_byte_at(const std::byte* from, Index at) noexcept {
  return static_cast<std::int8_t>(from[at]);
}
GQA_ALWAYS_INLINE void put_f16(std::byte* to, float value) noexcept {
  const std::uint16_t bits = f16_from_float(value);
  std::memcpy(to, &bits, sizeof bits);
}
GQA_ALWAYS_INLINE float f16_at(const std::byte* from) noexcept {
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return float_from_f16(bits);
}
GQA_ALWAYS_INLINE float float_at(const std::byte* from) noexcept {
  float value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
/// 1/d as the formats have it: 0 for 0.
GQA_ALWAYS_INLINE float inverse(float d) noexcept { return d != 0.0f ? 1.0f / d : 0.0f; }

/// A block, or a row, that stands for nothing but NaN: it had a NaN or an infinity, which must not be lost. It begins with its f16 scale.
inline void put_nan_block(std::byte* to, Index bytes) noexcept {
  std::memset(to, 0, static_cast<std::size_t>(bytes));
  put_f16(to, float_of_bits(0x7fc00000u));
}

/// Two codes of four bits a byte: those of elements 0 … 15 are the lower halves, of 16 … 31 the upper ones.
GQA_ALWAYS_INLINE void put_nibbles(std::byte* to, const int (&code)[kQuants]) noexcept {
  for (Index i = 0; i < kQuants / 2; ++i) put_byte(to, i, (code[i] & 15) | (code[i + kQuants / 2] & 15) << 4);
}
GQA_ALWAYS_INLINE int nibble_at(const std::byte* from, Index i) noexcept {
  return i < kQuants / 2 ? byte_at(from, i) & 15 : byte_at(from, i - kQuants / 2) >> 4;
}

}  // namespace gqa::detail::inline GQA_ABI

GQA_END_PLAIN_REGION()
