// SPDX-License-Identifier: Apache-2.0
/// @file
/// The keys and values of all layers of one sequence, in whichever of the library's caches is asked for.
#pragma once

#include <algorithm>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "config.hpp"
#include "formats.hpp"
#include "linear.hpp"

namespace llama {

/// Which owning cache a layer's keys and values lie in.
enum class CacheKind { contiguous, paged, ring };

/// How a sequence is kept.
struct CachePlan {
  CacheKind kind = CacheKind::contiguous;
  Format format = every_format().front();
  Index capacity = 0;  ///< tokens that there is room for
  Index chunk =
      1;  ///< tokens that go through the model at once, at most: a ring keeps a window and the chunk's other tokens
  bool rotate = false;  ///< keys and values turned by a Hadamard transform before they are stored
};

/// Elements of the blocks that rows of a width are rotated in: the largest power of two that divides it.
inline Index rotation_block(Index dim) { return dim & -dim; }

/// One cache per layer; paged, the layers' sequences share one pool.
class ModelCache {
 public:
  static constexpr Index page_size = 16;

  ModelCache(const ModelConfig& config, const CachePlan& plan)
      : kv_heads_(config.kv_heads), head_dim_(config.head_dim) {
    const Index rotation = plan.rotate ? rotation_block(config.head_dim) : 0;
    if (plan.kind == CacheKind::paged)
      pool_.emplace(gqa::KvPoolConfig{.kv_heads = config.kv_heads,
                                      .head_dim = config.head_dim,
                                      .k_type = plan.format.k,
                                      .v_type = plan.format.v,
                                      .k_rotation = rotation,
                                      .v_rotation = rotation,
                                      .page_size = page_size,
                                      .pages = config.layers() * pages(plan)});
    for (const LayerConfig& layer : config.per_layer) {
      const gqa::KvCacheConfig cache{.kv_heads = config.kv_heads,
                                     .head_dim = config.head_dim,
                                     .k_type = plan.format.k,
                                     .v_type = plan.format.v,
                                     .k_rotation = rotation,
                                     .v_rotation = rotation,
                                     .capacity = slots(plan, layer)};
      switch (plan.kind) {
        case CacheKind::contiguous: layers_.emplace_back(gqa::ContiguousKvCache(cache)); break;
        case CacheKind::ring: layers_.emplace_back(gqa::RingKvCache(cache)); break;
        case CacheKind::paged: layers_.emplace_back(pool_->sequence()); break;
      }
    }
  }

  /// Bytes of key and value memory that such a cache takes, before there is one; but for some bytes of alignment.
  static Index bytes(const ModelConfig& config, const CachePlan& plan) {
    Index tokens = 0;
    for (const LayerConfig& layer : config.per_layer)
      tokens += plan.kind == CacheKind::paged ? pages(plan) * page_size : slots(plan, layer);
    return tokens * config.kv_heads * token_bytes(plan.format, {1, 1, config.head_dim, config.head_dim});
  }

  /// Appends keys, which `hook` changes on their way, and values of one layer, a column of Hkv·D per token.
  template <gqa::KeyHook Hook>
  void append(Index layer, const Columns& k, const Columns& v, const Hook& hook) {
    const gqa::ConstTensorView keys(k.data(), k.cols(), kv_heads_, head_dim_);
    const gqa::ConstTensorView values(v.data(), v.cols(), kv_heads_, head_dim_);
    std::visit([&](auto& cache) { cache.append(keys, values, hook); }, layers_[static_cast<std::size_t>(layer)]);
  }

  /// What one layer's attention reads.
  gqa::KvCacheView view(Index layer) const {
    return std::visit([](const auto& cache) { return cache.view(); }, layers_[static_cast<std::size_t>(layer)]);
  }

  /// Tokens of the sequence so far. All layers have the same between forward passes.
  Index length() const { return view(0).length; }

  /// Drops the tokens from position `length` on, of every layer that has them.
  void truncate(Index length) {
    for (Layer& layer : layers_)
      std::visit(
          [&](auto& cache) {
            if (cache.length() > length) cache.truncate(length);
          },
          layer);
  }

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

  static Index pages(const CachePlan& plan) { return (plan.capacity + page_size - 1) / page_size; }
  static Index slots(const CachePlan& plan, const LayerConfig& layer) {
    if (plan.kind != CacheKind::ring || layer.window == 0) return plan.capacity;
    return std::min(plan.capacity, layer.window + plan.chunk - 1);
  }

  Index kv_heads_, head_dim_;
  std::optional<gqa::PagedKvPool> pool_;
  std::vector<Layer> layers_;
};

}  // namespace llama
