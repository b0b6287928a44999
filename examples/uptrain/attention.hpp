// SPDX-License-Identifier: Apache-2.0
/// @file
/// Attention of a training step: the library's rotary embedding, its attention, and the backward passes of both.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "gqa/backward.hpp"
#include "gqa/gqa.hpp"
#include "gqa/rope.hpp"
#include "model.hpp"

namespace uptrain {

/// RoPE of a shape's heads, for `positions` positions.
inline gqa::Rope rope_of(const ModelShape& shape, Index positions) {
  return gqa::Rope({.dims = shape.head_dim(), .pairs = gqa::RopePairs::interleaved}, positions);
}

/// Causal grouped-query attention over sequences that lie one after the other, each from position 0 on. Runs on the calling thread.
///
/// A matrix of queries, keys and values has (Hq + 2 Hkv)·D rows, a column a token, and is read and written where it lies.
/// Thread safe.
class Attention {
 public:
  /// @param path instruction set; default: the best that the machine has
  explicit Attention(const ModelShape& shape, std::optional<gqa::Path> path = std::nullopt)
      : shape_(shape), rope_(rope_of(shape, shape.context)), forward_(heads()), backward_(heads()) {
    options_.path = path;
    backward_options_.path = path;
  }

  /// Turns queries and keys of `qkv` in place, and attends.
  /// @param out Hq·D × tokens, written    @param lse tokens × Hq, written
  void forward(MatrixOf<float>& qkv, MatrixOf<float>& out, VectorOf<float>& lse, Index sequences) const {
    out.resize(shape_.dim, qkv.cols());
    lse.resize(qkv.cols() * shape_.query_heads);
    for (Index i = 0; i < sequences; ++i) {
      rope_(queries(qkv, i, sequences), 0);
      rope_(keys(qkv, i, sequences), 0);
    }
    forward_(batch(qkv, out, lse, sequences), gqa::Causal{}, options_);
  }

  /// @param qkv, out, lse as forward left them
  /// @param d_qkv gradient by queries, keys and values as they were before they were turned; written
  void backward(MatrixOf<float>& qkv, MatrixOf<float>& out, VectorOf<float>& lse, const MatrixOf<float>& d_out,
                MatrixOf<float>& d_qkv, Index sequences) const {
    d_qkv.resizeLike(qkv);
    const std::vector<gqa::Sequence> calls = batch(qkv, out, lse, sequences);
    std::vector<gqa::SequenceGradients> gradients(calls.size());
    const Index length = qkv.cols() / sequences;
    for (Index i = 0; i < sequences; ++i) {
      gqa::SequenceGradients& each = gradients[static_cast<std::size_t>(i)];
      each.d_out =
          gqa::ConstTensorView(d_out.data() + i * length * shape_.dim, length, shape_.query_heads, shape_.head_dim());
      each.d_q = queries(d_qkv, i, sequences);
      each.d_k = keys(d_qkv, i, sequences);
      each.d_v = values(d_qkv, i, sequences);
    }
    backward_(calls, gradients, gqa::Causal{}, backward_options_);
    for (Index i = 0; i < sequences; ++i) {
      turn_back(queries(d_qkv, i, sequences));
      turn_back(keys(d_qkv, i, sequences));
    }
  }

 private:
  gqa::HeadShape heads() const { return {shape_.query_heads, shape_.kv_heads, shape_.head_dim(), shape_.head_dim()}; }

  /// `heads` heads from row `first_row` on, of sequence number i.
  gqa::TensorView part(MatrixOf<float>& qkv, Index i, Index sequences, Index first_row, Index heads) const {
    const Index length = qkv.cols() / sequences;
    return {qkv.data() + i * length * qkv.rows() + first_row, length, heads, shape_.head_dim(),
            gqa::TensorStrides{qkv.rows(), shape_.head_dim()}};
  }
  gqa::TensorView queries(MatrixOf<float>& qkv, Index i, Index sequences) const {
    return part(qkv, i, sequences, 0, shape_.query_heads);
  }
  gqa::TensorView keys(MatrixOf<float>& qkv, Index i, Index sequences) const {
    return part(qkv, i, sequences, shape_.dim, shape_.kv_heads);
  }
  gqa::TensorView values(MatrixOf<float>& qkv, Index i, Index sequences) const {
    return part(qkv, i, sequences, shape_.dim + shape_.kv_dim(), shape_.kv_heads);
  }

  std::vector<gqa::Sequence> batch(MatrixOf<float>& qkv, MatrixOf<float>& out, VectorOf<float>& lse,
                                   Index sequences) const {
    std::vector<gqa::Sequence> calls;
    const Index length = qkv.cols() / sequences, rows = length * shape_.query_heads;
    for (Index i = 0; i < sequences; ++i) {
      gqa::Sequence& call = calls.emplace_back();
      call.q = queries(qkv, i, sequences);
      call.kv = gqa::KvCacheView::contiguous(keys(qkv, i, sequences), values(qkv, i, sequences));
      call.out = gqa::TensorView(out.data() + i * length * shape_.dim, length, shape_.query_heads, shape_.head_dim());
      call.lse = std::span(lse.data() + i * rows, static_cast<std::size_t>(rows));
    }
    return calls;
  }

  /// The transpose of what RoPE does to rows of positions 0, 1, …: pairs mirrored, turned and mirrored again are pairs turned back.
  void turn_back(const gqa::TensorView& rows) const {
    mirror(rows);
    rope_(rows, 0);
    mirror(rows);
  }
  static void mirror(const gqa::TensorView& rows) {
    for (Index token = 0; token < rows.tokens; ++token)
      for (Index head = 0; head < rows.heads; ++head) {
        float* const row = static_cast<float*>(rows.data) + token * rows.strides.token + head * rows.strides.head;
        for (Index odd = 1; odd < rows.dim; odd += 2) row[odd] = -row[odd];
      }
  }

  ModelShape shape_;
  gqa::Rope rope_;
  gqa::GroupedQueryAttention<gqa::dynamic, gqa::dynamic, gqa::dynamic, gqa::dynamic, gqa::CacheOf<float>> forward_;
  gqa::GroupedQueryAttentionBackward<gqa::dynamic, gqa::dynamic, gqa::dynamic, gqa::dynamic, gqa::CacheOf<float>>
      backward_;
  gqa::Options options_;
  gqa::BackwardOptions backward_options_;
};

}  // namespace uptrain
