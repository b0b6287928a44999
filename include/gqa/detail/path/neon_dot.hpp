// SPDX-License-Identifier: Apache-2.0
/// @file
/// Kernels of the NEON path for integers, where the processor has dot products of bytes (FEAT_DotProd).
///
/// | instruction | what it does here                                                                                              |
/// |-------------|----------------------------------------------------------------------------------------------------------------|
/// | sdot        | four 32-bit lanes += four products of signed bytes each, of one register with four of another's, exactly        |
///
/// The 16-bit integers are two signed bytes each, n = 256 · upper + lower. A row's group is its eight upper bytes, then its eight lower ones:
/// four quads for sdot to take one of. Keys and values are signed bytes themselves: quads, a lane's beside the next one's.
#pragma once

#include "gqa/detail/path/neon.hpp"

#if GQA_DETAIL_NEON

GQA_BEGIN_PORTABLE_REGION()

namespace gqa::detail::inline GQA_ABI::neon {

// 8 integers → their upper bytes, then the lower ones, both signed.
GQA_OP void put_two_bytes(std::byte* to, int16x8_t n) {
  store_bytes(to, vreinterpretq_u8_s8(vcombine_s8(vrshrn_n_s16(n, 8), vmovn_s16(n))));
}
// The sums of both, below 2^31.
GQA_OP int32x4_t join_sums(int32x4_t upper, int32x4_t lower) {
  return vreinterpretq_s32_u32(vaddq_u32(vshlq_n_u32(vreinterpretq_u32_s32(upper), 8), vreinterpretq_u32_s32(lower)));
}

}  // namespace gqa::detail::inline GQA_ABI::neon

GQA_END_PLAIN_REGION()

GQA_BEGIN_ARM_REGION("dotprod")

namespace gqa::detail::inline GQA_ABI::neon_dot {

using namespace neon;

inline constexpr int kGroup = 8;
inline constexpr Index kGroupBytes = 8;
inline constexpr Index kLaneBytes = 4;
template <int R>
inline constexpr int kParts = R == 4 ? 2 : 4;

GQA_OP void put_group(std::byte* to, int16x8_t n) { put_two_bytes(to, n); }
// 16 dims: four quads of each token.
GQA_OP void put_keys(const int8x16_t (&k)[kLanes], std::byte* to) {
  GQA_UNROLL
  for (int t = 0; t < kLanes; t += 4) {
    int32x4_t quads[4];
    GQA_UNROLL
    for (int i = 0; i < 4; ++i) quads[i] = vreinterpretq_s32_s8(k[t + i]);
    interleave<2>(quads);
    GQA_UNROLL
    for (int i = 0; i < 4; ++i) store_bytes(to + (i * kLanes + t) * kLaneBytes, vreinterpretq_u8_s32(quads[i]));
  }
}
GQA_OP void put_values(const int8x16_t (&v)[kGroup], std::byte* to, Index stride) {
  GQA_UNROLL
  for (int i = 0; i < kGroup; i += 4, to += stride / 2) {
    int8x16_t dims[4] = {v[i], v[i + 1], v[i + 2], v[i + 3]};
    interleave<2>(dims);
    GQA_UNROLL
    for (int d = 0; d < 4; ++d) store_bytes(to + d * 4 * kLaneBytes, vreinterpretq_u8_s8(dims[d]));
  }
}
// Written out: GCC's intrinsics are for Armv8.2 without what else a unit may be compiled for, and those of Clang until 15 for units with a flag.
template <int Quad>
GQA_OP int32x4_t add_dots(int32x4_t sum, int8x16_t a, uint8x16_t quads) {
  asm("sdot %0.4s, %1.16b, %2.4b[%c3]" : "+w"(sum) : "w"(a), "w"(quads), "i"(Quad));
  return sum;
}
template <int P>
struct RowSums {
  int32x4_t upper[P];
  int32x4_t lower[P];
  static GQA_OP RowSums none() {
    RowSums r;
    GQA_UNROLL
    for (int i = 0; i < P; ++i) r.upper[i] = r.lower[i] = vdupq_n_s32(0);
    return r;
  }
  GQA_OP int32x4_t part(int i) const { return join_sums(upper[i], lower[i]); }
};
template <int R, int P, int Quad = 0>
GQA_OP void add_group(const uint8x16_t (&a)[R], const std::byte* from, Index stride, RowSums<P> (&sums)[R]) {
  GQA_UNROLL
  for (int i = 0; i < P; ++i) {
    const int8x16_t b = vreinterpretq_s8_u8(load_bytes(from + i * 4 * kLaneBytes));
    GQA_UNROLL
    for (int r = 0; r < R; ++r) {
      sums[r].upper[i] = add_dots<Quad>(sums[r].upper[i], b, a[r]);
      sums[r].lower[i] = add_dots<Quad + 2>(sums[r].lower[i], b, a[r]);
    }
  }
  if constexpr (Quad == 0) add_group<R, P, 1>(a, from + stride / 2, stride, sums);
}
#include "gqa/detail/path/ints_neon.inl"

}  // namespace gqa::detail::inline GQA_ABI::neon_dot

GQA_END_ARM_REGION()

#endif  // GQA_DETAIL_NEON
