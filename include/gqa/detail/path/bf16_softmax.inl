// SPDX-License-Identifier: Apache-2.0
// The online softmax of one block where weights are rounded to bf16: that of the f32 path (f32_path), and a second sum, of what rounding has
// left. Part of avx512bf16.hpp and neon_bf16.hpp, after
//
//   round_row(tile, row, s)    64 weights → bf16, where products want them; returns the sums of pairs
//   softmax_panel<Score>(…)    of sixteen rows, where the path has panels
//   reduce_two(a, b, sums)     reduce_add of both
//
//   l         Σ w                  for the log-sum-exp
//   divisor   Σ of the rounded w   what outputs are divided by
//
// A lane of a product adds up a pair of tokens. Pairs i and i + 16 go to one lane, and lanes are added by the tree of reduce_add; for a
// row by itself and for sixteen rows alike.

// A row by itself, as f32_path::softmax_row: 64 scores → 32 pairs of weights.
GQA_OP void softmax_row(const QueryTile& tile, Index row, float m_new, PrefetchCursor& ahead) {
  float* const w = tile.weights + row * kBlock;
  const float m_old = tile.m[row];
  const Vec base = f32_path::finite_base(set1(m_new));
  Vec s[kBlock / kLanes];
  GQA_UNROLL
  for (int i = 0; i < kBlock / kLanes; ++i) {
    s[i] = f32_path::exp2_nonpositive(f32_path::sub(load(w + i * kLanes), base));
    prefetch_row<kSoftmaxPiece>(ahead);
  }
  float sums[2];
  reduce_two(add(add(s[0], s[1]), add(s[2], s[3])), round_row(tile, row, s), sums);
  const float alpha = f32_path::rescaling(m_old, m_new, base);
  tile.m[row] = m_new;
  tile.alpha[row] = alpha;
  tile.l[row] = __builtin_fmaf(tile.l[row], alpha, sums[0]);
  tile.divisor[row] = __builtin_fmaf(tile.divisor[row], alpha, sums[1]);
}
// As f32_path::softmax_rows.
template <class Score>
GQA_OP void softmax_rows(const QueryTile& tile, const Block& block, Index first, Prefetcher& prefetcher) {
  float m_new = 0.0f;
  PrefetchCursor ahead{};
  if (prefetcher.policy().between) ahead = f32_path::softmax_cursor(prefetcher, tile.rows - first);
  GQA_NO_UNROLL
  for (Index next = first; next <= tile.rows; ++next) {
    const float m_next = next < tile.rows ? f32_path::row_maximum<Score>(tile, block, next) : 0.0f;
    if (next > first) softmax_row(tile, next - 1, m_new, ahead);
    m_new = m_next;
  }
}

template <class Score>
inline void softmax(const QueryTile& tile, const Block& block, Prefetcher& prefetcher) {
  const Index in_panels = rows_in_panels(tile.rows);
  if constexpr (kRowTokens > 0)
    for (Index row = 0; row < in_panels; row += kLanes) softmax_panel<Score>(tile, block, row);
  if (in_panels < tile.rows) softmax_rows<Score>(tile, block, in_panels, prefetcher);
}
