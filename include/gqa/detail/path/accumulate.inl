// SPDX-License-Identifier: Apache-2.0
// Output accumulation of a stage. Part of every kernel without tiles; the path says what is added at a time (Product):
//
//   kTokens        tokens of a step: 1, or 2 where products are added in pairs
//   kDims          dims of a step, kVectors accumulators
//   weight         the weights of a step of a row, in every lane
//   add            acc + weight · values, lane by lane
//
// and where values come from: the cache (Cached), or staging (Staged), where stage_values has put them.

// Rows that take values straight from the cache; more share a staged copy, in the first-level cache.
inline constexpr Index kDirectRows = 15;
// Tokens that are taken at a time where that takes several strips, or heads lie side by side: what the first strip has brought
// from memory is in the first-level cache for the others, and memory is not idle for long.
inline constexpr Index kFewTokens = 16;

// R rows × C steps of dims of outputs, held in registers while tokens [from, to) go by. C == 1 may be part of a step.
template <int R, int C, class Values>
GQA_OP void output_strip(const RowTile& tile, Index row, Index column, Index width, Values values, Index from, Index to,
                         bool rescale, bool touch) {
  constexpr int N = C * Product::kVectors;
  float* o = tile.o + row * tile.o_stride + column;
  Vec acc[R * N];
  GQA_UNROLL
  for (int r = 0; r < R; ++r) {
    GQA_UNROLL
    for (int n = 0; n < N; ++n) acc[r * N + n] = load(o + r * tile.o_stride + n * kLanes);
  }
  if (rescale) {
    GQA_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vec alpha = set1(tile.alpha[row + r]);
      GQA_UNROLL
      for (int n = 0; n < N; ++n) acc[r * N + n] = mul(acc[r * N + n], alpha);
    }
  }
  const float* weights = tile.weights + row * kBlock;
  const Index last = (to + Product::kTokens - 1) / Product::kTokens;
  for (Index step = from / Product::kTokens; step < last; ++step, values.next()) {
    if (touch) values.touch(tile.value_dim);
    Product::Operand value[N];
    if constexpr (C > 1) values.template whole<C>(column, value);
    else values(column, width, value);
    GQA_UNROLL
    for (int r = 0; r < R; ++r) {
      const auto weight = Product::weight(weights + r * kBlock, step);
      GQA_UNROLL
      for (int n = 0; n < N; ++n) acc[r * N + n] = Product::add(weight, value[n], acc[r * N + n]);
    }
  }
  GQA_UNROLL
  for (int r = 0; r < R; ++r) {
    GQA_UNROLL
    for (int n = 0; n < N; ++n) store(o + r * tile.o_stride + n * kLanes, acc[r * N + n]);
  }
}

// Tokens [from, to) of a block, for one head.
struct Part {
  const Stage& stage;
  Upcoming next;  // of the first head
  Index from = 0;
  Index to = 0;
  Index few = 0;  // tokens that a strip takes before the next strip has its turn
  Index head = 0;
  bool rescale = false;  // the first tokens of the block: alpha comes first
  bool touch = false;
  // Asks for the share of r of `rows` rows in those of what comes next that belong to this part.
  GQA_OP void fetch(Index row, Index r, Index rows) const {
    if (stage.prefetch) prefetch_part(next, from, to, head * rows + row, r, stage.heads * rows, stage.heads);
  }
};

// All columns of R rows, `few` tokens at a time: as many accumulators as registers allow, then one step of dims after the other.
// The strip that reads memory (the first columns of the first rows) touches whole rows first where it does not read them itself. Where
// more strips follow (First), it has load instructions of its own: their step from tile to tile stays the same, and the processor's
// prefetching follows them.
template <int R, bool First, class Values>
GQA_KERNEL void output_columns(const RowTile& tile, Index row, Values values, const Part& part) {
  Index from = part.from;
  const Index to = part.to;
  const Index few = part.few;
  bool rescale = part.rescale;
  constexpr int fit = kOutputTile / R < 8 ? kOutputTile / R : 8;
  constexpr int C = fit / Product::kVectors < 1 ? 1 : fit / Product::kVectors;
  constexpr Index wide = C * Product::kDims;
  const bool touch = row == 0 && part.touch && (R == 1 || part.stage.prefetch || tile.value_dim != wide);
  for (Index end; from < to; from = end, rescale = false, values.skip(few)) {
    end = from + few < to ? from + few : to;
    Index column = 0;
    if constexpr (C > 1) {
      if (First && wide <= tile.value_dim) {
        output_strip<R, C>(tile, row, 0, Product::kDims, values, from, end, rescale, touch);
        column = wide;
      }
      for (; column + wide <= tile.value_dim; column += wide)
        output_strip<R, C>(tile, row, column, Product::kDims, values, from, end, rescale, touch && column == 0);
    }
    for (; column < tile.value_dim; column += Product::kDims) {
      const Index rest = tile.value_dim - column;
      const Index width = rest < Product::kDims ? rest : Product::kDims;
      output_strip<R, 1>(tile, row, column, width, values, from, end, rescale, touch && column == 0);
    }
  }
}

// Few rows, streamed through memory, R at a time and as wide as values are: the first take whole rows of values from memory, a few
// steps of them, then the others from the first-level cache. Nothing is touched: whole rows of values are loads with a constant step.
inline constexpr Index kTurnSteps = 8;
template <int R>
inline constexpr int kTurnVectors = kOutputTile / R;
template <int R>
inline constexpr Index kTurnDims = Index{kTurnVectors<R>} * Product::kDims / Product::kVectors;
template <int R, class Values>
GQA_KERNEL void output_turns(const RowTile& tile, Values values, const Part& part) {
  constexpr Index few = kTurnSteps * Product::kTokens;
  constexpr int C = kTurnVectors<R> / Product::kVectors;
  bool rescale = part.rescale;
  for (Index from = part.from, end; from < part.to; from = end, rescale = false, values.skip(few)) {
    end = from + few < part.to ? from + few : part.to;
    output_strip<R, C>(tile, 0, 0, Product::kDims, values, from, end, rescale, false);
    for (Index row = R; row < tile.rows; row += R) {
      if (tile.rows - row < R) output_strip<1, C>(tile, row, 0, Product::kDims, values, from, end, rescale, false);
      else output_strip<R, C>(tile, row, 0, Product::kDims, values, from, end, rescale, false);
    }
  }
}

// Rows from `row` on, R at a time, then fewer. Each strip of rows asks for its share of the keys that come next.
template <int R, class Values>
GQA_OP void output_rows(const RowTile& tile, Index row, const Values& values, const Part& part) {
  if constexpr (Values::kTurns && R == kOutputRows) {
    const bool streams = part.touch && !part.stage.prefetch;
    if (streams && tile.rows > 2 && tile.value_dim == kTurnDims<2>) return output_turns<2>(tile, values, part);
    if (streams && tile.value_dim == kTurnDims<1>) return output_turns<1>(tile, values, part);
  }
  for (; row + R <= tile.rows; row += R) {
    part.fetch(row, R, tile.rows);
    constexpr bool first = Values::kStreams && R == kOutputRows;
    if (row == 0) output_columns<R, first>(tile, row, values, part);
    else output_columns<R, false>(tile, row, values, part);
  }
  if constexpr (R > 1) output_rows<(R > 4 ? 4 : R / 2)>(tile, row, values, part);
}

// One unit, the tokens of `part`.
template <class Codec>
GQA_OP void add_values(const RowTile& tile, const Block& block, Part part) {
  const Index from = part.from;
  const Index to = part.to;
  if (!block.careful) {
    if constexpr (kReadable<Codec>) {
      const bool whole_steps = from % Product::kTokens == 0 && to % Product::kTokens == 0;
      if (block.v_stride != 0 && whole_steps && (!kStaged<Codec> || tile.rows <= kDirectRows))
        return output_rows<kOutputRows>(tile, 0, Cached<Codec>{block.v + from * block.v_stride, block.v_stride}, part);
    }
  }
  part.touch = false;
  part.few = to - from;
  if (!block.careful)
    return output_rows<kOutputRows>(tile, 0, stage_values<Codec>(tile, block, kEveryToken, from, to), part);
  RowTile upto = tile;  // a hidden token's values are taken as zero, row by row: 0 × NaN is not 0
  for (Index row = 0; row < tile.rows; ++row) {
    upto.rows = row + 1;
    output_rows<kOutputRows>(upto, row, stage_values<Codec>(tile, block, block.visible[row], from, to), part);
  }
}

// o[row] ← alpha[row] · o[row] + Σ_t weights[row][t] · v[t], t ascending, for every unit of the stage.
template <class Codec>
inline void accumulate(const RowTile& tile, const Stage& stage) {
  const bool one_strip = tile.rows * tile.o_stride <= kOutputTile * kLanes;
  const Index tokens = tile.rows > kDirectRows || !stage.prefetch ? kBlock : kFewTokens;
  for (Index b = 0; b < stage.blocks; ++b) {
    const Block& any = stage.units[b * stage.heads];
    for (Index j = 0; j < stage.heads; ++j) prepare_weights(unit_tile(tile, stage, b, j));
    Part part{stage, after_values(stage, b)};
    part.few = one_strip ? kBlock : kFewTokens;
    part.touch = stage.touch;
    for (part.from = any.first; part.from < any.last; part.from = part.to) {
      part.to = part.from / tokens * tokens + tokens;
      if (part.to > any.last) part.to = any.last;
      part.rescale = part.from == any.first;
      for (part.head = 0; part.head < stage.heads; ++part.head)
        add_values<Codec>(unit_tile(tile, stage, b, part.head), stage.units[b * stage.heads + part.head], part);
    }
  }
}
