// SPDX-License-Identifier: Apache-2.0
// Values rounded to bf16 and put in the order that products take them in: what the paths with bf16 products have in common after theirs.
// Part of avx512bf16.hpp and neon_bf16.hpp, after
//
//   Pairs, no_pairs                       kNarrowed bf16; zeros
//   load_pairs(p)                         kNarrowed bf16
//   stage_rows(rows, to, column)          kNarrowed dims of Product::kTokens rows → operands, in staging
//   Staged, staged_stride                 what reads them there; bytes from a step to the next

// Values of token t, kNarrowed of them, or zeros if the block has none or it is hidden.
template <class Codec>
GQA_OP Pairs value_pairs(const Block& block, std::uint64_t seen, Index t, Index column, Index count) {
  if (t < block.first || t >= block.last || ((seen >> t) & 1u) == 0) return no_pairs();
  const RowOf<Codec> row = block_values<Codec>(block)(t);
  if constexpr (KvType(Codec::type).is_element()) return narrow_pairs<Codec>(row + column * Codec::bytes, 0, count);
  else return narrow_pairs<Codec>(row, column, count);
}

// Tokens from the first of the step that `from` belongs to.
template <class Codec>
GQA_KERNEL Staged stage_values(const QueryTile& tile, const Block& block, std::uint64_t seen, Index from, Index to) {
  constexpr Index T = Product::kTokens;
  constexpr std::uint64_t step = (std::uint64_t{1} << T) - 1u;
  const Index stride = staged_stride(tile);
  std::byte* out = tile.staging;
  for (Index t = from / T * T; t < to; t += T, out += stride) {
    const bool whole = t >= block.first && t + T <= block.last && ((seen >> t) & step) == step;
    for (Index column = 0; column < tile.value_dim; column += kNarrowed) {
      const Index rest = tile.value_dim - column;
      const Index count = rest < kNarrowed ? rest : kNarrowed;
      Pairs rows[T];
      if (Codec::type == ElementType::bf16 && whole && count == kNarrowed) {
        GQA_UNROLL
        for (int i = 0; i < T; ++i) rows[i] = load_pairs(block.v + block.v_offset[t + i] + column * 2);
      } else {
        GQA_UNROLL
        for (int i = 0; i < T; ++i) rows[i] = value_pairs<Codec>(block, seen, t + i, column, count);
      }
      stage_rows(rows, out, column);
    }
  }
  return {tile.staging, stride};
}
