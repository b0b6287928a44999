// SPDX-License-Identifier: Apache-2.0
/// @file
/// Kernels of the NEON path for integers, where the processor has products of matrices of bytes (FEAT_I8MM); else those by dot products, or by
/// 16-bit ones, which find and leave weights, states and outputs in the same places.
///
/// | instruction | what it does here                                                                                      |
/// |-------------|--------------------------------------------------------------------------------------------------------|
/// | smmla       | 2 × 2 32-bit lanes += 2 × 8 signed bytes of one register by 8 × 2 of another, exactly                   |
///
/// A row's group is that of neon_dot.hpp, and the two rows of a matrix are its upper and its lower bytes: so one row fills a matrix, and rows
/// need not be had in pairs. The other matrix is two lanes with the group's eight elements side by side. Both are signed, which leaves usmmla
/// nothing to do.
#pragma once

#include "gqa/detail/path/neon_dot.hpp"
#include "gqa/detail/path/neon_smlal.hpp"

#if GQA_DETAIL_NEON

GQA_BEGIN_ARM_REGION("i8mm")

namespace gqa::detail::inline GQA_ABI::neon_i8mm {

using namespace neon;

inline constexpr int kGroup = 8;
inline constexpr Index kGroupBytes = 8;
inline constexpr Index kLaneBytes = 8;
template <int R>
inline constexpr int kParts = R == 4 ? 2 : 4;

GQA_OP void put_group(std::byte* to, int16x8_t n) { put_two_bytes(to, n); }
GQA_OP void put_keys(const int8x16_t (&k)[kLanes], std::byte* to) {
  GQA_UNROLL
  for (int t = 0; t < kLanes; t += 2) {
    int64x2_t groups[2] = {vreinterpretq_s64_s8(k[t]), vreinterpretq_s64_s8(k[t + 1])};
    interleave<1>(groups);
    GQA_UNROLL
    for (int i = 0; i < 2; ++i) store_bytes(to + (i * kLanes + t) * kLaneBytes, vreinterpretq_u8_s64(groups[i]));
  }
}
GQA_OP void put_values(int8x16_t (&v)[kGroup], std::byte* to, Index) {
  interleave<3>(v);
  GQA_UNROLL
  for (int d = 0; d < kGroup; ++d) store_bytes(to + d * 2 * kLaneBytes, vreinterpretq_u8_s8(v[d]));
}
// Written out, as add_dots is.
GQA_OP int32x4_t add_matrix(int32x4_t sum, uint8x16_t a, uint8x16_t b) {
  asm("smmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
  return sum;
}
template <int P>
struct RowSums {
  int32x4_t lanes[2 * P];  // of two lanes the upper bytes' sums, then the lower ones'
  static GQA_OP RowSums none() {
    RowSums r;
    GQA_UNROLL
    for (int i = 0; i < 2 * P; ++i) r.lanes[i] = vdupq_n_s32(0);
    return r;
  }
  GQA_OP int32x4_t part(int i) const {
    int64x2_t both[2] = {vreinterpretq_s64_s32(lanes[2 * i]), vreinterpretq_s64_s32(lanes[2 * i + 1])};
    interleave<1>(both);
    return join_sums(vreinterpretq_s32_s64(both[0]), vreinterpretq_s32_s64(both[1]));
  }
};
template <int R, int P>
GQA_OP void add_group(const uint8x16_t (&a)[R], const std::byte* from, Index, RowSums<P> (&sums)[R]) {
  GQA_UNROLL
  for (int i = 0; i < 2 * P; ++i) {
    const uint8x16_t b = load_bytes(from + i * 2 * kLaneBytes);
    GQA_UNROLL
    for (int r = 0; r < R; ++r) sums[r].lanes[i] = add_matrix(sums[r].lanes[i], a[r], b);
  }
}
#include "gqa/detail/path/ints_neon.inl"

}  // namespace gqa::detail::inline GQA_ABI::neon_i8mm

GQA_END_ARM_REGION()

GQA_BEGIN_PORTABLE_REGION()

namespace gqa::detail::inline GQA_ABI::neon {

template <class Codec>
inline const CodecKernels* integer_kernels() noexcept {
  const CpuFeatures& has = features();
  if (has.neon_i8mm) return &neon_i8mm::kIntegerKernels<Codec>;
  return has.neon_dot ? &neon_dot::kIntegerKernels<Codec> : &neon_smlal::kIntegerKernels<Codec>;
}

}  // namespace gqa::detail::inline GQA_ABI::neon

GQA_END_PLAIN_REGION()

#endif  // GQA_DETAIL_NEON
