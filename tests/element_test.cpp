// SPDX-License-Identifier: Apache-2.0
// The 16-bit storage types: widening is exact, narrowing rounds to nearest with ties to even.
#include "gqa/element.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "support/random.hpp"

namespace gqa {
namespace {

static_assert(sizeof(bf16) == 2 && alignof(bf16) == 2 && std::is_trivially_copyable_v<bf16>);
static_assert(sizeof(f16) == 2 && alignof(f16) == 2 && std::is_trivially_copyable_v<f16>);
static_assert(Element<float> && Element<bf16> && Element<f16> && Element<const bf16>);
static_assert(!Element<double> && !Element<int> && !Element<std::uint16_t>);
static_assert(bf16(1.0f).bits == 0x3f80 && f16(1.0f).bits == 0x3c00, "conversions are constant expressions");
static_assert(static_cast<float>(bf16(-2.5f)) == -2.5f && static_cast<float>(f16(-2.5f)) == -2.5f);

/// The value of a 16-bit format by its definition: sign, exponent bits, mantissa bits.
double value_of(std::uint16_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) return mantissa != 0 ? std::nan("") : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}

struct Bf16 {
  using Type = bf16;
  static constexpr int exponent_bits = 8;
  static constexpr int mantissa_bits = 7;
};
struct F16 {
  using Type = f16;
  static constexpr int exponent_bits = 5;
  static constexpr int mantissa_bits = 10;
};

template <class Format>
class SixteenBits : public testing::Test {
 protected:
  using Type = typename Format::Type;
  static double value(std::uint32_t bits) {
    return value_of(static_cast<std::uint16_t>(bits), Format::exponent_bits, Format::mantissa_bits);
  }
  static float widened(std::uint32_t bits) {
    Type x;
    x.bits = static_cast<std::uint16_t>(bits);
    return static_cast<float>(x);
  }
};
using Formats = testing::Types<Bf16, F16>;
TYPED_TEST_SUITE(SixteenBits, Formats);

TYPED_TEST(SixteenBits, WideningIsExactForEveryPattern) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const double expected = this->value(bits);
    const float wide = this->widened(bits);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(wide)) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(wide), expected) << bits;
      ASSERT_EQ(std::signbit(wide), (bits & 0x8000) != 0) << bits;
    }
  }
}

TYPED_TEST(SixteenBits, NarrowingUndoesWidening) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const float wide = this->widened(bits);
    const typename TypeParam::Type back(wide);
    if (std::isnan(wide)) {
      ASSERT_TRUE(std::isnan(static_cast<float>(back))) << bits;
    } else {
      ASSERT_EQ(back.bits, bits);
    }
  }
}

// Between every two neighbours: just below the middle, the middle, just above it.
TYPED_TEST(SixteenBits, NarrowingRoundsToNearestWithTiesToEven) {
  const std::uint32_t infinity = ((1u << TypeParam::exponent_bits) - 1u) << TypeParam::mantissa_bits;
  for (std::uint32_t sign : {0u, 0x8000u})
    for (std::uint32_t low = 0; low < infinity; ++low) {
      const std::uint32_t high = low + 1;
      // Past the largest number the middle is where the next one would be.
      const double step = low + 1 == infinity ? this->value(low) - this->value(low - 1) : this->value(high) - this->value(low);
      const double exact_middle = (this->value(low) + step / 2.0) * (sign != 0 ? -1.0 : 1.0);
      const auto middle = static_cast<float>(exact_middle);
      if (static_cast<double>(middle) != exact_middle) continue;  // bf16 denormals: the middle is no float
      const float toward_zero = std::nextafterf(middle, 0.0f);
      const float away = std::nextafterf(middle, sign != 0 ? -INFINITY : INFINITY);
      using Narrow = typename TypeParam::Type;
      ASSERT_EQ(Narrow(middle).bits, sign | (low % 2 == 0 ? low : high)) << low;
      ASSERT_EQ(Narrow(toward_zero).bits, sign | low) << low;
      ASSERT_EQ(Narrow(away).bits, sign | high) << low;
    }
}

TYPED_TEST(SixteenBits, NarrowingGivesTheNearestNumberForRandomFloats) {
  test::Random random(201);
  using Narrow = typename TypeParam::Type;
  for (int i = 0; i < 200000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(random.bits()));
    const Narrow narrow(value);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(static_cast<float>(narrow)));
      continue;
    }
    const double mine = static_cast<double>(static_cast<float>(narrow));
    if (std::isinf(mine)) continue;  // where infinity begins is the test before
    const double error = std::abs(mine - static_cast<double>(value));
    for (const int step : {-1, 1}) {
      const double neighbour = this->value(static_cast<std::uint32_t>(narrow.bits + step) & 0xffffu);
      if (std::isfinite(neighbour) && std::signbit(neighbour) == std::signbit(mine)) {
        ASSERT_LE(error, std::abs(neighbour - static_cast<double>(value))) << value;
      }
    }
  }
}

TEST(Elements, NaNStaysNaNAndKeepsItsSign) {
  for (const std::uint32_t bits : {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
    const auto value = std::bit_cast<float>(bits);
    EXPECT_TRUE(std::isnan(static_cast<float>(bf16(value)))) << bits;
    EXPECT_TRUE(std::isnan(static_cast<float>(f16(value)))) << bits;
    EXPECT_EQ(bf16(value).bits >> 15, bits >> 31);
    EXPECT_EQ(f16(value).bits >> 15, bits >> 31);
  }
}

TEST(Elements, NamesAndSizes) {
  EXPECT_STREQ(element_name(ElementType::f32), "f32");
  EXPECT_STREQ(element_name(ElementType::bf16), "bf16");
  EXPECT_STREQ(element_name(ElementType::f16), "f16");
  EXPECT_EQ(element_bytes(ElementType::f32), 4);
  EXPECT_EQ(element_bytes(ElementType::bf16), 2);
  EXPECT_EQ(element_bytes(ElementType::f16), 2);
}

}  // namespace
}  // namespace gqa
