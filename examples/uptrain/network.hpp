// SPDX-License-Identifier: Apache-2.0
/// @file
/// The whole model over a few sequences of equal length: its loss, and the gradient of its loss. One thread, Eigen's products, and whatever
/// attention it is given.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "layers.hpp"

namespace uptrain {

/// Sequences of a training step, one after the other: `inputs` and the bytes that follow them.
struct Tokens {
  Index sequences = 0;
  Index length = 0;  ///< tokens of each
  std::span<const std::uint8_t> inputs = {};
  std::span<const std::uint8_t> targets = {};
};

/// What a forward pass leaves for the backward pass; reused from step to step.
template <class Scalar>
struct Activations {
  struct Layer {
    MatrixOf<Scalar> input, attention_input, qkv, attended, middle, feed_forward_input, gate_up, made;
    VectorOf<Scalar> attention_inverse, feed_forward_inverse, lse;
  };
  std::vector<Layer> layers;
  MatrixOf<Scalar> output, classifier_input, logits;
  VectorOf<Scalar> output_inverse;

  MatrixOf<Scalar> d_logits, d_residual, d_normalised, d_attended, d_qkv, d_gate_up, d_made;
};

/// Forward pass. @return Σ −log p(target), in nats
/// @tparam Attention forward(qkv, out, lse, sequences) and backward(…), see attention.hpp
template <class Scalar, class Attention>
double forward(const ModelOf<Scalar>& model, const Attention& attention, const Tokens& tokens,
               Activations<Scalar>& kept, Scalar gradient_scale = 0) {
  const ModelViews<const Scalar> w = model.views();
  const Index count = tokens.sequences * tokens.length;
  kept.layers.resize(w.layers.size());
  MatrixOf<Scalar>* x = w.layers.empty() ? &kept.output : &kept.layers.front().input;
  x->resize(model.shape.dim, count);
  for (Index t = 0; t < count; ++t) x->col(t) = w.embedding.col(tokens.inputs[static_cast<std::size_t>(t)]);
  for (std::size_t i = 0; i < w.layers.size(); ++i) {
    typename Activations<Scalar>::Layer& layer = kept.layers[i];
    rms_norm(layer.input, w.layers[i].attention_norm, layer.attention_input, layer.attention_inverse);
    layer.qkv.resize(model.shape.qkv_dim(), count);
    layer.qkv.noalias() = w.layers[i].qkv * layer.attention_input;
    attention.forward(layer.qkv, layer.attended, layer.lse, tokens.sequences);
    layer.middle = layer.input;
    layer.middle.noalias() += w.layers[i].o * layer.attended;
    rms_norm(layer.middle, w.layers[i].feed_forward_norm, layer.feed_forward_input, layer.feed_forward_inverse);
    layer.gate_up.resize(2 * model.shape.hidden, count);
    layer.gate_up.noalias() = w.layers[i].gate_up * layer.feed_forward_input;
    swiglu(layer.gate_up, layer.made);
    x = i + 1 < w.layers.size() ? &kept.layers[i + 1].input : &kept.output;
    *x = layer.middle;
    x->noalias() += w.layers[i].down * layer.made;
  }
  rms_norm(kept.output, w.final_norm, kept.classifier_input, kept.output_inverse);
  kept.logits.resize(model.shape.vocabulary, count);
  kept.logits.noalias() = w.classifier * kept.classifier_input;
  const bool wanted = gradient_scale > 0;
  return cross_entropy(kept.logits, tokens.targets, gradient_scale, wanted ? &kept.d_logits : nullptr);
}

/// The gradient of gradient_scale times what forward returned, by all parameters: written to `gradient`, which has the model's shape.
/// `kept` is as that forward pass, with the same gradient_scale, left it.
template <class Scalar, class Attention>
void backward(const ModelOf<Scalar>& model, const Attention& attention, const Tokens& tokens, Activations<Scalar>& kept,
              ModelOf<Scalar>& gradient) {
  const ModelViews<const Scalar> w = model.views();
  ModelViews<Scalar> d = gradient.views();
  d.classifier.noalias() = kept.d_logits * kept.classifier_input.transpose();
  kept.d_normalised.noalias() = w.classifier.transpose() * kept.d_logits;
  MatrixOf<Scalar>& d_x = kept.d_residual;
  d_x.setZero(model.shape.dim, kept.output.cols());
  rms_norm_backward(kept.output, w.final_norm, kept.output_inverse, kept.d_normalised, d_x, d.final_norm);
  for (std::size_t i = w.layers.size(); i-- > 0;) {
    typename Activations<Scalar>::Layer& layer = kept.layers[i];
    d.layers[i].down.noalias() = d_x * layer.made.transpose();
    kept.d_made.noalias() = w.layers[i].down.transpose() * d_x;
    swiglu_backward(layer.gate_up, kept.d_made, kept.d_gate_up);
    d.layers[i].gate_up.noalias() = kept.d_gate_up * layer.feed_forward_input.transpose();
    kept.d_normalised.noalias() = w.layers[i].gate_up.transpose() * kept.d_gate_up;
    rms_norm_backward(layer.middle, w.layers[i].feed_forward_norm, layer.feed_forward_inverse, kept.d_normalised, d_x,
                      d.layers[i].feed_forward_norm);
    d.layers[i].o.noalias() = d_x * layer.attended.transpose();
    kept.d_attended.noalias() = w.layers[i].o.transpose() * d_x;
    attention.backward(layer.qkv, layer.attended, layer.lse, kept.d_attended, kept.d_qkv, tokens.sequences);
    d.layers[i].qkv.noalias() = kept.d_qkv * layer.attention_input.transpose();
    kept.d_normalised.noalias() = w.layers[i].qkv.transpose() * kept.d_qkv;
    rms_norm_backward(layer.input, w.layers[i].attention_norm, layer.attention_inverse, kept.d_normalised, d_x,
                      d.layers[i].attention_norm);
  }
  d.embedding.setZero();
  for (Index t = 0; t < d_x.cols(); ++t) d.embedding.col(tokens.inputs[static_cast<std::size_t>(t)]) += d_x.col(t);
}

}  // namespace uptrain
