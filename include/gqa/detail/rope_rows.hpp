// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows turned in place.
#pragma once

#include "gqa/detail/check_views.hpp"
#include "gqa/detail/rope_frequencies.hpp"
#include "gqa/detail/row_ops.hpp"
#include "gqa/tensor_view.hpp"

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI {

/// Pairs [first, last) of a row.
/// @param turns  cosines of the pairs, then sines, of all dims / 2
inline void turn_row(float* row, const float* turns, Index dims, RopePairs pairs, Index first, Index last) {
  row_ops().turn(row, turns, dims, pairs == RopePairs::half_split, first, last);
}
template <class T>
inline void turn_row(T* row, const float* turns, Index dims, RopePairs pairs, Index first, Index last) {
  const float* const sines = turns + dims / 2;
  if (pairs == RopePairs::half_split)
    turn_pairs(row + first, row + dims / 2 + first, 1, turns + first, sines + first, last - first);
  else turn_pairs(row + 2 * first, row + 2 * first + 1, 2, turns + first, sines + first, last - first);
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
