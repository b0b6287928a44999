// SPDX-License-Identifier: Apache-2.0
// The codecs' encoders once more, for registers of kLanes floats: the bytes of the codecs' own, which say what they are. Once per instruction
// set, after detail/row_ops.inl and what takes Ints apart: widened, pack_16 and so on. A codec is quantised 32 elements at a time
// by Quantiser<Codec>, see quantisers.inl; codecs that have none are encoded by their own.

template <class Codec>
struct Quantiser {};
template <class Codec>
concept Quantises = requires {
  Quantiser<Codec>::bytes;
};

// --- registers -------------------------------------------------------------------------------------------------------

inline constexpr int kParts = static_cast<int>(kQuants) / kLanes;  // registers of 32 elements

GQA_OP Floats load_floats(const float* x) { return load<Floats>(x); }
GQA_OP Floats load_floats(const bf16* x) { return reinterpret_cast<Floats>(widened(load<HalfWords>(x)) << 16); }
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
// Their largest magnitudes.
GQA_OP Ints largest_part(const Block& x) {
  Ints most = magnitudes(x[0]);
  GQA_UNROLL
  for (int p = 1; p < kParts; ++p) most = larger(magnitudes(x[p]), most);
  return most;
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
  std::memcpy(to, &bits, sizeof bits);
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

#include "gqa/codec/quantisers.inl"

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
    if constexpr (scaled) {
      quantiser.put(block, to);
    } else {
      const std::uint32_t most = quantiser.measure(block);
      if (easy(most)) quantiser.put(block, most, to);
      else encode_row<Codec, From>(typed<const std::byte>(x + d), 1, kQuants, to, nullptr);
    }
  }
  if constexpr (scaled) quantiser.end(row, scales);
}

template <class From>
GQA_OP void widen(const std::byte* from, Index step, Index dim, std::byte* row) {
  RowEncoder fast = nullptr;  // no constant: sanitizers do not let one be compared
  if (std::is_same_v<From, bf16>) fast = kOps.bf16_to_f32;
  if (std::is_same_v<From, f16>) fast = kOps.f16_to_f32;
  if (fast != nullptr) fast(from, step, dim, row, nullptr);
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
