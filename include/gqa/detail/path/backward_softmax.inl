// SPDX-License-Identifier: Apache-2.0
// Weights and gradients of scores, from the log-sum-exp of the forward pass: no maximum, no sum (Dao 2023, "FlashAttention-2", algorithm 2).
// Part of backward.inl.

// log2 of the sum of 2^a and 2^b; −∞ where both are.
GQA_OP Vec log2_of_sum(const Vec& a, const Vec& b) {
  const Vec high = larger(a, b);
  const Vec low = select_negative(less(a, b), a, b);
  const Vec ratio = exp2_nonpositive(sub(low, finite_base(high)));
  return fma(logarithm(add(set1(1.0f), ratio)), set1(kLog2E), high);
}

// delta[row] ← Σ d_out · out. lse[row]: natural → in units of log2, with the sink; 0 where it is −∞, where there are no weights.
// sink[row]: score → gradient, −exp(sink − lse) · delta.
inline void prepare(const BackwardTile& tile, const float* out) {
  alignas(64) float delta[kLanes] = {};
  for (Index row = 0; row < tile.rows; ++row) {
    Vec sum = zero();
    for (Index d = 0; d < tile.value_width; d += kLanes)
      sum = fma(load(tile.d_out + row * tile.value_width + d), load(out + row * tile.value_width + d), sum);
    delta[row % kLanes] = reduce_add(sum);
    if (row % kLanes != kLanes - 1 && row + 1 < tile.rows) continue;
    const Index first = row / kLanes * kLanes;
    store(tile.delta + first, load(delta));
    Vec lse = product(load(tile.lse + first), set1(kLog2E));
    if (tile.sink != nullptr) {
      const Vec sink = product(load(tile.sink + first), set1(kLog2E));
      if (!tile.sink_in_lse) lse = log2_of_sum(lse, sink);
      const Vec share = exp2_nonpositive(sub(sink, finite_base(lse)));
      store(tile.sink + first, negated(product(share, load(delta))));
    }
    store(tile.lse + first, finite_base(lse));
    store(delta, zero());
  }
}

// weights[t][row] ← w = exp2(score − lse); d_scores ← by the product q·k · scale: w · (d_weight − delta) · slope. Both exactly 0 where a row
// does not see a token, whatever is computed there.
template <class Word, class Score>
inline void differentiate(const BackwardTile& tile, const Block& block) {
  constexpr Index stride = kBackwardRows / Word::kElements;
  const Vec scale = set1(Score::kChanges ? tile.scale : tile.scale * kLog2E);
  for (Index row = 0; row < tile.rows; row += kLanes) {
    const ScorePanel<Score, ByScore> changed(tile, block, row);
    PanelMask mask(tile, block, row);
    const Vec lse = load(tile.lse + row);
    const Vec delta = load(tile.delta + row);
    for (Index t0 = 0; t0 < block.last; t0 += Word::kElements) {
      Vec d_score[Word::kElements];
      GQA_UNROLL
      for (int e = 0; e < Word::kElements; ++e) {
        const Index t = t0 + e;
        const Vec seen = mask.next(t);
        const Vec product_of = load(tile.scores + t * kBackwardRows + row);
        const Vec away = sub(load(tile.d_weights + t * kBackwardRows + row), delta);
        Vec w, d;
        if constexpr (Score::kChanges) {
          if (t < block.first || t >= block.last) {
            w = d = zero();
          } else {
            const auto score = changed(t, product(product_of, scale));
            w = exp2_nonpositive(sub(score.value, lse));
            d = sloped(product(w, away), w, score.slope);
          }
        } else {
          w = exp2_nonpositive(fma(product_of, scale, negated(lse)));
          d = product(w, away);
        }
        w = select_negative(seen, w, zero());
        d_score[e] = select_negative(seen, d, zero());
        Word::put(tile.weights + t * stride, row, w);
        if constexpr (Word::kElements > 1) Word::put(tile.d_scores + t * stride, row, d_score[e]);
      }
      store(tile.d_score_steps + t0 / Word::kElements * kBackwardRows + row, Word::join(d_score));
    }
  }
}
