// SPDX-License-Identifier: Apache-2.0
/// @file
/// What fewer KV heads gain: the time of a decode step's attention over a filled bf16 cache.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "../../benchmarks/measure.hpp"
#include "model.hpp"

namespace uptrain {

/// The attention of one decode step, all layers, over caches of `context` tokens.
class DecodeStep {
 public:
  DecodeStep(const ModelShape& shape, Index context)
      : shape_(shape),
        attention_({shape.query_heads, shape.kv_heads, shape.head_dim(), shape.head_dim()}),
        rows_(shape.dim * 2) {
    const auto random = [](Index i) {
      return random_signed(random_bits(0, Purpose::parameters, 1, static_cast<std::uint64_t>(i)));
    };
    for (Index i = 0; i < shape.dim; ++i) rows_[i] = random(i);
    Eigen::VectorXf token(2 * shape.kv_dim());
    for (Index layer = 0; layer < shape.layers; ++layer) {
      caches_.emplace_back(gqa::KvCacheConfig{.kv_heads = shape.kv_heads,
                                              .head_dim = shape.head_dim(),
                                              .k_type = gqa::ElementType::bf16,
                                              .capacity = context});
      for (Index t = 0; t < context; ++t) {
        for (Index i = 0; i < token.size(); ++i) token[i] = random((layer * context + t) * token.size() + i);
        caches_.back().append(gqa::ConstTensorView(token.data(), 1, shape.kv_heads, shape.head_dim()),
                              gqa::ConstTensorView(token.data() + shape.kv_dim(), 1, shape.kv_heads, shape.head_dim()));
      }
    }
  }

  void operator()() {
    const gqa::ConstTensorView q(rows_.data(), 1, shape_.query_heads, shape_.head_dim());
    const gqa::TensorView out(rows_.data() + shape_.dim, 1, shape_.query_heads, shape_.head_dim());
    for (const gqa::ContiguousKvCache& cache : caches_) attention_(q, cache.view(), out);
    gqa::bench::keep(rows_.data());
  }

 private:
  ModelShape shape_;
  gqa::DynamicAttention attention_;
  std::vector<gqa::ContiguousKvCache> caches_;
  Eigen::VectorXf rows_;  // queries, outputs
};

/// Seconds of a decode step's attention for each number of KV heads, on one thread: medians, sampled in turn for `seconds`.
inline std::vector<double> decode_seconds(const ModelShape& shape, const std::vector<Index>& kv_heads, Index context,
                                          double seconds) {
  std::vector<gqa::bench::Side> sides;
  for (const Index heads : kv_heads) {
    ModelShape with = shape;
    with.kv_heads = heads;
    const auto step = std::make_shared<DecodeStep>(with, context);
    sides.emplace_back(gqa::bench::TimedCall([step] { (*step)(); }));
  }
  return gqa::bench::take_turns(sides, seconds);
}

}  // namespace uptrain
