// SPDX-License-Identifier: Apache-2.0
// Small random models of the architectures that examples/llama runs, as files, and their forward pass once more in double precision, written
// from the definitions and sharing nothing with the example but the weights.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <Eigen/Core>
#include <cmath>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "../../examples/convert_checkpoint/writer.hpp"
#include "gqa/element.hpp"

namespace gqa::test {

/// A model: what convert.py would have written of it.
struct TinyLlama {
  nlohmann::json config;
  std::map<std::string, Eigen::MatrixXf> tensors;  ///< outputs × inputs, or a column

  Eigen::MatrixXd at(const std::string& name) const { return tensors.at(name).cast<double>(); }
  Eigen::MatrixXd at(int layer, const std::string& name) const {
    return at("blk." + std::to_string(layer) + "." + name);
  }
  double number(const char* name) const { return config.at(name).get<double>(); }
  Index extent(const char* name) const { return config.at(name).get<Index>(); }
};

/// @param architecture llama (interleaved pairs), llama3 (the same with divisors of frequencies and a classifier of its own), qwen2 (biases, a
///                     classifier of its own) or gemma3 (QK-norm, norms after, windows of 5 in two of three layers, a base for these, GeGLU,
///                     scaled embeddings)
inline TinyLlama tiny_llama(const std::string& architecture) {
  const bool qwen = architecture == "qwen2", gemma = architecture == "gemma3", llama3 = architecture == "llama3";
  const Index layers = 3, dim = qwen ? 42 : 24, hidden = 40,
              heads = qwen    ? 7
                      : gemma ? 4
                              : 6,
              kv_heads = gemma || qwen ? 1 : 2,
              head_dim = qwen    ? 6
                         : gemma ? 16
                                 : 4,
              vocabulary = 37;
  TinyLlama made;
  made.config = {{"architecture", architecture},
                 {"dim", dim},
                 {"hidden_dim", hidden},
                 {"layers", layers},
                 {"query_heads", heads},
                 {"kv_heads", kv_heads},
                 {"head_dim", head_dim},
                 {"vocabulary", vocabulary},
                 {"max_length", 1000000000},
                 {"norm_epsilon", 1e-5},
                 {"attention_scale", 1 / std::sqrt(static_cast<double>(head_dim))},
                 {"embedding_scale", gemma ? std::sqrt(static_cast<double>(dim)) : 1.0},
                 {"activation", gemma ? "gelu_tanh" : "silu"},
                 {"rope_pairs", qwen || gemma ? "half_split" : "interleaved"},
                 {"rope_dims", head_dim},
                 {"qkv_bias", qwen},
                 {"qk_norm", gemma},
                 {"post_norms", gemma},
                 {"tied", !qwen && !llama3},
                 {"chat", "none"},
                 {"windows", gemma ? std::vector{5, 5, 0} : std::vector{0, 0, 0}},
                 {"rope_bases", gemma ? std::vector{100.0, 100.0, 1e4} : std::vector{1e4, 1e4, 1e4}},
                 {"rope_factors", gemma    ? std::vector{1.0, 1.0, 8.0}
                                  : llama3 ? std::vector{1.0, 2.0, 1.0}
                                           : std::vector{1.0, 1.0, 1.0}}};
  if (llama3) made.config["rope_divisors"] = {1.5, 8.0};
  std::mt19937 bits(7);
  const auto uniform = [&](double from, double to) {  // the same numbers with every standard library
    return static_cast<float>(from + (to - from) * static_cast<double>(bits()) / 4294967296.0);
  };
  const auto add = [&](const std::string& name, Index rows, Index columns, double from, double to) {
    Eigen::MatrixXf& tensor = made.tensors[name];
    tensor.resize(rows, columns);
    for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] = uniform(from, to);
  };
  const auto matrix = [&](const std::string& name, Index rows, Index columns) {
    const double most = std::sqrt(3.0 / static_cast<double>(columns));
    add(name, rows, columns, -most, most);
  };
  matrix("token_embd.weight", vocabulary, dim);
  add("output_norm.weight", dim, 1, 0.5, 1.5);
  if (qwen || llama3) matrix("output.weight", vocabulary, dim);
  for (Index layer = 0; layer < layers; ++layer) {
    const std::string in = "blk." + std::to_string(layer) + ".";
    for (const char* norm : {"attn_norm", "ffn_norm"}) add(in + norm + ".weight", dim, 1, 0.5, 1.5);
    matrix(in + "attn_q.weight", heads * head_dim, dim);
    matrix(in + "attn_k.weight", kv_heads * head_dim, dim);
    matrix(in + "attn_v.weight", kv_heads * head_dim, dim);
    matrix(in + "attn_output.weight", dim, heads * head_dim);
    matrix(in + "ffn_gate.weight", hidden, dim);
    matrix(in + "ffn_up.weight", hidden, dim);
    matrix(in + "ffn_down.weight", dim, hidden);
    if (qwen) {
      add(in + "attn_q.bias", heads * head_dim, 1, -1, 1);
      add(in + "attn_k.bias", kv_heads * head_dim, 1, -1, 1);
      add(in + "attn_v.bias", kv_heads * head_dim, 1, -1, 1);
    }
    if (gemma) {
      for (const char* norm : {"post_attention_norm", "post_ffw_norm"}) add(in + norm + ".weight", dim, 1, 0.5, 1.5);
      for (const char* norm : {"attn_q_norm", "attn_k_norm"}) add(in + norm + ".weight", head_dim, 1, 0.5, 1.5);
    }
  }
  return made;
}

/// Writes it as convert.py does. @param type of matrices; vectors are f32 @return the file's path, one of this process
inline std::string write_llama(const TinyLlama& model, const std::string& name, ElementType type = ElementType::f32) {
  const std::string path = testing::TempDir() + "gqa_llama_" + std::to_string(::getpid()) + "_" + name + ".safetensors";
  std::map<std::string, checkpoint::SafetensorsWriter::Entry> entries;
  for (const auto& [tensor, values] : model.tensors) {
    std::vector<std::uint64_t> shape{static_cast<std::uint64_t>(values.rows())};
    if (values.cols() > 1) shape.push_back(static_cast<std::uint64_t>(values.cols()));
    entries[tensor] = {values.cols() == 1 || type == ElementType::f32 ? "F32"
                       : type == ElementType::bf16                    ? "BF16"
                                                                      : "F16",
                       shape};
  }
  const nlohmann::json tokenizer = {{"kind", "spm"}, {"tokens", {"a"}}};  // not looked at here
  checkpoint::SafetensorsWriter writer(path, entries,
                                       {{"config", model.config.dump()}, {"tokenizer", tokenizer.dump()}});
  for (const auto& [tensor, values] : model.tensors) {
    const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rows = values;
    const std::span numbers(rows.data(), static_cast<std::size_t>(rows.size()));
    if (entries.at(tensor).dtype == "BF16") {
      const std::vector<bf16> rounded(numbers.begin(), numbers.end());
      writer.write(tensor, std::as_bytes(std::span(rounded)));
    } else if (entries.at(tensor).dtype == "F16") {
      const std::vector<f16> rounded(numbers.begin(), numbers.end());
      writer.write(tensor, std::as_bytes(std::span(rounded)));
    } else {
      writer.write(tensor, std::as_bytes(numbers));
    }
  }
  writer.commit();
  return path;
}

/// Logits in double precision.
class TinyReference {
 public:
  explicit TinyReference(const TinyLlama& model) : m_(model) {}

  /// vocabulary × tokens
  Eigen::MatrixXd logits(const std::vector<int>& tokens) const {
    const auto count = static_cast<Index>(tokens.size());
    Eigen::MatrixXd x(m_.extent("dim"), count);
    for (Index t = 0; t < count; ++t)
      x.col(t) = m_.at("token_embd.weight").row(tokens[static_cast<std::size_t>(t)]).transpose() *
                 m_.number("embedding_scale");
    for (int layer = 0; layer < m_.extent("layers"); ++layer) {
      x += after(layer, "post_attention_norm",
                 m_.at(layer, "attn_output.weight") * attention(layer, normed(x, m_.at(layer, "attn_norm.weight"))));
      const Eigen::MatrixXd input = normed(x, m_.at(layer, "ffn_norm.weight"));
      const Eigen::MatrixXd gate = (m_.at(layer, "ffn_gate.weight") * input).unaryExpr([&](double g) {
        return m_.config.at("activation") == "silu"
                   ? g / (1 + std::exp(-g))
                   : g / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g)));
      });
      const Eigen::MatrixXd up = m_.at(layer, "ffn_up.weight") * input;
      x += after(layer, "post_ffw_norm", m_.at(layer, "ffn_down.weight") * gate.cwiseProduct(up));
    }
    return m_.at(m_.config.at("tied").get<bool>() ? "token_embd.weight" : "output.weight") *
           normed(x, m_.at("output_norm.weight"));
  }

 private:
  Eigen::MatrixXd normed(const Eigen::MatrixXd& x, const Eigen::VectorXd& gain) const {
    Eigen::MatrixXd made = x;
    for (Index t = 0; t < x.cols(); ++t)
      made.col(t) = x.col(t).cwiseProduct(gain) /
                    std::sqrt(x.col(t).squaredNorm() / static_cast<double>(x.rows()) + m_.number("norm_epsilon"));
    return made;
  }
  Eigen::MatrixXd after(int layer, const std::string& norm, const Eigen::MatrixXd& x) const {
    return m_.config.at("post_norms").get<bool>() ? normed(x, m_.at(layer, norm + ".weight")) : x;
  }
  /// weight · x + bias, as heads: head dim × (tokens · heads), normalised and turned if asked for.
  Eigen::MatrixXd heads(int layer, const std::string& name, const Eigen::MatrixXd& x, bool keys_or_queries) const {
    Eigen::MatrixXd flat = m_.at(layer, name + ".weight") * x;
    if (m_.config.at("qkv_bias").get<bool>()) flat.colwise() += Eigen::VectorXd(m_.at(layer, name + ".bias"));
    const Index width = m_.extent("head_dim"), count = flat.rows() / width;
    Eigen::MatrixXd made = Eigen::Map<Eigen::MatrixXd>(flat.data(), width, flat.size() / width);
    if (!keys_or_queries) return made;
    if (m_.config.at("qk_norm").get<bool>()) made = normed(made, m_.at(layer, name + "_norm.weight"));
    const double base = m_.config.at("rope_bases").at(static_cast<std::size_t>(layer)).get<double>();
    const double factor = m_.config.at("rope_factors").at(static_cast<std::size_t>(layer)).get<double>();
    const bool halves = m_.config.at("rope_pairs") == "half_split";
    for (Index column = 0; column < made.cols(); ++column)
      for (Index pair = 0; pair < width / 2; ++pair) {
        const double divisor = m_.config.contains("rope_divisors")
                                   ? m_.config.at("rope_divisors").at(static_cast<std::size_t>(pair)).get<double>()
                                   : 1;
        const double angle = static_cast<double>(column / count) / (factor * divisor) *
                             std::pow(base, -2.0 * static_cast<double>(pair) / static_cast<double>(width));
        double& a = made(halves ? pair : 2 * pair, column);
        double& b = made(halves ? pair + width / 2 : 2 * pair + 1, column);
        const double turned = a * std::cos(angle) - b * std::sin(angle);
        b = a * std::sin(angle) + b * std::cos(angle);
        a = turned;
      }
    return made;
  }
  Eigen::MatrixXd attention(int layer, const Eigen::MatrixXd& x) const {
    const Index hq = m_.extent("query_heads"), hkv = m_.extent("kv_heads"), width = m_.extent("head_dim");
    const Eigen::MatrixXd q = heads(layer, "attn_q", x, true), k = heads(layer, "attn_k", x, true),
                          v = heads(layer, "attn_v", x, false);
    const Index window = m_.config.at("windows").at(static_cast<std::size_t>(layer)).get<Index>();
    Eigen::MatrixXd made(hq * width, x.cols());
    for (Index t = 0; t < x.cols(); ++t)
      for (Index head = 0; head < hq; ++head) {
        Eigen::VectorXd sum = Eigen::VectorXd::Zero(width);
        double weights = 0;
        for (Index s = window == 0 ? 0 : std::max<Index>(0, t - window + 1); s <= t; ++s) {
          const Index kv = s * hkv + head / (hq / hkv);
          const double weight = std::exp(q.col(t * hq + head).dot(k.col(kv)) * m_.number("attention_scale"));
          weights += weight;
          sum += weight * v.col(kv);
        }
        made.col(t).segment(head * width, width) = sum / weights;
      }
    return made;
  }

  const TinyLlama& m_;
};

}  // namespace gqa::test
