// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows turned in place.
#pragma once

#include "gqa/detail/check_views.hpp"
#include "gqa/detail/path/region.hpp"
#include "gqa/detail/rope_frequencies.hpp"
#include "gqa/tensor_view.hpp"

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI {

/// Pairs that are taken at a time: whole registers for a compiler that vectorises.
inline constexpr Index kTurnedPairs = 8;

/// (a, b) ← (a·cos − b·sin, b·cos + a·sin). In double, where products of floats are exact: fused or not, the sums are the same.
template <class T>
GQA_OP void turn_pairs(T* a, T* b, Index step, const float* cosines, const float* sines, Index count) {
  for (Index i = 0; i < count; ++i) {
    const double x = static_cast<double>(static_cast<float>(a[i * step]));
    const double y = static_cast<double>(static_cast<float>(b[i * step]));
    const double cosine = static_cast<double>(cosines[i]);
    const double sine = static_cast<double>(sines[i]);
    a[i * step] = static_cast<T>(static_cast<float>(x * cosine - y * sine));
    b[i * step] = static_cast<T>(static_cast<float>(y * cosine + x * sine));
  }
}

/// Pairs [first, last) of a row.
/// @param turns  cosines of the pairs, then sines, of all dims / 2
template <class T>
inline void turn_row(T* row, const float* turns, Index dims, RopePairs pairs, Index first, Index last) {
  const Index half = dims / 2;
  const bool split = pairs == RopePairs::half_split;
  T* const b = split ? row + half : row + 1;
  const Index step = split ? 1 : 2;
  Index i = first;
  for (; i + kTurnedPairs <= last; i += kTurnedPairs) {
    if (split) turn_pairs(row + i, b + i, 1, turns + i, turns + half + i, kTurnedPairs);
    else turn_pairs(row + 2 * i, b + 2 * i, 2, turns + i, turns + half + i, kTurnedPairs);
  }
  turn_pairs(row + i * step, b + i * step, step, turns + i, turns + half + i, last - i);
}

/// What a token is turned by: the pairs of each axis by that axis's turns.
struct TokenTurns {
  const float* of_axis[4];
};
template <class T>
inline void turn_row(T* row, const TokenTurns& turns, const RopeOptions& options) {
  const Index axes = options.axes();
  if (axes == 1) return turn_row(row, turns.of_axis[0], options.dims, options.pairs, 0, options.dims / 2);
  Index pair = 0;
  for (std::size_t axis = 0; axis < static_cast<std::size_t>(axes); pair += options.sections[axis++])
    turn_row(row, turns.of_axis[axis], options.dims, options.pairs, pair, pair + options.sections[axis]);
}

/// All heads of a token.
template <class T>
inline void turn_heads(const TensorView& rows, Index token, const TokenTurns& turns, const RopeOptions& options) {
  T* const first = typed<T>(rows.data) + token * rows.strides.token;
  for (Index head = 0; head < rows.heads; ++head) turn_row(first + head * rows.strides.head, turns, options);
}
inline void turn_token(const TensorView& rows, Index token, const TokenTurns& turns, const RopeOptions& options) {
  switch (rows.type) {
    case ElementType::f32: turn_heads<float>(rows, token, turns, options); break;
    case ElementType::bf16: turn_heads<bf16>(rows, token, turns, options); break;
    case ElementType::f16: turn_heads<f16>(rows, token, turns, options); break;
  }
}

}  // namespace gqa::detail::inline GQA_ABI

GQA_END_PLAIN_REGION()
