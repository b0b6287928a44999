// SPDX-License-Identifier: Apache-2.0
// The online softmax of one block where weights are rounded to bf16: that of the AVX-512 path, and a second sum, of what rounding has
// left. Part of avx512bf16.hpp.
//
//   l         Σ w                  for the log-sum-exp
//   divisor   Σ of the rounded w   what outputs are divided by
//
// A lane of vdpbf16ps adds up a pair of tokens. Pairs i and i + 16 go to one lane, and lanes are added by the tree of reduce_add; for a
// row by itself and for sixteen rows alike.

GQA_OP __m512bh ones() { return as_pairs(_mm512_set1_epi32(0x3f803f80)); }
// sums + the pairs of each lane.
GQA_OP Vec add_pairs(Vec sums, __m512bh pairs) { return _mm512_dpbf16_ps(sums, pairs, ones()); }

// Weights of sixteen rows, [token][row] → [pair of tokens][row] in the first half of the room. Returns the rows' sums.
GQA_OP Vec round_panel(float* w) {
  const __m512i by_row = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                          21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  Vec sum[kLanes];
  GQA_UNROLL
  for (int pair = 0; pair < kBlock / 2; ++pair) {
    const Vec even = load(w + 2 * pair * kLanes);
    const Vec odd = load(w + (2 * pair + 1) * kLanes);
    const auto rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
    const __m512i pairs = _mm512_permutexvar_epi16(by_row, rounded);
    _mm512_storeu_si512(w + pair * kLanes, pairs);
    sum[pair % kLanes] = add_pairs(pair < kLanes ? zero() : sum[pair % kLanes], as_pairs(pairs));
  }
  GQA_UNROLL
  for (int half = kLanes / 2; half > 0; half /= 2) {
    GQA_UNROLL
    for (int i = 0; i < half; ++i) sum[i] = add(sum[i], sum[i + half]);
  }
  return sum[0];
}

// reduce_add of a in lane 0, of b in lane 8.
GQA_OP Vec reduce_two(Vec a, Vec b) {
  Vec sums = avx512::reduce_pair(a, b);
  sums = add(sums, _mm512_shuffle_f32x4(sums, sums, 0xb1));
  sums = add(sums, _mm512_shuffle_ps(sums, sums, 0x4e));
  return add(sums, _mm512_shuffle_ps(sums, sums, 0xb1));
}

// A row by itself, as avx512::softmax_row: 64 scores → 32 pairs of weights.
GQA_OP void softmax_row(const QueryTile& tile, Index row, float m_new, PrefetchCursor& ahead) {
  float* const w = tile.weights + row * kBlock;
  const float m_old = tile.m[row];
  const Vec base = avx512::finite_base(set1(m_new));
  Vec s[kBlock / kLanes];
  GQA_UNROLL
  for (int i = 0; i < kBlock / kLanes; ++i) {
    s[i] = avx512::exp2_nonpositive(avx512::sub(load(w + i * kLanes), base));
    prefetch_row<kSoftmaxPiece>(ahead);
  }
  const __m512bh first = _mm512_cvtne2ps_pbh(s[1], s[0]);
  const __m512bh second = _mm512_cvtne2ps_pbh(s[3], s[2]);
  _mm512_storeu_si512(w, reinterpret_cast<__m512i>(first));
  _mm512_storeu_si512(w + kLanes, reinterpret_cast<__m512i>(second));
  const Vec sums = reduce_two(add(add(s[0], s[1]), add(s[2], s[3])), add_pairs(add_pairs(zero(), first), second));
  const float alpha = avx512::rescaling(m_old, m_new, base);
  tile.m[row] = m_new;
  tile.alpha[row] = alpha;
  tile.l[row] = __builtin_fmaf(tile.l[row], alpha, _mm512_cvtss_f32(sums));
  tile.divisor[row] = __builtin_fmaf(tile.divisor[row], alpha, _mm_cvtss_f32(_mm512_extractf32x4_ps(sums, 2)));
}
// As avx512::softmax_rows.
template <class Score>
GQA_OP void softmax_rows(const QueryTile& tile, const Block& block, Index first, Prefetcher& prefetcher) {
  float m_new = 0.0f;
  PrefetchCursor ahead{};
  if (prefetcher.policy().between) ahead = avx512::softmax_cursor(prefetcher, tile.rows - first);
  GQA_NO_UNROLL
  for (Index next = first; next <= tile.rows; ++next) {
    const float m_next = next < tile.rows ? avx512::row_maximum<Score>(tile, block, next) : 0.0f;
    if (next > first) softmax_row(tile, next - 1, m_new, ahead);
    m_new = m_next;
  }
}

template <class Score>
inline void softmax(const QueryTile& tile, const Block& block, Prefetcher& prefetcher) {
  const Index in_panels = rows_in_panels(tile.rows);
  for (Index row = 0; row < in_panels; row += kLanes) {
    avx512::softmax_panel<Score>(tile, block, row);
    const Vec sum = round_panel(tile.weights + row * kBlock);
    store(tile.divisor + row, avx512::fma(load(tile.divisor + row), load(tile.alpha + row), sum));
  }
  if (in_panels < tile.rows) softmax_rows<Score>(tile, block, in_panels, prefetcher);
}
