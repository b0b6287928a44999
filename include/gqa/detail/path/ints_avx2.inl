// SPDX-License-Identifier: Apache-2.0
// Products of 16-bit integers in pairs: vpmaddwd. In outputs a lane is a dim and takes pairs of tokens; in scores it takes pairs of dims, and
// lanes are added then. Part of avx2.hpp.

struct IntegerSums {
  __m256i low;
  __m256i high;
};
inline constexpr int kIntegerRows = 4;
inline constexpr int kIntegerVectors = 1;
inline constexpr int kGroup = 4;
inline constexpr Index kGroupBytes = 8;
inline constexpr Index kLaneBytes = 4;
inline constexpr Index kGroupStep = 8;
inline constexpr Index kPanelRowBytes = 4;
// From a quad's first pair to its second.
GQA_OP Index other_half(Index) { return 4; }
template <class Codec>
inline constexpr Index kSpread = kLanes;
template <class Codec>
inline constexpr Index kExcess = Codec::integer_bits == 4 ? 8 : 0;
inline constexpr StreamRows kIntegerStreamRows = {8, 1};

GQA_OP void store_integers(std::byte* p, __m256i a) {
  _mm256_storeu_si256(static_cast<__m256i*>(static_cast<void*>(p)), a);
}
GQA_OP __m256i load_integers(const std::byte* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(static_cast<const void*>(p)));
}
GQA_OP void put_integers(std::byte* row, Index, Index i, const Vec& rounded) {
  const __m256i magic = _mm256_set1_epi32(0x4b400000);
  const __m256i low = _mm256_sub_epi32(_mm256_castps_si256(rounded.low), magic);
  const __m256i high = _mm256_sub_epi32(_mm256_castps_si256(rounded.high), magic);
  store_integers(row + i * 2, _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8));
}
GQA_OP __m256i lower_halves(__m256 a, __m256 b) {
  return _mm256_blend_epi16(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_castps_si256(b), 16), 0xaa);
}
GQA_OP void put_panel_integers(std::byte* to, const Vec (&rounded)[4]) {
  GQA_UNROLL
  for (int i = 0; i < 2; ++i) {
    store_integers(to + i * 64, lower_halves(rounded[2 * i].low, rounded[2 * i + 1].low));
    store_integers(to + i * 64 + 32, lower_halves(rounded[2 * i].high, rounded[2 * i + 1].high));
  }
}
GQA_OP Vec larger_bits(const Vec& a, const Vec& b) {
  return {_mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a.low), _mm256_castps_si256(b.low))),
          _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a.high), _mm256_castps_si256(b.high)))};
}
// Numbers of dims d … d + 31 as bytes, d a multiple of 32: the first 16, then the others; all of them there if Whole, else zeros or what
// a block is filled with behind them.
struct IntegerBytes {
  __m128i half[2];
};
template <class Codec, bool Whole>
GQA_OP IntegerBytes integer_bytes(const std::byte* row, Index d, Index dim) {
  if constexpr (Codec::integer_bits == 8) {
    if constexpr (Whole) return {{load_bytes(row + d), load_bytes(row + d + kLanes)}};
    const Index count = dim - d;
    return {{load_bytes_part(row + d, count < kLanes ? count : kLanes),
             load_bytes_part(row + d + kLanes, count < kLanes ? 0 : count - kLanes)}};
  } else {
    const __m128i pairs = load_bytes(row + d / 2);
    return {{nibbles<false>(pairs), nibbles<true>(pairs)}};
  }
}
// Keys of sixteen tokens: [token][dim], 16 bits.
GQA_OP Index staged_key_bytes(Index dim) { return round_up(dim, 2 * kLanes) * 2; }
GQA_OP std::byte* staged_keys(const QueryTile& tile, Index t) {
  return tile.staging + t * staged_key_bytes(tile.head_dim);
}
template <class Codec, bool Whole>
GQA_OP void stage_key_dims(const std::byte* row, Index d, Index dim, std::byte* to) {
  const IntegerBytes k = integer_bytes<Codec, Whole>(row, d, dim);
  store_integers(to + d * 2, _mm256_cvtepi8_epi16(k.half[0]));
  store_integers(to + d * 2 + 32, _mm256_cvtepi8_epi16(k.half[1]));
}
template <class Codec, class RowAt>
GQA_OP void stage_key_tokens(const RowAt& rows, Index dim, std::byte* to) {
  const Index whole = dim / 32 * 32;
  const Index bytes = staged_key_bytes(dim);
  GQA_NO_UNROLL
  for (Index t = 0; t < kLanes; ++t, to += bytes) {
    const std::byte* const row = rows(t);
    GQA_DETAIL_PRAGMA(GCC unroll 2)
    for (Index d = 0; d < whole; d += 32) stage_key_dims<Codec, true>(row, d, dim, to);
    if (whole < dim) stage_key_dims<Codec, false>(row, whole, dim, to);
  }
}
template <class Codec, bool Whole>
GQA_OP void stage_value_dims(const std::byte* const (&rows)[4], Index d, Index dim, std::byte* to, Index stride) {
  GQA_UNROLL
  for (int i = 0; i < 2; ++i) {
    const IntegerBytes first = integer_bytes<Codec, Whole>(rows[2 * i], d, dim);
    const IntegerBytes second = integer_bytes<Codec, Whole>(rows[2 * i + 1], d, dim);
    GQA_UNROLL
    for (int h = 0; h < 2; ++h) {
      std::byte* const at = to + i * (stride / 2) + (d + h * kLanes) * kLaneBytes;
      store_integers(at, _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(first.half[h], second.half[h])));
      store_integers(at + 32, _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(first.half[h], second.half[h])));
    }
  }
}
template <class Codec>
GQA_OP void stage_value_group(const std::byte* const (&rows)[4], Index dim, std::byte* to, Index stride) {
  const Index whole = dim / 32 * 32;
  for (Index d = 0; d < whole; d += 32) stage_value_dims<Codec, true>(rows, d, dim, to, stride);
  if (whole < dim) stage_value_dims<Codec, false>(rows, whole, dim, to, stride);
}
GQA_OP __m256i every_pair(const std::byte* p) {
  int pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return _mm256_set1_epi32(pair);
}
template <int R, int C, class Rows, class Ahead>
GQA_OP void integer_sums(const Rows& rows, Index first, const std::byte* staged, Index quads, Index stride,
                         Ahead& ahead, IntegerSums (&acc)[R * C]) {
  static_assert(C == 1);
  GQA_UNROLL
  for (int r = 0; r < R; ++r) acc[r] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (Index at = first * rows.step; at < (first + quads) * rows.step; at += rows.step, staged += stride) {
    ahead.step();
    GQA_UNROLL
    for (int i = 0; i < 2; ++i) {
      const __m256i low = load_integers(staged + i * (stride / 2));
      const __m256i high = load_integers(staged + i * (stride / 2) + 32);
      GQA_UNROLL
      for (int r = 0; r < R; ++r) {
        const __m256i pair = every_pair(rows.first[r] + at + i * rows.other);
        acc[r].low = _mm256_add_epi32(acc[r].low, _mm256_madd_epi16(low, pair));
        acc[r].high = _mm256_add_epi32(acc[r].high, _mm256_madd_epi16(high, pair));
      }
    }
  }
}
GQA_OP void natural_order(IntegerSums (&)[kIntegerVectors]) {}
GQA_OP Vec integers_as_floats(const IntegerSums& sums, std::int32_t constant) {
  const __m256i all = _mm256_set1_epi32(constant);
  return {_mm256_cvtepi32_ps(_mm256_add_epi32(sums.low, all)), _mm256_cvtepi32_ps(_mm256_add_epi32(sums.high, all))};
}
// Each of eight vectors' lanes added.
GQA_OP __m256i add_lanes(const __m256i (&a)[8]) {
  __m256i b[4], c[2];
  GQA_UNROLL
  for (int i = 0; i < 4; ++i) b[i] = _mm256_hadd_epi32(a[2 * i], a[2 * i + 1]);
  GQA_UNROLL
  for (int i = 0; i < 2; ++i) c[i] = _mm256_hadd_epi32(b[2 * i], b[2 * i + 1]);
  return _mm256_add_epi32(_mm256_permute2x128_si256(c[0], c[1], 0x20), _mm256_permute2x128_si256(c[0], c[1], 0x31));
}
// Scores of 16 tokens, of 8 / R at a time.
template <int R, class Rows, class Ahead>
GQA_OP void key_sums(const Rows& rows, const std::byte* staged, Index dim, Ahead& ahead, IntegerSums (&sums)[R]) {
  constexpr int T = 8 / R;
  const Index bytes = staged_key_bytes(dim);
  alignas(32) std::int32_t lanes[R][kLanes];
  GQA_NO_UNROLL
  for (Index t = 0; t < kLanes; t += T, staged += T * bytes) {
    __m256i acc[8];
    GQA_UNROLL
    for (int i = 0; i < 8; ++i) acc[i] = _mm256_setzero_si256();
    for (Index d = 0; d < bytes; d += 32) {
      ahead.step();
      __m256i key[T];
      GQA_UNROLL
      for (int i = 0; i < T; ++i) key[i] = load_integers(staged + i * bytes + d);
      GQA_UNROLL
      for (int r = 0; r < R; ++r) {
        const __m256i query = load_integers(rows.first[r] + d);
        GQA_UNROLL
        for (int i = 0; i < T; ++i) acc[r * T + i] = _mm256_add_epi32(acc[r * T + i], _mm256_madd_epi16(key[i], query));
      }
    }
    alignas(32) std::int32_t some[R][T];
    store_integers(reinterpret_cast<std::byte*>(some), add_lanes(acc));
    GQA_UNROLL
    for (int r = 0; r < R; ++r) __builtin_memcpy(lanes[r] + t, some[r], sizeof some[r]);
  }
  GQA_UNROLL
  for (int r = 0; r < R; ++r) {
    const auto* const from = reinterpret_cast<const std::byte*>(lanes[r]);
    sums[r] = {load_integers(from), load_integers(from + 32)};
  }
}
#include "gqa/detail/path/ints.inl"

template <class Codec>
inline const CodecKernels* integer_kernels() noexcept {
  return &kIntegerKernels<Codec>;
}
