// SPDX-License-Identifier: Apache-2.0
/// @file
/// Eigen's 16-bit types as elements, and views from and to Eigen matrices, maps, refs and blocks. Needs Eigen.
#pragma once

#include <Eigen/Core>
#include <concepts>
#include <type_traits>

#include "gqa/detail/check_views.hpp"
#include "gqa/element.hpp"
#include "gqa/error.hpp"
#include "gqa/kv_cache_view.hpp"
#include "gqa/tensor_view.hpp"

namespace gqa {

template <>
struct ElementTraits<Eigen::bfloat16> {
  static constexpr ElementType type = ElementType::bf16;
};
template <>
struct ElementTraits<Eigen::half> {
  static constexpr ElementType type = ElementType::f16;
};

/// An Eigen matrix, map, ref, block or transpose of those, whose coefficients lie in memory and can be viewed there. A temporary
/// matrix that owns its coefficients is none: the view would outlive it.
template <class M>
concept EigenStorage = std::derived_from<std::remove_cvref_t<M>, Eigen::DenseBase<std::remove_cvref_t<M>>> &&
                       ((std::remove_cvref_t<M>::Flags & Eigen::DirectAccessBit) != 0) &&
                       Element<typename std::remove_cvref_t<M>::Scalar> &&
                       (std::is_lvalue_reference_v<M> ||
                        !std::derived_from<std::remove_cvref_t<M>, Eigen::PlainObjectBase<std::remove_cvref_t<M>>>);

namespace detail::inline GQA_ABI {

/// Elements from one row to the next, and from one column to the next.
template <class M>
GQA_ALWAYS_INLINE Index row_step(const M& matrix) {
  return M::IsRowMajor ? matrix.outerStride() : matrix.innerStride();
}
template <class M>
GQA_ALWAYS_INLINE Index column_step(const M& matrix) {
  return M::IsRowMajor ? matrix.innerStride() : matrix.outerStride();
}

/// Columns per head. `what` and `heads_name` are the arguments that an error names.
inline Index split_columns(const char* what, Index columns, const char* heads_name, Index heads) {
  if (heads <= 0) fail(heads_name, heads, "1 or more");
  if (columns % heads != 0) fail(what, columns, "a multiple of " + Text(heads_name) + " = " + to_text(heads));
  return columns / heads;
}

inline void check_cache_matrices(Index k_rows, Index k_step, Index v_rows, Index v_step, Index length) {
  if (k_step != 1) fail("keys' column step", k_step, "1: the dims of a key row lie side by side in memory");
  if (v_step != 1) fail("values' column step", v_step, "1: the dims of a value row lie side by side in memory");
  if (v_rows != k_rows) fail("values.rows()", v_rows, "keys.rows() = " + to_text(k_rows));
  if (length < 0 || length > k_rows) fail("length", length, "0 to keys.rows() = " + to_text(k_rows));
}

inline void check_map(ElementType wanted, Index head, const ConstTensorView& view) {
  if (view.type != wanted)
    fail("view.type", element_name(view.type), Text(element_name(wanted)) + ", the element type of head_map");
  if (view.tokens < 0 || view.tokens > kMaxTokens) fail("view.tokens", view.tokens, "0 to 2^48");
  if (view.dim < 0 || view.dim > kMaxWidth) fail("view.dim", view.dim, "0 to " + to_text(kMaxWidth));
  if (view.heads > kMaxHeads) fail("view.heads", view.heads, "0 to " + to_text(kMaxHeads));
  if (head < 0 || head >= view.heads) fail("head", head, "0 or more and less than view.heads = " + to_text(view.heads));
  if (view.strides.token < 0 || view.strides.dim < 0)
    fail("view.strides", view.strides.token < view.strides.dim ? view.strides.token : view.strides.dim,
         "steps that Eigen can express: 0 or more");
  check_tensor({}, kViewNames, view);
}

}  // namespace detail::inline GQA_ABI

/// View of a matrix with one row per token and the heads side by side in it: tokens × (heads · dim), any storage order and any
/// steps. For a column-major matrix whose *columns* are tokens, pass its transpose().
/// Gives a TensorView, fit for outputs, if the matrix can be written, else a ConstTensorView. Copies nothing.
/// @throws ArgumentError if `heads` does not divide the columns
template <EigenStorage M>
GQA_ALWAYS_INLINE auto tensor_view(M&& matrix, Index heads) {
  using Pointer = decltype(matrix.data());
  using Data = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const void, void>;
  const Index dim = detail::split_columns("matrix.cols()", matrix.cols(), "heads", heads);
  const Index step = detail::column_step(matrix);
  return BasicTensorView<Data>(matrix.data(), matrix.rows(), heads, dim,
                               TensorStrides{detail::row_step(matrix), detail::product(dim, step), step});
}

/// View of a contiguous cache in two matrices with one row per token and the KV heads side by side: keys tokens × (Hkv · D),
/// values tokens × (Hkv · Dv). Rows are packed in memory: row-major matrices, or the transpose() of column-major ones.
/// @param length tokens that are in use, at most keys.rows(); −1: all of them
/// @throws ArgumentError if the KV heads do not divide the columns, or rows are not packed, or row counts differ
template <EigenStorage K, EigenStorage V>
GQA_ALWAYS_INLINE KvCacheView kv_cache_view(K&& keys, V&& values, Index kv_heads, Index length = -1) {
  static_assert(std::remove_cvref_t<K>::IsRowMajor && std::remove_cvref_t<V>::IsRowMajor,
                "keys and values must be row-major with one row per token, or the transpose() of a column-major matrix "
                "with one column per token: a cache's rows are packed in memory");
  const Index tokens = length == -1 ? static_cast<Index>(keys.rows()) : length;
  detail::check_cache_matrices(keys.rows(), detail::column_step(keys), values.rows(), detail::column_step(values),
                               tokens);
  const KvShape shape{tokens, kv_heads, detail::split_columns("keys.cols()", keys.cols(), "kv_heads", kv_heads),
                      detail::split_columns("values.cols()", values.cols(), "kv_heads", kv_heads)};
  const auto* k = keys.data();
  const auto* v = values.data();
  return KvCacheView::contiguous(k, v, shape, KvStrides{detail::row_step(keys), shape.head_dim},
                                 KvStrides{detail::row_step(values), shape.value_dim});
}

/// One head of a view as an Eigen map: tokens × dim, written through if the view is an output's.
/// @tparam T the view's element type: float, Eigen::bfloat16 or Eigen::half
/// @throws ArgumentError if the type differs, the head does not exist, a step is negative, or the view itself is wrong
template <Element T, class Data>
GQA_ALWAYS_INLINE auto head_map(const BasicTensorView<Data>& view, Index head) {
  using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Scalar = std::conditional_t<std::is_const_v<Data>, const T, T>;
  using Steps = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  using Map = Eigen::Map<std::conditional_t<std::is_const_v<Data>, const Matrix, Matrix>, Eigen::Unaligned, Steps>;
  detail::check_map(ElementTraits<T>::type, head, view);
  auto* const first = static_cast<Scalar*>(view.data);
  return Map(view.tokens > 0 ? first + head * view.strides.head : first, view.tokens, view.dim,
             Steps(view.strides.token, view.strides.dim));
}

}  // namespace gqa
