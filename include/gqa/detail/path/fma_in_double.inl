// SPDX-License-Identifier: Apache-2.0
// a·b + c, rounded once, in vectors of two doubles: for paths without an instruction for it. Why it is right stands in portable_fma.inl. Part of
// such a path; the path has
//
//   Floats, Doubles                four floats and two doubles, with the compiler's operators
//   four, put_four                 lanes i … i + 3 of a vector
//   lower_doubles, upper_doubles   the first and the last two floats; as_floats: back, rounded to nearest
//   lower_halves                   of four doubles, 32 bits each
//   smaller_words                  the smaller of each of 8 signed numbers of 16 bits
//   any_upper_word                 whether any of the upper ones of each two of them has its highest bit set

using Masks = decltype(Doubles{} < Doubles{});  // two integers of 64 bits: ones where it holds, else zeros
using Ints = int __attribute__((vector_size(16)));
using Shorts = short __attribute__((vector_size(16)));

// Of two lanes: product + addend, rounded to odd.
GQA_OP Doubles sum_to_odd(Doubles product, Doubles addend) {
  const Doubles sum = product + addend;
  const Doubles added = sum - product;
  const Doubles lost = (product - (sum - added)) + (addend - added);
  const Masks bits = __builtin_bit_cast(Masks, sum);
  const Masks infinite = Masks{} + (0x7ffll << 52);
  const Masks inexact = (lost != Doubles{}) & ((bits & infinite) != infinite);
  const Masks too_large = ((bits ^ __builtin_bit_cast(Masks, lost)) < Masks{}) & inexact;
  return __builtin_bit_cast(Doubles, (bits + too_large) | (inexact & (Masks{} + 1)));
}
// Whether the sum is finite and no double: then one of these differences, the one from the larger, is exact and not the other number.
GQA_OP Masks inexact_lanes(Doubles product, Doubles addend) {
  const Doubles sum = product + addend;
  return (sum - product != addend) | (sum - addend != product);
}
// a, b and c are the rows of `lanes`. If some sum is no double, the result replaces a; else what rounding twice gives is right, and false is
// returned. By memory, so that whoever inlines the usual case keeps its vectors in registers.
GQA_KERNEL bool fma_of_middles(float (&lanes)[3][kLanes]) {
  const Vec a = load(lanes[0]), b = load(lanes[1]), c = load(lanes[2]);
  Masks inexact{};
  for (int i = 0; i < kLanes; i += 4) {
    const Floats x = four(a, i), y = four(b, i), z = four(c, i);
    inexact |= inexact_lanes(lower_doubles(x) * lower_doubles(y), lower_doubles(z));
    inexact |= inexact_lanes(upper_doubles(x) * upper_doubles(y), upper_doubles(z));
  }
  if ((inexact[0] | inexact[1]) == 0) return false;
  Vec r;
  for (int i = 0; i < kLanes; i += 4) {
    const Floats x = four(a, i), y = four(b, i), z = four(c, i);
    const Doubles lower = sum_to_odd(lower_doubles(x) * lower_doubles(y), lower_doubles(z));
    const Doubles upper = sum_to_odd(upper_doubles(x) * upper_doubles(y), upper_doubles(z));
    put_four(r, i, as_floats(lower, upper));
  }
  store(lanes[0], r);
  return true;
}

// Rounded to nearest twice, which takes less than half the time, unless a lane may be a middle. Of normal floats that is a double whose last 29 bits
// are 100…0; the first 16 of them are looked at. Of others it is whatever becomes denormal, zero or the least normal float. Both are gathered
// as the least of the signed upper halves of lanes of 32 bits: none is less than a tail that begins with 1000…. Sums of short numbers (bf16,
// say) often are a middle, exactly: that is found out before they are computed again.
GQA_OP Vec fma_in_double(const Vec& a, const Vec& b, const Vec& c) {
  Vec r;
  auto tails = __builtin_bit_cast(decltype(lower_halves(Doubles{}, Doubles{})), Ints{});
  auto magnitudes = __builtin_bit_cast(decltype(tails), Ints{} + 0x7fffffff);
  GQA_UNROLL
  for (int i = 0; i < kLanes; i += 4) {
    const Floats x = four(a, i), y = four(b, i), z = four(c, i);
    const Doubles lower = lower_doubles(x) * lower_doubles(y) + lower_doubles(z);
    const Doubles upper = upper_doubles(x) * upper_doubles(y) + upper_doubles(z);
    const Floats result = as_floats(lower, upper);
    const Ints tail = __builtin_bit_cast(Ints, lower_halves(lower, upper)) << 3;
    tails = smaller_words(tails, __builtin_bit_cast(decltype(tails), tail));
    const Ints magnitude = __builtin_bit_cast(Ints, result) & 0x7fffffff;
    magnitudes = smaller_words(magnitudes, __builtin_bit_cast(decltype(tails), magnitude));
    put_four(r, i, result);
  }
  const Shorts middle = __builtin_bit_cast(Shorts, tails) == Shorts{} + short{-0x8000};
  const Shorts tiny = __builtin_bit_cast(Shorts, magnitudes) < Shorts{} + short{0x0081};
  if (__builtin_expect(any_upper_word(__builtin_bit_cast(decltype(tails), middle | tiny)), false)) {
    float lanes[3][kLanes];
    store(lanes[0], a);
    store(lanes[1], b);
    store(lanes[2], c);
    if (fma_of_middles(lanes)) r = load(lanes[0]);
  }
  return r;
}
