// SPDX-License-Identifier: Apache-2.0
// a·b + c, rounded once: the multiply-add of the portable path. Where the target has an instruction for it, that one; elsewhere, as on x86-64
// without flags, arithmetic in double, with the same bits for all inputs (a NaN is some NaN). Part of portable.hpp.
//
// The product of two floats is a double: 24 + 24 ≤ 53 bits, and its exponent is one that double has. Its sum with c may not be one, and is
// rounded to double, then to float. A sum between two floats can only be rounded to the wrong one of them if the double is the middle between
// them and the sum is not, because that middle is a double itself, and rounding carries nothing across a double. 2¹²⁸ is a float here, though
// rounding makes an infinity of it.
//
// Rounding to odd prevents that (S. Boldo and G. Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding
// to odd", IEEE Transactions on Computers 57(4), 2008): a sum that is no double becomes the one of its two neighbours whose last bit is set.
// Floats, denormal or not, and the middles between them have 25 significant bits or fewer, so that the last of their 53 is 0: an odd double is
// none of them and lies between the same two as the sum. And no double here is denormal: products and floats are multiples of 2⁻²⁹⁸.
//
// Where contraction cannot be put off it changes nothing: a product that is a double is the same, fused or not.

// Of one lane, on any target.
GQA_OP float fma_in_double(float a, float b, float c) {
  const double product = static_cast<double>(a) * static_cast<double>(b);
  const double addend = static_cast<double>(c);
  const double sum = product + addend;
  // sum + lost is product + addend (D. Knuth, The Art of Computer Programming, volume 2, section 4.2.2, theorem B).
  const double added = sum - product;
  const double lost = (product - (sum - added)) + (addend - added);
  std::uint64_t bits = __builtin_bit_cast(std::uint64_t, sum);
  constexpr std::uint64_t infinite = std::uint64_t{0x7ff} << 52;
  const bool inexact = (lost != 0.0) & ((bits & infinite) != infinite);  // what an infinity or a NaN has lost is NaN
  const bool too_large = (((bits ^ __builtin_bit_cast(std::uint64_t, lost)) >> 63) != 0) & inexact;
  bits = (bits - std::uint64_t{too_large}) | std::uint64_t{inexact};  // the neighbour towards zero, or the one after it
  return static_cast<float>(__builtin_bit_cast(double, bits));
}

#if defined(__SSE2__)

using Floats = __m128;
using Doubles = __m128d;
GQA_OP Floats four(const Vec& a, int lane) { return _mm_loadu_ps(a.lane + lane); }
GQA_OP void put_four(Vec& a, int lane, Floats of) { _mm_storeu_ps(a.lane + lane, of); }
GQA_OP Doubles lower_doubles(Floats a) { return _mm_cvtps_pd(a); }
GQA_OP Doubles upper_doubles(Floats a) { return _mm_cvtps_pd(_mm_movehl_ps(a, a)); }
GQA_OP Floats as_floats(Doubles lower, Doubles upper) {
  return _mm_movelh_ps(_mm_cvtpd_ps(lower), _mm_cvtpd_ps(upper));
}
GQA_OP __m128i lower_halves(Doubles lower, Doubles upper) {
  return _mm_castps_si128(_mm_shuffle_ps(_mm_castpd_ps(lower), _mm_castpd_ps(upper), 0x88));
}
GQA_OP __m128i smaller_words(__m128i a, __m128i b) { return _mm_min_epi16(a, b); }
GQA_OP bool any_upper_word(__m128i a) { return (_mm_movemask_epi8(a) & 0x8888) != 0; }
#include "gqa/detail/path/fma_in_double.inl"

#else

GQA_OP Vec fma_in_double(const Vec& a, const Vec& b, const Vec& c) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = fma_in_double(a.lane[i], b.lane[i], c.lane[i]);
  return r;
}

#endif

GQA_OP float fma(float a, float b, float c) {
#if GQA_DETAIL_FUSED
  return __builtin_fmaf(a, b, c);
#else
  return fma_in_double(a, b, c);
#endif
}
GQA_OP Vec fma(const Vec& a, const Vec& b, const Vec& c) {
#if GQA_DETAIL_FUSED
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = fma(a.lane[i], b.lane[i], c.lane[i]);
  return r;
#else
  return fma_in_double(a, b, c);
#endif
}
