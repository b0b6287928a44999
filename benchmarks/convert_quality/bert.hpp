// SPDX-License-Identifier: Apache-2.0
/// @file
/// A BERT encoder (Hugging Face's names) by its layers, and the sentence embeddings of MiniLM: the mean over the tokens, of length 1.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "../../examples/convert_checkpoint/checkpoint.hpp"
#include "../../examples/convert_checkpoint/network.hpp"

namespace quality {

using namespace checkpoint;

/// Each token less its mean, over its deviation, times gain, plus shift.
inline void layer_norm(Eigen::MatrixXf& x, const Eigen::VectorXf& gain, const Eigen::VectorXf& shift, float epsilon) {
  x.rowwise() -= x.colwise().mean().eval();
  const Eigen::RowVectorXf scale = (x.colwise().squaredNorm().array() / static_cast<float>(x.rows()) + epsilon).rsqrt();
  x = ((gain.asDiagonal() * x) * scale.asDiagonal()).colwise() + shift;
}

struct BertBlock : Block {
  float epsilon = 1e-12f;
  Eigen::VectorXf attention_gain, attention_shift, output_gain, output_shift;
  Eigen::MatrixXf up, down;
  Eigen::VectorXf up_bias, down_bias;

  Hidden inputs(const Hidden& x) const override { return x; }
  /// x ← norm(x); x ← norm(x + down·gelu(up·x)).
  void finish(Hidden& x) const override {
    for (Eigen::MatrixXf& sequence : x) {
      layer_norm(sequence, attention_gain, attention_shift, epsilon);
      Eigen::MatrixXf inner = (up * sequence).colwise() + up_bias;
      for (float& value : inner.reshaped()) value = 0.5f * value * (1 + std::erf(value * 0.70710678f));
      sequence += down * inner;
      sequence.colwise() += down_bias;
      layer_norm(sequence, output_gain, output_shift, epsilon);
    }
  }
};

class BertEncoder : public Network {
 public:
  explicit BertEncoder(const std::string& folder) : folder_(folder), file_(folder + "/model.safetensors") {
    const ModelConfig config = read_config(folder + "/config.json");
    heads_ = config.heads;
    layers_ = config.layers;
    form_.causal = false;
  }
  Index layers() const override { return layers_; }
  const gqa::AttentionForm& form() const override { return form_; }
  gqa::AttentionWeights attention(Index layer) const override {
    const std::string in = "encoder.layer." + std::to_string(layer) + ".attention.";
    gqa::AttentionWeights made;
    made.shape = heads_;
    made.q = matrix(in + "self.query.weight");
    made.k = matrix(in + "self.key.weight");
    made.v = matrix(in + "self.value.weight");
    made.o = matrix(in + "output.dense.weight");
    made.q_bias = matrix(in + "self.query.bias");
    made.k_bias = matrix(in + "self.key.bias");
    made.v_bias = matrix(in + "self.value.bias");
    made.o_bias = matrix(in + "output.dense.bias");
    return made;
  }
  std::unique_ptr<Block> block(Index layer) const override {
    const std::string in = "encoder.layer." + std::to_string(layer) + ".";
    auto made = std::make_unique<BertBlock>();
    made->attention_gain = vector(in + "attention.output.LayerNorm.weight");
    made->attention_shift = vector(in + "attention.output.LayerNorm.bias");
    made->output_gain = vector(in + "output.LayerNorm.weight");
    made->output_shift = vector(in + "output.LayerNorm.bias");
    made->up = matrix(in + "intermediate.dense.weight").cast<float>();
    made->up_bias = vector(in + "intermediate.dense.bias");
    made->down = matrix(in + "output.dense.weight").cast<float>();
    made->down_bias = vector(in + "output.dense.bias");
    return made;
  }
  Hidden embed(const Sequences& tokens) const override {
    Hidden x = rows_of(matrix("embeddings.word_embeddings.weight").cast<float>(), tokens);
    const Eigen::MatrixXf place = matrix("embeddings.position_embeddings.weight").cast<float>().transpose();
    const Eigen::VectorXf type = matrix("embeddings.token_type_embeddings.weight").row(0).transpose().cast<float>();
    for (Eigen::MatrixXf& sequence : x) {
      sequence += place.leftCols(sequence.cols());
      sequence.colwise() += type;
      layer_norm(sequence, vector("embeddings.LayerNorm.weight"), vector("embeddings.LayerNorm.bias"), 1e-12f);
    }
    return x;
  }

 private:
  Eigen::MatrixXd matrix(const std::string& name) const {
    const auto found = file_.tensors().find(name);
    if (found == file_.tensors().end()) bad_file(folder_, "has no tensor " + name);
    return gqa::detail::read_weights(name.c_str(), TensorWeights(name, found->second).view());
  }
  Eigen::VectorXf vector(const std::string& name) const { return matrix(name).col(0).cast<float>(); }

  std::string folder_;
  SafetensorsFile file_;
  gqa::HeadShape heads_;
  Index layers_ = 0;
  gqa::AttentionForm form_;
};

/// dim × sequences, columns of length 1.
inline Eigen::MatrixXd embeddings(const Hidden& x) {
  Eigen::MatrixXd made(x.front().rows(), static_cast<Index>(x.size()));
  for (std::size_t i = 0; i < x.size(); ++i)
    made.col(static_cast<Index>(i)) = x[i].cast<double>().rowwise().mean().normalized();
  return made;
}

/// How alike two models' embeddings of the same texts are.
struct Agreement {
  double cosine = 1;       ///< mean cosine of a text's two embeddings
  double correlation = 1;  ///< of the similarities of all pairs of texts (Pearson)
};
inline Agreement agreement(const Eigen::MatrixXd& a, const Eigen::MatrixXd& b) {
  Agreement made;
  made.cosine = a.cwiseProduct(b).colwise().sum().mean();
  const Eigen::MatrixXd x = a.transpose() * a, y = b.transpose() * b;
  double n = 0, sx = 0, sy = 0, sxx = 0, syy = 0, sxy = 0;
  for (Index j = 0; j < x.cols(); ++j)
    for (Index i = 0; i < j; ++i) {
      ++n, sx += x(i, j), sy += y(i, j), sxx += x(i, j) * x(i, j), syy += y(i, j) * y(i, j), sxy += x(i, j) * y(i, j);
    }
  made.correlation = (n * sxy - sx * sy) / std::sqrt((n * sxx - sx * sx) * (n * syy - sy * sy));
  return made;
}

}  // namespace quality
