// SPDX-License-Identifier: Apache-2.0
/// @file
/// Kernels of the NEON path for integers, on any processor: products of 16-bit integers.
///
/// | intrinsic              | instruction | what it does here                                                                |
/// |------------------------|-------------|----------------------------------------------------------------------------------|
/// | vmlal_laneq_s16        | smlal       | four 32-bit lanes += the lower four 16-bit ones of a register · one of another's |
/// | vmlal_high_laneq_s16   | smlal2      | the upper four                                                                   |
///
/// Keys and values are widened in staging: of keys [dim][token], of values [token][dim]. A row's group is its eight integers.
#pragma once

#include "gqa/detail/path/neon.hpp"

#if GQA_DETAIL_NEON

GQA_BEGIN_PORTABLE_REGION()

namespace gqa::detail::inline GQA_ABI::neon_smlal {

using namespace neon;

inline constexpr int kGroup = 8;
inline constexpr Index kGroupBytes = 16;
inline constexpr Index kLaneBytes = 2;
template <int R>
inline constexpr int kParts = 4;

GQA_OP void put_group(std::byte* to, int16x8_t n) { store_bytes(to, vreinterpretq_u8_s16(n)); }
GQA_OP void put_widened(std::byte* to, int8x16_t a) {
  store_bytes(to, vreinterpretq_u8_s16(vmovl_s8(vget_low_s8(a))));
  store_bytes(to + 16, vreinterpretq_u8_s16(vmovl_high_s8(a)));
}
GQA_OP void put_keys(int8x16_t (&k)[kLanes], std::byte* to) {
  interleave<4>(k);
  GQA_UNROLL
  for (int d = 0; d < kLanes; ++d) put_widened(to + d * kLanes * kLaneBytes, k[d]);
}
GQA_OP void put_values(int8x16_t (&v)[kGroup], std::byte* to, Index stride) {
  GQA_UNROLL
  for (int i = 0; i < kGroup; ++i) put_widened(to + i * (stride / kGroup), v[i]);
}
template <int P>
struct RowSums {
  int32x4_t quarter[P];
  static GQA_OP RowSums none() {
    RowSums r;
    GQA_UNROLL
    for (int i = 0; i < P; ++i) r.quarter[i] = vdupq_n_s32(0);
    return r;
  }
  GQA_OP int32x4_t part(int i) const { return quarter[i]; }
};
template <int R, int P, int Element = 0>
GQA_OP void add_group(const uint8x16_t (&a)[R], const std::byte* from, Index stride, RowSums<P> (&sums)[R]) {
  GQA_UNROLL
  for (int i = 0; i < P; i += 2) {
    const int16x8_t lanes = vreinterpretq_s16_u8(load_bytes(from + i * 4 * kLaneBytes));
    GQA_UNROLL
    for (int r = 0; r < R; ++r) {
      int32x4_t(&to)[P] = sums[r].quarter;
      const int16x8_t row = vreinterpretq_s16_u8(a[r]);
      to[i] = vmlal_laneq_s16(to[i], vget_low_s16(lanes), row, Element);
      to[i + 1] = vmlal_high_laneq_s16(to[i + 1], lanes, row, Element);
    }
  }
  if constexpr (Element + 1 < kGroup) add_group<R, P, Element + 1>(a, from + stride / kGroup, stride, sums);
}
#include "gqa/detail/path/ints_neon.inl"

}  // namespace gqa::detail::inline GQA_ABI::neon_smlal

GQA_END_PLAIN_REGION()

#endif  // GQA_DETAIL_NEON
