// SPDX-License-Identifier: Apache-2.0
/// @file
/// The portable path: the logical vector is an array of 16 floats. Slow, and the definition of what the f32 paths compute.
#pragma once

#include "gqa/detail/path/region.hpp"

GQA_BEGIN_PORTABLE_REGION()

namespace gqa::detail::inline GQA_ABI::portable {

struct Vec {
  float lane[kLanes];
};

inline constexpr int kQkSums = 2;  // accumulators of a score tile: rows × tokens
inline constexpr int kQkRows = 1;  // the most rows of a score tile
inline constexpr int kStripParts = 1;
template <class Codec, class Whole>
using StripDot = Whole;
inline constexpr int kHeldQueries = 0;  // queries are not held
inline constexpr int kRowTokens = 0;    // no lanes that are rows
inline constexpr int kRowPanels = 1;
inline constexpr bool kRowsSideBySide = false;
inline constexpr int kPvSums = 1;     // accumulators of an output tile: rows × vectors
inline constexpr int kPvRows = 1;     // the most rows of an output tile
inline constexpr int kPvWeights = 1;  // weights that are loaded at once
template <class Codec>
inline constexpr StreamRows kStreamRows = {1, 1};

GQA_OP Vec set1(float value) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = value;
  return r;
}
GQA_OP Vec zero() { return set1(0.0f); }
GQA_OP Vec load(const float* p) {
  Vec r;
  __builtin_memcpy(r.lane, p, sizeof r.lane);
  return r;
}
GQA_OP void store(float* p, const Vec& a) { __builtin_memcpy(p, a.lane, sizeof a.lane); }
GQA_OP Vec add(const Vec& a, const Vec& b) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = a.lane[i] + b.lane[i];
  return r;
}
GQA_OP Vec sub(const Vec& a, const Vec& b) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = a.lane[i] - b.lane[i];
  return r;
}
GQA_OP Vec mul(const Vec& a, const Vec& b) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = a.lane[i] * b.lane[i];
  return r;
}
GQA_OP Vec div(const Vec& a, const Vec& b) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = a.lane[i] / b.lane[i];
  return r;
}
// A product that is rounded before it is added to something, see region.hpp.
GQA_OP Vec unfused(Vec product) {
#if defined(__clang__) && GQA_DETAIL_X86
  for (int i = 0; i < kLanes; ++i) asm("" : "+x"(product.lane[i]));
#elif defined(__clang__) && defined(__aarch64__)
  for (int i = 0; i < kLanes; ++i) asm("" : "+w"(product.lane[i]));
#endif
  return product;
}
// One of two numbers, by their bits: Clang takes more of the unit's flags for granted where it chooses between floats.
GQA_OP float choose(bool first, float a, float b) {
#if defined(__clang__)
  return __builtin_bit_cast(float, first ? __builtin_bit_cast(int, a) : __builtin_bit_cast(int, b));
#else
  return first ? a : b;
#endif
}
#include "gqa/detail/path/portable_fma.inl"
// b where a is NaN, like the x86 instruction.
GQA_OP Vec larger(const Vec& a, const Vec& b) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = choose(a.lane[i] > b.lane[i], a.lane[i], b.lane[i]);
  return r;
}
// The floats whose bits are those of a shifted left by N.
template <int N>
GQA_OP Vec shift_left(const Vec& a) {
  Vec r;
  for (int i = 0; i < kLanes; ++i)
    r.lane[i] = __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, a.lane[i]) << N);
  return r;
}
template <int N>
GQA_OP Vec shift_right(const Vec& a) {
  Vec r;
  for (int i = 0; i < kLanes; ++i)
    r.lane[i] = __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, a.lane[i]) >> N);
  return r;
}
GQA_OP std::uint32_t float_bits(float a) { return __builtin_bit_cast(std::uint32_t, a); }
GQA_OP Vec bit_and(const Vec& a, const Vec& b) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = __builtin_bit_cast(float, float_bits(a.lane[i]) & float_bits(b.lane[i]));
  return r;
}
GQA_OP Vec bit_or(const Vec& a, const Vec& b) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = __builtin_bit_cast(float, float_bits(a.lane[i]) | float_bits(b.lane[i]));
  return r;
}
GQA_OP Vec bit_xor(const Vec& a, const Vec& b) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = __builtin_bit_cast(float, float_bits(a.lane[i]) ^ float_bits(b.lane[i]));
  return r;
}
// Lanes of ones where it holds, else of zeros; it does not where a lane is NaN.
GQA_OP Vec less(const Vec& a, const Vec& b) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = __builtin_bit_cast(float, a.lane[i] < b.lane[i] ? ~0u : 0u);
  return r;
}
GQA_OP Vec less_equal(const Vec& a, const Vec& b) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = __builtin_bit_cast(float, a.lane[i] <= b.lane[i] ? ~0u : 0u);
  return r;
}
// The lanes' highest bits.
GQA_OP std::uint32_t sign_bits(const Vec& a) {
  std::uint32_t r = 0;
  for (int i = 0; i < kLanes; ++i) r |= float_bits(a.lane[i]) >> 31 << i;
  return r;
}
// value, but 0 where x < floor. NaN in x keeps value.
GQA_OP Vec zero_below(const Vec& x, const Vec& floor, const Vec& value) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = choose(x.lane[i] < floor.lane[i], 0.0f, value.lane[i]);
  return r;
}
// a where the lane's highest bit is set, else b.
GQA_OP Vec select_negative(const Vec& bits, const Vec& a, const Vec& b) {
  Vec r;
  for (int i = 0; i < kLanes; ++i)
    r.lane[i] = choose((__builtin_bit_cast(std::uint32_t, bits.lane[i]) >> 31) != 0, a.lane[i], b.lane[i]);
  return r;
}
// a where the lane's bit is set, else b.
GQA_OP Vec select(std::uint64_t bits, const Vec& a, const Vec& b) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = choose(((bits >> i) & 1u) != 0, a.lane[i], b.lane[i]);
  return r;
}
GQA_OP float reduce_max(const Vec& a) {
  float r = a.lane[0];
  for (int i = 1; i < kLanes; ++i) r = choose(a.lane[i] > r, a.lane[i], r);
  return r;
}
// The fixed tree: lanes i and i + 8, then i + 4, i + 2, i + 1.
GQA_OP float reduce_add(Vec a) {
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a.lane[i] = a.lane[i] + a.lane[i + half];
  return a.lane[0];
}
GQA_OP void reduce_sums(const Vec (&acc)[kQkSums], float* sums) {
  for (int i = 0; i < kQkSums; ++i) sums[i] = reduce_add(acc[i]);
}
// Vector i, lane j ↔ vector j, lane i.
GQA_OP void transpose(Vec (&r)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const float swapped = r[i].lane[j];
      r[i].lane[j] = r[j].lane[i];
      r[j].lane[i] = swapped;
    }
  }
}
GQA_OP bool any_nonfinite(const Vec& a) {
  bool found = false;
  for (int i = 0; i < kLanes; ++i) found |= (__builtin_bit_cast(std::uint32_t, a.lane[i]) & 0x7f800000u) == 0x7f800000u;
  return found;
}

// The first `count` floats; zeros behind them, nothing read there.
GQA_OP Vec load_floats_part(const std::byte* p, Index count) {
  Vec r = zero();
  for (Index i = 0; i < count; ++i) {
    float value;
    __builtin_memcpy(&value, p + i * 4, 4);
    r.lane[i] = value;
  }
  return r;
}
// 16-bit elements, all or the first few: read as they are widened, zeros behind them.
struct Words {
  const std::byte* p;
  GQA_OP std::uint16_t operator[](Index i) const {
    std::uint16_t bits;
    __builtin_memcpy(&bits, p + i * 2, 2);
    return bits;
  }
};
struct FewWords {
  Words words;
  Index count;
};
GQA_OP Words load_words(const std::byte* p) { return {p}; }
GQA_OP FewWords load_words_part(const std::byte* p, Index count) { return {{p}, count}; }
#if defined(__SSE2__)  // what GCC 12 makes of the loops below takes longer than the multiply-add
GQA_OP __m128i load_eight(const Words& bits, int first) {
  __m128i eight;
  __builtin_memcpy(&eight, bits.p + first * 2, sizeof eight);
  return eight;
}
GQA_OP Vec widen_bf16(const Words& bits) {
  Vec r;
  GQA_UNROLL
  for (int i = 0; i < kLanes; i += 8) {
    const __m128i eight = load_eight(bits, i);
    _mm_storeu_ps(r.lane + i, _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), eight)));
    _mm_storeu_ps(r.lane + i + 4, _mm_castsi128_ps(_mm_unpackhi_epi16(_mm_setzero_si128(), eight)));
  }
  return r;
}
#include "gqa/detail/path/f16_in_integers.inl"
GQA_OP Vec widen_f16(const Words& bits) {
  Vec r;
  GQA_UNROLL
  for (int i = 0; i < kLanes; i += 8) {
    const __m128i eight = load_eight(bits, i);
    _mm_storeu_ps(r.lane + i,
                  floats_of_upper_halves(__builtin_bit_cast(Ints, _mm_unpacklo_epi16(_mm_setzero_si128(), eight))));
    _mm_storeu_ps(r.lane + i + 4,
                  floats_of_upper_halves(__builtin_bit_cast(Ints, _mm_unpackhi_epi16(_mm_setzero_si128(), eight))));
  }
  return r;
}
#else
GQA_OP Vec widen_bf16(const Words& bits) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = float_from_bf16(bits[i]);
  return r;
}
GQA_OP Vec widen_f16(const Words& bits) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = float_from_f16(bits[i]);
  return r;
}
#endif
GQA_OP Vec widen_bf16(const FewWords& bits) {
  Vec r = zero();
  for (Index i = 0; i < bits.count; ++i) r.lane[i] = float_from_bf16(bits.words[i]);
  return r;
}
GQA_OP Vec widen_f16(const FewWords& bits) {
  Vec r = zero();
  for (Index i = 0; i < bits.count; ++i) r.lane[i] = float_from_f16(bits.words[i]);
  return r;
}
// 16 bytes, all or the first few; zeros behind them, nothing read there.
struct Bytes {
  std::uint8_t lane[kLanes];
};
GQA_OP Bytes load_bytes(const void* p) {
  Bytes r;
  __builtin_memcpy(r.lane, p, sizeof r.lane);
  return r;
}
GQA_OP Bytes load_bytes_part(const std::byte* p, Index count) {
  Bytes r{};
  for (Index i = 0; i < count; ++i) r.lane[i] = static_cast<std::uint8_t>(p[i]);
  return r;
}
// The lower or the upper four bits of each.
template <bool Upper>
GQA_OP Bytes nibbles(Bytes a) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] = static_cast<std::uint8_t>(Upper ? a.lane[i] >> 4 : a.lane[i] & 15);
  return a;
}
// table[index], indices below 16.
GQA_OP Bytes look_up(const Bytes& table, Bytes index) {
  for (int i = 0; i < kLanes; ++i) index.lane[i] = table.lane[index.lane[i] & 15];
  return index;
}
inline constexpr bool kLooksUpFloats = false;  // by the bits of a lane, among 16
// Signed bytes as floats.
GQA_OP Vec widen_i8(const Bytes& a) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = static_cast<float>(static_cast<std::int8_t>(a.lane[i]));
  return r;
}
// The lanes' lowest bits.
GQA_OP Vec byte_bits(const Bytes& a) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = __builtin_bit_cast(float, std::uint32_t{a.lane[i]});
  return r;
}
// Every lane the f16 at p.
GQA_OP Vec set1_f16(const std::byte* p) { return set1(float_from_f16(Words{p}[0])); }
#include "gqa/codec/loads.inl"
template <class Codec>
GQA_OP void store_as(std::byte* p, const Vec& a) {
  for (int i = 0; i < kLanes; ++i) {
    if constexpr (Codec::type == ElementType::f32) {
      __builtin_memcpy(p + i * 4, &a.lane[i], 4);
    } else {
      const std::uint16_t bits =
          Codec::type == ElementType::bf16 ? bf16_from_float(a.lane[i]) : f16_from_float(a.lane[i]);
      __builtin_memcpy(p + i * 2, &bits, 2);
    }
  }
}
#include "gqa/detail/path/one_piece.inl"
#include "gqa/detail/path/prefetch.inl"

#define GQA_LONG_OP GQA_KERNEL  // lane by lane, too long to be inlined
#define GQA_STRIP_LOOP
#define GQA_KERNEL_PATH Path::portable
#define GQA_KERNELS_NAME "gqa_kernels_portable"
#include "gqa/detail/path/kernel.inl"
#undef GQA_KERNEL_PATH
#undef GQA_KERNELS_NAME
#undef GQA_LONG_OP
#undef GQA_STRIP_LOOP
#include "gqa/detail/path/ints_plain.inl"

}  // namespace gqa::detail::inline GQA_ABI::portable

GQA_END_PLAIN_REGION()
