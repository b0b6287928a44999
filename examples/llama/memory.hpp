// SPDX-License-Identifier: Apache-2.0
/// @file
/// Whether a model and its cache fit into memory, asked before anything is allocated.
#pragma once

#include <cstdint>
#include <fstream>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>

#include "caches.hpp"
#include "weights.hpp"

namespace llama {

/// Bytes that the system has for programs, without swapping: /proc/meminfo's MemAvailable. Nothing, where there is no such file.
inline std::optional<Index> available_memory(const char* path = "/proc/meminfo") {
  std::ifstream file(path);
  std::string name;
  Index kibibytes = 0;
  while (file >> name) {
    if (name == "MemAvailable:" && file >> kibibytes) return kibibytes * 1024;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::nullopt;
}

/// What running a model takes, in bytes.
struct MemoryNeed {
  Index weights = 0, cache = 0, rope = 0, logits = 0;
  Index all() const { return weights + cache + rope + logits; }
};

/// @param logits  tokens whose logits are kept
inline MemoryNeed memory_needed(const Weights& weights, const CachePlan& plan, Index logits = 0) {
  const ModelConfig& config = weights.config;
  return {weights.bytes(), ModelCache::bytes(config, plan), 2 * plan.capacity * config.rope_dims * 4,
          logits * config.vocabulary * 4};
}

/// @param logits  tokens whose logits are kept
/// @throws std::runtime_error if the context is longer than the model's, or does not fit beside the weights
inline void check_context(const Weights& weights, const CachePlan& plan, std::optional<Index> available,
                          Index logits = 0) {
  if (plan.capacity > weights.config.max_length)
    throw std::runtime_error("context: " + std::to_string(plan.capacity) + " tokens; the model was trained for " +
                             std::to_string(weights.config.max_length));
  const MemoryNeed need = memory_needed(weights, plan, logits);
  if (available && need.all() > *available)
    throw std::runtime_error("context: " + std::to_string(plan.capacity) + " tokens need " +
                             std::to_string(need.all()) + " bytes (weights " + std::to_string(need.weights) +
                             ", cache " + std::to_string(need.cache) + ", rotary embeddings " +
                             std::to_string(need.rope) + (logits > 0 ? ", logits " + std::to_string(need.logits) : "") +
                             "); " + std::to_string(*available) + " are available");
}

}  // namespace llama
