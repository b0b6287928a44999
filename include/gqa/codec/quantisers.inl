// SPDX-License-Identifier: Apache-2.0
// How each codec quantises 32 elements that lie in registers. Part of encoders.inl. What is rare is left to the codec's own encoder: where
// there is anything but numbers, or where a scale is so small that it or its inverse is no normal number, see easy(). A Quantiser has
//
//   bytes              that 32 elements are stored in
//
// and, for codecs with a scale a block,
//
//   measure(x)         the magnitude, as bits, that the scale of 32 elements is made of
//   put(x, most, to)   to ← 32 elements of an easy one
//
// or for those with a scale a row, if its largest magnitude is easy,
//
//   begin(most)        takes that, as bits, before anything else
//   put(x, to)         to ← 32 elements
//   end(row, scales)   stores what a row has once; `before` bytes of it are before its elements

// x / divisor, a number that the compiler does not know: with -freciprocal-math GCC 12 takes the product with the inverse of one that it does, in
// regions as well.
GQA_OP float divided(float x, float divisor) {
#if GQA_DETAIL_X86
  asm("" : "+x"(divisor));
#elif defined(__aarch64__)
  asm("" : "+w"(divisor));
#endif
  return x / divisor;
}

// --- a scale a row ---------------------------------------------------------------------------------------------------

// An f32 scale outside of rows, that the largest magnitude is `Most` times of.
template <int Most>
struct ScaledQuantiser {
  static constexpr Index before = 0;
  float scale;
  float divisor;

  GQA_OP void begin(std::uint32_t most) {
    scale = divided(float_of_bits(most), static_cast<float>(Most));
    divisor = most == 0 ? 1.0f : scale;
  }
  GQA_OP void end(std::byte*, std::byte* scales) const { std::memcpy(scales, &scale, sizeof scale); }
};
template <>
struct Quantiser<Int8> : ScaledQuantiser<127> {
  static constexpr Index bytes = 32;

  GQA_OP void put(const Block& x, std::byte* to) const {
    Ints codes[kParts];
    GQA_UNROLL
    for (int p = 0; p < kParts; ++p) codes[p] = nearest_even(x[p] / divisor);
    put_bytes<true>(to, codes);
  }
};
template <>
struct Quantiser<Int4> : ScaledQuantiser<7> {
  static constexpr Index bytes = 16;

  GQA_OP void put(const Block& x, std::byte* to) const {
    Ints codes[kParts];
    GQA_UNROLL
    for (int p = 0; p < kParts; ++p) codes[p] = nearest_even(x[p] / divisor) + 8;
    put_halves(to, codes);
  }
};
template <>
struct Quantiser<Q8Kv> {
  static constexpr Index bytes = 32;
  static constexpr Index before = 8;
  float scale;
  float factor;
  Ints sums;

  GQA_OP void begin(std::uint32_t most) {
    scale = divided(float_of_bits(most), 127.0f);
    factor = inverse(scale);
    sums = Ints{};
  }
  GQA_OP void put(const Block& x, std::byte* to) {
    Ints codes[kParts];
    GQA_UNROLL
    for (int p = 0; p < kParts; ++p) {
      codes[p] = nearest_even(unfused(x[p] * factor));
      sums += codes[p];
    }
    put_bytes<true>(to, codes);
  }
  GQA_OP void end(std::byte* row, std::byte*) const {
    const std::int32_t sum = sum_of(sums);
    std::memcpy(row, &scale, sizeof scale);
    std::memcpy(row + 4, &sum, sizeof sum);
  }
};

// The magnitudes' codes in a format of so many bits of mantissa, to nearest, ties to even: see fp8_of_float. Nothing is above the largest.
template <int Mantissa, int Bias>
GQA_OP Ints small_float(const Floats& x) {
  constexpr std::uint32_t dropped = 23 - Mantissa;
  constexpr auto least = static_cast<std::uint32_t>(128 - Bias);  // exponent of normal numbers, as an f32 has it
  const Words magnitude = bits_of(x) & kMagnitudeBits;
  const Words rounded = magnitude + (magnitude >> dropped & 1u) + ((1u << (dropped - 1)) - 1u - ((least - 1u) << 23));
  const Ints normal = reinterpret_cast<Ints>(rounded >> dropped);
  const Ints subnormal =
      nearest_even(reinterpret_cast<Floats>(magnitude) * float_of_bits((254u - least + Mantissa) << 23));
  return reinterpret_cast<Ints>(magnitude) < static_cast<std::int32_t>(least << 23) ? subnormal : normal;
}

template <int Mantissa>
struct Fp8Quantiser : ScaledQuantiser<static_cast<int>(Fp8Format<Mantissa>::largest_value)> {
  static constexpr Index bytes = 32;

  GQA_OP void put(const Block& x, std::byte* to) const {
    Ints codes[kParts];
    GQA_UNROLL
    for (int p = 0; p < kParts; ++p)
      codes[p] = small_float<Mantissa, Fp8Format<Mantissa>::bias>(x[p] / this->divisor) |
                 reinterpret_cast<Ints>(bits_of(x[p]) >> 24 & 0x80u);
    put_bytes<false>(to, codes);
  }
};
template <>
struct Quantiser<Fp8E4M3> : Fp8Quantiser<3> {};
template <>
struct Quantiser<Fp8E5M2> : Fp8Quantiser<2> {};

// --- a scale a block -------------------------------------------------------------------------------------------------

// By the largest magnitude.
struct BlockQuantiser {
  GQA_OP static std::uint32_t measure(const Block& x) {
    return static_cast<std::uint32_t>(largest_of(largest_part(x)));
  }
};
template <>
struct Quantiser<Q8_0> : BlockQuantiser {
  static constexpr Index bytes = 34;

  GQA_OP static void put(const Block& x, std::uint32_t largest, std::byte* block) {
    const float d = divided(float_of_bits(largest), 127.0f);
    const float factor = inverse(d);
    put_half(block, d);
    Ints codes[kParts];
    GQA_UNROLL
    for (int p = 0; p < kParts; ++p) codes[p] = nearest_away(x[p] * factor);
    put_bytes<true>(block + 2, codes);
  }
};
// Codes are x · factor + Most / 2 + 1 truncated, Most at the most; the first element of the largest magnitude gets 0.
template <int Most>
struct OffsetQuantiser : BlockQuantiser {
  static constexpr bool fives = Most == 31;
  static constexpr Index bytes = fives ? 22 : 18;

  GQA_OP static void put(const Block& x, std::uint32_t largest, std::byte* block) {
    constexpr int half = Most / 2 + 1;
    const float d = (largest == 0 ? 0.0f : first_with(x, largest)) / static_cast<float>(-half);
    const float factor = inverse(d);
    put_half(block, d);
    Ints codes[kParts];
    GQA_UNROLL
    for (int p = 0; p < kParts; ++p) {
      const Floats sum = unfused(x[p] * factor) + (static_cast<float>(half) + 0.5f);
      codes[p] = smaller(__builtin_convertvector(sum, Ints), spread(Most));
    }
    if constexpr (fives) put_fives(block + 2, codes);
    else put_halves(block + 2, codes);
  }
};
template <>
struct Quantiser<Q4_0> : OffsetQuantiser<15> {};
template <>
struct Quantiser<Q5_0> : OffsetQuantiser<31> {};
template <>
struct Quantiser<Q5_1> {
  static constexpr Index bytes = 24;
  float low;

  // Integers that are in the order of the numbers; −0 is before +0, and a number of its own.
  GQA_OP static Ints ordered(const Floats& x) {
    const Ints bits = reinterpret_cast<Ints>(x);
    return bits ^ reinterpret_cast<Ints>(reinterpret_cast<Words>(bits >> 31) & kMagnitudeBits);
  }
  GQA_OP static float from_ordered(std::int32_t x) {
    return float_of_bits(static_cast<std::uint32_t>(x < 0 ? x ^ 0x7fffffff : x));
  }
  GQA_OP std::uint32_t measure(const Block& x) {
    Ints most = ordered(x[0]);
    Ints least = most;
    GQA_UNROLL
    for (int p = 1; p < kParts; ++p) {
      const Ints part = ordered(x[p]);
      most = larger(most, part);
      least = smaller(least, part);
    }
    low = from_ordered(smallest_of(least));
    if (low == 0.0f) low = first_with(x, 0);  // which of the two zeros
    // NaN or an infinity where an element is.
    return bits_of_float(from_ordered(largest_of(most)) - low) & kMagnitudeBits;
  }
  GQA_OP void put(const Block& x, std::uint32_t range, std::byte* block) const {
    const float d = divided(float_of_bits(range), 31.0f);
    const float factor = inverse(d);
    put_half(block, d);
    put_half(block + 2, low);
    Ints codes[kParts];
    GQA_UNROLL
    for (int p = 0; p < kParts; ++p) codes[p] = __builtin_convertvector(unfused((x[p] - low) * factor) + 0.5f, Ints);
    put_fives(block + 4, codes);
  }
};
template <>
struct Quantiser<Iq4Nl> {
  static constexpr Index bytes = 18;

  // By code: what it is worth; twice the least number that has it, but for code 0.
  struct Tables {
    alignas(64) float worth[16];
    alignas(64) float least[16];
  };
  static constexpr Tables tables = [] {
    Tables made{};
    for (int i = 0; i < 16; ++i) {
      made.worth[i] = static_cast<float>(kUnevenNibbles[i]);
      if (i > 0) made.least[i] = static_cast<float>(kUnevenNibbles[i - 1] + kUnevenNibbles[i]);
    }
    return made;
  }();
  // See nearest_uneven.
  GQA_OP static Ints nearest(const Floats& x) {
    const Floats twice = x + x;
    Ints code{};
    GQA_UNROLL
    for (int bit = 8; bit > 0; bit /= 2) code = twice >= picked(tables.least, code + bit) ? code + bit : code;
    return code;
  }
  GQA_OP static std::uint32_t measure(const Block& x) {
    const std::uint32_t largest = BlockQuantiser::measure(x);
    return float_of_bits(largest) < 1e-15f ? kInfinityBits : largest;  // zeros, which have no scale
  }
  GQA_OP static void put(const Block& x, std::uint32_t largest, std::byte* block) {
    const float factor = 1.0f / divided(first_with(x, largest), static_cast<float>(kUnevenNibbles[0]));
    Ints codes[kParts];
    alignas(64) float qx[kQuants], qq[kQuants];
    GQA_UNROLL
    for (int p = 0; p < kParts; ++p) {
      codes[p] = nearest(x[p] * factor);
      const Floats q = picked(tables.worth, codes[p]);
      const Floats weighted = x[p] * x[p] * q;
      store(qx + p * kLanes, unfused(weighted * x[p]));
      store(qq + p * kLanes, unfused(weighted * q));
    }
    float sum_qx = 0.0f;  // added up one by one, as they are there
    float sum_qq = 0.0f;
    for (Index i = 0; i < kQuants; ++i) {
      sum_qx += qx[i];
      sum_qq += qq[i];
    }
    put_half(block, sum_qq > 0.0f ? sum_qx / sum_qq : 0.0f);
    put_halves(block + 2, codes);
  }
};
template <>
struct Quantiser<Mxfp4> : BlockQuantiser {
  static constexpr Index bytes = 17;

  GQA_OP static void put(const Block& x, std::uint32_t largest, std::byte* block) {
    const std::uint32_t exponent = largest >> 23;
    const std::uint32_t scale = exponent < 2 ? 0 : exponent - 2;
    const float factor = float_of_bits((254u - scale) << 23);
    put_byte(block, 0, static_cast<int>(scale));
    Ints codes[kParts];
    GQA_UNROLL
    for (int p = 0; p < kParts; ++p) {
      const Ints code = smaller(small_float<1, 1>(x[p] * factor), spread(7));
      codes[p] = code == 0 ? code : code | reinterpret_cast<Ints>(bits_of(x[p]) >> 28 & 8u);
    }
    put_halves(block + 1, codes);
  }
};
