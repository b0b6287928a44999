// SPDX-License-Identifier: Apache-2.0
/// @file
/// ggml's q5_0: blocks of 32 numbers of 5 bits with an f16 scale.
#pragma once

#include "gqa/codec/quants.hpp"

namespace gqa::detail {
/// Four bits as they are.
alignas(16) inline constexpr std::int8_t kNibbles[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
}  // namespace gqa::detail

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI {

/// Codes of five bits: the fifth ones, bit i that of element i, then the lower four as put_nibbles has them.
inline void put_five_bits(std::byte* to, const int (&code)[kQuants]) noexcept {
  std::uint32_t fifth = 0;
  for (unsigned i = 0; i < kQuants; ++i) fifth |= (static_cast<std::uint32_t>(code[i]) >> 4 & 1u) << i;
  for (Index i = 0; i < 4; ++i) put_byte(to, i, static_cast<int>(fifth >> (8 * i) & 255u));
  put_nibbles(to + 4, code);
}
GQA_ALWAYS_INLINE int five_bits_at(const std::byte* from, Index i) noexcept {
  return nibble_at(from + 4, i) | (byte_at(from, i / 8) >> (i % 8) & 1) << 4;
}

inline __attribute__((noinline)) void encode_q5_0(const float* x, std::byte* block) {
  const std::uint32_t largest = largest_bits(x);
  if (largest >= kInfinityBits) return put_nan_block(block, 22);
  const float d = first_largest(x, largest) / -16.0f;
  const float factor = inverse(d);
  put_f16(block, d);
  int code[kQuants];
  for (Index i = 0; i < kQuants; ++i)
    code[i] = static_cast<int>(clamped(rounded_product(x[i] * factor) + 16.5f, 0.0f, 31.0f));
  put_five_bits(block + 2, code);
}
inline __attribute__((noinline)) void decode_q5_0(const std::byte* block, float* to) {
  const float d = f16_at(block);
  for (Index i = 0; i < kQuants; ++i) to[i] = static_cast<float>(five_bits_at(block + 2, i) - 16) * d;
}

}  // namespace gqa::detail::inline GQA_ABI

GQA_END_PLAIN_REGION()

namespace gqa {

/// ggml's q5_0, 5.5 bits an element: a block of 32 is {f16 d, 4 bytes with the fifth bits, 16 bytes with the others as Q4_0 has them}, a code
/// of q + 16 worth d · q. Rows are whole blocks, aligned to 2 bytes.
///
/// Encoding gives the bytes of ggml's quantize_row_q5_0_ref (every operation rounded, none contracted) for finite elements: as Q4_0, with −16
/// and 16.5. A block with a NaN or an infinity is all NaN.
struct Q5_0 {
  static constexpr KvType type{detail::ggml_blocks(7, 22, 2)};
  static constexpr const char* name = "q5_0";

  template <Element From>
  GQA_ALWAYS_INLINE static void encode(const std::byte* from, Index step, Index dim, std::byte* row, std::byte*) {
    detail::encode_blocks<From>(from, step, dim, row, 22, detail::encode_q5_0);
  }
  GQA_ALWAYS_INLINE static void decode(const std::byte* row, const std::byte*, Index dim, float* to) {
    detail::decode_blocks(row, dim, 22, detail::decode_q5_0, to);
  }
};

template <>
struct CodecWithId<7> {
  using type = Q5_0;
};

}  // namespace gqa
