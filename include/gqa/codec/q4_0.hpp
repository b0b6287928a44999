// SPDX-License-Identifier: Apache-2.0
/// @file
/// ggml's q4_0: blocks of 32 numbers of 4 bits with an f16 scale.
#pragma once

#include "gqa/codec/quants.hpp"

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI {

inline __attribute__((noinline)) void encode_q4_0(const float* x, std::byte* block) {
  const std::uint32_t largest = largest_bits(x);
  if (largest >= kInfinityBits) return put_nan_block(block, 18);
  const float d = first_largest(x, largest) / -8.0f;
  const float factor = inverse(d);
  put_f16(block, d);
  int code[kQuants];
  for (Index i = 0; i < kQuants; ++i)
    code[i] = static_cast<int>(clamped(rounded_product(x[i] * factor) + 8.5f, 0.0f, 15.0f));
  put_nibbles(block + 2, code);
}
inline __attribute__((noinline)) void decode_q4_0(const std::byte* block, float* to) {
  const float d = f16_at(block);
  for (Index i = 0; i < kQuants; ++i) to[i] = static_cast<float>(nibble_at(block + 2, i) - 8) * d;
}

}  // namespace gqa::detail::inline GQA_ABI

GQA_END_PLAIN_REGION()

namespace gqa {

namespace detail {
/// What four bits are worth in formats that store q + 8.
alignas(16) inline constexpr std::int8_t kOffsetNibbles[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
}  // namespace detail

/// ggml's q4_0, 4.5 bits an element: a block of 32 is {f16 d, 16 bytes}, those with q + 8 of elements 0 … 15 in their lower halves and of
/// 16 … 31 in their upper ones, worth d · q. Rows are whole blocks, aligned to 2 bytes.
///
/// Encoding gives the bytes of ggml's quantize_row_q4_0_ref (every operation rounded, none contracted) for finite elements: d is the element
/// of the largest magnitude / −8, the first of them, so that it is q = −8; q + 8 is x · (1/d) + 8.5 truncated, 15 at most. From 520 thousand
/// on d is no finite f16. A block with a NaN or an infinity is all NaN.
struct Q4_0 {
  static constexpr KvType type{detail::ggml_blocks(4, 18, 2)};
  static constexpr const char* name = "q4_0";

  template <Element From>
  GQA_ALWAYS_INLINE static void encode(const std::byte* from, Index step, Index dim, std::byte* row, std::byte*) {
    detail::encode_blocks<From>(from, step, dim, row, 18, detail::encode_q4_0);
  }
  GQA_ALWAYS_INLINE static void decode(const std::byte* row, const std::byte*, Index dim, float* to) {
    detail::decode_blocks(row, dim, 18, detail::decode_q4_0, to);
  }
};

template <>
struct CodecWithId<4> {
  using type = Q4_0;
};

}  // namespace gqa
