// SPDX-License-Identifier: Apache-2.0
/// @file
/// A codec that is not the library's: int8 with a scale a token and head, outside of rows. Shows what adding one touches, and tests that
/// the library holds no codec for an element type.
#pragma once

#include <cmath>

#include "gqa/codec.hpp"

namespace test {

/// Element d is worth scale · row[d], |row[d]| ≤ 127.
struct Int8 {
  static constexpr gqa::KvType type{{.id = 24, .block_bytes = 1, .alignment = 1, .scale_bytes = 4}};
  static constexpr const char* name = "int8";

  template <gqa::Element From>
  static void encode(const std::byte* from, gqa::Index step, gqa::Index dim, std::byte* row, std::byte* scales) {
    const auto* in = gqa::detail::typed<const From>(from);
    float largest = 0.0f;
    for (gqa::Index d = 0; d < dim; ++d) largest = std::fmax(largest, std::fabs(static_cast<float>(in[d * step])));
    const float scale = largest / 127.0f;
    for (gqa::Index d = 0; d < dim; ++d) {
      const float value = scale == 0.0f ? 0.0f : static_cast<float>(in[d * step]) / scale;
      row[d] =
          static_cast<std::byte>(static_cast<std::int8_t>(std::lrintf(std::fmin(127.0f, std::fmax(-127.0f, value)))));
    }
    std::memcpy(scales, &scale, sizeof scale);
  }
  static void decode(const std::byte* row, const std::byte* scales, gqa::Index dim, float* to) {
    float scale;
    std::memcpy(&scale, scales, sizeof scale);
    for (gqa::Index d = 0; d < dim; ++d) to[d] = scale * static_cast<float>(static_cast<std::int8_t>(row[d]));
  }
};

}  // namespace test

template <>
struct gqa::CodecWithId<24> {
  using type = test::Int8;
};
