// SPDX-License-Identifier: Apache-2.0
/// @file
/// Linear layers whose results do not depend on how many tokens go through them at once, nor on threads.
///
/// A matrix-matrix product would be faster for many tokens, and would round differently with the number of its columns. So a matrix is cut
/// into blocks of rows that fit a core's L2 cache, and each block is multiplied by one token after the other, as matrix times vector, while
/// it is there: the matrix is read from memory once for all tokens. Where blocks begin depends on the matrix alone; threads share them out.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <span>
#include <vector>

#include "../uptrain/parallel.hpp"
#include "weights.hpp"

namespace llama {

using uptrain::for_each;

/// One vector per token: dim × tokens, a column each, so that a column of heads × head dim reads as (token, head, dim).
using Columns = Eigen::MatrixXf;

/// Rows of a block of a matrix with so many columns: 8 to 64, 256 KiB in f32 at most where that is more than 8 rows.
inline Index block_rows(Index columns) {
  Index rows = 64;
  while (rows > 8 && rows * columns > (1 << 16)) rows /= 2;
  return rows;
}

/// One of several layers that are applied to the same inputs.
struct Linear {
  const Weight* weight;
  const Vector* bias;  ///< of the outputs; none, if it is empty
  Columns* out;        ///< outputs × tokens; its extents are set
};

/// Each out ← weight · x + bias. @param x  inputs × tokens
inline void apply(gqa::ExecutorRef executor, std::span<const Linear> layers, const Eigen::Ref<const Columns>& x) {
  std::vector<std::pair<const Linear*, Index>> blocks;  // a layer and a first row
  for (const Linear& layer : layers) {
    layer.out->resize(layer.weight->rows(), x.cols());
    for (Index row = 0; row < layer.weight->rows(); row += block_rows(layer.weight->columns()))
      blocks.push_back({&layer, row});
  }
  for_each(executor, static_cast<Index>(blocks.size()), [&](Index task) {
    thread_local std::vector<float> room;
    const auto [layer, first] = blocks[static_cast<std::size_t>(task)];
    const Weight& weight = *layer->weight;
    const Index rows = std::min(block_rows(weight.columns()), weight.rows() - first);
    const Eigen::Map<const Matrix> block = weight.block(first, rows, room);
    for (Index token = 0; token < x.cols(); ++token) {
      auto out = layer->out->col(token).segment(first, rows);
      out.noalias() = block * x.col(token);
      if (layer->bias->size() > 0) out += layer->bias->segment(first, rows);
    }
  });
}

/// weight · x.
inline Columns apply(gqa::ExecutorRef executor, const Weight& weight, const Eigen::Ref<const Columns>& x) {
  static const Vector none;
  Columns out;
  const Linear one[] = {{&weight, &none, &out}};
  apply(executor, one, x);
  return out;
}

/// call(first, count) for runs of tokens, of all threads.
template <class Call>
void for_tokens(gqa::ExecutorRef executor, Index tokens, const Call& call) {
  constexpr Index run = 16;
  for_each(executor, (tokens + run - 1) / run,
           [&](Index task) { call(task * run, std::min(run, tokens - task * run)); });
}

}  // namespace llama
