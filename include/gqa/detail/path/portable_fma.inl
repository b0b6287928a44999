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

GQA_OP __m128d lower_doubles(__m128 a) { return _mm_cvtps_pd(a); }
GQA_OP __m128d upper_doubles(__m128 a) { return _mm_cvtps_pd(_mm_movehl_ps(a, a)); }
GQA_OP __m128 as_floats(__m128d lower, __m128d upper) {
  return _mm_movelh_ps(_mm_cvtpd_ps(lower), _mm_cvtpd_ps(upper));
}

// Of two lanes: product + addend, rounded to odd.
GQA_OP __m128d sum_to_odd(__m128d product, __m128d addend) {
  const __m128d sum = product + addend;
  const __m128d added = sum - product;
  const __m128d lost = (product - (sum - added)) + (addend - added);
  const __m128i bits = _mm_castpd_si128(sum);
  const __m128i infinite = _mm_set1_epi32(0x7ff00000);
  const __m128i nonfinite = _mm_cmpeq_epi32(_mm_and_si128(bits, infinite), infinite);  // upper halves
  const __m128i inexact =
      _mm_andnot_si128(_mm_shuffle_epi32(nonfinite, 0xf5), _mm_castpd_si128(_mm_cmpneq_pd(lost, _mm_setzero_pd())));
  const __m128i opposite = _mm_srai_epi32(_mm_xor_si128(bits, _mm_castpd_si128(lost)), 31);
  const __m128i too_large = _mm_and_si128(_mm_shuffle_epi32(opposite, 0xf5), inexact);
  return _mm_castsi128_pd(_mm_or_si128(_mm_add_epi64(bits, too_large), _mm_srli_epi64(inexact, 63)));
}
GQA_KERNEL Vec fma_to_odd(Vec a, Vec b, Vec c) {
  Vec r;
  for (int i = 0; i < kLanes; i += 4) {
    const __m128 x = _mm_loadu_ps(a.lane + i), y = _mm_loadu_ps(b.lane + i), z = _mm_loadu_ps(c.lane + i);
    const __m128d lower = sum_to_odd(lower_doubles(x) * lower_doubles(y), lower_doubles(z));
    const __m128d upper = sum_to_odd(upper_doubles(x) * upper_doubles(y), upper_doubles(z));
    _mm_storeu_ps(r.lane + i, as_floats(lower, upper));
  }
  return r;
}

// Whether some finite sum is no double: then one of these differences, the one from the larger, is exact and not the other number.
GQA_OP __m128d inexact_lanes(__m128d product, __m128d addend) {
  const __m128d sum = product + addend;
  return _mm_or_pd(_mm_cmpneq_pd(sum - product, addend), _mm_cmpneq_pd(sum - addend, product));
}
GQA_KERNEL bool any_inexact(Vec a, Vec b, Vec c) {
  __m128d inexact = _mm_setzero_pd();
  for (int i = 0; i < kLanes; i += 4) {
    const __m128 x = _mm_loadu_ps(a.lane + i), y = _mm_loadu_ps(b.lane + i), z = _mm_loadu_ps(c.lane + i);
    const __m128d lower = inexact_lanes(lower_doubles(x) * lower_doubles(y), lower_doubles(z));
    const __m128d upper = inexact_lanes(upper_doubles(x) * upper_doubles(y), upper_doubles(z));
    inexact = _mm_or_pd(inexact, _mm_or_pd(lower, upper));
  }
  return _mm_movemask_pd(inexact) != 0;
}

// Rounded to nearest twice, which takes less than half the time, unless a lane may be a middle. Of normal floats that is a double whose last 29 bits
// are 100…0; the first 16 of them are looked at. Of others it is whatever becomes denormal, zero or the least normal float. Both are gathered
// as the least of the signed upper halves of lanes of 32 bits: none is less than a tail that begins with 1000…. Sums of short numbers (bf16,
// say) often are a middle, exactly: that is found out before they are computed again.
GQA_OP Vec fma_in_double(const Vec& a, const Vec& b, const Vec& c) {
  Vec r;
  __m128i tails = _mm_setzero_si128();
  __m128i magnitudes = _mm_set1_epi32(0x7fffffff);
  GQA_UNROLL
  for (int i = 0; i < kLanes; i += 4) {
    const __m128 x = _mm_loadu_ps(a.lane + i), y = _mm_loadu_ps(b.lane + i), z = _mm_loadu_ps(c.lane + i);
    const __m128d lower = lower_doubles(x) * lower_doubles(y) + lower_doubles(z);
    const __m128d upper = upper_doubles(x) * upper_doubles(y) + upper_doubles(z);
    const __m128 result = as_floats(lower, upper);
    const __m128 low_halves = _mm_shuffle_ps(_mm_castpd_ps(lower), _mm_castpd_ps(upper), 0x88);
    tails = _mm_min_epi16(tails, _mm_slli_epi32(_mm_castps_si128(low_halves), 3));
    magnitudes = _mm_min_epi16(magnitudes, _mm_and_si128(_mm_castps_si128(result), _mm_set1_epi32(0x7fffffff)));
    _mm_storeu_ps(r.lane + i, result);
  }
  const __m128i middle = _mm_cmpeq_epi16(tails, _mm_set1_epi16(-0x8000));
  const __m128i tiny = _mm_cmpgt_epi16(_mm_set1_epi16(0x0081), magnitudes);
  constexpr int upper_halves = 0x8888;
  if (__builtin_expect((_mm_movemask_epi8(_mm_or_si128(middle, tiny)) & upper_halves) != 0, false))
    if (__builtin_expect(any_inexact(a, b, c), false)) r = fma_to_odd(a, b, c);
  return r;
}

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
