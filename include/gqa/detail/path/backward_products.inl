// SPDX-License-Identifier: Apache-2.0
// Products of the backward pass. Part of backward.inl.

// The words of an operand whose lanes are in vectors: panels of kGradientVectors vectors, then of one; in each, step after step.
struct LaneWords {
  const float* data;
  Index steps;  // of a panel
  Index first;  // the step to begin with
};
// Where word `step` of the panel that begins with vector v lies, `width` vectors wide.
template <class Data>
GQA_OP Data* panel_at(Data* data, Index steps, Index v, Index width, Index step) {
  return data + (v * steps + step * width) * kLanes;
}
// Vectors of the panel that begins with vector v, of so many in all.
GQA_OP Index panel_width(Index v, Index vectors) { return vectors - v >= kGradientVectors ? kGradientVectors : 1; }

// M rows × N vectors of c. Word k of row m of a is a[m · stride + k] if Along, else a[k · stride + m].
template <class Word, bool Along, int M, int N>
GQA_OP void multiply_tile(const float* a, Index stride, const float* b, Index steps, bool add, float* c,
                          Index c_stride) {
  Vec sum[M * N];
  GQA_UNROLL
  for (int i = 0; i < M * N; ++i) sum[i] = add ? load(c + i / N * c_stride + i % N * kLanes) : zero();
  const float* row[M];
  GQA_UNROLL
  for (int m = 0; m < M; ++m) row[m] = Along ? a + m * stride : a + m;
  GQA_NO_UNROLL
  for (Index k = 0; k < steps; ++k) {
    Vec words[N];
    GQA_UNROLL
    for (int n = 0; n < N; ++n) words[n] = load(b + n * kLanes);
    b += N * kLanes;
    GQA_UNROLL
    for (int m = 0; m < M; ++m) {
      const Vec word = Word::splat(row[m] + (Along ? k : k * stride));
      GQA_UNROLL
      for (int n = 0; n < N; ++n) sum[m * N + n] = Word::add(word, words[n], sum[m * N + n]);
    }
  }
  GQA_UNROLL
  for (int i = 0; i < M * N; ++i) store(c + i / N * c_stride + i % N * kLanes, sum[i]);
}

// `rows` rows of a panel of N vectors, M at a time, then fewer.
template <class Word, bool Along, int M, int N>
GQA_OP void multiply_rows(const float* a, Index stride, Index rows, const float* b, Index steps, bool add, float* c,
                          Index c_stride) {
  Index m = 0;
  for (; m + M <= rows; m += M)
    multiply_tile<Word, Along, M, N>(a + m * (Along ? stride : 1), stride, b, steps, add, c + m * c_stride, c_stride);
  if constexpr (M > 1)
    multiply_rows<Word, Along, M / 2, N>(a + m * (Along ? stride : 1), stride, rows - m, b, steps, add,
                                         c + m * c_stride, c_stride);
}

template <class Word, bool Along>
GQA_KERNEL void multiply(const float* a, Index stride, Index rows, LaneWords b, Index vectors, Index steps, bool add,
                         float* c, Index c_stride) {
  for (Index v = 0; v < vectors;) {
    const Index width = panel_width(v, vectors);
    const float* const words = panel_at(b.data, b.steps, v, width, b.first);
    if (width == kGradientVectors)
      multiply_rows<Word, Along, kGradientRows, kGradientVectors>(a, stride, rows, words, steps, add, c + v * kLanes,
                                                                  c_stride);
    else if constexpr (kGradientVectors > 1)
      multiply_rows<Word, Along, kGradientRows, 1>(a, stride, rows, words, steps, add, c + v * kLanes, c_stride);
    v += width;
  }
}

// Steps of a sum over so many elements.
template <class Word>
GQA_OP Index steps_of(Index elements) {
  return (elements + Word::kElements - 1) / Word::kElements;
}

// to [token][row] ← rows · lanesᵀ: rows of `width` elements as words, of which `dim` are summed over.
template <class Word>
GQA_OP void score_rows(const float* rows, Index width, Index dim, const float* lanes, const BackwardTile& tile,
                       Index at, Index tokens, float* to) {
  const Index stride = width / Word::kElements;
  const Index steps = steps_of<Word>(dim);
  multiply<Word, true>(rows + at * kBlock * stride, stride, tokens, {lanes, steps, 0},
                       round_up(tile.rows, kLanes) / kLanes, steps, false, to, kBackwardRows);
}
// scores, d_weights [token][row] ← keys · qᵀ, values · d_outᵀ, of the first `tokens` of the block.
template <class Word>
inline void score_products(const BackwardTile& tile, Index at, Index tokens) {
  score_rows<Word>(tile.keys, tile.head_width, tile.head_dim, tile.q_row_lanes, tile, at, tokens, tile.scores);
  score_rows<Word>(tile.values, tile.value_width, tile.value_dim, tile.d_out_row_lanes, tile, at, tokens,
                   tile.d_weights);
}

// d_v, d_k [token][dim] += weightsᵀ · d_out, d_scoresᵀ · q; d_q [row][dim] += d_scores · keys
template <class Word>
inline void accumulate_gradients(const BackwardTile& tile, Index at, Index tokens) {
  const Index row_steps = steps_of<Word>(tile.rows);
  constexpr Index stride = kBackwardRows / Word::kElements;
  const Index head_vectors = tile.head_width / kLanes;
  const Index value_vectors = tile.value_width / kLanes;
  multiply<Word, true>(tile.weights, stride, tokens, {tile.d_out_dim_lanes, row_steps, 0}, value_vectors, row_steps,
                       true, tile.d_v + at * kBlock * tile.value_width, tile.value_width);
  multiply<Word, true>(tile.d_scores, stride, tokens, {tile.q_dim_lanes, row_steps, 0}, head_vectors, row_steps, true,
                       tile.d_k + at * kBlock * tile.head_width, tile.head_width);
  constexpr Index column_steps = kColumn / Word::kElements;
  multiply<Word, false>(tile.d_score_steps, kBackwardRows, tile.rows,
                        {tile.key_dim_lanes, column_steps, at * kBlock / Word::kElements}, head_vectors,
                        steps_of<Word>(tokens), true, tile.d_q, tile.head_width);
}
