// SPDX-License-Identifier: Apache-2.0
/// @file
/// A model from the config.json that lies beside its weights on Hugging Face.
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "hf_types.hpp"
#include "model_file.hpp"

namespace kv_budget {

using nlohmann::json;

/// Fields of one JSON object. Every complaint says which file and field.
class Fields {
 public:
  Fields(const json& object, std::string file, std::string prefix = "")
      : object_(object), file_(std::move(file)), prefix_(std::move(prefix)) {}

  const std::string& file() const { return file_; }
  std::string named(const std::string& field) const { return prefix_ + field; }
  /// Absent and null are the same but for is_null.
  bool has(const std::string& field) const { return object_.contains(field) && !object_.at(field).is_null(); }
  bool is_null(const std::string& field) const { return object_.contains(field) && object_.at(field).is_null(); }
  const json& at(const std::string& field) const { return object_.at(field); }

  [[noreturn]] void bad(const std::string& field, const std::string& expected) const {
    bad_field(file_, named(field), object_.contains(field) ? object_.at(field).dump() : "missing", expected);
  }

  /// A number in [least, kMostBelieved].
  Index number(const std::string& field, Index least) const {
    const std::string range = "a whole number from " + std::to_string(least) + " to " + std::to_string(kMostBelieved);
    if (!has(field) || !object_.at(field).is_number_integer()) bad(field, range);
    const json& value = object_.at(field);
    if (value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(kMostBelieved))
      bad(field, range);
    const Index found = value.get<Index>();
    if (found < least || found > kMostBelieved) bad(field, range);
    return found;
  }
  /// The number under whichever of these names is there; two that differ contradict each other.
  std::optional<Index> any(std::initializer_list<const char*> names, Index least) const {
    std::optional<Index> found;
    std::string first;
    for (const char* name : names) {
      if (!has(name)) continue;
      const Index value = number(name, least);
      if (found && *found != value) bad(name, "the same as " + named(first) + ", " + std::to_string(*found));
      if (!found) first = name;
      found = value;
    }
    return found;
  }
  Index required(std::initializer_list<const char*> names, Index least, Index fallback = 0) const {
    if (const std::optional<Index> found = any(names, least)) return *found;
    if (fallback > 0) return fallback;
    bad(*names.begin(), "a whole number of " + std::to_string(least) + " or more");
  }
  Index optional(std::initializer_list<const char*> names, Index fallback) const {
    return any(names, 0).value_or(fallback);
  }
  bool flag(const std::string& field, bool fallback) const {
    if (!has(field)) return fallback;
    if (!object_.at(field).is_boolean()) bad(field, "true or false");
    return object_.at(field).get<bool>();
  }

 private:
  const json& object_;
  std::string file_;
  std::string prefix_;
};

/// Reads one object of a known model_type.
class ConfigReader {
 public:
  ConfigReader(const Fields& fields, const ModelType& type, bool tied, NamedModel& model)
      : f_(fields), type_(type), tied_(tied), model_(model) {}

  void read() {
    layers_ = f_.required({"num_hidden_layers", "n_layer", "num_layers"}, 1);
    if (layers_ > kMostLayers) f_.bad("num_hidden_layers", "100000 at most");
    hidden_ = f_.required({"hidden_size", "n_embd"}, 1);
    heads_ = f_.required({"num_attention_heads", "n_head"}, 1, type_.query_heads);
    if (type_.experts == Experts::deepseek) read_latent();
    else read_attention();
    model_.shape.max_context = f_.optional({"max_position_embeddings", "n_positions", "seq_length"}, 0);
    if (!type_.counted) return;
    read_feed_forward();
    read_parameters();
  }

 private:
  bool is(std::string_view name) const { return type_.name == name; }
  bool is_falcon() const { return is("falcon") || is("RefinedWeb") || is("RefinedWebModel"); }
  void note(const std::string& text) { model_.notes.push_back(text); }

  Index kv_heads() {
    if (is_falcon()) {  // the old decoder has one KV head or all; the new one says how many
      if (f_.flag("new_decoder_architecture", is("RefinedWeb")))
        return f_.optional({"num_kv_heads", "n_head_kv"}, heads_);
      return f_.flag("multi_query", true) ? 1 : heads_;
    }
    if (is("chatglm"))
      return f_.flag("multi_query_attention", false) ? f_.required({"multi_query_group_num"}, 1) : heads_;
    if (const std::optional<Index> given = f_.any({"num_key_value_heads"}, 1)) return *given;
    if (type_.kv_heads > 0 && !f_.is_null("num_key_value_heads")) {
      note(f_.named("num_key_value_heads") + " is missing: " + std::to_string(type_.kv_heads) + ", as " +
           std::string(type_.name) + " has it by default");
      return type_.kv_heads;
    }
    return heads_;
  }

  Index head_dim() {
    if (const std::optional<Index> given = f_.any({"head_dim", "kv_channels"}, 1)) return *given;
    if (type_.head_dim > 0 && !f_.is_null("head_dim")) return type_.head_dim;
    if (hidden_ % heads_ != 0)
      bad_field(f_.file(), f_.named("hidden_size"), hidden_,
                "a multiple of the " + std::to_string(heads_) + " query heads, or a head_dim");
    return hidden_ / heads_;
  }

  void check_divides(const std::string& field, Index kv_heads) const {
    if (kv_heads < 1 || heads_ % kv_heads != 0)
      bad_field(f_.file(), f_.named(field), kv_heads, "a divisor of the " + std::to_string(heads_) + " query heads");
  }

  /// The window, or 0 for none.
  Index window() {
    if (type_.windows == WindowRule::none && !f_.has("layer_types")) {
      if (f_.has("sliding_window"))
        note(f_.named("sliding_window") + " is " + f_.at("sliding_window").dump() + ", which " +
             std::string(type_.name) + " does not use");
      return 0;
    }
    if (type_.windows == WindowRule::qwen && !f_.flag("use_sliding_window", false)) return 0;
    if (f_.is_null("sliding_window")) return 0;
    if (const std::optional<Index> given = f_.any({"sliding_window"}, 1)) return *given;
    if (type_.window > 0)
      note(f_.named("sliding_window") + " is missing: " + std::to_string(type_.window) + ", as " +
           std::string(type_.name) + " has it by default");
    return type_.window;
  }

  std::vector<bool> windowed_layers(Index window) {
    const auto count = static_cast<std::size_t>(layers_);
    std::vector<bool> windowed(count, false);
    if (f_.has("layer_types")) {
      const json& types = f_.at("layer_types");
      if (!types.is_array() || types.size() != count)
        bad_field(f_.file(), f_.named("layer_types"),
                  types.is_array() ? "a list of " + std::to_string(types.size()) : types.dump(),
                  "a list of the types of the " + std::to_string(layers_) + " layers");
      for (std::size_t i = 0; i < count; ++i) {
        windowed[i] = types[i] == "sliding_attention";
        if (!windowed[i] && types[i] != "full_attention")
          bad_field(f_.file(), f_.named("layer_types[" + std::to_string(i) + "]"), types[i].dump(),
                    "\"full_attention\" or \"sliding_attention\"");
        if (windowed[i] && window == 0)
          bad_field(f_.file(), f_.named("layer_types[" + std::to_string(i) + "]"), types[i].dump(),
                    "\"full_attention\", because " + f_.named("sliding_window") +
                        (type_.windows == WindowRule::qwen ? " is off or missing" : " is missing or null"));
      }
    } else if (window > 0) {
      const Index period = type_.windows == WindowRule::last_of
                               ? f_.required({"sliding_window_pattern", "_sliding_window_pattern"}, 1, type_.period)
                               : 0;
      const Index first = type_.windows == WindowRule::qwen ? f_.optional({"max_window_layers"}, 28) : 0;
      for (Index i = 0; i < layers_; ++i)
        windowed[static_cast<std::size_t>(i)] =
            type_.windows == WindowRule::last_of ? (i + 1) % period != 0 : i >= first;
    }
    if (is("gemma4_text")) windowed.back() = false;  // transformers forces the last layer to be a full one
    return windowed;
  }

  void read_attention() {
    LayerPlan plan;
    const Index window_tokens = window();
    plan.windowed = windowed_layers(window_tokens);
    const Index kv = kv_heads();
    check_divides("num_key_value_heads", kv);
    plan.full = {.count = 1, .query_heads = heads_, .kv_heads = kv, .head_dim = head_dim()};
    plan.with_window = plan.full;
    plan.with_window.window = window_tokens;
    if (is("gemma4_text")) {
      plan.full.head_dim =
          f_.is_null("global_head_dim") ? plan.full.head_dim : f_.required({"global_head_dim"}, 1, 512);
      if (f_.flag("attention_k_eq_v", false)) {
        plan.full.kv_heads = f_.optional({"num_global_key_value_heads"}, kv);
        check_divides("num_global_key_value_heads", plan.full.kv_heads);
      }
    }
    const bool can_share = is("gemma3n_text") || is("gemma4_text");
    if (can_share)
      share_last_layers(f_.file(), f_.named("num_kv_shared_layers"),
                        f_.optional({"num_kv_shared_layers"}, is("gemma3n_text") ? 15 : 0), plan);
    add_planned_layers(model_.shape, plan);
  }

  void read_latent() {
    gqa::LatentProjections& latent = model_.shape.latent;
    latent.kv_rank = f_.required({"kv_lora_rank"}, 1);
    latent.rope_dim = f_.required({"qk_rope_head_dim"}, 1);
    latent.nope_dim = f_.required({"qk_nope_head_dim"}, 1);
    latent.value_dim = f_.required({"v_head_dim"}, 1);
    latent.query_rank = f_.optional({"q_lora_rank"}, 0);
    if (const std::optional<Index> given = f_.any({"num_key_value_heads"}, 1); given && *given != heads_)
      bad_field(f_.file(), f_.named("num_key_value_heads"), *given,
                "the " + std::to_string(heads_) + " query heads: a latent is expanded to all of them");
    model_.shape.add_layers({.count = layers_,
                             .query_heads = heads_,
                             .kv_heads = 1,
                             .head_dim = latent.kv_rank + latent.rope_dim,
                             .value_dim = latent.kv_rank,
                             .values_in_keys = true});
  }

  Index dense_width() {
    const auto found = f_.any({"intermediate_size", "n_inner", "ffn_hidden_size", "ff_intermediate_size"}, 1);
    if (found) return *found;
    if (is_falcon() || is("gpt2")) return 4 * hidden_;
    f_.bad("intermediate_size", "a whole number of 1 or more");
  }

  void read_feed_forward() {
    gqa::FeedForwardKind dense{.count = layers_, .matrices = type_.matrices};
    dense.bias = is("gpt2") || is("phi3small") || is("gpt_oss") || (is_falcon() && f_.flag("bias", false)) ||
                 f_.flag("mlp_bias", false);
    const auto add = [&](const gqa::FeedForwardKind& kind) {
      if (kind.count > 0) model_.shape.add_feed_forward(kind);
    };
    gqa::FeedForwardKind mixed = dense;
    switch (type_.experts) {
      case Experts::none: break;
      case Experts::local:
        mixed.experts = f_.required({"num_local_experts", "num_experts"}, 1);
        mixed.active_experts = f_.required({"num_experts_per_tok", "experts_per_token"}, 1);
        mixed.expert_intermediate = dense_width();
        check_experts(mixed);
        return add(mixed);
      case Experts::qwen: {
        mixed.experts = f_.required({"num_experts", "num_local_experts"}, 1);
        mixed.active_experts = f_.required({"num_experts_per_tok"}, 1);
        mixed.expert_intermediate = f_.required({"moe_intermediate_size"}, 1);
        mixed.intermediate = f_.optional({"shared_expert_intermediate_size"}, 0);
        check_experts(mixed);
        const Index step = f_.required({"decoder_sparse_step"}, 1, 1);
        std::vector<bool> sparse(static_cast<std::size_t>(layers_));
        for (Index i = 0; i < layers_; ++i) sparse[static_cast<std::size_t>(i)] = (i + 1) % step == 0;
        if (f_.has("mlp_only_layers"))
          for (const json& layer : f_.at("mlp_only_layers")) {
            if (!layer.is_number_unsigned() || layer.get<std::uint64_t>() >= sparse.size())
              bad_field(f_.file(), f_.named("mlp_only_layers"), layer.dump(), "numbers of layers");
            sparse[layer.get<std::size_t>()] = false;
          }
        mixed.count = static_cast<Index>(std::count(sparse.begin(), sparse.end(), true));
        dense.count = layers_ - mixed.count;
        if (dense.count > 0) dense.intermediate = dense_width();
        add(dense);
        return add(mixed);
      }
      case Experts::deepseek: {
        dense.intermediate = dense_width();
        if (!f_.has("n_routed_experts")) break;
        if (const Index every = f_.optional({"moe_layer_freq"}, 1); every != 1) f_.bad("moe_layer_freq", "1");
        mixed.experts = f_.required({"n_routed_experts"}, 1);
        mixed.active_experts = f_.required({"num_experts_per_tok"}, 1);
        mixed.expert_intermediate = f_.required({"moe_intermediate_size"}, 1);
        mixed.intermediate = f_.optional({"n_shared_experts"}, 0) * mixed.expert_intermediate;
        check_experts(mixed);
        dense.count = f_.optional({"first_k_dense_replace"}, 0);
        if (dense.count > layers_)
          f_.bad("first_k_dense_replace", "at most the " + std::to_string(layers_) + " layers");
        mixed.count = layers_ - dense.count;
        if (is("deepseek_v3"))
          model_.shape.parameters.other += mixed.count * mixed.experts;  // corrections of the router
        add(dense);
        return add(mixed);
      }
    }
    dense.intermediate = dense_width();
    add(dense);
  }

  void check_experts(const gqa::FeedForwardKind& kind) const {
    if (kind.active_experts > kind.experts)
      bad_field(f_.file(), f_.named("num_experts_per_tok"), kind.active_experts,
                "at most the " + std::to_string(kind.experts) + " experts of a layer");
  }

  void read_parameters() {
    gqa::ParameterShape& p = model_.shape.parameters;
    p.hidden_size = hidden_;
    p.vocabulary = f_.required({is("chatglm") ? "padded_vocab_size" : "vocab_size"}, 1, type_.vocabulary);
    p.tied_embeddings = f_.flag("tie_word_embeddings", tied_);
    p.norm_vectors = type_.norm_vectors;
    p.qk_norm = type_.qk_norm;
    const bool bias = f_.flag("attention_bias", false);
    p.qkv_bias = type_.qkv_bias || bias || f_.flag("add_qkv_bias", false);
    p.output_bias = is("gpt2") || is("gpt_oss") || is("phi3small") || (bias && !is("glm") && !is("glm4"));
    if (is("gpt_oss")) p.head_scalars = 1;
    if (is("gpt2")) p.other = f_.required({"n_positions"}, 1) * hidden_;
    if (is_falcon()) {
      p.norm_vectors = f_.flag("new_decoder_architecture", is("RefinedWeb")) ? 4 : 2;
      p.qkv_bias = p.output_bias = f_.flag("bias", false);
    }
    if (is_falcon() || is("gpt2") || is("phi3small")) p.final_norm_vectors = 2;
    if (is("chatglm")) p.output_bias = f_.flag("add_bias_linear", false);
  }

  const Fields& f_;
  const ModelType& type_;
  bool tied_;
  NamedModel& model_;
  Index layers_ = 0, hidden_ = 0, heads_ = 0;
};

/// @param file named in complaints
/// @throws ModelFileError that names the field, its value and what was expected
inline NamedModel model_from_config(const json& config, const std::string& file) {
  if (!config.is_object()) throw ModelFileError(file + ": is no JSON object; expected a model's config.json");
  const Fields top(config, file);
  const auto type_name = [&](const Fields& fields) {
    if (!fields.has("model_type") || !fields.at("model_type").is_string())
      fields.bad("model_type", "one of " + model_type_names());
    return fields.at("model_type").get<std::string>();
  };
  NamedModel model;
  const bool nested = top.has("text_config");
  if (nested && !top.at("text_config").is_object()) top.bad("text_config", "an object");
  const Fields text(nested ? config["text_config"] : config, file, nested ? "text_config." : "");
  const std::string name = nested && !text.has("model_type") ? type_name(top) : type_name(text);
  const ModelType* const type = find_model_type(name);
  if (type == nullptr) text.bad("model_type", "one of " + model_type_names());
  model.name = name;

  const bool tied = nested ? top.flag("tie_word_embeddings", type->tied) : type->tied;
  ConfigReader(text, *type, tied, model).read();
  return model;
}

/// Reads a config.json.
inline NamedModel read_config(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw ModelFileError(path + ": cannot be opened");
  json config;
  try {
    config = json::parse(file);
  } catch (const json::exception& error) {
    throw ModelFileError(path + ": is no JSON: " + error.what());
  }
  NamedModel model = model_from_config(config, path);
  const std::filesystem::path folder = std::filesystem::absolute(path).parent_path().filename();
  model.name = (folder / std::filesystem::path(path).filename()).string();
  return model;
}

}  // namespace kv_budget
