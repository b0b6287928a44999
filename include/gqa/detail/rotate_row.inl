// SPDX-License-Identifier: Apache-2.0
// The Hadamard transform of a row's blocks, a register of kLanes floats at a time; once per instruction set. Part of rotate_row.hpp.

#include "gqa/detail/row_vectors.inl"

template <int Half, int... Lane>
GQA_OP Floats partners(const Floats& x, std::integer_sequence<int, Lane...>) {
  return shuffled<(Lane ^ Half)...>(x);
}
// The steps within a register, of elements `Half` apart and further.
template <int Half = 1>
GQA_OP Floats steps_within(const Floats& x, Index block) {
  if constexpr (Half < kLanes)
    if (Half < block)
      return steps_within<2 * Half>(partners<Half>(x, Lanes{}) + negated_where<Half>(x, Lanes{}), block);
  return x;
}

// See RotateRow.
inline void rotate_row(float* row, Index dim, Index block) {
  const float norm = rotation_norm(block);
  const float within = block <= kLanes ? norm : 1.0f;
  Index i = 0;
  for (; i + kLanes <= dim; i += kLanes) store(row + i, steps_within(load<Floats>(row + i), block) * within);
  if (i < dim) {  // whole blocks, as they are shorter than a register
    const auto bytes = static_cast<std::size_t>(dim - i) * sizeof(float);
    Floats part{};
    std::memcpy(&part, row + i, bytes);
    part = steps_within(part, block) * within;
    std::memcpy(row + i, &part, bytes);
  }
  Index half = kLanes;
  for (; 4 * half <= block; half *= 4) {  // two steps at a time: a register is loaded and stored half as often
    const float factor = 4 * half == block ? norm : 1.0f;
    for (Index first = 0; first < dim; first += 4 * half)
      for (float* at = row + first; at < row + first + half; at += kLanes) {
        const Floats a = load<Floats>(at), b = load<Floats>(at + half);
        const Floats c = load<Floats>(at + 2 * half), d = load<Floats>(at + 3 * half);
        const Floats sum = a + b, difference = a - b, next_sum = c + d, next_difference = c - d;
        store(at, (sum + next_sum) * factor);
        store(at + half, (difference + next_difference) * factor);
        store(at + 2 * half, (sum - next_sum) * factor);
        store(at + 3 * half, (difference - next_difference) * factor);
      }
  }
  if (2 * half != block) return;
  for (Index first = 0; first < dim; first += block)
    for (float* at = row + first; at < row + first + half; at += kLanes) {
      const Floats a = load<Floats>(at), b = load<Floats>(at + half);
      store(at, (a + b) * norm);
      store(at + half, (a - b) * norm);
    }
}
