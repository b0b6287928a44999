// SPDX-License-Identifier: Apache-2.0
// Rows rounded to bf16, and scores of keys that have been: what the paths with bf16 products have in common before theirs. Part of
// avx512bf16.hpp and neon_bf16.hpp, after
//
//   kNarrowed                        elements that are rounded at a time, at most 32
//   narrow_pairs<Codec>(row, d, n)   elements d … d + n − 1 of a row as bf16, n ≤ kNarrowed; zeros behind them
//   store_pairs(p, elements)         kNarrowed bf16
//
// The path says what is added up in a Dot, see qk.inl.

template <class Codec>
inline constexpr bool kReadable = Codec::type == ElementType::bf16;
template <class Codec>
inline constexpr bool kStaged = true;
template <class Codec>
inline constexpr bool kCopied = kReadable<Codec>;

// to[0 … dim) ← elements as bf16, zeros up to a whole register.
template <class Codec>
GQA_OP void pack_pairs(const std::byte* from, Index dim_stride, Index dim, std::byte* to) {
  for (Index d = 0; d < dim; d += kNarrowed) {
    const Index count = dim - d < kNarrowed ? dim - d : kNarrowed;
    const std::byte* p = from + d * dim_stride * Codec::bytes;
    alignas(64) std::byte gathered[kNarrowed * Codec::bytes];
    if (dim_stride != 1) {
      for (Index i = 0; i < count; ++i)
        __builtin_memcpy(gathered + i * Codec::bytes, p + i * dim_stride * Codec::bytes, Codec::bytes);
      p = gathered;
    }
    store_pairs(to + d * 2, narrow_pairs<Codec>(p, 0, count));
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

// K of a block as bf16 rows in staging, zeros up to a multiple of 32 dims.
template <class Codec>
GQA_OP Block narrow_keys(const QueryTile& tile, const Block& block, Index (&offset)[kBlock]) {
  const Index stride = round_up(tile.head_dim, 2 * kLanes) * 2;
  const BlockRows<Codec> rows = block_keys<Codec>(block);
  for (Index t = block.first; t < block.last; ++t) {
    offset[t] = t * stride;
    if constexpr (KvType(Codec::type).is_element()) {
      pack_pairs<Codec>(rows(t), 1, tile.head_dim, tile.staging + offset[t]);
    } else {
      const RowOf<Codec> row = rows(t);
      for (Index d = 0; d < tile.head_dim; d += kNarrowed) {
        const Index count = tile.head_dim - d < kNarrowed ? tile.head_dim - d : kNarrowed;
        store_pairs(tile.staging + offset[t] + d * 2, narrow_pairs<Codec>(row, d, count));
      }
    }
  }
  Block narrow = block;
  narrow.k = tile.staging;
  narrow.k_offset = offset;
  narrow.k_stride = stride;
  return narrow;
}

struct Dot;

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
