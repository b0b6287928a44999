// SPDX-License-Identifier: Apache-2.0
// Output accumulation of one block. Part of kernel.inl.

// R rows × C vectors of outputs, held in registers while the tokens of the block go by. C == 1 may be a part of a vector.
// Careful: a hidden token is skipped instead of added with weight zero, because 0 × NaN is not 0. Same bits otherwise.
template <class Codec, int R, int C, bool Careful>
GQA_OP void output_strip(const RowTile& tile, Index row, Index column, Index width, const OffsetRows& rows,
                         const Block& block) {
  const float* w = tile.weights + row * kBlock;
  float* o = tile.o + row * tile.o_stride + column;
  Vec acc[R * C];
  GQA_UNROLL
  for (int r = 0; r < R; ++r) {
    GQA_UNROLL
    for (int c = 0; c < C; ++c)
      acc[r * C + c] = mul(load(o + r * tile.o_stride + c * kLanes), set1(tile.alpha[row + r]));
  }
  for (Index t = block.first; t < block.last; ++t) {
    if (Careful && ((block.visible[row] >> t) & 1u) == 0) continue;
    if (row == 0 && column == 0) prefetch_rows(block.next_k, t, t + 1, tile.head_dim * Codec::bytes);
    const std::byte* v = rows(t) + column * Codec::bytes;
    Vec value[C];
    GQA_UNROLL
    for (int c = 0; c < C; ++c)
      value[c] = C > 1 || width == kLanes ? load_as<Codec>(v + c * kLanes * Codec::bytes) : load_part<Codec>(v, width);
    GQA_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vec weight = set1(w[r * kBlock + t]);
      GQA_UNROLL
      for (int c = 0; c < C; ++c) acc[r * C + c] = fma(weight, value[c], acc[r * C + c]);
    }
  }
  GQA_UNROLL
  for (int r = 0; r < R; ++r) {
    GQA_UNROLL
    for (int c = 0; c < C; ++c) store(o + r * tile.o_stride + c * kLanes, acc[r * C + c]);
  }
}

// All columns of R rows: as many vectors at a time as registers allow, then one by one.
template <class Codec, int R, bool Careful>
GQA_OP void output_columns(const RowTile& tile, Index row, const OffsetRows& rows, const Block& block) {
  constexpr int C = kOutputTile / R < 8 ? kOutputTile / R : 8;
  Index column = 0;
  if constexpr (C > 1) {
    for (; column + C * kLanes <= tile.value_dim; column += C * kLanes)
      output_strip<Codec, R, C, Careful>(tile, row, column, kLanes, rows, block);
  }
  for (; column + kLanes <= tile.value_dim; column += kLanes)
    output_strip<Codec, R, 1, Careful>(tile, row, column, kLanes, rows, block);
  if (column < tile.value_dim)
    output_strip<Codec, R, 1, Careful>(tile, row, column, tile.value_dim - column, rows, block);
}

template <class Codec, int R>
GQA_OP void output_rows(const RowTile& tile, Index& row, const OffsetRows& rows, const Block& block) {
  for (; row + R <= tile.rows; row += R) output_columns<Codec, R, false>(tile, row, rows, block);
  if constexpr (R > 1) output_rows<Codec, R / 2>(tile, row, rows, block);
}

// o[row] ← alpha[row] · o[row] + Σ_t weights[row][t] · v[t], t ascending in [first, last).
template <class Codec>
inline void accumulate(const RowTile& tile, const Block& block) {
  const OffsetRows rows{block.v, block.v_offset};
  Index row = 0;
  if (block.careful) {
    for (; row < tile.rows; ++row) output_columns<Codec, 1, true>(tile, row, rows, block);
    return;
  }
  if constexpr (Codec::bytes != 4) {
    if (tile.rows > kWidenRows) {
      Index offset[kBlock];
      widen_rows<Codec>(rows, tile.staging, tile.value_dim, block.first, block.last, offset);
      Block wide = block;
      wide.v = tile.staging;
      wide.v_offset = offset;
      return accumulate<F32>(tile, wide);
    }
  }
  output_rows<Codec, kOutputRows>(tile, row, rows, block);
}

template <class Codec>
inline bool nonfinite(const Block& block, Index value_dim) {
  for (Index t = block.first; t < block.last; ++t) {
    const std::byte* v = block.v + block.v_offset[t];
    Index d = 0;
    for (; d + kLanes <= value_dim; d += kLanes)
      if (any_nonfinite(load_as<Codec>(v + d * Codec::bytes))) return true;
    if (d < value_dim && any_nonfinite(load_part<Codec>(v + d * Codec::bytes, value_dim - d))) return true;
  }
  return false;
}
