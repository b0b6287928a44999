// SPDX-License-Identifier: Apache-2.0
/// @file
/// The AVX2 path: the logical vector is two registers of 8 floats. Needs AVX2, FMA and F16C.
#pragma once

#include "gqa/detail/path/region.hpp"

#if GQA_DETAIL_X86

GQA_BEGIN_REGION("avx2,fma,f16c", "tune=haswell")

namespace gqa::detail::inline GQA_ABI::avx2 {

struct Vec {
  __m256 low;   // lanes 0 … 7
  __m256 high;  // lanes 8 … 15
};

inline constexpr int kQkSums = 8;       // accumulators of a score tile, each one register of a vector's two at a time
inline constexpr int kQkRows = 4;       // the most rows of a score tile
inline constexpr int kStripParts = 2;   // parts of a vector that a strip adds up one after the other
inline constexpr int kHeldQueries = 0;  // queries are not held
inline constexpr int kRowTokens = 4;  // tokens at a time where lanes are rows: 8 registers, 2 for queries, 1 for a key
inline constexpr int kRowPanels = 1;  // panels of 16 rows that take them in turn
inline constexpr bool kRowsSideBySide = false;
inline constexpr int kPvSums = 4;     // accumulators of an output tile: 8 registers; 12 for the most rows
inline constexpr int kPvRows = 6;     // the most rows of an output tile
inline constexpr int kPvWeights = 1;  // weights that are loaded at once
template <class Codec>
inline constexpr StreamRows kStreamRows = {kPlainRows<Codec> ? 1 : 8, 1};

GQA_OP Vec set1(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
GQA_OP Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
GQA_OP Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
GQA_OP void store(float* p, const Vec& a) {
  _mm256_storeu_ps(p, a.low);
  _mm256_storeu_ps(p + 8, a.high);
}
GQA_OP Vec add(const Vec& a, const Vec& b) { return {a.low + b.low, a.high + b.high}; }
GQA_OP Vec sub(const Vec& a, const Vec& b) { return {a.low - b.low, a.high - b.high}; }
GQA_OP Vec mul(const Vec& a, const Vec& b) { return {a.low * b.low, a.high * b.high}; }
GQA_OP Vec div(const Vec& a, const Vec& b) { return {a.low / b.low, a.high / b.high}; }
// A product that is rounded before it is added to something, see region.hpp.
GQA_OP Vec unfused(Vec product) {
#if defined(__clang__)
  asm("" : "+x"(product.low), "+x"(product.high));
#endif
  return product;
}
// a·b + c, rounded once.
GQA_OP float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
GQA_OP Vec fma(const Vec& a, const Vec& b, const Vec& c) {
  return {GQA_FMA_PS256(a.low, b.low, c.low), GQA_FMA_PS256(a.high, b.high, c.high)};
}
// b where a is NaN.
GQA_OP Vec larger(const Vec& a, const Vec& b) { return {GQA_MAX_PS256(a.low, b.low), GQA_MAX_PS256(a.high, b.high)}; }
// The floats whose bits are those of a shifted left by N.
template <int N>
GQA_OP Vec shift_left(const Vec& a) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.low), N)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.high), N))};
}
// value, but 0 where x < floor. NaN in x keeps value.
GQA_OP Vec zero_below(const Vec& x, const Vec& floor, const Vec& value) {
  return {GQA_ZERO_BELOW_PS256(x.low, floor.low, value.low), GQA_ZERO_BELOW_PS256(x.high, floor.high, value.high)};
}
// a where the lane's highest bit is set, else b.
GQA_OP Vec select_negative(const Vec& bits, const Vec& a, const Vec& b) {
  return {_mm256_blendv_ps(b.low, a.low, bits.low), _mm256_blendv_ps(b.high, a.high, bits.high)};
}
// Lanes of ones where it holds, else of zeros; it does not where a lane is NaN.
GQA_OP Vec less(const Vec& a, const Vec& b) {
  return {_mm256_castsi256_ps(reinterpret_cast<__m256i>(a.low < b.low)),
          _mm256_castsi256_ps(reinterpret_cast<__m256i>(a.high < b.high))};
}
GQA_OP Vec less_equal(const Vec& a, const Vec& b) {
  return {_mm256_castsi256_ps(reinterpret_cast<__m256i>(a.low <= b.low)),
          _mm256_castsi256_ps(reinterpret_cast<__m256i>(a.high <= b.high))};
}
GQA_OP Vec bit_and(const Vec& a, const Vec& b) { return {_mm256_and_ps(a.low, b.low), _mm256_and_ps(a.high, b.high)}; }
GQA_OP Vec bit_or(const Vec& a, const Vec& b) { return {_mm256_or_ps(a.low, b.low), _mm256_or_ps(a.high, b.high)}; }
GQA_OP Vec bit_xor(const Vec& a, const Vec& b) { return {_mm256_xor_ps(a.low, b.low), _mm256_xor_ps(a.high, b.high)}; }
template <int N>
GQA_OP Vec shift_right(const Vec& a) {
  return {_mm256_castsi256_ps(_mm256_srli_epi32(_mm256_castps_si256(a.low), N)),
          _mm256_castsi256_ps(_mm256_srli_epi32(_mm256_castps_si256(a.high), N))};
}
// The lanes' highest bits.
GQA_OP std::uint32_t sign_bits(const Vec& a) {
  return static_cast<std::uint32_t>(_mm256_movemask_ps(a.low)) | static_cast<std::uint32_t>(_mm256_movemask_ps(a.high))
                                                                     << 8;
}
// All ones in lane i of the result where bit i is set, i < 8.
GQA_OP __m256 lane_mask(std::uint64_t bits) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i all = _mm256_set1_epi32(static_cast<int>(bits & 0xffu));
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, bit), bit));
}
// a where the lane's bit is set, else b.
GQA_OP Vec select(std::uint64_t bits, const Vec& a, const Vec& b) {
  return {_mm256_blendv_ps(b.low, a.low, lane_mask(bits)), _mm256_blendv_ps(b.high, a.high, lane_mask(bits >> 8))};
}
GQA_OP float reduce_max(const Vec& a) {
  const __m256 m = GQA_MAX_PS256(a.low, a.high);
  __m128 x = GQA_MAX_PS128(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  x = GQA_MAX_PS128(x, _mm_movehl_ps(x, x));
  x = GQA_MAX_SS(x, _mm_shuffle_ps(x, x, 1));
  return _mm_cvtss_f32(x);
}
// The fixed tree: lanes i and i + 8, then i + 4, i + 2, i + 1.
GQA_OP float reduce_add(const Vec& a) {
  const __m256 s = a.low + a.high;
  __m128 x = _mm256_castps256_ps128(s) + _mm256_extractf128_ps(s, 1);
  x = x + _mm_movehl_ps(x, x);
  return _mm_cvtss_f32(x) + _mm_cvtss_f32(_mm_shuffle_ps(x, x, 1));
}
// The same tree for four vectors at once: sums[i] = reduce_add(acc[i]).
GQA_OP void reduce_four(const Vec* acc, float* sums) {
  const __m256 a0 = acc[0].low + acc[0].high;
  const __m256 a1 = acc[1].low + acc[1].high;
  const __m256 a2 = acc[2].low + acc[2].high;
  const __m256 a3 = acc[3].low + acc[3].high;
  const __m256 b0 = _mm256_permute2f128_ps(a0, a2, 0x20) + _mm256_permute2f128_ps(a0, a2, 0x31);
  const __m256 b1 = _mm256_permute2f128_ps(a1, a3, 0x20) + _mm256_permute2f128_ps(a1, a3, 0x31);
  const __m256 c = _mm256_shuffle_ps(b0, b1, 0x44) + _mm256_shuffle_ps(b0, b1, 0xee);
  const __m256 d = _mm256_shuffle_ps(c, c, 0x88) + _mm256_shuffle_ps(c, c, 0xdd);
  _mm_storeu_ps(sums, _mm_shuffle_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1), 0x44));
}
template <int N>
GQA_OP void reduce_sums(const Vec (&acc)[N], float* sums) {
  GQA_UNROLL
  for (int i = 0; i < N; i += 4) reduce_four(acc + i, sums + i);
}
// 8 × 8 floats: row i, column j ↔ row j, column i.
GQA_OP void transpose_quarter(__m256 (&r)[8]) {
  __m256 a[8];
  GQA_UNROLL
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  GQA_UNROLL
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  GQA_UNROLL
  for (int i = 0; i < 4; ++i) {
    const __m256 low = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    r[i] = low;
  }
}
// Vector i, lane j ↔ vector j, lane i.
GQA_OP void transpose(Vec (&r)[kLanes]) {
  __m256 corner[2][2][8];
  GQA_UNROLL
  for (int i = 0; i < 8; ++i) {
    corner[0][0][i] = r[i].low;
    corner[0][1][i] = r[i].high;
    corner[1][0][i] = r[i + 8].low;
    corner[1][1][i] = r[i + 8].high;
  }
  transpose_quarter(corner[0][0]);
  transpose_quarter(corner[0][1]);
  transpose_quarter(corner[1][0]);
  transpose_quarter(corner[1][1]);
  GQA_UNROLL
  for (int i = 0; i < 8; ++i) {
    r[i] = {corner[0][0][i], corner[1][0][i]};
    r[i + 8] = {corner[0][1][i], corner[1][1][i]};
  }
}
GQA_OP bool any_nonfinite(const Vec& a) {
  const __m256i exponent = _mm256_set1_epi32(0x7f800000);
  const __m256i x = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_castps_si256(a.low), exponent), exponent);
  const __m256i y = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_castps_si256(a.high), exponent), exponent);
  return _mm256_movemask_epi8(_mm256_or_si256(x, y)) != 0;
}

// The first `count` floats; zeros behind them, nothing read there.
GQA_OP Vec load_floats_part(const std::byte* p, Index count) {
  alignas(32) std::byte lanes[kLanes * 4] = {};
  for (Index i = 0; i < count; ++i) __builtin_memcpy(lanes + i * 4, p + i * 4, 4);
  return load(typed<const float>(lanes));
}
// 16-bit elements, all or the first `count`, zeros behind them.
struct Words {
  __m128i low;
  __m128i high;
};
GQA_OP __m128i load_half_words(const std::byte* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(static_cast<const void*>(p)));
}
GQA_OP Words load_words(const std::byte* p) { return {load_half_words(p), load_half_words(p + 16)}; }
GQA_OP Words load_words_part(const std::byte* p, Index count) {
  alignas(32) std::byte lanes[kLanes * 2] = {};
  for (Index i = 0; i < count; ++i) __builtin_memcpy(lanes + i * 2, p + i * 2, 2);
  return load_words(lanes);
}
GQA_OP __m256 widen_bf16(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
GQA_OP __m256 widen_f16(__m128i bits) { return _mm256_cvtph_ps(bits); }
GQA_OP Vec widen_bf16(const Words& bits) { return {widen_bf16(bits.low), widen_bf16(bits.high)}; }
GQA_OP Vec widen_f16(const Words& bits) { return {widen_f16(bits.low), widen_f16(bits.high)}; }
// 16 bytes, all or the first `count`; zeros behind them, nothing read there.
GQA_OP __m128i load_bytes(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
GQA_OP __m128i load_bytes_part(const std::byte* p, Index count) {
  alignas(16) std::byte lanes[kLanes] = {};
  for (Index i = 0; i < count; ++i) lanes[i] = p[i];
  return load_bytes(lanes);
}
// The lower or the upper four bits of each.
template <bool Upper>
GQA_OP __m128i nibbles(__m128i a) {
  return _mm_and_si128(Upper ? _mm_srli_epi16(a, 4) : a, _mm_set1_epi8(15));
}
// table[index], indices below 16.
GQA_OP __m128i look_up(__m128i table, __m128i index) { return _mm_shuffle_epi8(table, index); }
inline constexpr bool kLooksUpFloats = false;  // by the bits of a lane, among 16
// Signed bytes as floats.
GQA_OP Vec widen_i8(__m128i a) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(a)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(a, 8)))};
}
// The lanes' lowest bits.
GQA_OP Vec byte_bits(__m128i a) {
  return {_mm256_castsi256_ps(_mm256_cvtepu8_epi32(a)),
          _mm256_castsi256_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(a, 8)))};
}
// Every lane the f16 at p.
GQA_OP Vec set1_f16(const std::byte* p) {
  short bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  const __m256 all = _mm256_cvtph_ps(_mm_set1_epi16(bits));
  return {all, all};
}
#include "gqa/codec/loads.inl"

// Elements d … d + 7 of a row, d a multiple of 8. Of codecs that have nothing shorter, 16 are loaded and compilers leave half of them out.
template <class Codec>
GQA_OP __m256 load_half(Codec, RowOf<Codec> row, Index d) {
  const Vec both = load(Codec{}, row, d & ~Index{15});
  return (d & 8) == 0 ? both.low : both.high;
}
GQA_OP __m256 load_half(F32, const std::byte* row, Index d) { return _mm256_loadu_ps(typed<const float>(row + d * 4)); }
GQA_OP __m256 load_half(Bf16, const std::byte* row, Index d) { return widen_bf16(load_half_words(row + d * 2)); }
GQA_OP __m256 load_half(F16, const std::byte* row, Index d) { return widen_f16(load_half_words(row + d * 2)); }
// The first `count` of them, no more than 8; zeros behind them, nothing read there. None, if that is less than one.
template <class Codec>
GQA_OP __m256 load_half_part(Codec, RowOf<Codec> row, Index d, Index count) {
  if constexpr (KvType(Codec::type).is_element()) return load_part(Codec{}, row, d, count).low;
  else return (d & 8) == 0 ? load_part(Codec{}, row, d, count).low : load_part(Codec{}, row, d - 8, count + 8).high;
}
// A Dot of 8 of its 16 lanes: with one register instead of two to an accumulator, four rows share a key, not two.
template <class Codec>
struct HalfDot {
  using Operand = __m256;
  using Sum = __m256;
  static GQA_OP __m256 none() { return _mm256_setzero_ps(); }
  static GQA_OP __m256 query(const std::byte* p) { return _mm256_loadu_ps(typed<const float>(p)); }
  static GQA_OP __m256 key(const std::byte* row, Index d) { return load_half(Codec{}, row, d); }
  static GQA_OP __m256 key_part(const std::byte* row, Index d, Index count) {
    return load_half_part(Codec{}, row, d, count < 8 ? count : 8);
  }
  static GQA_OP __m256 add(__m256 q, __m256 k, __m256 acc) { return GQA_FMA_PS256(q, k, acc); }
  static GQA_OP void keep(float* lanes, __m256 sum) { _mm256_storeu_ps(lanes, sum); }
};
template <class Codec, class Whole>
using StripDot = HalfDot<Codec>;

// Round to nearest, ties to even; NaN stays NaN.
GQA_OP __m128i narrow_bf16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
  const __m256i nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f800000));
  const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
}
template <class Codec>
GQA_OP void store_as(std::byte* p, const Vec& a) {
  if constexpr (Codec::type == ElementType::f32) {
    store(typed<float>(p), a);
  } else {
    __m128i* out = static_cast<__m128i*>(static_cast<void*>(p));
    if constexpr (Codec::type == ElementType::f16) {
      _mm_storeu_si128(out, _mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT));
      _mm_storeu_si128(out + 1, _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT));
    } else {
      _mm_storeu_si128(out, narrow_bf16(a.low));
      _mm_storeu_si128(out + 1, narrow_bf16(a.high));
    }
  }
}
#include "gqa/detail/path/one_piece.inl"
#include "gqa/detail/path/prefetch.inl"

#define GQA_LONG_OP GQA_OP
#define GQA_STRIP_LOOP GQA_DETAIL_PRAGMA(GCC unroll 2)
#define GQA_KERNEL_PATH Path::avx2
#define GQA_KERNELS_NAME "gqa_kernels_avx2"
#include "gqa/detail/path/kernel.inl"
#undef GQA_KERNEL_PATH
#undef GQA_KERNELS_NAME
#undef GQA_LONG_OP
#undef GQA_STRIP_LOOP
#include "gqa/detail/path/ints_avx2.inl"

}  // namespace gqa::detail::inline GQA_ABI::avx2

GQA_END_REGION()

#endif  // GQA_DETAIL_X86
