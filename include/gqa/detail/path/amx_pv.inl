// SPDX-License-Identifier: Apache-2.0
// Output accumulation of one block, by tile products. Part of amx.hpp.

// A row of zeros where that is zero bytes; else none.
template <class Codec>
GQA_OP RowOf<Codec> hidden_row() {
  if constexpr (KvType(Codec::type).is_element()) return kZeros.byte;
  else return {};
}

// A token's values, 32 at a time. A hidden token's are zeros, one piece of them again and again.
template <class Codec, int Terms>
struct ValueRow {
  RowOf<Codec> row;
  Index step;  // elements
  Index at = 0;
  GQA_OP ValueRow(const Block& block, std::uint64_t seen, Index t)
      : row(shows(seen, t) ? block_values<Codec>(block)(t) : hidden_row<Codec>()), step(shows(seen, t) ? kHalf : 0) {}
  static GQA_OP bool shows(std::uint64_t seen, Index t) { return ((seen >> t) & 1u) != 0; }
  GQA_OP Words<Terms> next(Index count) {
    const Index d = at;
    at += step;
    if constexpr (Codec::type == ElementType::bf16)
      if (count == kHalf) return {{_mm512_loadu_si512(row + d * Codec::bytes)}};
    if constexpr (!KvType(Codec::type).is_element())
      if (step == 0) return {};
    return words<Codec, Terms>(row, d, count);
  }
};

// Two rows of 32 values → two rows of operand B, 16 columns each: the even and the odd columns' pairs, then these two
// by turns.
struct Interleaved {
  __m512i low;
  __m512i high;
};
GQA_OP Interleaved interleave(__m512i a, __m512i b) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i second = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  constexpr __mmask32 kOddWords = 0xaaaaaaaau;
  const __m512i even = _mm512_mask_blend_epi16(kOddWords, a, _mm512_slli_epi32(b, 16));
  const __m512i odd = _mm512_mask_blend_epi16(kOddWords, _mm512_srli_epi32(a, 16), b);
  return {_mm512_permutex2var_epi32(even, first, odd), _mm512_permutex2var_epi32(even, second, odd)};
}

// V of the block in staging: operand B by term, half and column tile.
struct ValueTiles {
  std::byte* first;
  Index columns;  // tiles side by side
  GQA_OP Index term_bytes() const { return 2 * columns * kTileBytes; }
  GQA_OP std::byte* at(int term, Index half, Index column) const {
    return first + term * term_bytes() + (half * columns + column) * kTileBytes;
  }
};
GQA_OP ValueTiles value_tiles(const QueryTile& tile) { return {tile.staging, tile.o_stride / kLanes}; }

// 32 dims of two tokens → a row of two column tiles, or of the first alone, for each term.
template <int Terms>
GQA_OP void put_values(const Words<Terms>& even, const Words<Terms>& odd, std::byte* to, Index term_bytes, bool both) {
  GQA_UNROLL
  for (int term = 0; term < Terms; ++term, to += term_bytes) {
    const Interleaved values = interleave(even.term[term], odd.term[term]);
    _mm512_storeu_si512(to, values.low);
    if (both) _mm512_storeu_si512(to + kTileBytes, values.high);
  }
}

// V of half a block as operand B: staging[term][half][column / 16][pair of tokens][column % 16][2]. Tokens whose bit in
// `seen` is off are zeros.
template <class Codec, int Terms>
GQA_KERNEL void stage_values(const QueryTile& tile, const Block& block, std::uint64_t seen, Index half,
                             BlockCursor& ahead) {
  constexpr int kTerms = kTermsOf<Codec, Terms>;
  const ValueTiles tiles = value_tiles(tile);
  const Index whole = tile.value_dim / kHalf * kHalf;
  const Index rest = tile.value_dim - whole;
  for (Index pair = 0; pair < kPanel; ++pair) {
    const Index t = half * kHalf + 2 * pair;
    ahead.fetch(2);
    ValueRow<Codec, kTerms> a(block, seen, t);
    ValueRow<Codec, kTerms> b(block, seen, t + 1);
    std::byte* to = tiles.at(0, half, 0) + pair * kRowBytes;
    for (Index column = 0; column < whole; column += kHalf, to += 2 * kTileBytes)
      put_values(a.next(kHalf), b.next(kHalf), to, tiles.term_bytes(), true);
    if (rest != 0) put_values(a.next(rest), b.next(rest), to, tiles.term_bytes(), rest > kLanes);
  }
}

// One panel's weights, and which halves of the block it sees.
struct PanelWeights {
  const float* first;  // [half][term][row][token]: half 1 follows kHalf · kPanel floats later
  bool any[2];
  GQA_OP const float* at(Index half, int term) const { return first + (half * kHalf + term * kPanel) * kPanel; }
  GQA_OP bool both() const { return any[0] && any[1]; }
};

GQA_OP PanelWeights panel_weights(const QueryTile& tile, const Block& block, Index panel) {
  const PanelView view = panel_view(tile, block, panel);
  return {tile.weights + panel * kPanelFloats, {view.any[0], view.any[1]}};
}

// Weights by terms into tiles: 4 and 5 the first terms of either half, 2 and 3 the second ones.
template <int Terms>
GQA_OP void load_weights(const PanelWeights& p) {
  if (p.any[0]) GQA_TILE_LOAD(4, p.at(0, 0), kRowBytes);
  if (p.any[1]) GQA_TILE_LOAD(5, p.at(1, 0), kRowBytes);
  if constexpr (Terms == 2) {
    if (p.any[0]) GQA_TILE_LOAD(2, p.at(0, 1), kRowBytes);
    if (p.any[1]) GQA_TILE_LOAD(3, p.at(1, 1), kRowBytes);
  }
}

// l (16 rows × 16 lanes) += weights, two tokens a lane: what o is divided by is the sum of what it was weighted with, term
// by term. The weights are in their tiles.
template <int Terms>
GQA_OP void sum_weights(const PanelWeights& p, float* l) {
  GQA_TILE_LOAD(0, l, kRowBytes);
  GQA_TILE_LOAD(6, &kPairSums, kRowBytes);
  if (p.any[0]) {
    GQA_TILE_PRODUCT(0, 4, 6);
    if constexpr (Terms == 2) GQA_TILE_PRODUCT(0, 2, 6);
  }
  if (p.any[1]) {
    GQA_TILE_PRODUCT(0, 5, 6);
    if constexpr (Terms == 2) GQA_TILE_PRODUCT(0, 3, 6);
  }
  GQA_TILE_STORE(0, l, kRowBytes);
}

// C 0 += weights of half a block · one column tile of V, and C 1 the next one if there are two. The weights are in their
// tiles; V takes what others leave: 2 and 3 for the first half where these hold no weights.
template <int ValueTerms, int Terms, int Half, bool Two>
GQA_OP void multiply_columns(const ValueTiles& v, Index column) {
  using Pairs = TermPairs<ValueTerms, Terms>;
  constexpr int kV = Terms == 1 && Half == 0 ? 2 : 6;
  constexpr int kSecond = Terms == 1 ? 4 + Half : 2 + Half;  // of one term never asked for, but to be assembled
  GQA_UNROLL
  for (int i = 0; i < Pairs::count; ++i) {
    const bool first = Pairs::row(i) == 0;
    if (Pairs::cache_changes(i)) GQA_TILE_LOAD(kV, v.at(Pairs::cache(i), Half, column), kRowBytes);
    if (first) GQA_TILE_PRODUCT(0, 4 + Half, kV);
    else GQA_TILE_PRODUCT(0, kSecond, kV);
    if constexpr (Two) {
      if (Pairs::cache_changes(i)) GQA_TILE_LOAD(kV + 1, v.at(Pairs::cache(i), Half, column + 1), kRowBytes);
      if (first) GQA_TILE_PRODUCT(1, 4 + Half, kV + 1);
      else GQA_TILE_PRODUCT(1, kSecond, kV + 1);
    }
  }
}

// o (16 rows, stride in bytes) += weights · V. The weights are in their tiles.
template <int ValueTerms, int Terms>
GQA_KERNEL void output_one_panel(const PanelWeights& p, const ValueTiles& v, float* o, Index stride) {
  Index column = 0;
  for (; column + 2 <= v.columns; column += 2, o += 2 * kLanes) {
    GQA_TILE_LOAD(0, o, stride);
    GQA_TILE_LOAD(1, o + kLanes, stride);
    if (p.any[0]) multiply_columns<ValueTerms, Terms, 0, true>(v, column);
    if (p.any[1]) multiply_columns<ValueTerms, Terms, 1, true>(v, column);
    GQA_TILE_STORE(0, o, stride);
    GQA_TILE_STORE(1, o + kLanes, stride);
  }
  if (column == v.columns) return;
  GQA_TILE_LOAD(0, o, stride);
  if (p.any[0]) multiply_columns<ValueTerms, Terms, 0, false>(v, column);
  if (p.any[1]) multiply_columns<ValueTerms, Terms, 1, false>(v, column);
  GQA_TILE_STORE(0, o, stride);
}

// C 0, 2 and, if there are two column tiles, 1, 3 += weights of two panels · V, half a block.
template <int ValueTerms, int Terms, bool Two>
GQA_OP void multiply_columns_of_two(const PanelWeights& p, const PanelWeights& p1, const ValueTiles& v, Index half,
                                    Index column) {
  using Pairs = TermPairs<ValueTerms, Terms>;
  GQA_UNROLL
  for (int i = 0; i < Pairs::count; ++i) {
    if (Pairs::row_changes(i)) GQA_TILE_LOAD(4, p.at(half, Pairs::row(i)), kRowBytes);
    if (Pairs::cache_changes(i)) GQA_TILE_LOAD(6, v.at(Pairs::cache(i), half, column), kRowBytes);
    GQA_TILE_PRODUCT(0, 4, 6);
    if constexpr (Two) {
      if (Pairs::cache_changes(i)) GQA_TILE_LOAD(7, v.at(Pairs::cache(i), half, column + 1), kRowBytes);
      GQA_TILE_PRODUCT(1, 4, 7);
    }
    if (Pairs::row_changes(i)) GQA_TILE_LOAD(5, p1.at(half, Pairs::row(i)), kRowBytes);
    GQA_TILE_PRODUCT(2, 5, 6);
    if constexpr (Two) GQA_TILE_PRODUCT(3, 5, 7);
  }
}

// The same for two panels that see both halves, o of the second 16 rows behind that of the first.
template <int ValueTerms, int Terms>
GQA_KERNEL void output_two_panels(const PanelWeights& p, const PanelWeights& p1, const ValueTiles& v, float* o,
                                  Index stride) {
  Index column = 0;
  float* o1 = o + kPanel * stride / Index{sizeof(float)};
  for (; column + 2 <= v.columns; column += 2, o += 2 * kLanes, o1 += 2 * kLanes) {
    GQA_TILE_LOAD(0, o, stride);
    GQA_TILE_LOAD(1, o + kLanes, stride);
    GQA_TILE_LOAD(2, o1, stride);
    GQA_TILE_LOAD(3, o1 + kLanes, stride);
    for (Index half = 0; half < 2; ++half) multiply_columns_of_two<ValueTerms, Terms, true>(p, p1, v, half, column);
    GQA_TILE_STORE(0, o, stride);
    GQA_TILE_STORE(1, o + kLanes, stride);
    GQA_TILE_STORE(2, o1, stride);
    GQA_TILE_STORE(3, o1 + kLanes, stride);
  }
  if (column == v.columns) return;
  GQA_TILE_LOAD(0, o, stride);
  GQA_TILE_LOAD(2, o1, stride);
  for (Index half = 0; half < 2; ++half) multiply_columns_of_two<ValueTerms, Terms, false>(p, p1, v, half, column);
  GQA_TILE_STORE(0, o, stride);
  GQA_TILE_STORE(2, o1, stride);
}

// o and l of a panel ← alpha · theirs. Most blocks move no maximum.
GQA_OP void rescale(const QueryTile& tile, Index panel) {
  const Index rows = rows_in_panel(tile, panel);
  const __m512i one = _mm512_castps_si512(avx512::set1(1.0f));
  const __mmask16 moved =
      _mm512_mask_cmpneq_epi32_mask(first_lanes(rows), _mm512_loadu_si512(tile.alpha + panel * kPanel), one);
  for (unsigned rest = moved; rest != 0; rest &= rest - 1) {
    const Index row = panel * kPanel + __builtin_ctz(rest);
    const Vec alpha = avx512::set1(tile.alpha[row]);
    float* l = tile.l + row * kLanes;
    float* o = tile.o + row * tile.o_stride;
    avx512::store(l, avx512::mul(avx512::load(l), alpha));
    for (Index d = 0; d < tile.o_stride; d += kLanes) avx512::store(o + d, avx512::mul(avx512::load(o + d), alpha));
  }
}

GQA_OP void copy_rows(const float* from, float* to, Index floats, std::uint32_t rows) {
  for (; rows != 0; rows &= rows - 1) {
    const Index at = __builtin_ctz(rows) * floats;
    for (Index d = 0; d < floats; d += kLanes) avx512::store(to + at + d, avx512::load(from + at + d));
  }
}

// Room for 16 rows of o, and of l, in staging.
template <int Terms>
GQA_OP float* staged_rows(const QueryTile& tile) {
  return typed<float>(tile.staging + staged_state<Terms>(tile.head_dim, tile.value_dim));
}

// The rows of a panel named by bits: o += weights · V by way of staging, where there is room for 16.
template <int ValueTerms, int Terms>
GQA_OP void output_some_rows(const QueryTile& tile, const PanelWeights& p, const ValueTiles& v, Index panel,
                             std::uint32_t rows) {
  float* staged = staged_rows<Terms>(tile);
  float* o = tile.o + panel * kPanel * tile.o_stride;
  copy_rows(o, staged, tile.o_stride, rows);
  output_one_panel<ValueTerms, Terms>(p, v, staged, tile.o_stride * Index{sizeof(float)});
  copy_rows(staged, o, tile.o_stride, rows);
}

template <int Terms>
GQA_OP void sum_some_rows(const QueryTile& tile, const PanelWeights& p, Index panel, std::uint32_t rows) {
  float* staged = staged_rows<Terms>(tile) + kPanel * tile.o_stride;
  float* l = tile.l + panel * kPanel * kLanes;
  copy_rows(l, staged, kLanes, rows);
  sum_weights<Terms>(p, staged);
  copy_rows(staged, l, kLanes, rows);
}

// stage_values of some codec.
using StageValues = void(const QueryTile& tile, const Block& block, std::uint64_t seen, Index half, BlockCursor& ahead);

// A hidden token's values are taken as zero, because 0 × NaN is not 0: one pass for the rows of a panel that see the
// same tokens.
template <int ValueTerms, int Terms>
GQA_KERNEL void output_carefully(const QueryTile& tile, const Block& block, const PanelWeights& p, const ValueTiles& v,
                                 Index panel, StageValues* stage, BlockCursor& ahead) {
  const std::uint64_t* visible = block.visible + panel * kPanel;
  const Index count = rows_in_panel(tile, panel);
  for (std::uint32_t left = first_lanes(count); left != 0;) {
    const std::uint64_t seen = visible[__builtin_ctz(left)];
    std::uint32_t rows = 0;
    for (Index r = 0; r < count; ++r)
      if (visible[r] == seen) rows |= 1u << r;
    left &= ~rows;
    for (Index half = 0; half < 2; ++half)
      if (p.any[half]) stage(tile, block, seen, half, ahead);
    output_some_rows<ValueTerms, Terms>(tile, p, v, panel, rows);
  }
}

// o[row] ← alpha[row] · o[row] + Σ_t weights[row][t] · v[t], and l likewise; halves of the block in ascending order. The same for
// every codec, once values are staged.
template <int ValueTerms, int Terms>
GQA_KERNEL void accumulate_block(const QueryTile& tile, const Block& block, StageValues* stage, BlockCursor& ahead) {
  const Index panels = panel_count(tile);
  const Index o_bytes = tile.o_stride * Index{sizeof(float)};
  const ValueTiles v = value_tiles(tile);
  if (!block.careful) {
    const std::uint64_t below_last = block.last == kBlock ? ~std::uint64_t{0} : (std::uint64_t{1} << block.last) - 1u;
    const std::uint64_t inside = below_last & ~((std::uint64_t{1} << block.first) - 1u);
    for (Index half = block.first / kHalf; half * kHalf < block.last; ++half) stage(tile, block, inside, half, ahead);
  }
  for (Index panel = 0; panel < panels; ++panel) {
    const PanelWeights p = panel_weights(tile, block, panel);
    if (!p.any[0] && !p.any[1]) continue;
    const Index rows = rows_in_panel(tile, panel);
    rescale(tile, panel);
    load_weights<Terms>(p);
    if (rows < kPanel) sum_some_rows<Terms>(tile, p, panel, first_lanes(rows));
    else sum_weights<Terms>(p, tile.l + panel * kPanel * kLanes);
    if (block.careful) {
      output_carefully<ValueTerms, Terms>(tile, block, p, v, panel, stage, ahead);
    } else if (rows < kPanel) {
      output_some_rows<ValueTerms, Terms>(tile, p, v, panel, first_lanes(rows));
    } else if (panel + 1 < panels && rows_in_panel(tile, panel + 1) == kPanel && p.both()) {
      const PanelWeights next = panel_weights(tile, block, panel + 1);
      if (!next.both()) {
        output_one_panel<ValueTerms, Terms>(p, v, tile.o + panel * kPanel * tile.o_stride, o_bytes);
        continue;
      }
      ++panel;
      rescale(tile, panel);
      load_weights<Terms>(next);
      sum_weights<Terms>(next, tile.l + panel * kPanel * kLanes);
      output_two_panels<ValueTerms, Terms>(p, next, v, tile.o + (panel - 1) * kPanel * tile.o_stride, o_bytes);
    } else {
      output_one_panel<ValueTerms, Terms>(p, v, tile.o + panel * kPanel * tile.o_stride, o_bytes);
    }
  }
}
