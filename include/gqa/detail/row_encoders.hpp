// SPDX-License-Identifier: Apache-2.0
/// @file
/// The codecs' encoders for registers of several lengths, as RowOps has the conversions of plain elements: what is quantised is to keep up with
/// memory too. The bytes of the codecs' own, and compiled for the codecs that a program names.
#pragma once

#include "gqa/detail/row_ops.hpp"

// Each instruction set says how it takes integers apart:
//
//   pack_16(x, to)   to ← the lowest bytes of 16 elements, in 16 / kLanes registers
//   signs(x)         bit i: the sign of element i of 32

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI::portable::rows {

#if GQA_DETAIL_X86
GQA_OP void pack_16(const Ints* x, std::byte* to) {
  const auto low = [x](int i) __attribute__((always_inline)) { return reinterpret_cast<__m128i>(x[i] & 255); };
  store(to, _mm_packus_epi16(_mm_packs_epi32(low(0), low(1)), _mm_packs_epi32(low(2), low(3))));
}
GQA_OP std::uint32_t signs(const Ints (&x)[8]) {
  std::uint32_t all = 0;
  GQA_UNROLL
  for (int i = 0; i < 8; ++i)
    all |= static_cast<std::uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(x[i]))) << (4 * i);
  return all;
}
#else
GQA_OP void pack_16(const Ints* x, std::byte* to) {
  typedef std::uint16_t Halves __attribute__((vector_size(16)));
  typedef std::uint8_t Bytes __attribute__((vector_size(8)));
  for (int i = 0; i < 2; ++i) {
    const HalfWords two[] = {__builtin_convertvector(x[2 * i], HalfWords),
                             __builtin_convertvector(x[2 * i + 1], HalfWords)};
    store(to + 8 * i, __builtin_convertvector(load<Halves>(two), Bytes));
  }
}
GQA_OP std::uint32_t signs(const Ints (&x)[8]) {
  std::uint32_t all = 0;
  for (unsigned i = 0; i < 32; ++i) all |= (static_cast<std::uint32_t>(x[i / 4][i % 4]) >> 31) << i;
  return all;
}
#endif
#define GQA_DETAIL_ROWS_F16C 0
#include "gqa/codec/encoders.inl"
#undef GQA_DETAIL_ROWS_F16C

}  // namespace gqa::detail::inline GQA_ABI::portable::rows

GQA_END_PLAIN_REGION()

#if GQA_DETAIL_X86

GQA_BEGIN_REGION("avx2,fma,f16c", "tune=haswell")

namespace gqa::detail::inline GQA_ABI::avx2::rows {

GQA_OP void pack_16(const Ints* x, std::byte* to) {
  const auto low = [x](int i) __attribute__((always_inline)) { return reinterpret_cast<__m256i>(x[i] & 255); };
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low(0), low(1)), 0xd8);
  store(to, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
GQA_OP std::uint32_t signs(const Ints (&x)[4]) {
  std::uint32_t all = 0;
  GQA_UNROLL
  for (int i = 0; i < 4; ++i)
    all |= static_cast<std::uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(x[i]))) << (8 * i);
  return all;
}
#define GQA_DETAIL_ROWS_F16C 1
#include "gqa/codec/encoders.inl"

}  // namespace gqa::detail::inline GQA_ABI::avx2::rows

GQA_END_REGION()

GQA_BEGIN_REGION("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", "tune=icelake-server")

namespace gqa::detail::inline GQA_ABI::avx512::rows {

GQA_OP void pack_16(const Ints* x, std::byte* to) { store(to, _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(*x))); }
GQA_OP std::uint32_t signs(const Ints (&x)[2]) {
  const auto part = [&x](int i) __attribute__((always_inline)) {
    return static_cast<std::uint32_t>(_mm512_movepi32_mask(reinterpret_cast<__m512i>(x[i])));
  };
  return part(0) | part(1) << 16;
}
#include "gqa/codec/encoders.inl"
#undef GQA_DETAIL_ROWS_F16C

}  // namespace gqa::detail::inline GQA_ABI::avx512::rows

GQA_END_REGION()

#endif

namespace gqa::detail::inline GQA_ABI {

template <class Codec>
inline constexpr RowCodec kRowCodec{
    {{portable::rows::encoder<Codec, float>(), portable::rows::encoder<Codec, bf16>(),
      portable::rows::encoder<Codec, f16>()},
#if GQA_DETAIL_X86
     {avx2::rows::encoder<Codec, float>(), avx2::rows::encoder<Codec, bf16>(), avx2::rows::encoder<Codec, f16>()},
     {avx512::rows::encoder<Codec, float>(), avx512::rows::encoder<Codec, bf16>(), avx512::rows::encoder<Codec, f16>()}
#endif
    },
    decode_row<Codec>};

}  // namespace gqa::detail::inline GQA_ABI
