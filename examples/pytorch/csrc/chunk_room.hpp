// SPDX-License-Identifier: Apache-2.0
/// @file
/// Memory for prompts that are longer than a window.
#pragma once

#include <mutex>
#include <utility>
#include <vector>

#include "storage.hpp"

namespace gqa_torch {

/// One layer's memory for the tokens of a long chunk, which the layers of a cache use one after the other: asked for anew by each, what is
/// freed between might stay with the process. Kept until it is cleared.
class ChunkRoom {
 public:
  /// Caches without tokens, with room for config.capacity at least. Their codecs and rotations are those of every other call.
  std::vector<gqa::ContiguousKvCache> take(const gqa::KvCacheConfig& config, Index sequences) {
    const std::lock_guard lock(changing_);
    std::vector<gqa::ContiguousKvCache> taken = std::exchange(idle_, {});
    const auto fits = [&](const gqa::ContiguousKvCache& cache) {
      const gqa::KvCacheView view = cache.view();
      return cache.capacity() >= config.capacity && view.kv_heads == config.kv_heads &&
             view.head_dim == config.head_dim && view.value_dim == config.value_dim;
    };
    if (static_cast<Index>(taken.size()) == sequences && fits(taken.front())) return taken;
    taken.clear();
    for (Index i = 0; i < sequences; ++i) taken.emplace_back(config);
    return taken;
  }
  void give_back(std::vector<gqa::ContiguousKvCache>&& used) noexcept {
    const std::lock_guard lock(changing_);
    idle_ = std::move(used);
    for (auto& cache : idle_) cache.clear();
  }
  void clear() noexcept {
    const std::lock_guard lock(changing_);
    idle_.clear();
  }

 private:
  std::mutex changing_;
  std::vector<gqa::ContiguousKvCache> idle_;  ///< one for each sequence of the last chunk; or none
};

}  // namespace gqa_torch
