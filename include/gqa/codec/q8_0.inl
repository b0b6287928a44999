// SPDX-License-Identifier: Apache-2.0
// Loads of Q8_0, once per path.

GQA_OP Vec load(Q8_0, const std::byte* row, Index d) {
  const std::byte* const block = row + (d >> 5) * 34;
  return mul(widen_i8(load_bytes(block + 2 + (d & 16))), set1_f16(block));
}
GQA_OP Vec load_part(Q8_0, const std::byte* row, Index d, Index count) { return first_of(load(Q8_0{}, row, d), count); }
