// SPDX-License-Identifier: Apache-2.0
// Output accumulation of a stage. Part of every kernel without tiles; the path says what is added at a time (Product):
//
//   kTokens        tokens of a step: 1, or 2 or 4 where so many products are added at a time
//   kDims          dims of a step, kVectors accumulators
//   kRows          rows that share an operand of weights: 1, or 2 where products are of matrices
//   kWeightFloats  from the weights of a step to those of the next, in floats
//   Sums           what a strip of R rows and Held vectors of each holds: those vectors; or a type of the path's, which has load_sums,
//                  rescale_sums, add_step and store_sums of its own for it
//   weight         the weights of a step of a row, in every lane
//   add            acc + weight · values, lane by lane
//
// and where values come from: the cache (Cached), or staging (Staged), where stage_values has put them, or the first strip of rows while
// it took them from the cache (Copied). They say whether they are never for panels (kFewRows), whether fetches may have to wait for sums
// (kWaits, see PrefetchPolicy::Pace), whether there are strips of every height (kAnyRows)
// or, where many rows have few left over, of the highest and of one row, whether there are strips as wide as values, which may take a
// run of blocks (kWhole), and whether they may be streamed (kStreams).

// Tokens that are taken at a time where heads lie side by side, or several strips stream: what the first strip has brought from
// memory is in the first-level cache for the others, and memory is not idle for long.
inline constexpr Index kFewTokens = 16;
// Rows of one head from which on a strip takes a whole block, and not kStripTokens: arithmetic is then the limit, not memory.
template <class Codec>
inline constexpr Index kBlockRows = kPlainRows<Codec> ? kPanelRows : 6;

#include "gqa/detail/path/pv_dim_lanes.inl"

// Steps of dims of a strip of R rows: as many accumulators as registers allow, a power of two for each row.
template <int R>
inline constexpr int kStripVectors = kPvSums / kHeldRows<R> >= 8   ? 8
                                     : kPvSums / kHeldRows<R> >= 4 ? 4
                                                                   : kPvSums / kHeldRows<R>;
template <int R>
inline constexpr int kStripSteps = kStripVectors<R> < Product::kVectors ? 1 : kStripVectors<R> / Product::kVectors;

// Values of a row, or twice as many, that strips may be as wide as; narrower ones divide them.
inline constexpr Index kRunDims = 128;
// Whether rows may end within a strip.
template <int ValueDim>
inline constexpr bool kEndsAnywhere = ValueDim <= 0 || ValueDim % kRunDims != 0;

// Whether the last step of a row, which may be part of one, is code of its own: where loads of a part need many instructions.
inline constexpr bool kWholeStepsApart = Product::kRows > 1;

// All columns of R rows, `few` tokens at a time: strips of kStripSteps steps, then one step after the other, if any are left.
template <int R, class Values, bool EndsAnywhere>
GQA_KERNEL void output_columns(const QueryTile& tile, Index row, Values values, const Part& part) {
  const Index few = part.few;
  constexpr int C = kStripSteps<R>;
  constexpr Index wide = C * Product::kDims;
  static_assert(kRunDims % wide == 0);
  constexpr bool no_panels = kRowTokens == 0 || Values::kFewRows;
  const StripWeights<R> weights = no_panels ? strip_weights<R>(tile, row) : weights_of<R>(tile, row, part.in_panels);
  for (Index from = part.from, end; from < part.to; from = end, values.skip(few)) {
    end = from + few < part.to ? from + few : part.to;
    Index column = 0;
    if constexpr (C > 1)
      for (; column + wide <= tile.value_dim; column += wide)
        output_strip<R, C>(tile, row, weights, column, Product::kDims, values, from, end, part);
    if constexpr (kWholeStepsApart)
      for (; column + Product::kDims <= tile.value_dim; column += Product::kDims)
        output_strip<R, 1>(tile, row, weights, column, Product::kDims, values, from, end, part);
    if constexpr ((C == 1 && !kWholeStepsApart) || EndsAnywhere) {
      for (; column < tile.value_dim; column += Product::kDims) {
        const Index rest = tile.value_dim - column;
        const Index width = rest < Product::kDims ? rest : Product::kDims;
        output_strip<R, 1>(tile, row, weights, column, width, values, from, end, part);
      }
    }
  }
}

// The strips that `rows` take, R at a time, then fewer.
template <int R>
GQA_OP Index count_output_strips(Index rows, Index value_dim) {
  constexpr Index wide = kStripSteps<R> * Product::kDims;
  const Index rest = value_dim % wide;
  const Index strips = rows / R * (value_dim / wide + (rest + Product::kDims - 1) / Product::kDims);
  if constexpr (R == 1) return strips;
  else return rows % R == 0 ? strips : strips + count_output_strips<(R > 4 ? 4 : R - 1)>(rows % R, value_dim);
}

// Accumulators that such strips hold: all registers, twice kPvSums, but those for values and weights.
inline constexpr int kWholeTile = 2 * kPvSums - 4;
// R rows as wide as values, N vectors, over tokens [from, to): values are whole rows of loads with a constant step.
template <int R, int N, class Values>
GQA_KERNEL void output_whole(const QueryTile& tile, Index row, Values values, Index from, Index to, const Part& part) {
  constexpr int held = N < kWholeTile / R ? N : kWholeTile / R;
  output_strip<R, N / Product::kVectors, Values, held, true>(tile, row, strip_weights<R>(tile, row), 0, Product::kDims,
                                                             values, from, to, part);
}
template <int R, int N, class Values>
GQA_OP void output_whole_rows(const QueryTile& tile, Index row, const Values& values, Index from, Index to,
                              const Part& part) {
  for (; row + R <= tile.rows; row += R) output_whole<R, N>(tile, row, values, from, to, part);
  if constexpr (R > 1) output_whole_rows<R - 1, N>(tile, row, values, from, to, part);
}

// A block or a run of blocks. Five rows of pairs are one strip. If one strip does not have all rows, the first ones take a few tokens from
// memory, then the others from the first-level cache.
inline constexpr Index kTurnBytes = 8192;
template <class Values, int ValueDim>
GQA_OP void output_run(const QueryTile& tile, Values values, const Part& part) {
  constexpr int N = kRunDims / kLanes;
  constexpr int R = kPvRows;
  constexpr bool may_be_once = may_be(ValueDim, kRunDims);
  constexpr bool may_be_twice = Values::kWholeTwice && may_be(ValueDim, 2 * kRunDims);  // else whole_rows says no
  const bool twice = may_be_twice && (!may_be_once || tile.value_dim > kRunDims);
  const Index high = twice ? R / 2 : R;
  const bool five = Product::kTokens > 1 && tile.rows == 5 && !twice;
  part.prefetcher.share(five ? 1 : (tile.rows + high - 1) / high, kPrefetchGrain);
  if constexpr (Product::kTokens > 1 && may_be_once)
    if (five) return output_whole<5, N>(tile, 0, values, part.from, part.to, part);
  const Index few = tile.rows <= high ? part.to - part.from : !part.stage.runs ? part.few : kTurnBytes / part.row_bytes;
  for (Index from = part.from, end; from < part.to; values.skip(end - from), from = end) {
    end = part.prefetcher.end_of_stretch(from, from + few < part.to ? from + few : part.to);
    if constexpr (may_be_twice) {
      if (twice) output_whole_rows<R / 2, 2 * N>(tile, 0, values, from, end, part);
    }
    if constexpr (may_be_once) {
      if (!twice) output_whole_rows<R, N>(tile, 0, values, from, end, part);
    }
    part.end_stretch_at(end);
  }
}

// Rows from `row` on, R at a time, then fewer; panels are multiples of 4.
template <int R, int ValueDim, class Values>
GQA_OP void output_rows(const QueryTile& tile, Index row, const Values& values, const Part& part) {
  if constexpr (Values::kWhole && R == kPvRows && ValueDim != kOtherDim)
    if (part.whole) return output_run<Values, ValueDim>(tile, values, part);
  const auto end = [&] { return row < part.in_panels && part.in_panels < tile.rows ? part.in_panels : tile.rows; };
  for (; row + R <= end(); row += R) output_columns<R, Values, kEndsAnywhere<ValueDim>>(tile, row, values, part);
  if constexpr (R > 1) output_rows<(R > 4 ? 4 : Values::kAnyRows ? R - 1 : 1), ValueDim>(tile, row, values, part);
}

// Values from the cache that are left in staging, step by step.
template <class Codec>
struct Copied {
  static constexpr bool kFewRows = false;
  static constexpr bool kWaits = false;
  static constexpr bool kWhole = false;
  static constexpr bool kStreams = false;
  Cached<Codec> cached;
  std::byte* staged;
  Index stride;
  GQA_OP void operator()(Index column, Index count, typename Product::Operand* value) const {
    cached(column, count, value);
    keep(staged, column, value);
  }
  template <int C>
  GQA_OP void whole(Index column, typename Product::Operand* value) const {
    cached.template whole<C>(column, value);
    GQA_UNROLL
    for (int c = 0; c < C; ++c) keep(staged, column + c * Product::kDims, value + c * Product::kVectors);
  }
  GQA_OP void next() {
    cached.next();
    staged += stride;
  }
  GQA_OP void skip(Index tokens) {
    cached.skip(tokens);
    staged += tokens / Product::kTokens * stride;
  }
  GQA_OP void touch(Index) const {}
};

// Rows in panels: the first few copy values to staging on their way.
template <class Codec, int ValueDim>
GQA_OP void output_copied(const QueryTile& tile, const Cached<Codec>& cached, const Part& part) {
  const Index stride = staged_stride(tile);
  output_columns<kPvRows, Copied<Codec>, kEndsAnywhere<ValueDim>>(tile, 0, {cached, tile.staging, stride}, part);
  output_rows<kPvRows, ValueDim>(tile, kPvRows, Staged{tile.staging, stride}, part);
}

// All tokens at once: staging is in the first-level cache.
GQA_OP Part for_staging(const Part& part) {
  Part staged = part;
  staged.touch = false;
  staged.few = part.to - part.from;
  return staged;
}

// One unit, the tokens of `part`.
template <class Codec, int ValueDim>
GQA_OP void add_values(const QueryTile& tile, const Block& block, const Part& part) {
  const Index from = part.from;
  const Index to = part.to;
  if (part.prefetcher.on()) part.prefetcher.share(count_output_strips<kPvRows>(tile.rows, tile.value_dim), to - from);
  if constexpr (kReadable<Codec>) {
    const bool whole_steps = from % Product::kTokens == 0 && to % Product::kTokens == 0;
    if (!block.careful && block.v_stride != 0 && whole_steps) {
      const Cached<Codec> cached{block.v + from * block.v_stride, block.v_stride};
      if constexpr (!kStaged<Codec>)
        if (tile.rows >= 2 * kLanes)
          return output_rows<kPvRows, ValueDim>(tile, 0, Staged{cached.row, cached.stride}, part);
      if (!kStaged<Codec> || tile.rows <= kDirectRows<Codec>)
        return output_rows<kPvRows, ValueDim>(tile, 0, cached, part);
      if constexpr (kCopied<Codec>) return output_copied<Codec, ValueDim>(tile, cached, for_staging(part));
    }
  }
  const Part staged = for_staging(part);
  if (!block.careful)
    return output_rows<kPvRows, ValueDim>(tile, 0, stage_values<Codec>(tile, block, kEveryToken, from, to), staged);
  QueryTile upto = tile;  // a hidden token's values are taken as zero, row by row: 0 × NaN is not 0
  for (Index row = 0; row < tile.rows; ++row) {
    upto.rows = row + 1;
    output_rows<kPvRows, ValueDim>(upto, row, stage_values<Codec>(tile, block, block.visible[row], from, to), staged);
  }
}

// Whether outputs are taken in rows as wide as values: where these are streamed, and for more rows than one strip has, where values of
// one token at a time leave registers to prefetch with.
template <class Codec>
GQA_OP bool whole_rows(const QueryTile& tile, const Stage& stage) {
  if (!Cached<Codec>::kWhole) return false;
  if (stage.runs) return tile.value_dim == kRunDims || (Cached<Codec>::kWholeTwice && tile.value_dim == 2 * kRunDims);
  const bool many = tile.rows > kPvRows && tile.rows < kPanelRows;
  return many && Product::kTokens == 1 && kPlainRows<Codec> && tile.value_dim == kRunDims;
}

// How many tokens are taken in turn.
struct Stretches {
  Index tokens;  // by a head, before the next head has its turn
  Index few;     // by a strip, before the next strip has its turn
  bool whole;    // by strips as wide as values, see whole_rows
};
template <class Codec>
GQA_OP Stretches output_stretches(const QueryTile& tile, const Stage& stage, const Prefetcher& prefetcher) {
  const bool one_strip = tile.rows * tile.o_stride <= kPvSums * kLanes;
  const bool whole = whole_rows<Codec>(tile, stage);
  const Index side_tokens = prefetcher.policy().side_tokens;
  const Index alone = tile.rows < kBlockRows<Codec> ? kStripTokens : kBlock;
  const bool memory = stage.runs && !(prefetcher.on() && tile.rows > 2);  // is the limit
  const Index few = side_tokens > 0                                         ? side_tokens
                    : memory || (stage.heads > 1 && tile.rows < kPanelRows) ? kFewTokens
                                                                            : alone;
  const Index tokens = tile.rows >= kPanelRows || (stage.runs && (whole || one_strip)) ? kBlock
                       : stage.heads > 1 && tile.rows < 3                              ? kSideTokens<Codec>
                                                                                       : few;
  return {tokens, one_strip ? kBlock : few, whole};
}
// Rows that a strip fetches at once.
GQA_OP Index fetched_rows(const Stage& stage, Index row_bytes) {
  Index rows = stage.heads > 1 ? 1 : Product::kTokens;
  while (rows * row_bytes < (stage.heads > 1 ? kEvenBytes : kFetchedBytes) && rows < kMostFetched) rows *= 2;
  return rows;
}

// o[row] ← alpha[row] · o[row] + Σ_t weights[row][t] · v[t], t ascending, for every unit of the stage.
template <class Codec, int ValueDim>
inline void accumulate(const QueryTile& tile, const Stage& stage, Prefetcher& prefetcher) {
  const Stretches stretches = output_stretches<Codec>(tile, stage, prefetcher);
  const Index row_bytes = KvType(Codec::type).row_bytes(tile.value_dim);
  Part part{stage, prefetcher, row_bytes, fetched_rows(stage, row_bytes)};
  part.few = stretches.few;
  part.touch = prefetcher.policy().touch;
  part.whole = stretches.whole;
  part.in_panels = rows_in_panels(tile.rows);
  begin_stretches(prefetcher);
  for (Index b = 0, taken; b < stage.blocks; b += taken) {
    const Block& any = stage.units[b * stage.heads];
    taken = stretches.whole ? run_of(stage, b, &Block::v, &Block::v_stride) : 1;
    const Index last = (taken - 1) * kBlock + any.last;
    part.begin = any.first;
    for (part.from = any.first; part.from < last; part.from = part.to) {
      part.to = taken > 1 ? last : part.from / stretches.tokens * stretches.tokens + stretches.tokens;
      part.to = prefetcher.end_of_stretch(part.from, part.to < last ? part.to : last);
      for (Index j = 0; j < stage.heads; ++j) {
        part.reached = part.from;
        add_values<Codec, ValueDim>(unit_tile(tile, stage, b, j), stage.units[b * stage.heads + j], part);
        part.end_stretch_at(part.to);
      }
    }
  }
}
