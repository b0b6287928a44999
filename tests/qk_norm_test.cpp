// SPDX-License-Identifier: Apache-2.0
// Normalised rows of queries and keys against the definition, and what is refused.
#include "gqa/qk_norm.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/random.hpp"

namespace gqa {
namespace {

TEST(RmsNorm, IsTheDefinition) {
  test::Random random(191);
  constexpr std::size_t dim = 48;
  std::vector<float> rows(3 * 2 * dim);
  for (float& x : rows) x = 3.0f * random.normal();
  std::vector<float> weights(dim);
  for (float& x : weights) x = random.normal();
  const std::vector<float> before = rows;
  for (const float offset : {0.0f, 1.0f}) {
    std::vector<float> normed = before;
    rms_norm(TensorView(normed.data(), 3, 2, dim), {.weights = weights, .weight_offset = offset});
    for (std::size_t row = 0; row < 6; ++row) {
      long double squares = 0.0L;
      for (std::size_t d = 0; d < dim; ++d)
        squares += static_cast<long double>(before[row * dim + d]) * static_cast<long double>(before[row * dim + d]);
      const long double factor = 1.0L / std::sqrt(squares / dim + 1e-6L);
      for (std::size_t d = 0; d < dim; ++d) {
        const auto expected = static_cast<double>(static_cast<long double>(before[row * dim + d]) * factor *
                                                  static_cast<long double>(weights[d] + offset));
        EXPECT_NEAR(static_cast<double>(normed[row * dim + d]), expected, 0x1p-22 * std::abs(expected));
      }
    }
  }
}

TEST(RmsNorm, ZerosStayZeros) {
  std::vector<bf16> row(16);
  rms_norm(TensorView(row.data(), 1, 1, 16));
  for (const bf16 x : row) EXPECT_EQ(static_cast<float>(x), 0.0f);
}

TEST(RmsNorm, WhatIsWrongIsNamed) {
  std::vector<float> row(32, 1.0f);
  const auto refused = [&](const TensorView& rows, const RmsNormOptions& options) {
    try {
      rms_norm(rows, options);
    } catch (const ArgumentError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_NE(refused(TensorView(row.data(), 1, 1, 32), {.weights = std::span<const float>(row).first(31)})
                .find("options.weights.size()"),
            std::string::npos);
  EXPECT_NE(refused(TensorView(row.data(), 1, 1, 32), {.epsilon = -1.0}).find("options.epsilon"), std::string::npos);
  EXPECT_NE(refused(TensorView(row.data(), 1, 1, 16, {32, 32, 2}), {}).find("rows.strides.dim"), std::string::npos);
  EXPECT_EQ(row, std::vector<float>(32, 1.0f));
}

}  // namespace
}  // namespace gqa
