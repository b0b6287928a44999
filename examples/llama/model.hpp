// SPDX-License-Identifier: Apache-2.0
/// @file
/// A Llama's forward pass: Eigen for the linear layers, gqa for attention, rotary embeddings and norms of rows.
///
/// Attention gives a query's row the same bits whether its sequence is prefilled at once, in chunks or token by token. Logits keep
/// that only if everything around attention keeps it as well: linear.hpp says how, and the rest goes element by element.
#pragma once

#include <Eigen/Core>

#include <chrono>
#include <cmath>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "caches.hpp"
#include "gqa/qk_norm.hpp"
#include "gqa/rope.hpp"

namespace llama {

using Token = int;

/// Which tokens' logits a forward pass computes.
enum class Logits { last, all };

/// Where the time of forward passes went, in seconds.
struct Times {
  double attention = 0;
  double linear = 0;  ///< but for the classifier
  double rows = 0;    ///< norms, rotary embeddings, activations, and appending to caches
  double logits = 0;  ///< the final norm and the classifier
  double all() const { return attention + linear + rows + logits; }
};

/// The model. Refers to its weights, which must outlive it. Calls may run at the same time on different caches if the executor
/// in the options allows it, and no times are asked for.
class Llama {
 public:
  /// @param options    of attention; its executor runs the other layers, too, and its control stops them
  /// @param positions  tokens of a sequence at most; 0: as many as the model was trained for
  /// @param times      what passes take is added there
  explicit Llama(const Weights& weights, gqa::Options options = {}, Index positions = 0, Times* times = nullptr)
      : weights_(weights),
        attention_(
            {weights.config.query_heads, weights.config.kv_heads, weights.config.head_dim, weights.config.head_dim}),
        options_(options),
        positions_(positions == 0 ? weights.config.max_length : positions),
        times_(times) {
    options_.scale = static_cast<float>(weights.config.attention_scale);
    for (const LayerConfig& layer : weights.config.per_layer) {
      std::vector<double> divisors = weights.config.rope_divisors;
      for (double& divisor : divisors) divisor *= layer.rope_factor;
      ropes_.try_emplace({layer.rope_base, layer.rope_factor}, rope_options(weights.config, layer, divisors),
                         positions_);
    }
  }

  const ModelConfig& config() const { return weights_.config; }

  /// Runs `tokens` at the positions that follow the cache's and appends their keys and values to it.
  /// @return vocabulary × 1, or × tokens: what follows each token
  /// @throws std::invalid_argument if there are no tokens, if one is not in the vocabulary, or if they are too many; gqa::Stopped if the
  ///         options' control says so: the cache has the tokens that it had then
  Columns forward(std::span<const Token> tokens, ModelCache& cache, Logits which = Logits::last) const {
    const auto count = static_cast<Index>(tokens.size());
    const Index first = cache.length();
    if (count == 0) throw std::invalid_argument("forward: no tokens");
    if (first + count > positions_)
      throw std::invalid_argument("forward: " + std::to_string(first + count) + " tokens; the model takes " +
                                  std::to_string(positions_));
    Columns x = embed(tokens);
    try {
      for (Index layer = 0; layer < config().layers(); ++layer) {
        add_attention(layer, first, x, cache);
        add_feed_forward(weights_.layers[static_cast<std::size_t>(layer)], x);
      }
    } catch (const gqa::Stopped&) {
      cache.truncate(first);
      throw;
    }
    const Timer timer(times_, &Times::logits);
    const Columns last = normalised(which == Logits::all ? x : x.rightCols(1), weights_.final_norm);
    return apply(options_.executor, weights_.classifier(), last);
  }

 private:
  using Clock = std::chrono::steady_clock;

  /// Adds the time of its life.
  class Timer {
   public:
    Timer(Times* times, double Times::*part) : sum_(times == nullptr ? nullptr : &(times->*part)) {}
    ~Timer() {
      if (sum_ != nullptr) *sum_ += std::chrono::duration<double>(Clock::now() - start_).count();
    }
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;

   private:
    double* sum_;
    Clock::time_point start_ = Clock::now();
  };

  /// @param divisors  of frequencies, or none; used as long as what is returned
  static gqa::RopeOptions rope_options(const ModelConfig& config, const LayerConfig& layer,
                                       const std::vector<double>& divisors) {
    gqa::RopeOptions made{.dims = config.rope_dims, .base = layer.rope_base, .pairs = config.rope_pairs};
    if (!divisors.empty()) {  // LongRoPE's form, whose sines and cosines are left as they are
      made.scaling = gqa::RopeScaling::longrope;
      made.divisors = divisors;
      made.original_positions = config.max_length;
      made.attention_factor = 1.0;
    } else if (layer.rope_factor > 1.0 || layer.rope_factor < 1.0) {
      made.scaling = gqa::RopeScaling::linear;
      made.factor = layer.rope_factor;
    }
    return made;
  }

  Columns embed(std::span<const Token> tokens) const {
    const Timer timer(times_, &Times::rows);
    Columns x(config().dim, static_cast<Index>(tokens.size()));
    std::vector<float> room;
    for (Index t = 0; t < x.cols(); ++t) {
      const Token token = tokens[static_cast<std::size_t>(t)];
      if (token < 0 || token >= config().vocabulary)
        throw std::invalid_argument("forward: token " + std::to_string(token) + " is not in the vocabulary of " +
                                    std::to_string(config().vocabulary));
      x.col(t) =
          weights_.embedding.block(token, 1, room).row(0).transpose() * static_cast<float>(config().embedding_scale);
    }
    return x;
  }

  gqa::RmsNormOptions norm_options(const Vector& gain) const {
    return {.weights = {gain.data(), static_cast<std::size_t>(gain.size())}, .epsilon = config().norm_epsilon};
  }
  /// Root-mean-square norm of every token.
  Columns normalised(Columns x, const Vector& gain) const {
    for_tokens(options_.executor, x.cols(), [&](Index first, Index count) {
      gqa::rms_norm({x.data() + first * x.rows(), count, 1, x.rows()}, norm_options(gain));
    });
    return x;
  }

  void stop_if_asked() const {
    if (options_.control != nullptr && options_.control->stop) throw gqa::Stopped("forward: stopped");
  }

  /// x += norm(wo · attention(queries, cache after keys and values of norm(x))); the outer norm where the model has one.
  void add_attention(Index layer, Index first, Columns& x, ModelCache& cache) const {
    const LayerWeights& w = weights_.layers[static_cast<std::size_t>(layer)];
    const LayerConfig& how = config().per_layer[static_cast<std::size_t>(layer)];
    stop_if_asked();
    Columns q, k, v, input;
    {
      const Timer timer(times_, &Times::rows);
      input = normalised(x, w.attention_norm);
    }
    {
      const Timer timer(times_, &Times::linear);
      const Linear projections[] = {{&w.wq, &w.q_bias, &q}, {&w.wk, &w.k_bias, &k}, {&w.wv, &w.v_bias, &v}};
      apply(options_.executor, projections, input);
    }
    {
      const Timer timer(times_, &Times::rows);
      const gqa::Rope& rope = ropes_.at({how.rope_base, how.rope_factor});
      for_tokens(options_.executor, x.cols(), [&](Index token, Index count) {
        const gqa::TensorView some(q.data() + token * q.rows(), count, config().query_heads, config().head_dim);
        if (config().qk_norm) gqa::rms_norm(some, norm_options(w.q_norm));
        rope(some, first + token);
      });
      if (config().qk_norm) {
        cache.append(layer, k, v, gqa::compose_hooks(gqa::RmsNormKeys{norm_options(w.k_norm)}, rope.keys()));
      } else {
        cache.append(layer, k, v, rope.keys());
      }
    }
    Columns attended(q.rows(), q.cols());
    {
      const Timer timer(times_, &Times::attention);
      const gqa::ConstTensorView queries(q.data(), q.cols(), config().query_heads, config().head_dim);
      const gqa::TensorView out(attended.data(), q.cols(), config().query_heads, config().head_dim);
      if (how.window > 0) {
        attention_(queries, cache.view(layer), out, gqa::CausalWindow{how.window}, options_);
      } else {
        attention_(queries, cache.view(layer), out, gqa::Causal{}, options_);
      }
    }
    add(x, w.wo, attended, w.post_attention_norm);
  }

  /// x += norm(down · (activation(gate·norm(x)) ∘ up·norm(x))).
  void add_feed_forward(const LayerWeights& w, Columns& x) const {
    stop_if_asked();
    static const Vector no_bias;
    Columns gate, up, input;
    {
      const Timer timer(times_, &Times::rows);
      input = normalised(x, w.feed_forward_norm);
    }
    {
      const Timer timer(times_, &Times::linear);
      const Linear both[] = {{&w.gate, &no_bias, &gate}, {&w.up, &no_bias, &up}};
      apply(options_.executor, both, input);
    }
    {
      const Timer timer(times_, &Times::rows);
      constexpr Index run = 1024;  // elements
      const auto activate = config().activation == Activation::silu ? silu : gelu_tanh;
      for_each(options_.executor, (gate.size() + run - 1) / run, [&](Index task) {
        const Index end = std::min(gate.size(), (task + 1) * run);
        for (Index i = task * run; i < end; ++i) gate.data()[i] = activate(gate.data()[i]) * up.data()[i];
      });
    }
    add(x, w.down, gate, w.post_feed_forward_norm);
  }

  static float silu(float x) { return x / (1.0f + std::exp(-x)); }
  static float gelu_tanh(float x) {
    constexpr float root = 0.79788456080286535588f;  // √(2/π)
    return 0.5f * x * (1.0f + std::tanh(root * (x + 0.044715f * x * x * x)));
  }

  /// x += weight · y, normalised before if there is a gain.
  void add(Columns& x, const Weight& weight, const Columns& y, const Vector& gain) const {
    Columns out;
    {
      const Timer timer(times_, &Times::linear);
      out = apply(options_.executor, weight, y);
    }
    const Timer timer(times_, &Times::rows);
    if (gain.size() > 0) out = normalised(std::move(out), gain);
    x += out;
  }

  const Weights& weights_;
  Attention attention_;
  gqa::Options options_;
  Index positions_;
  Times* times_;
  std::map<std::pair<double, double>, gqa::Rope> ropes_;  ///< by base and factor
};

}  // namespace llama
