// SPDX-License-Identifier: Apache-2.0
/// @file
/// A Llama's forward pass: Eigen for the linear layers, gqa for attention.
///
/// Attention gives a query's row the same bits whether its sequence is prefilled at once, in chunks or token by token. Logits keep
/// that only if everything around attention keeps it as well, so here every token goes through the linear layers alone, as
/// matrix times vector, and through plain loops elsewhere: a matrix-matrix product would be faster for a long prompt and would
/// round differently with the number of its columns.
#pragma once

#include <Eigen/Core>

#include <cmath>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "caches.hpp"
#include "checkpoint.hpp"
#include "gqa/gqa.hpp"
#include "tokenizer.hpp"

namespace stories {

/// One vector per token: dim × tokens, a column each, so that a column of heads × head dim reads as (token, head, dim).
using Columns = Eigen::MatrixXf;

/// Which tokens' logits a forward pass computes.
enum class Logits { last, all };

/// The model. Refers to its weights, which must outlive it. Calls may run at the same time on different caches if the executor
/// in the options allows it.
class Llama {
 public:
  /// @param window tokens that a query sees, itself included; 0: all before it
  explicit Llama(const Weights& weights, gqa::Options options = {}, Index window = 0)
      : weights_(weights),
        attention_(
            {weights.shape.query_heads, weights.shape.kv_heads, weights.shape.head_dim(), weights.shape.head_dim()}),
        options_(options),
        window_(window),
        rope_(make_rope(weights.shape)) {}

  const ModelShape& shape() const { return weights_.shape; }

  /// Runs `tokens` at the positions that follow the cache's and appends their keys and values to it.
  /// @return vocabulary × 1, or × tokens: what follows each token
  /// @throws std::invalid_argument if there are no tokens, if one is not in the vocabulary, or if they are too many
  Columns forward(std::span<const Token> tokens, ModelCache& cache, Logits which = Logits::last) const {
    const ModelShape& shape = weights_.shape;
    const auto count = static_cast<Index>(tokens.size());
    const Index first = cache.length();
    if (count == 0) throw std::invalid_argument("forward: no tokens");
    if (first + count > shape.max_length)
      throw std::invalid_argument("forward: " + std::to_string(first + count) + " tokens; the model takes " +
                                  std::to_string(shape.max_length));
    Columns x(shape.dim, count);
    for (Index t = 0; t < count; ++t) {
      const Token token = tokens[static_cast<std::size_t>(t)];
      if (token < 0 || token >= shape.vocabulary)
        throw std::invalid_argument("forward: token " + std::to_string(token) + " is not in the vocabulary of " +
                                    std::to_string(shape.vocabulary));
      x.col(t) = weights_.embedding.row(token).transpose();
    }
    for (Index layer = 0; layer < shape.layers; ++layer) {
      add_attention(layer, first, x, cache);
      add_feed_forward(weights_.layers[static_cast<std::size_t>(layer)], x);
    }
    const Index skipped = which == Logits::all ? 0 : count - 1;
    Columns logits(shape.vocabulary, count - skipped);
    for (Index t = skipped; t < count; ++t)
      logits.col(t - skipped).noalias() = weights_.classifier() * normalised(x.col(t), weights_.final_norm);
    return logits;
  }

 private:
  using Column = Eigen::Ref<const Vector>;

  /// cos and sin per position and pair.
  struct Rope {
    Columns cosine;  ///< head dim / 2 × positions
    Columns sine;
  };

  static Rope make_rope(const ModelShape& shape) {
    const Index pairs = shape.head_dim() / 2;
    Rope rope{Columns(pairs, shape.max_length), Columns(pairs, shape.max_length)};
    for (Index position = 0; position < shape.max_length; ++position) {
      for (Index pair = 0; pair < pairs; ++pair) {
        const float frequency =
            1.0f / std::pow(10000.0f, static_cast<float>(2 * pair) / static_cast<float>(shape.head_dim()));
        const float angle = static_cast<float>(position) * frequency;
        rope.cosine(pair, position) = std::cos(angle);
        rope.sine(pair, position) = std::sin(angle);
      }
    }
    return rope;
  }

  /// Turns the neighbouring pairs of every head of one token's queries or keys.
  void rotate(Eigen::Ref<Vector> heads, Index position) const {
    const Index pairs = rope_.cosine.rows();
    for (Index i = 0; i < heads.size() / 2; ++i) {
      const float cosine = rope_.cosine(i % pairs, position);
      const float sine = rope_.sine(i % pairs, position);
      const float even = heads[2 * i];
      const float odd = heads[2 * i + 1];
      heads[2 * i] = even * cosine - odd * sine;
      heads[2 * i + 1] = even * sine + odd * cosine;
    }
  }

  /// Root-mean-square norm. A plain loop: Eigen's sums start at the first aligned element, wherever that is.
  static Vector normalised(const Column& x, const Vector& gain) {
    float squares = 0;
    for (const float value : x) squares += value * value;
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(x.size()) + 1e-5f);
    return (gain.array() * (scale * x.array())).matrix();
  }

  /// x += wo · attention(rotated wq·norm(x), cache after rotated wk·norm(x) and wv·norm(x)).
  void add_attention(Index layer, Index first, Columns& x, ModelCache& cache) const {
    const ModelShape& shape = weights_.shape;
    const LayerWeights& w = weights_.layers[static_cast<std::size_t>(layer)];
    const Index count = x.cols();
    Columns q(shape.dim, count);
    Columns k(shape.kv_dim(), count);
    Columns v(shape.kv_dim(), count);
    for (Index t = 0; t < count; ++t) {
      const Vector input = normalised(x.col(t), w.attention_norm);
      q.col(t).noalias() = w.wq * input;
      k.col(t).noalias() = w.wk * input;
      v.col(t).noalias() = w.wv * input;
      rotate(q.col(t), first + t);
      rotate(k.col(t), first + t);
    }
    cache.append(layer, k, v);

    Columns attended(shape.dim, count);
    const gqa::ConstTensorView queries(q.data(), count, shape.query_heads, shape.head_dim());
    const gqa::TensorView out(attended.data(), count, shape.query_heads, shape.head_dim());
    if (window_ > 0) {
      attention_(queries, cache.view(layer), out, gqa::CausalWindow{window_}, options_);
    } else {
      attention_(queries, cache.view(layer), out, gqa::Causal{}, options_);
    }
    for (Index t = 0; t < count; ++t) x.col(t).noalias() += w.wo * attended.col(t);
  }

  /// x += w2 · (silu(w1·norm(x)) ∘ w3·norm(x)).
  static void add_feed_forward(const LayerWeights& w, Columns& x) {
    for (Index t = 0; t < x.cols(); ++t) {
      const Vector input = normalised(x.col(t), w.feed_forward_norm);
      Vector gate = w.w1 * input;
      const Vector up = w.w3 * input;
      for (Index i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
      x.col(t).noalias() += w.w2 * gate;
    }
  }

  const Weights& weights_;
  gqa::DynamicAttention attention_;
  gqa::Options options_;
  Index window_;
  Rope rope_;
};

/// The likeliest token: the first of the greatest logits.
inline Token greedy(const Eigen::Ref<const Vector>& logits) {
  Index best = 0;
  for (Index i = 1; i < logits.size(); ++i)
    if (logits[i] > logits[best]) best = i;
  return static_cast<Token>(best);
}

}  // namespace stories
