// SPDX-License-Identifier: Apache-2.0
// Queries packed and scores of one block, with bf16 products. Part of avx512bf16.hpp.

// tile.q[row][0 … head_dim) ← query as bf16, unscaled, zeros up to a whole register. The row stride in bytes is 2 · q_stride.
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
    _mm512_storeu_si512(to + d * 2, narrow_pairs<Codec>(p, count));
  }
}

inline void pack(const RowTile& tile, const QuerySource& source) {
  std::byte* q = static_cast<std::byte*>(tile.q);
  for (Index row = 0; row < tile.rows; ++row) {
    const Index at = source.first_row + row;
    const std::byte* from =
        source.data + at / source.group * source.token_stride + at % source.group * source.head_stride;
    std::byte* to = q + row * tile.q_stride * 2;
    switch (source.type) {
      case ElementType::f32: pack_pairs<F32>(from, source.dim_stride, tile.head_dim, to); break;
      case ElementType::bf16: pack_pairs<Bf16>(from, source.dim_stride, tile.head_dim, to); break;
      case ElementType::f16: pack_pairs<F16>(from, source.dim_stride, tile.head_dim, to); break;
    }
  }
}

// A tile of R rows × T tokens of scores, as in scores.inl; a lane sums a pair of dims at a time.
template <int R>
GQA_OP void score_strip(const RowTile& tile, Index row, const avx512::OffsetRows& rows, const Block& block) {
  constexpr int T = avx512::kScoreTile / R;
  constexpr int G = T < 4 ? T : 4;
  const std::byte* q = static_cast<const std::byte*>(tile.q) + row * tile.q_stride * 2;
  const Index q_bytes = tile.q_stride * 2;
  float* out = tile.weights + row * kBlock;
  const Index whole = tile.head_dim / kLanes2 * kLanes2;
  const Index rest = tile.head_dim - whole;
  const Index first = block.first;
  const Index last = block.last;
  for (Index t0 = first / T * T; t0 < last; t0 += T) {
    if (row == 0) avx512::prefetch_rows({block.v, block.v_offset, first, last}, t0, t0 + T, tile.value_dim * 2);
    Vec acc[avx512::kScoreTile];
    GQA_UNROLL
    for (int i = 0; i < avx512::kScoreTile; ++i) acc[i] = avx512::zero();
    GQA_UNROLL
    for (int g = 0; g < T; g += G) {
      const std::byte* k[G];
      GQA_UNROLL
      for (int t = 0; t < G; ++t) {
        const Index token = t0 + g + t;
        k[t] = rows(token < first ? first : token < last ? token : last - 1);
      }
      for (Index d = 0; d < whole; d += kLanes2) {
        __m512bh query[R];
        GQA_UNROLL
        for (int r = 0; r < R; ++r) query[r] = as_pairs(load_pairs(q + r * q_bytes + d * 2));
        GQA_UNROLL
        for (int t = 0; t < G; ++t) {
          const __m512bh key = as_pairs(load_pairs(k[t] + d * 2));
          GQA_UNROLL
          for (int r = 0; r < R; ++r) acc[r * T + g + t] = _mm512_dpbf16_ps(acc[r * T + g + t], query[r], key);
        }
      }
      if (rest != 0) {
        GQA_UNROLL
        for (int t = 0; t < G; ++t) {
          const __m512bh key = as_pairs(load_pairs_part(k[t] + whole * 2, rest));
          GQA_UNROLL
          for (int r = 0; r < R; ++r)
            acc[r * T + g + t] =
                _mm512_dpbf16_ps(acc[r * T + g + t], as_pairs(load_pairs(q + r * q_bytes + whole * 2)), key);
        }
      }
    }
    alignas(64) float sums[avx512::kScoreTile];
    reduce_tile(acc, sums);
    avx512::store(sums, avx512::mul(avx512::load(sums), avx512::set1(tile.score_scale)));
    GQA_UNROLL
    for (int r = 0; r < R; ++r) __builtin_memcpy(out + r * kBlock + t0, sums + r * T, T * sizeof(float));
  }
}

template <int R>
GQA_OP void score_rows(const RowTile& tile, Index& row, const avx512::OffsetRows& rows, const Block& block) {
  for (; row + R <= tile.rows; row += R) score_strip<R>(tile, row, rows, block);
  if constexpr (R > 1) score_rows<R / 2>(tile, row, rows, block);
}

// weights[row][t] ← scale · q[row] · k[t] for t in [first, last).
template <class Codec>
inline void scores(const RowTile& tile, const Block& block) {
  const avx512::OffsetRows rows{block.k, block.k_offset};
  if constexpr (Codec::type != ElementType::bf16) {
    Index offset[kBlock];
    for (Index t = block.first; t < block.last; ++t) {
      offset[t] = t * round_up(tile.head_dim, kLanes2) * 2;
      pack_pairs<Codec>(rows(t), 1, tile.head_dim, tile.staging + offset[t]);
    }
    Block narrow = block;
    narrow.k = tile.staging;
    narrow.k_offset = offset;
    scores<Bf16>(tile, narrow);
  } else {
    Index row = 0;
    score_rows<avx512::kScoreRows>(tile, row, rows, block);
  }
}
