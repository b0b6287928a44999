// SPDX-License-Identifier: Apache-2.0
// Random attention layers, and what they compute, by plain loops in double precision.
#pragma once

#include <Eigen/Core>
#include <Eigen/QR>
#include <algorithm>
#include <cmath>
#include <vector>

#include "gqa/convert/weights.hpp"
#include "support/random.hpp"

namespace gqa::test {

inline Eigen::MatrixXd random_matrix(Random& random, Index rows, Index columns, double scale = 1) {
  Eigen::MatrixXd made(rows, columns);
  for (Index j = 0; j < columns; ++j)
    for (Index i = 0; i < rows; ++i) made(i, j) = static_cast<float>(scale * static_cast<double>(random.normal()));
  return made;
}

inline Eigen::MatrixXd random_orthogonal(Random& random, Index width) {
  const Eigen::HouseholderQR<Eigen::MatrixXd> qr(random_matrix(random, width, width));
  return qr.householderQ();
}

/// A layer of f32 numbers. @param biases on all four projections
inline AttentionWeights random_layer(Random& random, const HeadShape& shape, Index inputs, Index outputs, bool biases) {
  const double scale = 1 / std::sqrt(static_cast<double>(inputs));
  AttentionWeights w;
  w.shape = shape;
  w.q = random_matrix(random, shape.query_heads * shape.head_dim, inputs, scale);
  w.k = random_matrix(random, shape.kv_heads * shape.head_dim, inputs, scale);
  w.v = random_matrix(random, shape.kv_heads * shape.value_dim, inputs, scale);
  w.o = random_matrix(random, outputs, shape.query_heads * shape.value_dim, scale);
  if (!biases) return w;
  w.q_bias = random_matrix(random, w.q.rows(), 1, 0.3);
  w.k_bias = random_matrix(random, w.k.rows(), 1, 0.3);
  w.v_bias = random_matrix(random, w.v.rows(), 1, 0.3);
  w.o_bias = random_matrix(random, w.o.rows(), 1, 0.3);
  return w;
}

inline bool same_bits(const AttentionWeights& a, const AttentionWeights& b) {
  const auto same = [](const auto& x, const auto& y) {
    if (x.rows() != y.rows() || x.cols() != y.cols()) return false;
    for (Index i = 0; i < x.size(); ++i)
      if (!(x.data()[i] == y.data()[i]) || std::signbit(x.data()[i]) != std::signbit(y.data()[i])) return false;
    return true;
  };
  return a.shape.query_heads == b.shape.query_heads && a.shape.kv_heads == b.shape.kv_heads &&
         a.shape.head_dim == b.shape.head_dim && a.shape.value_dim == b.shape.value_dim && same(a.q, b.q) &&
         same(a.k, b.k) && same(a.v, b.v) && same(a.o, b.o) && same(a.q_bias, b.q_bias) && same(a.k_bias, b.k_bias) &&
         same(a.v_bias, b.v_bias) && same(a.o_bias, b.o_bias);
}

/// How much larger the sums of absolute values are than the sums: what rounding errors are a share of.
struct PlainOutputs {
  Eigen::MatrixXd outputs;    ///< outputs × tokens
  Eigen::MatrixXd magnitude;  ///< the same with absolute values in the last product
  double largest_score = 0;   ///< of Σ |q|·|k| · scale
};

/// One projected head at one token, and the same with absolute values.
inline Eigen::VectorXd plain_project(const Eigen::MatrixXd& w, const Eigen::VectorXd& bias, Index first, Index width,
                                     const Eigen::VectorXd& x, bool absolute) {
  Eigen::VectorXd made(width);
  for (Index i = 0; i < width; ++i) {
    double sum = bias.size() > 0 ? (absolute ? std::abs(bias[first + i]) : bias[first + i]) : 0.0;
    for (Index j = 0; j < x.size(); ++j) sum += absolute ? std::abs(w(first + i, j) * x[j]) : w(first + i, j) * x[j];
    made[i] = sum;
  }
  return made;
}

/// Causal attention with rotary pairs of base 10000, in which a head's numbers depend on that head alone.
inline PlainOutputs plain_outputs(const AttentionWeights& w, const RopeLayout& rope, const Eigen::MatrixXd& x,
                                  bool causal = true) {
  const Index tokens = x.cols(), group = w.shape.query_heads / w.shape.kv_heads;
  const Index dims = rope.pairs == RopePairs::none ? 0 : rope.dims == 0 ? w.shape.head_dim : rope.dims;
  const auto turn = [&](Eigen::VectorXd head, Index position, bool absolute) {
    for (Index pair = 0; pair < dims / 2; ++pair) {
      const Index a = rope.pairs == RopePairs::interleaved ? 2 * pair : pair;
      const Index b = rope.pairs == RopePairs::interleaved ? 2 * pair + 1 : pair + dims / 2;
      const double angle =
          static_cast<double>(position) * std::pow(10000.0, -static_cast<double>(2 * pair) / static_cast<double>(dims));
      const double c = absolute ? 1 : std::cos(angle), s = absolute ? -1 : std::sin(angle);
      const double real = head[a], imaginary = head[b];
      head[a] = real * c - imaginary * s;
      head[b] = absolute ? real + imaginary : real * s + imaginary * c;
    }
    return head;
  };
  PlainOutputs made{Eigen::MatrixXd::Zero(w.o.rows(), tokens), Eigen::MatrixXd::Zero(w.o.rows(), tokens), 0};
  const double scale = 1 / std::sqrt(static_cast<double>(w.shape.head_dim));
  for (Index h = 0; h < w.shape.query_heads; ++h) {
    const Index kv = h / group, d = w.shape.head_dim, dv = w.shape.value_dim;
    std::vector<Eigen::VectorXd> k, v, k_size, v_size;
    for (Index t = 0; t < tokens; ++t) {
      k.push_back(turn(plain_project(w.k, w.k_bias, kv * d, d, x.col(t), false), t, false));
      k_size.push_back(turn(plain_project(w.k, w.k_bias, kv * d, d, x.col(t), true), t, true));
      v.push_back(plain_project(w.v, w.v_bias, kv * dv, dv, x.col(t), false));
      v_size.push_back(plain_project(w.v, w.v_bias, kv * dv, dv, x.col(t), true));
    }
    for (Index t = 0; t < tokens; ++t) {
      const Eigen::VectorXd q = turn(plain_project(w.q, w.q_bias, h * d, d, x.col(t), false), t, false);
      const Eigen::VectorXd q_size = turn(plain_project(w.q, w.q_bias, h * d, d, x.col(t), true), t, true);
      const Index seen = causal ? t + 1 : tokens;
      std::vector<double> weight;
      double most = -1e300, sum = 0;
      for (Index s = 0; s < seen; ++s) {
        double score = 0, size = 0;
        for (Index i = 0; i < d; ++i) {
          score += q[i] * k[static_cast<std::size_t>(s)][i];
          size += q_size[i] * k_size[static_cast<std::size_t>(s)][i];
        }
        weight.push_back(scale * score);
        most = std::max(most, weight.back());
        made.largest_score = std::max(made.largest_score, scale * size);
      }
      for (double& one : weight) one = std::exp(one - most), sum += one;
      for (Index i = 0; i < dv; ++i) {
        double value = 0, size = 0;
        for (Index s = 0; s < seen; ++s) {
          value += weight[static_cast<std::size_t>(s)] / sum * v[static_cast<std::size_t>(s)][i];
          size = std::max(size, v_size[static_cast<std::size_t>(s)][i]);
        }
        for (Index out = 0; out < w.o.rows(); ++out) {
          made.outputs(out, t) += w.o(out, h * dv + i) * value;
          made.magnitude(out, t) += std::abs(w.o(out, h * dv + i)) * size;
        }
      }
    }
  }
  if (w.o_bias.size() > 0) {
    made.outputs.colwise() += w.o_bias;
    made.magnitude.colwise() += w.o_bias.cwiseAbs();
  }
  return made;
}

}  // namespace gqa::test
