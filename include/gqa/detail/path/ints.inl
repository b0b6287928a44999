// SPDX-License-Identifier: Apache-2.0
// Scores and outputs of keys and values that are integers with one f32 scale a row, computed with the integers themselves. Part of every
// path, after its kernels, or of a namespace of its own; the path says how integers lie, and how their products are added (Product sums).
//
// Queries, and the weights of a block, are rounded to 16-bit integers: of a row x, with largest = max |x| and most = 32639 (halved for every
// doubling of head_dim beyond 512),
//
//   n[i] = x[i] · (most / largest), to nearest, ties to even (one fused multiply-add with 1.5 · 2^23)      scale = largest / most
//
// zeros where largest < 2^-100, and scale NaN where an x is NaN or infinite. Sums of products are exact, below 2^31, so that neither their
// order nor who adds them changes a bit:
//
//   score[t]  = float(Σ_d q[d] · k[t][d]) · (q.scale · k_scale[t])
//   o[d]      = fma(o[d], alpha, float(Σ_t p[t] · v[t][d]) · p.scale)     p: weight[t] · v_scale[t] of the block's visible tokens, else 0
//
// Products are added in groups of 4 or 8 elements: of dims in scores, where a lane is a token, of tokens in outputs, where a lane is a dim. So
// one inner loop, integer_sums, serves both: rows × vectors of 16 lanes. Keys and values are put in that order in staging, a block at a time.
//
//   IntegerSums, integer_none               sums of 16 lanes, and such of nothing
//   kIntegerRows, kIntegerVectors           rows and vectors that integer_sums takes at a time
//   kGroup                                  elements of a group
//   kGroupBytes, kLaneBytes                 bytes of a lane's group in staging, and from a lane to the next
//   kSpread<Codec>                          from a vector of outputs to the next of those that natural_order leaves
//   kExcess<Codec>                          by how much staged numbers are too large
//   put_integers                            16 lanes of 1.5 · 2^23 + n of a row → the path's order
//   put_panel_integers                      of kGroup tokens, a lane a row → the same rows' groups side by side
//   kGroupStep, other_half, kPanelRowBytes  where those are: of a row by itself, and in a panel
//   larger_bits                             the larger of the lanes' bits, as signed integers
//   stage_key_tokens, stage_value_group     16 tokens' keys, kGroup tokens' values → staging, keys to staged_keys
//   integer_sums                            acc of R rows and C vectors, over some groups of values
//   key_sums                                sums of R rows and 16 tokens
//   natural_order                           kIntegerVectors vectors of outputs, as they lie in staging → as dims follow each other
//   integers_as_floats                      sums + a constant, as floats

inline constexpr float kRounding = 0x1.8p23f;
inline constexpr float kMostWeight = 32639.0f;  // 127 · 256 + 127: two signed bytes
GQA_OP float most_query(Index head_dim) {
  int most = 32639;
  for (Index dims = 512; dims < head_dim; dims *= 2) most /= 2;
  return static_cast<float>(most);
}

// What stands behind a row's integers.
struct IntegerRow {
  float scale;
  std::int32_t sum;  // of the integers
};
GQA_OP IntegerRow integer_row(const std::byte* row, Index elements) {
  IntegerRow tail;
  __builtin_memcpy(&tail, row + elements * 2, sizeof tail);
  return tail;
}

// What the excess of staged numbers adds to a row's sums, to be taken away. Of rows whose scale is NaN `sum` is anything.
GQA_OP std::int32_t excess_of(Index excess, std::int32_t sum) {
  return static_cast<std::int32_t>(0u - static_cast<std::uint32_t>(excess) * static_cast<std::uint32_t>(sum));
}

// R rows of integers: their first groups, and how far it is from a group to the next, and from what a group begins with to what the path
// takes next of it.
template <int R>
struct IntegerRows {
  const std::byte* first[R];
  Index step;
  Index other;
};

struct Rounding {
  float scale;
  float factor;
};
// `largest`: lanes of magnitudes.
GQA_OP Rounding rounding_of(const Vec& largest, float most) {
  if (any_nonfinite(largest)) return {__builtin_nanf(""), 0.0f};
  const float x = reduce_max(largest);
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  if (bits < 0x0d800000u) return {0.0f, 0.0f};  // 2^-100
  return {x / most, most / x};
}
GQA_OP Vec magnitudes(const Vec& a) { return shift_right<1>(shift_left<1>(a)); }
// 16 integers of x · factor from element i on, which are added to sum; x that is no finite number has a scale of NaN, whatever it becomes.
GQA_OP void round_integers(const Vec& x, const Vec& factor, std::byte* row, Index elements, Index i, Vec& sum) {
  const Vec rounded = fma(x, factor, set1(kRounding));
  put_integers(row, elements, i, rounded);
  sum = add(sum, sub(rounded, set1(kRounding)));
}
// Sums of integers below 2^24 in magnitude are exact in f32.
GQA_OP void finish_row(std::byte* row, Index elements, float scale, const Vec& sum) {
  const bool finite = scale == scale;
  const IntegerRow tail{scale, finite ? static_cast<std::int32_t>(reduce_add(sum)) : 0};
  __builtin_memcpy(row + elements * 2, &tail, sizeof tail);
}

// tile.q ← queries, row by row: integers in the first half of a row's room.
inline void pack_integers(const QueryTile& tile, const QuerySource& source) {
  const float most = most_query(tile.head_dim);
  auto* const x = typed<float>(tile.staging);
  prefetch_queries(tile, source, 0, kLanes);
  for (Index row = 0; row < tile.rows; ++row) {
    if (row % kLanes == 0) prefetch_queries(tile, source, row + kLanes, row + 2 * kLanes);
    std::byte* const to = static_cast<std::byte*>(tile.q) + row * tile.q_stride * Index{sizeof(float)};
    const Index dims = round_up(tile.head_dim, kLanes);
    pack_query(tile, source, row, x);
    for (Index d = dims; d < tile.q_stride; d += kLanes) store(x + d, zero());
    Vec largest = zero();
    for (Index d = 0; d < dims; d += kLanes) largest = larger_bits(magnitudes(load(x + d)), largest);
    const Rounding rounding = rounding_of(largest, most);
    Vec sum = zero();
    for (Index d = 0; d < tile.q_stride; d += kLanes)
      round_integers(load(x + d), set1(rounding.factor), to, tile.q_stride, d, sum);
    finish_row(to, tile.q_stride, rounding.scale, sum);
  }
}

// to[t] ← the scales of tokens [first, last), zeros around them.
GQA_OP void gather_scales(const RowSpan& scales, Index first, Index last, float (&to)[kBlock]) {
  if (scales.stride == sizeof(float) && first == 0 && last == kBlock) {
    GQA_UNROLL
    for (Index t = 0; t < kBlock; t += kLanes) store(to + t, load(typed<const float>(scales.base) + t));
    return;
  }
  for (Index t = 0; t < kBlock; t += kLanes) store(to + t, zero());
  for (Index t = first; t < last; ++t) __builtin_memcpy(to + t, scales.row(t), sizeof(float));
}

// Bytes of the rows that are fetched most often.
template <class Codec>
inline constexpr Index kUsualBytes = KvType(Codec::type).row_bytes(128);

// Rows of keys and values that are fetched while sums are added, one for each group.
struct RowsAhead {
  PrefetchCursor cursor;
  Index due;
  GQA_OP RowsAhead(const Prefetcher& prefetcher, Index strip, Index tokens)
      : cursor(prefetcher.cursor(strip, tokens)), due(cursor.due(0, tokens)) {}
  GQA_OP void step() {
    if (due > 0) {
      --due;
      prefetch_row<128>(cursor);
    }
  }
  GQA_OP void rest() {
    while (due > 0) step();
  }
};
GQA_OP Index integer_strips(Index rows) { return rows / kIntegerRows + (rows % kIntegerRows + 1) / 2; }

// Sixteen rows of a block: [row][token] → [token][row].
GQA_OP void turn_to_panel(const float (&rows)[kLanes][kBlock], float* panel) {
  GQA_NO_UNROLL
  for (Index t = 0; t < kBlock; t += kLanes) {
    Vec part[kLanes];
    GQA_UNROLL
    for (int r = 0; r < kLanes; ++r) part[r] = load(rows[r] + t);
    transpose(part);
    GQA_UNROLL
    for (int i = 0; i < kLanes; ++i) store(panel + (t + i) * kLanes, part[i]);
  }
}
// Scores of R rows: of the tokens of [begin, end), multiples of 16, keys in staging.
template <int R>
GQA_KERNEL void score_integers(const QueryTile& tile, Index row, Index excess, const float* scales, Index begin,
                               Index end, float* to, RowsAhead& ahead) {
  IntegerRows<R> q{{}, kGroupStep, other_half(tile.q_stride)};
  IntegerRow tail[R];
  GQA_UNROLL
  for (int r = 0; r < R; ++r) {
    q.first[r] = static_cast<const std::byte*>(tile.q) + (row + r) * tile.q_stride * Index{sizeof(float)};
    tail[r] = integer_row(q.first[r], tile.q_stride);
  }
  for (Index t = begin; t < end; t += kLanes) {
    IntegerSums sums[R];
    key_sums<R>(q, staged_keys(tile, t), tile.head_dim, ahead, sums);
    GQA_UNROLL
    for (int r = 0; r < R; ++r) {
      const std::int32_t constant = excess_of(excess, tail[r].sum);
      const Vec scale = mul(set1(tail[r].scale), load(scales + t));
      store(to + r * kBlock + t, mul(integers_as_floats(sums[r], constant), scale));
    }
  }
  ahead.rest();
}

// Rows from `row` on, R at a time, then fewer. `to`(row) is where a row's scores go.
template <int R, class To>
GQA_OP void score_integer_rows(const QueryTile& tile, Index row, Index excess, const float* scales, Index begin,
                               Index end, const Prefetcher& prefetcher, Index strip, const To& to) {
  for (; row + R <= tile.rows; row += R) {
    RowsAhead ahead(prefetcher, ++strip, end - begin);
    score_integers<R>(tile, row, excess, scales, begin, end, to(row), ahead);
    to.done(row + R);
  }
  if constexpr (R > 1) score_integer_rows<R / 2>(tile, row, excess, scales, begin, end, prefetcher, strip, to);
}
// Scores of rows in panels are turned, sixteen by sixteen.
struct PanelScores {
  const QueryTile& tile;
  Index in_panels;
  float (&rows)[kLanes][kBlock];
  GQA_OP float* operator()(Index row) const {
    return row < in_panels ? rows[row % kLanes] : tile.weights + row * kBlock;
  }
  GQA_OP void done(Index end) const {
    if (end > in_panels || (end % kLanes != 0 && end != tile.rows)) return;
    for (Index r = end; r % kLanes != 0; ++r)
      for (Index t = 0; t < kBlock; t += kLanes) store(rows[r % kLanes] + t, zero());
    turn_to_panel(rows, tile.weights + (end - 1) / kLanes * kLanes * kBlock);
  }
};

struct EvenTokens {
  const std::byte* base;
  Index stride;
  GQA_OP const std::byte* operator()(Index t) const { return base + t * stride; }
};
// One unit: its keys to staging, then its rows.
template <class Codec>
GQA_KERNEL void score_integer_block(const QueryTile& tile, const Block& block, Prefetcher& prefetcher) {
  const Index begin = block.first / kLanes * kLanes;
  const Index end = round_up(block.last, kLanes);
  if (prefetcher.on()) prefetcher.share(1 + integer_strips(tile.rows), end - begin);
  PrefetchCursor ahead = prefetcher.cursor(0, end - begin);
  const Index row_bytes = KvType(Codec::type).row_bytes(tile.head_dim);
  const bool touch = prefetcher.policy().touch;
  const Index dim = tile.head_dim;
  for (Index t = begin; t < end; t += kLanes) {
    prefetch_rows<kUsualBytes<Codec>>(ahead, t - begin, t - begin + kLanes);
    if (!touch && evenly_spaced(block, t, kLanes))
      stage_key_tokens<Codec>(EvenTokens{block.k + t * block.k_stride, block.k_stride}, dim, staged_keys(tile, t));
    else stage_key_tokens<Codec>(scattered_rows(block, t, row_bytes, touch), dim, staged_keys(tile, t));
  }
  alignas(64) float scales[kBlock];
  gather_scales(block.scales->k, block.first, block.last, scales);
  alignas(64) float turned[kLanes][kBlock];
  score_integer_rows<kIntegerRows>(tile, 0, kExcess<Codec>, scales, begin, end, prefetcher, 0,
                                   PanelScores{tile, rows_in_panels(tile.rows), turned});
  if (prefetcher.on()) end_stretch(prefetcher, end - begin, block.last - block.first);
}
template <class Codec>
inline void integer_scores(const QueryTile& tile, const Stage& stage, Prefetcher& prefetcher) {
  begin_stretches(prefetcher);
  for (Index b = 0; b < stage.blocks; ++b)
    for (Index j = 0; j < stage.heads; ++j)
      score_integer_block<Codec>(unit_tile(tile, stage, b, j), stage.units[b * stage.heads + j], prefetcher);
}

#include "gqa/detail/path/ints_outputs.inl"

// Integers are finite, and scales of hidden tokens are not looked at.
inline bool integers_nonfinite(const Block&, std::uint64_t, Index) { return false; }

template <class Codec>
inline constexpr CodecKernels kIntegerKernels{.scores = integer_scores<Codec>,
                                              .accumulate = integer_accumulate<Codec>,
                                              .nonfinite = integers_nonfinite,
                                              .stream_rows = kIntegerStreamRows,
                                              .pack = pack_integers};
