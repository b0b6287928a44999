// SPDX-License-Identifier: Apache-2.0
/// @file
/// A trained model at work: its logits from a KV cache, whichever, and what it goes on writing.
///
/// Attention gives a query row the same bits in any cache, however the tokens before it got there. Logits keep that because everything around
/// attention is computed token by token here, matrix times vector: a product of matrices rounds differently with the number of its columns.
#pragma once

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention.hpp"
#include "layers.hpp"

namespace uptrain {

/// Attention over caches of elements, and of int8.
using CachedAttention = gqa::GroupedQueryAttention<gqa::dynamic, gqa::dynamic, gqa::dynamic, gqa::dynamic,
                                                   gqa::CacheOf<float, gqa::bf16, gqa::f16, gqa::Int8>>;

/// Refers to its model. Thread safe on different caches.
class Generator {
 public:
  /// @param positions that there are rotary embeddings for, the longest sequence
  Generator(const Model& model, Index positions, gqa::Options options = {})
      : model_(model),
        rope_(rope_of(model.shape, positions)),
        attention_({model.shape.query_heads, model.shape.kv_heads, model.shape.head_dim(), model.shape.head_dim()}),
        options_(options) {}

  /// Runs tokens at the positions that follow those in the caches, and appends their keys and values.
  /// @param caches one a layer, of equal length: gqa::ContiguousKvCache, RingKvCache (that loses nothing) or PagedSequence
  /// @return vocabulary × tokens: what follows each
  /// @throws std::invalid_argument unless there is a cache for each layer; what the caches and the attention throw
  template <class Cache>
  Eigen::MatrixXf forward(std::span<const std::uint8_t> tokens, std::vector<Cache>& caches) const {
    const ModelShape& shape = model_.shape;
    if (static_cast<Index>(caches.size()) != shape.layers)
      throw std::invalid_argument("caches are " + std::to_string(caches.size()) + "; expected one for each of " +
                                  std::to_string(shape.layers) + " layers");
    const ModelViews<const float> w = model_.views();
    const auto count = static_cast<Index>(tokens.size());
    Eigen::MatrixXf x(shape.dim, count);
    for (Index t = 0; t < count; ++t) x.col(t) = w.embedding.col(tokens[static_cast<std::size_t>(t)]);
    for (std::size_t i = 0; i < caches.size(); ++i) {
      add_attention(w.layers[i], x, caches[i]);
      for (Index t = 0; t < count; ++t) {
        const Eigen::MatrixXf gate_up =
            product(w.layers[i].gate_up, normalised(x.col(t), w.layers[i].feed_forward_norm));
        Eigen::MatrixXf made;
        swiglu(gate_up, made);
        x.col(t) += product(w.layers[i].down, made);
      }
    }
    Eigen::MatrixXf logits(shape.vocabulary, count);
    for (Index t = 0; t < count; ++t) logits.col(t) = product(w.classifier, normalised(x.col(t), w.final_norm));
    return logits;
  }

  /// The likeliest bytes after `prompt`, one after the other. @param caches empty
  template <class Cache>
  std::vector<std::uint8_t> greedy(std::span<const std::uint8_t> prompt, Index count,
                                   std::vector<Cache>& caches) const {
    std::vector<std::uint8_t> made;
    Eigen::MatrixXf logits = forward(prompt, caches);
    while (static_cast<Index>(made.size()) < count) {
      Index best = 0;
      logits.col(logits.cols() - 1).maxCoeff(&best);
      made.push_back(static_cast<std::uint8_t>(best));
      logits = forward(std::span(made).last(1), caches);
    }
    return made;
  }

 private:
  template <class Matrix>
  static Eigen::MatrixXf product(const Matrix& matrix, const Eigen::MatrixXf& x) {
    Eigen::VectorXf made(matrix.rows());
    made.noalias() = matrix * x.col(0);
    return made;
  }
  template <class Gain>
  static Eigen::MatrixXf normalised(const Eigen::MatrixXf& x, const Gain& gain) {
    Eigen::MatrixXf y;
    Eigen::VectorXf inverse;
    rms_norm(x, gain, y, inverse);
    return y;
  }

  template <class Cache>
  void add_attention(const LayerViews<const float>& w, Eigen::MatrixXf& x, Cache& cache) const {
    const ModelShape& shape = model_.shape;
    const Index count = x.cols(), first = cache.length();
    Eigen::MatrixXf qkv(shape.qkv_dim(), count), out(shape.dim, count);
    for (Index t = 0; t < count; ++t) qkv.col(t) = product(w.qkv, normalised(x.col(t), w.attention_norm));
    const auto part = [&](Index row, Index heads) {
      return gqa::TensorView(qkv.data() + row, count, heads, shape.head_dim(),
                             gqa::TensorStrides{qkv.rows(), shape.head_dim()});
    };
    const gqa::TensorView q = part(0, shape.query_heads);
    rope_(q, first);
    cache.append(part(shape.dim, shape.kv_heads), part(shape.dim + shape.kv_dim(), shape.kv_heads), rope_.keys());
    attention_(q, cache.view(), gqa::TensorView(out.data(), count, shape.query_heads, shape.head_dim()), options_);
    for (Index t = 0; t < count; ++t) x.col(t) += product(w.o, out.col(t));
  }

  const Model& model_;
  gqa::Rope rope_;
  CachedAttention attention_;
  gqa::Options options_;
};

}  // namespace uptrain
