// SPDX-License-Identifier: Apache-2.0
// Scores of a few rows whose queries are at hand, in registers or the first-level cache: head dims 64, 128 and 256. Part of qk.inl.

// Sums of four rows and four tokens, a row a quarter, at their places in a unit; the last row's only if there is one.
template <class Sums>
GQA_OP void store_four(float* to, const Sums& sums, bool last) {
  store_quarter<0>(to, sums);
  store_quarter<1>(to + kBlock, sums);
  store_quarter<2>(to + 2 * kBlock, sums);
  if (last) store_quarter<3>(to + 3 * kBlock, sums);
}

// Sums of R rows and T tokens, whose lanes are not all added up: added, finished and stored. A fifth row's lie behind the others'.
template <class Dot, int R, Index T, std::size_t L>
GQA_OP void store_held(const QueryTile& tile, const float (&left)[L][kLanes], float* to, bool last) {
  constexpr Index F = R == 5 ? T : 0;
  // What reduce_sums does: first two rows, or tokens t and t + T / 2; or four rows, then four tokens.
  if constexpr (R >= 4) {
    GQA_UNROLL
    for (int t = 0; t < T; t += 4) {
      const typename Dot::Sum four[4] = {load(left[t]), load(left[t + 1]), load(left[t + 2]), load(left[t + 3])};
      store_four(to + t, Dot::finish(reduce_quarters(four), tile), last);
    }
  }
  if constexpr (R != 4) {
    typename Dot::Sum pair[R == 2 ? T : T / 2];
    GQA_UNROLL
    for (int i = 0; i < (R == 2 ? T : T / 2); ++i)
      pair[i] = R == 2 ? load(left[i]) : reduce_pair(load(left[F + i]), load(left[F + i + T / 2]));
    const auto sums = Dot::finish(reduce_pairs(pair), tile);
    store_first<T>(to + (R == 5 ? 4 * kBlock : 0), sums);
    if (R == 2) store_second<T>(to + kBlock, sums);
  }
}

// R rows with their queries at hand, N vectors of each, and evenly spaced keys, one at a time: memory is read by N load
// instructions, each of which steps from row to row. Processors' prefetching follows no more than a handful of those, and unrolled
// over tokens they would be too many. The last of R rows may be missing: it has the query before it, and no scores. Scores are added
// over lanes T tokens at a time.
template <class Dot, int R, int N>
GQA_KERNEL void score_held(const QueryTile& tile, Index row, EvenRows keys, Index t0, Index tokens,
                           const Prefetcher& prefetcher, Index strip) {
  constexpr Index T = kSideTokens<typename Dot::Key>;
  static_assert(kStripTokens % T == 0 && kQkTokens % T == 0, "`tokens` is a multiple of T");
  static_assert(R == 1 || R == 2 || R == 4 || R == 5, "sums of one, two or four rows are added over lanes together");
  const bool last = R != 4 || row + R <= tile.rows;
  const auto* q = static_cast<const std::byte*>(tile.q) + row * tile.q_stride * Dot::kQueryBytes;
  typename Dot::Operand query[R * N];
  GQA_UNROLL
  for (int i = 0; i < R * N; ++i) {
    const Index r = i / N + 1 < R || last ? i / N : i / N - 1;
    query[i] = Dot::query(q + (r * tile.q_stride + i % N * Dot::kDims) * Dot::kQueryBytes);
  }
  PrefetchCursor ahead = prefetcher.cursor(strip, tokens);
  const PrefetchPolicy::Pace pace = prefetcher.policy().pace;
  const bool waits = pace == PrefetchPolicy::Pace::with_sums && prefetcher.row_bytes() >= kPacedBytes;
  float* to = tile.weights + t0 / kBlock * tile.weight_floats + row * kBlock + t0 % kBlock;
  for (Index s = t0; s < t0 + tokens; to += T) {
    alignas(64) float left[R == 5 ? 2 * T : T][kLanes];
    GQA_NO_UNROLL
    for (Index t = 0; t < T; ++t, keys.base += keys.stride) {
      if (ahead.row != nullptr && ahead.is_due(s + t)) {
        if (waits && t > 0) ahead.row = once_known(ahead.row, left[t - 1][0]);
        prefetch_row<key_bytes<Dot>(N * Dot::kDims)>(ahead);
      }
      typename Dot::Sum acc[R];
      GQA_UNROLL
      for (int r = 0; r < R; ++r) acc[r] = zero();
      GQA_UNROLL
      for (int d = 0; d < N; ++d) {
        const auto key = Dot::key(keys.base, d * Dot::kDims);
        GQA_UNROLL
        for (int r = 0; r < R; ++r) acc[r] = Dot::add(query[r * N + d], key, acc[r]);
      }
      if constexpr (R == 1) store(left[t], acc[0]);
      else if constexpr (R >= 4)
        store(left[t], reduce_halves(reduce_pair(acc[0], acc[2]), reduce_pair(acc[1], acc[3])));
      else store(left[t], reduce_pair(acc[0], acc[1]));
      if constexpr (R == 5) store(left[T + t], acc[4]);
    }
    store_held<Dot, R, T>(tile, left, to, last);
    if (waits && ahead.row != nullptr) ahead.row = once_known(ahead.row, *to);
    if (pace == PrefetchPolicy::Pace::loads_also) keys.base = once_known(keys.base, *to);
    s += T;
    if (s % kBlock == 0) to += tile.weight_floats - kBlock;
  }
}

// The same, T tokens at a time, each vector of a query read once for all of them: a fifth less arithmetic, and too many load instructions
// for a processor's prefetching.
template <class Dot, int R, int N>
GQA_KERNEL void score_tiles(const QueryTile& tile, Index row, EvenRows keys, Index t0, Index tokens,
                            const Prefetcher& prefetcher, Index strip) {
  constexpr int T = kQkSums / R;
  static_assert(R == 4 && T == 4, "sums of four rows and four tokens are added over lanes together");
  static_assert(kStripTokens % T == 0 && kQkTokens % T == 0 && kPrefetchGrain % T == 0, "`tokens` is a multiple of T");
  const bool last = row + R <= tile.rows;
  const std::byte* q[R];
  GQA_UNROLL
  for (int r = 0; r < R; ++r) {
    const Index at = r + 1 < R || last ? row + r : row + r - 1;
    q[r] = static_cast<const std::byte*>(tile.q) + at * tile.q_stride * Dot::kQueryBytes;
  }
  PrefetchCursor ahead = prefetcher.cursor(strip, tokens);
  float* to = tile.weights + t0 / kBlock * tile.weight_floats + row * kBlock + t0 % kBlock;
  for (Index s = t0; s < t0 + tokens; to += T, keys.base += T * keys.stride) {
    prefetch_rows<key_bytes<Dot>(N * Dot::kDims)>(ahead, s, s + T);
    typename Dot::Sum acc[R * T];
    GQA_UNROLL
    for (int i = 0; i < R * T; ++i) acc[i] = zero();
    GQA_UNROLL
    for (int d = 0; d < N; ++d) {
      typename Dot::Operand key[T];
      GQA_UNROLL
      for (int t = 0; t < T; ++t) key[t] = Dot::key(keys.base + t * keys.stride, d * Dot::kDims);
      GQA_UNROLL
      for (int r = 0; r < R; ++r) {
        const auto query = Dot::query(q[r] + d * Dot::kDims * Dot::kQueryBytes);
        GQA_UNROLL
        for (int t = 0; t < T; ++t) acc[r * T + t] = Dot::add(query, key[t], acc[r * T + t]);
      }
    }
    alignas(64) float sums[R * T];
    reduce_sums(acc, sums);
    store_four(to, Dot::finish(load(sums), tile), last);
    s += T;
    if (s % kBlock == 0) to += tile.weight_floats - kBlock;
  }
}
// Whether that is used for `rows` rows, where keys are prefetched: for several strips, all but the first of which read the first-level
// cache, or for one whose rows are so short that there is something to be gained. Not for keys in f32, which memory limits.
template <class Dot>
inline constexpr bool kTiles = !kPlainRows<typename Dot::Key>;
GQA_OP bool in_tiles(const QueryTile& tile, Index rows, const Prefetcher& prefetcher) {
  return prefetcher.on() && (rows > kQkRows || (tile.head_dim <= 128 && prefetcher.heads() == 1));
}

// Rows from `row` on, R at a time, then fewer; `tokens` of them from t0 on. Several strips of rows take a few tokens in turn.
template <class Dot, int R, int N>
GQA_OP void score_strips_held(const QueryTile& tile, Index row, EvenRows keys, Index t0, Index tokens,
                              const Prefetcher& prefetcher, Index strip = 0) {
  if constexpr (R == 4 && kFiveRows<Dot, N>)
    if (tile.rows - row == 5) return score_held<Dot, 5, N>(tile, row, keys, t0, tokens, prefetcher, strip);
  constexpr int least = R < 4 ? R : R - 1;  // three rows are faster as four than as two and one
  if constexpr (R == 4 && kTiles<Dot>) {
    if (in_tiles(tile, tile.rows - row, prefetcher))
      for (; row + least <= tile.rows; row += R)
        score_tiles<Dot, R, N>(tile, row, keys, t0, tokens, prefetcher, strip++);
  }
  for (; row + least <= tile.rows; row += R) score_held<Dot, R, N>(tile, row, keys, t0, tokens, prefetcher, strip++);
  if constexpr (R > 1) score_strips_held<Dot, R / 2, N>(tile, row, keys, t0, tokens, prefetcher, strip);
}
template <class Dot, int R, int N>
GQA_OP void score_rows_held(const QueryTile& tile, Index row, EvenRows keys, Index t0, Index tokens,
                            Prefetcher& prefetcher) {
  const Index rows = tile.rows - row;
  const Index strips = kFiveRows<Dot, N> && rows == 5 ? 1 : count_strips<R>(R < 4 ? rows : rows + rows % 4 / 3);
  const Index few = strips == 1 || tokens < kStripTokens ? tokens : kStripTokens;
  for (Index count; tokens > 0; t0 += count, tokens -= count, keys.base += count * keys.stride) {
    count = few < tokens ? few : tokens;
    if (prefetcher.on()) {
      count = prefetcher.end_of_stretch(0, count);
      prefetcher.share(strips, count);
    }
    score_strips_held<Dot, R, N>(tile, row, keys, t0, count, prefetcher);
    if (prefetcher.on()) end_stretch(prefetcher, count, count);
  }
}
