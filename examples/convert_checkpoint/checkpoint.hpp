// SPDX-License-Identifier: Apache-2.0
/// @file
/// A folder with a Hugging Face checkpoint of a Llama-like model: config.json, and model.safetensors or the shards that
/// model.safetensors.index.json lists. Names are Llama's: model.layers.N.self_attn.{q,k,v,o}_proj.{weight,bias}.
#pragma once

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <numbers>
#include <optional>
#include <string>
#include <vector>

#include "gqa/convert.hpp"
#include "safetensors.hpp"

namespace checkpoint {

inline nlohmann::json read_json(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) bad_file(path, "cannot be opened");
  nlohmann::json json = nlohmann::json::parse(file, nullptr, false);
  if (json.is_discarded()) bad_file(path, "is no JSON");
  return json;
}

/// What is taken from config.json.
struct ModelConfig {
  nlohmann::json json;
  Index hidden = 0, layers = 0;
  gqa::HeadShape heads;
  double norm_epsilon = 1e-5;
  gqa::AttentionForm form;
  std::string
      unknown_rope;  ///< a rope_scaling that is not known here, or empty; such a model can be converted, not run
};

/// @throws std::runtime_error that names the field
inline ModelConfig read_config(const std::string& path) {
  ModelConfig config;
  config.json = read_json(path);
  const nlohmann::json& json = config.json;
  if (!json.is_object()) bad_file(path, "is no JSON object");
  const auto whole = [&](const char* name, Index otherwise) -> Index {
    if (!json.contains(name) || json[name].is_null()) {
      if (otherwise <= 0) bad_file(path, std::string("has no ") + name);
      return otherwise;
    }
    if (!json[name].is_number_integer() || json[name].get<std::int64_t>() < 1 ||
        json[name].get<std::int64_t>() > (1 << 24))
      bad_file(path, std::string(name) + " is " + json[name].dump() + "; expected 1 to 16777216");
    return json[name].get<Index>();
  };
  const auto number = [&](const nlohmann::json& in, const char* name, double otherwise) {
    if (!in.contains(name) || in[name].is_null()) return otherwise;
    if (!in[name].is_number() || !(in[name].get<double>() > 0))
      bad_file(path, std::string(name) + " is " + in[name].dump() + "; expected a positive number");
    return in[name].get<double>();
  };
  config.hidden = whole("hidden_size", 0);
  config.layers = whole("num_hidden_layers", 0);
  config.heads.query_heads = whole("num_attention_heads", 0);
  config.heads.kv_heads = whole("num_key_value_heads", config.heads.query_heads);
  config.heads.head_dim = whole("head_dim", config.hidden / config.heads.query_heads);
  config.heads.value_dim = config.heads.head_dim;
  if (config.heads.query_heads % config.heads.kv_heads != 0)
    bad_file(path, "num_key_value_heads is " + std::to_string(config.heads.kv_heads) +
                       "; expected a divisor of num_attention_heads = " + std::to_string(config.heads.query_heads));
  config.norm_epsilon = number(json, "rms_norm_eps", 1e-6);

  nlohmann::json rope =
      json.contains("rope_parameters") ? json["rope_parameters"] : json.value("rope_scaling", nlohmann::json());
  if (!rope.is_object()) rope = nlohmann::json::object();
  const double base = number(rope, "rope_theta", number(json, "rope_theta", 10000));
  const double part = number(rope, "partial_rotary_factor", number(json, "partial_rotary_factor", 1));
  const auto pairs = static_cast<Index>(part * static_cast<double>(config.heads.head_dim)) / 2;
  config.form.rope = {gqa::RopePairs::half_split, 2 * pairs};
  config.form.rope_base = base;
  std::string type = "default";
  for (const char* name : {"type", "rope_type"})
    if (rope.contains(name) && rope[name].is_string()) type = rope[name].get<std::string>();
  if (type == "default") return config;
  for (Index pair = 0; pair < pairs; ++pair) {
    double frequency = std::pow(base, -static_cast<double>(pair) / static_cast<double>(pairs));
    const double factor = number(rope, "factor", 1);
    if (type == "linear") {
      frequency /= factor;
    } else if (type == "llama3") {  // Llama 3.1's: long waves are stretched, short ones stay, between them a blend
      const double low = number(rope, "low_freq_factor", 1), high = number(rope, "high_freq_factor", 4);
      const double turns = number(rope, "original_max_position_embeddings", 8192) * frequency / (2 * std::numbers::pi);
      const double blend = std::min(1.0, std::max(0.0, (turns - low) / (high - low)));
      frequency = (1 - blend) * frequency / factor + blend * frequency;
    } else {
      config.unknown_rope = type;
    }
    config.form.rope_frequencies.push_back(frequency);
  }
  return config;
}

/// The folder, its tensors found by name in whichever file they are.
class Checkpoint {
 public:
  explicit Checkpoint(const std::string& folder) : folder_(folder), config_(read_config(folder + "/config.json")) {
    const std::string single = folder + "/model.safetensors", index = folder + "/model.safetensors.index.json";
    if (std::filesystem::exists(index)) {
      index_ = read_json(index);
      if (!index_.is_object() || !index_.contains("weight_map") || !index_["weight_map"].is_object())
        bad_file(index, "has no object weight_map");
      for (const auto& [name, file] : index_["weight_map"].items()) {
        if (!file.is_string() || file.get<std::string>().find('/') != std::string::npos)
          bad_file(index, name + " is in " + file.dump() + "; expected the name of a file in the same folder");
        open(file.get<std::string>());
        if (!files_.at(file.get<std::string>())->tensors().contains(name))
          bad_file(index, name + " is not in " + file.get<std::string>());
      }
    } else {
      open("model.safetensors");
    }
    for (const auto& [file, tensors] : files_)
      for (const auto& [name, tensor] : tensors->tensors())
        if (!tensors_.emplace(name, &tensor).second) bad_file(folder + "/" + file, name + " is in another shard too");
  }

  const ModelConfig& config() const { return config_; }
  const std::string& folder() const { return folder_; }
  const nlohmann::json& index() const { return index_; }  ///< null unless sharded
  const std::map<std::string, std::unique_ptr<SafetensorsFile>>& files() const { return files_; }
  bool has(const std::string& name) const { return tensors_.contains(name); }
  const Tensor& tensor(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) bad_file(folder_, "has no tensor " + name);
    return *found->second;
  }

  /// A matrix of given extents, in f32. @throws std::runtime_error if it has others
  Eigen::MatrixXf matrix(const std::string& name, Index rows, Index columns) const {
    const TensorWeights weights(name, tensor(name));
    if (weights.view().rows != rows || weights.view().columns != columns)
      bad_file(folder_, name + " is " + std::to_string(weights.view().rows) + " x " +
                            std::to_string(weights.view().columns) + "; config.json says " + std::to_string(rows) +
                            " x " + std::to_string(columns));
    return gqa::detail::read_weights(name.c_str(), weights.view()).cast<float>();
  }
  /// Rows of a tensor of two dims.
  Index rows(const std::string& name) const {
    const Tensor& found = tensor(name);
    return found.shape.empty() ? 0 : static_cast<Index>(found.shape[0]);
  }

  static std::string attention_name(Index layer, const char* part) {
    return "model.layers." + std::to_string(layer) + ".self_attn." + part;
  }

  /// The projections of a layer, exactly. @throws std::runtime_error or gqa::ArgumentError that names what does not fit
  gqa::AttentionWeights attention(Index layer) const {
    for (const char* fused : {"qkv_proj", "query_key_value", "W_pack"})
      if (has(attention_name(layer, fused) + ".weight"))
        bad_file(folder_, attention_name(layer, fused) + ".weight is fused; expected q_proj, k_proj and v_proj");
    std::vector<std::unique_ptr<TensorWeights>> kept;
    const auto view = [&](const char* part, const char* kind, bool optional) -> gqa::ConstWeightView {
      const std::string name = attention_name(layer, part) + kind;
      if (optional && !has(name)) return {};
      kept.push_back(std::make_unique<TensorWeights>(name, tensor(name)));
      return kept.back()->view();
    };
    const auto weight = [&](const char* part) { return view(part, ".weight", false); };
    const auto bias = [&](const char* part) { return view(part, ".bias", true); };
    try {
      return gqa::read_attention({weight("q_proj"), weight("k_proj"), weight("v_proj"), weight("o_proj"),
                                  bias("q_proj"), bias("k_proj"), bias("v_proj"), bias("o_proj")},
                                 config_.heads);
    } catch (const gqa::ArgumentError& error) {
      bad_file(folder_, "layer " + std::to_string(layer) + ": " + error.what());
    }
  }

 private:
  void open(const std::string& file) {
    if (!files_.contains(file)) files_.emplace(file, std::make_unique<SafetensorsFile>(folder_ + "/" + file));
  }

  std::string folder_;
  ModelConfig config_;
  nlohmann::json index_;
  std::map<std::string, std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, const Tensor*> tensors_;
};

}  // namespace checkpoint
