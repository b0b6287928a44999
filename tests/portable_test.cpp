// SPDX-License-Identifier: Apache-2.0
// The portable path's operations that are more than a loop over lanes: multiply-adds have the bits of fmaf, for every kind of number and in
// every lane; 16-bit elements widen to what they stand for.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "gqa/detail/path/kernels.hpp"
#include "support/random.hpp"

namespace gqa::test {
namespace {

using detail::kLanes;
using detail::portable::Vec;

// Called as kernels call them, whatever this unit's flags. By arithmetic in double, whether or not this target takes that; and what it does take.
GQA_BEGIN_PLAIN_REGION()
GQA_KERNEL Vec lanes_in_double(const Vec& a, const Vec& b, const Vec& c) {
  return detail::portable::fma_in_double(a, b, c);
}
GQA_KERNEL Vec one_by_one_in_double(const Vec& a, const Vec& b, const Vec& c) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = detail::portable::fma_in_double(a.lane[i], b.lane[i], c.lane[i]);
  return r;
}
GQA_KERNEL Vec lanes_as_chosen(const Vec& a, const Vec& b, const Vec& c) { return detail::portable::fma(a, b, c); }
GQA_KERNEL Vec widened_f16(const detail::portable::Words& bits) { return detail::portable::widen_f16(bits); }
GQA_KERNEL Vec widened_bf16(const detail::portable::Words& bits) { return detail::portable::widen_bf16(bits); }
#if defined(__wasm__) || defined(_WIN32)
// Emscripten 3.1.6's fmaf rounds 0x1.000006p30 * -0x1.fffff4p30 - 0x1.06248p85 the wrong way, MinGW-w64 10's 0x1p-149 * 0x1.001p0 + 0x1p-125, so vectors are held to this, and this to fmaf
// elsewhere.
GQA_KERNEL float exact_fma(float a, float b, float c) { return detail::portable::fma_in_double(a, b, c); }
#endif
#if GQA_DETAIL_WASM  // the path that takes the same arithmetic, and its own registers
GQA_KERNEL Vec lanes_in_registers(const Vec& a, const Vec& b, const Vec& c) {
  namespace wasm = detail::wasm;
  Vec r;
  wasm::store(r.lane, wasm::fma(wasm::load(a.lane), wasm::load(b.lane), wasm::load(c.lane)));
  return r;
}
#endif
GQA_END_PLAIN_REGION()

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kMax = std::numeric_limits<float>::max();

struct Terms {
  float a, b, c;
};

float from_bits(std::uint64_t bits) { return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits)); }
/// The C library's, and not what a compiler takes for it.
#if defined(__wasm__) || defined(_WIN32)
float (*volatile library_fma)(float, float, float) = exact_fma;
#else
float (*volatile library_fma)(float, float, float) = ::fmaf;
#endif

bool is_nan(float x) { return (__builtin_bit_cast(std::uint32_t, x) & 0x7fffffffu) > 0x7f800000u; }
/// Zeros keep their signs; one NaN is like another.
bool same(float x, float y) { return std::memcmp(&x, &y, sizeof x) == 0 || (is_nan(x) && is_nan(y)); }

template <class Fma>
void expect_lanes(Fma fma, const char* name, const std::array<Terms, kLanes>& terms) {
  Vec a, b, c;
  for (std::size_t i = 0; i < terms.size(); ++i) a.lane[i] = terms[i].a, b.lane[i] = terms[i].b, c.lane[i] = terms[i].c;
  const Vec sums = fma(a, b, c);
  for (std::size_t i = 0; i < terms.size(); ++i) {
    const auto [x, y, z] = terms[i];
    const float expected = library_fma(x, y, z);
    ASSERT_TRUE(same(sums.lane[i], expected)) << std::hexfloat << name << ", lane " << i << ": " << x << " * " << y
                                              << " + " << z << " is " << expected << ", not " << sums.lane[i];
  }
}

void expect_exact(const std::array<Terms, kLanes>& terms) {
  expect_lanes(lanes_in_double, "lanes in double", terms);
  expect_lanes(one_by_one_in_double, "one by one in double", terms);
  expect_lanes(lanes_as_chosen, "the path's own", terms);
#if GQA_DETAIL_WASM
  expect_lanes(lanes_in_registers, "the WebAssembly path's own", terms);
#endif
}

/// `count` draws, sixteen at a time.
template <class Draw>
void expect_exact_draws(int count, Draw draw) {
  for (int i = 0; i < count && !testing::Test::HasFatalFailure(); i += kLanes) {
    std::array<Terms, kLanes> terms;
    for (Terms& t : terms) t = draw();
    expect_exact(terms);
  }
}

std::vector<float> hard_numbers() {
  std::vector<float> numbers = {
      0.0f, 0x1p-149f, 0x1p-148f, 0x1.8p-148f, 0x1p-127f, 0x1.fffffcp-127f, 0x1p-126f, 0x1.000002p-126f,
      // squares and products of these are middles
      0x1.001p0f, 0x1.001p-75f, 0x1.001p-64f, 0x1.8p0f, 0x1.000002p0f, 0x1.fffffep-1f, 0x1.fffffep0f,
      // products of neighbours of powers of two are just below middles of sums
      0x1.000002p-75f, 0x1.fffffcp-76f, 0x1.000002p52f, 0x1.fffffcp50f, 0x1.000002p-13f, 0x1.fffffcp-13f,
      0x1.555556p-2f, 0x1.6a09e6p0f, 3.0f, 10.0f, 0x1.fffffep126f, kMax, kInfinity, kNaN};
  for (const int exponent : {-140, -125, -100, -75, -52, -29, -25, -24, -23, -12, -1,  0,  1,
                             12,   23,   24,   25,  29,  52,  63,  64,  102, 103, 104, 127})
    numbers.push_back(std::ldexp(1.0f, exponent));
  for (std::size_t i = 0, count = numbers.size(); i < count; ++i) numbers.push_back(-numbers[i]);
  return numbers;
}

TEST(PortableFma, HardNumbers) {
  const std::vector<float> numbers = hard_numbers();
  const std::size_t n = numbers.size();
  std::size_t i = 0;
  expect_exact_draws(static_cast<int>(n * n * n), [&] {
    const Terms terms{numbers[i / n / n % n], numbers[i / n % n], numbers[i % n]};
    ++i;
    return terms;
  });
}

TEST(PortableFma, AnyBits) {
  Random random(1);
  const auto any = [&] { return from_bits(random.bits() >> 32); };
  expect_exact_draws(1 << 21, [&] { return Terms{any(), any(), any()}; });
}

/// A number with few bits of a mantissa: sums of such are exact, and often middles.
float short_number(Random& random, int bits, int exponents) {
  const auto mantissa = static_cast<float>(random.below(Index{1} << bits) - (Index{1} << (bits - 1)));
  return std::ldexp(mantissa, static_cast<int>(random.below(exponents)) - exponents / 2 - bits);
}

TEST(PortableFma, ShortNumbers) {
  Random random(2);
  for (const int bits : {3, 8, 11, 13, 16})
    expect_exact_draws(1 << 19, [&] {
      return Terms{short_number(random, bits, 12), short_number(random, 24 - bits / 2, 12),
                   short_number(random, 24, 30)};
    });
}

TEST(PortableFma, NearCancellation) {
  Random random(3);
  const auto any = [&] { return from_bits((random.bits() >> 32 & 0x807fffff) | (64 + random.bits() % 128) << 23); };
  expect_exact_draws(1 << 21, [&] {
    const float a = any(), b = any();
    const auto c = __builtin_bit_cast(std::uint32_t, -a * b);
    return Terms{a, b, from_bits(c + random.bits() % 5 - 2)};
  });
}

/// Middles of floats, denormal ones and the one before infinity too, and sums so close to them that double does not tell them apart: c and
/// half a unit of its last place, times 1 − k²·2⁻⁴⁶, which is a product.
Terms near_middle(Random& random) {
  const auto exponent = static_cast<int>(random.below(254));  // as stored
  const auto mantissa = random.below(8) == 0 ? 0x7fffffu : static_cast<std::uint32_t>(random.bits() >> 41);
  const float c = from_bits(static_cast<std::uint64_t>(exponent) << 23 | mantissa | random.bits() >> 63 << 31);
  const int half_unit = (exponent == 0 ? 1 : exponent) - 127 - 24;
  const int split = half_unit / 2;
  const float part = static_cast<float>(random.below(4)) * 0x1p-23f;
  const float sign = random.below(2) == 0 ? 1.0f : -1.0f;
  return {std::ldexp(1.0f + part, split), sign * std::ldexp(1.0f - part, half_unit - split), c};
}

TEST(PortableFma, NearMiddles) {
  Random random(4);
  expect_exact_draws(1 << 20, [&] { return near_middle(random); });
  // A product of 25 bits, and hardly anything beside it.
  expect_exact_draws(1 << 20, [&] {
    const Terms products{short_number(random, 13, 40), short_number(random, 12, 40), 0.0f};
    return Terms{products.a, products.b, std::ldexp(short_number(random, 24, 30), -60)};
  });
}

/// Only one lane is hard, each in turn; another may be infinite or NaN.
TEST(PortableFma, EachLane) {
  Random random(5);
  for (int i = 0; i < 1 << 14 && !HasFatalFailure(); ++i) {
    std::array<Terms, kLanes> terms;
    for (Terms& t : terms) t = {random.normal(), random.normal(), random.normal()};
    constexpr float odd_ones[] = {kInfinity, kNaN, 0.0f, kMax, -kInfinity};
    terms[static_cast<std::size_t>(random.below(kLanes))].c = odd_ones[random.below(5)];
    terms[static_cast<std::size_t>(i % kLanes)] = near_middle(random);
    expect_exact(terms);
  }
}

TEST(PortableWidening, Every16Bits) {
  std::array<std::uint16_t, kLanes> words;
  for (std::uint32_t first = 0; first < 0x10000u; ++first) {
    for (std::uint32_t i = 0; i < words.size(); ++i) words[i] = static_cast<std::uint16_t>(first + i * 0x1003u);
    const auto bits = detail::portable::load_words(reinterpret_cast<const std::byte*>(words.data()));
    const Vec from_f16 = widened_f16(bits), from_bf16 = widened_bf16(bits);
    for (std::size_t i = 0; i < words.size(); ++i) {
      ASSERT_TRUE(same(from_f16.lane[i], detail::float_from_f16(words[i]))) << "f16 " << words[i] << ", lane " << i;
      ASSERT_TRUE(same(from_bf16.lane[i], detail::float_from_bf16(words[i]))) << "bf16 " << words[i] << ", lane " << i;
    }
  }
}

}  // namespace
}  // namespace gqa::test
