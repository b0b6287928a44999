// SPDX-License-Identifier: Apache-2.0
// Scores of rows in groups of 16: a lane is a row. Part of scores.inl.

// acc += unit u of V groups of rows × T tokens.
template <class Dot, int V, int T>
GQA_OP void add_unit(const std::byte* q, Index group_bytes, const std::byte* const (&k)[T], Index u,
                     Vec (&acc)[V * T]) {
  typename Dot::Operand query[V];
  GQA_UNROLL
  for (int v = 0; v < V; ++v) query[v] = Dot::rows_at(q + v * group_bytes, u);
  GQA_UNROLL
  for (int t = 0; t < T; ++t) {
    const auto key = Dot::one(k[t] + u * Dot::kUnitBytes);
    GQA_UNROLL
    for (int v = 0; v < V; ++v) acc[t * V + v] = Dot::add(query[v], key, acc[t * V + v]);
  }
}

template <int N>
GQA_OP void add_to(Vec (&a)[N], const Vec (&b)[N]) {
  GQA_UNROLL
  for (int i = 0; i < N; ++i) a[i] = add(a[i], b[i]);
}

// What lanes `lane` and `lane` + 8 of a strip's accumulators hold, added: side by side where there are registers for both.
template <class Dot, int V, int T>
GQA_OP void lane_sums(const std::byte* q, Index group_bytes, const std::byte* const (&k)[T], Index lane, Index units,
                      Vec (&acc)[V * T]) {
  Vec other[V * T];
  GQA_UNROLL
  for (int i = 0; i < V * T; ++i) acc[i] = other[i] = zero();
  for (Index u = lane; u < units; u += kLanes) {
    add_unit<Dot, V, T>(q, group_bytes, k, u, acc);
    if (kRowsSideBySide && u + kLanes / 2 < units) add_unit<Dot, V, T>(q, group_bytes, k, u + kLanes / 2, other);
  }
  for (Index u = lane + kLanes / 2; !kRowsSideBySide && u < units; u += kLanes)
    add_unit<Dot, V, T>(q, group_bytes, k, u, other);
  add_to(acc, other);
}

// V groups of 16 rows × T tokens. The tree of reduce_add: lanes i and i + 8, then i + 4; those four sums wait in memory, because
// registers are for what is being added. What is due is asked for in between, not all at once.
template <class Dot, int V, int T>
GQA_OP void score_group(const std::byte* q, Index group_bytes, const std::byte* const (&k)[T], Index units, Asked asked,
                        Vec (&sum)[V * T]) {
  alignas(64) float quarter[4][V * T][kLanes];
  GQA_NO_UNROLL
  for (Index i = 0; i < 4; ++i) {
    for (int n = 0; n < T / 4; ++n) ask_next(asked);
    Vec a[V * T], b[V * T];
    lane_sums<Dot, V, T>(q, group_bytes, k, i, units, a);
    lane_sums<Dot, V, T>(q, group_bytes, k, i + 4, units, b);
    GQA_UNROLL
    for (int n = 0; n < V * T; ++n) store(quarter[i][n], add(a[n], b[n]));
  }
  GQA_UNROLL
  for (int n = 0; n < V * T; ++n)
    sum[n] = add(add(load(quarter[0][n]), load(quarter[2][n])), add(load(quarter[1][n]), load(quarter[3][n])));
}

// V groups of rows from `row` on, over the tokens of the block: [group][token][row].
template <class Dot, int V>
GQA_KERNEL void score_groups(const RowTile& tile, Index row, const Block& block, const Asker& asker) {
  constexpr int T = kRowTokens / V;
  const Index begin = block.first / kTileTokens * kTileTokens;
  Asked asked = asker.stream.part(row / (kRowGroups * kLanes), round_up(block.last - begin, kTileTokens));
  const Index row_bytes = tile.q_stride * Dot::kQueryBytes;
  const auto* q = static_cast<const std::byte*>(tile.q) + row * row_bytes;
  const Index units = (tile.head_dim * Dot::kKeyBytes + Dot::kUnitBytes - 1) / Dot::kUnitBytes;
  for (Index t0 = begin; t0 < block.last; t0 += kTileTokens) {
    const bool even = evenly_spaced(block, t0, kTileTokens);
    const EvenRows keys{block.k + t0 * block.k_stride, block.k_stride};
    for (int s = 0; s < kTileTokens; s += T) {
      if (asker.ahead != nullptr) asker.ahead->done(V * kLanes * T);
      Vec sum[V * T];
      const std::byte* k[T];
      if (even) {
        GQA_UNROLL
        for (int t = 0; t < T; ++t) k[t] = keys.base + (s + t) * keys.stride;
      } else {
        GQA_UNROLL
        for (int t = 0; t < T; ++t) k[t] = block.k + key_offset(block, t0 + s + t);
      }
      score_group<Dot, V, T>(q, kLanes * row_bytes, k, units, asked.due(s, T), sum);
      GQA_UNROLL
      for (int i = 0; i < V * T; ++i)
        store(tile.weights + (row + i % V * kLanes) * kBlock + (t0 + s + i / V) * kLanes, Dot::finish(sum[i], tile));
    }
  }
}
