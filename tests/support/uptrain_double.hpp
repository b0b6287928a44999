// SPDX-License-Identifier: Apache-2.0
// What examples/uptrain takes from the library, attention with rotary embedding and the gradients of both, by plain loops in double precision;
// and models and texts of the smallest sizes.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "../../examples/uptrain/network.hpp"
#include "support/random.hpp"

namespace uptrain::test {

/// The same interface as uptrain::Attention.
class DoubleAttention {
 public:
  explicit DoubleAttention(const ModelShape& shape) : shape_(shape) {}

  void forward(MatrixOf<double>& qkv, MatrixOf<double>& out, VectorOf<double>& lse, Index sequences) const {
    out.setZero(shape_.dim, qkv.cols());
    lse.resize(qkv.cols() * shape_.query_heads);
    const Index length = qkv.cols() / sequences;
    for (Index t = 0; t < qkv.cols(); ++t) turn(qkv, t, static_cast<double>(t % length));
    for (Index t = 0; t < qkv.cols(); ++t)
      for (Index head = 0; head < shape_.query_heads; ++head) {
        const std::vector<double> weights = weights_of(qkv, t, length, head, lse[t * shape_.query_heads + head]);
        for (std::size_t i = 0; i < weights.size(); ++i)
          out.col(t).segment(head * width(), width()) +=
              weights[i] * value(qkv, first_of(t, length) + static_cast<Index>(i), head);
      }
  }

  void backward(const MatrixOf<double>& qkv, const MatrixOf<double>& out, const VectorOf<double>& lse,
                const MatrixOf<double>& d_out, MatrixOf<double>& d_qkv, Index sequences) const {
    d_qkv.setZero(qkv.rows(), qkv.cols());
    const Index length = qkv.cols() / sequences;
    for (Index t = 0; t < qkv.cols(); ++t)
      for (Index head = 0; head < shape_.query_heads; ++head) {
        double again = lse[t * shape_.query_heads + head];
        const std::vector<double> weights = weights_of(qkv, t, length, head, again);
        const VectorOf<double> d = d_out.col(t).segment(head * width(), width());
        const double common = d.dot(out.col(t).segment(head * width(), width()));
        for (std::size_t i = 0; i < weights.size(); ++i) {
          const Index at = first_of(t, length) + static_cast<Index>(i);
          const double d_score = weights[i] * (d.dot(value(qkv, at, head)) - common) * scale();
          d_qkv.col(at).segment(value_row(head), width()) += weights[i] * d;
          d_qkv.col(at).segment(key_row(head), width()) += d_score * qkv.col(t).segment(head * width(), width());
          d_qkv.col(t).segment(head * width(), width()) += d_score * qkv.col(at).segment(key_row(head), width());
        }
      }
    for (Index t = 0; t < qkv.cols(); ++t) turn(d_qkv, t, -static_cast<double>(t % length));
  }

 private:
  Index width() const { return shape_.head_dim(); }
  double scale() const { return 1 / std::sqrt(static_cast<double>(width())); }
  Index key_row(Index head) const { return shape_.dim + head * shape_.kv_heads / shape_.query_heads * width(); }
  Index value_row(Index head) const { return key_row(head) + shape_.kv_dim(); }
  static Index first_of(Index t, Index length) { return t / length * length; }
  VectorOf<double> value(const MatrixOf<double>& qkv, Index t, Index head) const {
    return qkv.col(t).segment(value_row(head), width());
  }
  std::vector<double> weights_of(const MatrixOf<double>& qkv, Index t, Index length, Index head, double& lse) const {
    std::vector<double> weights;
    double total = 0;
    for (Index at = first_of(t, length); at <= t; ++at) {
      weights.push_back(std::exp(
          scale() * qkv.col(t).segment(head * width(), width()).dot(qkv.col(at).segment(key_row(head), width()))));
      total += weights.back();
    }
    lse = std::log(total);
    for (double& weight : weights) weight /= total;
    return weights;
  }
  /// Pairs of neighbouring dims of all queries and keys of a token.
  void turn(MatrixOf<double>& qkv, Index t, double position) const {
    for (Index row = 0; row < shape_.dim + shape_.kv_dim(); row += 2) {
      const double angle =
          position * std::pow(10000.0, -static_cast<double>(row % width()) / static_cast<double>(width()));
      const double even = qkv(row, t), odd = qkv(row + 1, t);
      qkv(row, t) = even * std::cos(angle) - odd * std::sin(angle);
      qkv(row + 1, t) = even * std::sin(angle) + odd * std::cos(angle);
    }
  }

  ModelShape shape_;
};

inline constexpr ModelShape kTinyShape{
    .dim = 16, .hidden = 24, .layers = 2, .query_heads = 4, .kv_heads = 2, .vocabulary = 256, .context = 12};

/// Bytes of a few words in random order: something that can be learnt.
inline std::vector<std::uint8_t> word_bytes(Index count, std::uint64_t seed) {
  const std::string words[] = {"key ", "value ", "query ", "head ", "of a ", "group ", "and the "};
  gqa::test::Random random(seed);
  std::vector<std::uint8_t> bytes;
  while (static_cast<Index>(bytes.size()) < count)
    for (const char letter : words[random.below(7)]) bytes.push_back(static_cast<std::uint8_t>(letter));
  bytes.resize(static_cast<std::size_t>(count));
  return bytes;
}

}  // namespace uptrain::test
