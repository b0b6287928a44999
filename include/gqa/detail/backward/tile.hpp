// SPDX-License-Identifier: Apache-2.0
/// @file
/// What crosses from the baseline code of the backward pass to a path's kernels: pointers and plain structs, never a vector.
#pragma once

#include "gqa/detail/kernel_types.hpp"

namespace gqa::detail {

/// Query rows of a tile of the backward pass.
inline constexpr Index kBackwardRows = 64;
/// Tokens of a column, the unit of its parallel work: the gradients of their keys and values are summed up in one place. Columns start at
/// multiples of their length, absolute positions.
inline constexpr Index kColumn = 256;
inline constexpr Index kColumnBlocks = kColumn / kBlock;
static_assert(kColumn % kBlock == 0 && kBackwardRows % kLanes == 0);

/// A tile of query rows beside a column of tokens, for one KV head.
///
/// A word is what a product takes of one operand in a lane: one f32, or two neighbouring bf16. "By step": the words of a sum's first step
/// in every lane, then those of its second step; in panels of as many vectors as the path's products have side by side.
struct BackwardTile {
  Index rows = 0;  ///< query rows, kBackwardRows at most; arrays by row have zeros up to a multiple of kLanes
  Index head_dim = 0;
  Index value_dim = 0;
  Index head_width = 0;   ///< head_dim rounded up to kLanes: floats of a row in scratch
  Index value_width = 0;  ///< value_dim likewise

  float* q = nullptr;                ///< [row][head_width], as f32
  float* d_out = nullptr;            ///< [row][value_width], likewise
  float* q_row_lanes = nullptr;      ///< q in words: a lane is a row, a step dims
  float* q_dim_lanes = nullptr;      ///< a lane is a dim, a step rows
  float* d_out_row_lanes = nullptr;  ///< d_out likewise
  float* d_out_dim_lanes = nullptr;
  float* lse = nullptr;    ///< [row]: the log-sum-exp of its scores, in units of log2 once prepare() has been there
  float* delta = nullptr;  ///< [row]: Σ d_out · out
  float* sink = nullptr;   ///< [row]: the sink's score, natural; or null. Then its gradient

  float* keys = nullptr;           ///< of the column: [token][head_width] in words, zeros for tokens that are not there
  float* key_dim_lanes = nullptr;  ///< a lane is a dim, a step tokens
  float* values = nullptr;         ///< [token][value_width] in words
  float* d_k = nullptr;            ///< sums of the column: [token][head_width]
  float* d_v = nullptr;            ///< [token][value_width]
  float* d_q = nullptr;            ///< of the tile, from this column: [row][head_width]

  float* scores = nullptr;         ///< of a block: q·k, [token][kBackwardRows]
  float* d_weights = nullptr;      ///< d_out·v, likewise
  float* weights = nullptr;        ///< [token][kBackwardRows] in words along rows
  float* d_scores = nullptr;       ///< likewise: by q·k · scale
  float* d_score_steps = nullptr;  ///< the same, a lane is a row, a step tokens
  float* d_lookups = nullptr;      ///< [token][kBackwardRows]: by what a lookup gave

  float scale = 1.0f;                         ///< multiplies q·k
  bool sink_in_lse = true;                    ///< what lse has is with the sink
  const VariantRows* variant_rows = nullptr;  ///< if the variant asks for any
};

/// A path's kernels of the backward pass. `at` is the number of a block in the column; tokens [first, last) of it are seen by some row, and
/// block.visible says by which.
struct BackwardKernels {
  /// keys, values ← the rows of those tokens of the block whose bits are set in `tokens`, as words; the others stay. By codec id; null
  /// where the program has none.
  using StageRows = void (*)(const BackwardTile&, Index at, const Block&, std::uint64_t tokens);
  const StageRows* stage_keys = nullptr;
  const StageRows* stage_values = nullptr;
  /// key_dim_lanes ← keys, of the block.
  void (*turn_keys)(const BackwardTile&, Index at) = nullptr;
  /// to[row][width] ← rows of any type as f32, zeros up to `width`.
  void (*load_rows)(const QuerySource&, Index rows, Index dim, float* to, Index width) = nullptr;
  /// delta[row] ← Σ d_out[row] · out[row], `out` as load_rows leaves it; lse and sink as BackwardTile says.
  void (*prepare)(const BackwardTile&, const float* out) = nullptr;
  /// The words of q and d_out: those of rows [first, last), zeros for the others.
  void (*pack)(const BackwardTile&, Index first, Index last) = nullptr;
  /// scores, d_weights ← the products with the block's keys and values.
  void (*score)(const BackwardTile&, Index at, Index tokens) = nullptr;
  /// d_v += weights · d_out, d_k += d_scores · q, d_q += d_scores · keys
  void (*accumulate)(const BackwardTile&, Index at, Index tokens) = nullptr;
  /// to[i][dim] ← factor · from[i][width], or to + factor · from: rows of f32 side by side, `stride` elements apart.
  void (*store_rows)(const float* from, Index width, Index rows, Index dim, float factor, bool add, float* to,
                     Index stride) = nullptr;
  /// weights, d_scores ← what the variant without a change of scores makes of scores and d_weights.
  void (*differentiate)(const BackwardTile&, const Block&) = nullptr;
  unsigned compiled = 0;  ///< codecs that rows are staged of, as bits
  Index word_elements = 1;
};

using DifferentiateKernel = void (*)(const BackwardTile&, const Block&);

}  // namespace gqa::detail
