// SPDX-License-Identifier: Apache-2.0
/// @file
/// Weights where they lie: strided views of f32, bf16 and f16 matrices, read into double precision and written back. Needs Eigen.
#pragma once

#include <Eigen/Core>
#include <bit>
#include <cmath>
#include <string>
#include <type_traits>

#include "gqa/convert/weights.hpp"
#include "gqa/eigen.hpp"
#include "gqa/tensor_view.hpp"

namespace gqa {

/// A view of `rows × columns` weights of type f32, bf16 or f16; a bias has one column. Owns nothing; plain data, free to copy;
/// checked where it is used. `data` null means that there is no such tensor, which only biases may say.
/// @tparam Data `const void` to read from, `void` to write to
template <class Data>
struct BasicWeightView {
  Data* data = nullptr;
  ElementType type = ElementType::f32;
  Index rows = 0;
  Index columns = 1;
  Index row_stride = 0;     ///< elements from one row to the next; any sign
  Index column_stride = 1;  ///< elements from one column to the next; any sign

  BasicWeightView() = default;

  /// Packed, row after row; or any strides, in elements.
  template <detail::ElementOf<Data> T>
  GQA_ALWAYS_INLINE BasicWeightView(T* elements, Index row_count, Index column_count)
      : BasicWeightView(elements, row_count, column_count, column_count, 1) {}
  template <detail::ElementOf<Data> T>
  GQA_ALWAYS_INLINE BasicWeightView(T* elements, Index row_count, Index column_count, Index row_step, Index column_step)
      : data(elements),
        type(ElementTraits<std::remove_cv_t<T>>::type),
        rows(row_count),
        columns(column_count),
        row_stride(row_step),
        column_stride(column_step) {}

  /// What can be written can be read.
  GQA_ALWAYS_INLINE operator BasicWeightView<const void>() const noexcept requires(!std::is_const_v<Data>) {
    BasicWeightView<const void> view;
    view.data = data;
    view.type = type;
    view.rows = rows;
    view.columns = columns;
    view.row_stride = row_stride;
    view.column_stride = column_stride;
    return view;
  }
};

using ConstWeightView = BasicWeightView<const void>;
using WeightView = BasicWeightView<void>;

/// The weights of a layer where they lie; shapes as in AttentionWeights. A view that is not set (data null): no such bias.
template <class Data>
struct BasicAttentionWeightViews {
  BasicWeightView<Data> q{}, k{}, v{}, o{};
  BasicWeightView<Data> q_bias{}, k_bias{}, v_bias{}, o_bias{};
};

using ConstAttentionWeightViews = BasicAttentionWeightViews<const void>;
using AttentionWeightViews = BasicAttentionWeightViews<void>;

/// View of an Eigen matrix, map, block or transpose of f32 or of Eigen's 16-bit types. (MatrixXd needs no view: it is assigned to
/// a member of AttentionWeights.) Copies nothing.
template <EigenStorage M>
GQA_ALWAYS_INLINE auto weight_view(M&& matrix) {
  using Pointer = decltype(matrix.data());
  using Data = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const void, void>;
  return BasicWeightView<Data>(matrix.data(), matrix.rows(), matrix.cols(), detail::row_step(matrix),
                               detail::column_step(matrix));
}

namespace detail::inline GQA_ABI {

template <class Data>
void check_weight_view(const std::string& name, const BasicWeightView<Data>& view, bool written) {
  constexpr Index most = Index{1} << 28;
  if (view.type > ElementType::f16)
    fail(name + ".type", static_cast<Index>(view.type), "ElementType::f32, bf16 or f16");
  if (view.data == nullptr)
    fail(name + ".data", "null", "a pointer to " + std::string(element_name(view.type)) + " elements");
  if (reinterpret_cast<std::uintptr_t>(view.data) % static_cast<std::uintptr_t>(element_bytes(view.type)) != 0)
    fail(name + ".data", "misaligned", "an address that is a multiple of " + std::to_string(element_bytes(view.type)));
  if (view.rows < 1 || view.rows > most) fail(name + ".rows", view.rows, "1 to " + std::to_string(most));
  if (view.columns < 1 || view.columns > most) fail(name + ".columns", view.columns, "1 to " + std::to_string(most));
  const auto check_stride = [&](const char* member, Index stride) {
    if (stride < -most || stride > most)
      fail(name + member, stride, "within " + std::to_string(-most) + " to " + std::to_string(most));
  };
  check_stride(".row_stride", view.row_stride);
  check_stride(".column_stride", view.column_stride);
  if (!written) return;
  const Index across = std::abs(view.column_stride), down = std::abs(view.row_stride);
  const bool apart = view.columns == 1 ? view.rows == 1 || down > 0
                     : view.rows == 1  ? across > 0
                     : across <= down  ? across > 0 && down > (view.columns - 1) * across
                                       : down > 0 && across > (view.rows - 1) * down;
  if (!apart)
    fail(name + ".row_stride", "{" + std::to_string(view.row_stride) + ", " + std::to_string(view.column_stride) + "}",
         "strides that give every (row, column) an element of its own");
}

inline double weight_at(const ConstWeightView& view, Index row, Index column) {
  const Index at = row * view.row_stride + column * view.column_stride;
  if (view.type == ElementType::f32) return static_cast<double>(static_cast<const float*>(view.data)[at]);
  const std::uint16_t bits = static_cast<const std::uint16_t*>(view.data)[at];
  return static_cast<double>(view.type == ElementType::bf16 ? float_from_bf16(bits) : float_from_f16(bits));
}

/// An f32 that rounds to a 16-bit type as `value` itself would: of the two neighbours of an inexact value the odd one.
inline float odd_float(double value) {
  const auto nearest = static_cast<float>(value);
  const auto back = static_cast<double>(nearest);
  auto bits = std::bit_cast<std::uint32_t>(nearest);
  const bool inexact = back < value || back > value;  // not of a NaN
  if (!inexact || (bits & 1u) != 0) return nearest;
  if (std::fpclassify(nearest) == FP_ZERO) return std::bit_cast<float>(std::signbit(value) ? 0x80000001u : 1u);
  bits += std::abs(back) < std::abs(value) ? 1u : 0xffffffffu;
  return std::bit_cast<float>(bits);
}

inline void store_weight(const WeightView& view, Index row, Index column, double value) {
  const Index at = row * view.row_stride + column * view.column_stride;
  if (view.type == ElementType::f32) static_cast<float*>(view.data)[at] = static_cast<float>(value);
  else if (view.type == ElementType::bf16)
    static_cast<std::uint16_t*>(view.data)[at] = bf16_from_float(odd_float(value));
  else static_cast<std::uint16_t*>(view.data)[at] = f16_from_float(odd_float(value));
}

inline Eigen::MatrixXd read_weights(const char* name, const ConstWeightView& view) {
  check_weight_view(name, view, false);
  Eigen::MatrixXd matrix(view.rows, view.columns);
  for (Index column = 0; column < view.columns; ++column)
    for (Index row = 0; row < view.rows; ++row) matrix(row, column) = weight_at(view, row, column);
  return matrix;
}

inline void check_same_extents(const char* name, const Eigen::MatrixXd& matrix, const WeightView& view) {
  if (matrix.size() == 0 && view.data == nullptr) return;
  if (matrix.size() == 0) fail(name, "a view", "none: the layer has no such bias");
  check_weight_view(name, view, true);
  if (view.rows != matrix.rows()) fail(std::string(name) + ".rows", view.rows, std::to_string(matrix.rows()));
  if (view.columns != matrix.cols()) fail(std::string(name) + ".columns", view.columns, std::to_string(matrix.cols()));
}

inline void write_weights(const Eigen::MatrixXd& matrix, const WeightView& view) {
  for (Index column = 0; column < matrix.cols(); ++column)
    for (Index row = 0; row < matrix.rows(); ++row) store_weight(view, row, column, matrix(row, column));
}

inline AttentionWeights read_attention(const ConstAttentionWeightViews& views, const HeadShape& shape) {
  AttentionWeights weights;
  weights.shape = shape;
  if (weights.shape.value_dim == dynamic) weights.shape.value_dim = shape.head_dim;
  weights.q = read_weights("views.q", views.q);
  weights.k = read_weights("views.k", views.k);
  weights.v = read_weights("views.v", views.v);
  weights.o = read_weights("views.o", views.o);
  const auto read_bias = [](const char* name, const ConstWeightView& view, Eigen::VectorXd& bias) {
    if (view.data == nullptr) return;
    if (view.columns != 1) fail(std::string(name) + ".columns", view.columns, "1");
    bias = read_weights(name, view).col(0);
  };
  read_bias("views.q_bias", views.q_bias, weights.q_bias);
  read_bias("views.k_bias", views.k_bias, weights.k_bias);
  read_bias("views.v_bias", views.v_bias, weights.v_bias);
  read_bias("views.o_bias", views.o_bias, weights.o_bias);
  check_weights(weights);
  return weights;
}

inline void write_attention(const AttentionWeights& weights, const AttentionWeightViews& views) {
  check_weights(weights);
  check_same_extents("views.q", weights.q, views.q);
  check_same_extents("views.k", weights.k, views.k);
  check_same_extents("views.v", weights.v, views.v);
  check_same_extents("views.o", weights.o, views.o);
  check_same_extents("views.q_bias", weights.q_bias, views.q_bias);
  check_same_extents("views.k_bias", weights.k_bias, views.k_bias);
  check_same_extents("views.v_bias", weights.v_bias, views.v_bias);
  check_same_extents("views.o_bias", weights.o_bias, views.o_bias);
  write_weights(weights.q, views.q);
  write_weights(weights.k, views.k);
  write_weights(weights.v, views.v);
  write_weights(weights.o, views.o);
  if (views.q_bias.data != nullptr) write_weights(weights.q_bias, views.q_bias);
  if (views.k_bias.data != nullptr) write_weights(weights.k_bias, views.k_bias);
  if (views.v_bias.data != nullptr) write_weights(weights.v_bias, views.v_bias);
  if (views.o_bias.data != nullptr) write_weights(weights.o_bias, views.o_bias);
}

}  // namespace detail::inline GQA_ABI

/// Reads a layer's weights from where they lie, exactly.
/// @param shape Hq, Hkv, D and Dv; Dv may be dynamic: D
/// @throws ArgumentError naming a view that does not fit the shape, or a weight that is not finite
GQA_ALWAYS_INLINE AttentionWeights read_attention(const ConstAttentionWeightViews& views, const HeadShape& shape) {
  return detail::read_attention(views, shape);
}

/// Writes a layer's weights, each rounded once to its view's type, to the nearest, ties to even. Views must not overlap each other.
/// @throws ArgumentError naming a view whose extents are not the weights', or that overlaps itself; nothing is written then
GQA_ALWAYS_INLINE void write_attention(const AttentionWeights& weights, const AttentionWeightViews& views) {
  detail::write_attention(weights, views);
}

}  // namespace gqa
