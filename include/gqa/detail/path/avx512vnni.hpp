// SPDX-License-Identifier: Apache-2.0
/// @file
/// Kernels of the AVX-512 path for integers, where the processor has VNNI; else those of the AVX2 path, which find and leave weights, states and
/// outputs in the same places.
///
/// | intrinsic             | instruction | what it does here                                                              |
/// |-----------------------|-------------|--------------------------------------------------------------------------------|
/// | _mm512_dpbusd_epi32   | vpdpbusd    | lane += four products of an unsigned and a signed byte, exactly                |
///
/// Keys and values are the unsigned bytes, off by 128 or 8 (kExcess). The 16-bit integers are two signed bytes each, n = 256 · upper + lower:
/// what the upper ones sum up to is shifted and the lower ones' products are added to that.
#pragma once

#include "gqa/detail/path/avx2.hpp"
#include "gqa/detail/path/avx512.hpp"

#if GQA_DETAIL_X86

GQA_BEGIN_REGION("avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", "tune=icelake-server")

namespace gqa::detail::inline GQA_ABI::avx512vnni {

using namespace avx512;

using IntegerSums = __m512i;
inline constexpr int kIntegerRows = 4;
inline constexpr int kIntegerVectors = 4;
inline constexpr int kGroup = 4;
inline constexpr Index kGroupBytes = 4;
inline constexpr Index kLaneBytes = 4;
inline constexpr Index kGroupStep = 4;
inline constexpr Index kPanelRowBytes = 4;
// From a row's upper bytes to its lower ones.
GQA_OP Index other_half(Index elements) { return elements; }
template <class Codec>
inline constexpr Index kExcess = Codec::integer_bits == 4 ? 8 : 128;
inline constexpr StreamRows kIntegerStreamRows = {8, 2};

GQA_OP void put_integers(std::byte* row, Index elements, Index i, Vec rounded) {
  const __m512i bits = _mm512_castps_si512(rounded);
  const __m512i upper = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(128)), 8);
  _mm_storeu_si128(static_cast<__m128i*>(static_cast<void*>(row + i)), _mm512_cvtepi32_epi8(upper));
  _mm_storeu_si128(static_cast<__m128i*>(static_cast<void*>(row + elements + i)), _mm512_cvtepi32_epi8(bits));
}
GQA_OP void put_panel_integers(std::byte* to, const Vec (&rounded)[4]) {
  const __m512i low = _mm512_set1_epi32(0xff);
  __m512i upper = _mm512_setzero_si512();
  __m512i lower = upper;
  GQA_UNROLL
  for (int i = 3; i >= 0; --i) {
    const __m512i bits = _mm512_castps_si512(rounded[i]);
    const __m512i high = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(128)), 8);
    upper = _mm512_or_si512(_mm512_slli_epi32(upper, 8), _mm512_and_si512(high, low));
    lower = _mm512_or_si512(_mm512_slli_epi32(lower, 8), _mm512_and_si512(bits, low));
  }
  _mm512_storeu_si512(to, upper);
  _mm512_storeu_si512(to + 64, lower);
}
GQA_OP Vec larger_bits(Vec a, Vec b) {
  return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
// 64 bytes, or the first `count`; zeros behind them, nothing read there.
GQA_OP __m512i load_row_bytes(const std::byte* p, Index count) {
  if (count >= 64) return _mm512_loadu_si512(p);
  return _mm512_maskz_loadu_epi8((std::uint64_t{1} << count) - 1, p);
}
// Vector i, quarter j ↔ vector j, quarter i.
GQA_OP void turn_quarters(__m512i (&a)[4]) {
  const __m512i b[4] = {_mm512_shuffle_i32x4(a[0], a[1], 0x44), _mm512_shuffle_i32x4(a[0], a[1], 0xee),
                        _mm512_shuffle_i32x4(a[2], a[3], 0x44), _mm512_shuffle_i32x4(a[2], a[3], 0xee)};
  a[0] = _mm512_shuffle_i32x4(b[0], b[2], 0x88);
  a[1] = _mm512_shuffle_i32x4(b[0], b[2], 0xdd);
  a[2] = _mm512_shuffle_i32x4(b[1], b[3], 0x88);
  a[3] = _mm512_shuffle_i32x4(b[1], b[3], 0xdd);
}
// Keys of sixteen tokens: [16 dims][token % 4][token / 4][quad], so that a vector has the same 16 dims of four tokens.
GQA_OP std::byte* staged_keys(const QueryTile& tile, Index t) {
  return tile.staging + t * round_up(tile.head_dim, kLanes2);
}
// Bytes [from, from + 64) of rows of `bytes`, all of them there if Whole: of tokens g, g + 4, g + 8, g + 12.
template <class Codec, bool Whole, class RowAt>
GQA_OP void stage_key_bytes(const RowAt& rows, int g, Index from, Index bytes, std::byte* to) {
  __m512i v[4];
  GQA_UNROLL
  for (int i = 0; i < 4; ++i)
    v[i] = Whole ? _mm512_loadu_si512(rows(g + 4 * i) + from) : load_row_bytes(rows(g + 4 * i) + from, bytes - from);
  turn_quarters(v);
  GQA_UNROLL
  for (int c = 0; c < 4; ++c) {
    if (!Whole && from + c * 16 >= bytes) break;
    if constexpr (Codec::integer_bits == 8) {
      _mm512_storeu_si512(to + from * 16 + c * 256, _mm512_xor_si512(v[c], _mm512_set1_epi8(-128)));
    } else {  // 16 dims are the lower halves of 16 bytes, the next ones the upper ones
      const __m512i halves = _mm512_set1_epi8(15);
      _mm512_storeu_si512(to + from * 32 + c * 512, _mm512_and_si512(v[c], halves));
      _mm512_storeu_si512(to + from * 32 + c * 512 + 256, _mm512_and_si512(_mm512_srli_epi16(v[c], 4), halves));
    }
  }
}
template <class Codec, class RowAt>
GQA_OP void stage_key_tokens(const RowAt& rows, Index dim, std::byte* to) {
  const Index bytes = KvType(Codec::type).row_bytes(dim);
  GQA_NO_UNROLL
  for (int g = 0; g < 4; ++g, to += 64) {
    Index from = 0;
    for (; from + 64 <= bytes; from += 64) stage_key_bytes<Codec, true>(rows, g, from, bytes, to);
    if (from < bytes) stage_key_bytes<Codec, false>(rows, g, from, bytes, to);
  }
}
// Dims that four tokens' bytes are taken of at a time: 64 bytes of a row. Int4 has two dims in a byte.
template <class Codec>
inline constexpr Index kBytesDims = Codec::integer_bits == 4 ? 128 : 64;
// By how much dims are apart from a vector to the next, of the vectors that natural_order leaves.
template <class Codec>
inline constexpr Index kSpread = Codec::integer_bits == 4 ? 32 : kLanes;
// Bytes [from, from + 64) of rows of `bytes`, all of them there if Whole, as quads: of bytes 0 … 3 of each sixteen, then 4 … 7, and so on;
// of Int4 those of the lower halves, then of the upper ones.
template <class Codec, bool Whole>
GQA_OP void stage_value_bytes(const std::byte* const (&rows)[4], Index from, Index bytes, std::byte* to) {
  __m512i v[4];
  GQA_UNROLL
  for (int i = 0; i < 4; ++i)
    v[i] = Whole ? _mm512_loadu_si512(rows[i] + from) : load_row_bytes(rows[i] + from, bytes - from);
  const __m512i low[2] = {_mm512_unpacklo_epi8(v[0], v[1]), _mm512_unpacklo_epi8(v[2], v[3])};
  const __m512i high[2] = {_mm512_unpackhi_epi8(v[0], v[1]), _mm512_unpackhi_epi8(v[2], v[3])};
  const __m512i quads[4] = {_mm512_unpacklo_epi16(low[0], low[1]), _mm512_unpackhi_epi16(low[0], low[1]),
                            _mm512_unpacklo_epi16(high[0], high[1]), _mm512_unpackhi_epi16(high[0], high[1])};
  GQA_UNROLL
  for (int c = 0; c < 4; ++c) {
    if constexpr (Codec::integer_bits == 8) {
      _mm512_storeu_si512(to + c * 64, _mm512_xor_si512(quads[c], _mm512_set1_epi8(-128)));
    } else {
      const __m512i halves = _mm512_set1_epi8(15);
      _mm512_storeu_si512(to + c * 64, _mm512_and_si512(quads[c], halves));
      _mm512_storeu_si512(to + 256 + c * 64, _mm512_and_si512(_mm512_srli_epi16(quads[c], 4), halves));
    }
  }
}
template <class Codec>
GQA_OP void stage_value_group(const std::byte* const (&rows)[4], Index dim, std::byte* to, Index) {
  const Index bytes = KvType(Codec::type).row_bytes(dim);
  constexpr Index step = kBytesDims<Codec> * kLaneBytes;
  Index from = 0;
  for (; from + 64 <= bytes; from += 64, to += step) stage_value_bytes<Codec, true>(rows, from, bytes, to);
  if (from < bytes) stage_value_bytes<Codec, false>(rows, from, bytes, to);
}
GQA_OP void natural_order(__m512i (&a)[kIntegerVectors]) { turn_quarters(a); }
// `Bytes` of a row, 4 or 16, again and again.
template <Index Bytes>
GQA_OP __m512i every(const std::byte* p) {
  if constexpr (Bytes == 16) return _mm512_broadcast_i32x4(load_bytes(p));
  int quad;
  __builtin_memcpy(&quad, p, sizeof quad);
  return _mm512_set1_epi32(quad);
}
// Steps are quads, or 16 elements of a row by itself.
template <int R, int C, Index Bytes = 4, class Rows, class Ahead>
GQA_OP void integer_sums(const Rows& rows, Index first, const std::byte* staged, Index steps, Index stride,
                         Ahead& ahead, __m512i (&acc)[R * C]) {
  constexpr bool both = R * C <= 8;  // registers for the sums of both bytes
  constexpr int sums = both ? 2 : 1;
  GQA_UNROLL
  for (int i = 0; i < R * C; ++i) acc[i] = _mm512_setzero_si512();
  __m512i other[R * C];
  GQA_UNROLL
  for (int i = 0; i < R * C; ++i) other[i] = _mm512_setzero_si512();
  for (Index pass = 0; pass < 2; pass += sums) {
    const std::byte* from = staged;
    const Index step = Bytes == 4 ? rows.step : Bytes;
    const Index lower = rows.other;
    const Index begin = first * step + pass * lower;
    for (Index at = begin; at < begin + steps * step; at += step, from += stride) {
      ahead.step();
      __m512i b[C];
      GQA_UNROLL
      for (int c = 0; c < C; ++c) b[c] = _mm512_loadu_si512(from + c * 64);
      GQA_UNROLL
      for (int r = 0; r < R; ++r) {
        const __m512i quad = every<Bytes>(rows.first[r] + at);
        GQA_UNROLL
        for (int c = 0; c < C; ++c) acc[r * C + c] = _mm512_dpbusd_epi32(acc[r * C + c], b[c], quad);
        if constexpr (both) {
          const __m512i low = every<Bytes>(rows.first[r] + lower + at);
          GQA_UNROLL
          for (int c = 0; c < C; ++c) other[r * C + c] = _mm512_dpbusd_epi32(other[r * C + c], b[c], low);
        }
      }
    }
    if (pass == 0) {
      GQA_UNROLL
      for (int i = 0; i < R * C; ++i) acc[i] = _mm512_slli_epi32(acc[i], 8);
    }
  }
  if constexpr (both) {
    GQA_UNROLL
    for (int i = 0; i < R * C; ++i) acc[i] = _mm512_add_epi32(acc[i], other[i]);
  }
}
GQA_OP Vec integers_as_floats(__m512i sums, std::int32_t constant) {
  return _mm512_cvtepi32_ps(_mm512_add_epi32(sums, _mm512_set1_epi32(constant)));
}
// Scores of 16 tokens: lanes of quads added.
template <int R, class Rows, class Ahead>
GQA_OP void key_sums(const Rows& rows, const std::byte* staged, Index dim, Ahead& ahead, __m512i (&sums)[R]) {
  __m512i acc[R * 4];
  integer_sums<R, 4, 16>(rows, 0, staged, (dim + 15) / 16, 256, ahead, acc);
  GQA_UNROLL
  for (int r = 0; r < R; ++r) {
    const __m512i* const a = acc + r * 4;
    const __m512i b[2] = {_mm512_add_epi32(_mm512_unpacklo_epi32(a[0], a[1]), _mm512_unpackhi_epi32(a[0], a[1])),
                          _mm512_add_epi32(_mm512_unpacklo_epi32(a[2], a[3]), _mm512_unpackhi_epi32(a[2], a[3]))};
    sums[r] = _mm512_add_epi32(_mm512_unpacklo_epi64(b[0], b[1]), _mm512_unpackhi_epi64(b[0], b[1]));
  }
}
#include "gqa/detail/path/ints.inl"

}  // namespace gqa::detail::inline GQA_ABI::avx512vnni

GQA_END_REGION()

GQA_BEGIN_REGION("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", "tune=icelake-server")

namespace gqa::detail::inline GQA_ABI::avx512 {

template <class Codec>
inline const CodecKernels* integer_kernels() noexcept {
  return features().avx512vnni ? &avx512vnni::kIntegerKernels<Codec> : &avx2::kIntegerKernels<Codec>;
}

}  // namespace gqa::detail::inline GQA_ABI::avx512

GQA_END_REGION()

#endif  // GQA_DETAIL_X86
