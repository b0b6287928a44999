// SPDX-License-Identifier: Apache-2.0
/// @file
/// The weights of a small Llama and the file they come in: llama2.c's legacy layout, which is
///
///     seven int32   dim, hidden dim, layers, query heads, KV heads, vocabulary (negative: own classifier), longest sequence
///     f32 arrays    token embedding; then, each for all layers: attention norm, wq, wk, wv, wo, feed-forward norm, w1, w2, w3;
///                   final norm; two RoPE tables that nobody reads; the classifier, unless it is the embedding
///
/// Matrices lie row by row, a row per output. Little endian.
#pragma once

#include <Eigen/Core>

#include <array>
#include <bit>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "gqa/gqa.hpp"

namespace stories {

using gqa::Index;

/// outputs × inputs, as in the file.
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Vector = Eigen::VectorXf;

/// The extents of a Llama.
struct ModelShape {
  Index dim = 0;
  Index hidden_dim = 0;
  Index layers = 0;
  Index query_heads = 0;
  Index kv_heads = 0;
  Index vocabulary = 0;
  Index max_length = 0;  ///< longest sequence that the model was trained for, in tokens

  Index head_dim() const { return dim / query_heads; }
  Index kv_dim() const { return kv_heads * head_dim(); }
};

/// One layer.
struct LayerWeights {
  Vector attention_norm;     ///< dim
  Matrix wq;                 ///< Hq·D × dim
  Matrix wk;                 ///< Hkv·D × dim
  Matrix wv;                 ///< Hkv·D × dim
  Matrix wo;                 ///< dim × Hq·D
  Vector feed_forward_norm;  ///< dim
  Matrix w1;                 ///< hidden × dim, the gate
  Matrix w2;                 ///< dim × hidden, back down
  Matrix w3;                 ///< hidden × dim, up
};

/// A whole model.
struct Weights {
  ModelShape shape;
  Matrix embedding;  ///< vocabulary × dim
  std::vector<LayerWeights> layers;
  Vector final_norm;      ///< dim
  Matrix own_classifier;  ///< vocabulary × dim; empty: the embedding serves

  const Matrix& classifier() const { return own_classifier.size() == 0 ? embedding : own_classifier; }
};

namespace detail {

[[noreturn]] inline void bad_file(const std::string& path, const std::string& what) {
  throw std::runtime_error(path + ": " + what);
}

/// Bytes of the file at `path`. @throws std::runtime_error if there is none.
inline std::uint64_t file_bytes(const std::string& path) {
  std::error_code error;
  const std::uint64_t bytes = std::filesystem::file_size(path, error);
  if (error) bad_file(path, error.message());
  return bytes;
}

template <class Tensor>
void read_into(std::ifstream& file, const std::string& path, Tensor& tensor) {
  const auto bytes = static_cast<std::streamsize>(tensor.size()) * static_cast<std::streamsize>(sizeof(float));
  if (!file.read(reinterpret_cast<char*>(tensor.data()), bytes)) bad_file(path, "cannot be read to its end");
}

/// Floats in the file after its header.
inline std::uint64_t float_count(const ModelShape& shape, bool own_classifier) {
  const auto count = [](Index rows, Index columns = 1) {
    return static_cast<std::uint64_t>(rows) * static_cast<std::uint64_t>(columns);
  };
  const std::uint64_t layer = count(shape.dim, 2) + count(shape.dim, shape.dim) * 2 +
                              count(shape.kv_dim(), shape.dim) * 2 + count(shape.hidden_dim, shape.dim) * 3;
  const std::uint64_t table = count(shape.vocabulary, shape.dim);
  return table + static_cast<std::uint64_t>(shape.layers) * layer + count(shape.dim) +
         count(shape.max_length, shape.head_dim()) + (own_classifier ? table : 0);
}

}  // namespace detail

/// Reads a model. @throws std::runtime_error that names the file and what is wrong with it.
inline Weights read_weights(const std::string& path) {
  static_assert(std::endian::native == std::endian::little, "the file is read as it lies: little endian");
  const std::uint64_t bytes = detail::file_bytes(path);
  std::ifstream file(path, std::ios::binary);
  std::array<std::int32_t, 7> header{};
  if (!file.read(reinterpret_cast<char*>(header.data()), sizeof(header)))
    detail::bad_file(path, "is " + std::to_string(bytes) + " bytes; a model starts with a header of 28");

  const bool own_classifier = header[5] < 0;
  if (own_classifier && header[5] != INT32_MIN) header[5] = -header[5];
  constexpr std::array names{"dim",      "hidden dim", "layers",          "query heads",
                             "KV heads", "vocabulary", "longest sequence"};
  for (std::size_t i = 0; i < header.size(); ++i)
    if (header[i] < 1 || header[i] > (1 << 20))  // so that no product below overflows
      detail::bad_file(path, std::string("header: ") + names[i] + " is " + std::to_string(header[i]) +
                                 "; expected 1 … 1048576. Not a model in llama2.c's legacy layout?");
  Weights weights;
  ModelShape& shape = weights.shape;
  shape = {header[0], header[1], header[2], header[3], header[4], header[5], header[6]};
  if (shape.dim % (2 * shape.query_heads) != 0)
    detail::bad_file(path, "header: dim " + std::to_string(shape.dim) + " is not a multiple of twice the " +
                               std::to_string(shape.query_heads) + " query heads (RoPE turns pairs)");
  if (shape.query_heads % shape.kv_heads != 0)
    detail::bad_file(path, "header: " + std::to_string(shape.kv_heads) + " KV heads do not divide " +
                               std::to_string(shape.query_heads) + " query heads");
  const std::uint64_t expected = sizeof(header) + sizeof(float) * detail::float_count(shape, own_classifier);
  if (bytes != expected)
    detail::bad_file(path, "is " + std::to_string(bytes) + " bytes; its header asks for " + std::to_string(expected));

  const auto read = [&](auto& tensor) { detail::read_into(file, path, tensor); };
  weights.embedding.resize(shape.vocabulary, shape.dim);
  read(weights.embedding);
  weights.layers.resize(static_cast<std::size_t>(shape.layers));
  const auto read_vectors = [&](Vector LayerWeights::*member) {
    for (LayerWeights& layer : weights.layers) {
      (layer.*member).resize(shape.dim);
      read(layer.*member);
    }
  };
  const auto read_matrices = [&](Matrix LayerWeights::*member, Index rows, Index columns) {
    for (LayerWeights& layer : weights.layers) {
      (layer.*member).resize(rows, columns);
      read(layer.*member);
    }
  };
  read_vectors(&LayerWeights::attention_norm);
  read_matrices(&LayerWeights::wq, shape.dim, shape.dim);
  read_matrices(&LayerWeights::wk, shape.kv_dim(), shape.dim);
  read_matrices(&LayerWeights::wv, shape.kv_dim(), shape.dim);
  read_matrices(&LayerWeights::wo, shape.dim, shape.dim);
  read_vectors(&LayerWeights::feed_forward_norm);
  read_matrices(&LayerWeights::w1, shape.hidden_dim, shape.dim);
  read_matrices(&LayerWeights::w2, shape.dim, shape.hidden_dim);
  read_matrices(&LayerWeights::w3, shape.hidden_dim, shape.dim);
  weights.final_norm.resize(shape.dim);
  read(weights.final_norm);
  if (own_classifier) {
    const auto rope_tables = shape.max_length * shape.head_dim() * static_cast<Index>(sizeof(float));
    file.seekg(rope_tables, std::ios::cur);
    weights.own_classifier.resize(shape.vocabulary, shape.dim);
    read(weights.own_classifier);
  }
  return weights;
}

/// The same model with another number of KV heads.
///
/// More heads (a multiple of the model's, and a divisor of the query heads): each KV head is repeated, which changes no query
/// head's keys and values; with as many as query heads this is standard multi-head attention. Fewer heads (a divisor of the
/// model's): neighbouring heads' projections are averaged, which is where the authors of grouped-query attention *start*
/// uptraining from; without it the model gets worse.
/// @throws std::invalid_argument if `kv_heads` is neither
inline Weights with_kv_heads(Weights weights, Index kv_heads) {
  const ModelShape from = weights.shape;
  const bool repeat = kv_heads > 0 && kv_heads % from.kv_heads == 0 && from.query_heads % kv_heads == 0;
  const bool pool = kv_heads > 0 && from.kv_heads % kv_heads == 0;
  if (!repeat && !pool)
    throw std::invalid_argument("KV heads: " + std::to_string(kv_heads) + "; expected a divisor of the model's " +
                                std::to_string(from.kv_heads) + ", or a multiple that divides its " +
                                std::to_string(from.query_heads) + " query heads");
  weights.shape.kv_heads = kv_heads;
  const Index width = from.head_dim();
  const auto convert = [&](const Matrix& old) {
    Matrix made = Matrix::Zero(kv_heads * width, from.dim);
    for (Index head = 0; head < kv_heads; ++head) {
      auto block = made.middleRows(head * width, width);
      if (repeat) {
        block = old.middleRows(head * from.kv_heads / kv_heads * width, width);
      } else {
        const Index group = from.kv_heads / kv_heads;
        for (Index i = 0; i < group; ++i) block += old.middleRows((head * group + i) * width, width);
        block /= static_cast<float>(group);
      }
    }
    return made;
  };
  for (LayerWeights& layer : weights.layers) {
    layer.wk = convert(layer.wk);
    layer.wv = convert(layer.wv);
  }
  return weights;
}

}  // namespace stories
