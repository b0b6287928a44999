// SPDX-License-Identifier: Apache-2.0
/// @file
/// The codecs' encoders for registers of several lengths, as RowOps has the conversions of plain elements: what is quantised is to keep up with
/// memory too. The bytes of the codecs' own, and compiled for the codecs that a program names.
#pragma once

#include "gqa/detail/row_ops.hpp"

// Each instruction set says how it takes integers apart:
//
//   widened(x)              Words ← HalfWords
//   pack_16<Signed>(x, to)  to ← 16 elements, in 16 / kLanes registers, that are numbers of a byte
//   signs(x)                bit i: whether element i of 32 is negative
//   equal(x, value)         bit i: whether element i of 32 is that
//   picked(table, i)        table[i], each i below 16
//   fold_to_four(x, pair)   the elements of one register, combined to four by pair(a, b)
namespace gqa::detail {
typedef std::int32_t FourInts __attribute__((vector_size(16)));
typedef std::int32_t EightInts __attribute__((vector_size(32)));
}  // namespace gqa::detail

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI::portable::rows {

GQA_OP Words widened(const HalfWords& x) { return __builtin_convertvector(x, Words); }
#if GQA_DETAIL_X86
template <bool Signed>
GQA_OP void pack_16(const Ints* x, std::byte* to) {
  const auto part = [x](int i) __attribute__((always_inline)) { return reinterpret_cast<__m128i>(x[i]); };
  const __m128i first = _mm_packs_epi32(part(0), part(1));
  const __m128i second = _mm_packs_epi32(part(2), part(3));
  store(to, Signed ? _mm_packs_epi16(first, second) : _mm_packus_epi16(first, second));
}
GQA_OP std::uint32_t signs(const Ints (&x)[8]) {
  std::uint32_t all = 0;
  GQA_UNROLL
  for (int i = 0; i < 8; ++i)
    all |= static_cast<std::uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(x[i]))) << (4 * i);
  return all;
}
#else
template <bool Signed>
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
GQA_OP std::uint32_t equal(const Ints (&x)[8], std::int32_t value) {
  Ints those[8];
  GQA_UNROLL
  for (int i = 0; i < 8; ++i) those[i] = x[i] == value;
  return signs(those);
}
GQA_OP Floats picked(const float (&table)[16], const Ints& i) {
  return Floats{table[i[0]], table[i[1]], table[i[2]], table[i[3]]};
}
template <class Pair>
GQA_OP FourInts fold_to_four(const Ints& x, const Pair&) {
  return x;
}
#define GQA_DETAIL_ROWS_F16C 0
#include "gqa/codec/encoders.inl"
#undef GQA_DETAIL_ROWS_F16C

}  // namespace gqa::detail::inline GQA_ABI::portable::rows

GQA_END_PLAIN_REGION()

#if GQA_DETAIL_X86

GQA_BEGIN_REGION("avx2,fma,f16c", "tune=haswell")

namespace gqa::detail::inline GQA_ABI::avx2::rows {

// By instructions that GCC does not find for conversions.
GQA_OP Words widened(const HalfWords& x) {
  return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(x)));
}
template <bool Signed>
GQA_OP void pack_16(const Ints* x, std::byte* to) {
  const __m256i both = _mm256_packs_epi32(reinterpret_cast<__m256i>(x[0]), reinterpret_cast<__m256i>(x[1]));
  const __m256i words = _mm256_permute4x64_epi64(both, 0xd8);
  const __m128i first = _mm256_castsi256_si128(words);
  const __m128i second = _mm256_extracti128_si256(words, 1);
  store(to, Signed ? _mm_packs_epi16(first, second) : _mm_packus_epi16(first, second));
}
GQA_OP std::uint32_t signs(const Ints (&x)[4]) {
  std::uint32_t all = 0;
  GQA_UNROLL
  for (int i = 0; i < 4; ++i)
    all |= static_cast<std::uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(x[i]))) << (8 * i);
  return all;
}
GQA_OP std::uint32_t equal(const Ints (&x)[4], std::int32_t value) {
  Ints those[4];
  GQA_UNROLL
  for (int i = 0; i < 4; ++i) those[i] = x[i] == value;
  return signs(those);
}
GQA_OP Floats picked(const float (&table)[16], const Ints& i) {
  const auto at = reinterpret_cast<__m256i>(i);
  const __m256 low = _mm256_permutevar8x32_ps(load<__m256>(table), at);
  const __m256 high = _mm256_permutevar8x32_ps(load<__m256>(table + 8), at);
  return _mm256_blendv_ps(low, high, reinterpret_cast<__m256>(i << 28));
}
template <class Pair>
GQA_OP FourInts fold_to_four(const Ints& x, const Pair& pair) {
  return pair(reinterpret_cast<FourInts>(_mm256_castsi256_si128(reinterpret_cast<__m256i>(x))),
              reinterpret_cast<FourInts>(_mm256_extracti128_si256(reinterpret_cast<__m256i>(x), 1)));
}
#define GQA_DETAIL_ROWS_F16C 1
#include "gqa/codec/encoders.inl"

}  // namespace gqa::detail::inline GQA_ABI::avx2::rows

GQA_END_REGION()

GQA_BEGIN_REGION("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", "tune=icelake-server")

namespace gqa::detail::inline GQA_ABI::avx512::rows {

GQA_OP Words widened(const HalfWords& x) {
  return reinterpret_cast<Words>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(x)));
}
template <bool>
GQA_OP void pack_16(const Ints* x, std::byte* to) {
  store(to, _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(*x)));
}
GQA_OP std::uint32_t signs(const Ints (&x)[2]) {
  const auto part = [&x](int i) __attribute__((always_inline)) {
    return static_cast<std::uint32_t>(_mm512_movepi32_mask(reinterpret_cast<__m512i>(x[i])));
  };
  return part(0) | part(1) << 16;
}
GQA_OP std::uint32_t equal(const Ints (&x)[2], std::int32_t value) {
  const auto part = [&x, value ](int i) __attribute__((always_inline)) {
    return static_cast<std::uint32_t>(
        _mm512_cmpeq_epi32_mask(reinterpret_cast<__m512i>(x[i]), _mm512_set1_epi32(value)));
  };
  return part(0) | part(1) << 16;
}
GQA_OP Floats picked(const float (&table)[16], const Ints& i) {
  return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(i), load<__m512>(table));
}
template <class Pair>
GQA_OP FourInts fold_to_four(const Ints& x, const Pair& pair) {
  const auto all = reinterpret_cast<__m512i>(x);
  const EightInts eight = pair(reinterpret_cast<EightInts>(_mm512_castsi512_si256(all)),
                               reinterpret_cast<EightInts>(_mm512_extracti64x4_epi64(all, 1)));
  return pair(reinterpret_cast<FourInts>(_mm256_castsi256_si128(reinterpret_cast<__m256i>(eight))),
              reinterpret_cast<FourInts>(_mm256_extracti128_si256(reinterpret_cast<__m256i>(eight), 1)));
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
