// SPDX-License-Identifier: Apache-2.0
/// @file
/// What surrounds attention in a decoder, forward and backward, a column a token: RMS norm, SwiGLU, cross entropy. In f32 for training; in
/// double precision for tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>

#include "model.hpp"

namespace uptrain {

inline constexpr double kNormEpsilon = 1e-5;

/// y ← gain ∘ x / rms(x) for each column (Zhang and Sennrich 2019).
/// @param inverse 1 / rms of each column, for the gradient
template <class Scalar, class Gain>
void rms_norm(const MatrixOf<Scalar>& x, const Gain& gain, MatrixOf<Scalar>& y, VectorOf<Scalar>& inverse) {
  y.resizeLike(x);
  inverse.resize(x.cols());
  for (Index t = 0; t < x.cols(); ++t) {
    const Scalar mean_square = x.col(t).squaredNorm() / static_cast<Scalar>(x.rows());
    inverse[t] = Scalar{1} / std::sqrt(mean_square + static_cast<Scalar>(kNormEpsilon));
    y.col(t).array() = gain.array() * (inverse[t] * x.col(t).array());
  }
}

/// Gradients of rms_norm: d_x is added to, d_gain is written.
template <class Scalar, class Gain, class GainGradient>
void rms_norm_backward(const MatrixOf<Scalar>& x, const Gain& gain, const VectorOf<Scalar>& inverse,
                       const MatrixOf<Scalar>& d_y, MatrixOf<Scalar>& d_x, GainGradient& d_gain) {
  d_gain.setZero();
  for (Index t = 0; t < x.cols(); ++t) {
    const Scalar r = inverse[t];
    const Scalar along = (gain.array() * d_y.col(t).array() * x.col(t).array()).sum();
    d_gain.array() += r * d_y.col(t).array() * x.col(t).array();
    d_x.col(t).array() +=
        r * gain.array() * d_y.col(t).array() - (r * r * r * along / static_cast<Scalar>(x.rows())) * x.col(t).array();
  }
}

/// made ← silu(gate) ∘ up (Shazeer 2020).
/// @param gate_up 2·hidden × tokens: gate above up
template <class Scalar>
void swiglu(const MatrixOf<Scalar>& gate_up, MatrixOf<Scalar>& made) {
  const Index hidden = gate_up.rows() / 2;
  made.resize(hidden, gate_up.cols());
  for (Index t = 0; t < gate_up.cols(); ++t) {
    const auto gate = gate_up.col(t).head(hidden).array();
    made.col(t).array() = gate / (Scalar{1} + (-gate).exp()) * gate_up.col(t).tail(hidden).array();
  }
}

/// Gradient of swiglu, written.
template <class Scalar>
void swiglu_backward(const MatrixOf<Scalar>& gate_up, const MatrixOf<Scalar>& d_made, MatrixOf<Scalar>& d_gate_up) {
  const Index hidden = gate_up.rows() / 2;
  d_gate_up.resizeLike(gate_up);
  for (Index t = 0; t < gate_up.cols(); ++t) {
    const auto gate = gate_up.col(t).head(hidden).array();
    const auto up = gate_up.col(t).tail(hidden).array();
    const auto d = d_made.col(t).array();
    auto logistic = d_gate_up.col(t).tail(hidden).array();  // until its own turn comes
    logistic = Scalar{1} / (Scalar{1} + (-gate).exp());
    d_gate_up.col(t).head(hidden).array() = d * up * logistic * (Scalar{1} + gate * (Scalar{1} - logistic));
    logistic *= d * gate;
  }
}

/// Sum over columns of −log softmax(logits)[target], in nats.
/// @param d_logits if not null: the gradient of `scale` times that sum
template <class Scalar>
double cross_entropy(const MatrixOf<Scalar>& logits, std::span<const std::uint8_t> targets, Scalar scale,
                     MatrixOf<Scalar>* d_logits) {
  if (d_logits != nullptr) d_logits->resizeLike(logits);
  VectorOf<Scalar> weights(logits.rows());
  double sum = 0;
  for (Index t = 0; t < logits.cols(); ++t) {
    const Scalar largest = logits.col(t).maxCoeff();
    weights.array() = (logits.col(t).array() - largest).exp();
    const Scalar total = weights.sum();
    const Index target = targets[static_cast<std::size_t>(t)];
    sum += static_cast<double>(std::log(total) + largest - logits(target, t));
    if (d_logits == nullptr) continue;
    d_logits->col(t) = (scale / total) * weights;
    (*d_logits)(target, t) -= scale;
  }
  return sum;
}

}  // namespace uptrain
