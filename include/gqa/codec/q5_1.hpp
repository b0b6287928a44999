// SPDX-License-Identifier: Apache-2.0
/// @file
/// ggml's q5_1: blocks of 32 numbers of 5 bits with an f16 scale and an f16 least element.
#pragma once

#include <limits>

#include "gqa/codec/q5_0.hpp"

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI {

inline __attribute__((noinline)) void encode_q5_1(const float* x, std::byte* block) {
  if (largest_bits(x) >= kInfinityBits) return put_nan_block(block, 24);
  float least = (std::numeric_limits<float>::max)();
  float most = std::numeric_limits<float>::lowest();
  for (Index i = 0; i < kQuants; ++i) {
    least = x[i] < least ? x[i] : least;
    most = x[i] > most ? x[i] : most;
  }
  const float d = (most - least) / 31.0f;
  const float factor = inverse(d);
  put_f16(block, d);
  put_f16(block + 2, least);
  int code[kQuants];
  for (Index i = 0; i < kQuants; ++i)
    code[i] = static_cast<int>(clamped(rounded_product((x[i] - least) * factor) + 0.5f, 0.0f, 31.0f));
  put_five_bits(block + 4, code);
}
inline __attribute__((noinline)) void decode_q5_1(const std::byte* block, float* to) {
  const float d = f16_at(block);
  const float least = f16_at(block + 2);
  for (Index i = 0; i < kQuants; ++i)
    to[i] = rounded_product(static_cast<float>(five_bits_at(block + 4, i)) * d) + least;
}

}  // namespace gqa::detail::inline GQA_ABI

GQA_END_PLAIN_REGION()

namespace gqa {

/// ggml's q5_1, 6 bits an element: a block of 32 is {f16 d, f16 m, 4 bytes with the fifth bits, 16 bytes with the others as Q4_0 has them}, a
/// code of q worth d · q + m, rounded twice. Rows are whole blocks, aligned to 2 bytes.
///
/// Encoding gives the bytes of ggml's quantize_row_q5_1_ref (every operation rounded, none contracted) for finite elements: m is the least, d
/// the distance to the largest / 31, q is (x − m) · (1/d) + 0.5 truncated. A block with a NaN or an infinity is all NaN.
struct Q5_1 {
  static constexpr KvType type{detail::ggml_blocks(8, 24, 2)};
  static constexpr const char* name = "q5_1";

  template <Element From>
  GQA_ALWAYS_INLINE static void encode(const std::byte* from, Index step, Index dim, std::byte* row, std::byte*) {
    detail::encode_blocks<From>(from, step, dim, row, 24, detail::encode_q5_1);
  }
  GQA_ALWAYS_INLINE static void decode(const std::byte* row, const std::byte*, Index dim, float* to) {
    detail::decode_blocks(row, dim, 24, detail::decode_q5_1, to);
  }
};

template <>
struct CodecWithId<8> {
  using type = Q5_1;
};

}  // namespace gqa
