// SPDX-License-Identifier: Apache-2.0
/// @file
/// Stands in for gqa/backward.hpp: contiguous f32 caches, the causal variant, the calling thread.
#pragma once

#include <Eigen/Core>

#include <cmath>
#include <span>

#include "gqa/gqa.hpp"

namespace gqa {

struct SequenceGradients {
  ConstTensorView d_out;
  TensorView d_q{};
  TensorView d_k{};
  TensorView d_v{};
};
struct BackwardOptions : Options {};

class DynamicAttentionBackward {
 public:
  explicit DynamicAttentionBackward(HeadShape shape) : shape_(shape) {}

  void operator()(std::span<const Sequence> calls, std::span<const SequenceGradients> gradients, const Causal&,
                  const BackwardOptions&) const {
    for (std::size_t i = 0; i < calls.size(); ++i) one(calls[i], gradients[i]);
  }

 private:
  using Matrix = Eigen::MatrixXf;
  using Rows = Eigen::Map<const Matrix, 0, Eigen::OuterStride<>>;
  using OutRows = Eigen::Map<Matrix, 0, Eigen::OuterStride<>>;

  template <class View>
  static auto head(const View& view, Index h) {
    using Data = std::conditional_t<std::is_same_v<View, TensorView>, float, const float>;
    using Made = std::conditional_t<std::is_same_v<View, TensorView>, OutRows, Rows>;
    return Made(static_cast<Data*>(view.data) + h * view.strides.head, view.dim, view.tokens,
                Eigen::OuterStride<>(view.strides.token));
  }

  void one(const Sequence& call, const SequenceGradients& d) const {
    const Index n = call.q.tokens, group = shape_.query_heads / shape_.kv_heads;
    const float scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
    for (Index kv = 0; kv < shape_.kv_heads; ++kv) {
      const Rows k(static_cast<const float*>(call.kv.k) + kv * call.kv.k_strides.head, shape_.head_dim, n,
                   Eigen::OuterStride<>(call.kv.k_strides.token));
      const Rows v(static_cast<const float*>(call.kv.v) + kv * call.kv.v_strides.head, shape_.value_dim, n,
                   Eigen::OuterStride<>(call.kv.v_strides.token));
      auto d_k = head(d.d_k, kv);
      auto d_v = head(d.d_v, kv);
      d_k.setZero();
      d_v.setZero();
      for (Index h = kv * group; h < (kv + 1) * group; ++h) {
        const auto q = head(call.q, h);
        const auto d_out = head(d.d_out, h);
        const auto out = head(call.out, h);
        Matrix p = scale * (k.transpose() * q);  // keys × queries
        Matrix d_p = v.transpose() * d_out;
        for (Index t = 0; t < n; ++t) {
          const float lse = call.lse[static_cast<std::size_t>(t * shape_.query_heads + h)];
          p.col(t).array() = (p.col(t).array() - lse).exp();
          p.col(t).tail(n - 1 - t).setZero();
          d_p.col(t).array() -= d_out.col(t).dot(out.col(t));
        }
        d_v.noalias() += d_out * p.transpose();
        p.array() *= scale * d_p.array();
        head(d.d_q, h).noalias() = k * p;
        d_k.noalias() += q * p.transpose();
      }
    }
  }

  HeadShape shape_;
};

}  // namespace gqa
