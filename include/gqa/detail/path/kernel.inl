// SPDX-License-Identifier: Apache-2.0
// The f32 kernel: included once per path, inside the path's namespace and region, after its vector operations. No include guard,
// no includes. Everything is written for the logical vector of kLanes lanes, with fused multiply-adds and fixed reduction trees,
// so that every path computes the same bits.
//
//   scores      s[row][t] = Σ_d q[row][d] · k[t][d]     lane i sums d = i, i + 16, …; then the fixed tree
//   softmax     w[row][t] = exp2(s − m)                 t runs along the lanes, or in groups of 16 rows, the row
//   accumulate  o[row][d] = α · o[row][d] + Σ_t w[row][t] · v[t][d]      one chain per element, t ascending
//
// A row's arithmetic never looks at the rows beside it. What differs between a decode step and a prefill is how many rows share
// a loaded key or value, which changes no bit.

// In this order: each needs what stands before it.
#include "gqa/detail/path/operations.inl"

#include "gqa/detail/path/scores.inl"

#include "gqa/detail/path/products.inl"

#include "gqa/detail/path/softmax.inl"

#include "gqa/detail/path/functions.inl"

#include "gqa/detail/path/expression.inl"

#include "gqa/detail/path/accumulate.inl"

#include "gqa/detail/path/state.inl"

// weights[row][t] ← q[row] · k[t]; q carries the scale. Keys whose scales lie outside of rows are widened first, unit by unit.
template <class Codec>
struct Widened {
  static GQA_OP Block block(const RowTile& tile, const Block& block, Index (&offset)[kBlock]) {
    return Dot<Codec>::group_block(tile, block, offset);
  }
};
template <class Codec, int HeadDim>
inline void scores(const RowTile& tile, const Stage& stage, Prefetcher& prefetcher) {
  if constexpr (kReadable<Codec>) score_stage<Dot<Codec>, HeadDim>(tile, stage, prefetcher);
  else score_staged<Widened<Codec>, scores<F32, HeadDim>>(tile, stage, prefetcher);
}

inline Index staging_bytes(Index, Index head_dim, Index value_dim) {
  return kBlock * round_up(head_dim > value_dim ? head_dim : value_dim, 2 * kLanes) * Index{sizeof(float)};
}

template <class Codec, int HeadDim, int ValueDim>
constexpr CodecKernels codec_kernels() {
  return {scores<Codec, HeadDim>, accumulate<Codec, ValueDim>, nonfinite<Codec>, kStreamRows<Codec>};
}
constexpr Kernels common_kernels() {
  return {
      .path = GQA_KERNEL_PATH,
      .pack = pack,
      .begin = begin,
      .softmax = softmax<PlainScore>,
      .merge = merge,
      .store = store,
      .few_rows_distance = few_rows_distance,
      .staging_bytes = staging_bytes,
  };
}
#include "gqa/detail/path/table.inl"

// The f32 arithmetic, whatever inputs may be taken as.
template <unsigned Types, int HeadDim, int ValueDim>
inline const Kernels& kernels_of(int) noexcept {
  return kernels<Types, HeadDim, ValueDim>();
}
template <class V>
inline SoftmaxKernel variant_softmax(const Kernels&) noexcept {
  return softmax<VariantScore<V>>;
}
