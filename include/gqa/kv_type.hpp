// SPDX-License-Identifier: Apache-2.0
/// @file
/// How rows of keys and values are stored: which codec, and how its rows lie in memory.
#pragma once

#include <concepts>

#include "gqa/element.hpp"

namespace gqa {

/// What memory is laid out by, of a codec. A row is whole blocks of elements, the last one padded, and what it has besides once.
struct RowLayout {
  std::uint8_t id = 0;            ///< which codec: see gqa::CodecWithId
  std::uint8_t block_shift = 0;   ///< log2 of the elements of a block; 0: elements one by one
  std::uint16_t block_bytes = 0;  ///< of a block, with what it has inside besides its elements
  std::uint16_t row_extra = 0;    ///< bytes of a row besides its blocks
  std::uint8_t alignment = 1;     ///< of rows, in bytes; a power of two
  std::uint8_t scale_bytes = 0;   ///< of a scale that lies outside of rows, see KvScales; 0: there are none
};

/// The type of a cache's keys or values. Plain data. An ElementType is the type of plain rows of such elements; a codec has its own as
/// `Codec::type`. Distances between rows are counted in elements, whole blocks of them.
class KvType {
 public:
  /// Rows of f32 elements.
  GQA_ALWAYS_INLINE constexpr KvType() noexcept : KvType(ElementType::f32) {}
  GQA_ALWAYS_INLINE constexpr KvType(ElementType type) noexcept {
    const bool known = detail::is_element_type(type);
    layout_.id = static_cast<std::uint8_t>(type);
    layout_.block_bytes = known ? static_cast<std::uint16_t>(element_bytes(type)) : std::uint16_t{0};
    layout_.alignment = static_cast<std::uint8_t>(element_bytes(type));
  }
  GQA_ALWAYS_INLINE explicit constexpr KvType(const RowLayout& layout) noexcept : layout_(layout) {}

  /// What the codec is known by.
  GQA_ALWAYS_INLINE constexpr Index id() const noexcept { return layout_.id; }
  /// False for what was made of an ElementType that does not exist.
  GQA_ALWAYS_INLINE constexpr bool valid() const noexcept { return layout_.block_bytes != 0; }
  /// Whether rows are plain elements.
  GQA_ALWAYS_INLINE constexpr bool is_element() const noexcept { return layout_.id <= detail::kLastElementType; }
  /// Bytes of a row of `dim` elements.
  GQA_ALWAYS_INLINE constexpr Index row_bytes(Index dim) const noexcept {
    return ((dim + block_elements() - 1) >> layout_.block_shift) * layout_.block_bytes + layout_.row_extra;
  }
  /// Blocks, and bytes, that a distance of so many elements is.
  GQA_ALWAYS_INLINE constexpr Index stride_blocks(Index elements) const noexcept {
    return elements >> layout_.block_shift;
  }
  GQA_ALWAYS_INLINE constexpr Index stride_bytes(Index elements) const noexcept {
    return stride_blocks(elements) * layout_.block_bytes;
  }
  /// The least distance in elements between rows of `dim` elements that do not overlap.
  GQA_ALWAYS_INLINE constexpr Index row_stride(Index dim) const noexcept {
    if (layout_.block_bytes == 0) return dim;
    return ((row_bytes(dim) + layout_.block_bytes - 1) / layout_.block_bytes) << layout_.block_shift;
  }
  /// What distances in elements are multiples of.
  GQA_ALWAYS_INLINE constexpr Index block_elements() const noexcept { return Index{1} << layout_.block_shift; }
  GQA_ALWAYS_INLINE constexpr Index block_bytes() const noexcept { return layout_.block_bytes; }
  /// What the addresses of rows are multiples of.
  GQA_ALWAYS_INLINE constexpr Index alignment() const noexcept { return layout_.alignment; }
  /// Bytes of a scale outside of rows, and what its address is a multiple of; 0: there are none.
  GQA_ALWAYS_INLINE constexpr Index scale_bytes() const noexcept { return layout_.scale_bytes; }

  /// The elements of plain rows. Of no meaning for other codecs: ask is_element().
  GQA_ALWAYS_INLINE constexpr operator ElementType() const noexcept { return static_cast<ElementType>(layout_.id); }
  /// The codec's number.
  template <std::integral T>
  GQA_ALWAYS_INLINE explicit constexpr operator T() const noexcept {
    return static_cast<T>(layout_.id);
  }

  /// The same codec?
  GQA_ALWAYS_INLINE friend constexpr bool operator==(const KvType& a, const KvType& b) noexcept {
    return a.layout_.id == b.layout_.id;
  }
  GQA_ALWAYS_INLINE friend constexpr bool operator==(const KvType& a, ElementType b) noexcept {
    return a.layout_.id == static_cast<std::uint8_t>(b);
  }

 private:
  RowLayout layout_{};
};

}  // namespace gqa
