// SPDX-License-Identifier: Apache-2.0
// The f32 kernel: included once per path, inside the path's namespace and region, after its vector operations. No include guard,
// no includes. Everything is written for the logical vector of kLanes lanes, with fused multiply-adds and fixed reduction trees,
// so that every path computes the same bits.
//
//   qk.inl       s[row][t] = Σ_d q[row][d] · k[t][d]     lane i sums d = i, i + 16, …; then the fixed tree
//   softmax.inl  w[row][t] = exp2(s − m)                 t runs along the lanes, or in panels of 16 rows, the row
//   pv.inl       o[row][d] = α · o[row][d] + Σ_t w[row][t] · v[t][d]      one chain per element, t ascending
//
// The inner loops, where the multiply-adds are, stand in files named for what a lane is: qk_dim_lanes.inl, qk_row_lanes.inl and
// pv_dim_lanes.inl. Who calls them, span by span and stage by stage, is detail/task.hpp: SequenceTasks::run_stage.
//
// Words: a query tile is the query rows that share a pass over a KV head (QueryTile); a panel is sixteen of them, packed so that a lane is a
// row; a strip is the few rows, tokens or dims that are in registers at a time; a stage is the blocks that scores, softmax and values are taken
// of before the next ones; a unit is one block of one KV head; a stretch is the tokens between one decision of what to prefetch and the next.
//
// A row's arithmetic never looks at the rows beside it. What differs between a decode step and a prefill is how many rows share
// a loaded key or value, which changes no bit.

// In this order: each needs what stands before it.
#include "gqa/detail/path/operations.inl"

#include "gqa/detail/path/qk.inl"

#include "gqa/detail/path/f32_products.inl"

#include "gqa/detail/path/softmax.inl"

#include "gqa/detail/path/functions.inl"

#include "gqa/detail/path/expression.inl"

#include "gqa/detail/path/pv.inl"

#include "gqa/detail/path/state.inl"

#include "gqa/detail/path/epilogue.inl"

// weights[row][t] ← q[row] · k[t]; q carries the scale. Keys whose scales lie outside of rows are widened first, unit by unit.
template <class Codec>
struct Widened {
  static GQA_OP Block block(const QueryTile& tile, const Block& block, Index (&offset)[kBlock]) {
    return Dot<Codec>::panel_block(tile, block, offset);
  }
};
template <class Codec, int HeadDim>
inline void scores(const QueryTile& tile, const Stage& stage, Prefetcher& prefetcher) {
  if constexpr (kReadable<Codec>) score_stage<Dot<Codec>, HeadDim>(tile, stage, prefetcher);
  else score_staged<Widened<Codec>, scores<F32, HeadDim>>(tile, stage, prefetcher);
}

inline Index staging_bytes(Index, Index head_dim, Index value_dim) {
  return kBlock * round_up(head_dim > value_dim ? head_dim : value_dim, 2 * kLanes) * Index{sizeof(float)};
}

// Those that compute with the integers themselves, see ints.inl.
template <class Codec>
inline const CodecKernels* integer_kernels() noexcept;

template <class Codec, int HeadDim, int ValueDim>
constexpr CodecKernels codec_kernels() {
  CodecKernels kernels{scores<Codec, HeadDim>, accumulate<Codec, ValueDim>, nonfinite<Codec>, kStreamRows<Codec>};
  if constexpr (kIntegers<Codec>) kernels.row_scales = integer_kernels<Codec>;
  return kernels;
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
