// SPDX-License-Identifier: Apache-2.0
/// @file
/// A model with another number of KV heads, or with a window.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "weights.hpp"

namespace llama {

/// The same model with another number of KV heads.
///
/// More heads (a multiple of the model's, and a divisor of the query heads): each KV head is repeated, which changes no query
/// head's keys and values; with as many as query heads this is standard multi-head attention. Fewer heads (a divisor of the
/// model's): neighbouring heads' projections are averaged, which is where the authors of grouped-query attention *start*
/// uptraining from; without it the model gets worse.
/// @throws std::invalid_argument if `kv_heads` is neither
inline Weights with_kv_heads(Weights weights, Index kv_heads) {
  const ModelConfig from = weights.config;
  const bool repeat = kv_heads > 0 && kv_heads % from.kv_heads == 0 && from.query_heads % kv_heads == 0;
  const bool pool = kv_heads > 0 && from.kv_heads % kv_heads == 0;
  if (!repeat && !pool)
    throw std::invalid_argument("KV heads: " + std::to_string(kv_heads) + "; expected a divisor of the model's " +
                                std::to_string(from.kv_heads) + ", or a multiple that divides its " +
                                std::to_string(from.query_heads) + " query heads");
  weights.config.kv_heads = kv_heads;
  const Index width = from.head_dim;
  const auto convert = [&](const Matrix& old) {
    Matrix made = Matrix::Zero(kv_heads * width, old.cols());
    for (Index head = 0; head < kv_heads; ++head) {
      auto block = made.middleRows(head * width, width);
      if (repeat) {
        block = old.middleRows(head * from.kv_heads / kv_heads * width, width);
      } else {
        const Index group = from.kv_heads / kv_heads;
        for (Index i = 0; i < group; ++i) block += old.middleRows((head * group + i) * width, width);
        block /= static_cast<float>(group);
      }
    }
    return made;
  };
  if (kv_heads == from.kv_heads) return weights;
  for (LayerWeights& layer : weights.layers) {
    layer.wk = Weight(convert(layer.wk.matrix()));
    layer.wv = Weight(convert(layer.wv.matrix()));
    if (from.qkv_bias) {
      layer.k_bias = convert(layer.k_bias);
      layer.v_bias = convert(layer.v_bias);
    }
  }
  return weights;
}

/// The same model whose queries see `window` tokens at most, themselves included, in every layer.
inline Weights with_window(Weights weights, Index window) {
  for (LayerConfig& layer : weights.config.per_layer)
    layer.window = layer.window == 0 ? window : std::min(layer.window, window);
  return weights;
}

}  // namespace llama
