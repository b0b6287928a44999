// SPDX-License-Identifier: Apache-2.0
// Output accumulation of a stage. Part of every kernel without tiles; the path says what is added at a time (Product):
//
//   kTokens        tokens of a step: 1, or 2 where products are added in pairs
//   kDims          dims of a step, kVectors accumulators
//   weight         the weights of a step of a row, in every lane
//   add            acc + weight · values, lane by lane
//
// and where values come from: the cache (Cached), or staging (Staged), where stage_values has put them, or the first strip of rows while
// it took them from the cache (Copied). They say whether they are never for groups (kFewRows), whether what comes next is asked for
// between steps (kLooksAhead), because there are few strips, or between strips, whether there are strips of every height (kAnyRows)
// or, where many rows have few left over, of the highest and of one row, whether there are strips as wide as values, which may take a
// run of blocks (kWhole), and whether they may be streamed (kStreams).

// Tokens that are taken at a time where heads lie side by side, or several strips stream: what the first strip has brought from
// memory is in the first-level cache for the others, and memory is not idle for long.
inline constexpr Index kFewTokens = 16;
// Rows of one head from which on a strip takes a whole block, and not kStripTokens: arithmetic is then the limit, not memory.
template <class Codec>
inline constexpr Index kBlockRows = Codec::bytes < 4 ? 6 : kGroupRows;

// Weights of R rows in a block: of row r from first[r / kEven] + r % kEven · stride on, a step after the other.
template <int R>
struct Weights {
  static constexpr int kEven = kLanes % R == 0 ? R : 1;  // rows that lie evenly: strips of so many end with the group
  const float* first[R / kEven];
  Index stride;
  Index step;
  GQA_OP const float* of(int r) const { return first[r / kEven] + r % kEven * stride; }
  GQA_OP void skip(Index floats) {
    GQA_UNROLL
    for (int i = 0; i < R / kEven; ++i) first[i] += floats;
  }
};
template <int R>
GQA_OP Weights<R> strip_weights(const RowTile& tile, Index row) {
  Weights<R> weights{{}, kBlock, 1};
  GQA_UNROLL
  for (int r = 0; r < R; r += Weights<R>::kEven)
    weights.first[r / Weights<R>::kEven] = tile.weights + (row + r) * kBlock;
  return weights;
}
// The same where the first `grouped` rows are in groups, those of one strip all or none.
template <int R>
GQA_OP Weights<R> weights_of(const RowTile& tile, Index row, Index grouped) {
  Weights<R> weights{{}, row < grouped ? 1 : kBlock, weight_step(row, grouped)};
  GQA_UNROLL
  for (int r = 0; r < R; r += Weights<R>::kEven)
    weights.first[r / Weights<R>::kEven] = weights_at(tile, row + r, grouped);
  return weights;
}

// What is asked for at once, in bytes of a stream, or tokens between looking ahead. Where heads take a few tokens in turn, prefetching is
// most of the time, and the evener it comes, the faster.
inline constexpr Index kAskedBytes = 1024;
inline constexpr Index kEvenBytes = 512;
inline constexpr Index kMostAsked = 16;
inline constexpr Index kAheadTokens = 4;

inline constexpr int kStepShift = Product::kTokens == 2 ? 1 : 0;

// Tokens [from, to) of a block or of a run of blocks, for one head.
struct Part {
  const Stage& stage;
  Asker& asker;
  Index asked;                // rows of a stream at once, a power of two
  Index stretch = kBlock;     // tokens from looking ahead to looking ahead, likewise
  mutable Index strip = 0;    // the next strip's number, of those that take these tokens
  mutable Index reached = 0;  // by all strips
  Index from = 0;
  Index to = 0;
  Index few = 0;       // tokens that a strip takes before the next strip has its turn
  Index grouped = 0;   // rows of the head that are in groups
  bool touch = false;  // see Stage::touches
  bool whole = false;  // rows as wide as values, see whole_rows

  // All strips have taken the tokens before `end`.
  GQA_OP void next_turn(Index end) const {
    strip = 0;
    if (asker.stream.asks()) pass(asker.stream, end - reached);
    reached = end;
  }
};

// R rows × C steps of dims of outputs while tokens [from, to) go by; alpha comes before the first of a block. `Held` vectors of each
// row are held in registers, those behind them in the first-level cache. C == 1 may be part of a step. The first strip reads memory: it
// touches rows, unless its loads are followed: a handful, whole rows of several. Where rows are asked for, strips share that.
template <int R, int C, class Values, int Held = C * Product::kVectors, bool Run = false>
GQA_OP void output_strip(const RowTile& tile, Index row, Weights<R> weights, Index column, Index width, Values values,
                         Index from, Index to, const Part& part) {
  constexpr int N = C * Product::kVectors;
  constexpr int S = Run && R > 1 ? 1 : C;  // steps that are loaded at once
  const auto steps = [](Index tokens) { return (tokens + Product::kTokens - 1) >> kStepShift; };
  Ahead* const ahead = part.asker.ahead;
  if constexpr (!Values::kLooksAhead)
    if (ahead != nullptr) ahead->done(R * N * (steps(to) - (from >> kStepShift)));
  Index stretch = Values::kLooksAhead ? part.stretch : kBlock;
  Asked asked = part.asker.stream.part(part.strip, to - from);
  if (asked.row != nullptr) stretch = part.asked << asked.shift;
  if (stretch < Product::kTokens) stretch = Product::kTokens;
  const bool followed = R > 1 && N <= 8 && tile.value_dim == C * Product::kDims && !part.stage.prefetch;
  const bool touch = Values::kStreams && part.touch && part.strip == 0 && !followed;
  ++part.strip;
  float* o[R];
  GQA_UNROLL
  for (int r = 0; r < R; ++r) {
    o[r] = tile.o + (row + r) * tile.o_stride + column;
    asm("" : "+r"(o[r]));  // or a compiler keeps an address for every vector
  }
  const float* alpha = tile.alpha + row;
  if constexpr (Run) {
    alpha += from / kBlock * part.stage.alpha_floats;
    weights.skip(from / kBlock * part.stage.weight_floats);
  }
  weights.skip(((from & (kBlock - 1)) >> kStepShift) * weights.step);
  Vec acc[R * Held];
  GQA_UNROLL
  for (int r = 0; r < R; ++r) {
    GQA_UNROLL
    for (int n = 0; n < Held; ++n) acc[r * Held + n] = load(o[r] + n * kLanes);
  }
  for (Index end; from < to; from = end) {
    end = (from | (stretch - 1)) + 1;
    if (end > to) end = to;
    if constexpr (Values::kLooksAhead && !Run) {  // heads in turn ask step by step, not for a strip's rows at once
      if (part.asker.stream.heads > 1) {
        alignas(64) float sums[kLanes];
        store(sums, acc[0]);
        asked.row = once_known(asked.row, sums[0]);
      }
    }
    ask_rows(asked, from, end);
    if constexpr (Values::kLooksAhead)
      if (ahead != nullptr) ahead->done(R * N * (steps(end) - (from >> kStepShift)));
    // A block that begins late is the first that a row sees, or hidden from it: there is nothing to multiply.
    if ((from & (kBlock - 1)) == 0) {
      GQA_UNROLL
      for (int r = 0; r < R; ++r) {
        const Vec factor = set1(alpha[r]);
        GQA_UNROLL
        for (int n = 0; n < Held; ++n) acc[r * Held + n] = mul(acc[r * Held + n], factor);
        GQA_UNROLL
        for (int n = Held; n < N; ++n) {
          float* const sum = o[r] + n * kLanes;
          store(sum, mul(load(sum), factor));
        }
      }
    }
    for (Index step = from >> kStepShift; step < steps(end); ++step, weights.skip(weights.step), values.next()) {
      if constexpr (Values::kStreams) {
        if (touch) values.touch(tile.value_dim);
      }
      GQA_UNROLL
      for (int c = 0; c < N; c += S * Product::kVectors) {
        Product::Operand value[S * Product::kVectors];
        if constexpr (C > 1) values.template whole<S>(column + c / Product::kVectors * Product::kDims, value);
        else values(column, width, value);
        GQA_UNROLL
        for (int r = 0; r < R; ++r) {
          const auto weight = Product::weight(weights.of(r));
          GQA_UNROLL
          for (int i = 0; i < S * Product::kVectors; ++i) {
            if (c + i < Held) {
              acc[r * Held + c + i] = Product::add(weight, value[i], acc[r * Held + c + i]);
            } else {
              float* const sum = o[r] + (c + i) * kLanes;
              store(sum, Product::add(weight, value[i], load(sum)));
            }
          }
        }
      }
    }
    if constexpr (Run) {
      if ((end & (kBlock - 1)) != 0) continue;
      alpha += part.stage.alpha_floats;
      weights.skip(part.stage.weight_floats - kBlock / Product::kTokens * weights.step);
    }
  }
  GQA_UNROLL
  for (int r = 0; r < R; ++r) {
    GQA_UNROLL
    for (int n = 0; n < Held; ++n) store(o[r] + n * kLanes, acc[r * Held + n]);
  }
}

// Steps of dims of a strip of R rows: as many accumulators as registers allow, a power of two for each row.
template <int R>
inline constexpr int kStripVectors = kOutputTile / R >= 8   ? 8
                                     : kOutputTile / R >= 4 ? 4
                                                            : kOutputTile / R;
template <int R>
inline constexpr int kStripSteps = kStripVectors<R> < Product::kVectors ? 1 : kStripVectors<R> / Product::kVectors;

// All columns of R rows, `few` tokens at a time: strips of kStripSteps steps, then one step after the other.
template <int R, class Values>
GQA_KERNEL void output_columns(const RowTile& tile, Index row, Values values, const Part& part) {
  const Index few = part.few;
  constexpr int C = kStripSteps<R>;
  constexpr Index wide = C * Product::kDims;
  constexpr bool ungrouped = kRowTokens == 0 || Values::kFewRows;
  const Weights<R> weights = ungrouped ? strip_weights<R>(tile, row) : weights_of<R>(tile, row, part.grouped);
  for (Index from = part.from, end; from < part.to; from = end, values.skip(few)) {
    end = from + few < part.to ? from + few : part.to;
    Index column = 0;
    if constexpr (C > 1)
      for (; column + wide <= tile.value_dim; column += wide)
        output_strip<R, C>(tile, row, weights, column, Product::kDims, values, from, end, part);
    for (; column < tile.value_dim; column += Product::kDims) {
      const Index rest = tile.value_dim - column;
      const Index width = rest < Product::kDims ? rest : Product::kDims;
      output_strip<R, 1>(tile, row, weights, column, width, values, from, end, part);
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

// Accumulators that such strips hold: all registers, twice kOutputTile, but those for values and weights.
inline constexpr int kWholeTile = 2 * kOutputTile - 4;
// R rows as wide as values, N vectors, over tokens [from, to): values are whole rows of loads with a constant step.
template <int R, int N, class Values>
GQA_KERNEL void output_whole(const RowTile& tile, Index row, Values values, Index from, Index to, const Part& part) {
  constexpr int held = N < kWholeTile / R ? N : kWholeTile / R;
  output_strip<R, N / Product::kVectors, Values, held, true>(tile, row, strip_weights<R>(tile, row), 0, Product::kDims,
                                                             values, from, to, part);
}
template <int R, int N, class Values>
GQA_OP void output_whole_rows(const RowTile& tile, Index row, const Values& values, Index from, Index to,
                              const Part& part) {
  for (; row + R <= tile.rows; row += R) output_whole<R, N>(tile, row, values, from, to, part);
  if constexpr (R > 1) output_whole_rows<R - 1, N>(tile, row, values, from, to, part);
}

// A block or a run of blocks. Five rows of pairs are one strip. If one strip does not have all rows, the first ones take a few tokens from
// memory, then the others from the first-level cache.
inline constexpr Index kTurnBytes = 8192;
inline constexpr Index kRunDims = 128;  // values of a row, or twice as many
template <class Values>
GQA_OP void output_run(const RowTile& tile, Values values, const Part& part) {
  constexpr int N = kRunDims / kLanes;
  constexpr int R = kOutputRows;
  const bool twice = tile.value_dim > kRunDims;
  const Index high = twice ? R / 2 : R;
  const bool five = Product::kTokens > 1 && tile.rows == 5 && !twice;
  part.asker.stream.share(five ? 1 : (tile.rows + high - 1) / high, Stream::kGrain);
  if constexpr (Product::kTokens > 1)
    if (five) return output_whole<5, N>(tile, 0, values, part.from, part.to, part);
  const Index few = tile.rows <= high    ? part.to - part.from
                    : !part.stage.runs() ? part.few
                                         : kTurnBytes / part.stage.v_row_bytes;
  for (Index from = part.from, end; from < part.to; values.skip(end - from), from = end) {
    end = part.asker.stream.until(from, from + few < part.to ? from + few : part.to);
    if constexpr (Values::kWholeTwice) {
      if (twice) output_whole_rows<R / 2, 2 * N>(tile, 0, values, from, end, part);
    }
    if (!twice) output_whole_rows<R, N>(tile, 0, values, from, end, part);
    part.next_turn(end);
  }
}

// Rows from `row` on, R at a time, then fewer; groups are multiples of 4.
template <int R, class Values>
GQA_OP void output_rows(const RowTile& tile, Index row, const Values& values, const Part& part) {
  if constexpr (Values::kWhole && R == kOutputRows)
    if (part.whole) return output_run(tile, values, part);
  const auto end = [&] { return row < part.grouped && part.grouped < tile.rows ? part.grouped : tile.rows; };
  for (; row + R <= end(); row += R) output_columns<R>(tile, row, values, part);
  if constexpr (R > 1) output_rows<(R > 4 ? 4 : Values::kAnyRows ? R - 1 : 1)>(tile, row, values, part);
}

// Values from the cache that are left in staging, step by step.
template <class Codec>
struct Copied {
  static constexpr bool kFewRows = false;
  static constexpr bool kLooksAhead = false;
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

// Rows in groups: the first few copy values to staging on their way.
template <class Codec>
GQA_OP void output_copied(const RowTile& tile, const Cached<Codec>& cached, const Part& part) {
  const Index stride = staged_stride(tile);
  output_columns<kOutputRows>(tile, 0, Copied<Codec>{cached, tile.staging, stride}, part);
  output_rows<kOutputRows>(tile, kOutputRows, Staged{tile.staging, stride}, part);
}

// All tokens at once: staging is in the first-level cache.
GQA_OP Part for_staging(const Part& part) {
  Part staged = part;
  staged.touch = false;
  staged.few = part.to - part.from;
  return staged;
}

// One unit, the tokens of `part`.
template <class Codec>
GQA_OP void add_values(const RowTile& tile, const Block& block, const Part& part) {
  const Index from = part.from;
  const Index to = part.to;
  Stream& stream = part.asker.stream;
  if (stream.asks()) stream.share(count_output_strips<kOutputRows>(tile.rows, tile.value_dim), to - from);
  if constexpr (kReadable<Codec>) {
    const bool whole_steps = from % Product::kTokens == 0 && to % Product::kTokens == 0;
    if (!block.careful && block.v_stride != 0 && whole_steps) {
      const Cached<Codec> cached{block.v + from * block.v_stride, block.v_stride};
      if constexpr (!kStaged<Codec>)
        if (tile.rows >= 2 * kLanes) return output_rows<kOutputRows>(tile, 0, Staged{cached.row, cached.stride}, part);
      if (!kStaged<Codec> || tile.rows <= kDirectRows<Codec>) return output_rows<kOutputRows>(tile, 0, cached, part);
      if constexpr (kCopied<Codec>) return output_copied<Codec>(tile, cached, for_staging(part));
    }
  }
  const Part staged = for_staging(part);
  if (!block.careful)
    return output_rows<kOutputRows>(tile, 0, stage_values<Codec>(tile, block, kEveryToken, from, to), staged);
  RowTile upto = tile;  // a hidden token's values are taken as zero, row by row: 0 × NaN is not 0
  for (Index row = 0; row < tile.rows; ++row) {
    upto.rows = row + 1;
    output_rows<kOutputRows>(upto, row, stage_values<Codec>(tile, block, block.visible[row], from, to), staged);
  }
}

// Whether outputs are taken in rows as wide as values: where these are streamed, and for more rows than one strip has, where values of
// one token at a time leave registers to look ahead with.
template <class Codec>
GQA_OP bool whole_rows(const RowTile& tile, const Stage& stage) {
  if (!Cached<Codec>::kWhole) return false;
  if (stage.runs()) return tile.value_dim == kRunDims || (Cached<Codec>::kWholeTwice && tile.value_dim == 2 * kRunDims);
  const bool many = tile.rows > kOutputRows && tile.rows < kGroupRows;
  return many && Product::kTokens == 1 && Codec::bytes == 4 && tile.value_dim == kRunDims;
}

// o[row] ← alpha[row] · o[row] + Σ_t weights[row][t] · v[t], t ascending, for every unit of the stage.
template <class Codec>
inline void accumulate(const RowTile& tile, const Stage& stage) {
  const bool one_strip = tile.rows * tile.o_stride <= kOutputTile * kLanes;
  const bool whole = whole_rows<Codec>(tile, stage);
  const Index asked_bytes =
      stage.asks && !stage.runs() ? stage.k_row_bytes : stage.v_row_bytes;  // of the next block's keys
  Index asked = stage.heads > 1 ? 1 : Product::kTokens;
  while (asked * asked_bytes < (stage.heads > 1 ? kEvenBytes : kAskedBytes) && asked < kMostAsked) asked *= 2;
  const Index alone = tile.rows < kBlockRows<Codec> ? kStripTokens : kBlock;
  const bool memory = stage.runs() && !(stage.asks && tile.rows > 2);  // is the limit
  const Index few = stage.long_turns                                        ? kBlock / 2
                    : memory || (stage.heads > 1 && tile.rows < kGroupRows) ? kFewTokens
                                                                            : alone;
  const Index tokens = tile.rows >= kGroupRows || (stage.runs() && (whole || one_strip)) ? kBlock
                       : stage.heads > 1 && tile.rows < 3                                ? kSideTokens<Codec::bytes>
                                                                                         : few;
  Upcoming after;  // what is read after the run of blocks
  Asker asker;
  for (Index b = 0, taken, run = 0; b < stage.blocks; b += taken, run -= taken) {
    const Block& any = stage.units[b * stage.heads];
    if (run == 0) {
      run = run_of(stage, b, &Block::v, &Block::v_stride);
      after = after_values(stage, b + run - 1);
      asker.stream = stream_of(stage, values_of(stage, b), (run - 1) * kBlock + any.last - any.first, after,
                               b == 0 ? stage.v_surplus : 0);
    }
    taken = whole && stage.runs() ? run : 1;
    const Index last = (taken - 1) * kBlock + any.last;
    const Index steps = (any.last - any.first + Product::kTokens - 1) / Product::kTokens;
    Ahead ahead(values_of(stage, b), after, stage, stage.heads * tile.rows * (tile.o_stride / kLanes) * steps,
                stage.ahead);
    if (stage.prefetch) asker.ahead = &ahead;
    Part part{stage, asker, asked};
    part.few = one_strip ? kBlock : few;
    if (stage.prefetch) part.stretch = ahead.evenly() ? Product::kTokens : kAheadTokens;
    part.touch = stage.touches();
    part.whole = whole;
    part.grouped = grouped_rows(tile.rows);
    for (part.from = any.first; part.from < last; part.from = part.to) {
      part.to = taken > 1 ? last : part.from / tokens * tokens + tokens;
      part.to = asker.stream.until(part.from, part.to < last ? part.to : last);
      for (Index j = 0; j < stage.heads; ++j) {
        part.reached = part.from;
        add_values<Codec>(unit_tile(tile, stage, b, j), stage.units[b * stage.heads + j], part);
        part.next_turn(part.to);
      }
    }
  }
}
