// SPDX-License-Identifier: Apache-2.0
// Numbers as bf16, or as sums of two. Part of amx.hpp.
//
// In the arithmetic of two terms x is x1 + x2: x1 the nearest bf16, x2 the bf16 nearest to what is left, halves away from
// zero. |x2| <= 2^-8 |x|, and what is left then is at most 2^-17 |x|; a bf16 and an f16 leave nothing. Were x1 cut off, x2 would
// have the sign of x, and x2·y2, which is left out of every product, would make all of them smaller instead of averaging out.
//
// A number that rounds to infinity has both of its terms cut off: so neither they nor their sum are infinite. That leaves up to
// 2^-16 of it.
//
// What is no finite number goes into x2, with x1 = 0. Then it meets the other factor's first term and nothing else; as x1 it
// would also meet a second term, which is zero or of the other sign, and make NaN of an infinity.

// Terms of a cache's elements in an arithmetic of `Terms`: a bf16 is one as it is.
template <class Codec, int Terms>
inline constexpr int kTermsOf = Codec::type == ElementType::bf16 ? 1 : Terms;

// Thirty-two elements, by terms.
template <int Terms>
struct Words {
  __m512i term[Terms];
};

// The first `count` of 32 elements of a row from d on as bf16, rounded to nearest even; zeros behind them, nothing read there.
template <class Codec>
GQA_OP __m512i narrow(RowOf<Codec> row, Index d, Index count) {
  if constexpr (Codec::type == ElementType::bf16) {
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((std::uint64_t{1} << count) - 1u), row + d * 2);
  } else {
    const Index low = count < kLanes ? count : kLanes;
    alignas(64) std::byte rounded[kRowBytes];
    avx512::store_as<Bf16>(rounded, avx512::load_part(Codec{}, row, d, low));
    avx512::store_as<Bf16>(rounded + kRowBytes / 2, avx512::load_part(Codec{}, row, d + low, count - low));
    return _mm512_load_si512(rounded);
  }
}

// Two terms in the upper halves of 32-bit lanes. What is in the lower halves of the second one means nothing.
struct Split {
  __m512i first;
  __m512i second;
};

GQA_OP __m512i upper_halves(__m512i bits) {
  return _mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
}
// The nearest bf16 is then in the upper half.
GQA_OP __m512i add_half_piece(__m512i bits) { return _mm512_add_epi32(bits, _mm512_set1_epi32(0x8000)); }

// Of numbers that do not round to infinity.
GQA_OP Split split_ordinary(Vec x) {
  const __m512i first = upper_halves(add_half_piece(_mm512_castps_si512(x)));
  return {first, add_half_piece(_mm512_castps_si512(avx512::sub(x, _mm512_castsi512_ps(first))))};
}

// Lanes that round to infinity, or are no finite number.
GQA_OP __mmask16 not_ordinary(Vec x) {
  const __m512i magnitude = _mm512_castps_si512(_mm512_abs_ps(x));
  return _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7f7f7fff));
}

// Puts right what split_ordinary has made of any other number.
GQA_KERNEL void split_again(const Vec& x, Split& s) {
  const __mmask16 cut_off = not_ordinary(x);
  const __mmask16 not_finite = _mm512_fpclass_ps_mask(x, avx512::kNonfinite);
  const __mmask16 nan = _mm512_fpclass_ps_mask(x, avx512::kNaN);
  s.first = _mm512_mask_mov_epi32(s.first, cut_off, upper_halves(_mm512_castps_si512(x)));
  s.first = _mm512_mask_mov_epi32(s.first, not_finite, _mm512_setzero_si512());
  const __m512i rest = _mm512_castps_si512(avx512::sub(x, _mm512_castsi512_ps(s.first)));
  s.second = _mm512_mask_mov_epi32(s.second, cut_off, rest);
  s.second = _mm512_mask_mov_epi32(s.second, nan, _mm512_set1_epi32(0x7fc00000));
}

// The upper halves of two registers, one behind the other.
GQA_OP __m512i pack_upper_halves(__m512i low, __m512i high) {
  const __m512i at =
      _mm512_setr_epi32(0x00030001, 0x00070005, 0x000b0009, 0x000f000d, 0x00130011, 0x00170015, 0x001b0019, 0x001f001d,
                        0x00230021, 0x00270025, 0x002b0029, 0x002f002d, 0x00330031, 0x00370035, 0x003b0039, 0x003f003d);
  return _mm512_permutex2var_epi16(low, at, high);
}

// The upper halves of two registers, by turns.
GQA_OP __m512i pair_upper_halves(__m512i even, __m512i odd) {
  return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(even, 16), odd);
}

// The first `count` of 32 elements of a row from d on by terms; zeros behind them, nothing read there. A bf16 has a second term of zero.
template <class Codec, int Terms>
GQA_OP Words<Terms> words(RowOf<Codec> row, Index d, Index count) {
  if constexpr (Terms == 1) {
    return {{narrow<Codec>(row, d, count)}};
  } else if constexpr (Codec::type == ElementType::bf16) {
    return {{narrow<Codec>(row, d, count), _mm512_setzero_si512()}};
  } else {
    const Index part = count < kLanes ? count : kLanes;
    const Vec low = avx512::load_part(Codec{}, row, d, part);
    const Vec high = avx512::load_part(Codec{}, row, d + part, count - part);
    Split a = split_ordinary(low);
    Split b = split_ordinary(high);
    if ((not_ordinary(low) | not_ordinary(high)) != 0) {
      split_again(low, a);
      split_again(high, b);
    }
    return {{pack_upper_halves(a.first, b.first), pack_upper_halves(a.second, b.second)}};
  }
}

// A product of two sums, one of CacheTerms terms and one of RowTerms, is the tile products of these pairs of terms, in this
// order: from each to the next, one operand stays in its tile. The product of two second terms is left out.
template <int CacheTerms, int RowTerms>
struct TermPairs {
  static constexpr int count = CacheTerms + RowTerms - 1;
  static constexpr int cache(int i) { return i < CacheTerms ? CacheTerms - 1 - i : 0; }
  static constexpr int row(int i) { return i < CacheTerms ? 0 : i - (CacheTerms - 1); }
  static constexpr bool cache_changes(int i) { return i < CacheTerms; }
  static constexpr bool row_changes(int i) { return i == 0 || i >= CacheTerms; }
};
