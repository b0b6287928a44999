// SPDX-License-Identifier: Apache-2.0
/// @file
/// A codec's encoding and decoding of rows, as functions that are found at run time.
#pragma once

#include "gqa/codec.hpp"

namespace gqa::detail {

/// row ← `dim` elements, `step` of them apart, as a codec stores them.
using RowEncoder = void (*)(const std::byte* from, Index step, Index dim, std::byte* row, std::byte* scale);
/// to[0 … dim) ← a stored row.
using RowDecoder = void (*)(const std::byte* row, const std::byte* scale, Index dim, float* to);

/// Instruction sets that rows are encoded with.
enum class RowSet : std::uint8_t { portable, avx2, avx512 };
inline constexpr int kRowSets = GQA_DETAIL_X86 ? 3 : 1;

/// Those of one codec.
struct RowCodec {
  RowEncoder encode[kRowSets][kLastElementType + 1];  ///< by the type of what is encoded
  RowDecoder decode;

  GQA_ALWAYS_INLINE RowEncoder encoder(RowSet set, ElementType from) const noexcept {
    return encode[static_cast<int>(set)][static_cast<int>(from)];
  }
};

inline namespace GQA_ABI {

template <class Codec, class From>
inline void encode_row(const std::byte* from, Index step, Index dim, std::byte* row, std::byte* scale) {
  Codec::template encode<From>(from, step, dim, row, scale);
}
template <class Codec>
inline void decode_row(const std::byte* row, const std::byte* scale, Index dim, float* to) {
  Codec::decode(row, scale, dim, to);
}
/// Of rows of plain elements.
template <class Codec>
inline RowEncoder encoder_of(ElementType from) {
  if (from == ElementType::f32) return encode_row<Codec, float>;
  if (from == ElementType::bf16) return encode_row<Codec, bf16>;
  return encode_row<Codec, f16>;
}
template <int Id = 0>
inline RowEncoder element_encoder(ElementType to, ElementType from) {
  if constexpr (Id < kLastElementType)
    if (static_cast<int>(to) != Id) return element_encoder<Id + 1>(to, from);
  return encoder_of<typename CodecWithId<Id>::type>(from);
}
template <int Id = 0>
inline RowDecoder element_decoder(ElementType from) {
  if constexpr (Id < kLastElementType)
    if (static_cast<int>(from) != Id) return element_decoder<Id + 1>(from);
  return decode_row<typename CodecWithId<Id>::type>;
}

}  // namespace GQA_ABI
}  // namespace gqa::detail
