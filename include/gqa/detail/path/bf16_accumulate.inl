// SPDX-License-Identifier: Apache-2.0
// Output accumulation of one block, with bf16 products. Part of avx512bf16.hpp.

// V rows of the token pair (2j, 2j + 1), 32 dims, as two registers of (even token, odd token) pairs of one dim each. unpack works
// within quarters of a register: `low` has dims 0–3, 8–11, 16–19, 24–27, `high` the others.
struct PairedValues {
  __m512bh low;
  __m512bh high;
};

GQA_OP PairedValues interleave(__m512i even, __m512i odd) {
  return {as_pairs(_mm512_unpacklo_epi16(even, odd)), as_pairs(_mm512_unpackhi_epi16(even, odd))};
}

// Straight from the cache. Tokens outside [first, last), and those whose bit in `seen` is off, are zero rows.
template <class Codec>
struct CachedPairs {
  const Block& block;
  std::uint64_t seen;
  GQA_OP __m512i row(Index t, Index column, Index count) const {
    if (((seen >> t) & 1u) == 0) return _mm512_setzero_si512();
    return narrow_pairs<Codec>(block.v + block.v_offset[t] + column * Codec::bytes, count);
  }
  GQA_OP PairedValues operator()(Index pair, Index column, Index count) const {
    if (Codec::type == ElementType::bf16 && count == kLanes2 && ((seen >> (2 * pair)) & 3u) == 3u) {
      const std::byte* v = block.v + column * 2;
      return interleave(load_pairs(v + block.v_offset[2 * pair]), load_pairs(v + block.v_offset[2 * pair + 1]));
    }
    return interleave(row(2 * pair, column, count), row(2 * pair + 1, column, count));
  }
};

// From staging, where stage_pairs has put them: [pair][column / 32][low, high].
struct StagedPairs {
  const std::byte* staging;
  Index stride;  // bytes from pair to pair
  GQA_OP PairedValues operator()(Index pair, Index column, Index) const {
    const std::byte* p = staging + pair * stride + column * 4;
    return {as_pairs(load_pairs(p)), as_pairs(load_pairs(p + 64))};
  }
};

// Dims of (low, high) accumulators in their natural order, and back.
GQA_OP void natural_order(Vec& low, Vec& high) {
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  const Vec a = _mm512_permutex2var_ps(low, first, high);
  high = _mm512_permutex2var_ps(low, second, high);
  low = a;
}
GQA_OP void paired_order(Vec& low, Vec& high) {
  const __m512i even = _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
  const __m512i odd = _mm512_setr_epi32(4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  const Vec a = _mm512_permutex2var_ps(low, even, high);
  high = _mm512_permutex2var_ps(low, odd, high);
  low = a;
}

// Denormal results of products are flushed; those of the scaling by alpha as well, so that it does not matter how many tokens with
// weight zero follow.
GQA_OP Vec flush(Vec a) { return _mm512_maskz_mov_ps(static_cast<__mmask16>(~_mm512_fpclass_ps_mask(a, 0x20)), a); }

// R rows × C groups of 32 dims of outputs, held in registers while the token pairs of the block go by.
template <int R, int C, class Pairs>
GQA_OP void output_strip(const RowTile& tile, Index row, Index column, Index count, const Pairs& pairs,
                         const Block& block) {
  const auto* w = reinterpret_cast<const std::uint32_t*>(tile.weights + row * kBlock);  // bf16 pairs, see round_weights
  float* o = tile.o + row * tile.o_stride + column;
  const bool second = C > 1 || count > kLanes;  // else dims 16 … 31 are past the end of o
  Vec acc[R * C * 2];
  GQA_UNROLL
  for (int r = 0; r < R; ++r) {
    const Vec alpha = avx512::set1(tile.alpha[row + r]);
    GQA_UNROLL
    for (int c = 0; c < C; ++c) {
      float* at = o + r * tile.o_stride + c * kLanes2;
      Vec low = avx512::mul(avx512::load(at), alpha);
      Vec high = second ? avx512::mul(avx512::load(at + kLanes), alpha) : avx512::zero();
      paired_order(low, high);
      acc[(r * C + c) * 2] = low;
      acc[(r * C + c) * 2 + 1] = high;
    }
  }
  for (Index pair = block.first / 2; pair < (block.last + 1) / 2; ++pair) {
    if (row == 0 && column == 0) avx512::prefetch_rows(block.next_k, 2 * pair, 2 * pair + 2, tile.head_dim * 2);
    PairedValues value[C];
    GQA_UNROLL
    for (int c = 0; c < C; ++c) value[c] = pairs(pair, column + c * kLanes2, count);
    GQA_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512bh weight = as_pairs(_mm512_set1_epi32(static_cast<int>(w[r * kBlock + pair])));
      GQA_UNROLL
      for (int c = 0; c < C; ++c) {
        Vec* a = acc + (r * C + c) * 2;
        a[0] = _mm512_dpbf16_ps(a[0], weight, value[c].low);
        a[1] = _mm512_dpbf16_ps(a[1], weight, value[c].high);
      }
    }
  }
  GQA_UNROLL
  for (int r = 0; r < R; ++r) {
    GQA_UNROLL
    for (int c = 0; c < C; ++c) {
      float* at = o + r * tile.o_stride + c * kLanes2;
      Vec low = acc[(r * C + c) * 2];
      Vec high = acc[(r * C + c) * 2 + 1];
      natural_order(low, high);
      avx512::store(at, flush(low));
      if (second) avx512::store(at + kLanes, flush(high));
    }
  }
}

template <int R, class Pairs>
GQA_OP void output_columns(const RowTile& tile, Index row, const Pairs& pairs, const Block& block) {
  constexpr int C = R < 4 ? 4 : 2;
  Index column = 0;
  for (; column + C * kLanes2 <= tile.value_dim; column += C * kLanes2)
    output_strip<R, C>(tile, row, column, kLanes2, pairs, block);
  for (; column < tile.value_dim; column += kLanes2) {
    const Index rest = tile.value_dim - column;
    output_strip<R, 1>(tile, row, column, rest < kLanes2 ? rest : kLanes2, pairs, block);
  }
}

template <int R, class Pairs>
GQA_OP void output_rows(const RowTile& tile, Index& row, const Pairs& pairs, const Block& block) {
  for (; row + R <= tile.rows; row += R) output_columns<R>(tile, row, pairs, block);
  if constexpr (R > 1) output_rows<R / 2>(tile, row, pairs, block);
}

// The weights of each row in place: 64 floats → 32 pairs of bf16 in the first half of the room.
GQA_OP void round_weights(const RowTile& tile) {
  for (Index row = 0; row < tile.rows; ++row) {
    float* w = tile.weights + row * kBlock;
    const Vec a = avx512::load(w);
    const Vec b = avx512::load(w + kLanes);
    const Vec c = avx512::load(w + 2 * kLanes);
    const Vec d = avx512::load(w + 3 * kLanes);
    _mm512_storeu_si512(w, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
    _mm512_storeu_si512(w + kLanes, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(d, c)));
  }
}

template <class Codec>
GQA_OP StagedPairs stage_pairs(const RowTile& tile, const Block& block, std::uint64_t seen) {
  const CachedPairs<Codec> cached{block, seen};
  const Index stride = round_up(tile.value_dim, kLanes2) * 4;
  for (Index pair = block.first / 2; pair < (block.last + 1) / 2; ++pair) {
    for (Index column = 0; column < tile.value_dim; column += kLanes2) {
      const Index rest = tile.value_dim - column;
      const PairedValues value = cached(pair, column, rest < kLanes2 ? rest : kLanes2);
      std::byte* p = tile.staging + pair * stride + column * 4;
      _mm512_storeu_si512(p, reinterpret_cast<__m512i>(value.low));
      _mm512_storeu_si512(p + 64, reinterpret_cast<__m512i>(value.high));
    }
  }
  return {tile.staging, stride};
}

inline void accumulate_staged(const RowTile& tile, const Block& block, const StagedPairs& pairs, Index row) {
  output_rows<4>(tile, row, pairs, block);
}

// o[row] ← alpha[row] · o[row] + Σ bf16(weights[row][t]) · v[t], by pairs of tokens in ascending order.
template <class Codec>
inline void accumulate(const RowTile& tile, const Block& block) {
  round_weights(tile);
  if (block.careful) {  // a hidden token's values are taken as zero, row by row: 0 × NaN is not 0
    RowTile upto = tile;
    for (Index row = 0; row < tile.rows; ++row) {
      upto.rows = row + 1;
      accumulate_staged(upto, block, stage_pairs<Codec>(tile, block, block.visible[row]), row);
    }
    return;
  }
  const std::uint64_t below_last = block.last == kBlock ? ~std::uint64_t{0} : (std::uint64_t{1} << block.last) - 1u;
  const std::uint64_t all = below_last & ~((std::uint64_t{1} << block.first) - 1u);
  if (Codec::type != ElementType::bf16 || tile.rows > kStageRows)
    return accumulate_staged(tile, block, stage_pairs<Codec>(tile, block, all), 0);
  if constexpr (Codec::type == ElementType::bf16) {
    Index row = 0;
    output_rows<4>(tile, row, CachedPairs<Codec>{block, all}, block);
  }
}
