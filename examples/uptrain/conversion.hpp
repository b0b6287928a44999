// SPDX-License-Identifier: Apache-2.0
/// @file
/// A multi-head model with fewer KV heads, by the library's conversions.
#pragma once

#include <string>
#include <vector>

#include "attention.hpp"
#include "gqa/convert.hpp"
#include "network.hpp"
#include "text.hpp"

namespace uptrain {

/// How KV heads become fewer.
enum class Method {
  mean,      ///< neighbours are averaged: what Ainslie et al. 2023 found best
  first,     ///< the first of neighbours is taken
  random,    ///< one of neighbours is taken
  aligned,   ///< like heads are grouped, turned towards each other and averaged, and the output projection is fitted
  low_rank,  ///< like heads are grouped and share their best common subspace; fitted too
};

struct NamedMethod {
  Method method;
  const char* name;
};
inline constexpr NamedMethod kMethods[] = {{Method::mean, "mean"},
                                           {Method::first, "first"},
                                           {Method::random, "random"},
                                           {Method::aligned, "aligned"},
                                           {Method::low_rank, "low-rank"}};

/// @throws std::invalid_argument if there is no method of that name
inline Method method_named(const std::string& name) {
  std::string all;
  for (const NamedMethod& each : kMethods) {
    if (name == each.name) return each.method;
    all += std::string(all.empty() ? "" : ", ") + each.name;
  }
  throw std::invalid_argument("method is " + name + "; expected one of " + all);
}

/// Whether a method looks at what the layers do on text, besides their weights.
inline bool is_calibrated(Method method) { return method == Method::aligned || method == Method::low_rank; }

inline gqa::MergeOptions merge_options(Method method, Index kv_heads, std::uint64_t seed, Index layer) {
  gqa::MergeOptions options;
  options.kv_heads = kv_heads;
  options.rope = {gqa::RopePairs::interleaved, 0};
  options.seed =
      random_bits(seed, Purpose::conversion, static_cast<std::uint64_t>(layer), static_cast<std::uint64_t>(kv_heads));
  options.grouping = is_calibrated(method) ? gqa::HeadGrouping::similar : gqa::HeadGrouping::neighbours;
  switch (method) {
    case Method::mean: options.keys = gqa::MergeMethod::mean; break;
    case Method::first: options.keys = gqa::MergeMethod::first; break;
    case Method::random: options.keys = gqa::MergeMethod::random; break;
    case Method::aligned: options.keys = gqa::MergeMethod::aligned_mean; break;
    case Method::low_rank: options.keys = gqa::MergeMethod::low_rank; break;
  }
  options.values = options.keys;
  return options;
}

/// Each layer's attention inputs on a batch, a matrix a sequence: layers × sequences.
inline std::vector<std::vector<Eigen::MatrixXf>> attention_inputs(const Model& model, const Batch& batch) {
  Activations<float> kept;
  forward(model, Attention(model.shape), Tokens{batch.sequences, batch.length, batch.inputs, batch.targets}, kept);
  std::vector<std::vector<Eigen::MatrixXf>> inputs(kept.layers.size());
  for (std::size_t layer = 0; layer < inputs.size(); ++layer)
    for (Index i = 0; i < batch.sequences; ++i)
      inputs[layer].push_back(kept.layers[layer].attention_input.middleCols(i * batch.length, batch.length));
  return inputs;
}

/// The model with `kv_heads` KV heads.
/// @param calibration text that training may see; for the methods that are_calibrated, each layer is given what it is given in `model`
/// @throws gqa::ArgumentError if `kv_heads` does not divide the model's
inline Model convert(const Model& model, Index kv_heads, Method method, std::uint64_t seed, const Batch& calibration) {
  Model made{model.shape, {}};
  made.shape.kv_heads = kv_heads;
  made.values.resize(parameter_count(made.shape));
  std::vector<std::vector<Eigen::MatrixXf>> inputs(static_cast<std::size_t>(model.shape.layers));
  if (is_calibrated(method)) inputs = attention_inputs(model, calibration);

  const ModelViews<const float> from = model.views();
  ModelViews<float> to = made.views();
  const Index dim = model.shape.dim, kv_dim = model.shape.kv_dim(), width = made.shape.kv_dim();
  gqa::AttentionForm form;
  form.rope = {gqa::RopePairs::interleaved, 0};
  for (std::size_t i = 0; i < from.layers.size(); ++i) {
    const LayerViews<const float>& old = from.layers[i];
    gqa::AttentionWeights weights;
    weights.shape = {model.shape.query_heads, model.shape.kv_heads, model.shape.head_dim(), model.shape.head_dim()};
    weights.q = old.qkv.topRows(dim).cast<double>();
    weights.k = old.qkv.middleRows(dim, kv_dim).cast<double>();
    weights.v = old.qkv.bottomRows(kv_dim).cast<double>();
    weights.o = old.o.cast<double>();
    const gqa::AttentionWeights merged =
        gqa::convert_layer(weights, merge_options(method, kv_heads, seed, static_cast<Index>(i)), form, {inputs[i], {}})
            .weights;
    LayerViews<float>& now = to.layers[i];
    now.qkv.topRows(dim) = merged.q.cast<float>();
    now.qkv.middleRows(dim, width) = merged.k.cast<float>();
    now.qkv.bottomRows(width) = merged.v.cast<float>();
    now.o = merged.o.cast<float>();
    now.attention_norm = old.attention_norm;
    now.feed_forward_norm = old.feed_forward_norm;
    now.gate_up = old.gate_up;
    now.down = old.down;
  }
  to.embedding = from.embedding;
  to.final_norm = from.final_norm;
  to.classifier = from.classifier;
  return made;
}

}  // namespace uptrain
