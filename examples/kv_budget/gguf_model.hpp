// SPDX-License-Identifier: Apache-2.0
/// @file
/// A model from a GGUF file's metadata.
#pragma once

#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>

#include "gguf.hpp"

namespace kv_budget {

/// Finds `<architecture>.name` and complains about it by that name.
class GgufFields {
 public:
  GgufFields(const GgufFile& file, std::string path) : file_(file), path_(std::move(path)) {
    const auto found = file.metadata.find("general.architecture");
    if (found == file.metadata.end() || found->second.kind != GgufValue::Kind::text)
      bad_field(path_, "general.architecture", found == file.metadata.end() ? "missing" : "no string",
                "a name, such as \"llama\"");
    architecture_ = found->second.text;
  }

  const std::string& path() const { return path_; }
  const std::string& architecture() const { return architecture_; }
  std::string named(const std::string& name) const { return architecture_ + "." + name; }

  const GgufValue* find(const std::string& key) const {
    const auto found = file_.metadata.find(key);
    return found == file_.metadata.end() ? nullptr : &found->second;
  }
  std::optional<Index> number(const std::string& name, Index least) const {
    const GgufValue* const value = find(named(name));
    if (value == nullptr) return std::nullopt;
    if (value->kind != GgufValue::Kind::number) bad_field(path_, named(name), "no whole number", "one");
    return in_range(name, value->number, least);
  }
  Index required(const std::string& name, Index least) const {
    if (const std::optional<Index> found = number(name, least)) return *found;
    bad_field(path_, named(name), "missing", "a whole number of " + std::to_string(least) + " or more");
  }
  /// One number for all layers, or one for each; `fallback` for all where the key is missing.
  std::vector<Index> each_layer(const std::string& name, Index layers, Index least,
                                std::optional<Index> fallback) const {
    const GgufValue* const value = find(named(name));
    if (value != nullptr && value->kind == GgufValue::Kind::list) {
      if (value->length != layers)
        bad_field(path_, named(name), "a list of " + std::to_string(value->length),
                  "one for each of " + std::to_string(layers) + " layers");
      for (const Index each : value->list) in_range(name, each, least);
      return value->list;
    }
    const std::optional<Index> one = number(name, least);
    if (!one && !fallback) return std::vector<Index>(static_cast<std::size_t>(layers), required(name, least));
    return std::vector<Index>(static_cast<std::size_t>(layers), one ? *one : *fallback);
  }

 private:
  Index in_range(const std::string& name, Index value, Index least) const {
    if (value < least || value > kMostBelieved)
      bad_field(path_, named(name), value, std::to_string(least) + " to " + std::to_string(kMostBelieved));
    return value;
  }

  const GgufFile& file_;
  std::string path_;
  std::string architecture_;
};

/// Which layers have the window. llama.cpp knows the pattern of some architectures that do not write it down.
inline std::vector<bool> gguf_windowed_layers(const GgufFields& f, Index layers, Index window, NamedModel& model) {
  struct Known {
    std::string_view architecture;
    Index period;
  };
  constexpr std::array<Known, 5> known{{{"gemma2", 2}, {"gemma3", 6}, {"gemma3n", 5}, {"gpt-oss", 2}, {"cohere2", 4}}};
  std::vector<bool> windowed(static_cast<std::size_t>(layers), false);
  if (window == 0) return windowed;
  const std::string name = "attention.sliding_window_pattern";
  Index period = 0;
  for (const Known& each : known)
    if (each.architecture == f.architecture()) period = each.period;
  if (const GgufValue* const pattern = f.find(f.named(name));
      pattern != nullptr && pattern->kind == GgufValue::Kind::list) {
    if (pattern->length != layers || !pattern->list_of_booleans)
      bad_field(f.path(), f.named(name), "a list of " + std::to_string(pattern->length),
                "a boolean for each of " + std::to_string(layers) + " layers");
    for (std::size_t i = 0; i < windowed.size(); ++i) windowed[i] = pattern->list[i] != 0;
    return windowed;
  } else if (pattern != nullptr) {
    period = f.required(name, 1);
  }
  if (period == 0)
    model.notes.push_back(f.named("attention.sliding_window") + " is " + std::to_string(window) +
                          ", but the file does not say which layers have it: taken as none");
  else
    for (Index i = 0; i < layers; ++i) windowed[static_cast<std::size_t>(i)] = (i + 1) % period != 0;
  return windowed;
}

inline void add_gguf_attention(const GgufFields& f, Index layers, Index hidden, NamedModel& model) {
  const std::vector<Index> heads = f.each_layer("attention.head_count", layers, 0, std::nullopt);
  const std::vector<Index> kv_heads = f.each_layer("attention.head_count_kv", layers, 0, Index{-1});
  Index first_heads = 0;
  for (const Index each : heads)
    if (first_heads == 0) first_heads = each;
  std::optional<Index> key = f.number("attention.key_length", 1);
  if (!key) {
    if (first_heads == 0 || hidden % first_heads != 0)
      bad_field(
          f.path(), f.named("embedding_length"), hidden,
          "a multiple of the " + std::to_string(first_heads) + " query heads, or " + f.named("attention.key_length"));
    key = hidden / first_heads;
  }
  const Index value = f.number("attention.value_length", 1).value_or(*key);
  const Index window = f.number("attention.sliding_window", 0).value_or(0);

  LayerPlan plan;
  plan.windowed = gguf_windowed_layers(f, layers, window, model);
  if (const std::optional<Index> shared = f.number("attention.shared_kv_layers", 0))
    share_last_layers(f.path(), f.named("attention.shared_kv_layers"), *shared, plan);

  // Files that keep the latent say how wide heads are once it is expanded; older ones store expanded heads.
  const std::optional<Index> expanded_key = f.number("attention.key_length_mla", 1);
  if (expanded_key) {
    gqa::LatentProjections& latent = model.shape.latent;
    latent.rope_dim = f.required("rope.dimension_count", 1);
    latent.kv_rank = f.required("attention.kv_lora_rank", 1);
    latent.value_dim = f.required("attention.value_length_mla", 1);
    latent.query_rank = f.number("attention.q_lora_rank", 0).value_or(0);
    if (*expanded_key <= latent.rope_dim)
      bad_field(f.path(), f.named("attention.key_length_mla"), *expanded_key,
                "more than " + f.named("rope.dimension_count") + ", " + std::to_string(latent.rope_dim));
    latent.nope_dim = *expanded_key - latent.rope_dim;
    if (*key != latent.kv_rank + latent.rope_dim)
      bad_field(f.path(), f.named("attention.key_length"), *key,
                std::to_string(latent.kv_rank + latent.rope_dim) + ", the latent and the rotary width");
  }

  for (std::size_t i = 0; i < heads.size(); ++i) {
    const std::string at = "[" + std::to_string(i) + "]";
    const Index kv = kv_heads[i] < 0 ? heads[i] : kv_heads[i];
    if (heads[i] == 0 || kv == 0) continue;  // no attention in this layer
    if (heads[i] % kv != 0)
      bad_field(f.path(), f.named("attention.head_count_kv") + at, kv,
                "a divisor of the " + std::to_string(heads[i]) + " query heads");
    gqa::LayerKind kind{.count = 1, .query_heads = heads[i], .kv_heads = kv, .head_dim = *key, .value_dim = value};
    if (plan.windowed[i]) {
      kind.window = window;
      kind.head_dim = f.number("attention.key_length_swa", 1).value_or(kind.head_dim);
      kind.value_dim =
          f.number("attention.value_length_swa", 1)
              .value_or(f.find(f.named("attention.key_length_swa")) != nullptr ? kind.head_dim : kind.value_dim);
    }
    if (expanded_key) {
      kind.kv_heads = 1;
      kind.value_dim = model.shape.latent.kv_rank;
      kind.values_in_keys = true;
    }
    kind.shares_kv = !plan.shares.empty() && plan.shares[i];
    model.shape.add_layers(kind);
  }
  if (model.shape.kind_count == 0)
    bad_field(f.path(), f.named("attention.head_count_kv"), "0 in all layers", "a layer with a KV cache");
}

inline void add_gguf_feed_forward(const GgufFields& f, Index layers, NamedModel& model) {
  const Index experts = f.number("expert_count", 0).value_or(0);
  const Index active = f.number("expert_used_count", 0).value_or(0);
  if (active > experts)
    bad_field(f.path(), f.named("expert_used_count"), active,
              "at most the " + std::to_string(experts) + " experts of a layer");
  const Index dense_layers = experts == 0 ? layers : f.number("leading_dense_block_count", 0).value_or(0);
  if (dense_layers > layers)
    bad_field(f.path(), f.named("leading_dense_block_count"), dense_layers, "at most " + std::to_string(layers));
  const std::vector<Index> widths = f.each_layer("feed_forward_length", layers, 0, Index{0});
  for (Index i = 0; i < layers; ++i) {
    gqa::FeedForwardKind kind{.count = 1, .intermediate = widths[static_cast<std::size_t>(i)]};
    if (i >= dense_layers) {
      kind.experts = experts;
      kind.active_experts = active;
      kind.expert_intermediate = f.number("expert_feed_forward_length", 1).value_or(kind.intermediate);
      kind.intermediate = f.number("expert_shared_feed_forward_length", 0)
                              .value_or(f.number("expert_shared_count", 0).value_or(0) * kind.expert_intermediate);
    }
    model.shape.add_feed_forward(kind);
  }
}

/// A model from what a GGUF file says. Parameters are those of the tensors that the file describes, and the weights' bytes the file's.
/// @param path names the file in complaints
/// @throws ModelFileError that names what is wrong
inline NamedModel model_from_gguf(std::istream& stream, Index bytes, const std::string& path) {
  const GgufFile file = GgufReader(stream, bytes, path).read();
  const GgufFields f(file, path);
  NamedModel model;
  model.name = std::filesystem::path(path).filename().string();
  if (const GgufValue* name = f.find("general.name"); name != nullptr && !name->text.empty()) model.name = name->text;

  const Index blocks = f.required("block_count", 1);
  if (blocks > kMostLayers) bad_field(path, f.named("block_count"), blocks, "100000 at most");
  const Index predicting =
      f.number("nextn_predict_layers", 0).value_or(0);  // these draft tokens, and are no part of the model
  if (predicting >= blocks) bad_field(path, f.named("nextn_predict_layers"), predicting, "fewer than the blocks");
  const Index layers = blocks - predicting;
  const Index hidden = f.required("embedding_length", 1);
  add_gguf_attention(f, layers, hidden, model);
  model.shape.max_context = f.number("context_length", 0).value_or(0);

  const GgufValue* const splits = f.find("split.count");
  const bool whole = splits == nullptr || splits->number <= 1;
  if (file.tensors == 0 || !whole) {
    model.notes.push_back(whole ? "the file describes no tensors: its weights are not known"
                                : "the file is one of several: give the size of all weights");
    return model;
  }
  model.weight_bytes = file.file_bytes;
  add_gguf_feed_forward(f, layers, model);
  gqa::ParameterShape& p = model.shape.parameters;
  p.hidden_size = hidden;
  const GgufValue* const tokens = f.find("tokenizer.ggml.tokens");
  p.vocabulary = f.number("vocab_size", 1).value_or(tokens == nullptr ? 0 : std::min(tokens->length, kMostBelieved));
  p.tied_embeddings = !file.has_output;
  p.norm_vectors = p.final_norm_vectors = 0;
  // What the metadata does not tell (norms, biases) is the difference to what the tensors hold.
  const std::optional<gqa::ParameterCount> counted = gqa::count_parameters(model.shape);
  if (counted && file.parameters > counted->total()) p.other = file.parameters - counted->total();
  return model;
}

/// Reads a GGUF file.
inline NamedModel read_gguf(const std::string& path) {
  std::error_code error;
  const std::uintmax_t bytes = std::filesystem::file_size(path, error);
  std::ifstream stream(path, std::ios::binary);
  if (error || !stream) throw ModelFileError(path + ": cannot be opened");
  return model_from_gguf(stream, static_cast<Index>(bytes), path);
}

}  // namespace kv_budget
