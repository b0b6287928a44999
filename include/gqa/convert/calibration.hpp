// SPDX-License-Identifier: Apache-2.0
/// @file
/// A layer run on calibration data with the library's own attention: its outputs, the moments of its inputs, the output projection
/// fitted to what the layer gave before, and how far outputs are off. Needs Eigen.
#pragma once

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <cmath>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "gqa/attention.hpp"
#include "gqa/convert/moments.hpp"
#include "gqa/convert/weights.hpp"

namespace gqa {

/// How a layer attends, apart from its weights.
struct AttentionForm {
  RopeLayout rope = {};
  double rope_base = 10000;                   ///< pair i of p turns by position · base^(−i/p)
  std::vector<double> rope_frequencies = {};  ///< radians a position for each pair instead, for models that scale them
  bool causal = true;                         ///< else every token sees all of its sequence
  Index window = 0;                           ///< causal: tokens that a query sees, itself included; 0: all before it
  std::optional<float> scale = {};            ///< multiplies q·k; default 1/√D
  ExecutorRef executor = {};                  ///< who runs the attention; changes no result
};

namespace detail::inline GQA_ABI {

using CalibrationAttention = GroupedQueryAttention<dynamic, dynamic, dynamic, dynamic, CacheOf<float>>;

inline void check_form(const AttentionWeights& weights, const AttentionForm& form) {
  const Index dims = check_rope(form.rope, weights.shape.head_dim);
  if (dims > 0 && form.rope_frequencies.empty() && !(form.rope_base > 0 && std::isfinite(form.rope_base)))
    fail("form.rope_base", std::to_string(form.rope_base), "a positive number");
  if (!form.rope_frequencies.empty() && static_cast<Index>(form.rope_frequencies.size()) != dims / 2)
    fail("form.rope_frequencies.size()", static_cast<Index>(form.rope_frequencies.size()),
         "one for each rotary pair: " + std::to_string(dims / 2) + ", or none");
  if (form.window < 0) fail("form.window", form.window, "0 or more tokens");
  if (form.window > 0 && !form.causal) fail("form.window", form.window, "0 unless causal");
}

inline void check_sequences(const char* name, std::span<const Eigen::MatrixXf> sequences, Index rows,
                            const char* rows_are) {
  Index tokens = 0;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const std::string one = std::string(name) + "[" + std::to_string(i) + "]";
    if (sequences[i].rows() != rows)
      fail(one + ".rows()", sequences[i].rows(), std::string(rows_are) + " = " + std::to_string(rows));
    if (!sequences[i].allFinite()) fail(one, "not finite", "finite numbers");
    tokens += sequences[i].cols();
  }
  if (tokens < 1) fail(name, "without a token", "1 or more tokens");
}

/// Turns the rotary pairs of each head of each column, column t by its position t.
inline void apply_rope(Eigen::MatrixXf& heads, Index head_dim, const AttentionForm& form) {
  const Index dims = check_rope(form.rope, head_dim), pairs = dims / 2;
  for (Index pair = 0; pair < pairs; ++pair) {
    const double frequency = form.rope_frequencies.empty()
                                 ? std::pow(form.rope_base, -static_cast<double>(pair) / static_cast<double>(pairs))
                                 : form.rope_frequencies[static_cast<std::size_t>(pair)];
    const DimPair at = rope_pair(form.rope.pairs, dims, pair);
    for (Index t = 0; t < heads.cols(); ++t) {
      const double angle = static_cast<double>(t) * frequency;
      const auto cosine = static_cast<float>(std::cos(angle)), sine = static_cast<float>(std::sin(angle));
      for (Index head = 0; head < heads.rows(); head += head_dim) {
        const float real = heads(head + at.real, t), imaginary = heads(head + at.imaginary, t);
        heads(head + at.real, t) = real * cosine - imaginary * sine;
        heads(head + at.imaginary, t) = real * sine + imaginary * cosine;
      }
    }
  }
}

/// A layer's weights in f32, which is what it runs in.
struct RunnableLayer {
  HeadShape shape;
  Eigen::MatrixXf q, k, v, o;
  Eigen::VectorXf q_bias, k_bias, v_bias, o_bias;
};
inline RunnableLayer runnable(const AttentionWeights& w) {
  return {w.shape,
          w.q.cast<float>(),
          w.k.cast<float>(),
          w.v.cast<float>(),
          w.o.cast<float>(),
          w.q_bias.cast<float>(),
          w.k_bias.cast<float>(),
          w.v_bias.cast<float>(),
          w.o_bias.cast<float>()};
}
inline Eigen::MatrixXf project(const Eigen::MatrixXf& weight, const Eigen::VectorXf& bias, const Eigen::MatrixXf& x) {
  Eigen::MatrixXf made(weight.rows(), x.cols());
  made.noalias() = weight * x;
  if (bias.size() > 0) made.colwise() += bias;
  return made;
}

/// Queries and keys of a sequence, turned by their positions.
struct TurnedHeads {
  Eigen::MatrixXf q, k;
};
inline TurnedHeads turned_heads(const RunnableLayer& layer, const AttentionForm& form, const Eigen::MatrixXf& x) {
  TurnedHeads made{project(layer.q, layer.q_bias, x), project(layer.k, layer.k_bias, x)};
  apply_rope(made.q, layer.shape.head_dim, form);
  apply_rope(made.k, layer.shape.head_dim, form);
  return made;
}

inline void attend_sequence(const ConstTensorView& q, const KvCacheView& kv, const TensorView& out,
                            const AttentionForm& form) {
  const CalibrationAttention attention;
  Options options;
  options.scale = form.scale;
  options.executor = form.executor;
  if (!form.causal) attention(q, kv, out, Full{}, options);
  else if (form.window > 0) attention(q, kv, out, CausalWindow{form.window}, options);
  else attention(q, kv, out, Causal{}, options);
}

/// Outputs of all heads side by side, before the output projection: Hq·Dv × tokens.
inline Eigen::MatrixXf head_outputs(const RunnableLayer& layer, const AttentionForm& form, const Eigen::MatrixXf& x) {
  const HeadShape& shape = layer.shape;
  Eigen::MatrixXf out(shape.query_heads * shape.value_dim, x.cols());
  if (x.cols() == 0) return out;
  const TurnedHeads heads = turned_heads(layer, form, x);
  const Eigen::MatrixXf v = project(layer.v, layer.v_bias, x);
  attend_sequence(
      ConstTensorView(heads.q.data(), x.cols(), shape.query_heads, shape.head_dim),
      KvCacheView::contiguous(heads.k.data(), v.data(), {x.cols(), shape.kv_heads, shape.head_dim, shape.value_dim}),
      TensorView(out.data(), x.cols(), shape.query_heads, shape.value_dim), form);
  return out;
}

inline std::vector<Eigen::MatrixXf> layer_outputs(const AttentionWeights& weights, const AttentionForm& form,
                                                  std::span<const Eigen::MatrixXf> inputs) {
  check_weights(weights);
  check_form(weights, form);
  check_sequences("inputs", inputs, weights.q.cols(), "weights.q.cols()");
  const RunnableLayer layer = runnable(weights);
  std::vector<Eigen::MatrixXf> outputs;
  for (const Eigen::MatrixXf& x : inputs)
    outputs.push_back(project(layer.o, layer.o_bias, head_outputs(layer, form, x)));
  return outputs;
}

/// moment += Σ columns [x; 1]·[x; 1]ᵀ.
inline void add_moment(Eigen::MatrixXd& moment, const Eigen::MatrixXf& x) {
  const Index inputs = x.rows();
  const Eigen::MatrixXd exact = x.cast<double>();
  moment.topLeftCorner(inputs, inputs).noalias() += exact * exact.transpose();
  const Eigen::VectorXd sum = exact.rowwise().sum();
  moment.topRightCorner(inputs, 1) += sum;
  moment.bottomLeftCorner(1, inputs) += sum.transpose();
  moment(inputs, inputs) += static_cast<double>(x.cols());
}

inline InputMoments measure_inputs(const AttentionWeights& weights, const AttentionForm& form,
                                   std::span<const Eigen::MatrixXf> inputs) {
  check_weights(weights);
  check_form(weights, form);
  check_sequences("inputs", inputs, weights.q.cols(), "weights.q.cols()");
  const RunnableLayer layer = runnable(weights);
  const Index width = weights.q.cols(), group = weights.shape.query_heads / weights.shape.kv_heads;
  InputMoments moments{Eigen::MatrixXd::Zero(width + 1, width + 1), Eigen::MatrixXd::Zero(width + 1, width + 1)};
  for (const Eigen::MatrixXf& x : inputs) {
    if (x.cols() == 0) continue;
    add_moment(moments.inputs, x);
    const TurnedHeads heads = turned_heads(layer, form, x);
    const Index d = weights.shape.head_dim;
    Eigen::MatrixXf average(width, x.cols());
    for (Index head = 0; head < weights.shape.query_heads;
         ++head) {  // the inputs themselves as values: one KV head of their width
      const KvCacheView kv =
          KvCacheView::contiguous(heads.k.data() + head / group * d, x.data(), {x.cols(), 1, d, width},
                                  KvStrides{heads.k.rows(), d}, KvStrides{width, width});
      attend_sequence(ConstTensorView(heads.q.data() + head * d, x.cols(), 1, d, TensorStrides{heads.q.rows(), d}), kv,
                      TensorView(average.data(), x.cols(), 1, width), form);
      add_moment(moments.attended, average);
    }
  }
  moments.inputs /= moments.inputs(width, width);
  moments.attended /= moments.attended(width, width);
  return moments;
}

inline void fit_output_projection(AttentionWeights& weights, const AttentionForm& form,
                                  std::span<const Eigen::MatrixXf> inputs, std::span<const Eigen::MatrixXf> targets,
                                  double ridge) {
  check_weights(weights);
  check_form(weights, form);
  check_sequences("inputs", inputs, weights.q.cols(), "weights.q.cols()");
  check_sequences("targets", targets, weights.o.rows(), "weights.o.rows()");
  if (targets.size() != inputs.size())
    fail("targets.size()", static_cast<Index>(targets.size()), "inputs.size() = " + std::to_string(inputs.size()));
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (targets[i].cols() != inputs[i].cols())
      fail("targets[" + std::to_string(i) + "].cols()", targets[i].cols(),
           "inputs[" + std::to_string(i) + "].cols() = " + std::to_string(inputs[i].cols()));
  if (!(ridge > 0 && std::isfinite(ridge))) fail("ridge", std::to_string(ridge), "a positive number");

  const RunnableLayer layer = runnable(weights);
  const bool bias = weights.o_bias.size() > 0;
  const Index columns = weights.o.cols(), unknowns = columns + (bias ? 1 : 0);
  Eigen::MatrixXd moment = Eigen::MatrixXd::Zero(columns + 1, columns + 1);
  Eigen::MatrixXd by_target = Eigen::MatrixXd::Zero(columns + 1, weights.o.rows());
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Eigen::MatrixXf heads = head_outputs(layer, form, inputs[i]);
    const Eigen::MatrixXd target = targets[i].cast<double>();
    add_moment(moment, heads);
    by_target.topRows(columns).noalias() += heads.cast<double>() * target.transpose();
    by_target.bottomRows(1) += target.rowwise().sum().transpose();
  }
  const double strength = ridge * moment.topLeftCorner(columns, columns).trace() / static_cast<double>(columns);
  if (!(strength > 0)) return;  // the heads give nothing
  // Change = argmin ‖W·a − target‖² + strength·‖W − present‖², the bias free.
  Eigen::MatrixXd present(unknowns, weights.o.rows());
  present.topRows(columns) = weights.o.transpose();
  if (bias) present.bottomRows(1) = weights.o_bias.transpose();
  Eigen::MatrixXd normal = moment.topLeftCorner(unknowns, unknowns);
  Eigen::MatrixXd wanted = by_target.topRows(unknowns) - normal * present;
  normal.diagonal().head(columns).array() += strength;
  const Eigen::LDLT<Eigen::MatrixXd> solver(normal);
  present += solver.solve(wanted);
  if (!present.allFinite()) return;
  weights.o = present.topRows(columns).transpose();
  if (bias) weights.o_bias = present.bottomRows(1).transpose();
}

inline double relative_error(std::span<const Eigen::MatrixXf> outputs, std::span<const Eigen::MatrixXf> expected) {
  if (outputs.size() != expected.size())
    fail("outputs.size()", static_cast<Index>(outputs.size()), "expected.size() = " + std::to_string(expected.size()));
  double difference = 0, whole = 0;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i].rows() != expected[i].rows() || outputs[i].cols() != expected[i].cols())
      fail("outputs[" + std::to_string(i) + "]",
           std::to_string(outputs[i].rows()) + " x " + std::to_string(outputs[i].cols()),
           std::to_string(expected[i].rows()) + " x " + std::to_string(expected[i].cols()) + ", as expected[" +
               std::to_string(i) + "]");
    difference += (outputs[i].cast<double>() - expected[i].cast<double>()).squaredNorm();
    whole += expected[i].cast<double>().squaredNorm();
  }
  return whole > 0 ? std::sqrt(difference / whole) : std::sqrt(difference);
}

}  // namespace detail::inline GQA_ABI

/// What the layer gives for each sequence: outputs × tokens, in f32 with the library's attention.
/// @param inputs sequences of the layer's inputs (after its norm), inputs × tokens, a column a token, the first at position 0
/// @throws ArgumentError naming what does not fit. Thread safe if form.executor is.
GQA_ALWAYS_INLINE std::vector<Eigen::MatrixXf> layer_outputs(const AttentionWeights& weights, const AttentionForm& form,
                                                             std::span<const Eigen::MatrixXf> inputs) {
  return detail::layer_outputs(weights, form, inputs);
}

/// The moments of a layer's inputs, as they are and as its query heads average them.
/// @param inputs as for layer_outputs; a few thousand tokens, several times as many as inputs, say what a layer does
/// @throws ArgumentError naming what does not fit. Thread safe if form.executor is.
GQA_ALWAYS_INLINE InputMoments measure_inputs(const AttentionWeights& weights, const AttentionForm& form,
                                              std::span<const Eigen::MatrixXf> inputs) {
  return detail::measure_inputs(weights, form, inputs);
}

/// Changes the output projection, and its bias if there is one, to the least-squares fit that makes the layer's outputs what they
/// should be: o ← argmin Σ ‖o·heads(x) + bias − target‖² + ridge·s·‖o − present o‖², s being the mean square of a head output. Nothing
/// is trained: this is one linear solve of Hq·Dv unknowns.
/// @param targets of each sequence, outputs × tokens: what the layer gave before it was changed, or what it should give now that its
/// inputs have changed as well
/// @throws ArgumentError naming what does not fit. Thread safe if form.executor is.
GQA_ALWAYS_INLINE void fit_output_projection(AttentionWeights& weights, const AttentionForm& form,
                                             std::span<const Eigen::MatrixXf> inputs,
                                             std::span<const Eigen::MatrixXf> targets, double ridge = 1e-3) {
  detail::fit_output_projection(weights, form, inputs, targets, ridge);
}

/// √(Σ ‖output − expected‖² / Σ ‖expected‖²) over all sequences.
GQA_ALWAYS_INLINE double relative_error(std::span<const Eigen::MatrixXf> outputs,
                                        std::span<const Eigen::MatrixXf> expected) {
  return detail::relative_error(outputs, expected);
}

}  // namespace gqa
