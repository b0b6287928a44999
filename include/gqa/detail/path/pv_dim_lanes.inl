// SPDX-License-Identifier: Apache-2.0
// Outputs of a few rows and dims over some tokens: the inner loop of pv.inl, and part of it.

// Weights of R rows in a block: of row r from first[r / kEven] + r % kEven · stride on, a step after the other.
template <int R>
struct Weights {
  static constexpr int kEven = kLanes % R == 0 ? R : 1;  // rows that lie evenly: strips of so many end with the panel
  const float* first[R / kEven];
  Index stride;
  Index step;
  GQA_OP const float* of(int r) const { return first[r / kEven] + r % kEven * stride; }
  GQA_OP void skip(Index floats) {
    GQA_UNROLL
    for (int i = 0; i < R / kEven; ++i) first[i] += floats;
  }
};
// Operands of weights that R rows have, and the rows that accumulators are held for.
template <int R>
inline constexpr int kWeightRows = (R + int{Product::kRows} - 1) / int{Product::kRows};
template <int R>
inline constexpr int kHeldRows = kWeightRows<R>* int{Product::kRows};
template <int R>
using StripWeights = Weights<kWeightRows<R>>;
// Rows that share an operand lie in the room of the first, `row` being the first or the only one that is asked for.
template <int R>
GQA_OP StripWeights<R> strip_weights(const QueryTile& tile, Index row) {
  constexpr Index rows = Product::kRows;
  constexpr int even = StripWeights<R>::kEven;
  StripWeights<R> weights{{}, rows * kBlock, Product::kWeightFloats};
  const Index within = row % rows * (Product::kWeightFloats / rows);
  GQA_UNROLL
  for (int r = 0; r < kWeightRows<R>; r += even)
    weights.first[r / even] = tile.weights + (row / rows + r) * rows * kBlock + within;
  return weights;
}
// The same where the first `in_panels` rows are in panels, those of one strip all or none.
template <int R>
GQA_OP StripWeights<R> weights_of(const QueryTile& tile, Index row, Index in_panels) {
  constexpr int even = StripWeights<R>::kEven;
  StripWeights<R> weights{{}, row < in_panels ? 1 : kBlock, weight_step(row, in_panels)};
  GQA_UNROLL
  for (int r = 0; r < kWeightRows<R>; r += even) weights.first[r / even] = weights_at(tile, row + r, in_panels);
  return weights;
}

// What is fetched at once, in bytes. Where heads take a few tokens in turn, prefetching is most of the time, and the evener it comes, the
// faster.
inline constexpr Index kFetchedBytes = 1024;
inline constexpr Index kEvenBytes = 512;
inline constexpr Index kMostFetched = 16;  // rows

inline constexpr int kStepShift = Product::kTokens == 4 ? 2 : Product::kTokens == 2 ? 1 : 0;

// Tokens [from, to) of a block or of a run of blocks, for one head.
struct Part {
  const Stage& stage;
  Prefetcher& prefetcher;
  Index row_bytes;            // of a row of values
  Index fetched;              // rows at once, a power of two
  mutable Index strip = 0;    // the next strip's number, of those that take these tokens
  mutable Index reached = 0;  // by all strips
  Index begin = 0;            // the block's first token: alpha comes before it
  Index from = 0;
  Index to = 0;
  Index few = 0;        // tokens that a strip takes before the next strip has its turn
  Index in_panels = 0;  // rows of the head that are in panels
  bool touch = false;   // see PrefetchPolicy
  bool whole = false;   // rows as wide as values, see whole_rows

  // All strips have taken the tokens before `end`.
  GQA_OP void end_stretch_at(Index end) const {
    strip = 0;
    if (prefetcher.on()) end_stretch(prefetcher, end - reached, end - reached);
    reached = end;
  }
};

// The outputs that a strip holds, from o and back.
template <int R, int Held>
GQA_OP void load_sums(Vec (&acc)[R * Held], float* const (&o)[R]) {
  GQA_UNROLL
  for (int r = 0; r < R; ++r) {
    GQA_UNROLL
    for (int n = 0; n < Held; ++n) acc[r * Held + n] = load(o[r] + n * kLanes);
  }
}
template <int R, int Held>
GQA_OP void store_sums(const Vec (&acc)[R * Held], float* const (&o)[R]) {
  GQA_UNROLL
  for (int r = 0; r < R; ++r) {
    GQA_UNROLL
    for (int n = 0; n < Held; ++n) store(o[r] + n * kLanes, acc[r * Held + n]);
  }
}
// R rows of N vectors of outputs, of which `Held` are held in registers and those behind them lie at o: times alpha.
template <int R, int N, int Held>
GQA_OP void rescale_sums(Vec (&acc)[R * Held], float* const (&o)[R], const float* alpha) {
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

// How many weights are loaded at once.
template <class P>
inline constexpr int kLoadedWeights = 1;
template <class P>
requires requires { P::kLoadedWeights; }
inline constexpr int kLoadedWeights<P> = P::kLoadedWeights;
// A step's weights of a row, in every lane: loaded one by one;
template <int R>
struct SingleWeights {
  const StripWeights<R>& weights;
  GQA_OP const float* of(int r) const { return weights.of(r); }
  template <class P = Product>
  GQA_OP auto operator()(int r) const {
    return P::weight(weights.of(r));
  }
};
// or Count at once, as they lie: of as many steps of a row, or of as many rows in a panel and one step.
template <int R, int Count, bool InPanel, class P = Product>
struct LoadedWeights {
  decltype(P::load_weights(std::declval<const float*>())) loaded[InPanel ? Count : R];
  int step = 0;
  GQA_OP explicit LoadedWeights(const float* first) {
    GQA_UNROLL
    for (int i = 0; i < (InPanel ? Count : R); ++i)
      loaded[i] = P::load_weights(first + i * (InPanel ? kLanes : kBlock));
  }
  GQA_OP auto operator()(int r) const { return InPanel ? P::weight(loaded[step], r) : P::weight(loaded[r], step); }
};

// The inner loop: R rows × C steps of dims += weights · values of a step of tokens, S steps of dims loaded at once.
template <int R, int C, int S, int Held, bool Whole, class Values, class StepWeights, class P = Product>
GQA_OP void add_step(Vec (&acc)[R * Held], float* const (&o)[R], const StepWeights& weights, const Values& values,
                     Index column, Index width) {
  constexpr int N = C * P::kVectors;
  GQA_UNROLL
  for (int c = 0; c < N; c += S * P::kVectors) {
    typename P::Operand value[S * P::kVectors];
    if constexpr (Whole) values.template whole<S>(column + c / P::kVectors * P::kDims, value);
    else values(column, width, value);
    GQA_UNROLL
    for (int r = 0; r < R; ++r) {
      const auto weight = weights(r);
      GQA_UNROLL
      for (int i = 0; i < S * P::kVectors; ++i) {
        if (c + i < Held) {
          acc[r * Held + c + i] = P::add(weight, value[i], acc[r * Held + c + i]);
        } else {
          float* const sum = o[r] + (c + i) * kLanes;
          store(sum, P::add(weight, value[i], load(sum)));
        }
      }
    }
  }
}

// Steps from `step` on, Count at a time while there are as many; the step after them.
// Values that are not widened are not loaded before there are sums of the step before theirs: there are no registers for more.
template <int R, int C, int S, int Held, int Count, bool InPanel, class Values, class P = Product>
GQA_OP Index add_loaded_steps(Vec (&acc)[R * Held], float* const (&o)[R], Weights<R>& weights, Values& values,
                              Index column, Index step, Index last) {
  for (; step + Count <= last; step += Count, weights.skip(Count * (InPanel ? kLanes : 1))) {
    LoadedWeights<R, Count, InPanel> loaded(weights.first[0]);
    GQA_UNROLL
    for (; loaded.step < Count; ++loaded.step, values.next()) {
      add_step<R, C, S, Held, true>(acc, o, loaded, values, column, P::kDims);
      if constexpr (Values::kPlain) P::load_after(values.row, acc[0]);
    }
  }
  return step;
}

// R rows × C steps of dims of outputs while tokens [from, to) go by; alpha comes before the first of a block. `Held` vectors of each
// row are held in registers, those behind them in the first-level cache. C == 1 may be part of a step. The first strip reads memory: it
// touches rows, unless its loads are followed: a handful, whole rows of several.
template <int R, int C, class Values, int Held = C* Product::kVectors, bool Run = false>
GQA_OP void output_strip(const QueryTile& tile, Index row, StripWeights<R> weights, Index column, Index width,
                         Values values, Index from, Index to, const Part& part) {
  constexpr int N = C * Product::kVectors;
  constexpr int S = Run && R > 1 ? 1 : C;  // steps that are loaded at once
  constexpr bool loads_weights = (kLoadedWeights<Product>) > 1 && Weights<R>::kEven == R;
  const auto steps = [](Index tokens) { return (tokens + Product::kTokens - 1) >> kStepShift; };
  PrefetchCursor ahead = part.prefetcher.cursor(part.strip, to - from);
  Index stretch = ahead.row != nullptr ? part.fetched << ahead.shift : kBlock;  // tokens from fetching to fetching
  if (stretch < Product::kTokens) stretch = Product::kTokens;
  const bool followed = R > 1 && N <= 8 && tile.value_dim == C * Product::kDims && part.stage.runs;
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
  typename Product::template Sums<R, Held> acc;
  load_sums<R, Held>(acc, o);
  for (Index end; from < to; from = end) {
    end = (from | (stretch - 1)) + 1;
    if (end > to) end = to;
    if constexpr (Values::kWaits && !Run) {
      if (ahead.row != nullptr && part.prefetcher.policy().pace == PrefetchPolicy::Pace::with_sums) {
        alignas(64) float sums[kLanes];
        store(sums, acc[0]);
        ahead.row = once_known(ahead.row, sums[0]);
      }
    }
    prefetch_rows(ahead, from, end);
    if ((from & (kBlock - 1)) == 0 || from == part.begin) {
      rescale_sums<R, N, Held>(acc, o, alpha);
    }
    Index single = from >> kStepShift;  // the first step whose weights are loaded one by one
    if constexpr (loads_weights) {
      constexpr int count = kLoadedWeights<Product>;
      if (touch) {
        Values touched = values;
        for (Index i = single; i < steps(end); ++i, touched.next()) touched.touch(tile.value_dim);
      }
      const bool whole = C > 1 || width == Product::kDims;
      if (whole && weights.step == 1)
        single = add_loaded_steps<R, C, S, Held, count, false>(acc, o, weights, values, column, single, steps(end));
      if constexpr (R == count)
        if (whole && weights.step != 1)
          single = add_loaded_steps<R, C, S, Held, count, true>(acc, o, weights, values, column, single, steps(end));
    }
    for (Index step = single; step < steps(end); ++step, weights.skip(weights.step), values.next()) {
      if constexpr (Values::kStreams) {
        if (touch && !loads_weights) values.touch(tile.value_dim);
      }
      add_step<R, C, S, Held, (C > 1)>(acc, o, SingleWeights<R>{weights}, values, column, width);
    }
    if constexpr (Run) {
      if ((end & (kBlock - 1)) != 0) continue;
      alpha += part.stage.alpha_floats;
      weights.skip(part.stage.weight_floats - kBlock / Product::kTokens * weights.step);
    }
  }
  store_sums<R, Held>(acc, o);
}
