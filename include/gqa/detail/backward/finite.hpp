// SPDX-License-Identifier: Apache-2.0
/// @file
/// Whether words of the backward pass are numbers.
#pragma once

#include <cstdint>
#include <cstring>

#include "gqa/detail/config.hpp"

namespace gqa::detail {

/// Bits of magnitudes: infinity, and the least float that is one as bf16.
inline constexpr std::uint32_t kFloatInfinity = 0x7f800000u;
inline constexpr std::uint32_t kInfiniteAsBf16 = 0x7f7f8000u;

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

/// Whether the magnitudes of all floats are below `infinity`, or the pairs of bf16 that they are if `elements` is 2 are all finite.
inline bool all_finite(const float* words, Index count, Index elements,
                       std::uint32_t infinity = kFloatInfinity) noexcept {
  std::uint32_t found = 0;
  for (Index i = 0; i < count; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, words + i, sizeof bits);
    found |= (bits & 0x7fffffffu) >= infinity ? 1u : 0u;
    if (elements == 2) found |= (bits & 0x7f80u) == 0x7f80u ? 1u : 0u;
  }
  return found == 0;
}

}  // namespace gqa::detail::inline GQA_ABI
