// SPDX-License-Identifier: Apache-2.0
// What a lane adds up with f32 multiply-adds: keys and values of every codec, widened. Part of kernel.inl.

// Rows of tokens [first, last) as f32, one behind the other from `out` on, zeros up to a whole vector; hidden ones are zeros.
template <class Codec>
GQA_OP void widen_rows(const BlockRows<Codec>& rows, std::uint64_t seen, float* out, Index width, Index first,
                       Index last) {
  const Index stride = round_up(width, kLanes);
  for (Index t = first; t < last; ++t, out += stride) {
    if (((seen >> t) & 1u) == 0) {
      for (Index d = 0; d < width; d += kLanes) store(out + d, zero());
      continue;
    }
    const RowOf<Codec> row = rows(t);
    Index d = 0;
    for (; d + kLanes <= width; d += kLanes) store(out + d, load(Codec{}, row, d));
    if (d < width) store(out + d, load_part(Codec{}, row, d, width - d));
  }
}

template <class Codec>
struct Dot {
  using Operand = Vec;
  using Sum = Vec;
  using Strip = StripDot<Codec, Dot>;
  using ForPanels = Dot<F32>;
  using Key = Codec;
  static constexpr Index kDims = kLanes;
  static constexpr Index kQueryBytes = 4;
  static constexpr Index kPieceBytes = 4;
  static constexpr bool kPlainKeys = kPlainRows<Codec>;
  static GQA_OP Vec none() { return zero(); }
  static GQA_OP Vec query(const std::byte* p) { return load(typed<const float>(p)); }
  static GQA_OP Vec key(const std::byte* row, Index d) { return load(Codec{}, row, d); }
  static GQA_OP Vec key_part(const std::byte* row, Index d, Index count) { return load_part(Codec{}, row, d, count); }
  static GQA_OP Vec add(const Vec& q, const Vec& k, const Vec& acc) { return fma(q, k, acc); }
  static GQA_OP Vec rows_at(const std::byte* q, Index piece) { return load(typed<const float>(q) + piece * kLanes); }
  static GQA_OP Vec pieces(const std::byte* p) { return repeat_pieces(p); }
  static GQA_OP Vec finish(const Vec& sums, const QueryTile&) { return sums; }  // queries carry the scale
  // f32 keys are read where they are; others are widened, once for all panels, and rows of which the last read would reach behind them.
  static GQA_OP Block panel_block(const QueryTile& tile, const Block& block, Index (&offset)[kBlock]) {
    Block wide = block;
    if (!kPlainKeys || tile.head_dim % kPieces != 0) {
      const Index stride = round_up(tile.head_dim, kLanes) * 4;
      for (Index t = block.first; t < block.last; ++t) offset[t] = (t - block.first) * stride;
      widen_rows<Codec>(block_keys<Codec>(block), kEveryToken, typed<float>(tile.staging), tile.head_dim, block.first,
                        block.last);
      wide.k = tile.staging;
      wide.k_offset = offset;
      wide.k_stride = 0;  // the cache's says nothing here
    }
    return wide;
  }
};

struct Product {
  using Operand = Vec;
  template <int R, int Held>
  using Sums = Vec[R * Held];
  static constexpr Index kRows = 1;
  static constexpr Index kTokens = 1;
  static constexpr Index kWeightFloats = 1;
  static constexpr Index kDims = kLanes;
  static constexpr int kVectors = 1;
  static GQA_OP Vec weight(const float* p) { return set1(*p); }
  static GQA_OP Vec add(const Vec& weight, const Vec& value, const Vec& acc) { return fma(weight, value, acc); }
  // Several weights, as they lie; one of them.
  static constexpr int kLoadedWeights = kPvWeights;
  template <class Float>
  static GQA_OP auto load_weights(const Float* p) {
    return load_lanes(p);
  }
  template <class Sum>
  static GQA_OP void load_after(const std::byte*& p, Sum& sum) {
    values_after(p, sum);
  }
  template <class Loaded>
  static GQA_OP Vec weight(const Loaded& loaded, int lane) {
    return set1_lane(loaded, lane);
  }
};

// Read where they lie. Others are widened to staging first, block by block: those whose scales lie elsewhere, and on paths with few registers
// whatever takes many operations to widen.
template <class Codec>
inline constexpr bool kReadable = kWholeRows<Codec> && (kHeldQueries > 0 || KvType(Codec::type).is_element());
template <class Codec>
inline constexpr bool kStaged = !kPlainRows<Codec>;  // widened once for many rows
// Rows that take values straight from the cache; panels share a staged copy, in the first-level cache.
template <class Codec>
inline constexpr Index kDirectRows = kPanelRows - 1;

// Evenly spaced rows, from the first token that is added; of the cache, or staged.
template <class Codec, bool OfCache = (kHeldQueries > 0)>
struct Cached {
  static constexpr bool kFewRows = kStaged<Codec>;  // at most kDirectRows, no panels
  static constexpr bool kPlain = kPlainRows<Codec>;
  static constexpr bool kWaits = OfCache;
  static constexpr bool kAnyRows = OfCache || kHeldQueries == 0;
  static constexpr bool kWhole = OfCache && kReadable<Codec>;
  static constexpr bool kWholeTwice = OfCache && kPlainRows<Codec>;  // others are widened, and gain nothing by it
  static constexpr bool kStreams = OfCache || kHeldQueries == 0;
  const std::byte* row;
  Index stride;
  GQA_OP void operator()(Index column, Index count, Vec* value) const {
    *value = count == kLanes ? load(Codec{}, row, column) : load_part(Codec{}, row, column, count);
  }
  template <int C>
  GQA_OP void whole(Index column, Vec* value) const {
    GQA_UNROLL
    for (int c = 0; c < C; ++c) (*this)(column + c * kLanes, kLanes, value + c);
  }
  GQA_OP void next() { row += stride; }
  GQA_OP void skip(Index tokens) { row += tokens * stride; }
  GQA_OP void touch(Index width) const { touch_row(row, KvType(Codec::type).row_bytes(width)); }
};

// [token][dim] as f32.
using Staged = Cached<F32, false>;
GQA_OP Index staged_stride(const QueryTile& tile) { return round_up(tile.value_dim, kLanes) * Index{sizeof(float)}; }
GQA_OP void keep(std::byte* row, Index column, const Vec* value) { store(typed<float>(row) + column, *value); }

template <class Codec>
inline constexpr bool kCopied = false;  // would gain up to 3% of outputs, in 5 kB of code

template <class Codec>
GQA_KERNEL Staged stage_values(const QueryTile& tile, const Block& block, std::uint64_t seen, Index from, Index to) {
  widen_rows<Codec>(block_values<Codec>(block), seen, typed<float>(tile.staging), tile.value_dim, from, to);
  return {tile.staging, staged_stride(tile)};
}

template <class Codec>
inline bool nonfinite(const Block& block, std::uint64_t tokens, Index value_dim) {
  const BlockRows<Codec> rows = block_values<Codec>(block);
  for (; tokens != 0; tokens &= tokens - 1) {
    const RowOf<Codec> v = rows(__builtin_ctzll(tokens));
    Index d = 0;
    for (; d + kLanes <= value_dim; d += kLanes)
      if (any_nonfinite(load(Codec{}, v, d))) return true;
    if (d < value_dim && any_nonfinite(load_part(Codec{}, v, d, value_dim - d))) return true;
  }
  return false;
}
