// SPDX-License-Identifier: Apache-2.0
/// @file
/// The four projections of an attention layer in double precision, where conversions of heads take place. Needs Eigen.
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <string>

#include "gqa/error.hpp"
#include "gqa/heads.hpp"
#include "gqa/rope_pairs.hpp"

namespace gqa {

/// The projections of one attention layer: q = Wq·x + bq and so on, out = Wo·(heads side by side) + bo. A row per output, as
/// checkpoints have them (an input × output matrix is transposed first). Every f32, bf16 and f16 weight is held exactly.
struct AttentionWeights {
  HeadShape shape{};         ///< Hq, Hkv, D, Dv, none of them dynamic
  Eigen::MatrixXd q{};       ///< Hq·D × inputs, head after head
  Eigen::MatrixXd k{};       ///< Hkv·D × inputs
  Eigen::MatrixXd v{};       ///< Hkv·Dv × inputs
  Eigen::MatrixXd o{};       ///< outputs × Hq·Dv
  Eigen::VectorXd q_bias{};  ///< Hq·D, or empty: none
  Eigen::VectorXd k_bias{};  ///< Hkv·D, or empty
  Eigen::VectorXd v_bias{};  ///< Hkv·Dv, or empty
  Eigen::VectorXd o_bias{};  ///< outputs, or empty
};

/// What conversions must know of the rotary embedding: turning a key head's pair by an angle of its own, and the query heads' too,
/// changes no score; anything else done to the two dims would.
struct RopeLayout {
  RopePairs pairs = RopePairs::none;
  Index dims = 0;  ///< r: the first r dims of a head are turned, an even number; 0: all of them
};

namespace detail::inline GQA_ABI {

inline void check_matrix(const char* name, const Eigen::MatrixXd& matrix, Index rows, const char* rows_are,
                         Index columns, const char* columns_are) {
  if (matrix.rows() != rows)
    fail(std::string("weights.") + name + ".rows()", matrix.rows(),
         std::string(rows_are) + " = " + std::to_string(rows));
  if (matrix.cols() != columns)
    fail(std::string("weights.") + name + ".cols()", matrix.cols(),
         std::string(columns_are) + " = " + std::to_string(columns));
  for (Index column = 0; column < columns; ++column)
    for (Index row = 0; row < rows; ++row)
      if (!std::isfinite(matrix(row, column)))
        fail(std::string("weights.") + name + "(" + std::to_string(row) + ", " + std::to_string(column) + ")",
             std::to_string(matrix(row, column)), "a finite number");
}

inline void check_bias(const char* name, const Eigen::VectorXd& bias, Index rows, const char* rows_are) {
  if (bias.size() == 0) return;
  if (bias.size() != rows)
    fail(std::string("weights.") + name + ".size()", bias.size(),
         std::string(rows_are) + " = " + std::to_string(rows) + ", or 0: no bias");
  for (Index row = 0; row < rows; ++row)
    if (!std::isfinite(bias[row]))
      fail(std::string("weights.") + name + "[" + std::to_string(row) + "]", std::to_string(bias[row]),
           "a finite number");
}

inline void check_heads(const HeadShape& shape) {
  constexpr Index most = 1 << 20;
  const auto check = [](const char* name, Index extent) {
    if (extent < 1 || extent > most) fail(std::string("weights.shape.") + name, extent, "1 to " + std::to_string(most));
  };
  check("query_heads", shape.query_heads);
  check("kv_heads", shape.kv_heads);
  check("head_dim", shape.head_dim);
  check("value_dim", shape.value_dim);
  if (shape.query_heads % shape.kv_heads != 0)
    fail("weights.shape.kv_heads", shape.kv_heads, "a divisor of query_heads = " + std::to_string(shape.query_heads));
}

/// Fails on the first extent that does not fit the shape, or number that is not finite.
inline void check_weights(const AttentionWeights& w) {
  check_heads(w.shape);
  const HeadShape& s = w.shape;
  if (w.q.cols() < 1) fail("weights.q.cols()", w.q.cols(), "1 or more inputs");
  if (w.o.rows() < 1) fail("weights.o.rows()", w.o.rows(), "1 or more outputs");
  check_matrix("q", w.q, s.query_heads * s.head_dim, "query_heads * head_dim", w.q.cols(), "");
  check_matrix("k", w.k, s.kv_heads * s.head_dim, "kv_heads * head_dim", w.q.cols(), "q.cols()");
  check_matrix("v", w.v, s.kv_heads * s.value_dim, "kv_heads * value_dim", w.q.cols(), "q.cols()");
  check_matrix("o", w.o, w.o.rows(), "", s.query_heads * s.value_dim, "query_heads * value_dim");
  check_bias("q_bias", w.q_bias, w.q.rows(), "q.rows()");
  check_bias("k_bias", w.k_bias, w.k.rows(), "k.rows()");
  check_bias("v_bias", w.v_bias, w.v.rows(), "v.rows()");
  check_bias("o_bias", w.o_bias, w.o.rows(), "o.rows()");
}

/// Dims of a head that RoPE turns. Fails if the layout does not fit.
inline Index check_rope(const RopeLayout& rope, Index head_dim) {
  if (rope.pairs > RopePairs::none)
    fail("rope.pairs", static_cast<Index>(rope.pairs), "RopePairs::none, interleaved or half_split");
  if (rope.pairs == RopePairs::none) return 0;
  const Index dims = rope.dims == 0 ? head_dim : rope.dims;
  if (dims < 0 || dims > head_dim || dims % 2 != 0)
    fail("rope.dims", dims, "an even number, at most head_dim = " + std::to_string(head_dim));
  return dims;
}

/// The two dims of a pair.
struct DimPair {
  Index real;
  Index imaginary;
};
inline DimPair rope_pair(RopePairs pairs, Index rope_dims, Index pair) {
  if (pairs == RopePairs::interleaved) return {2 * pair, 2 * pair + 1};
  return {pair, pair + rope_dims / 2};
}

/// The rows of a matrix and, as one column more, their bias or zeros: what multiplies [x; 1].
inline Eigen::MatrixXd with_bias(const Eigen::MatrixXd& matrix, const Eigen::VectorXd& bias) {
  Eigen::MatrixXd joined(matrix.rows(), matrix.cols() + 1);
  joined.leftCols(matrix.cols()) = matrix;
  if (bias.size() == 0) joined.rightCols(1).setZero();
  else joined.rightCols(1) = bias;
  return joined;
}

}  // namespace detail::inline GQA_ABI
}  // namespace gqa
