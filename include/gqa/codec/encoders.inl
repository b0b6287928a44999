// SPDX-License-Identifier: Apache-2.0
// The codecs' encoders once more, for registers of kLanes floats: the bytes of the codecs' own, which say what they are. Once per instruction
// set, after detail/row_ops.inl and what takes Ints apart: pack_16 and signs.
//
// A codec is quantised 32 elements at a time by Quantiser<Codec>. Of codecs with a scale a block that is no more than
//
//   bytes                 that 32 elements are stored in
//   put(x, to)            to ← 32 floats
//
// and of those with a scale a row, besides,
//
//   finite                the row's largest magnitude is that of finite elements
//   begin(largest)        takes that, as bits, before anything else
//   end(row, scales)      stores what a row has once; `before` bytes of it are before its elements

template <class Codec>
struct Quantiser {};
template <class Codec>
concept Quantises = requires {
  Quantiser<Codec>::bytes;
};

// --- registers -------------------------------------------------------------------------------------------------------

inline constexpr int kParts = static_cast<int>(kQuants) / kLanes;  // registers of 32 elements

GQA_OP Floats spread(float value) { return value - Floats{}; }
GQA_OP Ints spread(std::int32_t value) { return value - Ints{}; }
GQA_OP Words bits_of(const Floats& x) { return reinterpret_cast<Words>(x); }
GQA_OP Ints magnitudes(const Floats& x) { return reinterpret_cast<Ints>(bits_of(x) & kMagnitudeBits); }
GQA_OP Ints larger(const Ints& a, const Ints& b) { return a > b ? a : b; }
// See clamped, round_even and round_away, whose bits these have.
GQA_OP Floats within(const Floats& x, float low, float high) {
  const Floats number = magnitudes(x) > static_cast<std::int32_t>(kInfinityBits) ? Floats{} : x;
  const Floats raised = number < low ? spread(low) : number;
  return raised > high ? spread(high) : raised;
}
GQA_OP Ints nearest_even(const Floats& x) {
  constexpr float shift = 12582912.0f;  // 1.5 · 2^23
  return reinterpret_cast<Ints>(bits_of(x + shift) - __builtin_bit_cast(std::uint32_t, shift));
}
// What is added is the number below 1/2: of those that are added to 1/2 and more the sum is rounded up, of no other.
GQA_OP Ints nearest_away(const Floats& x) {
  const Words half = (bits_of(x) & ~kMagnitudeBits) | 0x3effffffu;
  return __builtin_convertvector(x + reinterpret_cast<Floats>(half), Ints);
}

// The largest, and the sum, of the elements.
template <class Pair>
GQA_OP std::int32_t folded(const Ints& x, const Pair& pair) {
  typedef std::int32_t Four __attribute__((vector_size(16)));
  Four four[kLanes / 4];
  std::memcpy(four, &x, sizeof x);
  GQA_UNROLL
  for (int step = kLanes / 8; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) four[i] = pair(four[i], four[i + step]);
  const Four all = four[0];
  return pair(pair(all[0], all[1]), pair(all[2], all[3]));
}
GQA_OP std::int32_t largest_of(const Ints& x) {
  return folded(
      x, [](const auto& a, const auto& b) __attribute__((always_inline)) { return a > b ? a : b; });
}
GQA_OP std::int32_t sum_of(const Ints& x) {
  return folded(
      x, [](const auto& a, const auto& b) __attribute__((always_inline)) { return a + b; });
}

// --- 32 elements -----------------------------------------------------------------------------------------------------

// Their largest magnitude, and `most`.
template <bool Finite = false>
GQA_OP Ints largest_part(const float* x, Ints most) {
  GQA_UNROLL
  for (int p = 0; p < kParts; ++p) {
    Ints magnitude = magnitudes(load<Floats>(x + p * kLanes));
    if constexpr (Finite) magnitude = magnitude < static_cast<std::int32_t>(kInfinityBits) ? magnitude : Ints{};
    most = larger(magnitude, most);
  }
  return most;
}
GQA_OP std::uint32_t largest_of_block(const float* x) {
  return static_cast<std::uint32_t>(largest_of(largest_part(x, Ints{})));
}
// The first element of a magnitude that there is.
GQA_OP float first_with(const float* x, std::uint32_t magnitude) {
  Ints those[kParts];
  GQA_UNROLL
  for (int p = 0; p < kParts; ++p)
    those[p] = magnitudes(load<Floats>(x + p * kLanes)) == static_cast<std::int32_t>(magnitude);
  return x[__builtin_ctz(signs(those))];
}

template <class Code>
GQA_OP void code_all(const float* x, const Code& code, Ints (&codes)[kParts]) {
  GQA_UNROLL
  for (int p = 0; p < kParts; ++p) codes[p] = code(load<Floats>(x + p * kLanes));
}
GQA_OP void put_bytes(std::byte* to, const Ints (&codes)[kParts]) {
  pack_16(codes, to);
  pack_16(codes + kParts / 2, to + 16);
}
// See put_nibbles and put_five_bits.
GQA_OP void put_halves(std::byte* to, const Ints (&codes)[kParts]) {
  Ints pairs[kParts / 2];
  GQA_UNROLL
  for (int p = 0; p < kParts / 2; ++p) pairs[p] = (codes[p] & 15) | (codes[p + kParts / 2] << 4);
  pack_16(pairs, to);
}
GQA_OP void put_fives(std::byte* to, const Ints (&codes)[kParts]) {
  Ints fifth[kParts];
  GQA_UNROLL
  for (int p = 0; p < kParts; ++p) fifth[p] = codes[p] << 27;
  const std::uint32_t bits = signs(fifth);
  for (int i = 0; i < 4; ++i) put_byte(to, i, static_cast<int>(bits >> (8 * i) & 255u));
  put_halves(to + 4, codes);
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

// See quotient.
GQA_OP Ints quotients(const Floats& x, float scale, float most) { return nearest_even(within(x / scale, -most, most)); }

template <>
struct Quantiser<Int8> {
  static constexpr Index bytes = 32;
  static constexpr bool finite = false;
  static constexpr Index before = 0;
  float scale;

  GQA_OP void begin(std::uint32_t largest) { scale = row_scale(largest, 127.0f); }
  GQA_OP void put(const float* x, std::byte* to) {
    Ints codes[kParts];
    code_all(
        x, [this](const Floats& part) __attribute__((always_inline)) { return quotients(part, scale, 127.0f); }, codes);
    put_bytes(to, codes);
  }
  GQA_OP void end(std::byte*, std::byte* scales) const { std::memcpy(scales, &scale, sizeof scale); }
};
template <>
struct Quantiser<Int4> {
  static constexpr Index bytes = 16;
  static constexpr bool finite = false;
  static constexpr Index before = 0;
  float scale;

  GQA_OP void begin(std::uint32_t largest) { scale = row_scale(largest, 7.0f); }
  GQA_OP void put(const float* x, std::byte* to) {
    Ints codes[kParts];
    code_all(
        x, [this](const Floats& part) __attribute__((always_inline)) { return quotients(part, scale, 7.0f) + 8; },
        codes);
    put_halves(to, codes);
  }
  GQA_OP void end(std::byte*, std::byte* scales) const { std::memcpy(scales, &scale, sizeof scale); }
};
template <>
struct Quantiser<Q8Kv> {
  static constexpr Index bytes = 32;
  static constexpr bool finite = false;
  static constexpr Index before = 8;
  float scale;
  float factor;
  Ints sums;

  GQA_OP void begin(std::uint32_t largest) {
    scale = row_scale(largest, 127.0f);
    factor = inverse(scale);
    sums = Ints{};
  }
  GQA_OP void put(const float* x, std::byte* to) {
    Ints codes[kParts];
    code_all(
        x,
        [this](const Floats& part)
            __attribute__((always_inline)) { return nearest_even(within(part * factor, -127.0f, 127.0f)); },
        codes);
    GQA_UNROLL
    for (int p = 0; p < kParts; ++p) sums += codes[p];
    put_bytes(to, codes);
  }
  GQA_OP void end(std::byte* row, std::byte*) const {
    const std::int32_t sum = sum_of(sums);
    std::memcpy(row, &scale, sizeof scale);
    std::memcpy(row + 4, &sum, sizeof sum);
  }
};

// The magnitude's code, `most` at the most, in a format of so many bits of mantissa: to nearest, ties to even. See fp8_of_float.
template <int Mantissa, int Bias>
GQA_OP Ints small_float(const Floats& x, std::int32_t most) {
  constexpr std::uint32_t dropped = 23 - Mantissa;
  constexpr auto least = static_cast<std::uint32_t>(128 - Bias);  // exponent of normal numbers, as an f32 has it
  const Words magnitude = bits_of(x) & kMagnitudeBits;
  const Words rounded = magnitude + ((1u << (dropped - 1)) - 1u) + (magnitude >> dropped & 1u);
  const Ints normal = reinterpret_cast<Ints>((rounded >> dropped) - ((least - 1u) << Mantissa));
  const Ints subnormal =
      nearest_even(reinterpret_cast<Floats>(magnitude) * float_of_bits((254u - least + Mantissa) << 23));
  const Ints code = reinterpret_cast<Ints>(magnitude) < static_cast<std::int32_t>(least << 23) ? subnormal : normal;
  return code > most ? spread(most) : code;
}

template <int Mantissa>
struct Fp8Quantiser {
  using Format = Fp8Format<Mantissa>;
  static constexpr Index bytes = 32;
  static constexpr bool finite = true;
  static constexpr Index before = 0;
  float scale;

  GQA_OP void begin(std::uint32_t largest) { scale = float_of_bits(largest) / Format::largest_value; }
  GQA_OP void put(const float* x, std::byte* to) {
    Ints codes[kParts];
    code_all(
        x,
        [this](const Floats& part) __attribute__((always_inline)) {
          const Floats quotient = scale != 0.0f ? part / scale : part * 0.0f;
          const Ints magnitude = magnitudes(quotient);
          constexpr auto infinity = static_cast<std::int32_t>(kInfinityBits);
          Ints code = small_float<Mantissa, Format::bias>(quotient, Format::largest);
          code = magnitude < infinity ? code : spread(0x7f);
          if constexpr (Mantissa == 2) code = magnitude == infinity ? spread(0x7c) : code;
          return code | reinterpret_cast<Ints>(bits_of(quotient) >> 24 & 0x80u);
        },
        codes);
    put_bytes(to, codes);
  }
  GQA_OP void end(std::byte*, std::byte* scales) const { std::memcpy(scales, &scale, sizeof scale); }
};
template <>
struct Quantiser<Fp8E4M3> : Fp8Quantiser<3> {};
template <>
struct Quantiser<Fp8E5M2> : Fp8Quantiser<2> {};

// --- a scale a block -------------------------------------------------------------------------------------------------

template <>
struct Quantiser<Q8_0> {
  static constexpr Index bytes = 34;

  GQA_OP static void put(const float* x, std::byte* block) {
    const std::uint32_t largest = largest_of_block(x);
    if (largest >= kInfinityBits) return put_nan_block(block, bytes);
    const float d = float_of_bits(largest) / 127.0f;
    const float factor = inverse(d);
    put_half(block, d);
    Ints codes[kParts];
    code_all(
        x,
        [factor](const Floats& part)
            __attribute__((always_inline)) { return nearest_away(within(part * factor, -127.0f, 127.0f)); },
        codes);
    put_bytes(block + 2, codes);
  }
};
// Codes of what is truncated after `offset` has been added.
GQA_OP void truncated(const float* x, float least, float factor, float offset, float most, Ints (&codes)[kParts]) {
  code_all(
      x,
      [=](const Floats& part) __attribute__((always_inline)) {
        return __builtin_convertvector(within(unfused((part - least) * factor) + offset, 0.0f, most), Ints);
      },
      codes);
}
template <>
struct Quantiser<Q4_0> {
  static constexpr Index bytes = 18;

  GQA_OP static void put(const float* x, std::byte* block) {
    const std::uint32_t largest = largest_of_block(x);
    if (largest >= kInfinityBits) return put_nan_block(block, bytes);
    const float d = (largest == 0 ? 0.0f : first_with(x, largest)) / -8.0f;
    put_half(block, d);
    Ints codes[kParts];
    truncated(x, 0.0f, inverse(d), 8.5f, 15.0f, codes);
    put_halves(block + 2, codes);
  }
};
template <>
struct Quantiser<Q5_0> {
  static constexpr Index bytes = 22;

  GQA_OP static void put(const float* x, std::byte* block) {
    const std::uint32_t largest = largest_of_block(x);
    if (largest >= kInfinityBits) return put_nan_block(block, bytes);
    const float d = (largest == 0 ? 0.0f : first_with(x, largest)) / -16.0f;
    put_half(block, d);
    Ints codes[kParts];
    truncated(x, 0.0f, inverse(d), 16.5f, 31.0f, codes);
    put_fives(block + 2, codes);
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
  GQA_OP static void put(const float* x, std::byte* block) {
    if (largest_of_block(x) >= kInfinityBits) return put_nan_block(block, bytes);
    Ints most = ordered(load<Floats>(x));
    Ints least = ~most;  // ~x is in the opposite order
    GQA_UNROLL
    for (int p = 1; p < kParts; ++p) {
      const Ints part = ordered(load<Floats>(x + p * kLanes));
      most = larger(most, part);
      least = larger(least, ~part);
    }
    float low = from_ordered(~largest_of(least));
    if (low == 0.0f) low = first_with(x, 0);  // which of the two zeros
    const float d = (from_ordered(largest_of(most)) - low) / 31.0f;
    put_half(block, d);
    put_half(block + 2, low);
    Ints codes[kParts];
    truncated(x, low, inverse(d), 0.5f, 31.0f, codes);
    put_fives(block + 4, codes);
  }
};
template <>
struct Quantiser<Mxfp4> {
  static constexpr Index bytes = 17;

  GQA_OP static void put(const float* x, std::byte* block) {
    const std::uint32_t largest = largest_of_block(x);
    if (largest >= kInfinityBits) {
      std::memset(block, 0, bytes);
      return put_byte(block, 0, 255);
    }
    const std::uint32_t exponent = largest >> 23;
    const std::uint32_t scale = exponent < 2 ? 0 : exponent - 2;
    const float factor = float_of_bits((254u - scale) << 23);
    put_byte(block, 0, static_cast<int>(scale));
    Ints codes[kParts];
    code_all(
        x,
        [factor](const Floats& part) __attribute__((always_inline)) {
          const Ints code = small_float<1, 1>(part * factor, 7);
          return code == 0 ? code : code | reinterpret_cast<Ints>(bits_of(part) >> 28 & 8u);
        },
        codes);
    put_halves(block + 1, codes);
  }
};

// --- rows ------------------------------------------------------------------------------------------------------------

// A row's elements as floats, a chunk at a time.
inline constexpr Index kChunk = 8 * kQuants;
struct RowFloats {
  const std::byte* from;
  Index step;
  Index dim;
  Index element;       // bytes of one
  RowEncoder widened;  // null where they are floats side by side
  Index held;          // the chunk that is in `chunk`
  alignas(64) float chunk[kChunk];

  // Elements d … d + 255, those there are, and zeros up to a multiple of 32.
  GQA_OP const float* at(Index d, Index count) {
    const std::byte* const first = from + d * step * element;
    const Index rest = count % kQuants;
    if (widened == nullptr && rest == 0) return typed<const float>(first);
    if (held == d) return chunk;
    held = d;
    if (rest != 0) std::memset(chunk + (count - rest), 0, static_cast<std::size_t>(kQuants) * sizeof(float));
    if (widened == nullptr) std::memcpy(chunk, first, static_cast<std::size_t>(count) * sizeof(float));
    else widened(first, step, count, typed<std::byte>(chunk), nullptr);
    return chunk;
  }
};

template <class Codec>
inline __attribute__((noinline)) void quantise(RowFloats& in, std::byte* row, std::byte* scales) {
  using Kind = Quantiser<Codec>;
  Kind quantiser;
  std::byte* to = row;
  const auto of_chunk = [&in](Index d) __attribute__((always_inline)) {
    return in.dim - d < kChunk ? in.dim - d : kChunk;
  };
  constexpr bool scaled = requires { quantiser.begin(0u); };
  if constexpr (scaled) {
    Ints most{};
    for (Index d = 0; d < in.dim; d += kChunk) {
      const Index count = of_chunk(d);
      const float* const x = in.at(d, count);
      for (Index i = 0; i < count; i += kQuants) most = largest_part<Kind::finite>(x + i, most);
    }
    quantiser.begin(static_cast<std::uint32_t>(largest_of(most)));
    to += Kind::before;
  }
  for (Index d = 0; d < in.dim; d += kChunk) {
    const Index count = of_chunk(d);
    const float* const x = in.at(d, count);
    for (Index i = 0; i < count; i += kQuants, to += Kind::bytes) {
      if constexpr (KvType(Codec::type).block_elements() == 1) {
        if (count - i < kQuants) {  // a byte an element
          std::byte last[kQuants];
          quantiser.put(x + i, last);
          std::memcpy(to, last, static_cast<std::size_t>(count - i));
          break;
        }
      }
      quantiser.put(x + i, to);
    }
  }
  if constexpr (scaled) quantiser.end(row, scales);
}

template <class From>
inline void widen(const std::byte* from, Index step, Index dim, std::byte* row, std::byte* scale) {
  constexpr RowEncoder fast = std::is_same_v<From, bf16>  ? kOps.bf16_to_f32
                              : std::is_same_v<From, f16> ? kOps.f16_to_f32
                                                          : nullptr;
  if constexpr (fast != nullptr) fast(from, step, dim, row, scale);
  else F32::encode<From>(from, step, dim, row, scale);
}
// RowEncoder.
template <class Codec, class From>
inline void encode_quants(const std::byte* from, Index step, Index dim, std::byte* row, std::byte* scales) {
  const bool as_they_are = std::is_same_v<From, float> && step == 1;
  RowFloats in;
  in.from = from;
  in.step = step;
  in.dim = dim;
  in.element = sizeof(From);
  in.widened = as_they_are ? nullptr : widen<From>;
  in.held = -1;
  quantise<Codec>(in, row, scales);
}
template <class Codec, class From>
constexpr RowEncoder encoder() noexcept {
  if constexpr (Quantises<Codec>) return encode_quants<Codec, From>;
  else return encode_row<Codec, From>;
}
