// SPDX-License-Identifier: Apache-2.0
// Functions of vectors for score expressions. Part of kernel.inl. A condition is a vector whose lanes' highest bits say whether it holds.
//
// Made of a path's operations alone, so that every path computes the same bits. Coefficients are least-squares fits at Chebyshev's nodes.

GQA_OP Vec product(const Vec& a, const Vec& b) { return unfused(mul(a, b)); }
GQA_OP Vec negated(const Vec& a) { return bit_xor(a, set1(-0.0f)); }
// All lanes the float of these bits.
GQA_OP Vec bits1(std::uint32_t bits) { return set1(__builtin_bit_cast(float, bits)); }
GQA_OP Vec magnitude(const Vec& a) { return bit_and(a, bits1(0x7fffffffu)); }
GQA_OP Vec equal(const Vec& a, const Vec& b) { return bit_and(less_equal(a, b), less_equal(b, a)); }
// Of a condition.
GQA_OP Vec opposite(const Vec& a) { return bit_xor(a, set1(-0.0f)); }
// The smaller and the larger of two; NaN if one is NaN.
GQA_OP Vec minimum(const Vec& a, const Vec& b) {
  return select_negative(less_equal(a, a), select_negative(less(a, b), a, b), a);
}
GQA_OP Vec maximum(const Vec& a, const Vec& b) {
  return select_negative(less_equal(a, a), select_negative(less(b, a), a, b), a);
}

// x = n · ln 2 + r, n whole and |r| <= 0.35: 2^(n − less) as a float, and r. For |x| < 2^20; 0 < n − less + 127 < 256.
struct PowerOfTwo {
  Vec power;
  Vec r;
};
GQA_OP PowerOfTwo reduce_exponent(const Vec& x, float less_than_n) {
  const Vec magic = set1(0x1.8p23f);
  const Vec n = sub(fma(x, set1(kLog2E), magic), magic);
  const Vec high = fma(n, set1(-0x1.62e430p-1f), x);
  // The number, plus what is added, stands in the lowest bits.
  return {shift_left<23>(add(n, set1(0x1.8p23f + 127.0f - less_than_n))), fma(n, set1(0x1.05c611p-29f), high)};
}
// (eʳ − 1) / r, relative error 2^-28.
GQA_OP Vec exponential_slope(const Vec& r) {
  constexpr float coefficients[] = {0x1.6d75f8p-10f, 0x1.1110a6p-7f, 0x1.5554acp-5f, 0x1.555556p-3f, 0.5f, 1.0f};
  Vec p = set1(0x1.a17ebap-13f);
  GQA_UNROLL
  for (const float c : coefficients) p = fma(p, r, set1(c));
  return p;
}
// eˣ; 0 where it is below 2^-125, infinity where it is above the largest float.
GQA_LONG_OP Vec exponential(const Vec& x) {
  const Vec low = set1(-86.6f);
  const Vec high = set1(89.0f);
  const Vec clamped = select_negative(less(x, low), low, select_negative(less(high, x), high, x));
  const PowerOfTwo two = reduce_exponent(clamped, 1.0f);
  const Vec mantissa = fma(exponential_slope(two.r), two.r, set1(1.0f));
  const Vec half = mul(mantissa, two.power);
  return zero_below(x, low, add(half, half));
}
// The natural logarithm; −∞ of 0, NaN of what is below.
GQA_LONG_OP Vec logarithm(const Vec& x) {
  constexpr float coefficients[] = {-0x1.d9f4d6p-4f, 0x1.dda7cep-4f, -0x1.fc5b4cp-4f, 0x1.23d6b6p-3f,
                                    -0x1.555ed8p-3f, 0x1.999d50p-3f, -0x1.fffff2p-3f, 0x1.555554p-2f};
  const Vec tiny = less(x, set1(0x1p-126f));
  const Vec normal = select_negative(tiny, mul(x, set1(0x1p24f)), x);
  // m in [√½, √2): the exponent is counted from there.
  const Vec mantissa = bit_or(bit_and(normal, bits1(0x007fffffu)), set1(1.0f));
  const Vec upper = less(set1(0x1.6a09e6p0f), mantissa);
  const Vec f = sub(select_negative(upper, mul(mantissa, set1(0.5f)), mantissa), set1(1.0f));
  const Vec biased = sub(bit_or(shift_right<23>(normal), set1(0x1p23f)), set1(0x1p23f + 127.0f));
  const Vec exponent = sub(add(biased, bit_and(upper, set1(1.0f))), bit_and(tiny, set1(24.0f)));
  Vec p = set1(0x1.24da9ap-4f);
  GQA_UNROLL
  for (const float c : coefficients) p = fma(p, f, set1(c));
  const Vec square = mul(f, f);
  const Vec tail = fma(mul(square, f), p, mul(exponent, set1(-0x1.05c611p-29f)));
  const Vec result = fma(exponent, set1(0x1.62e430p-1f), add(f, fma(square, set1(-0.5f), tail)));
  const Vec infinity = set1(__builtin_inff());
  const Vec of_large = select_negative(less(x, infinity), result, x);  // infinity, NaN
  const Vec of_zero = select_negative(equal(x, zero()), negated(infinity), of_large);
  return select_negative(less(x, zero()), set1(__builtin_nanf("")), of_zero);
}
// tanh |x| = e / (e + 2), e = e^(2|x|) − 1, which keeps its accuracy near 0; 1 from 10 on.
GQA_LONG_OP Vec hyperbolic_tangent(const Vec& x) {
  const Vec size = magnitude(x);
  const Vec clamped = select_negative(less(set1(10.0f), size), set1(10.0f), size);
  const PowerOfTwo two = reduce_exponent(add(clamped, clamped), 0.0f);
  const Vec e = fma(two.power, mul(exponential_slope(two.r), two.r), sub(two.power, set1(1.0f)));
  return bit_or(div(e, add(e, set1(2.0f))), bit_and(x, set1(-0.0f)));
}
