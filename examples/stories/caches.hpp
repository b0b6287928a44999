// SPDX-License-Identifier: Apache-2.0
/// @file
/// The keys and values of all layers of one sequence, in whichever of the library's caches is asked for.
#pragma once

#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "checkpoint.hpp"
#include "gqa/gqa.hpp"

namespace stories {

/// Which owning cache a layer's keys and values lie in.
enum class CacheKind { contiguous, paged, ring };

/// One cache per layer; paged, the layers' sequences share one pool.
class ModelCache {
 public:
  static constexpr Index page_size = 16;

  /// @param capacity tokens that there is room for; for a ring, slots: at least the window and a chunk's other tokens
  ModelCache(const ModelShape& shape, CacheKind kind, gqa::ElementType type, Index capacity) : shape_(shape) {
    const gqa::KvCacheConfig config{
        .kv_heads = shape.kv_heads, .head_dim = shape.head_dim(), .k_type = type, .capacity = capacity};
    if (kind == CacheKind::paged)
      pool_.emplace(gqa::KvPoolConfig{.kv_heads = shape.kv_heads,
                                      .head_dim = shape.head_dim(),
                                      .k_type = type,
                                      .page_size = page_size,
                                      .pages = shape.layers * ((capacity + page_size - 1) / page_size)});
    for (Index layer = 0; layer < shape.layers; ++layer) {
      switch (kind) {
        case CacheKind::contiguous: layers_.emplace_back(gqa::ContiguousKvCache(config)); break;
        case CacheKind::ring: layers_.emplace_back(gqa::RingKvCache(config)); break;
        case CacheKind::paged: layers_.emplace_back(pool_->sequence()); break;
      }
    }
  }

  /// Appends keys (rotated) and values of one layer, a column of Hkv·D per token.
  void append(Index layer, const Eigen::MatrixXf& k, const Eigen::MatrixXf& v) {
    const gqa::ConstTensorView keys(k.data(), k.cols(), shape_.kv_heads, shape_.head_dim());
    const gqa::ConstTensorView values(v.data(), v.cols(), shape_.kv_heads, shape_.head_dim());
    std::visit([&](auto& cache) { cache.append(keys, values); }, layers_[static_cast<std::size_t>(layer)]);
  }

  /// What one layer's attention reads.
  gqa::KvCacheView view(Index layer) const {
    return std::visit([](const auto& cache) { return cache.view(); }, layers_[static_cast<std::size_t>(layer)]);
  }

  /// Tokens of the sequence so far. All layers have the same between forward passes.
  Index length() const { return view(0).length; }

  /// Bytes of key and value memory of all layers.
  Index bytes() const {
    if (pool_) return pool_->bytes();
    Index sum = 0;
    for (const Layer& layer : layers_)
      std::visit(
          [&](const auto& cache) {
            if constexpr (requires { cache.bytes(); }) sum += cache.bytes();
          },
          layer);
    return sum;
  }

 private:
  using Layer = std::variant<gqa::ContiguousKvCache, gqa::RingKvCache, gqa::PagedSequence>;

  ModelShape shape_;
  std::optional<gqa::PagedKvPool> pool_;
  std::vector<Layer> layers_;
};

}  // namespace stories
