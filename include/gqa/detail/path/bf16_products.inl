// SPDX-License-Identifier: Apache-2.0
// Queries packed, and what a lane adds up with bf16 products: pairs of dims in scores, pairs of tokens in outputs. Part of
// avx512bf16.hpp.

// to[0 … dim) ← elements as bf16, zeros up to a whole register.
template <class Codec>
GQA_OP void pack_pairs(const std::byte* from, Index dim_stride, Index dim, std::byte* to) {
  for (Index d = 0; d < dim; d += kLanes2) {
    const Index count = dim - d < kLanes2 ? dim - d : kLanes2;
    const std::byte* p = from + d * dim_stride * Codec::bytes;
    alignas(64) std::byte gathered[kLanes2 * Codec::bytes];
    if (dim_stride != 1) {
      for (Index i = 0; i < count; ++i)
        __builtin_memcpy(gathered + i * Codec::bytes, p + i * dim_stride * Codec::bytes, Codec::bytes);
      p = gathered;
    }
    _mm512_storeu_si512(to + d * 2, narrow_pairs<Codec>(p, 0, count));
  }
}

inline void pack_query(const QueryTile& tile, const QuerySource& source, Index row, std::byte* to) {
  const std::byte* from = source.row(row);
  switch (source.type) {
    case ElementType::f32: pack_pairs<F32>(from, source.dim_stride, tile.head_dim, to); break;
    case ElementType::bf16: pack_pairs<Bf16>(from, source.dim_stride, tile.head_dim, to); break;
    case ElementType::f16: pack_pairs<F16>(from, source.dim_stride, tile.head_dim, to); break;
  }
}

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

// K of a block as bf16 rows in staging, zeros up to a whole register.
template <class Codec>
GQA_OP Block narrow_keys(const QueryTile& tile, const Block& block, Index (&offset)[kBlock]) {
  const Index stride = round_up(tile.head_dim, kLanes2) * 2;
  const BlockRows<Codec> rows = block_keys<Codec>(block);
  for (Index t = block.first; t < block.last; ++t) {
    offset[t] = t * stride;
    if constexpr (KvType(Codec::type).is_element()) {
      pack_pairs<Codec>(rows(t), 1, tile.head_dim, tile.staging + offset[t]);
    } else {
      const RowOf<Codec> row = rows(t);
      for (Index d = 0; d < tile.head_dim; d += kLanes2) {
        const Index count = tile.head_dim - d < kLanes2 ? tile.head_dim - d : kLanes2;
        _mm512_storeu_si512(tile.staging + offset[t] + d * 2, narrow_pairs<Codec>(row, d, count));
      }
    }
  }
  Block narrow = block;
  narrow.k = tile.staging;
  narrow.k_offset = offset;
  narrow.k_stride = stride;
  return narrow;
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
  static constexpr Index kTokens = 2;
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

template <class Codec>
inline constexpr bool kReadable = Codec::type == ElementType::bf16;
template <class Codec>
inline constexpr bool kStaged = true;
template <class Codec>
inline constexpr bool kCopied = kReadable<Codec>;
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

// 32 values of token t, or zeros if the block has none or it is hidden.
template <class Codec>
GQA_OP __m512i value_pairs(const Block& block, std::uint64_t seen, Index t, Index column, Index count) {
  if (t < block.first || t >= block.last || ((seen >> t) & 1u) == 0) return _mm512_setzero_si512();
  const RowOf<Codec> row = block_values<Codec>(block)(t);
  if constexpr (KvType(Codec::type).is_element()) return narrow_pairs<Codec>(row + column * Codec::bytes, 0, count);
  else return narrow_pairs<Codec>(row, column, count);
}

// Pairs of tokens from the one that `from` belongs to.
template <class Codec>
GQA_KERNEL Staged stage_values(const QueryTile& tile, const Block& block, std::uint64_t seen, Index from, Index to) {
  const Index stride = staged_stride(tile);
  std::byte* out = tile.staging;
  for (Index t = from / 2 * 2; t < to; t += 2, out += stride) {
    const bool both = t >= block.first && t + 1 < block.last && ((seen >> t) & 3u) == 3u;
    for (Index column = 0; column < tile.value_dim; column += kLanes2) {
      const Index rest = tile.value_dim - column;
      const Index count = rest < kLanes2 ? rest : kLanes2;
      __m512bh value[2];
      if (Codec::type == ElementType::bf16 && both && count == kLanes2)
        interleave(load_pairs(block.v + block.v_offset[t] + column * 2),
                   load_pairs(block.v + block.v_offset[t + 1] + column * 2), value);
      else
        interleave(value_pairs<Codec>(block, seen, t, column, count),
                   value_pairs<Codec>(block, seen, t + 1, column, count), value);
      keep(out, column, value);
    }
  }
  return {tile.staging, stride};
}

template <int HeadDim>
inline void score_pairs(const QueryTile& tile, const Stage& stage, Prefetcher& prefetcher) {
  score_stage<Dot, HeadDim>(tile, stage, prefetcher);
}

// weights[row][t] ← scale · q[row] · k[t]. Keys that are not bf16 are rounded first, unit by unit.
template <class Codec>
struct Narrowed {
  static GQA_OP Block block(const QueryTile& tile, const Block& block, Index (&offset)[kBlock]) {
    return narrow_keys<Codec>(tile, block, offset);
  }
};
template <class Codec, int HeadDim>
inline void scores(const QueryTile& tile, const Stage& stage, Prefetcher& prefetcher) {
  if constexpr (Codec::type == ElementType::bf16) score_pairs<HeadDim>(tile, stage, prefetcher);
  else score_staged<Narrowed<Codec>, score_pairs<HeadDim>>(tile, stage, prefetcher);
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
