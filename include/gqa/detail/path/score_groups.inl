// SPDX-License-Identifier: Apache-2.0
// Scores of rows in groups of 16: a lane is a row. Part of scores.inl.

// acc += units [u · kUnits, (u + 1) · kUnits) of a group of rows × T tokens.
template <class Dot, int T>
GQA_OP void add_units(const std::byte* q, const std::byte* const (&k)[T], Index u, Vec (&acc)[T * kUnits]) {
  typename Dot::Operand query[kUnits];
  GQA_UNROLL
  for (int v = 0; v < kUnits; ++v) query[v] = Dot::rows_at(q, u * kUnits + v);
  GQA_UNROLL
  for (int t = 0; t < T; ++t) {
    const auto key = Dot::units(k[t] + u * kUnits * Dot::kUnitBytes);
    GQA_UNROLL
    for (int v = 0; v < kUnits; ++v) acc[t * kUnits + v] = Dot::add(query[v], key, acc[t * kUnits + v]);
  }
}

template <int N>
GQA_OP void add_to(Vec (&a)[N], const Vec (&b)[N]) {
  GQA_UNROLL
  for (int i = 0; i < N; ++i) a[i] = add(a[i], b[i]);
}

// What kUnits lanes of a strip's accumulators hold, from lane · kUnits on, and those 8 behind them, added: side by side where there are
// registers for that.
inline constexpr Index kUnitLanes = kLanes / kUnits;
template <class Dot, int T>
GQA_OP void lane_sums(const std::byte* q, const std::byte* const (&k)[T], Index lane, Index steps,
                      Vec (&acc)[T * kUnits]) {
  Vec other[T * kUnits];
  GQA_UNROLL
  for (int i = 0; i < T * kUnits; ++i) acc[i] = other[i] = zero();
  for (Index u = lane; u < steps; u += kUnitLanes) {
    add_units<Dot, T>(q, k, u, acc);
    if (kRowsSideBySide && u + kUnitLanes / 2 < steps) add_units<Dot, T>(q, k, u + kUnitLanes / 2, other);
  }
  for (Index u = lane + kUnitLanes / 2; !kRowsSideBySide && u < steps; u += kUnitLanes)
    add_units<Dot, T>(q, k, u, other);
  add_to(acc, other);
}

// A group of 16 rows × T tokens. The tree of reduce_add: lanes i and i + 8, then i + 4; those sums wait in memory, because registers are
// for what is being added; then i + 2, i + 1. What is due is fetched in between, not all at once.
template <class Dot, int T>
GQA_OP void score_group(const std::byte* q, const std::byte* const (&k)[T], Index steps, PrefetchCursor& ahead,
                        Index due, Vec (&sum)[T]) {
  constexpr int N = T * kUnits;
  constexpr int kWaiting = kUnitLanes / 4;
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
    Vec units[kUnits];
    GQA_UNROLL
    for (int v = 0; v < kUnits; ++v) {
      const auto at = [&](int i) { return load(waiting[i][t * kUnits + v]); };
      if constexpr (kWaiting == 2) units[v] = add(at(0), at(1));
      else units[v] = add(add(at(0), at(2)), add(at(1), at(3)));
    }
    sum[t] = join_units(units);
  }
}

// Up to kRowGroups groups of rows from `row` on, over the tokens of the block, T at a time of one group after the other:
// [group][token][row].
template <class Dot, int T>
GQA_KERNEL void score_groups(const RowTile& tile, Index row, Index groups, const Block& block,
                             const Prefetcher& prefetcher) {
  const Index begin = block.first / kTileTokens * kTileTokens;
  PrefetchCursor ahead = prefetcher.cursor(row / (kRowGroups * kLanes), round_up(block.last - begin, kTileTokens));
  const Index row_bytes = tile.q_stride * Dot::kQueryBytes;
  const auto* const q = static_cast<const std::byte*>(tile.q) + row * row_bytes;
  constexpr Index step_bytes = kUnits * Dot::kUnitBytes;
  const Index steps = (key_bytes<Dot>(tile.head_dim) + step_bytes - 1) / step_bytes;
  for (Index t0 = begin; t0 < block.last; t0 += kTileTokens) {
    const bool even = evenly_spaced(block, t0, kTileTokens);
    const EvenRows keys{block.k + t0 * block.k_stride, block.k_stride};
    for (int s = 0; s < kTileTokens; s += T) {
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
      for (Index g = 0; g < (kRowGroups > 1 ? groups : 1); ++g, to += kLanes * kBlock, due = 0) {
        Vec sum[T];
        score_group<Dot, T>(q + g * kLanes * row_bytes, k, steps, ahead, due, sum);
        GQA_UNROLL
        for (int t = 0; t < T; ++t) store(to + t * kLanes, Dot::finish(sum[t], tile));
      }
    }
  }
}
