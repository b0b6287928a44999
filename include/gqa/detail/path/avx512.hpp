// SPDX-License-Identifier: Apache-2.0
/// @file
/// The AVX-512 path: the logical vector is one register. Needs AVX-512 F, BW, DQ and VL.
#pragma once

#include "gqa/detail/path/region.hpp"

#if GQA_DETAIL_X86

GQA_BEGIN_REGION("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", "tune=icelake-server")

namespace gqa::detail::inline GQA_ABI::avx512 {

using Vec = __m512;
inline constexpr Index kLanes2 = 2 * kLanes;  // 16-bit elements of a register
inline constexpr int kNaN = 0x81;             // for fpclass: quiet and signalling
inline constexpr int kNonfinite = 0x99;       // and ±infinity

inline constexpr int kQkSums = 16;  // accumulators of a score tile: rows × tokens
inline constexpr int kQkRows = 4;   // the most rows of a score tile
inline constexpr int kStripParts = 1;
template <class Codec, class Whole>
using StripDot = Whole;
inline constexpr int kHeldQueries =
    32;  // vectors of queries at hand: in registers, the last of them in the first-level cache
inline constexpr int kRowTokens = 4;  // tokens at a time where lanes are rows
inline constexpr int kRowPanels = 2;  // panels of 16 rows that take them in turn
inline constexpr int kPieces = 2;  // lanes of a row there, so that two vectors of queries share what is read of a key
inline constexpr bool kRowsSideBySide = true;  // registers for twice as many accumulators
inline constexpr int kPvSums = 16;             // accumulators of an output tile: rows × vectors
inline constexpr int kPvRows = 4;              // the most rows of an output tile
inline constexpr int kPvWeights = 1;           // weights that are loaded at once
template <class Codec>
inline constexpr StreamRows kStreamRows = {8, kPlainRows<Codec> ? 4 : 2};

GQA_OP Vec set1(float value) { return _mm512_set1_ps(value); }
GQA_OP Vec zero() { return _mm512_setzero_ps(); }
GQA_OP Vec load(const float* p) { return _mm512_loadu_ps(p); }
GQA_OP void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
GQA_OP Vec add(Vec a, Vec b) { return a + b; }
GQA_OP Vec sub(Vec a, Vec b) { return a - b; }
GQA_OP Vec mul(Vec a, Vec b) { return a * b; }
GQA_OP Vec div(Vec a, Vec b) { return a / b; }
// a·b + c, rounded once.
GQA_OP float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
GQA_OP Vec fma(Vec a, Vec b, Vec c) { return GQA_FMA_PS512(a, b, c); }
// A product that is rounded before it is added to something, see region.hpp.
GQA_OP Vec unfused(Vec product) {
#if defined(__clang__)
  asm("" : "+v"(product));
#endif
  return product;
}
// b where a is NaN.
GQA_OP Vec larger(Vec a, Vec b) { return GQA_MAX_PS512(a, b); }
// The floats whose bits are those of a shifted left by N.
template <int N>
GQA_OP Vec shift_left(Vec a) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), N));
}
// value, but 0 where x < floor. NaN in x keeps value.
GQA_OP Vec zero_below(Vec x, Vec floor, Vec value) { return GQA_ZERO_BELOW_PS512(x, floor, value); }
// a where the lane's highest bit is set, else b.
GQA_OP Vec select_negative(Vec bits, Vec a, Vec b) {
  return _mm512_mask_mov_ps(b, _mm512_movepi32_mask(_mm512_castps_si512(bits)), a);
}
// Lanes of ones where it holds, else of zeros; it does not where a lane is NaN.
GQA_OP Vec less(Vec a, Vec b) { return _mm512_castsi512_ps(reinterpret_cast<__m512i>(a < b)); }
GQA_OP Vec less_equal(Vec a, Vec b) { return _mm512_castsi512_ps(reinterpret_cast<__m512i>(a <= b)); }
GQA_OP Vec bit_and(Vec a, Vec b) { return _mm512_and_ps(a, b); }
GQA_OP Vec bit_or(Vec a, Vec b) { return _mm512_or_ps(a, b); }
GQA_OP Vec bit_xor(Vec a, Vec b) { return _mm512_xor_ps(a, b); }
template <int N>
GQA_OP Vec shift_right(Vec a) {
  return _mm512_castsi512_ps(_mm512_srli_epi32(_mm512_castps_si512(a), N));
}
// The lanes' highest bits.
GQA_OP std::uint32_t sign_bits(Vec a) { return _mm512_movepi32_mask(_mm512_castps_si512(a)); }
// a where the lane's bit is set, else b.
GQA_OP Vec select(std::uint64_t bits, Vec a, Vec b) { return _mm512_mask_mov_ps(b, static_cast<__mmask16>(bits), a); }
GQA_OP __m256 lower_half(Vec a) { return _mm512_castps512_ps256(a); }
GQA_OP __m256 upper_half(Vec a) { return _mm512_extractf32x8_ps(a, 1); }
GQA_OP float reduce_max(Vec a) {
  const __m256 m = GQA_MAX_PS256(lower_half(a), upper_half(a));
  __m128 x = GQA_MAX_PS128(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  x = GQA_MAX_PS128(x, _mm_movehl_ps(x, x));
  x = GQA_MAX_SS(x, _mm_shuffle_ps(x, x, 1));
  return _mm_cvtss_f32(x);
}
// The fixed tree: lanes i and i + 8, then i + 4, i + 2, i + 1.
GQA_OP float reduce_add(Vec a) {
  const __m256 s = lower_half(a) + upper_half(a);
  __m128 x = _mm256_castps256_ps128(s) + _mm256_extractf128_ps(s, 1);
  x = x + _mm_movehl_ps(x, x);
  return _mm_cvtss_f32(x) + _mm_cvtss_f32(_mm_shuffle_ps(x, x, 1));
}
// The same tree for sixteen vectors at once: sums[i] = reduce_add(acc[i]). Each step adds halves of two vectors and leaves their
// sums side by side; the pairs are chosen so that vector i ends in lane i.
GQA_OP Vec reduce_pair(Vec a, Vec b) {  // lanes + 8: [a | b]; of vectors i and i + 8
  return add(_mm512_mask_blend_ps(0xff00, a, b), _mm512_shuffle_f32x4(a, b, 0x4e));
}
GQA_OP Vec reduce_halves(Vec a, Vec b) {  // lanes + 4: [a | b] in each half
  const __m512i swap = _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
  return add(_mm512_mask_blend_ps(0xf0f0, a, b), _mm512_permutex2var_ps(a, swap, b));
}
GQA_OP Vec reduce_quarters(const Vec (&a)[4]) {
  Vec b[2];
  GQA_UNROLL
  for (int i = 0; i < 2; ++i)  // lanes + 2: [a 2i | a 2i + 1] in each quarter
    b[i] = add(_mm512_mask_blend_ps(0xcccc, a[2 * i], a[2 * i + 1]), _mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0x4e));
  return add(_mm512_shuffle_ps(b[0], b[1], 0x88), _mm512_shuffle_ps(b[0], b[1], 0xdd));
}
// What reduce_pair has left of sixteen, eight or four vectors → their sums in the first lanes.
template <int N>
GQA_OP Vec reduce_pairs(const Vec (&a)[N]) {
  Vec b[4];
  GQA_UNROLL
  for (int i = 0; i < 4; ++i) b[i] = reduce_halves(a[i % N], a[(i + 4) % N]);
  Vec d = reduce_quarters(b);
  if constexpr (N == 4) d = _mm512_shuffle_f32x4(d, d, 0x08);  // each quarter is there twice
  if constexpr (N == 2) d = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 1, 8, 9, 0, 1, 8, 9, 0, 1, 8, 9, 0, 1, 8, 9), d);
  return d;
}
template <int Quarter>
GQA_OP void store_quarter(float* p, Vec a) {
  if constexpr (Quarter == 0) _mm_storeu_ps(p, _mm512_castps512_ps128(a));
  else _mm_storeu_ps(p, _mm512_extractf32x4_ps(a, Quarter));
}
// Lanes [0, N), and [N, 2N).
template <int N>
GQA_OP void store_first(float* p, Vec a) {
  if constexpr (N == 8) _mm256_storeu_ps(p, lower_half(a));
  else store_quarter<0>(p, a);
}
template <int N>
GQA_OP void store_second(float* p, Vec a) {
  if constexpr (N == 8) _mm256_storeu_ps(p, upper_half(a));
  else store_quarter<1>(p, a);
}
GQA_OP void reduce_sums(const Vec (&acc)[kQkSums], float* sums) {
  Vec half[kQkSums / 2];
  GQA_UNROLL
  for (int i = 0; i < kQkSums / 2; ++i) half[i] = reduce_pair(acc[i], acc[i + kQkSums / 2]);
  store(sums, reduce_pairs(half));
}
// Vector i, lane j ↔ vector j, lane i.
GQA_OP void transpose(Vec (&r)[kLanes]) {
  Vec a[kLanes];
  GQA_UNROLL
  for (int i = 0; i < kLanes; i += 2) {
    a[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  GQA_UNROLL
  for (int i = 0; i < kLanes; i += 4) {  // r[i + c]: columns c, c + 4, c + 8, c + 12 of rows i … i + 3
    r[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
    r[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
    r[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    r[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  GQA_UNROLL
  for (int i = 0; i < 4; ++i) {  // pairs of such quarters: rows 0 … 7, then 8 … 15
    a[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x44);
    a[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xee);
    a[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x44);
    a[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xee);
  }
  GQA_UNROLL
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_f32x4(a[i], a[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 8], 0xdd);
    r[i + 8] = _mm512_shuffle_f32x4(a[i + 4], a[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_f32x4(a[i + 4], a[i + 12], 0xdd);
  }
}
// kPieces floats again and again.
GQA_OP Vec repeat_pieces(const std::byte* p) {
  double two;
  __builtin_memcpy(&two, p, sizeof two);
  return _mm512_castpd_ps(_mm512_set1_pd(two));
}
// Vectors of 16 rows, one for each piece → kPieces for as many: of rows 0 … 7, both pieces of a row side by side, then of rows 8 … 15.
GQA_OP void order_pieces(Vec (&r)[kLanes]) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  GQA_UNROLL
  for (int i = 0; i < kLanes; i += 2) {
    const Vec first = _mm512_permutex2var_ps(r[i], low, r[i + 1]);
    r[i + 1] = _mm512_permutex2var_ps(r[i], high, r[i + 1]);
    r[i] = first;
  }
}
// Sums of such vectors → of 16 rows: lanes + 1.
GQA_OP Vec join_pieces(const Vec (&a)[kPieces]) {
  const __m512i first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i second = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return add(_mm512_permutex2var_ps(a[0], first, a[1]), _mm512_permutex2var_ps(a[0], second, a[1]));
}
GQA_OP bool any_nonfinite(Vec a) { return _mm512_fpclass_ps_mask(a, kNonfinite) != 0; }

GQA_OP __mmask16 first_lanes(Index count) { return static_cast<__mmask16>((1u << count) - 1u); }
// The first `count` floats; zeros behind them, nothing read there.
GQA_OP Vec load_floats_part(const std::byte* p, Index count) { return _mm512_maskz_loadu_ps(first_lanes(count), p); }
// 16-bit elements, all or the first `count`, zeros behind them.
GQA_OP __m256i load_words(const std::byte* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(static_cast<const void*>(p)));
}
GQA_OP __m256i load_words_part(const std::byte* p, Index count) {
  return _mm256_maskz_loadu_epi16(first_lanes(count), p);
}
GQA_OP Vec widen_bf16(__m256i bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }
GQA_OP Vec widen_f16(__m256i bits) { return _mm512_cvtph_ps(bits); }
// 16 bytes, all or the first `count`; zeros behind them, nothing read there.
GQA_OP __m128i load_bytes(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
GQA_OP __m128i load_bytes_part(const std::byte* p, Index count) { return _mm_maskz_loadu_epi8(first_lanes(count), p); }
// The lower or the upper four bits of each.
template <bool Upper>
GQA_OP __m128i nibbles(__m128i a) {
  return _mm_and_si128(Upper ? _mm_srli_epi16(a, 4) : a, _mm_set1_epi8(15));
}
// table[index], indices below 16.
GQA_OP __m128i look_up(__m128i table, __m128i index) { return _mm_shuffle_epi8(table, index); }
// table[the lowest four bits of index]
inline constexpr bool kLooksUpFloats = true;
GQA_OP Vec look_up(Vec table, Vec index) { return _mm512_permutexvar_ps(_mm512_castps_si512(index), table); }
// Signed bytes as floats.
GQA_OP Vec widen_i8(__m128i a) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(a)); }
// The lanes' lowest bits.
GQA_OP Vec byte_bits(__m128i a) { return _mm512_castsi512_ps(_mm512_cvtepu8_epi32(a)); }
// Every lane the f16 at p.
GQA_OP Vec set1_f16(const std::byte* p) {
  short bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return _mm512_cvtph_ps(_mm256_set1_epi16(bits));
}
#include "gqa/codec/loads.inl"
template <class Codec>
GQA_OP void store_as(std::byte* p, Vec a) {
  if constexpr (Codec::type == ElementType::f32) {
    store(typed<float>(p), a);
  } else if constexpr (Codec::type == ElementType::f16) {
    _mm256_storeu_si256(static_cast<__m256i*>(static_cast<void*>(p)), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  } else {  // round to nearest, ties to even; NaN stays NaN
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __m512i chosen = _mm512_mask_mov_epi32(rounded, _mm512_fpclass_ps_mask(a, kNaN), quiet);
    _mm256_storeu_si256(static_cast<__m256i*>(static_cast<void*>(p)),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16)));
  }
}
#include "gqa/detail/path/prefetch.inl"

#define GQA_LONG_OP GQA_OP
#define GQA_STRIP_LOOP
#define GQA_KERNEL_PATH Path::avx512
#define GQA_KERNELS_NAME "gqa_kernels_avx512"
#include "gqa/detail/path/kernel.inl"
#undef GQA_KERNEL_PATH
#undef GQA_KERNELS_NAME
#undef GQA_LONG_OP
#undef GQA_STRIP_LOOP

// Any value of V that is no finite number once rounded to bf16? For the paths whose products are of bf16.
template <class Codec>
inline bool nonfinite_as_bf16(const Block& block, std::uint64_t tokens, Index value_dim) {
  const __m512i least = _mm512_set1_epi32(0x7f7f8000);  // halfway from the largest bf16 to infinity
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const BlockRows<Codec> rows = block_values<Codec>(block);
  for (; tokens != 0; tokens &= tokens - 1) {
    const RowOf<Codec> v = rows(__builtin_ctzll(tokens));
    for (Index d = 0; d < value_dim; d += kLanes) {
      const Vec part = load_part(Codec{}, v, d, value_dim - d < kLanes ? value_dim - d : kLanes);
      if (_mm512_cmpge_epi32_mask(_mm512_and_si512(_mm512_castps_si512(part), magnitude), least) != 0) return true;
    }
  }
  return false;
}

}  // namespace gqa::detail::inline GQA_ABI::avx512

GQA_END_REGION()

#endif  // GQA_DETAIL_X86

#include "gqa/detail/path/avx512vnni.hpp"
