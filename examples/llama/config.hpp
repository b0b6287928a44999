// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a model is: the JSON object `config` that convert.py writes, read and checked.
#pragma once

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "../convert_checkpoint/safetensors.hpp"
#include "gqa/gqa.hpp"

namespace llama {

using gqa::Index;

enum class Activation { silu, gelu_tanh };

/// How a conversation is written for a model that was trained on conversations.
enum class ChatForm { none, chatml, gemma, llama3 };

/// What may differ from layer to layer.
struct LayerConfig {
  Index window = 0;          ///< tokens that a query sees, itself included; 0: all
  double rope_base = 1e4;    ///< of rotary embeddings
  double rope_factor = 1.0;  ///< what positions are divided by
};

/// Extents and constants of a model.
struct ModelConfig {
  Index dim = 0;
  Index hidden_dim = 0;
  Index query_heads = 0;
  Index kv_heads = 0;
  Index head_dim = 0;
  Index vocabulary = 0;
  Index max_length = 0;  ///< longest sequence that the model was trained for, in tokens
  double norm_epsilon = 1e-5;
  double attention_scale = 1.0;
  double embedding_scale = 1.0;
  Activation activation = Activation::silu;
  gqa::RopePairs rope_pairs = gqa::RopePairs::half_split;
  Index rope_dims = 0;
  std::vector<double> rope_divisors;  ///< of each pair's frequency (Llama 3's); empty: none
  bool qkv_bias = false;              ///< queries, keys and values have biases
  bool qk_norm = false;               ///< queries and keys are normalised before they are turned
  bool post_norms = false;            ///< what attention and feed-forward give is normalised before it is added
  bool tied = true;                   ///< the embedding is the classifier, too
  ChatForm chat = ChatForm::none;
  std::vector<LayerConfig> per_layer;

  Index layers() const { return static_cast<Index>(per_layer.size()); }
  Index query_dim() const { return query_heads * head_dim; }
  Index kv_dim() const { return kv_heads * head_dim; }
};

namespace detail {

/// Reads members of the object `config` of the file at `path`. All @throw std::runtime_error that names file, member and expectation.
class ConfigReader {
 public:
  ConfigReader(const std::string& path, const nlohmann::json& object) : path_(path), object_(object) {
    if (!object.is_object()) checkpoint::bad_file(path, "config is no JSON object");
  }
  [[noreturn]] void bad(const std::string& name, const std::string& expected) const {
    checkpoint::bad_file(path_, "config: " + name + " is " + object_.at(name).dump() + "; expected " + expected);
  }
  const nlohmann::json& at(const std::string& name) const {
    if (!object_.contains(name)) checkpoint::bad_file(path_, "config has no " + name);
    return object_.at(name);
  }
  /// A whole number of 1 … most: small enough that no product of two overflows.
  Index extent(const std::string& name, Index most = Index{1} << 24) const {
    const nlohmann::json& value = at(name);
    if (!value.is_number_integer() || value.get<double>() < 1 || value.get<double>() > static_cast<double>(most))
      bad(name, "a whole number, 1 to " + std::to_string(most));
    return value.get<Index>();
  }
  double positive(const std::string& name) const {
    if (!is_positive(at(name))) bad(name, "a number above 0");
    return at(name).get<double>();
  }
  bool flag(const std::string& name) const {
    if (!at(name).is_boolean()) bad(name, "true or false");
    return at(name).get<bool>();
  }
  /// @param choices  a name and what it means, each
  template <class T>
  T choice(const std::string& name, std::initializer_list<std::pair<const char*, T>> choices) const {
    std::string names;
    for (const auto& [text, meaning] : choices) {
      if (at(name) == text) return meaning;
      names += (names.empty() ? "" : ", ") + std::string(text);
    }
    bad(name, "one of " + names);
  }
  /// `count` numbers above 0, or from 0 on.
  std::vector<double> numbers(const std::string& name, Index count, bool zero_too = false) const {
    const nlohmann::json& list = at(name);
    const std::string expected = std::to_string(count) + " numbers " + (zero_too ? "of 0 or more" : "above 0");
    if (!list.is_array() || static_cast<Index>(list.size()) != count) bad(name, expected);
    std::vector<double> made;
    for (const nlohmann::json& value : list) {
      if (!is_positive(value) && !(zero_too && value == 0)) bad(name, expected);
      made.push_back(value.get<double>());
    }
    return made;
  }
  bool contains(const std::string& name) const { return object_.contains(name); }

 private:
  static bool is_positive(const nlohmann::json& value) {
    return value.is_number() && value.get<double>() > 0 && value.get<double>() < 1e12;
  }

  const std::string& path_;
  const nlohmann::json& object_;
};

}  // namespace detail

/// @throws std::runtime_error that names the file, the member, and what was expected
inline ModelConfig read_config(const std::string& path, const nlohmann::json& object) {
  const detail::ConfigReader from(path, object);
  ModelConfig config;
  config.dim = from.extent("dim");
  config.hidden_dim = from.extent("hidden_dim");
  config.query_heads = from.extent("query_heads", 1 << 16);
  config.kv_heads = from.extent("kv_heads", 1 << 16);
  config.head_dim = from.extent("head_dim", 1 << 16);
  config.vocabulary = from.extent("vocabulary");
  config.max_length = from.extent("max_length", Index{1} << 32);
  config.norm_epsilon = from.positive("norm_epsilon");
  config.attention_scale = from.positive("attention_scale");
  config.embedding_scale = from.positive("embedding_scale");
  config.activation =
      from.choice<Activation>("activation", {{"silu", Activation::silu}, {"gelu_tanh", Activation::gelu_tanh}});
  config.rope_pairs = from.choice<gqa::RopePairs>(
      "rope_pairs", {{"interleaved", gqa::RopePairs::interleaved}, {"half_split", gqa::RopePairs::half_split}});
  config.rope_dims = from.extent("rope_dims", config.head_dim);
  if (config.rope_dims % 2 != 0) from.bad("rope_dims", "an even number");
  if (from.contains("rope_divisors")) config.rope_divisors = from.numbers("rope_divisors", config.rope_dims / 2);
  config.qkv_bias = from.flag("qkv_bias");
  config.qk_norm = from.flag("qk_norm");
  config.post_norms = from.flag("post_norms");
  config.tied = from.flag("tied");
  config.chat = from.choice<ChatForm>("chat", {{"none", ChatForm::none},
                                               {"chatml", ChatForm::chatml},
                                               {"gemma", ChatForm::gemma},
                                               {"llama3", ChatForm::llama3}});
  if (config.query_heads % config.kv_heads != 0)
    from.bad("kv_heads", "a divisor of the " + std::to_string(config.query_heads) + " query heads");

  const Index layers = from.extent("layers", 1 << 16);
  const std::vector<double> windows = from.numbers("windows", layers, true);
  const std::vector<double> bases = from.numbers("rope_bases", layers);
  const std::vector<double> factors = from.numbers("rope_factors", layers);
  for (std::size_t i = 0; i < static_cast<std::size_t>(layers); ++i) {
    if (windows[i] != std::floor(windows[i])) from.bad("windows", "whole numbers");
    config.per_layer.push_back({static_cast<Index>(windows[i]), bases[i], factors[i]});
  }
  return config;
}

}  // namespace llama
