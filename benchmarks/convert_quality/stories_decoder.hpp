// SPDX-License-Identifier: Apache-2.0
/// @file
/// TinyStories 260K (examples/stories) as a decoder by its layers, and stories that it tells itself: text to calibrate and to measure
/// with. The loss of a model on another's samples, less that one's own, estimates how far apart their predictions are
/// (Kullback-Leibler divergence a token).
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "../../examples/convert_checkpoint/llama.hpp"
#include "../../examples/stories/model.hpp"

namespace quality {

using namespace checkpoint;

class StoriesDecoder : public Decoder {
 public:
  explicit StoriesDecoder(stories::Weights weights) : weights_(std::move(weights)) {
    form_.rope = {gqa::RopePairs::interleaved, 0};
  }
  Index layers() const override { return weights_.shape.layers; }
  const gqa::AttentionForm& form() const override { return form_; }
  double norm_epsilon() const override { return 1e-5; }
  gqa::AttentionWeights attention(Index layer) const override {
    const stories::LayerWeights& from = weights_.layers[static_cast<std::size_t>(layer)];
    const stories::ModelShape& shape = weights_.shape;
    gqa::ConstAttentionWeightViews views;
    views.q = gqa::weight_view(from.wq);
    views.k = gqa::weight_view(from.wk);
    views.v = gqa::weight_view(from.wv);
    views.o = gqa::weight_view(from.wo);
    return gqa::read_attention(views, {shape.query_heads, shape.kv_heads, shape.head_dim(), shape.head_dim()});
  }
  std::unique_ptr<Block> block(Index layer) const override {
    const stories::LayerWeights& from = weights_.layers[static_cast<std::size_t>(layer)];
    auto made = std::make_unique<LlamaBlock>();
    made->attention_norm = from.attention_norm;
    made->feed_forward_norm = from.feed_forward_norm;
    made->gate = from.w1;
    made->down = from.w2;
    made->up = from.w3;
    return made;
  }
  Hidden embed(const Sequences& tokens) const override { return rows_of(weights_.embedding, tokens); }
  Eigen::MatrixXf classifier() const override { return weights_.classifier(); }
  Eigen::VectorXf final_norm() const override { return weights_.final_norm; }

  /// Stories drawn from the model's own distribution (temperature 1), the same for the same seed.
  Sequences tell(Index count, Index length, std::uint64_t seed) const {
    const stories::Llama model(weights_);
    gqa::detail::SplitMix random(seed);
    Sequences made;
    for (Index story = 0; story < count; ++story) {
      stories::ModelCache cache(weights_.shape, stories::CacheKind::contiguous, gqa::ElementType::f32, length);
      made.push_back({stories::begin_of_sequence});
      while (static_cast<Index>(made.back().size()) < length) {
        const stories::Token last = static_cast<stories::Token>(made.back().back());
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
  stories::Weights weights_;
  gqa::AttentionForm form_;
};

}  // namespace quality
