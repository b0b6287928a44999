// SPDX-License-Identifier: Apache-2.0
/// @file
/// A small Llama's extents and its parameters, which lie side by side in one vector, so that optimiser, gradients and checkpoints need to
/// know nothing of layers.
#pragma once

#include <Eigen/Core>

#include <cmath>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "gqa/gqa.hpp"
#include "random.hpp"

namespace uptrain {

template <class Scalar>
using MatrixOf = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;
template <class Scalar>
using VectorOf = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

/// The extents of a decoder: RMS norm, rotary embedding, SwiGLU, no biases, a classifier of its own.
struct ModelShape {
  Index dim = 128;
  Index hidden = 352;
  Index layers = 4;
  Index query_heads = 8;
  Index kv_heads = 8;
  Index vocabulary = 256;  ///< bytes
  Index context = 128;     ///< tokens of a training sequence

  Index head_dim() const { return dim / query_heads; }
  Index kv_dim() const { return kv_heads * head_dim(); }
  /// Rows of queries, keys and values side by side.
  Index qkv_dim() const { return dim + 2 * kv_dim(); }
  /// Bytes of keys and values that a token leaves in a bf16 cache, all layers together.
  Index kv_bytes_per_token() const { return layers * 2 * kv_dim() * 2; }

  bool operator==(const ModelShape&) const = default;
};

/// @throws std::invalid_argument naming the extent that is wrong
inline void check_shape(const ModelShape& shape) {
  const auto require = [](bool good, const char* name, Index value, const std::string& expected) {
    if (!good)
      throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + "; expected " + expected);
  };
  constexpr Index most = 1 << 16;
  const auto positive = [&](const char* name, Index value) {
    require(value > 0 && value <= most, name, value, "1 to " + std::to_string(most));
  };
  positive("dim", shape.dim);
  positive("hidden", shape.hidden);
  positive("layers", shape.layers);
  positive("query heads", shape.query_heads);
  positive("KV heads", shape.kv_heads);
  positive("vocabulary", shape.vocabulary);
  positive("context", shape.context);
  require(shape.dim % (2 * shape.query_heads) == 0, "dim", shape.dim,
          "a multiple of twice the " + std::to_string(shape.query_heads) + " query heads, as RoPE turns pairs");
  require(shape.query_heads % shape.kv_heads == 0, "KV heads", shape.kv_heads,
          "a divisor of the " + std::to_string(shape.query_heads) + " query heads");
}

/// Where a tensor lies among the parameters.
struct TensorPlace {
  std::string name;
  Index offset = 0;
  Index rows = 0;
  Index columns = 1;
  bool is_matrix = true;  ///< else a norm's gains, which start at 1 and do not decay
  float spread = 0;       ///< standard deviation of a matrix's first values

  Index size() const { return rows * columns; }
};

/// Places of all parameters: of each layer six tensors, then embedding, final norm, classifier.
inline std::vector<TensorPlace> tensor_places(const ModelShape& shape) {
  std::vector<TensorPlace> places;
  Index offset = 0;
  const auto add = [&](std::string name, Index rows, Index columns, float spread) {
    places.push_back({std::move(name), offset, rows, columns, columns > 1, spread});
    offset += rows * columns;
  };
  const auto by_inputs = [](Index inputs) { return 1.0f / std::sqrt(static_cast<float>(inputs)); };
  const float into_residual = by_inputs(2 * shape.layers);  // 2 additions a layer: their sum keeps its size
  for (Index layer = 0; layer < shape.layers; ++layer) {
    const std::string in = "layer " + std::to_string(layer) + " ";
    add(in + "attention norm", shape.dim, 1, 0);
    add(in + "qkv", shape.qkv_dim(), shape.dim, by_inputs(shape.dim));
    add(in + "o", shape.dim, shape.dim, into_residual * by_inputs(shape.dim));
    add(in + "feed-forward norm", shape.dim, 1, 0);
    add(in + "gate and up", 2 * shape.hidden, shape.dim, by_inputs(shape.dim));
    add(in + "down", shape.dim, shape.hidden, into_residual * by_inputs(shape.hidden));
  }
  add("embedding", shape.dim, shape.vocabulary, 0.25f);
  add("final norm", shape.dim, 1, 0);
  add("classifier", shape.vocabulary, shape.dim, 0.5f * by_inputs(shape.dim));
  return places;
}

/// Parameters of a shape, all tensors together.
inline Index parameter_count(const ModelShape& shape) {
  const TensorPlace last = tensor_places(shape).back();
  return last.offset + last.size();
}

/// A layer's tensors, of parameters or of their gradient. `Scalar` may be const.
template <class Scalar>
struct LayerViews {
  template <class Plain>
  using Map = Eigen::Map<std::conditional_t<std::is_const_v<Scalar>, const Plain, Plain>>;
  using Matrix = Map<MatrixOf<std::remove_const_t<Scalar>>>;
  using Vector = Map<VectorOf<std::remove_const_t<Scalar>>>;

  Vector attention_norm;     ///< dim
  Matrix qkv;                ///< (Hq + 2 Hkv)·D × dim: queries, keys, values
  Matrix o;                  ///< dim × Hq·D
  Vector feed_forward_norm;  ///< dim
  Matrix gate_up;            ///< 2·hidden × dim
  Matrix down;               ///< dim × hidden
};

/// All tensors of a model.
template <class Scalar>
struct ModelViews {
  using Matrix = typename LayerViews<Scalar>::Matrix;
  using Vector = typename LayerViews<Scalar>::Vector;

  std::vector<LayerViews<Scalar>> layers;
  Matrix embedding;   ///< dim × vocabulary, a column a token
  Vector final_norm;  ///< dim
  Matrix classifier;  ///< vocabulary × dim

  /// @param values parameter_count(shape) of them
  ModelViews(Scalar* values, const ModelShape& shape)
      : embedding(nullptr, 0, 0), final_norm(nullptr, 0), classifier(nullptr, 0, 0) {
    const std::vector<TensorPlace> places = tensor_places(shape);
    std::size_t next = 0;
    const auto matrix = [&] {
      const TensorPlace& place = places[next++];
      return Matrix(values + place.offset, place.rows, place.columns);
    };
    const auto vector = [&] {
      const TensorPlace& place = places[next++];
      return Vector(values + place.offset, place.rows);
    };
    layers.reserve(static_cast<std::size_t>(shape.layers));
    for (Index layer = 0; layer < shape.layers; ++layer) {  // braces: evaluated from left to right
      layers.push_back(LayerViews<Scalar>{vector(), matrix(), matrix(), vector(), matrix(), matrix()});
    }
    new (&embedding) Matrix(matrix());
    new (&final_norm) Vector(vector());
    new (&classifier) Matrix(matrix());
  }
};

/// A model: its shape and its parameters.
template <class Scalar>
struct ModelOf {
  ModelShape shape;
  VectorOf<Scalar> values;

  ModelViews<const Scalar> views() const { return ModelViews<const Scalar>(values.data(), shape); }
  ModelViews<Scalar> views() { return ModelViews<Scalar>(values.data(), shape); }
};
using Model = ModelOf<float>;

/// First parameters: gains of 1, matrices evenly distributed around 0. A function of shape and seed alone.
inline Model initial_model(const ModelShape& shape, std::uint64_t seed) {
  check_shape(shape);
  Model model{shape, Eigen::VectorXf::Ones(parameter_count(shape))};
  for (const TensorPlace& place : tensor_places(shape)) {
    if (!place.is_matrix) continue;
    const float most = place.spread * 1.7320508f;  // an even distribution's end is √3 deviations away
    for (Index i = place.offset; i < place.offset + place.size(); ++i)
      model.values[i] = most * random_signed(random_bits(seed, Purpose::parameters, 0, static_cast<std::uint64_t>(i)));
  }
  return model;
}

}  // namespace uptrain
