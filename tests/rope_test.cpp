// SPDX-License-Identifier: Apache-2.0
// Rotary embeddings: frequencies as published, rows turned by them, keys shifted where they are, and what is refused.
#include "gqa/rope.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <complex>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "support/random.hpp"

namespace gqa {
namespace {

constexpr double kTwoPi = 6.283185307179586476925;

std::vector<double> frequencies_of(const RopeOptions& options) {
  const Rope rope(options, 1);
  return {rope.frequencies().begin(), rope.frequencies().end()};
}

// Of the papers, each in its own words.
TEST(RopeFrequencies, PlainAndLinear) {
  const auto plain = frequencies_of({.dims = 128, .base = 500000.0});
  const auto linear = frequencies_of({.dims = 128, .base = 500000.0, .scaling = RopeScaling::linear, .factor = 4.0});
  ASSERT_EQ(plain.size(), 64u);
  for (std::size_t i = 0; i < 64; ++i) {
    const double expected = 1.0 / std::pow(500000.0, static_cast<double>(i) / 64.0);
    EXPECT_NEAR(plain[i], expected, 1e-15 * expected);
    EXPECT_NEAR(linear[i], expected / 4.0, 1e-15 * expected);
  }
}

TEST(RopeFrequencies, NtkKeepsTheFirstPairAndDividesTheLast) {
  const auto plain = frequencies_of({.dims = 64});
  const auto ntk = frequencies_of({.dims = 64, .scaling = RopeScaling::ntk, .factor = 8.0});
  EXPECT_EQ(ntk.front(), 1.0);
  EXPECT_NEAR(ntk.back(), plain.back() / 8.0, 1e-13 * plain.back());
}

// Llama 3.1 8B: factor 8, 1 and 4, 8192 positions.
TEST(RopeFrequencies, Llama3) {
  const RopeOptions options{
      .dims = 128, .base = 500000.0, .scaling = RopeScaling::llama3, .factor = 8.0, .original_positions = 8192};
  const auto scaled = frequencies_of(options);
  for (std::size_t i = 0; i < 64; ++i) {
    const double plain = std::pow(500000.0, -static_cast<double>(i) / 64.0);
    const double turns = 8192.0 * plain / kTwoPi;  // over the original positions
    const double kept = turns > 4.0 ? 1.0 : turns < 1.0 ? 0.0 : (turns - 1.0) / 3.0;
    EXPECT_NEAR(scaled[i], plain * (kept + (1.0 - kept) / 8.0), 1e-14 * plain) << i;
  }
  EXPECT_EQ(scaled[0], 1.0);
  EXPECT_NEAR(scaled[63], std::pow(500000.0, -63.0 / 64.0) / 8.0, 1e-20);
}

// gpt-oss: base 150000, factor 32, 4096 positions, no truncation; attention factor 0.1 ln 32 + 1.
TEST(RopeFrequencies, Yarn) {
  const RopeOptions options{.dims = 64,
                            .base = 150000.0,
                            .scaling = RopeScaling::yarn,
                            .factor = 32.0,
                            .original_positions = 4096,
                            .truncate = false};
  const auto scaled = frequencies_of(options);
  const double low = 32.0 * std::log(4096.0 / (32.0 * kTwoPi)) / std::log(150000.0);
  const double high = 32.0 * std::log(4096.0 / (1.0 * kTwoPi)) / std::log(150000.0);
  for (std::size_t i = 0; i < 32; ++i) {
    const double plain = std::pow(150000.0, -static_cast<double>(i) / 32.0);
    const double divided = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    EXPECT_NEAR(scaled[i], plain / 32.0 * divided + plain * (1.0 - divided), 1e-14 * plain) << i;
  }
  EXPECT_NEAR(Rope(options, 1).attention_factor(), 1.3465735902799727, 1e-15);
  RopeOptions deepseek{.dims = 64,
                       .scaling = RopeScaling::yarn,
                       .factor = 40.0,
                       .original_positions = 4096,
                       .mscale = 1.0,
                       .mscale_all_dim = 1.0};
  EXPECT_EQ(Rope(deepseek, 1).attention_factor(), 1.0);
  deepseek.mscale = 0.707;
  EXPECT_NEAR(Rope(deepseek, 1).attention_factor(), (0.0707 * std::log(40.0) + 1.0) / (0.1 * std::log(40.0) + 1.0),
              1e-15);
}

// Phi-3 mini 128k: 131072 positions of 4096.
TEST(RopeFrequencies, LongRope) {
  std::vector<double> divisors(48);
  for (std::size_t i = 0; i < 48; ++i) divisors[i] = 1.0 + static_cast<double>(i) * 0.7;
  const RopeOptions options{.dims = 96,
                            .scaling = RopeScaling::longrope,
                            .original_positions = 4096,
                            .divisors = divisors,
                            .max_positions = 131072.0};
  const auto scaled = frequencies_of(options);
  for (std::size_t i = 0; i < 48; ++i)
    EXPECT_NEAR(scaled[i], 1.0 / (divisors[i] * std::pow(10000.0, static_cast<double>(i) / 48.0)), 1e-15);
  EXPECT_NEAR(Rope(options, 1).attention_factor(), 1.1902380714238083, 1e-15);
}

std::vector<float> random_row(Index dim, std::uint64_t seed) {
  test::Random random(seed);
  std::vector<float> row(static_cast<std::size_t>(dim));
  for (float& x : row) x = random.normal();
  return row;
}

class RopePairing : public testing::TestWithParam<RopePairs> {};

TEST_P(RopePairing, TurnsPairsAsComplexNumbers) {
  const bool split = GetParam() == RopePairs::half_split;
  const RopeOptions options{.dims = 22, .pairs = GetParam()};  // not whole registers, fewer than the row has
  const Rope rope(options, 5000);
  const Index positions[] = {0, 4999, 37};
  std::vector<float> rows = random_row(3 * 2 * 30, 181);
  const std::vector<float> before = rows;
  rope(TensorView(rows.data(), 3, 2, 30), positions);
  for (Index row = 0; row < 6; ++row) {
    for (Index i = 0; i < 15; ++i) {
      const auto at = static_cast<std::size_t>(row * 30);
      if (i >= 11) {
        EXPECT_EQ(rows[at + static_cast<std::size_t>(22 + i - 11)], before[at + static_cast<std::size_t>(22 + i - 11)])
            << "beyond the turned dims";
        continue;
      }
      const std::size_t a = at + static_cast<std::size_t>(split ? i : 2 * i);
      const std::size_t b = at + static_cast<std::size_t>(split ? i + 11 : 2 * i + 1);
      const double angle = static_cast<double>(positions[row / 2]) * std::pow(10000.0, -static_cast<double>(i) / 11.0);
      const auto turned = std::complex<double>(before[a], before[b]) * std::polar(1.0, angle);
      // Sine and cosine, at most 1, are rounded; then the products, and their sum.
      const double bound = 2.5 * 0x1p-24 * (std::abs(before[a]) + std::abs(before[b]));
      EXPECT_NEAR(rows[a], turned.real(), bound);
      EXPECT_NEAR(rows[b], turned.imag(), bound);
    }
  }
}

TEST_P(RopePairing, AShiftIsWhatALaterPositionIs) {
  const RopeOptions options{
      .dims = 64, .pairs = GetParam(), .scaling = RopeScaling::yarn, .factor = 4.0, .original_positions = 1024};
  const Rope rope(options, 400);
  std::vector<float> shifted = random_row(64, 182);
  std::vector<float> direct = shifted;
  rope(TensorView(shifted.data(), 1, 1, 64), 300);
  rope.shift(TensorView(shifted.data(), 1, 1, 64), -123);
  rope(TensorView(direct.data(), 1, 1, 64), 177);
  for (std::size_t i = 0; i < 64; ++i) EXPECT_NEAR(shifted[i], direct[i], 0x1p-20);
}

TEST_P(RopePairing, SixteenBitRowsAreRoundedOnce) {
  const Rope rope({.dims = 32, .pairs = GetParam()}, 100);
  std::vector<float> row = random_row(32, 183);
  std::vector<bf16> brief;
  std::vector<f16> half;
  for (float& x : row) {
    brief.emplace_back(x);
    x = static_cast<float>(brief.back());
    half.emplace_back(x);
  }
  std::vector<float> of_half(32);
  for (std::size_t i = 0; i < 32; ++i) of_half[i] = static_cast<float>(half[i]);
  rope(TensorView(row.data(), 1, 1, 32), 77);
  rope(TensorView(of_half.data(), 1, 1, 32), 77);
  rope(TensorView(brief.data(), 1, 1, 32), 77);
  rope(TensorView(half.data(), 1, 1, 32), 77);
  for (std::size_t i = 0; i < 32; ++i) {
    EXPECT_EQ(brief[i].bits, bf16(row[i]).bits);
    EXPECT_EQ(half[i].bits, f16(of_half[i]).bits);
  }
}

INSTANTIATE_TEST_SUITE_P(Both, RopePairing, testing::Values(RopePairs::half_split, RopePairs::interleaved),
                         [](const auto& each) {
                           return each.param == RopePairs::half_split ? "half_split" : "interleaved";
                         });

// Qwen2-VL: pairs 16, 24, 24 by time, height and width.
TEST(Rope, EachSectionTakesThePositionsOfItsAxis) {
  const Rope rope({.dims = 128, .base = 1e6, .sections = {16, 24, 24}}, 1000);
  EXPECT_EQ(rope.options().axes(), 3);
  std::vector<float> mixed = random_row(2 * 128, 184);
  std::vector<float> of_axis[3] = {mixed, mixed, mixed};
  const Index positions[] = {5, 6, 70, 71, 800, 801};  // of two tokens, axis by axis
  rope(TensorView(mixed.data(), 2, 1, 128), positions);
  const Rope one_axis({.dims = 128, .base = 1e6}, 1000);
  for (std::size_t axis = 0; axis < 3; ++axis)
    one_axis(TensorView(of_axis[axis].data(), 2, 1, 128), std::span<const Index>(positions).subspan(2 * axis, 2));
  for (std::size_t token = 0; token < 2; ++token) {
    for (std::size_t pair = 0; pair < 64; ++pair) {
      const std::size_t axis = pair < 16 ? 0 : pair < 40 ? 1 : 2;
      EXPECT_EQ(mixed[token * 128 + pair], of_axis[axis][token * 128 + pair]);
      EXPECT_EQ(mixed[token * 128 + pair + 64], of_axis[axis][token * 128 + pair + 64]);
    }
  }
}

void expect_refused(const std::function<void()>& call, const char* argument) {
  try {
    call();
    ADD_FAILURE() << argument << " was taken";
  } catch (const ArgumentError& error) {
    EXPECT_NE(std::string(error.what()).find(argument), std::string::npos) << error.what();
  }
}

TEST(Rope, ACopyHasItsOwnTableAndWhatIsMovedFromRefuses) {
  const std::vector<float> before = random_row(32, 185);
  const auto turned_by = [&](const Rope& rope) {
    std::vector<float> row = before;
    rope(TensorView(row.data(), 1, 1, 32), 7);
    rope.shift(TensorView(row.data(), 1, 1, 32), 3);
    return row;
  };
  Rope first({.dims = 32}, 10), other({.dims = 8, .base = 3.0}, 2);
  const std::vector<float> expected = turned_by(first);
  Rope copy = first;
  EXPECT_EQ(turned_by(copy), expected);
  const Rope moved = std::move(first);
  EXPECT_EQ(turned_by(moved), expected);
  EXPECT_EQ(first.positions(), 0);  // NOLINT: moved from
  EXPECT_EQ(moved.positions(), 10);
  std::vector<float> row = before;
  expect_refused([&] { first(TensorView(row.data(), 1, 1, 32), 0); }, "first_position");
  expect_refused([&] { first.shift(TensorView(row.data(), 1, 1, 32), 1); }, "rope");
  EXPECT_EQ(row, before);
  other = copy;
  copy = Rope({.dims = 8}, 1);
  EXPECT_EQ(turned_by(other), expected);
  first = std::move(other);
  EXPECT_EQ(turned_by(first), expected);
}

TEST(Rope, WhatIsWrongIsNamed) {
  std::vector<float> row(64);
  const TensorView rows(row.data(), 2, 1, 32);
  const Rope rope({.dims = 32}, 10);
  expect_refused([] { Rope({.dims = 31}, 1); }, "options.dims");
  expect_refused([] { Rope({.dims = 32, .pairs = RopePairs::none}, 1); }, "options.pairs");
  expect_refused([] { Rope({.dims = 32, .base = 0.0}, 1); }, "options.base");
  expect_refused([] { Rope({.dims = 32, .scaling = RopeScaling::yarn}, 1); }, "options.original_positions");
  expect_refused(
      [] { Rope({.dims = 32, .scaling = RopeScaling::longrope, .original_positions = 4, .max_positions = 8.0}, 1); },
      "options.divisors.size()");
  expect_refused([] { Rope({.dims = 32, .sections = {8, 9}}, 1); }, "options.sections");
  expect_refused([] { Rope({.dims = 32, .scaling = RopeScaling::yarn, .original_positions = 4, .beta_fast = NAN}, 1); },
                 "options.beta_fast");
  const std::vector<double> zeros(16);
  expect_refused(
      [&] {
        Rope({.dims = 32,
              .scaling = RopeScaling::longrope,
              .original_positions = 4,
              .divisors = zeros,
              .max_positions = 8.0},
             1);
      },
      "options.divisors");
  expect_refused([] { Rope({.dims = 32, .sections = {8, 0, 8}}, 1); }, "options.sections");
  constexpr Index huge = Index{1} << 62;  // four times that is 2^64
  expect_refused([] { Rope({.dims = 32, .sections = {huge, huge, huge, huge}}, 1); }, "options.sections");
  expect_refused([] { Rope({.dims = huge}, 1); }, "options.dims");
  expect_refused([&] { rope.shift(rows, std::numeric_limits<Index>::max()); }, "by");
  expect_refused([] { Rope({.dims = 32}, -1); }, "positions");
  expect_refused([&] { rope(rows, 9); }, "first_position");
  expect_refused([&] { rope(rows, -1); }, "first_position");
  const Index too_far[] = {3, 10};
  expect_refused([&] { rope(rows, too_far); }, "positions[1]");
  expect_refused([&] { rope(rows, std::span<const Index>(too_far).first(1)); }, "positions.size()");
  expect_refused([&] { rope(TensorView(row.data(), 2, 1, 30), 0); }, "rows.dim");
  expect_refused([&] { rope(TensorView(row.data(), 1, 1, 32, {64, 64, 2}), 0); }, "rows.strides.dim");
}

}  // namespace
}  // namespace gqa
