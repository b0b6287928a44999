// SPDX-License-Identifier: Apache-2.0
/// @file
/// What it is to rotate a row. The code, once per instruction set, is detail/rotate_row.hpp.
#pragma once

#include "gqa/detail/config.hpp"

namespace gqa::detail {

/// Each `block` of the `dim` elements of a row ← H · block / √block, where H(i, j) is −1 if i & j has an odd number of bits set, else 1. Its own
/// inverse, but for roundings. `block` is a power of two that divides `dim`.
///
/// log2(block) steps: of neighbours 1, 2, 4, … elements apart (a, b) ← (a + b, a − b), each sum rounded, then every element times
/// rotation_norm(block). Beside the exact transform an element is off by at most (log2(block) + 2) · 2⁻²⁴ times the block's magnitudes added
/// up and divided by √block, to first order.
using RotateRow = void (*)(float* row, Index dim, Index block);

/// Whether rows of `width` elements can be rotated in such blocks; 0 stands for rows that are not.
GQA_ALWAYS_INLINE constexpr bool is_rotation(Index block, Index width) noexcept {
  return block == 0 || (block > 0 && (block & (block - 1)) == 0 && width % block == 0);
}
/// Whether a rotation changes rows; in blocks of one element it does not.
GQA_ALWAYS_INLINE constexpr bool rotates(Index block) noexcept { return block > 1; }

/// 1 / √block, rounded once.
GQA_ALWAYS_INLINE constexpr float rotation_norm(Index block) noexcept {
  float norm = 1.0f;
  for (; block >= 4; block /= 4) norm *= 0.5f;
  return block == 2 ? norm * 0x1.6a09e6p-1f : norm;
}

}  // namespace gqa::detail
