// SPDX-License-Identifier: Apache-2.0
/// @file
/// Llama's layers around attention, with Eigen, and how well such a model predicts a text.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint.hpp"
#include "network.hpp"

namespace checkpoint {

/// Root-mean-square norm of every token.
inline Hidden normalised(const Hidden& x, const Eigen::VectorXf& gain, double epsilon) {
  Hidden made;
  for (const Eigen::MatrixXf& sequence : x) {
    const Eigen::RowVectorXf scale =
        (sequence.colwise().squaredNorm().array() / static_cast<float>(sequence.rows()) + static_cast<float>(epsilon))
            .rsqrt();
    made.push_back(gain.asDiagonal() * sequence * scale.asDiagonal());
  }
  return made;
}

/// A layer of a Llama, but for its attention.
struct LlamaBlock : Block {
  double epsilon = 1e-5;
  Eigen::VectorXf attention_norm, feed_forward_norm;  ///< dim
  Eigen::MatrixXf gate, up;                           ///< hidden × dim
  Eigen::MatrixXf down;                               ///< dim × hidden

  Hidden inputs(const Hidden& x) const override { return normalised(x, attention_norm, epsilon); }

  /// x += down·(silu(gate·norm(x)) ∘ up·norm(x)).
  void finish(Hidden& x) const override {
    const Hidden normal = normalised(x, feed_forward_norm, epsilon);
    for (std::size_t i = 0; i < x.size(); ++i) {
      Eigen::MatrixXf inner(gate.rows(), normal[i].cols()), other(up.rows(), normal[i].cols());
      inner.noalias() = gate * normal[i];
      other.noalias() = up * normal[i];
      inner = inner.array() / (1 + (-inner.array()).exp()) * other.array();
      x[i].noalias() += down * inner;
    }
  }
};

/// A network that predicts the next token.
class Decoder : public Network {
 public:
  virtual Eigen::MatrixXf classifier() const = 0;  ///< vocabulary × dim
  virtual Eigen::VectorXf final_norm() const = 0;  ///< dim
  virtual double norm_epsilon() const = 0;
};

/// A Hugging Face checkpoint as a decoder.
class CheckpointDecoder : public Decoder {
 public:
  /// @throws std::runtime_error if the model is of a kind that is not run here
  CheckpointDecoder(const Checkpoint& from, const gqa::AttentionForm& form) : from_(from), form_(form) {
    const ModelConfig& config = from.config();
    const auto refuse = [&](const std::string& what) {
      bad_file(from.folder(),
               what + "; such a model is not run here, but converted by its weights alone or with --calibration");
    };
    if (!config.unknown_rope.empty()) refuse("config.json: rope_scaling " + config.unknown_rope);
    const std::string act = config.json.value("hidden_act", "silu");
    if (act != "silu") refuse("config.json: hidden_act " + act);
    if (!from.has("model.layers.0.mlp.gate_proj.weight")) refuse("there is no model.layers.0.mlp.gate_proj.weight");
    for (const char* norm : {"self_attn.q_norm", "self_attn.k_norm", "pre_feedforward_layernorm"})
      if (from.has(std::string("model.layers.0.") + norm + ".weight")) refuse(std::string("its layers have ") + norm);
  }
  Index layers() const override { return from_.config().layers; }
  const gqa::AttentionForm& form() const override { return form_; }
  double norm_epsilon() const override { return from_.config().norm_epsilon; }
  gqa::AttentionWeights attention(Index layer) const override { return from_.attention(layer); }
  std::unique_ptr<Block> block(Index layer) const override {
    const std::string in = "model.layers." + std::to_string(layer) + ".";
    const Index dim = from_.config().hidden, inner = from_.rows(in + "mlp.gate_proj.weight");
    auto made = std::make_unique<LlamaBlock>();
    made->epsilon = norm_epsilon();
    made->attention_norm = from_.matrix(in + "input_layernorm.weight", dim, 1);
    made->feed_forward_norm = from_.matrix(in + "post_attention_layernorm.weight", dim, 1);
    made->gate = from_.matrix(in + "mlp.gate_proj.weight", inner, dim);
    made->up = from_.matrix(in + "mlp.up_proj.weight", inner, dim);
    made->down = from_.matrix(in + "mlp.down_proj.weight", dim, inner);
    return made;
  }
  Hidden embed(const Sequences& tokens) const override { return rows_of(table("model.embed_tokens.weight"), tokens); }
  Eigen::MatrixXf classifier() const override {
    return table(from_.has("lm_head.weight") ? "lm_head.weight" : "model.embed_tokens.weight");
  }
  Eigen::VectorXf final_norm() const override { return from_.matrix("model.norm.weight", from_.config().hidden, 1); }

 private:
  Eigen::MatrixXf table(const std::string& name) const {
    return from_.matrix(name, from_.rows(name), from_.config().hidden);
  }

  const Checkpoint& from_;
  gqa::AttentionForm form_;
};

/// Negative log-likelihood of the tokens after each sequence's first, in nats: the sum of each sequence. @param x what the last layer left
inline std::vector<double> sequence_losses(const Decoder& model, const Hidden& x, const Sequences& tokens) {
  const Eigen::MatrixXf classifier = model.classifier();
  const Hidden last = normalised(x, model.final_norm(), model.norm_epsilon());
  std::vector<double> sums(last.size(), 0.0);
  for (std::size_t i = 0; i < last.size(); ++i) {
    for (Index t = 0; t + 1 < last[i].cols(); t += 64) {  // the logits of a few tokens at a time
      const Index some = std::min<Index>(64, last[i].cols() - 1 - t);
      Eigen::MatrixXf logits(classifier.rows(), some);
      logits.noalias() = classifier * last[i].middleCols(t, some);
      for (Index j = 0; j < some; ++j) {
        const float most = logits.col(j).maxCoeff();
        const double all = (logits.col(j).array() - most).exp().cast<double>().sum();
        const auto next = static_cast<Index>(tokens[i][static_cast<std::size_t>(t + j + 1)]);
        sums[i] += static_cast<double>(most) + std::log(all) - static_cast<double>(logits(next, j));
      }
    }
  }
  return sums;
}

/// Tokens that a text's losses are of.
inline Index predicted_tokens(const Sequences& tokens) {
  Index count = 0;
  for (const std::vector<Token>& sequence : tokens)
    count += std::max<Index>(static_cast<Index>(sequence.size()) - 1, 0);
  return count;
}

/// Mean negative log-likelihood of the tokens after each sequence's first, in nats. @param x what the last layer left
inline double mean_loss(const Decoder& model, const Hidden& x, const Sequences& tokens) {
  const Index count = predicted_tokens(tokens);
  if (count == 0) return 0;
  const std::vector<double> sums = sequence_losses(model, x, tokens);
  return std::accumulate(sums.begin(), sums.end(), 0.0) / static_cast<double>(count);
}

/// Mean loss of a text, with other attention where it is given.
inline double loss(const Decoder& model, const Sequences& text,
                   const std::vector<gqa::AttentionWeights>& attention = {}) {
  Hidden x = model.embed(text);
  for (Index layer = 0; layer < model.layers(); ++layer)
    run_layer(attention.empty() ? model.attention(layer) : attention[static_cast<std::size_t>(layer)], model.form(),
              *model.block(layer), x);
  return mean_loss(model, x, text);
}

}  // namespace checkpoint
