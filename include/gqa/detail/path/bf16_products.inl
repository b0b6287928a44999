// SPDX-License-Identifier: Apache-2.0
// Queries in panels, and what a lane adds up with bf16 products: pairs of dims in scores, pairs of tokens in outputs. Part of
// avx512bf16.hpp.

// tile.q ← queries as bf16, unscaled: panels of 16 rows as transpose_panel leaves pairs of dims, then the other rows one by one. A row takes
// 2 · q_stride bytes either way.
inline void pack(const QueryTile& tile, const QuerySource& source) {
  auto* q = static_cast<std::byte*>(tile.q);
  const Index row_bytes = tile.q_stride * 2;
  const Index in_panels = rows_in_panels(tile.rows);
  if (in_panels > 0) avx512::prefetch_queries(tile, source, 0, kLanes);
  for (Index row = 0; row < in_panels; row += kLanes) {
    avx512::prefetch_queries(tile, source, row + kLanes, row + 2 * kLanes);
    const Index count = tile.rows - row < kLanes ? tile.rows - row : kLanes;
    for (Index r = 0; r < count; ++r) pack_query(tile, source, row + r, tile.staging + r * row_bytes);
    avx512::transpose_panel(typed<const float>(tile.staging), row_bytes / 4, count, row_bytes / 4,
                            typed<float>(q + row * row_bytes));
  }
  for (Index row = in_panels; row < tile.rows; ++row) pack_query(tile, source, row, q + row * row_bytes);
}

struct Dot {
  using Operand = __m512bh;
  using Sum = Vec;
  using Strip = Dot;
  using ForPanels = Dot;
  using Key = Bf16;
  static constexpr Index kDims = kLanes2;
  static constexpr Index kQueryBytes = 2;
  static constexpr Index kPieceBytes = 4;
  static constexpr bool kPlainKeys = true;
  static GQA_OP Vec none() { return zero(); }
  static GQA_OP __m512bh query(const std::byte* p) { return as_pairs(load_pairs(p)); }
  static GQA_OP __m512bh key(const std::byte* row, Index d) { return as_pairs(load_pairs(row + d * 2)); }
  static GQA_OP __m512bh key_part(const std::byte* row, Index d, Index count) {
    return as_pairs(load_pairs_part(row + d * 2, count));
  }
  static GQA_OP Vec add(__m512bh q, __m512bh k, Vec acc) { return _mm512_dpbf16_ps(acc, q, k); }
  static GQA_OP __m512bh rows_at(const std::byte* q, Index piece) { return as_pairs(load_pairs(q + piece * 64)); }
  static GQA_OP __m512bh pieces(const std::byte* p) { return as_pairs(_mm512_castps_si512(avx512::repeat_pieces(p))); }
  static GQA_OP Vec finish(Vec sums, const QueryTile& tile) { return mul(sums, set1(tile.score_scale)); }
  // The last pieces must not be read with what lies behind the row; there are zeros behind rows that have been narrowed.
  static GQA_OP Block panel_block(const QueryTile& tile, const Block& block, Index (&offset)[kBlock]) {
    const bool whole = tile.head_dim % (2 * kPieces) == 0 || block.k == tile.staging;
    return whole ? block : narrow_keys<Bf16>(tile, block, offset);
  }
};

struct Product {
  using Operand = __m512bh;
  template <int R, int Held>
  using Sums = Vec[R * Held];
  static constexpr Index kRows = 1;
  static constexpr Index kTokens = 2;
  static constexpr Index kWeightFloats = 1;
  static constexpr Index kDims = kLanes2;
  static constexpr int kVectors = 2;
  // Weights are pairs of bf16 by now, see softmax.
  static GQA_OP __m512bh weight(const float* p) {
    int pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return as_pairs(_mm512_set1_epi32(pair));
  }
  // Denormal sums are flushed, and a denormal acc is taken as zero: what the scaling by alpha makes denormal is gone after the next
  // step, so that it does not matter how many tokens with weight zero follow.
  static GQA_OP Vec add(__m512bh weight, __m512bh value, Vec acc) { return _mm512_dpbf16_ps(acc, weight, value); }
};

// Rows that take values straight from the cache, up to one panel; more share a staged copy, in the first-level cache.
template <class Codec>
inline constexpr Index kDirectRows = kReadable<Codec> ? 2 * kLanes - 1 : kPanelRows - 1;

// V rows of a pair of tokens, 32 dims → two registers of (even token, odd token) pairs of one dim each. unpack works within
// quarters of a register: the first has dims 0–3, 8–11, 16–19, 24–27, the second the others.
GQA_OP void interleave(__m512i even, __m512i odd, __m512bh* value) {
  value[0] = as_pairs(_mm512_unpacklo_epi16(even, odd));
  value[1] = as_pairs(_mm512_unpackhi_epi16(even, odd));
}

// Evenly spaced rows, from the first token that is added; whole pairs.
template <class Codec>
struct Cached {
  static constexpr bool kFewRows = false;
  static constexpr bool kWaits = true;
  static constexpr bool kAnyRows = true;
  static constexpr bool kWhole = kReadable<Codec>;
  static constexpr bool kWholeTwice = kWhole;
  static constexpr bool kStreams = true;
  const std::byte* row;
  Index stride;
  GQA_OP void operator()(Index column, Index count, __m512bh* value) const {
    const std::byte* even = row + column * 2;
    if (count == kLanes2) interleave(load_pairs(even), load_pairs(even + stride), value);
    else interleave(load_pairs_part(even, count), load_pairs_part(even + stride, count), value);
  }
  // C whole steps: one row, then the other, as they lie in memory; a compiler is not to mix their loads.
  template <int C>
  GQA_OP void whole(Index column, __m512bh* value) const {
    __m512i even[C];
    GQA_UNROLL
    for (int c = 0; c < C; ++c) {
      even[c] = load_pairs(row + (column + c * kLanes2) * 2);
      asm("" : "+v"(even[c]));
    }
    GQA_UNROLL
    for (int c = 0; c < C; ++c)
      interleave(even[c], load_pairs(row + stride + (column + c * kLanes2) * 2), value + 2 * c);
  }
  GQA_OP void next() { row += 2 * stride; }
  GQA_OP void skip(Index tokens) { row += tokens * stride; }
  GQA_OP void touch(Index width) const {
    touch_row(row, 2 * width);
    touch_row(row + stride, 2 * width);
  }
};

// [pair of tokens][column / 32][first, second]
struct Staged {
  static constexpr bool kFewRows = false;
  static constexpr bool kWaits = false;
  static constexpr bool kAnyRows = false;
  static constexpr bool kWhole = false;
  static constexpr bool kStreams = false;
  const std::byte* pairs;
  Index stride;  // bytes from pair to pair
  GQA_OP void operator()(Index column, Index, __m512bh* value) const {
    value[0] = as_pairs(load_pairs(pairs + column * 4));
    value[1] = as_pairs(load_pairs(pairs + column * 4 + 64));
  }
  template <int C>
  GQA_OP void whole(Index column, __m512bh* value) const {
    GQA_UNROLL
    for (int c = 0; c < C; ++c) (*this)(column + c * kLanes2, kLanes2, value + 2 * c);
  }
  GQA_OP void next() { pairs += stride; }
  GQA_OP void skip(Index tokens) { pairs += tokens / 2 * stride; }
  GQA_OP void touch(Index) const {}
};

GQA_OP Index staged_stride(const QueryTile& tile) { return round_up(tile.value_dim, kLanes2) * 4; }
GQA_OP void keep(std::byte* pairs, Index column, const __m512bh* value) {
  _mm512_storeu_si512(pairs + column * 4, reinterpret_cast<__m512i>(value[0]));
  _mm512_storeu_si512(pairs + column * 4 + 64, reinterpret_cast<__m512i>(value[1]));
}
GQA_OP void stage_rows(const __m512i (&rows)[2], std::byte* pairs, Index column) {
  __m512bh value[2];
  interleave(rows[0], rows[1], value);
  keep(pairs, column, value);
}

// Weights rounded, see bf16_softmax.inl.
GQA_OP __m512bh ones() { return as_pairs(_mm512_set1_epi32(0x3f803f80)); }
// sums + the pairs of each lane.
GQA_OP Vec add_pairs(Vec sums, __m512bh pairs) { return _mm512_dpbf16_ps(sums, pairs, ones()); }

// Weights of sixteen rows, [token][row] → [pair of tokens][row] in the first half of the room. Returns the rows' sums.
GQA_OP Vec round_panel(float* w) {
  const __m512i by_row = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                          21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  Vec sum[kLanes];
  GQA_UNROLL
  for (int pair = 0; pair < kBlock / 2; ++pair) {
    const Vec even = load(w + 2 * pair * kLanes);
    const Vec odd = load(w + (2 * pair + 1) * kLanes);
    const auto rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
    const __m512i pairs = _mm512_permutexvar_epi16(by_row, rounded);
    _mm512_storeu_si512(w + pair * kLanes, pairs);
    sum[pair % kLanes] = add_pairs(pair < kLanes ? zero() : sum[pair % kLanes], as_pairs(pairs));
  }
  GQA_UNROLL
  for (int half = kLanes / 2; half > 0; half /= 2) {
    GQA_UNROLL
    for (int i = 0; i < half; ++i) sum[i] = add(sum[i], sum[i + half]);
  }
  return sum[0];
}

// As avx512::softmax_panel.
template <class Score>
GQA_OP void softmax_panel(const QueryTile& tile, const Block& block, Index row) {
  avx512::softmax_panel<Score>(tile, block, row);
  const Vec sum = round_panel(tile.weights + row * kBlock);
  store(tile.divisor + row, avx512::fma(load(tile.divisor + row), load(tile.alpha + row), sum));
}
// reduce_add of a and of b: in lane 0, in lane 8.
GQA_OP void reduce_two(Vec a, Vec b, float (&two)[2]) {
  Vec sums = avx512::reduce_pair(a, b);
  sums = add(sums, _mm512_shuffle_f32x4(sums, sums, 0xb1));
  sums = add(sums, _mm512_shuffle_ps(sums, sums, 0x4e));
  sums = add(sums, _mm512_shuffle_ps(sums, sums, 0xb1));
  two[0] = _mm512_cvtss_f32(sums);
  two[1] = _mm_cvtss_f32(_mm512_extractf32x4_ps(sums, 2));
}

// 64 weights of a row → 32 pairs in the first half of its room. Returns the lanes' sums of them.
GQA_OP Vec round_row(const QueryTile& tile, Index row, const Vec (&s)[kBlock / kLanes]) {
  float* const w = tile.weights + row * kBlock;
  const __m512bh first = _mm512_cvtne2ps_pbh(s[1], s[0]);
  const __m512bh second = _mm512_cvtne2ps_pbh(s[3], s[2]);
  _mm512_storeu_si512(w, reinterpret_cast<__m512i>(first));
  _mm512_storeu_si512(w + kLanes, reinterpret_cast<__m512i>(second));
  return add_pairs(add_pairs(zero(), first), second);
}

// Outputs in their natural order, then as on the AVX-512 path.
inline void store_outputs(const QueryTile& tile, const OutputTarget& target) {
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  for (Index i = 0; i < tile.rows * tile.o_stride && target.data != nullptr; i += kLanes2) {
    const Vec low = load(tile.o + i);
    const Vec high = load(tile.o + i + kLanes);
    store(tile.o + i, _mm512_permutex2var_ps(low, first, high));
    store(tile.o + i + kLanes, _mm512_permutex2var_ps(low, second, high));
  }
  avx512::store(tile, target);
}
