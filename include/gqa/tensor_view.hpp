// SPDX-License-Identifier: Apache-2.0
/// @file
/// Non-owning strided views of queries and outputs: (token, head, dim).
#pragma once

#include <span>
#include <type_traits>

#include "gqa/detail/checked.hpp"
#include "gqa/element.hpp"
#include "gqa/error.hpp"

namespace gqa {

/// Distances between neighbours, in elements. Any sign for queries; outputs must not overlap themselves. A head stride of 0 is one query
/// for all heads; a token stride of 0 for several tokens is taken for one that was forgotten, and refused.
struct TensorStrides {
  Index token;
  Index head;
  Index dim = 1;

  /// (token, head, dim): all heads of a token side by side.
  GQA_ALWAYS_INLINE static constexpr TensorStrides token_major(Index heads, Index dim) noexcept {
    return {detail::product(heads, dim), dim, 1};
  }
  /// (head, token, dim): all tokens of a head side by side; `tokens` is the room per head.
  GQA_ALWAYS_INLINE static constexpr TensorStrides head_major([[maybe_unused]] Index heads, Index tokens,
                                                              Index dim) noexcept {
    return {dim, detail::product(tokens, dim), 1};
  }
};

namespace detail {

/// Elements that a view of `Data` may have: of a type that is known, and to be written only where the view may.
template <class T, class Data>
concept ElementOf = Element<T> &&(std::is_const_v<Data> || !std::is_const_v<T>);

}  // namespace detail

namespace detail::inline GQA_ABI {

/// Fails unless a span of `given` elements holds a packed tensor. `what` names the span.
inline void check_span_extent(const char* what, std::size_t given, Index tokens, Index heads, Index dim) {
  if (tokens < 0) fail(Text(what) + ".tokens", tokens, "0 or more");
  if (heads < 0) fail(Text(what) + ".heads", heads, "0 or more");
  if (dim < 0) fail(Text(what) + ".dim", dim, "0 or more");
  const Checked needed = Checked(tokens) * heads * dim;
  if (!needed.fits()) fail(Text(what) + ".tokens", tokens, "tokens * heads * dim that fits in 63 bits");
  if (given < static_cast<std::uint64_t>(needed.value()))
    fail(Text(what) + ".size()", to_text(given),
         "at least tokens * heads * dim = " + to_text(needed.value()) + ", for a tensor of " + to_text(tokens) + " * " +
             to_text(heads) + " * " + to_text(dim));
}

/// Bytes from a view's first element to that of the part [first, first + count) of an extent, strides in elements of so many bytes. Fails
/// if there is no such part.
inline Index part_offset(const char* extent_name, Index extent, Index first, Index count, const char* stride_name,
                         Index stride, Index element) {
  if (first < 0 || first > extent) fail("first", first, "0 to " + Text(extent_name) + " = " + to_text(extent));
  if (count < 0 || count > extent - first)
    fail("count", count,
         "0 to " + Text(extent_name) + " - first = " + to_text(extent - first) + ", those that are left");
  const Checked bytes = Checked(first) * stride * element;
  if (!bytes.fits()) fail(stride_name, stride, "a stride whose offsets fit in 63 bits");
  if (!is_distance(bytes.value())) fail(stride_name, stride, "a stride whose offsets lie within the address space");
  return bytes.value();
}

/// p moved by so many bytes; on numbers, because a view that nobody has checked yet may lie anywhere.
template <class T>
GQA_ALWAYS_INLINE T* moved(T* p, Index bytes) noexcept {
  if (p == nullptr) return p;
  return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(p) + static_cast<std::uintptr_t>(bytes));
}

}  // namespace detail::inline GQA_ABI

/// A view of `tokens × heads × dim` elements of type f32, bf16 or f16. Copies nothing and owns nothing; plain data, free to
/// copy. Checked when it is used in a call, not when it is made (spans are checked at once).
/// @tparam Data `void` for outputs, `const void` for queries, and for keys and values that are appended to a cache or viewed as one.
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
  template <detail::ElementOf<Data> T>
  GQA_ALWAYS_INLINE BasicTensorView(T* elements, Index token_count, Index head_count, Index width)
      : BasicTensorView(elements, token_count, head_count, width, TensorStrides::token_major(head_count, width)) {}

  /// Any strides, in elements.
  template <detail::ElementOf<Data> T>
  GQA_ALWAYS_INLINE BasicTensorView(T* elements, Index token_count, Index head_count, Index width, TensorStrides steps)
      : BasicTensorView(elements, ElementTraits<std::remove_cv_t<T>>::type, token_count, head_count, width, steps) {}

  /// The same with an element type that is known at run time.
  GQA_ALWAYS_INLINE BasicTensorView(Data* elements, ElementType element_type, Index token_count, Index head_count,
                                    Index width)
      : BasicTensorView(elements, element_type, token_count, head_count, width,
                        TensorStrides::token_major(head_count, width)) {}
  GQA_ALWAYS_INLINE BasicTensorView(Data* elements, ElementType element_type, Index token_count, Index head_count,
                                    Index width, TensorStrides steps)
      : data(elements), type(element_type), tokens(token_count), heads(head_count), dim(width), strides(steps) {}

  /// Packed storage in a span. @param name what an error calls the span @throws ArgumentError if the span is too short.
  template <detail::ElementOf<Data> T, std::size_t Extent>
  GQA_ALWAYS_INLINE BasicTensorView(std::span<T, Extent> elements, Index token_count, Index head_count, Index width,
                                    const char* name = std::is_const_v<Data> ? "elements" : "out")
      : BasicTensorView(elements.data(), token_count, head_count, width) {
    detail::check_span_extent(name, elements.size(), token_count, head_count, width);
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

  /// The view of tokens [first, first + count): how one sequence is cut out of a packed batch.
  /// @throws ArgumentError if there are no such tokens
  GQA_ALWAYS_INLINE BasicTensorView slice(Index first, Index count) const {
    BasicTensorView part = *this;
    const Index bytes =
        detail::part_offset("tokens", tokens, first, count, "strides.token", strides.token, element_bytes(type));
    part.data = detail::moved(data, bytes);
    part.tokens = count;
    return part;
  }

  /// The view of heads [first, first + count), for callers that split heads themselves.
  /// @throws ArgumentError if there are no such heads
  GQA_ALWAYS_INLINE BasicTensorView slice_heads(Index first, Index count) const {
    BasicTensorView part = *this;
    const Index bytes =
        detail::part_offset("heads", heads, first, count, "strides.head", strides.head, element_bytes(type));
    part.data = detail::moved(data, bytes);
    part.heads = count;
    return part;
  }
};

/// Queries, and keys and values before they are in a cache: read only.
using ConstTensorView = BasicTensorView<const void>;
/// Outputs: written.
using TensorView = BasicTensorView<void>;

}  // namespace gqa
