// SPDX-License-Identifier: Apache-2.0
// Queries and outputs for tests: owned storage of any element type in any layout, exactly as large as its view, so that a
// sanitizer sees a step outside.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <ostream>
#include <vector>

#include "gqa/tensor_view.hpp"
#include "random.hpp"

namespace gqa::test {

inline void write_element(std::byte* at, ElementType type, float value) {
  const std::uint16_t half = type == ElementType::bf16 ? bf16(value).bits : f16(value).bits;
  if (type == ElementType::f32)
    std::memcpy(at, &value, 4);
  else
    std::memcpy(at, &half, 2);
}

inline float read_element(const std::byte* at, ElementType type) {
  float value = 0.0f;
  std::uint16_t half = 0;
  if (type == ElementType::f32) {
    std::memcpy(&value, at, 4);
    return value;
  }
  std::memcpy(&half, at, 2);
  return type == ElementType::bf16 ? detail::float_from_bf16(half) : detail::float_from_f16(half);
}

/// What a number becomes when it is stored.
inline float rounded_to(ElementType type, float value) {
  std::byte raw[4];
  write_element(raw, type, value);
  return read_element(raw, type);
}

/// Fills with what must never reach a result: NaN, +∞ and −∞ by turns.
inline void fill_with_garbage(std::vector<std::byte>& bytes, ElementType type) {
  constexpr float kinds[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                             -std::numeric_limits<float>::infinity()};
  const auto size = static_cast<std::size_t>(element_bytes(type));
  for (std::size_t i = 0; i < bytes.size() / size; ++i) write_element(bytes.data() + i * size, type, kinds[i % 3]);
}

/// How (token, head, dim) lies in memory.
enum class TensorLayout : std::uint8_t {
  packed,      ///< token, head, dim
  head_major,  ///< head, token, dim
  padded,      ///< packed with odd gaps
  reversed,    ///< tokens and heads run backwards
  dim_major    ///< dim, token, head: neighbours of a row lie far apart
};
inline constexpr TensorLayout kTensorLayouts[] = {TensorLayout::packed, TensorLayout::head_major, TensorLayout::padded,
                                                  TensorLayout::reversed, TensorLayout::dim_major};

inline const char* layout_name(TensorLayout layout) {
  constexpr const char* names[] = {"packed", "head_major", "padded", "reversed", "dim_major"};
  return names[static_cast<int>(layout)];
}

/// Numbers in (token, head, dim) order, without a storage type: what all storages of one test hold.
struct Numbers {
  Index tokens = 0;
  Index heads = 0;
  Index dim = 0;
  std::vector<float> values;

  Numbers() = default;
  Numbers(Index token_count, Index head_count, Index width)
      : tokens(token_count),
        heads(head_count),
        dim(width),
        values(static_cast<std::size_t>(token_count * head_count * width)) {}

  /// @throws std::out_of_range beyond the last number: a test that is wrong shows
  float& at(Index token, Index head, Index d) {
    return values.at(static_cast<std::size_t>((token * heads + head) * dim + d));
  }
  const float& at(Index token, Index head, Index d) const {
    return values.at(static_cast<std::size_t>((token * heads + head) * dim + d));
  }
};

/// Owned storage with a view.
class Tensor {
 public:
  Tensor(ElementType type, Index tokens, Index heads, Index dim, TensorLayout layout = TensorLayout::packed) {
    view_.type = type;
    view_.tokens = tokens;
    view_.heads = heads;
    view_.dim = dim;
    Index first = 0;
    switch (layout) {
      case TensorLayout::packed: view_.strides = {heads * dim, dim, 1}; break;
      case TensorLayout::head_major: view_.strides = {dim, tokens * dim, 1}; break;
      case TensorLayout::padded: view_.strides = {heads * (dim + 3) + 5, dim + 3, 1}; break;
      case TensorLayout::dim_major: view_.strides = {heads, 1, tokens * heads}; break;
      case TensorLayout::reversed:
        view_.strides = {-(heads * dim + 1), -dim, 1};
        first = std::max<Index>(tokens - 1, 0) * (heads * dim + 1) + (heads - 1) * dim;
        break;
    }
    Index last = first;
    if (tokens > 0)
      last = first + std::max<Index>(0, (tokens - 1) * view_.strides.token) +
             std::max<Index>(0, (heads - 1) * view_.strides.head) + (dim - 1) * view_.strides.dim;
    bytes_.resize(static_cast<std::size_t>((tokens > 0 ? last + 1 : 1) * element_bytes(type)));
    view_.data = bytes_.data() + first * element_bytes(type);
  }
  Tensor(const Numbers& numbers, ElementType type, TensorLayout layout = TensorLayout::packed)
      : Tensor(type, numbers.tokens, numbers.heads, numbers.dim, layout) {
    fill_with_garbage(bytes_, type);
    for (Index t = 0; t < numbers.tokens; ++t)
      for (Index h = 0; h < numbers.heads; ++h)
        for (Index d = 0; d < numbers.dim; ++d) write_element(address(t, h, d), type, numbers.at(t, h, d));
  }
  Tensor(Tensor&&) = default;
  Tensor& operator=(Tensor&&) = default;
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  const TensorView& view() const { return view_; }
  ConstTensorView const_view() const { return view_; }
  std::vector<std::byte>& bytes() { return bytes_; }
  const std::vector<std::byte>& bytes() const { return bytes_; }
  std::byte* address(Index token, Index head, Index d) const {
    return static_cast<std::byte*>(view_.data) +
           (token * view_.strides.token + head * view_.strides.head + d * view_.strides.dim) * element_bytes(view_.type);
  }
  float at(Index token, Index head, Index d) const { return read_element(address(token, head, d), view_.type); }

 private:
  std::vector<std::byte> bytes_;
  TensorView view_;
};

}  // namespace gqa::test
