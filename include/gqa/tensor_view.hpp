// SPDX-License-Identifier: Apache-2.0
/// @file
/// Non-owning strided views of queries and outputs: (token, head, dim).
#pragma once

#include <span>
#include <type_traits>

#include "gqa/element.hpp"
#include "gqa/error.hpp"

namespace gqa {

/// Distances between neighbours, in elements. Any sign for queries; outputs must not overlap themselves.
struct TensorStrides {
  Index token;
  Index head;
  Index dim = 1;
};

namespace detail::inline GQA_ABI {

inline void check_span_extent(const char* what, std::size_t given, Index tokens, Index heads, Index dim) {
  if (tokens < 0) fail(Text(what) + ".tokens", tokens, "0 or more");
  if (heads < 0) fail(Text(what) + ".heads", heads, "0 or more");
  if (dim < 0) fail(Text(what) + ".dim", dim, "0 or more");
  Index needed = 0;
  if (__builtin_mul_overflow(tokens, heads, &needed) || __builtin_mul_overflow(needed, dim, &needed))
    fail(Text(what) + ".tokens", tokens, "tokens * heads * dim that fits in 63 bits");
  if (given < static_cast<std::size_t>(needed))
    fail(Text(what) + ".size()", static_cast<Index>(given), "at least tokens * heads * dim = " + to_text(needed));
}

}  // namespace detail::inline GQA_ABI

/// A view of `tokens × heads × dim` elements of type f32, bf16 or f16. Copies nothing and owns nothing; plain data, free to
/// copy. Checked when it is used in a call, not when it is made (spans are checked at once).
/// @tparam Data `void` for outputs, `const void` for queries.
template <class Data>
struct BasicTensorView {
  Data* data = nullptr;
  ElementType type = ElementType::f32;
  Index tokens = 0;
  Index heads = 0;
  Index dim = 0;
  TensorStrides strides{0, 0, 1};

  BasicTensorView() = default;

  /// Packed storage, (token, head, dim) with dim fastest.
  template <Element T>
  requires(std::is_const_v<Data> || !std::is_const_v<T>) GQA_ALWAYS_INLINE
      BasicTensorView(T* elements, Index token_count, Index head_count, Index width)
      : BasicTensorView(elements, token_count, head_count, width, TensorStrides{head_count * width, width, 1}) {}

  /// Any strides, in elements.
  template <Element T>
  requires(std::is_const_v<Data> || !std::is_const_v<T>) GQA_ALWAYS_INLINE
      BasicTensorView(T* elements, Index token_count, Index head_count, Index width, TensorStrides steps)
      : data(elements),
        type(ElementTraits<std::remove_cv_t<T>>::type),
        tokens(token_count),
        heads(head_count),
        dim(width),
        strides(steps) {}

  /// Packed storage in a span. @throws ArgumentError if the span is too short.
  template <Element T, std::size_t Extent>
  requires(std::is_const_v<Data> || !std::is_const_v<T>) GQA_ALWAYS_INLINE
      BasicTensorView(std::span<T, Extent> elements, Index token_count, Index head_count, Index width)
      : BasicTensorView(elements.data(), token_count, head_count, width) {
    detail::check_span_extent("tensor", elements.size(), token_count, head_count, width);
  }

  /// An output view reads as a query view.
  GQA_ALWAYS_INLINE operator BasicTensorView<const void>() const noexcept requires(!std::is_const_v<Data>) {
    BasicTensorView<const void> view;
    view.data = data;
    view.type = type;
    view.tokens = tokens;
    view.heads = heads;
    view.dim = dim;
    view.strides = strides;
    return view;
  }

  /// The view of tokens [first, first + count): how one sequence is cut out of a packed batch. Not checked here.
  GQA_ALWAYS_INLINE BasicTensorView slice(Index first, Index count) const noexcept {
    BasicTensorView part = *this;
    using Byte = std::conditional_t<std::is_const_v<Data>, const std::byte, std::byte>;
    part.data = data == nullptr ? nullptr : static_cast<Byte*>(data) + first * strides.token * element_bytes(type);
    part.tokens = count;
    return part;
  }

  /// The view of heads [first, first + count), for callers that split heads themselves. Not checked here.
  GQA_ALWAYS_INLINE BasicTensorView slice_heads(Index first, Index count) const noexcept {
    BasicTensorView part = *this;
    using Byte = std::conditional_t<std::is_const_v<Data>, const std::byte, std::byte>;
    part.data = data == nullptr ? nullptr : static_cast<Byte*>(data) + first * strides.head * element_bytes(type);
    part.heads = count;
    return part;
  }
};

/// Queries: read only.
using ConstTensorView = BasicTensorView<const void>;
/// Outputs: written.
using TensorView = BasicTensorView<void>;

}  // namespace gqa
