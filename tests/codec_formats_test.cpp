// SPDX-License-Identifier: Apache-2.0
// What codecs store: the bytes of the programs whose formats they are, how near decoded numbers are to what was encoded, and what becomes of
// numbers that no format has room for.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "support/codecs.hpp"
#include "support/random.hpp"

namespace gqa::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::string hex(const std::vector<std::byte>& bytes) {
  std::string text;
  for (const std::byte b : bytes)
    for (const int half : {4, 0}) text += "0123456789abcdef"[(static_cast<int>(b) >> half) & 15];
  return text;
}
const TestedCodec& codec_named(const std::string& name) {
  for (const TestedCodec& codec : tested_codecs())
    if (codec.name == name) return codec;
  throw std::runtime_error(name);
}

/// Four blocks of 32: mixed, small, all positive, zeros.
std::vector<float> pinned_numbers() {
  std::vector<float> x(128, 0.0f);
  for (int i = 0; i < 32; ++i) {
    const auto at = static_cast<std::size_t>(i);
    x[at] = static_cast<float>(i * 37 % 101 - 50) / 16.0f;
    x[32 + at] = static_cast<float>(i * 53 % 97 - 48) / 1024.0f;
    x[64 + at] = static_cast<float>(1 + i * 29 % 31);
  }
  return x;
}

struct Pinned {
  const char* codec;
  const char* bytes;
};

// By the PyPI package gguf 0.19.0, gguf.quants.quantize: its authors hold it to ggml's functions bit for bit.
constexpr Pinned kOfGguf[] = {
    {"q8_0",
     "4d2681df3d9af856b41270cd2b89e745a2005ebb1977d53390ee4caa0866c3217fdc"
     "0c0e810d9925b13dc855e06cf884109b28b340cb57e36ffb86139e2ab642ce5ae672"
     "d033047b736b625a524a42393129211910087f776f665e564e463d352d251d140c04"
     "00000000000000000000000000000000000000000000000000000000000000000000"},
    {"q4_0",
     "4036e046acf258bd1379df358be046acf268"
     "001ec059e26af38c059d26bf38c059e26bf3"
     "c0c308101121223233434454556566767787"
     "008088888888888888888888888888888888"},
};

TEST(CodecFormats, AreTheBytesOfOtherPrograms) {
  for (const Pinned& pinned : kOfGguf) {
    SCOPED_TRACE(pinned.codec);
    EXPECT_EQ(hex(encoded(codec_named(pinned.codec), pinned_numbers()).row), pinned.bytes);
  }
}

/// What a scale's rounding adds where it is a denormal f16: half of 2⁻²⁴ for each of up to 128 steps.
constexpr double kDenormalScale = 0x1p-18;
/// The largest error, in parts of the largest magnitude that shares a scale: half a step, and what the scale's own rounding adds.
double largest_error(const std::string& name) {
  constexpr double f16 = 0x1p-11;
  if (name == "q8_0") return 0.5 / 127.0 + f16;
  if (name == "q4_0") return 1.0 / 8.0 + f16;  // 7 is the largest on the one side
  return 0.0;
}
/// Elements that share a scale; 0: a row's.
Index scaled_together(const TestedCodec& codec) {
  return codec.type().scale_bytes() == 0 && codec.type().block_elements() > 1 ? codec.type().block_elements() : 0;
}

TEST(CodecFormats, DecodedNumbersAreNear) {
  Random random(3);
  for (const TestedCodec& codec : tested_codecs()) {
    SCOPED_TRACE(codec.name);
    for (const float size : {1.0f, 1e-3f, 300.0f}) {
      std::vector<float> x(160);
      for (float& element : x) element = size * random.normal();
      const std::vector<float> back = decoded(codec, encoded(codec, x), 160);
      const std::size_t together =
          scaled_together(codec) == 0 ? x.size() : static_cast<std::size_t>(scaled_together(codec));
      for (std::size_t begin = 0; begin < x.size(); begin += together) {
        float largest = 0.0f;
        for (std::size_t i = begin; i < begin + together; ++i) largest = std::fmax(largest, std::fabs(x[i]));
        for (std::size_t i = begin; i < begin + together; ++i)
          ASSERT_NEAR(static_cast<double>(back[i]), static_cast<double>(x[i]),
                      largest_error(codec.name) * static_cast<double>(largest) + kDenormalScale)
              << i;
      }
    }
  }
}

template <class From>
void check_types(const TestedCodec& codec, Random& random) {
  std::vector<From> elements(3 * 64);
  std::vector<float> floats(64);
  for (std::size_t i = 0; i < elements.size(); ++i) elements[i] = static_cast<From>(random.normal());
  for (std::size_t i = 0; i < floats.size(); ++i) floats[i] = static_cast<float>(elements[3 * i]);
  EXPECT_EQ(encoded(codec, elements, 3, 64), encoded(codec, floats));
}
TEST(CodecFormats, OfOtherElementsAreThoseOfTheirFloats) {
  Random random(4);
  for (const TestedCodec& codec : tested_codecs()) {
    SCOPED_TRACE(codec.name);
    check_types<float>(codec, random);
    check_types<bf16>(codec, random);
    check_types<f16>(codec, random);
  }
}

TEST(CodecFormats, PadTheLastBlockWithZeros) {
  Random random(5);
  for (const TestedCodec& codec : tested_codecs()) {
    if (codec.type().whole_blocks()) continue;
    SCOPED_TRACE(codec.name);
    for (const Index dim : {1, 15, 16, 33, 50}) {
      std::vector<float> x(static_cast<std::size_t>(dim));
      for (float& element : x) element = random.normal();
      std::vector<float> longer = x;
      longer.resize(64, 0.0f);
      const StoredRow row = encoded(codec, x), whole = encoded(codec, longer);
      EXPECT_TRUE(std::equal(row.row.begin(), row.row.end(), whole.row.begin())) << dim;
      EXPECT_EQ(row.scale, whole.scale);
      const std::vector<float> back = decoded(codec, row, dim), all = decoded(codec, whole, 64);
      EXPECT_TRUE(std::equal(back.begin(), back.end(), all.begin()));
    }
  }
}

// No input is outside of what is defined (run under UBSan as well), and what is not finite is not lost.
TEST(CodecFormats, HostileNumbersStaySeen) {
  const float hostile[] = {kInfinity, -kInfinity, std::nanf(""), -std::nanf("")};
  const float extreme[] = {std::numeric_limits<float>::max(),
                           std::numeric_limits<float>::lowest(),
                           std::numeric_limits<float>::denorm_min(),
                           -1e-39f,
                           std::numeric_limits<float>::min(),
                           1e30f,
                           -0.0f};
  for (const TestedCodec& codec : tested_codecs()) {
    SCOPED_TRACE(codec.name);
    for (const float number : hostile)
      for (const std::size_t at : {std::size_t{0}, std::size_t{17}, std::size_t{63}}) {
        std::vector<float> x(96, 0.5f);
        x[at] = number;
        const std::vector<float> back = decoded(codec, encoded(codec, x), 96);
        EXPECT_FALSE(std::isfinite(back[at])) << number << " at " << at;
        const auto together = static_cast<std::size_t>(scaled_together(codec));
        for (std::size_t i = 0; together != 0 && i < back.size(); ++i)
          if (i / together != at / together) {
            EXPECT_NEAR(back[i], 0.5f, 0.07f) << i;
          }
      }
    for (const float number : extreme)
      for (const float other : extreme) {
        std::vector<float> x(64, other);
        x[5] = number;
        const StoredRow stored = encoded(codec, x);
        EXPECT_EQ(stored, encoded(codec, x));
        static_cast<void>(decoded(codec, stored, 64));
      }
    const StoredRow zeros = encoded(codec, std::vector<float>(64, 0.0f));
    for (const float element : decoded(codec, zeros, 64)) EXPECT_EQ(element, 0.0f);
  }
}

// Bytes that nobody has encoded, whatever they are.
TEST(CodecFormats, AnyBytesCanBeDecoded) {
  Random random(6);
  for (const TestedCodec& codec : tested_codecs())
    for (int i = 0; i < 1000; ++i) {
      StoredRow row{std::vector<std::byte>(static_cast<std::size_t>(codec.type().row_bytes(64)))};
      for (std::byte& b : row.row) b = static_cast<std::byte>(random.bits());
      for (std::byte& b : row.scale) b = static_cast<std::byte>(random.bits());
      static_cast<void>(decoded(codec, row, 64));
    }
}

}  // namespace
}  // namespace gqa::test
