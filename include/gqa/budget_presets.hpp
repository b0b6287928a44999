// SPDX-License-Identifier: Apache-2.0
/// @file
/// Published models as ModelShape: one line a model, in the numbers of its configuration file.
///
///     constexpr gqa::ModelShape model = gqa::preset("llama-3.1-8b");
///
/// The example kv_budget lists them and reads any other model's config.json or GGUF header.
#pragma once

#include <iterator>
#include <string>
#include <string_view>

#include "gqa/budget_formats.hpp"
#include "gqa/budget_model.hpp"

namespace gqa {

namespace detail {

/// Which layers have windows and share caches, which biases and norms there are.
enum class ModelFamily : std::uint8_t {
  llama,
  qwen2,
  qwen3,
  gemma2,
  gemma3,
  gemma3n,
  gemma4,
  falcon,
  phi3small,
  gpt_oss,
  deepseek,
  glm
};

struct PresetLine {
  const char* name;
  ModelFamily family;
  Index layers, hidden, query_heads, kv_heads, head_dim, intermediate, vocabulary, context;
  bool tied;
  Index window = 0;  ///< of the layers that have one
  Index experts = 0, active_experts = 0, expert_intermediate = 0;
  /// gemma3n, gemma4: layers at the end that share; deepseek: dense layers at the start; falcon: LayerNorms a layer
  Index special = 0;
  Index period = 0;         ///< gemma4: one layer of so many is full
  Index full_kv_heads = 0;  ///< gemma4: KV heads of full layers
  Index query_rank = 0;     ///< deepseek
};

// Sources: each line was read from the one it stands under. The parameters that follow from it are compared with published counts by a
// test. Phi-3's window of 2047 tokens is the number in its configuration.
//   litgpt      Lightning-AI/litgpt, litgpt/config.py, which quotes each model's config.json on Hugging Face
//   google      google/gemma_pytorch, gemma/config.py; google-deepmind/gemma, gemma/gm/nn/{,gemma3n/,gemma4/}_gemma*.py
//   openai      openai/gpt-oss, gpt_oss/torch/model.py (120B); openai/gpt-oss-20b's config.json (24 layers, 32 experts)
//   deepseek    deepseek-ai/DeepSeek-V3, inference/configs/config_{671B,236B,16B}.json
//   microsoft   config.json of microsoft/Phi-3-small-8k-instruct, Phi-3-small-128k-instruct and Phi-3-medium-4k-instruct
//   transformers huggingface/transformers, models/glm/configuration_glm.py, whose defaults are glm-4-9b-chat's
namespace presets {
using enum ModelFamily;
inline constexpr PresetLine kLines[] = {
    // name, family, layers, hidden, Hq, Hkv, D, intermediate, vocabulary, context, tied[, window, experts, active, expert width, …]
    // litgpt
    {"llama-2-7b", llama, 32, 4096, 32, 32, 128, 11008, 32000, 4096, false},
    {"llama-2-13b", llama, 40, 5120, 40, 40, 128, 13824, 32000, 4096, false},
    {"llama-2-70b", llama, 80, 8192, 64, 8, 128, 28672, 32000, 4096, false},
    {"llama-3-8b", llama, 32, 4096, 32, 8, 128, 14336, 128256, 8192, false},
    {"llama-3-70b", llama, 80, 8192, 64, 8, 128, 28672, 128256, 8192, false},
    {"llama-3.1-8b", llama, 32, 4096, 32, 8, 128, 14336, 128256, 131072, false},
    {"llama-3.1-70b", llama, 80, 8192, 64, 8, 128, 28672, 128256, 131072, false},
    {"llama-3.1-405b", llama, 126, 16384, 128, 8, 128, 53248, 128256, 131072, false},
    {"llama-3.2-1b", llama, 16, 2048, 32, 8, 64, 8192, 128256, 131072, true},
    {"llama-3.2-3b", llama, 28, 3072, 24, 8, 128, 8192, 128256, 131072, true},
    {"llama-3.3-70b", llama, 80, 8192, 64, 8, 128, 28672, 128256, 131072, false},
    {"mistral-7b-v0.1", llama, 32, 4096, 32, 8, 128, 14336, 32000, 32768, false, 4096},
    {"mistral-7b-v0.2", llama, 32, 4096, 32, 8, 128, 14336, 32000, 32768, false},
    {"mistral-7b-v0.3", llama, 32, 4096, 32, 8, 128, 14336, 32768, 32768, false},
    {"mixtral-8x7b", llama, 32, 4096, 32, 8, 128, 0, 32000, 32768, false, 0, 8, 2, 14336},
    {"mixtral-8x22b", llama, 56, 6144, 48, 8, 128, 0, 32768, 65536, false, 0, 8, 2, 16384},
    {"qwen2.5-0.5b", qwen2, 24, 896, 14, 2, 64, 4864, 151936, 32768, true},
    {"qwen2.5-1.5b", qwen2, 28, 1536, 12, 2, 128, 8960, 151936, 131072, true},
    {"qwen2.5-3b", qwen2, 36, 2048, 16, 2, 128, 11008, 151936, 32768, true},
    {"qwen2.5-7b", qwen2, 28, 3584, 28, 4, 128, 18944, 152064, 131072, false},
    {"qwen2.5-14b", qwen2, 48, 5120, 40, 8, 128, 13824, 152064, 131072, false},
    {"qwen2.5-32b", qwen2, 64, 5120, 40, 8, 128, 27648, 152064, 131072, false},
    {"qwen2.5-72b", qwen2, 80, 8192, 64, 8, 128, 29568, 152064, 131072, false},
    {"qwen3-0.6b", qwen3, 28, 1024, 16, 8, 128, 3072, 151936, 40960, true},
    {"qwen3-1.7b", qwen3, 28, 2048, 16, 8, 128, 6144, 151936, 40960, true},
    {"qwen3-4b", qwen3, 36, 2560, 32, 8, 128, 9728, 151936, 40960, true},
    {"qwen3-8b", qwen3, 36, 4096, 32, 8, 128, 12288, 151936, 40960, false},
    {"qwen3-14b", qwen3, 40, 5120, 40, 8, 128, 17408, 151936, 40960, false},
    {"qwen3-32b", qwen3, 64, 5120, 64, 8, 128, 25600, 151936, 40960, false},
    {"qwen3-30b-a3b", qwen3, 48, 2048, 32, 4, 128, 0, 151936, 40960, false, 0, 128, 8, 768},
    {"qwen3-235b-a22b", qwen3, 94, 4096, 64, 4, 128, 0, 151936, 40960, false, 0, 128, 8, 1536},
    {"falcon-7b", falcon, 32, 4544, 71, 1, 64, 18176, 65024, 2048, true, 0, 0, 0, 0, 1},
    {"falcon-40b", falcon, 60, 8192, 128, 8, 64, 32768, 65024, 2048, true, 0, 0, 0, 0, 2},
    {"falcon-180b", falcon, 80, 14848, 232, 8, 64, 59392, 65024, 2048, true, 0, 0, 0, 0, 2},
    {"phi-3-mini-4k", llama, 32, 3072, 32, 32, 96, 8192, 32064, 4096, false, 2047},
    {"phi-3-mini-128k", llama, 32, 3072, 32, 32, 96, 8192, 32064, 131072, false},  // its window, 262144, hides nothing
    {"phi-4", llama, 40, 5120, 40, 10, 128, 17920, 100352, 16384, false},
    {"phi-4-mini", llama, 32, 3072, 24, 8, 128, 8192, 200064, 131072, true},  // its window, 262144, hides nothing
    {"smollm2-135m", llama, 30, 576, 9, 3, 64, 1536, 49152, 8192, true},
    {"smollm2-360m", llama, 32, 960, 15, 5, 64, 2560, 49152, 8192, true},
    {"smollm2-1.7b", llama, 24, 2048, 32, 32, 64, 8192, 49152, 8192, true},
    // microsoft
    {"phi-3-small-8k", phi3small, 32, 4096, 32, 8, 128, 14336, 100352, 8192, true},
    {"phi-3-small-128k", phi3small, 32, 4096, 32, 8, 128, 14336, 100352, 131072, true},
    {"phi-3-medium-4k", llama, 40, 5120, 40, 10, 128, 17920, 32064, 4096, false, 2047},
    // google
    {"gemma-2-2b", gemma2, 26, 2304, 8, 4, 256, 9216, 256000, 8192, true, 4096},
    {"gemma-2-9b", gemma2, 42, 3584, 16, 8, 256, 14336, 256000, 8192, true, 4096},
    {"gemma-2-27b", gemma2, 46, 4608, 32, 16, 128, 36864, 256000, 8192, true, 4096},
    {"gemma-3-270m", gemma3, 18, 640, 4, 1, 256, 2048, 262144, 32768, true, 512},
    {"gemma-3-1b", gemma3, 26, 1152, 4, 1, 256, 6912, 262144, 32768, true, 512},
    {"gemma-3-4b", gemma3, 34, 2560, 8, 4, 256, 10240, 262144, 131072, true, 1024},
    {"gemma-3-12b", gemma3, 48, 3840, 16, 8, 256, 15360, 262144, 131072, true, 1024},
    {"gemma-3-27b", gemma3, 62, 5376, 32, 16, 128, 21504, 262144, 131072, true, 1024},
    {"gemma-3n-e2b", gemma3n, 30, 2048, 8, 2, 256, 8192, 262400, 32768, true, 512, 0, 0, 0, 10},
    {"gemma-3n-e4b", gemma3n, 35, 2048, 8, 2, 256, 16384, 262400, 32768, true, 512, 0, 0, 0, 15},
    {"gemma-4-e2b", gemma4, 35, 1536, 8, 1, 256, 6144, 262144, 131072, true, 512, 0, 0, 0, 20, 5, 1},
    {"gemma-4-e4b", gemma4, 42, 2560, 8, 2, 256, 10240, 262144, 131072, true, 512, 0, 0, 0, 18, 6, 2},
    {"gemma-4-26b-a4b", gemma4, 30, 2816, 16, 8, 256, 2112, 262144, 0, true, 1024, 128, 8, 704, 0, 6, 2},
    {"gemma-4-31b", gemma4, 60, 5376, 32, 16, 256, 21504, 262144, 0, true, 1024, 0, 0, 0, 0, 6, 4},
    // openai
    {"gpt-oss-20b", gpt_oss, 24, 2880, 64, 8, 64, 0, 201088, 131072, false, 128, 32, 4, 2880},
    {"gpt-oss-120b", gpt_oss, 36, 2880, 64, 8, 64, 0, 201088, 131072, false, 128, 128, 4, 2880},
    // deepseek; a shared expert is as wide as a routed one
    {"deepseek-v2-lite", deepseek, 27, 2048, 16, 1, 576, 10944, 102400, 0, false, 0, 64, 6, 1408, 1, 0, 0, 0},
    {"deepseek-v2", deepseek, 60, 5120, 128, 1, 576, 12288, 102400, 0, false, 0, 160, 6, 1536, 1, 0, 0, 1536},
    {"deepseek-v3", deepseek, 61, 7168, 128, 1, 576, 18432, 129280, 163840, false, 0, 256, 8, 2048, 3, 0, 0, 1536},
    // transformers
    {"glm-4-9b", glm, 40, 4096, 32, 2, 128, 13696, 151552, 131072, false},
};
}  // namespace presets

inline namespace GQA_ABI {

/// The last layer of every `period` is full, the others have the window; the last `shared` layers read what earlier ones stored.
constexpr void add_pattern(ModelShape& model, const LayerKind& windowed, const LayerKind& full, Index layers,
                           Index period, Index shared) {
  for (Index i = 0; i < layers; ++i) {
    LayerKind kind = (i + 1) % period == 0 ? full : windowed;
    kind.count = 1;
    kind.shares_kv = i >= layers - shared;
    add_kind(model, kind);
  }
}

constexpr void add_preset_attention(ModelShape& model, const PresetLine& p) {
  const LayerKind full{.count = p.layers, .query_heads = p.query_heads, .kv_heads = p.kv_heads, .head_dim = p.head_dim};
  LayerKind windowed = full;
  windowed.window = p.window;
  using enum ModelFamily;
  switch (p.family) {
    case gemma2:
    case gpt_oss: return add_pattern(model, windowed, full, p.layers, 2, 0);
    case gemma3: return add_pattern(model, windowed, full, p.layers, 6, 0);
    case gemma3n: return add_pattern(model, windowed, full, p.layers, 5, p.special);
    case gemma4: {
      LayerKind wide = full;
      wide.kv_heads = p.full_kv_heads;
      wide.head_dim = 512;  // google: _DEFAULT_GLOBAL_KEY_SIZE
      return add_pattern(model, windowed, wide, p.layers, p.period, p.special);
    }
    case deepseek: {
      LayerKind latent = full;
      latent.value_dim = 512;
      latent.values_in_keys = true;
      model.latent = {.query_rank = p.query_rank, .kv_rank = 512, .nope_dim = 128, .rope_dim = 64, .value_dim = 128};
      return add_kind(model, latent);
    }
    case llama:
    case qwen2:
    case qwen3:
    case falcon:
    case glm:
    case phi3small:
    default: return add_kind(model, windowed);
  }
}

constexpr void add_preset_feed_forward(ModelShape& model, const PresetLine& p) {
  using enum ModelFamily;
  FeedForwardKind kind{.count = p.layers,
                       .intermediate = p.intermediate,
                       .experts = p.experts,
                       .active_experts = p.active_experts,
                       .expert_intermediate = p.expert_intermediate,
                       .matrices = p.family == falcon ? 2 : 3,
                       .bias = p.family == phi3small || p.family == gpt_oss};
  if (p.family == deepseek) {
    const Index shared_experts = p.experts == 256 ? 1 : 2;
    add_feed_forward_kind(model, {.count = p.special, .intermediate = p.intermediate});
    kind.count = p.layers - p.special;
    kind.intermediate = shared_experts * p.expert_intermediate;
  }
  add_feed_forward_kind(model, kind);
}

constexpr void add_preset_parameters(ModelShape& model, const PresetLine& p) {
  using enum ModelFamily;
  // Their per-layer embeddings, and Gemma 4's values projected with the keys, are not in ParameterShape's terms.
  if (p.family == gemma3n || p.family == gemma4) return;
  ParameterShape& made = model.parameters;
  made.hidden_size = p.hidden;
  made.vocabulary = p.vocabulary;
  made.tied_embeddings = p.tied;
  made.qk_norm = p.family == qwen3 || p.family == gemma3;
  made.qkv_bias = p.family == qwen2 || p.family == glm || p.family == gpt_oss || p.family == phi3small;
  made.output_bias = p.family == gpt_oss || p.family == phi3small;
  made.head_scalars = p.family == gpt_oss ? 1 : 0;
  if (p.family == gemma2 || p.family == gemma3) made.norm_vectors = 4;
  if (p.family == falcon) made.norm_vectors = 2 * p.special;
  if (p.family == phi3small) made.norm_vectors = 4;
  if (p.family == falcon || p.family == phi3small) made.final_norm_vectors = 2;
  if (p.family == deepseek && p.experts == 256)  // V3: a number an expert that corrects the router's choice
    made.other = (p.layers - p.special) * p.experts;
}

constexpr ModelShape shape_of(const PresetLine& line) {
  ModelShape model;
  add_preset_attention(model, line);
  add_preset_feed_forward(model, line);
  add_preset_parameters(model, line);
  model.max_context = line.context;
  return model;
}

inline std::string preset_names() {
  std::string names;
  for (const PresetLine& line : presets::kLines) names += (names.empty() ? "" : ", ") + std::string(line.name);
  return names;
}

constexpr ModelShape preset_named(std::string_view name) {
  for (const PresetLine& line : presets::kLines)
    if (name == line.name) return shape_of(line);
  fail_name("preset", name, preset_names());
}

}  // namespace GQA_ABI
}  // namespace detail

/// How many presets there are, and the name of each: 0 … preset_count − 1.
inline constexpr Index preset_count = static_cast<Index>(std::size(detail::presets::kLines));
/// @throws ArgumentError if there is no such preset
GQA_ALWAYS_INLINE constexpr std::string_view preset_name(Index which) {
  if (which < 0 || which >= preset_count) detail::fail("preset", which, "0 to preset_count - 1");
  return detail::presets::kLines[which].name;
}

/// A published model, "llama-2-70b". @throws ArgumentError that lists all names if there is none of that name
///
/// Limits: Phi-3-small's block-sparse layers are taken as full ones, since engines store every token for them. Parameters of
/// Gemma 3n and Gemma 4 are not counted (model.parameters is zero): give the size of their weights.
GQA_ALWAYS_INLINE constexpr ModelShape preset(std::string_view name) { return detail::preset_named(name); }

}  // namespace gqa
