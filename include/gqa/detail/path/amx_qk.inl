// SPDX-License-Identifier: Apache-2.0
// Queries packed and scores of one block, by tile products. Part of amx.hpp.

// What scores are multiplied by in the softmax. q carries the sign, and a scale of zero.
GQA_OP float score_factor(float scale) {
  const float magnitude = scale < 0.0f ? -scale : scale;
  return magnitude == 0.0f ? 1.0f : magnitude;
}

// 32 bf16 of a query, times the sign of the scale: −1, 0 or 1. What is not finite times zero is NaN.
GQA_OP __m512i with_sign(__m512i q, float scale) {
  if (scale < 0.0f) return _mm512_xor_si512(q, _mm512_set1_epi16(static_cast<short>(0x8000)));
  if (scale > 0.0f) return q;
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  return _mm512_maskz_set1_epi16(_mm512_cmpeq_epi16_mask(_mm512_and_si512(q, exponent), exponent), 0x7fc0);
}

// to[0 … head_dim) ← one query as bf16, zeros up to a whole chunk; each further term `term_bytes` behind the one before.
template <class Codec, int Terms>
GQA_OP void pack_row(const std::byte* from, Index dim_stride, const QueryTile& tile, std::byte* to, Index term_bytes) {
  for (Index d = 0; d < tile.head_dim; d += kHalf) {
    const Index count = tile.head_dim - d < kHalf ? tile.head_dim - d : kHalf;
    const std::byte* p = from + d * dim_stride * Codec::bytes;
    alignas(64) std::byte gathered[kHalf * Codec::bytes];
    if (dim_stride != 1) {
      for (Index i = 0; i < count; ++i)
        __builtin_memcpy(gathered + i * Codec::bytes, p + i * dim_stride * Codec::bytes, Codec::bytes);
      p = gathered;
    }
    const Words<Terms> dims = words<Codec, Terms>(p, 0, count);
    GQA_UNROLL
    for (int i = 0; i < Terms; ++i)
      _mm512_storeu_si512(to + i * term_bytes + d * Index{sizeof(bf16)}, with_sign(dims.term[i], tile.score_scale));
  }
}

// tile.q ← tiles of operand B, [panel][term][chunk of 32 dims][pair of dims][row][2], zeros for rows beyond the last.
template <int Terms>
inline void pack(const QueryTile& tile, const QuerySource& source) {
  const Index row_bytes = tile.q_stride * Index{sizeof(bf16)};
  const Index term_bytes = kPanel * row_bytes;
  auto* tiles = static_cast<std::byte*>(tile.q);
  for (Index panel = 0; panel < panel_count(tile); ++panel) {
    const Index rows = rows_in_panel(tile, panel);
    for (Index r = 0; r < rows; ++r) {
      const std::byte* from = source.row(panel * kPanel + r);
      std::byte* to = tile.staging + r * row_bytes;
      switch (source.type) {
        case ElementType::f32: pack_row<F32, Terms>(from, source.dim_stride, tile, to, term_bytes); break;
        case ElementType::bf16: pack_row<Bf16, Terms>(from, source.dim_stride, tile, to, term_bytes); break;
        case ElementType::f16: pack_row<F16, Terms>(from, source.dim_stride, tile, to, term_bytes); break;
      }
    }
    for (const std::byte* term = tile.staging; term != tile.staging + Terms * term_bytes; term += term_bytes)
      for (Index byte = 0; byte < row_bytes; byte += kRowBytes, tiles += kTileBytes) {
        __m512i dims[kPanel];
        GQA_UNROLL
        for (Index r = 0; r < kPanel; ++r)
          dims[r] = r < rows ? _mm512_loadu_si512(term + r * row_bytes + byte) : _mm512_setzero_si512();
        transpose(dims);
        GQA_UNROLL
        for (Index pair = 0; pair < kPanel; ++pair) _mm512_storeu_si512(tiles + pair * kRowBytes, dims[pair]);
      }
  }
}

// 32 keys as two tiles of operand A: the first chunks of 32 dims where the cache has them, the others in staging.
struct KeyTiles {
  const std::byte* cached[2];
  Index cached_stride[2];
  Index cached_chunks;
  const std::byte* staged[2];
  Index staged_stride;
};

// From one term of the staged keys to the next; the cache has one term.
GQA_OP Index staged_term(Index stride) { return kBlock * stride; }

// True if tokens [token, token + 16) can be loaded from where they are: all there, and evenly spaced, as those of a
// page are.
GQA_OP bool evenly_spaced(const Block& block, Index token) {
  if (token < block.first || token + kPanel > block.last) return false;
  if (block.k_stride != 0) return true;
  const Index* offset = block.k_offset + token;
  for (Index i = 2; i < kPanel; ++i)
    if (offset[i] - offset[i - 1] != offset[1] - offset[0]) return false;
  return true;
}

// Tokens [token, token + 32) of the block. Rows outside [first, last) are zeros; they, rows without a common stride,
// a last chunk of fewer than 32 dims and every other element type go through staging.
template <class Codec, int Terms>
GQA_OP KeyTiles key_tiles(const QueryTile& tile, const Block& block, Index token) {
  constexpr int kTerms = kTermsOf<Codec, Terms>;
  const Index stride = tile.q_stride * Index{sizeof(bf16)};
  const Index* offset = block.k_offset + token;
  BlockRows<Codec> rows = block_keys<Codec>(block).from(token);
  KeyTiles keys{};
  keys.staged[0] = tile.staging + token * stride;
  keys.staged[1] = keys.staged[0] + kPanel * stride;
  keys.staged_stride = stride;
  if (Codec::type == ElementType::bf16 && evenly_spaced(block, token) && evenly_spaced(block, token + kPanel)) {
    keys.cached_chunks = tile.head_dim / kHalf;
    for (Index i = 0; i < 2; ++i) {
      keys.cached[i] = block.k + offset[i * kPanel];
      keys.cached_stride[i] = offset[i * kPanel + 1] - offset[i * kPanel];
    }
    if (keys.cached_chunks * kHalf == tile.q_stride) return keys;
  }
  for (Index i = 0; i < kHalf; ++i) {
    std::byte* to = tile.staging + (token + i) * stride;
    const bool inside = block.first <= token + i && token + i < block.last;
    for (Index d = keys.cached_chunks * kHalf; d < tile.head_dim; d += kHalf) {
      const Index count = tile.head_dim - d < kHalf ? tile.head_dim - d : kHalf;
      Words<kTerms> dims{};
      if (inside) dims = words<Codec, kTerms>(rows(i), d, count);
      GQA_UNROLL
      for (int term = 0; term < kTerms; ++term)
        _mm512_storeu_si512(to + term * staged_term(stride) + d * Index{sizeof(bf16)}, dims.term[term]);
    }
  }
  return keys;
}

// C 0–3 += chunks [from, to) of 32 tokens × 32 rows; q: tiles of the first panel's chunks by term, then the second's.
template <int KeyTerms, int Terms>
GQA_OP void multiply_two_panels(const std::byte* const (&k)[2], const Index (&stride)[2], const std::byte* q,
                                Index chunks, Index from, Index to, BlockCursor& ahead) {
  using Pairs = TermPairs<KeyTerms, Terms>;
  for (Index c = from; c < to; ++c) {
    ahead.fetch((kHalf + chunks - 1) / chunks);
    GQA_UNROLL
    for (int i = 0; i < Pairs::count; ++i) {
      const Index of_k = Pairs::cache(i) * staged_term(stride[0]) + c * kRowBytes;
      const std::byte* of_q = q + (Pairs::row(i) * chunks + c) * kTileBytes;
      if (Pairs::row_changes(i)) GQA_TILE_LOAD(6, of_q, kRowBytes);
      if (Pairs::cache_changes(i)) GQA_TILE_LOAD(4, k[0] + of_k, stride[0]);
      GQA_TILE_PRODUCT(0, 4, 6);
      if (Pairs::cache_changes(i)) GQA_TILE_LOAD(5, k[1] + of_k, stride[1]);
      GQA_TILE_PRODUCT(1, 5, 6);
      if (Pairs::row_changes(i)) GQA_TILE_LOAD(7, of_q + Terms * chunks * kTileBytes, kRowBytes);
      GQA_TILE_PRODUCT(2, 4, 7);
      GQA_TILE_PRODUCT(3, 5, 7);
    }
  }
}

// C 0–1 += chunks [from, to) of 32 tokens × 16 rows.
template <int KeyTerms, int Terms>
GQA_OP void multiply_one_panel(const std::byte* const (&k)[2], const Index (&stride)[2], const std::byte* q,
                               Index chunks, Index from, Index to, BlockCursor& ahead) {
  using Pairs = TermPairs<KeyTerms, Terms>;
  for (Index c = from; c < to; ++c) {
    ahead.fetch((kHalf + chunks - 1) / chunks);
    GQA_UNROLL
    for (int i = 0; i < Pairs::count; ++i) {
      const Index of_k = Pairs::cache(i) * staged_term(stride[0]) + c * kRowBytes;
      if (Pairs::row_changes(i)) GQA_TILE_LOAD(6, q + (Pairs::row(i) * chunks + c) * kTileBytes, kRowBytes);
      if (Pairs::cache_changes(i)) GQA_TILE_LOAD(4, k[0] + of_k, stride[0]);
      GQA_TILE_PRODUCT(0, 4, 6);
      if (Pairs::cache_changes(i)) GQA_TILE_LOAD(5, k[1] + of_k, stride[1]);
      GQA_TILE_PRODUCT(1, 5, 6);
    }
  }
}

// 32 tokens × 32 rows: scores[panel][token][row] for two panels.
template <int KeyTerms, int Terms>
GQA_KERNEL void score_two_panels(const KeyTiles& k, const std::byte* q, Index chunks, BlockCursor& ahead, float* out) {
  const Index staged_stride[2] = {k.staged_stride, k.staged_stride};
  GQA_TILE_ZERO(0);
  GQA_TILE_ZERO(1);
  GQA_TILE_ZERO(2);
  GQA_TILE_ZERO(3);
  if constexpr (KeyTerms == 1)
    multiply_two_panels<1, Terms>(k.cached, k.cached_stride, q, chunks, 0, k.cached_chunks, ahead);
  multiply_two_panels<KeyTerms, Terms>(k.staged, staged_stride, q, chunks, k.cached_chunks, chunks, ahead);
  GQA_TILE_STORE(0, out, kRowBytes);
  GQA_TILE_STORE(1, out + kPanel * kPanel, kRowBytes);
  GQA_TILE_STORE(2, out + kPanelFloats, kRowBytes);
  GQA_TILE_STORE(3, out + kPanelFloats + kPanel * kPanel, kRowBytes);
}

// 32 tokens × 16 rows.
template <int KeyTerms, int Terms>
GQA_KERNEL void score_one_panel(const KeyTiles& k, const std::byte* q, Index chunks, BlockCursor& ahead, float* out) {
  const Index staged_stride[2] = {k.staged_stride, k.staged_stride};
  GQA_TILE_ZERO(0);
  GQA_TILE_ZERO(1);
  if constexpr (KeyTerms == 1)
    multiply_one_panel<1, Terms>(k.cached, k.cached_stride, q, chunks, 0, k.cached_chunks, ahead);
  multiply_one_panel<KeyTerms, Terms>(k.staged, staged_stride, q, chunks, k.cached_chunks, chunks, ahead);
  GQA_TILE_STORE(0, out, kRowBytes);
  GQA_TILE_STORE(1, out + kPanel * kPanel, kRowBytes);
}

// weights[panel][token][row] ← q · k, without the scale, for the halves of the block that a panel sees something of.
template <int KeyTerms, int Terms>
GQA_KERNEL void score_tiles(const QueryTile& tile, const Block& block, const KeyTiles (&keys)[2], BlockCursor& ahead) {
  const Index chunks = tile.q_stride / kHalf;
  const Index panels = panel_count(tile);
  const auto* q = static_cast<const std::byte*>(tile.q);
  for (Index panel = 0; panel < panels; panel += 2) {
    const bool two = panel + 1 < panels;
    const PanelView view = panel_view(tile, block, panel);
    const PanelView other = panel_view(tile, block, two ? panel + 1 : panel);
    for (Index half = 0; half < 2; ++half) {
      const bool first_sees = view.any[half];
      const bool second_sees = two && other.any[half];
      if (!first_sees && !second_sees) continue;
      const Index at = first_sees ? panel : panel + 1;
      const std::byte* queries = q + at * Terms * chunks * kTileBytes;
      float* out = tile.weights + at * kPanelFloats + half * kHalf * kPanel;
      if (first_sees && second_sees) score_two_panels<KeyTerms, Terms>(keys[half], queries, chunks, ahead, out);
      else score_one_panel<KeyTerms, Terms>(keys[half], queries, chunks, ahead, out);
    }
  }
}

template <class Codec, int Terms>
GQA_OP void score_block(const QueryTile& tile, const Block& block, BlockCursor& ahead) {
  KeyTiles keys[2] = {};
  for (Index half = block.first / kHalf; half * kHalf < block.last; ++half)
    keys[half] = key_tiles<Codec, Terms>(tile, block, half * kHalf);
  score_tiles<kTermsOf<Codec, Terms>, Terms>(tile, block, keys, ahead);
}
