// SPDX-License-Identifier: Apache-2.0
/// @file
/// ggml's iq4_nl: blocks of 32 codes of 4 bits for unevenly spaced numbers, with an f16 scale.
#pragma once

#include "gqa/codec/quants.hpp"

namespace gqa::detail {
/// What the codes are worth.
alignas(16) inline constexpr std::int8_t kUnevenNibbles[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                               1,    13,   25,  38,  53,  69,  89,  113};
}  // namespace gqa::detail

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI {

/// The code whose number is nearest to x; of two as near the larger.
GQA_ALWAYS_INLINE int nearest_uneven(float x) noexcept {
  int code = 0;
  for (int i = 1; i < 16; ++i) code += x + x >= static_cast<float>(kUnevenNibbles[i - 1] + kUnevenNibbles[i]) ? 1 : 0;
  return code;
}

inline __attribute__((noinline)) void encode_iq4_nl(const float* x, std::byte* block) {
  const std::uint32_t largest = largest_bits(x);
  if (largest >= kInfinityBits) return put_nan_block(block, 18);
  int code[kQuants] = {};
  float d = 0.0f;
  if (float_of_bits(largest) >= 1e-15f) {
    const float factor = 1.0f / (first_largest(x, largest) / static_cast<float>(kUnevenNibbles[0]));
    // The scale with the least squared error for these codes, weighted by the elements' squares.
    float sum_qx = 0.0f;
    float sum_qq = 0.0f;
    for (Index i = 0; i < kQuants; ++i) {
      code[i] = nearest_uneven(x[i] * factor);
      const auto q = static_cast<float>(kUnevenNibbles[code[i]]);
      const float weighted = x[i] * x[i] * q;
      sum_qx += rounded_product(weighted * x[i]);
      sum_qq += rounded_product(weighted * q);
    }
    d = sum_qq > 0.0f ? sum_qx / sum_qq : 0.0f;
  }
  put_f16(block, d);
  put_nibbles(block + 2, code);
}
inline __attribute__((noinline)) void decode_iq4_nl(const std::byte* block, float* to) {
  const float d = f16_at(block);
  for (Index i = 0; i < kQuants; ++i) to[i] = static_cast<float>(kUnevenNibbles[nibble_at(block + 2, i)]) * d;
}

}  // namespace gqa::detail::inline GQA_ABI

GQA_END_PLAIN_REGION()

namespace gqa {

/// ggml's iq4_nl, 4.5 bits an element: blocks of 32 as Q4_0's, with codes of 16 unevenly spaced numbers between −127 and 113. Rows are whole
/// blocks, aligned to 2 bytes.
///
/// Encoding gives the bytes of ggml's quantize_row_iq4_nl_ref of 2026 (every operation rounded, none contracted) for finite elements: codes are
/// the nearest by a scale that makes the element of the largest magnitude −127; the scale that is stored is then the one that fits them best.
/// (ik_llama.cpp's goes on to improve codes one at a time; its rows are decoded alike.) Elements below 1e-15 are zeros; sums of fourth powers
/// overflow from about 1e9 on, and the scale is no finite f16 then. A block with a NaN or an infinity is all NaN.
struct Iq4Nl {
  static constexpr KvType type{detail::ggml_blocks(9, 18, 2)};
  static constexpr const char* name = "iq4_nl";

  template <Element From>
  GQA_ALWAYS_INLINE static void encode(const std::byte* from, Index step, Index dim, std::byte* row, std::byte*) {
    detail::encode_blocks<From>(from, step, dim, row, 18, detail::encode_iq4_nl);
  }
  GQA_ALWAYS_INLINE static void decode(const std::byte* row, const std::byte*, Index dim, float* to) {
    detail::decode_blocks(row, dim, 18, detail::decode_iq4_nl, to);
  }
};

template <>
struct CodecWithId<9> {
  using type = Iq4Nl;
};

}  // namespace gqa
