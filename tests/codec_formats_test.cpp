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
  float factor;  // of the numbers
  const char* bytes;
};

// By the PyPI package gguf 0.19.0, gguf.quants.quantize, whose authors hold it to ggml's functions; mxfp4 of numbers without ties, where it has
// its own way.
constexpr Pinned kOfGguf[] = {
    {"q8_0", 1.0f,
     "4d2681df3d9af856b41270cd2b89e745a2005ebb1977d53390ee4caa0866c3217fdc"
     "0c0e810d9925b13dc855e06cf884109b28b340cb57e36ffb86139e2ab642ce5ae672"
     "d033047b736b625a524a42393129211910087f776f665e564e463d352d251d140c04"
     "00000000000000000000000000000000000000000000000000000000000000000000"},
    {"q4_0", 1.0f,
     "4036e046acf258bd1379df358be046acf268"
     "001ec059e26af38c059d26bf38c059e26bf3"
     "c0c308101121223233434454556566767787"
     "008088888888888888888888888888888888"},
    {"q5_0", 1.0f,
     "4032a4a52d6dc07c38f3bf6b26e2ae5a15d18d49f4c0"
     "001aaa5295aa8092b3c5e6f8192b4c5e7f80a2b3d5e6"
     "c0bf000000000f112233445566778899aabbccddeeff"
     "0080ffffffff00000000000000000000000000000000"},
    {"q5_1", 1.0f,
     "743240c2a4a52d6db07b37e3af6a26d29d5905c18c48f4b0"
     "df1900aaaa52b5aa90a2c3d5f608193b4c6e7f90a2c3d5f6"
     "be3b003cfe01ff00f0debc9a78563412e0cdab8967452301"
     "000000000000000000000000000000000000000000000000"},
    {"mxfp4", 1.01f,
     "7e6fdb357fc956fea267ed147fdb357ec0"
     "785fd16eb47e95fd26eb47e95fc26eb47e"
     "8171777777777767666656554544332211"
     "0000000000000000000000000000000000"},
};
// By ggml's quantize_row_iq4_nl_ref (llama.cpp 01243c58) and ik_llama.cpp's quantize_row_q8_KV (8337e4cd), which gguf does not have.
constexpr Pinned kOfPrograms[] = {
    {"iq4_nl", 1.0f,
     "5526e035acf147ce1269df249bf036bdf158"
     "e80dd049e15bf27c049e15bf27d049e16bf2"
     "c8b308001111112222333343445555667687"
     "000000000000000000000000000000000000"},
    {"q8_KV", 1.0f,
     "e8f3793ef0070000f3fd06f6ff09f8020bfb04f4fd07f70009f9030cfc05f5fe08f7"
     "010afa030dfc00000000000000000000000000000000000000000000000000000000"
     "00000000047b736b625a524a42393129211910087f776f665e564e463d352d251d14"
     "0c040000000000000000000000000000000000000000000000000000000000000000"},
};

void check_pinned(const Pinned& pinned) {
  SCOPED_TRACE(pinned.codec);
  std::vector<float> x = pinned_numbers();
  for (float& element : x) element *= pinned.factor;
  EXPECT_EQ(hex(encoded(codec_named(pinned.codec), x).row), pinned.bytes);
}
TEST(CodecFormats, AreTheBytesOfOtherPrograms) {
  for (const Pinned& pinned : kOfGguf) check_pinned(pinned);
  for (const Pinned& pinned : kOfPrograms) check_pinned(pinned);
}

// Where ggml takes an element's sign for zero, and where it does not.
TEST(CodecFormats, OfNegativeZerosAreThoseOfGgml) {
  std::vector<float> x(32, -0.0f);
  EXPECT_EQ(hex(encoded(codec_named("q4_0"), x).row), "008088888888888888888888888888888888");
  x[0] = 0.0f;
  x[2] = 1.0f;
  EXPECT_EQ(hex(encoded(codec_named("q5_1"), x).row), "212800000400000000000f00000000000000000000000000");
}

/// What a scale's rounding adds where it is a denormal f16: half of 2⁻²⁴ for each of up to 128 steps.
constexpr double kDenormalScale = 0x1p-18;
/// The largest error, in parts of the largest magnitude that shares a scale: half a step, and what the scale's own rounding adds.
double largest_error(const std::string& name) {
  constexpr double f16 = 0x1p-11;
  if (name == "q8_0") return 0.5 / 127.0 + f16;
  if (name == "q4_0") return 1.0 / 8.0 + f16;  // 7 is the largest on the one side
  if (name == "q5_0") return 1.0 / 16.0 + f16;
  if (name == "q5_1") return 2.0 * (0.5 / 31.0 + 2.0 * f16);  // of the distance from the least to the largest
  if (name == "iq4_nl") return 0.12;                          // 14 of 127, and the fitted scale
  if (name == "q8_KV" || name == "int8") return 0.5 / 127.0 * (1.0 + 0x1p-20);
  if (name == "int4") return 0.5 / 7.0 * (1.0 + 0x1p-20);
  if (name == "fp8_e4m3") return 0x1p-4;
  if (name == "fp8_e5m2") return 0x1p-3;
  if (name == "mxfp4") return 0.25;  // from 6 to below 8
  throw std::runtime_error(name);
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

// Every code, what lies halfway between two, and what lies beside that, by the formats' definition in double precision.
template <class Codec>
void check_floats(int mantissa, int bias, int codes, double largest) {
  const auto value = [&](int code) {
    const int exponent = code >> mantissa, fraction = code & ((1 << mantissa) - 1);
    if (exponent == 0) return std::ldexp(fraction, 1 - bias - mantissa);
    return std::ldexp((1 << mantissa) + fraction, exponent - bias - mantissa);
  };
  // `largest` itself is in every row: the scale is 1.
  const auto code_of = [&](float x) {
    const float row[2] = {static_cast<float>(largest), x};
    std::byte bytes[2], scale[4];
    Codec::template encode<float>(reinterpret_cast<const std::byte*>(row), 1, 2, bytes, scale);
    EXPECT_EQ(static_cast<int>(bytes[0]), codes - 1);
    float back[2];
    Codec::decode(bytes, scale, 2, back);
    const int code = static_cast<int>(bytes[1]);
    if (std::isfinite(back[1])) {
      EXPECT_EQ(static_cast<double>(std::fabs(back[1])), value(code & 0x7f));
      EXPECT_EQ(std::signbit(back[1]), code > 0x7f);
    }
    return code;
  };
  ASSERT_EQ(value(codes - 1), largest);
  for (int code = 0; code < codes; ++code) {
    const auto exact = static_cast<float>(value(code));
    ASSERT_EQ(code_of(exact), code);
    ASSERT_EQ(code_of(-exact), code | 0x80);
    if (code + 1 == codes) continue;
    const auto middle = static_cast<float>((value(code) + value(code + 1)) / 2);
    ASSERT_EQ(code_of(middle), code % 2 == 0 ? code : code + 1);
    ASSERT_EQ(code_of(std::nextafter(middle, 0.0f)), code);
    ASSERT_EQ(code_of(std::nextafter(middle, kInfinity)), code + 1);
  }
}
TEST(CodecFormats, EightBitFloatsAreRoundedToNearestEven) {
  check_floats<Fp8E4M3>(3, 7, 0x7f, 448.0);
  check_floats<Fp8E5M2>(2, 15, 0x7c, 57344.0);
  std::byte row[3], scale[4];
  float back[3];
  const float numbers[3] = {1.0f, kInfinity, std::nanf("")};
  const auto* const from = reinterpret_cast<const std::byte*>(numbers);
  Fp8E5M2::encode<float>(from, 1, 3, row, scale);
  Fp8E5M2::decode(row, scale, 3, back);
  EXPECT_EQ(back[1], kInfinity);
  EXPECT_TRUE(std::isnan(back[2]));
  Fp8E4M3::encode<float>(from, 1, 3, row, scale);
  Fp8E4M3::decode(row, scale, 3, back);
  EXPECT_TRUE(std::isnan(back[1]));
  EXPECT_EQ(back[0], 1.0f);
}

TEST(CodecFormats, FourBitFloatsAreRoundedToNearestEven) {
  std::vector<float> x(32, 0.0f);
  const float halves[] = {4.0f, 0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f, 7.9f, -0.25f, -5.0f, 6.0f, -7.0f};
  const float rounded[] = {4.0f, 0.0f, 1.0f, 1.0f, 2.0f, 2.0f, 4.0f, 4.0f, 6.0f, 0.0f, -4.0f, 6.0f, -6.0f};
  for (const float factor : {1.0f, 0x1p-20f, 0x1p-125f, 0x1p125f}) {
    for (std::size_t i = 0; i < std::size(halves); ++i) x[i] = factor * halves[i];
    const std::vector<float> back = decoded(codec_named("mxfp4"), encoded(codec_named("mxfp4"), x), 32);
    for (std::size_t i = 0; i < std::size(halves); ++i) EXPECT_EQ(back[i], factor * rounded[i]) << factor << ", " << i;
  }
}

// Every scale and code of MXFP4, those included that encoding never stores.
TEST(CodecFormats, FourBitFloatsAreDecodedByTheirDefinition) {
  constexpr double codes[] = {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0};
  for (int scale = 0; scale < 256; ++scale) {
    StoredRow row{std::vector<std::byte>(17)};
    row.row[0] = static_cast<std::byte>(scale);
    for (int i = 0; i < 16; ++i) row.row[static_cast<std::size_t>(1 + i)] = static_cast<std::byte>(i * 16 + i);
    const std::vector<float> back = decoded(codec_named("mxfp4"), row, 32);
    for (int i = 0; i < 32; ++i) {
      const int code = i % 16;
      const auto exact = static_cast<float>(std::ldexp(codes[code % 8], scale - 127));
      const float element = back[static_cast<std::size_t>(i)];
      if (scale == 255) EXPECT_TRUE(std::isnan(element)) << code;
      else EXPECT_EQ(element, code < 8 ? exact : -exact) << scale << ", " << code;
    }
  }
}

TEST(CodecFormats, OfIntegersHaveTheirRanges) {
  const std::vector<float> x = {12.7f, -12.7f, 0.05f, 0.15f, -0.25f, 0.04f};  // ties, by a scale of 0.1
  const StoredRow row = encoded(codec_named("int8"), x);
  EXPECT_EQ(static_cast<int>(row.row[0]), 127);
  EXPECT_EQ(static_cast<std::int8_t>(row.row[1]), -127);
  const std::vector<float> ties = {7.0f, -7.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 0.49f};
  EXPECT_EQ(decoded(codec_named("int4"), encoded(codec_named("int4"), ties), 8),
            (std::vector<float>{7.0f, -7.0f, 0.0f, 2.0f, 2.0f, 0.0f, -2.0f, 0.0f}));
  std::vector<float> many = {127.0f, 0.5f, 1.5f, 2.5f, -2.5f, 126.5f};
  EXPECT_EQ(decoded(codec_named("int8"), encoded(codec_named("int8"), many), 6),
            (std::vector<float>{127.0f, 0.0f, 2.0f, 2.0f, -2.0f, 126.0f}));
  StoredRow lowest{std::vector<std::byte>{std::byte{0x80}}};
  const float one = 1.0f;
  std::memcpy(lowest.scale.data(), &one, sizeof one);
  EXPECT_EQ(decoded(codec_named("int8"), lowest, 1), std::vector<float>{-128.0f});
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
