// SPDX-License-Identifier: Apache-2.0
/// @file
/// The weights of a model, where they lie in the mapped file that convert.py wrote.
#pragma once

#include <Eigen/Core>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "config.hpp"
#include "gqa/convert/weight_view.hpp"

namespace llama {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Vector = Eigen::VectorXf;

/// A matrix of weights, outputs × inputs, f32, bf16 or f16, packed row by row: in a file, or in memory of its own. Copies share it.
class Weight {
 public:
  Weight() = default;
  explicit Weight(Matrix matrix) {
    auto owner = std::make_shared<const Matrix>(std::move(matrix));
    view_ = gqa::weight_view(*owner);
    owner_ = std::move(owner);
  }
  explicit Weight(std::shared_ptr<const checkpoint::TensorWeights> tensor) : owner_(tensor), view_(tensor->view()) {}

  Index rows() const { return view_.rows; }
  Index columns() const { return view_.columns; }
  gqa::ElementType type() const { return view_.type; }
  Index bytes() const { return rows() * columns() * gqa::element_bytes(type()); }
  const gqa::ConstWeightView& view() const { return view_; }

  /// Rows [first, first + count) in f32: where they lie, or else widened into `room`.
  Eigen::Map<const Matrix> block(Index first, Index count, std::vector<float>& room) const {
    const Index elements = count * columns(), from = first * columns();
    if (type() == gqa::ElementType::f32) return {static_cast<const float*>(view_.data) + from, count, columns()};
    if (static_cast<Index>(room.size()) < elements) room.resize(static_cast<std::size_t>(elements));
    // By Eigen, which knows the processor's conversions.
    const auto widen = [&]<class T>(const T* data) {
      Eigen::Map<Vector>(room.data(), elements) =
          Eigen::Map<const Eigen::Matrix<T, Eigen::Dynamic, 1>>(data + from, elements).template cast<float>();
    };
    if (type() == gqa::ElementType::bf16) widen(static_cast<const Eigen::bfloat16*>(view_.data));
    else widen(static_cast<const Eigen::half*>(view_.data));
    return {room.data(), count, columns()};
  }
  /// All of it in f32.
  Matrix matrix() const {
    std::vector<float> room;
    return block(0, rows(), room);
  }

 private:
  std::shared_ptr<const void> owner_;
  gqa::ConstWeightView view_;
};

/// One layer. Vectors that a model does not have are empty.
struct LayerWeights {
  Vector attention_norm;          ///< dim
  Weight wq, wk, wv;              ///< Hq·D × dim, Hkv·D × dim, Hkv·D × dim
  Vector q_bias, k_bias, v_bias;  ///< of their outputs
  Vector q_norm, k_norm;          ///< D: of each head's queries, keys
  Weight wo;                      ///< dim × Hq·D
  Vector post_attention_norm;     ///< dim
  Vector feed_forward_norm;       ///< dim
  Weight gate, up;                ///< hidden × dim
  Weight down;                    ///< dim × hidden
  Vector post_feed_forward_norm;  ///< dim
};

/// A whole model. Cheap to copy: matrices are shared.
struct Weights {
  ModelConfig config;
  nlohmann::json tokenizer;  ///< as convert.py wrote it
  Weight embedding;          ///< vocabulary × dim
  std::vector<LayerWeights> layers;
  Vector final_norm;      ///< dim
  Weight own_classifier;  ///< vocabulary × dim; empty: the embedding serves

  const Weight& classifier() const { return own_classifier.rows() == 0 ? embedding : own_classifier; }
  /// Bytes of all matrices.
  Index bytes() const {
    Index sum = embedding.bytes() + own_classifier.bytes();
    for (const LayerWeights& w : layers)
      for (const Weight* weight : {&w.wq, &w.wk, &w.wv, &w.wo, &w.gate, &w.up, &w.down}) sum += weight->bytes();
    return sum;
  }
};

namespace detail {

/// Takes tensors out of a file, each with the extents that the config says.
class WeightReader {
 public:
  WeightReader(const std::string& path, std::shared_ptr<const checkpoint::SafetensorsFile> file)
      : path_(path), file_(std::move(file)) {}

  Weight matrix(const std::string& name, Index rows, Index columns) {
    const checkpoint::Tensor& tensor = take(name, {rows, columns});
    struct Held {  // the tensor lies in the file's memory
      std::shared_ptr<const checkpoint::SafetensorsFile> file;
      checkpoint::TensorWeights weights;
      Held(std::shared_ptr<const checkpoint::SafetensorsFile> of, const std::string& what,
           const checkpoint::Tensor& from)
          : file(std::move(of)), weights(what, from) {}
    };
    const auto held = std::make_shared<const Held>(file_, path_ + ": " + name, tensor);
    return Weight(std::shared_ptr<const checkpoint::TensorWeights>(held, &held->weights));
  }
  Vector vector(const std::string& name, Index size) {
    const checkpoint::TensorWeights weights(path_ + ": " + name, take(name, {size}));
    return gqa::detail::read_weights(name.c_str(), weights.view()).cast<float>();
  }
  /// @throws std::runtime_error if the file has tensors that nobody took: they would change what the model computes
  void finish() const {
    for (const auto& entry : file_->tensors())
      if (!taken_.contains(entry.first))
        checkpoint::bad_file(path_, entry.first + " is no tensor of such a model, as config has it");
  }

 private:
  const checkpoint::Tensor& take(const std::string& name, std::vector<Index> extents) {
    const auto found = file_->tensors().find(name);
    if (found == file_->tensors().end()) checkpoint::bad_file(path_, "has no tensor " + name);
    taken_.insert(name);
    const std::vector<std::uint64_t>& shape = found->second.shape;
    const auto text = [](const auto& numbers) {
      std::string made;
      for (const auto number : numbers) made += (made.empty() ? "" : " x ") + std::to_string(number);
      return made;
    };
    if (!std::equal(shape.begin(), shape.end(), extents.begin(), extents.end(),
                    [](std::uint64_t a, Index b) { return a == static_cast<std::uint64_t>(b); }))
      checkpoint::bad_file(path_, name + " is " + text(shape) + "; config says " + text(extents));
    return found->second;
  }

  const std::string& path_;
  std::shared_ptr<const checkpoint::SafetensorsFile> file_;
  std::set<std::string> taken_;
};

/// A member of the file's metadata, a JSON text.
inline nlohmann::json metadata(const std::string& path, const checkpoint::SafetensorsFile& file, const char* name) {
  const nlohmann::json& all = file.metadata();
  if (!all.is_object() || !all.contains(name) || !all.at(name).is_string())
    checkpoint::bad_file(path, std::string("its header has no ") + name + "; convert.py writes such files");
  // Nothing that convert.py writes is deeper than a list in an object; copies and error messages of JSON take stack for every level.
  constexpr int deepest = 8;
  bool deep = false;
  const auto shallow = [&](int depth, nlohmann::json::parse_event_t, const nlohmann::json&) {
    deep = deep || depth > deepest;
    return depth <= deepest;
  };
  nlohmann::json made = nlohmann::json::parse(all.at(name).get_ref<const std::string&>(), shallow, false);
  if (deep) checkpoint::bad_file(path, std::string(name) + " is nested more than " + std::to_string(deepest) + " deep");
  if (made.is_discarded()) checkpoint::bad_file(path, std::string(name) + " is no JSON");
  return made;
}

}  // namespace detail

/// Opens a model; its matrices stay in the file. @throws std::runtime_error that names the file and what is wrong with it
inline Weights read_weights(const std::string& path) {
  const auto file = std::make_shared<const checkpoint::SafetensorsFile>(path);
  Weights made;
  made.config = read_config(path, detail::metadata(path, *file, "config"));
  made.tokenizer = detail::metadata(path, *file, "tokenizer");
  const ModelConfig& config = made.config;
  detail::WeightReader from(path, file);
  made.embedding = from.matrix("token_embd.weight", config.vocabulary, config.dim);
  for (Index layer = 0; layer < config.layers(); ++layer) {
    const std::string in = "blk." + std::to_string(layer) + ".";
    LayerWeights& w = made.layers.emplace_back();
    w.attention_norm = from.vector(in + "attn_norm.weight", config.dim);
    w.wq = from.matrix(in + "attn_q.weight", config.query_dim(), config.dim);
    w.wk = from.matrix(in + "attn_k.weight", config.kv_dim(), config.dim);
    w.wv = from.matrix(in + "attn_v.weight", config.kv_dim(), config.dim);
    if (config.qkv_bias) {
      w.q_bias = from.vector(in + "attn_q.bias", config.query_dim());
      w.k_bias = from.vector(in + "attn_k.bias", config.kv_dim());
      w.v_bias = from.vector(in + "attn_v.bias", config.kv_dim());
    }
    if (config.qk_norm) {
      w.q_norm = from.vector(in + "attn_q_norm.weight", config.head_dim);
      w.k_norm = from.vector(in + "attn_k_norm.weight", config.head_dim);
    }
    w.wo = from.matrix(in + "attn_output.weight", config.dim, config.query_dim());
    w.feed_forward_norm = from.vector(in + "ffn_norm.weight", config.dim);
    w.gate = from.matrix(in + "ffn_gate.weight", config.hidden_dim, config.dim);
    w.up = from.matrix(in + "ffn_up.weight", config.hidden_dim, config.dim);
    w.down = from.matrix(in + "ffn_down.weight", config.dim, config.hidden_dim);
    if (config.post_norms) {
      w.post_attention_norm = from.vector(in + "post_attention_norm.weight", config.dim);
      w.post_feed_forward_norm = from.vector(in + "post_ffw_norm.weight", config.dim);
    }
  }
  made.final_norm = from.vector("output_norm.weight", config.dim);
  if (!config.tied) made.own_classifier = from.matrix("output.weight", config.vocabulary, config.dim);
  from.finish();
  return made;
}

}  // namespace llama
