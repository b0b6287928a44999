// SPDX-License-Identifier: Apache-2.0
/// @file
/// The methods that are compared, and a model converted by all of them in one pass over its layers.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../../examples/convert_checkpoint/convert_model.hpp"

namespace quality {

using namespace checkpoint;

struct Method {
  std::string name;
  gqa::MergeMethod keys, values;
  gqa::HeadGrouping grouping = gqa::HeadGrouping::neighbours;
  Fit fit = Fit::none;
  bool weights_alone = false;  ///< merged without calibration data
};

inline std::vector<Method> every_method() {
  using enum gqa::MergeMethod;
  using enum gqa::HeadGrouping;
  return {
      {"mean (Ainslie et al.)", mean, mean},
      {"first head", first, first},
      {"random head", random, random},
      {"mean, similar heads", mean, mean, similar},
      {"aligned keys, mean values", aligned_mean, mean},
      {"mean keys, aligned values", mean, aligned_mean},
      {"aligned, weights alone", aligned_mean, aligned_mean, similar, Fit::none, true},
      {"aligned", aligned_mean, aligned_mean},
      {"aligned, similar heads", aligned_mean, aligned_mean, similar},
      {"low rank, weights alone", low_rank, low_rank, similar, Fit::none, true},
      {"low rank", low_rank, low_rank},
      {"low rank, similar heads", low_rank, low_rank, similar},
      {"mean, similar heads, fitted by layer", mean, mean, similar, Fit::layer},
      {"aligned, similar heads, fitted by layer", aligned_mean, aligned_mean, similar, Fit::layer},
      {"low rank, similar heads, fitted by layer", low_rank, low_rank, similar, Fit::layer},
      {"mean, similar heads, fitted in sequence", mean, mean, similar, Fit::sequential},
      {"aligned, similar heads, fitted in sequence", aligned_mean, aligned_mean, similar, Fit::sequential},
      {"low rank, similar heads, fitted in sequence", low_rank, low_rank, similar, Fit::sequential},
  };
}

/// What the last layer leaves of `held_out`: with the model as it is, first, and with each method's KV heads.
inline std::vector<Hidden> run_methods(const Network& model, const std::vector<Method>& methods, Index kv_heads,
                                       const Sequences& calibration, const Sequences& held_out,
                                       const std::function<void(Index layer)>& on_layer = {}) {
  Hidden original = model.embed(calibration);
  std::vector<Hidden> drifted(methods.size(), original), results(methods.size() + 1, model.embed(held_out));
  for (Index layer = 0; layer < model.layers(); ++layer) {
    const gqa::AttentionWeights before = model.attention(layer);
    const std::unique_ptr<Block> block = model.block(layer);
    const Hidden inputs = block->inputs(original), outputs = gqa::layer_outputs(before, model.form(), inputs);
    const gqa::InputMoments moments = gqa::measure_inputs(before, model.form(), inputs);
    for (std::size_t i = 0; i < methods.size(); ++i) {
      const Method& method = methods[i];
      const gqa::MergeOptions merge = for_layer({.kv_heads = kv_heads,
                                                 .keys = method.keys,
                                                 .values = method.values,
                                                 .grouping = method.grouping,
                                                 .rope = model.form().rope},
                                                layer);
      gqa::AttentionWeights after;
      if (method.fit == Fit::sequential) {
        const Hidden given = block->inputs(drifted[i]);
        after =
            gqa::convert_layer(before, merge, model.form(), {given, sequential_targets(original, outputs, drifted[i])})
                .weights;
        run_layer(after, model.form(), *block, drifted[i]);
      } else {
        after = gqa::merge_kv_heads(before, merge, method.weights_alone ? gqa::InputMoments{} : moments).weights;
        if (method.fit == Fit::layer) gqa::fit_output_projection(after, model.form(), inputs, outputs);
      }
      run_layer(after, model.form(), *block, results[i + 1]);
    }
    add(original, outputs);
    block->finish(original);
    run_layer(before, model.form(), *block, results[0]);
    if (on_layer) on_layer(layer);
  }
  return results;
}

}  // namespace quality
