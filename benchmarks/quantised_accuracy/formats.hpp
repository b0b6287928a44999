// SPDX-License-Identifier: Apache-2.0
/// @file
/// Attention over a cache that stores keys and values in a given format, with and without rotation.
#pragma once

#include <Eigen/Core>

#include "../../examples/llama/formats.hpp"

namespace accuracy {

using gqa::Index;
using namespace llama;  // Format and its like

/// Queries, keys and values of a sequence: heads side by side, a column a token. Fewer query tokens than others: the last ones.
struct Rows {
  gqa::HeadShape shape;
  Eigen::MatrixXf q, k, v;
};

/// The Hadamard matrix of a power of two (Sylvester 1867), scaled to be orthogonal. It is symmetric: its own inverse.
inline Eigen::MatrixXf hadamard(Index dim) {
  Eigen::MatrixXf made = Eigen::MatrixXf::Constant(dim, dim, 1 / std::sqrt(static_cast<float>(dim)));
  for (Index row = 0; row < dim; ++row)
    for (Index column = 0; column < dim; ++column)
      if (__builtin_parityll(static_cast<unsigned long long>(row & column))) made(row, column) *= -1;
  return made;
}

/// Every head's rows rotated by the largest power of two that divides their width.
inline Eigen::MatrixXf rotated(const Eigen::MatrixXf& heads, Index dim) {
  const Index block = dim & -dim;
  Eigen::MatrixXf made(heads.rows(), heads.cols());
  Eigen::Map<Eigen::MatrixXf>(made.data(), block, heads.size() / block).noalias() =
      hadamard(block) * Eigen::Map<const Eigen::MatrixXf>(heads.data(), block, heads.size() / block);
  return made;
}

/// Causal attention of all query heads over a cache of that format: Hq·Dv × query tokens.
inline Eigen::MatrixXf attend(const Rows& rows, const Format& format, gqa::ExecutorRef executor) {
  const gqa::HeadShape& shape = rows.shape;
  const Index tokens = rows.k.cols();
  gqa::ContiguousKvCache cache({.kv_heads = shape.kv_heads,
                                .head_dim = shape.head_dim,
                                .value_dim = shape.value_dim,
                                .k_type = format.k,
                                .v_type = format.v,
                                .capacity = tokens});
  cache.append(gqa::ConstTensorView(rows.k.data(), tokens, shape.kv_heads, shape.head_dim),
               gqa::ConstTensorView(rows.v.data(), tokens, shape.kv_heads, shape.value_dim));
  Eigen::MatrixXf out(shape.query_heads * shape.value_dim, rows.q.cols());
  static const Attention attention;
  attention(gqa::ConstTensorView(rows.q.data(), rows.q.cols(), shape.query_heads, shape.head_dim), cache.view(),
            gqa::TensorView(out.data(), rows.q.cols(), shape.query_heads, shape.value_dim), gqa::Causal{},
            {.executor = executor});
  return out;
}

/// The same with keys and queries rotated, and values rotated and outputs turned back.
inline Eigen::MatrixXf attend_rotated(const Rows& rows, const Format& format, gqa::ExecutorRef executor) {
  const gqa::HeadShape& shape = rows.shape;
  return rotated(attend({shape, rotated(rows.q, shape.head_dim), rotated(rows.k, shape.head_dim),
                         rotated(rows.v, shape.value_dim)},
                        format, executor),
                 shape.value_dim);
}

/// √(Σ ‖output − expected‖² / Σ ‖expected‖²).
class RelativeError {
 public:
  void add(const Eigen::MatrixXf& output, const Eigen::MatrixXf& expected) {
    difference_ += (output - expected).cast<double>().squaredNorm();
    whole_ += expected.cast<double>().squaredNorm();
  }
  double value() const { return std::sqrt(difference_ / whole_); }

 private:
  double difference_ = 0, whole_ = 0;
};

}  // namespace accuracy
