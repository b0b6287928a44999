// SPDX-License-Identifier: Apache-2.0
// Products of 16-bit integers in pairs: vpmaddwd. A quad is the pairs (0, 2) and (1, 3) of its elements. Part of avx2.hpp.

struct IntegerSums {
  __m256i low;
  __m256i high;
};
inline constexpr int kIntegerRows = 4;
inline constexpr int kIntegerVectors = 1;
inline constexpr Index kQuadBytes = 8;
inline constexpr Index kLaneBytes = 4;
inline constexpr Index kQuadStep = 8;
inline constexpr Index kPanelRowBytes = 4;
// From a quad's first pair to its second.
GQA_OP Index other_half(Index) { return 4; }
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
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
  store_integers(row + i * 2, _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(packed, 0xd8), 0xd8));
}
GQA_OP __m256i lower_halves(__m256 a, __m256 b) {
  return _mm256_blend_epi16(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_castps_si256(b), 16), 0xaa);
}
GQA_OP void put_panel_integers(std::byte* to, const Vec (&rounded)[4]) {
  GQA_UNROLL
  for (int i = 0; i < 2; ++i) {
    store_integers(to + i * 64, lower_halves(rounded[i].low, rounded[i + 2].low));
    store_integers(to + i * 64 + 32, lower_halves(rounded[i].high, rounded[i + 2].high));
  }
}
GQA_OP Vec larger_bits(const Vec& a, const Vec& b) {
  return {_mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a.low), _mm256_castps_si256(b.low))),
          _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a.high), _mm256_castps_si256(b.high)))};
}
// The first `count` of 32 bytes; zeros behind them, nothing read there.
GQA_OP __m256i load_bytes_of_half(const std::byte* p, Index count) {
  if (count >= 32) return load_integers(p);
  alignas(32) std::byte bytes[32] = {};
  for (Index i = 0; i < count; ++i) bytes[i] = p[i];
  return load_integers(bytes);
}
// Eight tokens' quads of bytes → pairs of 16 bits.
template <class Codec>
GQA_OP void put_key_quad(__m256i quad, std::byte* to) {
  constexpr Index pair = kBlock * kLaneBytes;
  if constexpr (Codec::integer_bits == 8) {
    store_integers(to, _mm256_srai_epi16(_mm256_slli_epi16(quad, 8), 8));
    store_integers(to + pair, _mm256_srai_epi16(quad, 8));
  } else {
    store_integers(to, _mm256_and_si256(quad, _mm256_set1_epi16(15)));
    store_integers(to + pair, _mm256_srli_epi16(quad, 8));
  }
}
GQA_OP std::byte* staged_keys(const QueryTile& tile, Index t) { return tile.staging + t * kLaneBytes; }
template <class Codec, class RowAt>
GQA_OP void stage_key_tokens(const RowAt& rows, Index dim, std::byte* to) {
  constexpr Index quad = kBlock * kQuadBytes;
  const Index bytes = KvType(Codec::type).row_bytes(dim);
  for (Index t = 0; t < kLanes; t += 8, to += 8 * kLaneBytes) {
    for (Index from = 0; from < bytes; from += 32) {
      __m256 words[8];
      GQA_UNROLL
      for (int i = 0; i < 8; ++i) words[i] = _mm256_castsi256_ps(load_bytes_of_half(rows(t + i) + from, bytes - from));
      transpose_quarter(words);
      GQA_UNROLL
      for (int w = 0; w < 8; ++w) {
        const __m256i word = _mm256_castps_si256(words[w]);
        if (from + w * 4 >= bytes) break;
        if constexpr (Codec::integer_bits == 8) {
          put_key_quad<Codec>(word, to + (from / 4 + w) * quad);
        } else {  // 16 bytes are quads 0 … 3 of 8, in the lower halves of bytes, and 4 … 7
          std::byte* const at = to + (from / 16 * 8 + w / 4 * 8 + w % 4) * quad;
          const __m256i halves = _mm256_set1_epi8(15);
          put_key_quad<Codec>(_mm256_and_si256(word, halves), at);
          put_key_quad<Codec>(_mm256_and_si256(_mm256_srli_epi16(word, 4), halves), at + 4 * quad);
        }
      }
    }
  }
}
// Numbers of 16 dims as bytes.
template <class Codec>
GQA_OP __m128i value_bytes(const std::byte* row, Index d, Index count) {
  if constexpr (Codec::integer_bits == 8)
    return count >= kLanes ? load_bytes(row + d) : load_bytes_part(row + d, count);
  const __m128i pairs = load_bytes(row + (d >> 5) * 16);
  return (d & 16) == 0 ? nibbles<false>(pairs) : nibbles<true>(pairs);
}
template <class Codec>
GQA_OP void stage_value_quad(const std::byte* const (&rows)[4], Index dim, std::byte* to, Index stride) {
  for (Index d = 0; d < dim; d += kLanes, to += kLanes * kLaneBytes) {
    GQA_UNROLL
    for (int i = 0; i < 2; ++i) {
      const __m128i first = value_bytes<Codec>(rows[i], d, dim - d);
      const __m128i second = value_bytes<Codec>(rows[i + 2], d, dim - d);
      store_integers(to + i * (stride / 2), _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(first, second)));
      store_integers(to + i * (stride / 2) + 32, _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(first, second)));
    }
  }
}
GQA_OP __m256i every_pair(const std::byte* p) {
  int pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return _mm256_set1_epi32(pair);
}
template <int R, int C, class Rows, class Ahead>
GQA_OP void integer_sums(const Rows& rows, Index first, const std::byte* staged, Index quads, Index stride, Ahead& ahead, IntegerSums (&acc)[R * C]) {
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
template <int R, class Rows, class Ahead>
GQA_OP void key_sums(const Rows& rows, const std::byte* staged, Index dim, Ahead& ahead,
                     IntegerSums (&sums)[R]) {
  integer_sums<R, 1>(rows, 0, staged, (dim + 3) / 4, kBlock * kQuadBytes, ahead, sums);
}
#include "gqa/detail/path/ints.inl"

template <class Codec>
inline const CodecKernels* integer_kernels() noexcept {
  return &kIntegerKernels<Codec>;
}
