// SPDX-License-Identifier: Apache-2.0
/// @file
/// The WebAssembly path: the logical vector is four registers of 4 floats. A module has it or not, as it was compiled (-msimd128): it cannot ask.
#pragma once

#include "gqa/detail/path/portable.hpp"

#if GQA_DETAIL_WASM

#include <wasm_simd128.h>

GQA_BEGIN_PORTABLE_REGION()

namespace gqa::detail::inline GQA_ABI::wasm {

using Floats = float __attribute__((vector_size(16)));
using Doubles = double __attribute__((vector_size(16)));
struct Vec {
  Floats part[4];  // lanes 0 … 3, 4 … 7, 8 … 11, 12 … 15
};

inline constexpr int kQkSums = 8;  // accumulators of a score tile: rows × tokens
inline constexpr int kQkRows = 4;  // the most rows of a score tile
inline constexpr int kStripParts = 1;
template <class Codec, class Whole>
using StripDot = Whole;
inline constexpr int kHeldQueries = 0;  // queries are not held
inline constexpr int kRowTokens =
    0;  // no lanes that are rows: that is no faster where a multiply-add is arithmetic in double
inline constexpr int kRowPanels = 1;
inline constexpr bool kRowsSideBySide = false;
inline constexpr int kPvSums = 4;     // accumulators of an output tile: rows × vectors
inline constexpr int kPvRows = 4;     // the most rows of an output tile
inline constexpr int kPvWeights = 1;  // weights that are loaded at once
template <class Codec>
inline constexpr StreamRows kStreamRows = {1, 1};

// The compiler's vectors, whose operators a region's rules reach, and those of wasm_simd128.h.
template <class To = Floats>
GQA_OP To of(v128_t a) {
  return __builtin_bit_cast(To, a);
}
template <class From>
GQA_OP v128_t v128(From a) {
  return __builtin_bit_cast(v128_t, a);
}
// All four, as they are. Clang 14 makes one conversion of two where both results are put together, and has no instruction for it then; and it
// never ends where of a product with a constant one lane alone is used.
GQA_OP Floats whole(Floats a) {
  asm("" : "+r"(a));
  return a;
}

GQA_OP Vec set1(float value) {
  const Floats all = {value, value, value, value};
  return {{all, all, all, all}};
}
GQA_OP Vec zero() { return set1(0.0f); }
// Operations part by part.
#define GQA_WASM_PARTS(expression) \
  Vec r;                           \
  GQA_UNROLL                       \
  for (int i = 0; i < 4; ++i) {    \
    r.part[i] = expression;        \
  }                                \
  return r
GQA_OP Vec load(const float* p) { GQA_WASM_PARTS(of(wasm_v128_load(p + 4 * i))); }
GQA_OP void store(float* p, const Vec& a) {
  GQA_UNROLL
  for (int i = 0; i < 4; ++i) wasm_v128_store(p + 4 * i, v128(a.part[i]));
}
GQA_OP Vec add(const Vec& a, const Vec& b) { GQA_WASM_PARTS(a.part[i] + b.part[i]); }
GQA_OP Vec sub(const Vec& a, const Vec& b) { GQA_WASM_PARTS(a.part[i] - b.part[i]); }
GQA_OP Vec mul(const Vec& a, const Vec& b) { GQA_WASM_PARTS(a.part[i] * b.part[i]); }
GQA_OP Vec div(const Vec& a, const Vec& b) { GQA_WASM_PARTS(a.part[i] / b.part[i]); }
GQA_OP Vec unfused(const Vec& product) { return product; }  // nothing is fused here

// a·b + c, rounded once.
GQA_OP Floats four(const Vec& a, int lane) { return a.part[lane / 4]; }
GQA_OP void put_four(Vec& a, int lane, Floats of) { a.part[lane / 4] = of; }
GQA_OP Doubles lower_doubles(Floats a) { return of<Doubles>(wasm_f64x2_promote_low_f32x4(v128(a))); }
GQA_OP Doubles upper_doubles(Floats a) { return lower_doubles(__builtin_shufflevector(a, a, 2, 3, 2, 3)); }
GQA_OP Floats as_floats(Doubles lower, Doubles upper) {
  const Floats first = whole(of(wasm_f32x4_demote_f64x2_zero(v128(lower))));
  const Floats last = whole(of(wasm_f32x4_demote_f64x2_zero(v128(upper))));
  return __builtin_shufflevector(first, last, 0, 1, 4, 5);
}
GQA_OP v128_t lower_halves(Doubles lower, Doubles upper) {
  return wasm_i32x4_shuffle(v128(lower), v128(upper), 0, 2, 4, 6);
}
GQA_OP v128_t smaller_words(v128_t a, v128_t b) { return wasm_i16x8_min(a, b); }
GQA_OP bool any_upper_word(v128_t a) { return (wasm_i16x8_bitmask(a) & 0xaa) != 0; }
#include "gqa/detail/path/fma_in_double.inl"
GQA_OP float fma(float a, float b, float c) { return portable::fma(a, b, c); }
GQA_OP Vec fma(const Vec& a, const Vec& b, const Vec& c) { return fma_in_double(a, b, c); }

GQA_OP Ints float_bits(Floats a) { return __builtin_bit_cast(Ints, a); }
GQA_OP Floats of_bits(Ints a) { return __builtin_bit_cast(Floats, a); }
// b where a is NaN.
GQA_OP Floats larger(Floats a, Floats b) { return of(wasm_v128_bitselect(v128(a), v128(b), v128(a > b))); }
GQA_OP Vec larger(const Vec& a, const Vec& b) { GQA_WASM_PARTS(larger(a.part[i], b.part[i])); }
// The floats whose bits are those of a shifted by N.
template <int N>
GQA_OP Vec shift_left(const Vec& a) {
  GQA_WASM_PARTS(of(wasm_i32x4_shl(v128(a.part[i]), N)));
}
template <int N>
GQA_OP Vec shift_right(const Vec& a) {
  GQA_WASM_PARTS(of(wasm_u32x4_shr(v128(a.part[i]), N)));
}
// Lanes of ones where it holds, else of zeros; it does not where a lane is NaN.
GQA_OP Vec less(const Vec& a, const Vec& b) { GQA_WASM_PARTS(of_bits(a.part[i] < b.part[i])); }
GQA_OP Vec less_equal(const Vec& a, const Vec& b) { GQA_WASM_PARTS(of_bits(a.part[i] <= b.part[i])); }
GQA_OP Vec bit_and(const Vec& a, const Vec& b) {
  GQA_WASM_PARTS(of_bits(float_bits(a.part[i]) & float_bits(b.part[i])));
}
GQA_OP Vec bit_or(const Vec& a, const Vec& b) {
  GQA_WASM_PARTS(of_bits(float_bits(a.part[i]) | float_bits(b.part[i])));
}
GQA_OP Vec bit_xor(const Vec& a, const Vec& b) {
  GQA_WASM_PARTS(of_bits(float_bits(a.part[i]) ^ float_bits(b.part[i])));
}
// value, but 0 where x < floor. NaN in x keeps value.
GQA_OP Vec zero_below(const Vec& x, const Vec& floor, const Vec& value) {
  GQA_WASM_PARTS(of_bits(float_bits(value.part[i]) & ~(x.part[i] < floor.part[i])));
}
// a where the lane's highest bit is set, else b.
GQA_OP Vec select_negative(const Vec& bits, const Vec& a, const Vec& b) {
  GQA_WASM_PARTS(of(wasm_v128_bitselect(v128(a.part[i]), v128(b.part[i]), v128(float_bits(bits.part[i]) < Ints{}))));
}
// a where the lane's bit is set, else b.
GQA_OP Vec select(std::uint64_t bits, const Vec& a, const Vec& b) {
  const Ints weight = {1, 2, 4, 8};
  GQA_WASM_PARTS(of(wasm_v128_bitselect(
      v128(a.part[i]), v128(b.part[i]),
      v128((of<Ints>(wasm_i32x4_splat(static_cast<int>((bits >> (4 * i)) & 15u))) & weight) != Ints{}))));
}
// The lanes' highest bits.
GQA_OP std::uint32_t sign_bits(const Vec& a) {
  std::uint32_t bits = 0;
  GQA_UNROLL
  for (int i = 0; i < 4; ++i) bits |= static_cast<std::uint32_t>(wasm_i32x4_bitmask(v128(a.part[i]))) << (4 * i);
  return bits;
}
GQA_OP float reduce_max(const Vec& a) {
  const Floats s = larger(larger(a.part[0], a.part[2]), larger(a.part[1], a.part[3]));
  const Floats two = larger(s, __builtin_shufflevector(s, s, 2, 3, 2, 3));
  return two[0] > two[1] ? two[0] : two[1];
}
// The fixed tree: lanes i and i + 8, then i + 4, i + 2, i + 1.
GQA_OP Floats add_quarters(const Vec& a) { return (a.part[0] + a.part[2]) + (a.part[1] + a.part[3]); }
GQA_OP float reduce_add(const Vec& a) {
  const Floats s = add_quarters(a);
  const Floats two = s + __builtin_shufflevector(s, s, 2, 3, 2, 3);
  return two[0] + two[1];
}
template <int N>
GQA_OP void reduce_sums(const Vec (&acc)[N], float* sums) {
  for (int i = 0; i < N; ++i) sums[i] = reduce_add(acc[i]);
}
// 4 × 4 floats: row i, column j ↔ row j, column i.
GQA_OP void transpose_part(Floats (&r)[4]) {
  const Floats a = __builtin_shufflevector(r[0], r[1], 0, 4, 2, 6), b = __builtin_shufflevector(r[0], r[1], 1, 5, 3, 7);
  const Floats c = __builtin_shufflevector(r[2], r[3], 0, 4, 2, 6), d = __builtin_shufflevector(r[2], r[3], 1, 5, 3, 7);
  r[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  r[2] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  r[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}
// Vector i, lane j ↔ vector j, lane i.
GQA_OP void transpose(Vec (&r)[kLanes]) {
  Vec turned[kLanes];
  GQA_UNROLL
  for (int i = 0; i < 4; ++i) {
    GQA_UNROLL
    for (int j = 0; j < 4; ++j) {
      Floats part[4] = {r[4 * i].part[j], r[4 * i + 1].part[j], r[4 * i + 2].part[j], r[4 * i + 3].part[j]};
      transpose_part(part);
      GQA_UNROLL
      for (int n = 0; n < 4; ++n) turned[4 * j + n].part[i] = part[n];
    }
  }
  GQA_UNROLL
  for (int i = 0; i < kLanes; ++i) r[i] = turned[i];
}
GQA_OP bool any_nonfinite(const Vec& a) {
  Ints found{};
  GQA_UNROLL
  for (int i = 0; i < 4; ++i) found |= (float_bits(a.part[i]) & 0x7f800000) == Ints{} + 0x7f800000;
  return wasm_v128_any_true(v128(found));
}

// The first `count` floats; zeros behind them, nothing read there.
GQA_OP Vec load_floats_part(const std::byte* p, Index count) {
  alignas(16) std::byte lanes[kLanes * 4] = {};
  for (Index i = 0; i < count; ++i) __builtin_memcpy(lanes + i * 4, p + i * 4, 4);
  return load(typed<const float>(lanes));
}
// 16-bit elements, all or the first `count`, zeros behind them.
struct Words {
  v128_t half[2];
};
GQA_OP Words load_words(const std::byte* p) { return {{wasm_v128_load(p), wasm_v128_load(p + 16)}}; }
GQA_OP Words load_words_part(const std::byte* p, Index count) {
  alignas(16) std::byte lanes[kLanes * 2] = {};
  for (Index i = 0; i < count; ++i) __builtin_memcpy(lanes + i * 2, p + i * 2, 2);
  return load_words(lanes);
}
// Words 4 · i … 4 · i + 3 in the upper halves of lanes.
GQA_OP v128_t upper_halves(const Words& words, int i) {
  const v128_t half = words.half[i / 2];
  return wasm_i32x4_shl(i % 2 == 0 ? wasm_u32x4_extend_low_u16x8(half) : wasm_u32x4_extend_high_u16x8(half), 16);
}
#include "gqa/detail/path/f16_in_integers.inl"
GQA_OP Vec widen_bf16(const Words& bits) { GQA_WASM_PARTS(of(upper_halves(bits, i))); }
GQA_OP Vec widen_f16(const Words& bits) {
  GQA_WASM_PARTS(whole(floats_of_upper_halves(of<Ints>(upper_halves(bits, i)))));
}
// 16 bytes, all or the first `count`; zeros behind them, nothing read there.
GQA_OP v128_t load_bytes(const void* p) { return wasm_v128_load(p); }
GQA_OP v128_t load_bytes_part(const std::byte* p, Index count) {
  alignas(16) std::byte lanes[kLanes] = {};
  for (Index i = 0; i < count; ++i) lanes[i] = p[i];
  return load_bytes(lanes);
}
// The lower or the upper four bits of each.
template <bool Upper>
GQA_OP v128_t nibbles(v128_t a) {
  if constexpr (Upper) return wasm_u8x16_shr(a, 4);
  else return wasm_v128_and(a, wasm_i8x16_splat(15));
}
// table[index], indices below 16.
GQA_OP v128_t look_up(v128_t table, v128_t index) { return wasm_i8x16_swizzle(table, index); }
inline constexpr bool kLooksUpFloats = false;  // by the bits of a lane, among 16
// Signed bytes as floats.
GQA_OP Vec widen_i8(v128_t a) {
  const v128_t half[2] = {wasm_i16x8_extend_low_i8x16(a), wasm_i16x8_extend_high_i8x16(a)};
  GQA_WASM_PARTS(of(wasm_f32x4_convert_i32x4(i % 2 == 0 ? wasm_i32x4_extend_low_i16x8(half[i / 2])
                                                        : wasm_i32x4_extend_high_i16x8(half[i / 2]))));
}
// The lanes' lowest bits.
GQA_OP Vec byte_bits(v128_t a) {
  const v128_t half[2] = {wasm_u16x8_extend_low_u8x16(a), wasm_u16x8_extend_high_u8x16(a)};
  GQA_WASM_PARTS(of(i % 2 == 0 ? wasm_u32x4_extend_low_u16x8(half[i / 2]) : wasm_u32x4_extend_high_u16x8(half[i / 2])));
}
// Every lane the f16 at p.
GQA_OP Vec set1_f16(const std::byte* p) {
  std::uint16_t bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return set1(float_from_f16(bits));
}
#include "gqa/codec/loads.inl"
template <class Codec>
GQA_OP void store_as(std::byte* p, const Vec& a) {
  if constexpr (Codec::type == ElementType::f32) {
    store(typed<float>(p), a);
  } else {  // outputs only: lane by lane
    for (int i = 0; i < kLanes; ++i) {
      const float lane = a.part[i / 4][i % 4];
      const std::uint16_t bits = Codec::type == ElementType::bf16 ? bf16_from_float(lane) : f16_from_float(lane);
      __builtin_memcpy(p + i * 2, &bits, 2);
    }
  }
}
#undef GQA_WASM_PARTS
#include "gqa/detail/path/one_piece.inl"
#include "gqa/detail/path/prefetch.inl"

#define GQA_LONG_OP GQA_KERNEL
#define GQA_STRIP_LOOP
#define GQA_KERNEL_PATH Path::wasm
#define GQA_KERNELS_NAME "gqa_kernels_wasm"
#include "gqa/detail/path/kernel.inl"
#undef GQA_KERNEL_PATH
#undef GQA_KERNELS_NAME
#undef GQA_LONG_OP
#undef GQA_STRIP_LOOP
#include "gqa/detail/path/ints_plain.inl"

}  // namespace gqa::detail::inline GQA_ABI::wasm

GQA_END_PLAIN_REGION()

#endif  // GQA_DETAIL_WASM
