// SPDX-License-Identifier: Apache-2.0
/// @file
/// TinyStories 260K (run by examples/llama) as a decoder by its layers, and stories that it tells itself: text to calibrate and to measure
/// with. The loss of a model on another's samples, less that one's own, estimates how far apart their predictions are
/// (Kullback-Leibler divergence a token).
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "../../examples/convert_checkpoint/llama.hpp"
#include "../../examples/llama/model.hpp"

namespace quality {

using namespace checkpoint;

class StoriesDecoder : public Decoder {
 public:
  explicit StoriesDecoder(llama::Weights weights) : weights_(std::move(weights)) {
    form_.rope = {gqa::RopePairs::interleaved, 0};
  }
  Index layers() const override { return weights_.config.layers(); }
  const gqa::AttentionForm& form() const override { return form_; }
  double norm_epsilon() const override { return 1e-5; }
  gqa::AttentionWeights attention(Index layer) const override {
    const llama::LayerWeights& from = weights_.layers[static_cast<std::size_t>(layer)];
    const llama::ModelConfig& config = weights_.config;
    gqa::ConstAttentionWeightViews views;
    views.q = from.wq.view();
    views.k = from.wk.view();
    views.v = from.wv.view();
    views.o = from.wo.view();
    return gqa::read_attention(views, {config.query_heads, config.kv_heads, config.head_dim, config.head_dim});
  }
  std::unique_ptr<Block> block(Index layer) const override {
    const llama::LayerWeights& from = weights_.layers[static_cast<std::size_t>(layer)];
    auto made = std::make_unique<LlamaBlock>();
    made->attention_norm = from.attention_norm;
    made->feed_forward_norm = from.feed_forward_norm;
    made->gate = from.gate.matrix();
    made->down = from.down.matrix();
    made->up = from.up.matrix();
    return made;
  }
  Hidden embed(const Sequences& tokens) const override { return rows_of(weights_.embedding.matrix(), tokens); }
  Eigen::MatrixXf classifier() const override { return weights_.classifier().matrix(); }
  Eigen::VectorXf final_norm() const override { return weights_.final_norm; }

  /// Stories drawn from the model's own distribution (temperature 1), the same for the same seed.
  Sequences tell(Index count, Index length, std::uint64_t seed) const {
    const llama::Llama model(weights_);
    gqa::detail::SplitMix random(seed);
    Sequences made;
    for (Index story = 0; story < count; ++story) {
      llama::ModelCache cache(weights_.config, {.capacity = length});
      made.push_back({weights_.tokenizer.at("bos").get<Token>()});
      while (static_cast<Index>(made.back().size()) < length) {
        const llama::Token last = static_cast<llama::Token>(made.back().back());
        const Eigen::VectorXd logits = model.forward({&last, 1}, cache).col(0).cast<double>();
        const Eigen::VectorXd weight = (logits.array() - logits.maxCoeff()).exp();
        double left = static_cast<double>(random() >> 11) * 0x1p-53 * weight.sum();
        Index next = 0;
        while (next + 1 < weight.size() && (left -= weight[next]) >= 0) ++next;
        made.back().push_back(next);
      }
    }
    return made;
  }

 private:
  llama::Weights weights_;
  gqa::AttentionForm form_;
};

}  // namespace quality
