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
  std::uint8_t alignment = 1;     ///< of rows, in bytes; a power of two, 64 at most
  std::uint8_t scale_bytes = 0;   ///< of a scale that lies outside of rows, see KvScales; 0: there are none
  bool whole_blocks = false;      ///< rows are whole blocks: none is padded, other widths are refused
};

/// The type of a cache's keys or values. Plain data. An ElementType is the type of plain rows of such elements; a codec has its own as
/// `Codec::type`. Distances between rows are counted in elements, whole blocks of them.
class KvType {
 public:
  /// Rows of f32 elements.
  GQA_ALWAYS_INLINE constexpr KvType() noexcept : KvType(ElementType::f32) {}
  GQA_ALWAYS_INLINE constexpr KvType(ElementType type) noexcept
      : bits_(static_cast<std::uint64_t>(type) | (type == ElementType::f32        ? kRowsOfFour
                                                  : detail::is_element_type(type) ? kRowsOfTwo
                                                                                  : 0)) {}
  GQA_ALWAYS_INLINE explicit constexpr KvType(const RowLayout& layout) noexcept : bits_(packed(layout)) {}

  /// What the codec is known by.
  GQA_ALWAYS_INLINE constexpr Index id() const noexcept { return byte_at(0); }
  /// False for what was made of an ElementType that does not exist.
  GQA_ALWAYS_INLINE constexpr bool valid() const noexcept { return word_at(16) != 0; }
  /// Whether rows are plain elements.
  GQA_ALWAYS_INLINE constexpr bool is_element() const noexcept { return byte_at(0) <= detail::kLastElementType; }
  /// Bytes of a row of `dim` elements. Of a number that nobody has checked yet any number, as in what follows.
  GQA_ALWAYS_INLINE constexpr Index row_bytes(Index dim) const noexcept {
    const Index blocks = wrapped_sum(dim, block_elements() - 1) >> byte_at(8);
    return wrapped_sum(wrapped_product(blocks, word_at(16)), word_at(32));
  }
  /// Blocks, and bytes, that a distance of so many elements is.
  GQA_ALWAYS_INLINE constexpr Index stride_blocks(Index elements) const noexcept { return elements >> byte_at(8); }
  GQA_ALWAYS_INLINE constexpr Index stride_bytes(Index elements) const noexcept {
    return wrapped_product(stride_blocks(elements), word_at(16));
  }
  /// The least distance in elements between rows of `dim` elements that do not overlap.
  GQA_ALWAYS_INLINE constexpr Index row_stride(Index dim) const noexcept {
    if (word_at(16) == 0 || (byte_at(8) == 0 && word_at(32) == 0)) return dim;
    return (wrapped_sum(row_bytes(dim), word_at(16) - 1) / word_at(16)) << byte_at(8);
  }
  /// What distances in elements are multiples of.
  GQA_ALWAYS_INLINE constexpr Index block_elements() const noexcept { return Index{1} << byte_at(8); }
  GQA_ALWAYS_INLINE constexpr Index block_bytes() const noexcept { return word_at(16); }
  /// What the addresses of rows are multiples of.
  GQA_ALWAYS_INLINE constexpr Index alignment() const noexcept { return byte_at(48) & 0x7f; }
  /// Whether widths have to be whole blocks.
  GQA_ALWAYS_INLINE constexpr bool whole_blocks() const noexcept { return byte_at(48) > 0x7f; }
  /// Bytes of a scale outside of rows, and what its address is a multiple of; 0: there are none.
  GQA_ALWAYS_INLINE constexpr Index scale_bytes() const noexcept { return byte_at(56); }

  /// The elements of plain rows. Of no meaning for other codecs: ask is_element().
  GQA_ALWAYS_INLINE constexpr operator ElementType() const noexcept { return static_cast<ElementType>(byte_at(0)); }
  /// The codec's number.
  template <std::integral T>
  GQA_ALWAYS_INLINE explicit constexpr operator T() const noexcept {
    return static_cast<T>(byte_at(0));
  }

  /// The same codec?
  GQA_ALWAYS_INLINE friend constexpr bool operator==(const KvType& a, const KvType& b) noexcept {
    return a.id() == b.id();
  }
  GQA_ALWAYS_INLINE friend constexpr bool operator==(const KvType& a, ElementType b) noexcept {
    return a.id() == static_cast<Index>(b);
  }

 private:
  GQA_ALWAYS_INLINE static constexpr Index wrapped_sum(Index a, Index b) noexcept {
    return static_cast<Index>(static_cast<std::uint64_t>(a) + static_cast<std::uint64_t>(b));
  }
  GQA_ALWAYS_INLINE static constexpr Index wrapped_product(Index a, Index b) noexcept {
    return static_cast<Index>(static_cast<std::uint64_t>(a) * static_cast<std::uint64_t>(b));
  }
  GQA_ALWAYS_INLINE static constexpr std::uint64_t at(std::uint64_t number, int bit) noexcept { return number << bit; }
  // A RowLayout in one number: a view is stored, and copied, in few pieces.
  GQA_ALWAYS_INLINE static constexpr std::uint64_t packed(const RowLayout& layout) noexcept {
    return at(layout.id, 0) | at(layout.block_shift, 8) | at(layout.block_bytes, 16) | at(layout.row_extra, 32) |
           at(layout.alignment, 48) | at(layout.whole_blocks ? 1 : 0, 55) | at(layout.scale_bytes, 56);
  }
  GQA_ALWAYS_INLINE constexpr std::uint8_t byte_at(int bit) const noexcept {
    return static_cast<std::uint8_t>(bits_ >> bit);
  }
  GQA_ALWAYS_INLINE constexpr std::uint16_t word_at(int bit) const noexcept {
    return static_cast<std::uint16_t>(bits_ >> bit);
  }
  static constexpr std::uint64_t kRowsOfFour = std::uint64_t{4} << 16 | std::uint64_t{4} << 48;
  static constexpr std::uint64_t kRowsOfTwo = std::uint64_t{2} << 16 | std::uint64_t{2} << 48;

  std::uint64_t bits_;
};

}  // namespace gqa
