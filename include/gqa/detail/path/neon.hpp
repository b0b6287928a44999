// SPDX-License-Identifier: Apache-2.0
/// @file
/// The NEON path: the logical vector is four registers of 4 floats. Every AArch64 processor has what it needs.
#pragma once

#include "gqa/detail/path/region.hpp"

#if GQA_DETAIL_NEON

#include <arm_neon.h>

GQA_BEGIN_PORTABLE_REGION()

namespace gqa::detail::inline GQA_ABI::neon {

struct Vec {
  float32x4_t part[4];  // lanes 0 … 3, 4 … 7, 8 … 11, 12 … 15
};

inline constexpr int kQkSums = 16;      // accumulators of a score tile, each one register of a vector's four at a time
inline constexpr int kQkRows = 4;       // the most rows of a score tile
inline constexpr int kStripParts = 4;   // parts of a vector that a strip adds up one after the other
inline constexpr int kHeldQueries = 0;  // queries are not held
inline constexpr int kRowTokens = 4;  // tokens at a time where lanes are rows: 16 registers, 4 for queries, 1 for a key
inline constexpr int kRowPanels = 1;  // panels of 16 rows that take them in turn
inline constexpr bool kRowsSideBySide = false;
inline constexpr int kPvSums = 4;     // accumulators of an output tile: 16 registers
inline constexpr int kPvRows = 4;     // the most rows of an output tile
inline constexpr int kPvWeights = 4;  // weights that are loaded at once: a register
template <class Codec>
inline constexpr StreamRows kStreamRows = {8, 1};

GQA_OP Vec set1(float value) {
  const float32x4_t all = vdupq_n_f32(value);
  return {{all, all, all, all}};
}
// Four floats as they lie; every lane one of them, of which compilers make multiply-adds by element.
GQA_OP float32x4_t load_lanes(const float* p) { return vld1q_f32(p); }
GQA_OP Vec set1_lane(float32x4_t lanes, int i) { return set1(lanes[i]); }
// No compiler loads from p before a is known. No instruction.
GQA_OP void values_after(const std::byte*& p, Vec& a) { asm("" : "+r"(p), "+w"(a.part[0])); }
GQA_OP Vec zero() { return set1(0.0f); }
GQA_OP Vec load(const float* p) { return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}}; }
GQA_OP void store(float* p, const Vec& a) {
  GQA_UNROLL
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.part[i]);
}
// Sums wait in memory while others take their registers. Left to themselves, compilers move some of either in every iteration.
template <int N>
struct ParkedSums {
  alignas(16) float sums[N][kLanes];
  GQA_OP explicit ParkedSums(const Vec (&a)[N]) {
    GQA_UNROLL
    for (int i = 0; i < N; ++i) store(sums[i], a[i]);
  }
  GQA_OP void back(Vec (&a)[N]) const {
    asm volatile("" : : "r"(sums) : "memory");  // for all that a compiler knows, they have changed
    GQA_UNROLL
    for (int i = 0; i < N; ++i) a[i] = load(sums[i]);
  }
};
// Operations part by part.
#define GQA_NEON_PARTS(expression) \
  Vec r;                           \
  GQA_UNROLL                       \
  for (int i = 0; i < 4; ++i) {    \
    r.part[i] = expression;        \
  }                                \
  return r
GQA_OP Vec add(const Vec& a, const Vec& b) { GQA_NEON_PARTS(a.part[i] + b.part[i]); }
GQA_OP Vec sub(const Vec& a, const Vec& b) { GQA_NEON_PARTS(a.part[i] - b.part[i]); }
GQA_OP Vec mul(const Vec& a, const Vec& b) { GQA_NEON_PARTS(a.part[i] * b.part[i]); }
GQA_OP Vec div(const Vec& a, const Vec& b) { GQA_NEON_PARTS(a.part[i] / b.part[i]); }
// A product that is rounded before it is added to something, see region.hpp.
GQA_OP Vec unfused(Vec product) {
#if defined(__clang__)
  asm("" : "+w"(product.part[0]), "+w"(product.part[1]), "+w"(product.part[2]), "+w"(product.part[3]));
#endif
  return product;
}
// a·b + c, rounded once.
GQA_OP float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
GQA_OP Vec fma(const Vec& a, const Vec& b, const Vec& c) { GQA_NEON_PARTS(vfmaq_f32(c.part[i], a.part[i], b.part[i])); }
GQA_OP uint32x4_t float_bits(float32x4_t a) { return vreinterpretq_u32_f32(a); }
GQA_OP float32x4_t of_bits(uint32x4_t a) { return vreinterpretq_f32_u32(a); }
// b where a is NaN.
GQA_OP float32x4_t larger(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
GQA_OP Vec larger(const Vec& a, const Vec& b) { GQA_NEON_PARTS(larger(a.part[i], b.part[i])); }
// The floats whose bits are those of a shifted by N.
template <int N>
GQA_OP Vec shift_left(const Vec& a) {
  GQA_NEON_PARTS(of_bits(vshlq_n_u32(float_bits(a.part[i]), N)));
}
template <int N>
GQA_OP Vec shift_right(const Vec& a) {
  GQA_NEON_PARTS(of_bits(vshrq_n_u32(float_bits(a.part[i]), N)));
}
// Lanes of ones where it holds, else of zeros; it does not where a lane is NaN.
GQA_OP Vec less(const Vec& a, const Vec& b) { GQA_NEON_PARTS(of_bits(vcltq_f32(a.part[i], b.part[i]))); }
GQA_OP Vec less_equal(const Vec& a, const Vec& b) { GQA_NEON_PARTS(of_bits(vcleq_f32(a.part[i], b.part[i]))); }
GQA_OP Vec bit_and(const Vec& a, const Vec& b) {
  GQA_NEON_PARTS(of_bits(vandq_u32(float_bits(a.part[i]), float_bits(b.part[i]))));
}
GQA_OP Vec bit_or(const Vec& a, const Vec& b) {
  GQA_NEON_PARTS(of_bits(vorrq_u32(float_bits(a.part[i]), float_bits(b.part[i]))));
}
GQA_OP Vec bit_xor(const Vec& a, const Vec& b) {
  GQA_NEON_PARTS(of_bits(veorq_u32(float_bits(a.part[i]), float_bits(b.part[i]))));
}
// value, but 0 where x < floor. NaN in x keeps value.
GQA_OP Vec zero_below(const Vec& x, const Vec& floor, const Vec& value) {
  GQA_NEON_PARTS(of_bits(vbicq_u32(float_bits(value.part[i]), vcltq_f32(x.part[i], floor.part[i]))));
}
// a where the lane's highest bit is set, else b.
GQA_OP Vec select_negative(const Vec& bits, const Vec& a, const Vec& b) {
  GQA_NEON_PARTS(vbslq_f32(vcltzq_s32(vreinterpretq_s32_f32(bits.part[i])), a.part[i], b.part[i]));
}
// a where the lane's bit is set, else b.
GQA_OP Vec select(std::uint64_t bits, const Vec& a, const Vec& b) {
  const std::uint32_t weights[4] = {1, 2, 4, 8};
  const uint32x4_t weight = vld1q_u32(weights);
  GQA_NEON_PARTS(
      vbslq_f32(vtstq_u32(vdupq_n_u32(static_cast<std::uint32_t>(bits >> (4 * i))), weight), a.part[i], b.part[i]));
}
// The lanes' highest bits.
GQA_OP std::uint32_t sign_bits(const Vec& a) {
  const std::int32_t places[4] = {0, 1, 2, 3};
  const int32x4_t place = vld1q_s32(places);
  std::uint32_t bits = 0;
  GQA_UNROLL
  for (int i = 0; i < 4; ++i) bits |= vaddvq_u32(vshlq_u32(vshrq_n_u32(float_bits(a.part[i]), 31), place)) << (4 * i);
  return bits;
}
GQA_OP float reduce_max(const Vec& a) {
  alignas(16) float lanes[4];
  vst1q_f32(lanes, larger(larger(a.part[0], a.part[2]), larger(a.part[1], a.part[3])));
  const float even = lanes[0] > lanes[2] ? lanes[0] : lanes[2];
  const float odd = lanes[1] > lanes[3] ? lanes[1] : lanes[3];
  return even > odd ? even : odd;
}
// The fixed tree: lanes i and i + 8, then i + 4, i + 2, i + 1.
GQA_OP float32x4_t add_quarters(const Vec& a) { return (a.part[0] + a.part[2]) + (a.part[1] + a.part[3]); }
GQA_OP float reduce_add(const Vec& a) {
  const float32x4_t s = add_quarters(a);
  const float32x2_t two = vadd_f32(vget_low_f32(s), vget_high_f32(s));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
// Lanes i and i + 2 of a, then of b.
GQA_OP float32x4_t add_halves(float32x4_t a, float32x4_t b) {
  const float64x2_t x = vreinterpretq_f64_f32(a);
  const float64x2_t y = vreinterpretq_f64_f32(b);
  return vreinterpretq_f32_f64(vzip1q_f64(x, y)) + vreinterpretq_f32_f64(vzip2q_f64(x, y));
}
// The same tree for four vectors at once: sums[i] = reduce_add(acc[i]).
GQA_OP void reduce_four(const Vec* acc, float* sums) {
  float32x4_t s[4];
  GQA_UNROLL
  for (int i = 0; i < 4; ++i) s[i] = add_quarters(acc[i]);
  const float32x4_t first = add_halves(s[0], s[1]);
  const float32x4_t second = add_halves(s[2], s[3]);
  vst1q_f32(sums, vpaddq_f32(first, second));
}
template <int N>
GQA_OP void reduce_sums(const Vec (&acc)[N], float* sums) {
  GQA_UNROLL
  for (int i = 0; i < N; i += 4) reduce_four(acc + i, sums + i);
}
// 4 × 4 floats: row i, column j ↔ row j, column i.
GQA_OP void transpose_part(float32x4_t (&r)[4]) {
  const float32x4x2_t a = vtrnq_f32(r[0], r[1]);
  const float32x4x2_t b = vtrnq_f32(r[2], r[3]);
  r[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
  r[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
  r[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
  r[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}
// Vector i, lane j ↔ vector j, lane i.
GQA_OP void transpose(Vec (&r)[kLanes]) {
  Vec turned[kLanes];
  GQA_UNROLL
  for (int i = 0; i < 4; ++i) {
    GQA_UNROLL
    for (int j = 0; j < 4; ++j) {
      float32x4_t part[4] = {r[4 * i].part[j], r[4 * i + 1].part[j], r[4 * i + 2].part[j], r[4 * i + 3].part[j]};
      transpose_part(part);
      GQA_UNROLL
      for (int n = 0; n < 4; ++n) turned[4 * j + n].part[i] = part[n];
    }
  }
  GQA_UNROLL
  for (int i = 0; i < kLanes; ++i) r[i] = turned[i];
}
GQA_OP bool any_nonfinite(const Vec& a) {
  const uint32x4_t exponent = vdupq_n_u32(0x7f800000u);
  uint32x4_t found = vdupq_n_u32(0);
  GQA_UNROLL
  for (int i = 0; i < 4; ++i) found = vorrq_u32(found, vceqq_u32(vandq_u32(float_bits(a.part[i]), exponent), exponent));
  return vmaxvq_u32(found) != 0;
}

// The first `count` floats; zeros behind them, nothing read there.
GQA_OP Vec load_floats_part(const std::byte* p, Index count) {
  alignas(16) std::byte lanes[kLanes * 4] = {};
  for (Index i = 0; i < count; ++i) __builtin_memcpy(lanes + i * 4, p + i * 4, 4);
  return load(typed<const float>(lanes));
}
// 16-bit elements, all or the first `count`, zeros behind them.
struct Words {
  uint16x8_t half[2];
};
GQA_OP Words load_words(const std::byte* p) {
  const auto* const words = typed<const std::uint16_t>(p);
  return {{vld1q_u16(words), vld1q_u16(words + 8)}};
}
GQA_OP Words load_words_part(const std::byte* p, Index count) {
  alignas(16) std::byte lanes[kLanes * 2] = {};
  for (Index i = 0; i < count; ++i) __builtin_memcpy(lanes + i * 2, p + i * 2, 2);
  return load_words(lanes);
}
// The upper bits of four floats, interleaved with zeros: every pipe of a processor interleaves, and half of them or one shift and lengthen.
template <int Half>
GQA_OP float32x4_t widen_bf16(uint16x8_t bits) {
  const uint16x8_t zeros = vdupq_n_u16(0);
  return vreinterpretq_f32_u16(Half == 0 ? vzip1q_u16(zeros, bits) : vzip2q_u16(zeros, bits));
}
GQA_OP float32x4_t widen_f16(uint16x4_t bits) { return vcvt_f32_f16(vreinterpret_f16_u16(bits)); }
GQA_OP Vec widen_bf16(const Words& bits) {
  return {{widen_bf16<0>(bits.half[0]), widen_bf16<1>(bits.half[0]), widen_bf16<0>(bits.half[1]),
           widen_bf16<1>(bits.half[1])}};
}
GQA_OP Vec widen_f16(const Words& bits) {
  GQA_NEON_PARTS(widen_f16(i % 2 == 0 ? vget_low_u16(bits.half[i / 2]) : vget_high_u16(bits.half[i / 2])));
}
// 16 bytes, all or the first `count`; zeros behind them, nothing read there.
GQA_OP uint8x16_t load_bytes(const void* p) { return vld1q_u8(static_cast<const std::uint8_t*>(p)); }
GQA_OP uint8x16_t load_bytes_part(const std::byte* p, Index count) {
  alignas(16) std::byte lanes[kLanes] = {};
  for (Index i = 0; i < count; ++i) lanes[i] = p[i];
  return load_bytes(lanes);
}
GQA_OP void store_bytes(void* p, uint8x16_t a) { vst1q_u8(static_cast<std::uint8_t*>(p), a); }
// The lower or the upper four bits of each.
template <bool Upper>
GQA_OP uint8x16_t nibbles(uint8x16_t a) {
  if constexpr (Upper) return vshrq_n_u8(a, 4);
  else return vandq_u8(a, vdupq_n_u8(15));
}
// table[index], indices below 16.
GQA_OP uint8x16_t look_up(uint8x16_t table, uint8x16_t index) { return vqtbl1q_u8(table, index); }
inline constexpr bool kLooksUpFloats = false;  // by the bits of a lane, among 16
// Lanes of a and b in turn, of the lower or of the upper halves.
template <bool Upper>
GQA_OP int8x16_t zip(int8x16_t a, int8x16_t b) {
  return Upper ? vzip2q_s8(a, b) : vzip1q_s8(a, b);
}
template <bool Upper>
GQA_OP int16x8_t zip(int16x8_t a, int16x8_t b) {
  return Upper ? vzip2q_s16(a, b) : vzip1q_s16(a, b);
}
template <bool Upper>
GQA_OP int32x4_t zip(int32x4_t a, int32x4_t b) {
  return Upper ? vzip2q_s32(a, b) : vzip1q_s32(a, b);
}
template <bool Upper>
GQA_OP int64x2_t zip(int64x2_t a, int64x2_t b) {
  return Upper ? vzip2q_s64(a, b) : vzip1q_s64(a, b);
}
// 2^Bits registers of lanes → in the order of lanes first, then of registers: lane j of register i is number j · 2^Bits + i of all.
template <int Bits, class Lanes>
GQA_OP void interleave(Lanes (&a)[1 << Bits]) {
  constexpr int half = 1 << Bits >> 1;
  GQA_UNROLL
  for (int round = 0; round < Bits; ++round) {
    Lanes b[2 * half];
    GQA_UNROLL
    for (int i = 0; i < half; ++i) {
      b[2 * i] = zip<false>(a[i], a[i + half]);
      b[2 * i + 1] = zip<true>(a[i], a[i + half]);
    }
    GQA_UNROLL
    for (int i = 0; i < 2 * half; ++i) a[i] = b[i];
  }
}
// Signed bytes as floats.
GQA_OP Vec widen_i8(uint8x16_t a) {
  const int8x16_t bytes = vreinterpretq_s8_u8(a);
  const int16x8_t half[2] = {vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes))};
  GQA_NEON_PARTS(vcvtq_f32_s32(vmovl_s16(i % 2 == 0 ? vget_low_s16(half[i / 2]) : vget_high_s16(half[i / 2]))));
}
// The lanes' lowest bits.
GQA_OP Vec byte_bits(uint8x16_t a) {
  const uint16x8_t half[2] = {vmovl_u8(vget_low_u8(a)), vmovl_u8(vget_high_u8(a))};
  GQA_NEON_PARTS(of_bits(vmovl_u16(i % 2 == 0 ? vget_low_u16(half[i / 2]) : vget_high_u16(half[i / 2]))));
}
// Every lane the f16 at p.
GQA_OP Vec set1_f16(const std::byte* p) {
  std::uint16_t bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  const float32x4_t all = widen_f16(vdup_n_u16(bits));
  return {{all, all, all, all}};
}
#include "gqa/codec/loads.inl"

// Elements d … d + 3 of a row, d a multiple of 4. Of codecs that have nothing shorter, 16 are loaded and compilers leave the others out.
template <class Codec>
GQA_OP float32x4_t load_quarter(Codec, RowOf<Codec> row, Index d) {
  return load(Codec{}, row, d & ~Index{15}).part[d / 4 % 4];
}
GQA_OP float32x4_t load_quarter(F32, const std::byte* row, Index d) {
  return vld1q_f32(typed<const float>(row + d * 4));
}
GQA_OP float32x4_t load_quarter(Bf16, const std::byte* row, Index d) {
  return widen_bf16<0>(vcombine_u16(vld1_u16(typed<const std::uint16_t>(row + d * 2)), vdup_n_u16(0)));
}
GQA_OP float32x4_t load_quarter(F16, const std::byte* row, Index d) {
  return widen_f16(vld1_u16(typed<const std::uint16_t>(row + d * 2)));
}
// The first `count` of them, no more than 4; zeros behind them, nothing read there. None, if that is less than one.
template <class Codec>
GQA_OP float32x4_t load_quarter_part(Codec, RowOf<Codec> row, Index d, Index count) {
  if constexpr (KvType(Codec::type).is_element()) return load_part(Codec{}, row, d, count).part[0];
  else return load_part(Codec{}, row, d & ~Index{15}, (d & 15) + (count < 0 ? 0 : count)).part[d / 4 % 4];
}
// A Dot of 4 of its 16 lanes: with one register instead of four to an accumulator, four rows share a key.
template <class Codec>
struct QuarterDot {
  using Operand = float32x4_t;
  using Sum = float32x4_t;
  static GQA_OP float32x4_t none() { return vdupq_n_f32(0.0f); }
  static GQA_OP float32x4_t query(const std::byte* p) { return vld1q_f32(typed<const float>(p)); }
  static GQA_OP float32x4_t key(const std::byte* row, Index d) { return load_quarter(Codec{}, row, d); }
  static GQA_OP float32x4_t key_part(const std::byte* row, Index d, Index count) {
    return load_quarter_part(Codec{}, row, d, count < 4 ? count : 4);
  }
  static GQA_OP float32x4_t add(float32x4_t q, float32x4_t k, float32x4_t acc) { return vfmaq_f32(acc, q, k); }
  static GQA_OP void keep(float* lanes, float32x4_t sum) { vst1q_f32(lanes, sum); }
};
template <class Codec, class Whole>
using StripDot = QuarterDot<Codec>;

// Round to nearest, ties to even; NaN stays NaN.
GQA_OP uint16x4_t narrow_bf16(float32x4_t a) {
  const uint32x4_t bits = float_bits(a);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  const uint32x4_t nan = vcgtq_u32(vandq_u32(bits, vdupq_n_u32(0x7fffffff)), vdupq_n_u32(0x7f800000));
  return vshrn_n_u32(vbslq_u32(nan, quiet, rounded), 16);
}
template <class Codec>
GQA_OP void store_as(std::byte* p, const Vec& a) {
  GQA_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (Codec::type == ElementType::f32) vst1q_f32(typed<float>(p) + 4 * i, a.part[i]);
    else if constexpr (Codec::type == ElementType::bf16)
      vst1_u16(typed<std::uint16_t>(p) + 4 * i, narrow_bf16(a.part[i]));
    else vst1_u16(typed<std::uint16_t>(p) + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.part[i])));
  }
}
#undef GQA_NEON_PARTS
#include "gqa/detail/path/one_piece.inl"
#include "gqa/detail/path/prefetch.inl"

#define GQA_LONG_OP GQA_OP
#define GQA_STRIP_LOOP GQA_DETAIL_PRAGMA(GCC unroll 2)
#define GQA_PARKS_SUMS
#define GQA_KERNEL_PATH Path::neon
#define GQA_KERNELS_NAME "gqa_kernels_neon"
#include "gqa/detail/path/kernel.inl"
#undef GQA_KERNEL_PATH
#undef GQA_KERNELS_NAME
#undef GQA_LONG_OP
#undef GQA_STRIP_LOOP
#undef GQA_PARKS_SUMS

}  // namespace gqa::detail::inline GQA_ABI::neon

GQA_END_PLAIN_REGION()

#endif  // GQA_DETAIL_NEON
