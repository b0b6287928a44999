// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a config.json of Hugging Face's transformers means without saying so: the defaults and rules of each `model_type`.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "gqa/budget.hpp"

namespace kv_budget {

using gqa::Index;

/// Which layers have windows, where no `layer_types` says so.
enum class WindowRule : std::uint8_t {
  none,     ///< no layer, whatever `sliding_window` says
  all,      ///< every layer, if `sliding_window` is a number
  qwen,     ///< layers from `max_window_layers` on, if `use_sliding_window`
  last_of,  ///< all but the last of every `sliding_window_pattern`
};

enum class Experts : std::uint8_t { none, local, qwen, deepseek };

/// One `model_type`. Zero: no default, so that the field has to be there (KV heads: as many as query heads; head dim: hidden / heads).
/// Source: the configuration classes of transformers (src/transformers/models/*/configuration_*.py).
struct ModelType {
  std::string_view name;
  WindowRule windows = WindowRule::none;
  Index window = 0;  ///< where the field is absent; an explicit null means none
  Index period = 0;  ///< of WindowRule::last_of, unless `sliding_window_pattern` says otherwise
  Index query_heads = 0, kv_heads = 0, head_dim = 0, vocabulary = 0;
  bool tied = false;
  Experts experts = Experts::none;
  Index matrices = 3;
  Index norm_vectors = 2;
  bool qk_norm = false;
  bool qkv_bias = false;  ///< whatever `attention_bias` says
  bool counted = true;    ///< parameters follow from the fields
};

inline constexpr std::array kModelTypes{
    ModelType{.name = "llama"},
    ModelType{.name = "mistral", .windows = WindowRule::all, .window = 4096, .kv_heads = 8},
    ModelType{.name = "mixtral", .windows = WindowRule::all, .kv_heads = 8, .experts = Experts::local},
    ModelType{.name = "qwen2", .windows = WindowRule::qwen, .window = 4096, .qkv_bias = true},
    ModelType{
        .name = "qwen2_moe", .windows = WindowRule::qwen, .window = 4096, .experts = Experts::qwen, .qkv_bias = true},
    ModelType{.name = "qwen3", .windows = WindowRule::qwen, .window = 4096, .head_dim = 128, .qk_norm = true},
    ModelType{.name = "qwen3_moe",
              .windows = WindowRule::qwen,
              .window = 4096,
              .kv_heads = 4,
              .experts = Experts::qwen,
              .qk_norm = true},
    ModelType{.name = "gemma", .head_dim = 256, .tied = true},
    ModelType{.name = "gemma2",
              .windows = WindowRule::last_of,
              .window = 4096,
              .period = 2,
              .query_heads = 8,
              .kv_heads = 4,
              .head_dim = 256,
              .vocabulary = 256000,
              .tied = true,
              .norm_vectors = 4},
    ModelType{.name = "gemma3_text",
              .windows = WindowRule::last_of,
              .window = 4096,
              .period = 6,
              .query_heads = 8,
              .kv_heads = 4,
              .head_dim = 256,
              .vocabulary = 262208,
              .tied = true,
              .norm_vectors = 4,
              .qk_norm = true},
    ModelType{.name = "gemma3n_text",
              .windows = WindowRule::last_of,
              .window = 512,
              .period = 5,
              .query_heads = 8,
              .kv_heads = 2,
              .head_dim = 256,
              .vocabulary = 262400,
              .tied = true,
              .counted = false},
    ModelType{.name = "gemma4_text",
              .windows = WindowRule::last_of,
              .window = 512,
              .period = 6,
              .query_heads = 8,
              .kv_heads = 4,
              .head_dim = 256,
              .vocabulary = 262144,
              .tied = true,
              .counted = false},
    ModelType{.name = "falcon", .vocabulary = 65024, .tied = true, .matrices = 2},
    ModelType{.name = "RefinedWeb",
              .vocabulary = 65024,
              .tied = true,
              .matrices = 2},  // Falcon 40B before transformers had it
    ModelType{.name = "RefinedWebModel", .vocabulary = 65024, .tied = true, .matrices = 2},  // and Falcon 7B
    ModelType{.name = "phi3", .windows = WindowRule::all},
    ModelType{.name = "phi3small", .tied = true, .norm_vectors = 4, .qkv_bias = true},
    ModelType{.name = "gpt_oss",
              .windows = WindowRule::last_of,
              .window = 128,
              .period = 2,
              .kv_heads = 8,
              .head_dim = 64,
              .experts = Experts::local,
              .qkv_bias = true},
    ModelType{.name = "deepseek_v2", .experts = Experts::deepseek},
    ModelType{.name = "deepseek_v3", .experts = Experts::deepseek},
    ModelType{.name = "glm", .kv_heads = 2, .head_dim = 128, .qkv_bias = true},
    ModelType{.name = "glm4", .kv_heads = 2, .head_dim = 128, .norm_vectors = 4},
    ModelType{.name = "chatglm"},
    ModelType{.name = "gpt2", .tied = true, .matrices = 2, .norm_vectors = 4, .qkv_bias = true},
};

inline std::string model_type_names() {
  std::string names;
  for (const ModelType& type : kModelTypes) names += (names.empty() ? "" : ", ") + std::string(type.name);
  return names + ", gemma3, gemma3n, gemma4, or one of these as text_config";
}

/// Null if it is not known.
inline const ModelType* find_model_type(std::string_view name) {
  if (name == "gemma3" || name == "gemma3n" || name == "gemma4") return find_model_type(std::string(name) + "_text");
  for (const ModelType& type : kModelTypes)
    if (type.name == name) return &type;
  return nullptr;
}

}  // namespace kv_budget
