// SPDX-License-Identifier: Apache-2.0
// Scores of one block: rows × kBlock dot products. Part of kernel.inl.

// Rows from which a 16-bit block is widened to f32 once, instead of in every tile that reads it.
inline constexpr Index kWidenRows = 16;

// Where token t's row starts.
struct OffsetRows {
  const std::byte* base;
  const Index* offset;
  GQA_OP const std::byte* operator()(Index t) const { return base + offset[t]; }
};

// Rows `from` as f32 in staging, zeros up to a whole vector; `offset` tells where, for tokens [first, last).
template <class Codec>
GQA_OP void widen_rows(const OffsetRows& from, std::byte* staging, Index width, Index first, Index last,
                       Index (&offset)[kBlock]) {
  const Index stride = round_up(width, kLanes);
  float* out = reinterpret_cast<float*>(staging);
  for (Index t = first; t < last; ++t) {
    const std::byte* row = from(t);
    offset[t] = t * stride * Index{sizeof(float)};
    Index d = 0;
    for (; d + kLanes <= width; d += kLanes) store(out + t * stride + d, load_as<Codec>(row + d * Codec::bytes));
    if (d < width) store(out + t * stride + d, load_part<Codec>(row + d * Codec::bytes, width - d));
  }
}

// While tokens [t0, t1) are worked on, asks for the same tokens of the rows that come next: values while it is the turn of the
// keys, the next block's keys while it is the turn of the values. The processor's own prefetching does not follow across the tokens
// of a tile; a stage ahead is far enough to hide memory, and short enough for the second-level cache.
GQA_OP void prefetch_rows(const Upcoming& next, Index t0, Index t1, Index bytes) {
  if (t0 < next.first) t0 = next.first;
  if (t1 > next.last) t1 = next.last;
  for (Index t = t0; t < t1; ++t) {
    const std::byte* row = next.data + next.offset[t];
    Index line = 0;
    for (; line + 256 <= bytes; line += 256) {
      prefetch(row + line);
      prefetch(row + line + 64);
      prefetch(row + line + 128);
      prefetch(row + line + 192);
    }
    for (; line < bytes; line += 64) prefetch(row + line);
  }
}

// A tile of R rows × T tokens of scores: R·T accumulators, each lane a partial sum over d; reduced together at the end.
template <class Codec, int R>
GQA_OP void score_strip(const RowTile& tile, Index row, const OffsetRows& rows, const Block& block) {
  constexpr int T = kScoreTile / R;
  constexpr int G = T < 4 ? T : 4;
  const float* q = static_cast<const float*>(tile.q) + row * tile.q_stride;
  float* out = tile.weights + row * kBlock;
  const Index whole = tile.head_dim / kLanes * kLanes;
  const Index rest = tile.head_dim - whole;
  const Index first = block.first;
  const Index last = block.last;
  for (Index t0 = first / T * T; t0 < last; t0 += T) {
    if (row == 0)
      prefetch_rows({block.v, block.v_offset, first, last}, t0, t0 + T, tile.value_dim * Codec::bytes);
    Vec acc[kScoreTile];
    GQA_UNROLL
    for (int i = 0; i < kScoreTile; ++i) acc[i] = zero();
    GQA_UNROLL
    for (int g = 0; g < T; g += G) {  // as many tokens at a time as there are registers for their addresses
      const std::byte* k[G];
      GQA_UNROLL
      for (int t = 0; t < G; ++t) {
        const Index token = t0 + g + t;
        k[t] = rows(token < first ? first : token < last ? token : last - 1);
      }
      for (Index d = 0; d < whole; d += kLanes) {
        Vec query[R];
        GQA_UNROLL
        for (int r = 0; r < R; ++r) query[r] = load(q + r * tile.q_stride + d);
        GQA_UNROLL
        for (int t = 0; t < G; ++t) {
          const Vec key = load_as<Codec>(k[t] + d * Codec::bytes);
          GQA_UNROLL
          for (int r = 0; r < R; ++r) acc[r * T + g + t] = fma(query[r], key, acc[r * T + g + t]);
        }
      }
      if (rest != 0) {
        GQA_UNROLL
        for (int t = 0; t < G; ++t) {
          const Vec key = load_part<Codec>(k[t] + whole * Codec::bytes, rest);
          GQA_UNROLL
          for (int r = 0; r < R; ++r)
            acc[r * T + g + t] = fma(load(q + r * tile.q_stride + whole), key, acc[r * T + g + t]);
        }
      }
    }
    alignas(64) float sums[kScoreTile];
    reduce_tile(acc, sums);
    GQA_UNROLL
    for (int r = 0; r < R; ++r) __builtin_memcpy(out + r * kBlock + t0, sums + r * T, T * sizeof(float));
  }
}

template <class Codec, int R>
GQA_OP void score_rows(const RowTile& tile, Index& row, const OffsetRows& rows, const Block& block) {
  for (; row + R <= tile.rows; row += R) score_strip<Codec, R>(tile, row, rows, block);
  if constexpr (R > 1) score_rows<Codec, R / 2>(tile, row, rows, block);
}

// weights[row][t] ← q[row] · k[t] for t in [first, last); q carries the scale.
template <class Codec>
inline void scores(const RowTile& tile, const Block& block) {
  if constexpr (Codec::bytes != 4) {
    if (tile.rows > kWidenRows) {
      Index offset[kBlock];
      widen_rows<Codec>({block.k, block.k_offset}, tile.staging, tile.head_dim, block.first, block.last, offset);
      Block wide = block;
      wide.k = tile.staging;
      wide.k_offset = offset;
      return scores<F32>(tile, wide);
    }
  }
  Index row = 0;
  score_rows<Codec, kScoreRows>(tile, row, {block.k, block.k_offset}, block);
}
