// SPDX-License-Identifier: Apache-2.0
/// @file
/// All layers of a network, one after the other, with calibration text run through it.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "network.hpp"

namespace checkpoint {

/// What the output projections are fitted to.
enum class Fit {
  none,       ///< nothing: they only take up the merged heads' maps
  layer,      ///< the layer's outputs before, on the original model's inputs
  sequential  ///< what the residual stream was behind the layer, on what the layers converted before make of the text
};

using OnLayer = std::function<void(Index layer, gqa::ConvertedLayer& after)>;

/// Random choices differ from layer to layer.
inline gqa::MergeOptions for_layer(gqa::MergeOptions merge, Index layer) {
  merge.seed += static_cast<std::uint64_t>(layer) << 32;
  return merge;
}

/// What attention should give so that the stream behind it is what it was: original + its outputs − converted.
inline Hidden sequential_targets(const Hidden& original, const Hidden& outputs, const Hidden& converted) {
  Hidden targets = original;
  for (std::size_t i = 0; i < targets.size(); ++i) targets[i] += outputs[i] - converted[i];
  return targets;
}

/// Hands out each converted layer as soon as it is there.
inline void convert_model(const Network& model, const gqa::MergeOptions& merge, Fit fit, const Sequences& text,
                          const OnLayer& on_layer) {
  Hidden original = model.embed(text), converted;
  if (fit == Fit::sequential) converted = original;
  for (Index layer = 0; layer < model.layers(); ++layer) {
    const gqa::AttentionWeights before = model.attention(layer);
    const std::unique_ptr<Block> block = model.block(layer);
    Hidden inputs = block->inputs(original);
    const Hidden outputs = gqa::layer_outputs(before, model.form(), inputs);
    Hidden targets = outputs;
    if (fit == Fit::sequential) {
      inputs = block->inputs(converted);
      targets = sequential_targets(original, outputs, converted);
    }
    gqa::ConvertedLayer after =
        gqa::convert_layer(before, for_layer(merge, layer), model.form(), {inputs, targets}, fit != Fit::none);
    add(original, outputs);
    block->finish(original);
    if (fit == Fit::sequential) {
      add(converted, gqa::layer_outputs(after.weights, model.form(), inputs));
      block->finish(converted);
    }
    on_layer(layer, after);
  }
}

}  // namespace checkpoint
