// SPDX-License-Identifier: Apache-2.0
// Scores of rows in panels of 16: a lane is a row. Part of qk.inl.

// acc += pieces [u · kPieces, (u + 1) · kPieces) of a panel of rows × T tokens.
template <class Dot, int T>
GQA_OP void add_pieces(const std::byte* q, const std::byte* const (&k)[T], Index u, Vec (&acc)[T * kPieces]) {
  typename Dot::Operand query[kPieces];
  GQA_UNROLL
  for (int v = 0; v < kPieces; ++v) query[v] = Dot::rows_at(q, u * kPieces + v);
  GQA_UNROLL
  for (int t = 0; t < T; ++t) {
    const auto key = Dot::pieces(k[t] + u * kPieces * Dot::kPieceBytes);
    GQA_UNROLL
    for (int v = 0; v < kPieces; ++v) acc[t * kPieces + v] = Dot::add(query[v], key, acc[t * kPieces + v]);
  }
}

template <int N>
GQA_OP void add_to(Vec (&a)[N], const Vec (&b)[N]) {
  GQA_UNROLL
  for (int i = 0; i < N; ++i) a[i] = add(a[i], b[i]);
}

// What kPieces lanes of a strip's accumulators hold, from lane · kPieces on, and those 8 behind them, added: side by side where there are
// registers for that.
inline constexpr Index kPieceLanes = kLanes / kPieces;
template <class Dot, int T>
GQA_OP void lane_sums(const std::byte* q, const std::byte* const (&k)[T], Index lane, Index steps,
                      Vec (&acc)[T * kPieces]) {
  Vec other[T * kPieces];
  GQA_UNROLL
  for (int i = 0; i < T * kPieces; ++i) acc[i] = other[i] = zero();
  for (Index u = lane; u < steps; u += kPieceLanes) {
    add_pieces<Dot, T>(q, k, u, acc);
    if (kRowsSideBySide && u + kPieceLanes / 2 < steps) add_pieces<Dot, T>(q, k, u + kPieceLanes / 2, other);
  }
#ifdef GQA_PARKS_SUMS
  const ParkedSums<T * kPieces> parked(acc);
#endif
  for (Index u = lane + kPieceLanes / 2; !kRowsSideBySide && u < steps; u += kPieceLanes)
    add_pieces<Dot, T>(q, k, u, other);
#ifdef GQA_PARKS_SUMS
  parked.back(acc);
#endif
  add_to(acc, other);
}

// A panel of 16 rows × T tokens. The tree of reduce_add: lanes i and i + 8, then i + 4; those sums wait in memory, because registers are
// for what is being added; then i + 2, i + 1. What is due is fetched in between, not all at once.
template <class Dot, int T>
GQA_OP void score_panel(const std::byte* q, const std::byte* const (&k)[T], Index steps, PrefetchCursor& ahead,
                        Index due, Vec (&sum)[T]) {
  constexpr int N = T * kPieces;
  constexpr int kWaiting = kPieceLanes / 4;
  static_assert(kWaiting == 2 || kWaiting == 4);
  static_assert(T % kWaiting == 0, "so many rows at a time are fetched");
  alignas(64) float waiting[kWaiting][N][kLanes];
  GQA_NO_UNROLL
  for (Index i = 0; i < kWaiting; ++i) {
    for (int n = 0; n < T / kWaiting && due > 0; ++n, --due) prefetch_row(ahead);
    Vec a[N], b[N];
    lane_sums<Dot, T>(q, k, i, steps, a);
    lane_sums<Dot, T>(q, k, i + kWaiting, steps, b);
    GQA_UNROLL
    for (int n = 0; n < N; ++n) store(waiting[i][n], add(a[n], b[n]));
  }
  GQA_UNROLL
  for (int t = 0; t < T; ++t) {
    Vec pieces[kPieces];
    GQA_UNROLL
    for (int v = 0; v < kPieces; ++v) {
      const auto at = [&](int i) { return load(waiting[i][t * kPieces + v]); };
      if constexpr (kWaiting == 2) pieces[v] = add(at(0), at(1));
      else pieces[v] = add(add(at(0), at(2)), add(at(1), at(3)));
    }
    sum[t] = join_pieces(pieces);
  }
}

// Up to kRowPanels panels of rows from `row` on, over the tokens of the block, T at a time of one panel after the other:
// [panel][token][row].
template <class Dot, int T>
GQA_KERNEL void score_panels(const QueryTile& tile, Index row, Index panels, const Block& block,
                             const Prefetcher& prefetcher) {
  const Index begin = block.first / kQkTokens * kQkTokens;
  PrefetchCursor ahead = prefetcher.cursor(row / (kRowPanels * kLanes), round_up(block.last - begin, kQkTokens));
  const Index row_bytes = tile.q_stride * Dot::kQueryBytes;
  const auto* const q = static_cast<const std::byte*>(tile.q) + row * row_bytes;
  constexpr Index step_bytes = kPieces * Dot::kPieceBytes;
  const Index steps = (key_bytes<Dot>(tile.head_dim) + step_bytes - 1) / step_bytes;
  for (Index t0 = begin; t0 < block.last; t0 += kQkTokens) {
    const bool even = evenly_spaced(block, t0, kQkTokens);
    const EvenRows keys{block.k + t0 * block.k_stride, block.k_stride};
    for (int s = 0; s < kQkTokens; s += T) {
      const std::byte* k[T];
      if (even) {
        GQA_UNROLL
        for (int t = 0; t < T; ++t) k[t] = keys.base + (s + t) * keys.stride;
      } else {
        GQA_UNROLL
        for (int t = 0; t < T; ++t) k[t] = block.k + key_offset(block, t0 + s + t);
      }
      Index due = ahead.due(s, T);
      float* to = tile.weights + row * kBlock + (t0 + s) * kLanes;
      for (Index g = 0; g < (kRowPanels > 1 ? panels : 1); ++g, to += kLanes * kBlock, due = 0) {
        Vec sum[T];
        score_panel<Dot, T>(q + g * kLanes * row_bytes, k, steps, ahead, due, sum);
        GQA_UNROLL
        for (int t = 0; t < T; ++t) store(to + t * kLanes, Dot::finish(sum[t], tile));
      }
    }
  }
}
