// SPDX-License-Identifier: Apache-2.0
// The codecs' encoders once more, for registers of kLanes floats: the bytes of the codecs' own, which say what they are. Once per instruction
// set, after detail/row_ops.inl and what takes Ints apart: pack_16, signs and fold_to_four.
//
// A codec is quantised 32 elements at a time by Quantiser<Codec>, which leaves what is rare to the codec's own encoder: see easy(). Of codecs
// with a scale a block it is no more than
//
//   bytes          that 32 elements are stored in
//   put(x, to)     to ← 32 elements; false: it has not
//
// and of those with a scale a row, whose elements are easy all, besides,
//
//   begin(most)    takes the row's largest magnitude, as bits, before anything else
//   end(row, scales)   stores what a row has once; `before` bytes of it are before its elements

template <class Codec>
struct Quantiser {};
template <class Codec>
concept Quantises = requires {
  Quantiser<Codec>::bytes;
};

// --- registers -------------------------------------------------------------------------------------------------------

inline constexpr int kParts = static_cast<int>(kQuants) / kLanes;  // registers of 32 elements

GQA_OP Floats load_floats(const float* x) { return load<Floats>(x); }
GQA_OP Floats load_floats(const bf16* x) {
  return reinterpret_cast<Floats>(__builtin_convertvector(load<HalfWords>(x), Words) << 16);
}
GQA_OP Floats spread(float value) { return value - Floats{}; }
GQA_OP Ints spread(std::int32_t value) { return value - Ints{}; }
GQA_OP Words bits_of(const Floats& x) { return reinterpret_cast<Words>(x); }
GQA_OP Ints magnitudes(const Floats& x) { return reinterpret_cast<Ints>(bits_of(x) & kMagnitudeBits); }
GQA_OP Ints larger(const Ints& a, const Ints& b) { return a > b ? a : b; }
GQA_OP Ints smaller(const Ints& a, const Ints& b) { return a < b ? a : b; }
// Whether a scale that is made of this magnitude, as bits, is a normal number, and its inverse one. Then elements by such a scale are numbers
// and, but for the rounding of a few products, within its range: codes need no clamping. Zeros have the scale 0 and the codes of 0.
GQA_OP bool easy(std::uint32_t magnitude) {
  constexpr std::uint32_t least = (127u - 110u) << 23;  // 2^-110; no format divides by more than 2^16
  return magnitude - least < kInfinityBits - least || magnitude == 0;
}
// See round_even and round_away, whose bits these have.
GQA_OP Ints nearest_even(const Floats& x) {
  constexpr float shift = 12582912.0f;  // 1.5 · 2^23
  return reinterpret_cast<Ints>(bits_of(x + shift) - __builtin_bit_cast(std::uint32_t, shift));
}
// What is added is the number below 1/2: of those that are added to 1/2 and more the sum is rounded up, of no other.
GQA_OP Ints nearest_away(const Floats& x) {
  const Words half = (bits_of(x) & ~kMagnitudeBits) | 0x3effffffu;
  return __builtin_convertvector(x + reinterpret_cast<Floats>(half), Ints);
}

// The largest, the smallest and the sum of the elements.
#if defined(__clang__)
template <int... Lane>
GQA_OP FourInts shuffled_four(const FourInts& x) {
  return __builtin_shufflevector(x, x, Lane...);
}
#else
template <int... Lane>
GQA_OP FourInts shuffled_four(const FourInts& x) {
  return __builtin_shuffle(x, FourInts{Lane...});
}
#endif
template <class Pair>
GQA_OP std::int32_t folded(const Ints& x, const Pair& pair) {
  const FourInts four = fold_to_four(x, pair);
  const FourInts two = pair(four, shuffled_four<2, 3, 0, 1>(four));
  return pair(two, shuffled_four<1, 0, 3, 2>(two))[0];
}
GQA_OP std::int32_t largest_of(const Ints& x) {
  return folded(
      x, [](const auto& a, const auto& b) __attribute__((always_inline)) { return a > b ? a : b; });
}
GQA_OP std::int32_t smallest_of(const Ints& x) {
  return folded(
      x, [](const auto& a, const auto& b) __attribute__((always_inline)) { return a < b ? a : b; });
}
GQA_OP std::int32_t sum_of(const Ints& x) {
  return folded(
      x, [](const auto& a, const auto& b) __attribute__((always_inline)) { return a + b; });
}

// --- 32 elements -----------------------------------------------------------------------------------------------------

using Block = Floats[kParts];
template <class From>
GQA_OP void load_block(const From* x, Block& block) {
  GQA_UNROLL
  for (int p = 0; p < kParts; ++p) block[p] = load_floats(x + p * kLanes);
}
// Their largest magnitude, and `most`.
GQA_OP Ints largest_part(const Block& x) {
  Ints most = magnitudes(x[0]);
  GQA_UNROLL
  for (int p = 1; p < kParts; ++p) most = larger(magnitudes(x[p]), most);
  return most;
}
GQA_OP std::uint32_t largest_of_block(const Block& x) {
  return static_cast<std::uint32_t>(largest_of(largest_part(x)));
}
// The first element of a magnitude; +0 where there is none.
GQA_OP float first_with(const Block& x, std::uint32_t magnitude) {
  Ints bits[kParts];
  GQA_UNROLL
  for (int p = 0; p < kParts; ++p) bits[p] = reinterpret_cast<Ints>(x[p]);
  const std::uint32_t positive = equal(bits, static_cast<std::int32_t>(magnitude));
  const std::uint32_t negative = equal(bits, static_cast<std::int32_t>(magnitude | ~kMagnitudeBits));
  // The lowest bit of all is among those of the negative ones?
  const std::uint32_t all = positive | negative;
  return float_of_bits(magnitude | ((all & (~all + 1u) & negative) != 0 ? ~kMagnitudeBits : 0u));
}

template <bool Signed>
GQA_OP void put_bytes(std::byte* to, const Ints (&codes)[kParts]) {
  pack_16<Signed>(codes, to);
  pack_16<Signed>(codes + kParts / 2, to + 16);
}
// See put_nibbles, of codes below 16, and put_five_bits.
GQA_OP void put_halves(std::byte* to, const Ints (&codes)[kParts]) {
  Ints pairs[kParts / 2];
  GQA_UNROLL
  for (int p = 0; p < kParts / 2; ++p) pairs[p] = codes[p] | (codes[p + kParts / 2] << 4);
  pack_16<false>(pairs, to);
}
GQA_OP void put_fives(std::byte* to, const Ints (&codes)[kParts]) {
  Ints fifth[kParts], four[kParts];
  GQA_UNROLL
  for (int p = 0; p < kParts; ++p) {
    fifth[p] = codes[p] << 27;
    four[p] = codes[p] & 15;
  }
  const std::uint32_t bits = signs(fifth);
  for (int i = 0; i < 4; ++i) put_byte(to, i, static_cast<int>(bits >> (8 * i) & 255u));
  put_halves(to + 4, four);
}
GQA_OP void put_half(std::byte* to, float value) {
#if GQA_DETAIL_ROWS_F16C
  const auto bits =
      static_cast<std::uint16_t>(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(value), _MM_FROUND_TO_NEAREST_INT)));
  std::memcpy(to, &bits, sizeof bits);
#else
  put_f16(to, value);
#endif
}

// --- a scale a row ---------------------------------------------------------------------------------------------------

// An f32 scale outside of rows, that the largest magnitude is `Most` times of.
template <int Most>
struct ScaledQuantiser {
  static constexpr Index before = 0;
  float scale;
  float divisor;

  GQA_OP void begin(std::uint32_t most) {
    scale = float_of_bits(most) / static_cast<float>(Most);
    divisor = most == 0 ? 1.0f : scale;
  }
  GQA_OP void end(std::byte*, std::byte* scales) const { std::memcpy(scales, &scale, sizeof scale); }
};
template <>
struct Quantiser<Int8> : ScaledQuantiser<127> {
  static constexpr Index bytes = 32;

  GQA_OP bool put(const Block& x, std::byte* to) const {
    Ints codes[kParts];
    GQA_UNROLL
    for (int p = 0; p < kParts; ++p) codes[p] = nearest_even(x[p] / divisor);
    put_bytes<true>(to, codes);
    return true;
  }
};
template <>
struct Quantiser<Int4> : ScaledQuantiser<7> {
  static constexpr Index bytes = 16;

  GQA_OP bool put(const Block& x, std::byte* to) const {
    Ints codes[kParts];
    GQA_UNROLL
    for (int p = 0; p < kParts; ++p) codes[p] = nearest_even(x[p] / divisor) + 8;
    put_halves(to, codes);
    return true;
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
    scale = float_of_bits(most) / 127.0f;
    factor = inverse(scale);
    sums = Ints{};
  }
  GQA_OP bool put(const Block& x, std::byte* to) {
    Ints codes[kParts];
    GQA_UNROLL
    for (int p = 0; p < kParts; ++p) {
      codes[p] = nearest_even(x[p] * factor);
      sums += codes[p];
    }
    put_bytes<true>(to, codes);
    return true;
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

  GQA_OP bool put(const Block& x, std::byte* to) const {
    Ints codes[kParts];
    GQA_UNROLL
    for (int p = 0; p < kParts; ++p)
      codes[p] = small_float<Mantissa, Fp8Format<Mantissa>::bias>(x[p] / this->divisor) |
                 reinterpret_cast<Ints>(bits_of(x[p]) >> 24 & 0x80u);
    put_bytes<false>(to, codes);
    return true;
  }
};
template <>
struct Quantiser<Fp8E4M3> : Fp8Quantiser<3> {};
template <>
struct Quantiser<Fp8E5M2> : Fp8Quantiser<2> {};

// --- a scale a block -------------------------------------------------------------------------------------------------

template <>
struct Quantiser<Q8_0> {
  static constexpr Index bytes = 34;

  GQA_OP static bool put(const Block& x, std::byte* block) {
    const std::uint32_t largest = largest_of_block(x);
    if (!easy(largest)) return false;
    const float d = float_of_bits(largest) / 127.0f;
    const float factor = inverse(d);
    put_half(block, d);
    Ints codes[kParts];
    GQA_UNROLL
    for (int p = 0; p < kParts; ++p) codes[p] = nearest_away(x[p] * factor);
    put_bytes<true>(block + 2, codes);
    return true;
  }
};
// x · factor + Most / 2 + 1 truncated, Most at the most, for an element of the largest magnitude that is −Most / 2 − 1/2.
template <int Most>
GQA_OP bool put_scale_and_code(const Block& x, std::byte* block, Ints (&codes)[kParts]) {
  constexpr int half = Most / 2 + 1;
  const std::uint32_t largest = largest_of_block(x);
  if (!easy(largest)) return false;
  const float d = (largest == 0 ? 0.0f : first_with(x, largest)) / static_cast<float>(-half);
  const float factor = inverse(d);
  put_half(block, d);
  GQA_UNROLL
  for (int p = 0; p < kParts; ++p) {
    const Floats sum = unfused(x[p] * factor) + (static_cast<float>(half) + 0.5f);
    codes[p] = smaller(__builtin_convertvector(sum, Ints), spread(Most));
  }
  return true;
}
template <>
struct Quantiser<Q4_0> {
  static constexpr Index bytes = 18;

  GQA_OP static bool put(const Block& x, std::byte* block) {
    Ints codes[kParts];
    if (!put_scale_and_code<15>(x, block, codes)) return false;
    put_halves(block + 2, codes);
    return true;
  }
};
template <>
struct Quantiser<Q5_0> {
  static constexpr Index bytes = 22;

  GQA_OP static bool put(const Block& x, std::byte* block) {
    Ints codes[kParts];
    if (!put_scale_and_code<31>(x, block, codes)) return false;
    put_fives(block + 2, codes);
    return true;
  }
};
template <>
struct Quantiser<Q5_1> {
  static constexpr Index bytes = 24;

  // Integers that are in the order of the numbers; −0 is before +0, and a number of its own.
  GQA_OP static Ints ordered(const Floats& x) {
    const Ints bits = reinterpret_cast<Ints>(x);
    return bits ^ reinterpret_cast<Ints>(reinterpret_cast<Words>(bits >> 31) & kMagnitudeBits);
  }
  GQA_OP static float from_ordered(std::int32_t x) {
    return float_of_bits(static_cast<std::uint32_t>(x < 0 ? x ^ 0x7fffffff : x));
  }
  GQA_OP static bool put(const Block& x, std::byte* block) {
    Ints most = ordered(x[0]);
    Ints least = most;
    GQA_UNROLL
    for (int p = 1; p < kParts; ++p) {
      const Ints part = ordered(x[p]);
      most = larger(most, part);
      least = smaller(least, part);
    }
    float low = from_ordered(smallest_of(least));
    if (low == 0.0f) low = first_with(x, 0);  // which of the two zeros
    const float range = from_ordered(largest_of(most)) - low;
    if (!easy(bits_of_float(range) & kMagnitudeBits)) return false;  // NaN or an infinity where an element is
    const float d = range / 31.0f;
    const float factor = inverse(d);
    put_half(block, d);
    put_half(block + 2, low);
    Ints codes[kParts];
    GQA_UNROLL
    for (int p = 0; p < kParts; ++p) codes[p] = __builtin_convertvector(unfused((x[p] - low) * factor) + 0.5f, Ints);
    put_fives(block + 4, codes);
    return true;
  }
};
template <>
struct Quantiser<Iq4Nl> {
  static constexpr Index bytes = 18;

  // See nearest_uneven; and what the codes are worth.
  GQA_OP static void code(const Floats& x, Ints& code, Ints& worth) {
    code = Ints{};
    worth = spread(std::int32_t{kUnevenNibbles[0]});
    const Floats twice = x + x;
    GQA_UNROLL
    for (int i = 1; i < 16; ++i) {
      const std::int32_t step = kUnevenNibbles[i] - kUnevenNibbles[i - 1];
      const Ints above = twice >= static_cast<float>(kUnevenNibbles[i - 1] + kUnevenNibbles[i]);
      code -= above;
      worth += above & step;
    }
  }
  GQA_OP static bool put(const Block& x, std::byte* block) {
    const std::uint32_t largest = largest_of_block(x);
    if (!easy(largest) || float_of_bits(largest) < 1e-15f) return false;
    const float factor = 1.0f / (first_with(x, largest) / static_cast<float>(kUnevenNibbles[0]));
    Ints codes[kParts];
    alignas(64) float qx[kQuants], qq[kQuants];
    GQA_UNROLL
    for (int p = 0; p < kParts; ++p) {
      Ints worth;
      code(x[p] * factor, codes[p], worth);
      const auto q = __builtin_convertvector(worth, Floats);
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
    return true;
  }
};
template <>
struct Quantiser<Mxfp4> {
  static constexpr Index bytes = 17;

  GQA_OP static bool put(const Block& x, std::byte* block) {
    const std::uint32_t largest = largest_of_block(x);
    if (!easy(largest)) return false;
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
    return true;
  }
};

// --- rows ------------------------------------------------------------------------------------------------------------

// `dim` elements side by side, and zeros behind them up to a multiple of 32.
template <class Codec, class From>
inline __attribute__((noinline)) void quantise(const From* x, Index dim, std::byte* row, std::byte* scales) {
  using Kind = Quantiser<Codec>;
  Kind quantiser;
  Block block;
  std::byte* to = row;
  constexpr bool scaled = requires { quantiser.begin(0u); };
  if constexpr (scaled) {
    Ints parts{};
    for (Index d = 0; d < dim; d += kQuants) {
      load_block(x + d, block);
      parts = larger(parts, largest_part(block));
    }
    const auto most = static_cast<std::uint32_t>(largest_of(parts));
    if (!easy(most)) return encode_row<Codec, From>(typed<const std::byte>(x), 1, dim, row, scales);
    quantiser.begin(most);
    to += Kind::before;
  }
  for (Index d = 0; d < dim; d += kQuants, to += Kind::bytes) {
    load_block(x + d, block);
    if constexpr (KvType(Codec::type).block_elements() == 1) {
      if (dim - d < kQuants) {  // a byte an element
        std::byte last[kQuants];
        quantiser.put(block, last);
        std::memcpy(to, last, static_cast<std::size_t>(dim - d));
        break;
      }
    }
    if (!quantiser.put(block, to)) encode_row<Codec, From>(typed<const std::byte>(x + d), 1, kQuants, to, nullptr);
  }
  if constexpr (scaled) quantiser.end(row, scales);
}

template <class From>
GQA_OP void widen(const std::byte* from, Index step, Index dim, std::byte* row) {
  constexpr RowEncoder fast = std::is_same_v<From, bf16>  ? kOps.bf16_to_f32
                              : std::is_same_v<From, f16> ? kOps.f16_to_f32
                                                          : nullptr;
  if constexpr (fast != nullptr) fast(from, step, dim, row, nullptr);
  else F32::encode<From>(from, step, dim, row, nullptr);
}
// RowEncoder.
template <class Codec, class From>
inline void encode_quants(const std::byte* from, Index step, Index dim, std::byte* row, std::byte* scales) {
  constexpr Index few = 1024;
  if constexpr (!std::is_same_v<From, f16>)
    if (step == 1 && dim % kQuants == 0) return quantise<Codec>(typed<const From>(from), dim, row, scales);
  if (dim > few) return Codec::template encode<From>(from, step, dim, row, scales);
  alignas(64) float x[few];
  widen<From>(from, step, dim, typed<std::byte>(x));
  for (Index d = dim; d % kQuants != 0; ++d) x[d] = 0.0f;
  quantise<Codec>(static_cast<const float*>(x), dim, row, scales);
}
template <class Codec, class From>
constexpr RowEncoder encoder() noexcept {
  if constexpr (Quantises<Codec>) return encode_quants<Codec, From>;
  else return encode_row<Codec, From>;
}
