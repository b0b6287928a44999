// SPDX-License-Identifier: Apache-2.0
/// @file
/// The attention shapes of models in use, and the head configurations that each is shown with.
#pragma once

#include <string>
#include <vector>

#include "gqa/gqa.hpp"

namespace spectrum {

using gqa::Index;

/// A published model's attention. (Mistral's first version and Gemma-2 also use sliding windows, Gemma-2 caps its scores; here
/// every layer is plainly causal, so that rows compare.)
struct Model {
  std::string name;
  Index layers;
  Index query_heads;
  Index kv_heads;  ///< as published
  Index head_dim;
};

inline const std::vector<Model>& models() {
  static const std::vector<Model> all{
      {"Llama-2-7B", 32, 32, 32, 128}, {"Llama-3-8B", 32, 32, 8, 128}, {"Mistral-7B", 32, 32, 8, 128},
      {"Qwen2.5-7B", 28, 28, 4, 128},  {"Gemma-2-9B", 42, 16, 8, 256}, {"Falcon-7B", 32, 71, 1, 64},
  };
  return all;
}

/// The model's query heads over fewer and fewer KV heads: MHA, its own grouping (8 groups where it has none of its own and 8
/// divide the heads), MQA.
inline std::vector<Index> kv_head_counts(const Model& model) {
  std::vector<Index> counts{model.query_heads};
  const bool grouped = model.kv_heads > 1 && model.kv_heads < model.query_heads;
  if (grouped) counts.push_back(model.kv_heads);
  else if (model.query_heads % 8 == 0) counts.push_back(8);
  counts.push_back(1);
  return counts;
}

/// "MHA", "GQA-8", "MQA"; with a star where that is what the model was published with.
inline std::string heads_name(const Model& model, Index kv_heads) {
  std::string name = kv_heads == model.query_heads ? "MHA" : kv_heads == 1 ? "MQA" : "GQA-" + std::to_string(kv_heads);
  return kv_heads == model.kv_heads ? name + "*" : name;
}

}  // namespace spectrum
