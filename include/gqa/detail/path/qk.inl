// SPDX-License-Identifier: Apache-2.0
// Scores of a stage: rows × tokens dot products. Part of every kernel without tiles; the path says what a lane adds up (a Dot):
//
//   Key                              the codec of the keys that `key` reads
//   kDims, kQueryBytes               dims of a vector of keys; bytes of a packed dim
//   key, key_part, query             kDims of a key from a dim on; fewer, and zeros behind them; kDims of a packed query
//   add                              acc + query · key, lane by lane
//   rows_at, pieces                  for lanes that are rows: vector u of 16 packed queries, see order_pieces; kPieces pieces of a key,
//                                    again and again
//   kPieceBytes                      of a piece of a key: what one lane takes at a time
//   finish                           what is left to do to sums, where a path has 16 of them at a time
//   ForPanels, panel_block           a Dot and a block whose rows `pieces` can read
//   kPlainKeys                       that is this Dot and the block itself, for whole numbers of `pieces` at least
//
// or, where products are of matrices (kMatrices), instead of all that is added up and finished:
//
//   kStripTokens<R>, strip<R, T>     tokens that a strip of R rows takes at a time; the scores of so many, stored
//
// Two micro-kernels, with the same additions in the same order:
//
//   strips (few rows)   qk_dim_lanes.inl, for other dims score_strip below: a lane sums dims i, i + 16, … of one row and token; lanes are then
//                       added by the fixed tree
//   panels (16 rows)    qk_row_lanes.inl: a lane is a row; what a strip has in lane i is computed for i = 0 … 15, and added by the same tree

inline constexpr Index kQkTokens = 16;
// Tokens that strips of one head take in turn: enough to make little of what a strip begins and ends with, and what the first has
// brought from memory is in the first-level cache for the others.
inline constexpr Index kStripTokens = 32;
// Bytes of `dim` elements of a key.
template <class Dot>
GQA_OP constexpr Index key_bytes(Index dim) {
  return KvType(Dot::Key::type).row_bytes(dim);
}
// Whether queries are held.
GQA_OP bool held(Index head_dim) { return kHeldQueries > 0 && (head_dim == 64 || head_dim == 128 || head_dim == 256); }
// Tokens that the heads of a task take in turn, a quarter or half of a tile: their sums are added over lanes together.
template <class Codec>
inline constexpr Index kSideTokens = kPlainRows<Codec> ? 4 : 8;
// Those that are prefetched ahead where there are one or two rows: one stretch, at least.
inline Index few_rows_distance(Index head_dim) { return held(head_dim) ? kQkTokens / 2 : kQkTokens; }
// Rows, in bytes, from which on fetches of keys wait for sums, see PrefetchPolicy::Pace: shorter ones are soon there.
inline constexpr Index kPacedBytes = 256;
// Whether five rows are one strip: the registers of a path whose products are of pairs have room for N vectors of each.
template <class Dot, int N>
inline constexpr bool kFiveRows = Dot::kDims > kLanes && 5 * N <= 20;

// Rows from which keys that are not read as they are, are widened once; where there are no panels.
inline constexpr Index kWidenRows = 15;

// Rows that are packed in panels, the first of a tile; the rest are packed one by one.
GQA_OP Index rows_in_panels(Index rows) {
  if constexpr (kRowTokens == 0) return 0;
  const Index panels = rows / kLanes * kLanes;
  return rows - panels < kPanelRows ? panels : panels + kLanes;
}

// Scores or weights of a row, the first `in_panels` rows being in panels; floats from token to token (or step of tokens).
GQA_OP float* weights_at(const QueryTile& tile, Index row, Index in_panels) {
  return tile.weights + (row < in_panels ? row / kLanes * kLanes * kBlock + row % kLanes : row * kBlock);
}
GQA_OP Index weight_step(Index row, Index in_panels) { return row < in_panels ? kLanes : 1; }

// Where the rows of some tokens start: evenly spaced, as those of a page or of a run of blocks are, in registers; or, for
// kQkTokens, anywhere.
struct EvenRows {
  const std::byte* base;
  Index stride;
};
struct ScatteredRows {
  const std::byte* base;
  Index offset[kQkTokens];
  GQA_OP const std::byte* operator()(Index t) const { return base + offset[t]; }
};

// More tokens than a block has are those of a run, which run_of has found.
GQA_OP bool evenly_spaced(const Block& block, Index t0, Index tokens) {
  return block.k_stride != 0 && block.first <= t0 && (tokens > kBlock || t0 + tokens <= block.last);
}
// Tokens that the block lacks borrow a row that it has; their scores are hidden.
GQA_OP Index key_offset(const Block& block, Index token) {
  return block.k_offset[token < block.first ? block.first : token < block.last ? token : block.last - 1];
}
// Touches rows of so many bytes.
GQA_OP ScatteredRows scattered_rows(const Block& block, Index t0, Index bytes, bool touch) {
  ScatteredRows rows;
  rows.base = block.k;
  for (Index t = 0; t < kQkTokens; ++t) {
    rows.offset[t] = key_offset(block, t0 + t);
    if (touch) touch_row(block.k + rows.offset[t], bytes);
  }
  return rows;
}

// How many of the tokens [from, to) the block has.
GQA_OP Index tokens_of(const Block& block, Index from, Index to) {
  return (to < block.last ? to : block.last) - (from > block.first ? from : block.first);
}

// The strips of `rows`, of R of them, then of fewer: powers of two.
template <int R>
GQA_OP Index count_strips(Index rows) {
  static_assert(R == 1 || R == 2 || R == 4 || R == 8);
  if constexpr (R == 8) return rows / R + count_strips<R / 2>(rows % R);
  else return rows / R + (rows % R + 1) / 2;
}

// Sums of R rows × T tokens from t0 on, finished and stored.
template <class Dot, int R, int T, int N>
GQA_OP void store_scores(const QueryTile& tile, Index row, Index t0, float (&sums)[N]) {
  if constexpr (N % kLanes == 0) {
    GQA_UNROLL
    for (int i = 0; i < N; i += int{kLanes}) store(sums + i, Dot::finish(load(sums + i), tile));
  }
  GQA_UNROLL
  for (int r = 0; r < R; ++r) __builtin_memcpy(tile.weights + (row + r) * kBlock + t0, sums + r * T, T * sizeof(float));
}

// What R rows add up at a time: where there are few registers, and many rows, a part of a vector, so that more rows share a key.
template <class Dot, int R, bool Part = (R > 2)>
struct StripOf {
  static constexpr int kParts = 1;
  using Type = Dot;
};
template <class Dot, int R>
struct StripOf<Dot, R, true> {
  static constexpr int kParts = kStripParts;
  using Type = typename Dot::Strip;
};

// Lanes of R rows and T tokens from keys(s) on, from `first` on: each a partial sum over dims. GQA_STRIP_LOOP is the path's pragma for the
// loop, or nothing.
template <class Dot, class Strip, int R, int T>
GQA_OP void strip_sums(const std::byte* q, Index q_bytes, Index head_dim, const ScatteredRows& keys, Index s,
                       Index first, typename Strip::Sum (&acc)[R * T]) {
  constexpr int G = T < 4 ? T : 4;  // as many tokens at a time as there are registers for their addresses
  const Index whole = head_dim / Dot::kDims * Dot::kDims;
  const Index rest = head_dim - whole;
  GQA_UNROLL
  for (int i = 0; i < R * T; ++i) acc[i] = Strip::none();
  GQA_UNROLL
  for (int g = 0; g < T; g += G) {
    const std::byte* k[G];
    GQA_UNROLL
    for (int t = 0; t < G; ++t) k[t] = keys(s + g + t);
    GQA_STRIP_LOOP
    for (Index d = first; d < first + whole; d += Dot::kDims) {
      typename Strip::Operand query[R];
      GQA_UNROLL
      for (int r = 0; r < R; ++r) query[r] = Strip::query(q + r * q_bytes + d * Dot::kQueryBytes);
      GQA_UNROLL
      for (int t = 0; t < G; ++t) {
        const auto key = Strip::key(k[t], d);
        GQA_UNROLL
        for (int r = 0; r < R; ++r) acc[r * T + g + t] = Strip::add(query[r], key, acc[r * T + g + t]);
      }
    }
    if (rest != 0) {
      GQA_UNROLL
      for (int t = 0; t < G; ++t) {
        const auto key = Strip::key_part(k[t], first + whole, rest - first);
        GQA_UNROLL
        for (int r = 0; r < R; ++r)
          acc[r * T + g + t] =
              Strip::add(Strip::query(q + r * q_bytes + (first + whole) * Dot::kQueryBytes), key, acc[r * T + g + t]);
      }
    }
  }
}

// R rows × kQkTokens tokens, T tokens at a time: R · T accumulators, reduced together.
template <class Dot, int R>
GQA_OP void score_strip_lanes(const QueryTile& tile, Index row, const ScatteredRows& keys, Index t0,
                              PrefetchCursor& ahead) {
  using Strip = typename StripOf<Dot, R>::Type;
  constexpr int parts = StripOf<Dot, R>::kParts;
  constexpr int T = kQkSums * parts / kStripParts / R;
  const auto* q = static_cast<const std::byte*>(tile.q) + row * tile.q_stride * Dot::kQueryBytes;
  const Index q_bytes = tile.q_stride * Dot::kQueryBytes;
  for (int s = 0; s < kQkTokens; s += T) {
    prefetch_rows(ahead, s, s + T);
    Vec acc[R * T];
    if constexpr (parts == 1) {
      strip_sums<Dot, Strip, R, T>(q, q_bytes, tile.head_dim, keys, s, 0, acc);
    } else {
      alignas(64) float lanes[R * T][kLanes];
      GQA_NO_UNROLL
      for (int lane = 0; lane < kLanes; lane += int{kLanes} / parts) {
        typename Strip::Sum some[R * T];
        strip_sums<Dot, Strip, R, T>(q, q_bytes, tile.head_dim, keys, s, lane, some);
        GQA_UNROLL
        for (int i = 0; i < R * T; ++i) Strip::keep(lanes[i] + lane, some[i]);
      }
      GQA_UNROLL
      for (int i = 0; i < R * T; ++i) acc[i] = load(lanes[i]);
    }
    alignas(64) float sums[R * T];
    reduce_sums(acc, sums);
    store_scores<Dot, R, T>(tile, row, t0 + s, sums);
  }
}

// The same by products of matrices.
template <class Dot>
inline constexpr bool kMatrices = requires {
  Dot::kMatrices;
};
template <class Dot, int R>
GQA_OP void score_strip_matrices(const QueryTile& tile, Index row, const ScatteredRows& keys, Index t0,
                                 PrefetchCursor& ahead) {
  constexpr int T = Dot::template kStripTokens<R>;
  const auto* q = static_cast<const std::byte*>(tile.q) + row * tile.q_stride * Dot::kQueryBytes;
  for (int s = 0; s < kQkTokens; s += T) {
    prefetch_rows(ahead, s, s + T);
    Dot::template strip<R, T>(tile, q, keys, s, tile.weights + row * kBlock + t0 + s);
  }
}

// R rows × kQkTokens tokens.
template <class Dot, int R>
GQA_KERNEL void score_strip(const QueryTile& tile, Index row, const ScatteredRows& keys, Index t0,
                            const Prefetcher& prefetcher, Index strip) {
  PrefetchCursor ahead = prefetcher.cursor(strip, kQkTokens);
  if constexpr (kMatrices<Dot>) score_strip_matrices<Dot, R>(tile, row, keys, t0, ahead);
  else score_strip_lanes<Dot, R>(tile, row, keys, t0, ahead);
}

#include "gqa/detail/path/qk_dim_lanes.inl"

template <class Dot, int R>
GQA_OP void score_strips(const QueryTile& tile, Index row, const ScatteredRows& keys, Index t0,
                         const Prefetcher& prefetcher, Index strip = 0) {
  for (; row + R <= tile.rows; row += R) score_strip<Dot, R>(tile, row, keys, t0, prefetcher, strip++);
  if constexpr (R > 1) score_strips<Dot, R / 2>(tile, row, keys, t0, prefetcher, strip);
}
template <class Dot, int HeadDim>
GQA_OP void score_rows(const QueryTile& tile, Index row, const Block& block, Index t0, Index tokens,
                       Prefetcher& prefetcher) {
  if constexpr (kHeldQueries > 0 && HeadDim != kOtherDim) {
    if (evenly_spaced(block, t0, tokens)) {
      constexpr int N = 128 / Dot::kDims;  // vectors of a query of 128 dims
      constexpr int R = kHeldQueries / N < kQkRows ? kHeldQueries / N : kQkRows;
      const EvenRows keys{block.k + t0 * block.k_stride, block.k_stride};
      constexpr int half = kHeldQueries / N / 2 < kQkRows ? kHeldQueries / N / 2 : kQkRows;
      if constexpr (may_be(HeadDim, 128))
        if (tile.head_dim == 128) return score_rows_held<Dot, R, N>(tile, row, keys, t0, tokens, prefetcher);
      if constexpr (may_be(HeadDim, 64))
        if (tile.head_dim == 64) return score_rows_held<Dot, kQkRows, N / 2>(tile, row, keys, t0, tokens, prefetcher);
      if constexpr (may_be(HeadDim, 256))
        if (tile.head_dim == 256) return score_rows_held<Dot, half, N * 2>(tile, row, keys, t0, tokens, prefetcher);
    }
  }
  const Index bytes = key_bytes<Dot>(tile.head_dim);
  if (prefetcher.on()) prefetcher.share(count_strips<kQkRows>(tile.rows - row), kQkTokens);
  for (Index t = t0 / kQkTokens * kQkTokens; t < t0 + tokens && t < block.last; t += kQkTokens) {
    if (t + kQkTokens <= block.first) continue;
    score_strips<Dot, kQkRows>(tile, row, scattered_rows(block, t, bytes, prefetcher.policy().touch), t, prefetcher);
    if (prefetcher.on()) end_stretch(prefetcher, kQkTokens, tokens_of(block, t, t + kQkTokens));
  }
}

#include "gqa/detail/path/qk_row_lanes.inl"

// One unit of panels.
template <class Dot>
GQA_OP void score_in_panels(const QueryTile& tile, const Block& unit, Index in_panels, Prefetcher& prefetcher) {
  Index offsets[kBlock];
  const Block block = Dot::panel_block(tile, unit, offsets);
  constexpr Index rows = kRowPanels * kLanes;
  if (prefetcher.on()) prefetcher.share((in_panels + rows - 1) / rows, kQkTokens);
  for (Index row = 0; row < in_panels; row += rows) {
    const Index panels = in_panels - row < rows ? (in_panels - row) / kLanes : kRowPanels;
    score_panels<typename Dot::ForPanels, kRowTokens>(tile, row, panels, block, prefetcher);
  }
  const Index tokens = round_up(block.last - block.first / kQkTokens * kQkTokens, kQkTokens);
  if (prefetcher.on()) end_stretch(prefetcher, tokens, block.last - block.first);
}

// One unit without panels: keys are widened once, instead of for every row.
template <class Dot, int HeadDim>
GQA_OP void score_widened(const QueryTile& tile, const Block& unit, Prefetcher& prefetcher) {
  Index offsets[kBlock];
  const Block block = Dot::panel_block(tile, unit, offsets);
  score_rows<typename Dot::ForPanels, HeadDim>(tile, 0, block, 0, kBlock, prefetcher);
}

// weights[row][t] ← q[row] · k[t] for every unit of the stage. One head's strips take a block at a time, or a run; else all
// heads take a few tokens before they go on, as memory lies. Panels, who compute more than they read, take a block either way.
template <class Dot, int HeadDim>
GQA_OP void score_stage(const QueryTile& tile, const Stage& stage, Prefetcher& prefetcher) {
  const Index in_panels = rows_in_panels(tile.rows);
  const bool widened = kRowTokens == 0 && !Dot::kPlainKeys && tile.rows > kWidenRows;
  const Index side_tokens = prefetcher.policy().side_tokens;
  Prefetcher none;  // for rows beside panels, who have fetched all
  begin_stretches(prefetcher);
  for (Index b = 0, taken; b < stage.blocks; b += taken) {
    const Block& any = stage.units[b * stage.heads];
    taken = held(tile.head_dim) ? run_of(stage, b, &Block::k, &Block::k_stride) : 1;
    const auto unit_of = [&](Index j) -> const Block& { return stage.units[b * stage.heads + j]; };
    for (Index j = 0; j < stage.heads && (in_panels > 0 || widened); ++j) {
      if constexpr (kRowTokens > 0)
        score_in_panels<Dot>(unit_tile(tile, stage, b, j), unit_of(j), in_panels, prefetcher);
      else if constexpr (!Dot::kPlainKeys)
        score_widened<Dot, HeadDim>(unit_tile(tile, stage, b, j), unit_of(j), prefetcher);
    }
    if (in_panels >= tile.rows || widened) continue;
    const bool at_once = stage.heads == 1 && evenly_spaced(any, 0, kBlock);
    const bool in_turn = stage.heads > 1 && any.k_stride != 0 && held(tile.head_dim);
    const Index tokens = at_once           ? taken * kBlock
                         : side_tokens > 0 ? side_tokens
                         : in_turn         ? kSideTokens<typename Dot::Key>
                                           : kQkTokens;
    for (Index t0 = any.first / kQkTokens * kQkTokens; t0 < any.last; t0 += tokens) {
      for (Index j = 0; j < stage.heads; ++j)
        score_rows<Dot, HeadDim>(unit_tile(tile, stage, b, j), in_panels, unit_of(j), t0, tokens,
                                 in_panels > 0 ? none : prefetcher);
    }
  }
}

// The same for keys that are not read where they are: Keys::block puts those of a unit in staging, and Scores are what is read from there.
template <class Keys, void (*Scores)(const QueryTile&, const Stage&, Prefetcher&)>
GQA_OP void score_staged(const QueryTile& tile, const Stage& stage, Prefetcher& prefetcher) {
  for (Index b = 0; b < stage.blocks; ++b) {
    for (Index j = 0; j < stage.heads; ++j) {
      Index offset[kBlock];
      const QueryTile unit = unit_tile(tile, stage, b, j);
      const Block staged = Keys::block(unit, stage.units[b * stage.heads + j], offset);
      Stage one = stage;
      one.units = &staged;
      one.blocks = one.heads = 1;
      one.runs = false;  // keys are at hand
      Scores(unit, one, prefetcher);
    }
  }
}
