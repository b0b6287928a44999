// SPDX-License-Identifier: Apache-2.0
// Outputs of values that are integers: the weights of a block rounded, then their products. Part of ints.inl.

// A row's weights of a block, times the values' scales, as integers, in place.
GQA_OP void round_weights(const float* weights, const float (&scales)[kBlock], std::uint64_t visible, std::byte* to) {
  constexpr int N = kBlock / kLanes;
  Vec x[N];
  Vec largest = zero();
  GQA_UNROLL
  for (int i = 0; i < N; ++i) {
    x[i] = select(visible >> (i * kLanes), mul(load(weights + i * kLanes), load(scales + i * kLanes)), zero());
    largest = larger_bits(magnitudes(x[i]), largest);
  }
  const Rounding rounding = rounding_of(largest, kMostWeight);
  Vec sum = zero();
  GQA_UNROLL
  for (int i = 0; i < N; ++i) round_integers(x[i], set1(rounding.factor), to, kBlock, i * kLanes, sum);
  finish_row(to, kBlock, rounding.scale, sum);
}
// A panel of rows, a lane a row: [token][row] of floats → [group][row], kPanelGroup bytes a group; behind them scales, and sums + kRounding.
inline constexpr Index kPanelGroup = kGroup * kLanes * 2;
inline constexpr Index kPanelTail = kBlock / kGroup * kPanelGroup;
GQA_KERNEL void round_panel(const QueryTile& tile, const Block& block, Index row, const float (&scales)[kBlock]) {
  float* const weights = tile.weights + row * kBlock;
  auto* const to = reinterpret_cast<std::byte*>(weights);
  alignas(64) std::uint32_t half[2][kLanes] = {};
  for (Index r = row; r < row + kLanes && r < tile.rows; ++r) {
    const std::uint64_t visible = block.visible == nullptr ? kEveryToken : block.visible[r];
    half[0][r - row] = static_cast<std::uint32_t>(visible);
    half[1][r - row] = static_cast<std::uint32_t>(visible >> 32);
  }
  Vec largest = zero();
  for (Index t = kBlock; t > 0;) {
    Vec bits = load(reinterpret_cast<const float*>(half[t / (kBlock / 2) - 1]));
    for (Index i = 0; i < kBlock / 2; ++i, bits = shift_left<1>(bits)) {
      float* const at = weights + --t * kLanes;
      const Vec x = select_negative(bits, mul(load(at), set1(scales[t])), zero());
      store(at, x);
      largest = larger_bits(magnitudes(x), largest);
    }
  }
  const Vec most = set1(kMostWeight);
  const Vec least = set1(0x1p-100f);
  const Vec factor = zero_below(largest, least, div(most, largest));
  const Vec scale =
      add(zero_below(largest, least, div(largest, most)), sub(largest, largest));  // NaN if it is not finite
  Vec sum = zero();
  for (Index t = 0; t < kBlock; t += kGroup) {
    Vec rounded[kGroup];
    GQA_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      rounded[i] = fma(load(weights + (t + i) * kLanes), factor, set1(kRounding));
      sum = add(sum, sub(rounded[i], set1(kRounding)));
    }
    put_panel_integers(to + t / kGroup * kPanelGroup, rounded);
  }
  store(typed<float>(to + kPanelTail), scale);
  store(typed<float>(to + kPanelTail) + kLanes, add(sum, set1(kRounding)));
}
GQA_OP void round_block_weights(const QueryTile& tile, const Block& block, const float (&scales)[kBlock]) {
  const Index in_panels = rows_in_panels(tile.rows);
  for (Index row = 0; row < in_panels; row += kLanes) round_panel(tile, block, row, scales);
  for (Index row = in_panels; row < tile.rows; ++row) {
    float* const weights = tile.weights + row * kBlock;
    round_weights(weights, scales, block.visible == nullptr ? kEveryToken : block.visible[row],
                  reinterpret_cast<std::byte*>(weights));
  }
}
// R rows of weights from `row` on, in a panel or not.
template <int R>
GQA_OP IntegerRows<R> integer_weights(const QueryTile& tile, Index row, IntegerRow (&tail)[R]) {
  if (row >= rows_in_panels(tile.rows)) {
    IntegerRows<R> rows{{}, kGroupStep, other_half(kBlock)};
    GQA_UNROLL
    for (int r = 0; r < R; ++r) {
      rows.first[r] = reinterpret_cast<const std::byte*>(tile.weights + (row + r) * kBlock);
      tail[r] = integer_row(rows.first[r], kBlock);
    }
    return rows;
  }
  IntegerRows<R> rows{{}, kPanelGroup, kPanelGroup / 2};
  const auto* const panel = reinterpret_cast<const std::byte*>(tile.weights + row / kLanes * kLanes * kBlock);
  GQA_UNROLL
  for (int r = 0; r < R; ++r) {
    const Index lane = (row + r) % kLanes;
    const std::byte* const behind = panel + kPanelTail + lane * Index{sizeof(float)};
    rows.first[r] = panel + lane * kPanelRowBytes;
    __builtin_memcpy(&tail[r].scale, behind, sizeof(float));
    std::uint32_t bits;
    __builtin_memcpy(&bits, behind + kLanes * sizeof(float), sizeof bits);
    tail[r].sum = static_cast<std::int32_t>(bits - 0x4b400000u);
  }
  return rows;
}

// What values are to be written to outputs with: by how much they are too large, and how far apart vectors are, see kSpread.
struct StagedValues {
  Index excess;
  Index spread;
  // Whole vectors, those that integer_sums takes together, and whole blocks of 32.
  GQA_OP Index dims(Index value_dim) const {
    return round_up(value_dim, kIntegerVectors > 2 ? kIntegerVectors * spread : 2 * kLanes);
  }
  // The first dim of vectors from number `lane` / 16 on.
  GQA_OP Index first_dim(Index lane) const {
    constexpr Index together = kIntegerVectors * kLanes;
    if (kIntegerVectors == 1 || spread == kLanes) return lane;
    return lane / (together * 2) * (together * 2) + lane / together % 2 * kLanes;
  }
};
// Outputs of R rows, over groups [first, last) of tokens, values in staging.
template <int R>
GQA_KERNEL void add_integers(const QueryTile& tile, Index row, StagedValues values, Index first, Index last,
                             RowsAhead& ahead) {
  constexpr int C = kIntegerVectors;
  const Index dims = values.dims(tile.value_dim);
  const Index stride = dims * kGroupBytes;
  IntegerRow tail[R];
  const IntegerRows<R> p = integer_weights<R>(tile, row, tail);
  for (Index lane = 0; lane < dims; lane += C * kLanes) {
    const Index d = values.first_dim(lane);
    if (d >= tile.value_dim) continue;
    IntegerSums acc[R * C];
    integer_sums<R, C>(p, first, tile.staging + first * stride + lane * kLaneBytes, last - first, stride, ahead, acc);
    GQA_UNROLL
    for (int r = 0; r < R; ++r) {
      float* const o = tile.o + (row + r) * tile.o_stride + d;
      const Vec alpha = set1(tile.alpha[row + r]);
      const Vec scale = set1(tail[r].scale);
      const std::int32_t constant = excess_of(values.excess, tail[r].sum);
      IntegerSums sums[C];
      GQA_UNROLL
      for (int c = 0; c < C; ++c) sums[c] = acc[r * C + c];
      natural_order(sums);
      GQA_UNROLL
      for (int c = 0; c < C; ++c) {
        float* const at = o + c * values.spread;
        if (C == 1 || d + c * values.spread < tile.o_stride)
          store(at, fma(load(at), alpha, mul(integers_as_floats(sums[c], constant), scale)));
      }
    }
  }
  ahead.rest();
}
template <int R>
GQA_OP void add_integer_rows(const QueryTile& tile, Index row, const StagedValues& values, Index first, Index last,
                             Index tokens, const Prefetcher& prefetcher, Index strip) {
  for (; row + R <= tile.rows; row += R) {
    RowsAhead ahead(prefetcher, ++strip, tokens);
    add_integers<R>(tile, row, values, first, last, ahead);
  }
  if constexpr (R > 1) add_integer_rows<R / 2>(tile, row, values, first, last, tokens, prefetcher, strip);
}

// One unit: its weights as integers, its values to staging, then its rows. Tokens that it lacks borrow a row that it has.
template <class Codec>
GQA_KERNEL void add_integer_block(const QueryTile& tile, const Block& block, Prefetcher& prefetcher) {
  alignas(64) float scales[kBlock];
  gather_scales(block.scales->v, block.first, block.last, scales);
  round_block_weights(tile, block, scales);
  const Index first = block.first / kGroup;
  const Index last = (block.last + kGroup - 1) / kGroup;
  const Index tokens = round_up(last * kGroup, kLanes) - first * kGroup / kLanes * kLanes;
  if (prefetcher.on()) prefetcher.share(1 + integer_strips(tile.rows), tokens);
  PrefetchCursor ahead = prefetcher.cursor(0, tokens);
  constexpr StagedValues values{kExcess<Codec>, kSpread<Codec>};
  const Index stride = values.dims(tile.value_dim) * kGroupBytes;
  const Index row_bytes = KvType(Codec::type).row_bytes(tile.value_dim);
  const bool touch = prefetcher.policy().touch;
  // In locals: what is written to staging might be any of them.
  const Index dim = tile.value_dim;
  const std::byte* const v = block.v;
  const Index v_stride = block.v_stride;
  const Index from = v_stride == 0 ? kBlock : block.first;
  const Index to = block.last;
  std::byte* staged = tile.staging + first * stride;
  for (Index t = first * kGroup; t < last * kGroup; t += kGroup, staged += stride) {
    prefetch_rows<kUsualBytes<Codec>>(ahead, t - first * kGroup, t - first * kGroup + kGroup);
    const std::byte* rows[kGroup];
    if (t >= from && t + kGroup <= to) {
      rows[0] = v + t * v_stride;
      GQA_UNROLL
      for (int i = 1; i < kGroup; ++i) rows[i] = rows[i - 1] + v_stride;
    } else {
      GQA_NO_UNROLL
      for (Index i = 0; i < kGroup; ++i) {
        const Index token = t + i < block.first ? block.first : t + i < to ? t + i : to - 1;
        rows[i] = v + block.v_offset[token];
      }
    }
    if (touch)
      for (const std::byte* const row : rows) touch_row(row, row_bytes);
    stage_value_group<Codec>(rows, dim, staged, stride);
  }
  add_integer_rows<kIntegerRows>(tile, 0, values, first, last, tokens, prefetcher, 0);
  if (prefetcher.on()) end_stretch(prefetcher, tokens, block.last - block.first);
}
template <class Codec>
inline void integer_accumulate(const QueryTile& tile, const Stage& stage, Prefetcher& prefetcher) {
  begin_stretches(prefetcher);
  for (Index b = 0; b < stage.blocks; ++b)
    for (Index j = 0; j < stage.heads; ++j)
      add_integer_block<Codec>(unit_tile(tile, stage, b, j), stage.units[b * stage.heads + j], prefetcher);
}
