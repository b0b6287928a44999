// SPDX-License-Identifier: Apache-2.0
// Loads of Q5_1, once per path.

GQA_OP Vec load(Q5_1, const std::byte* row, Index d) {
  const std::byte* const block = row + (d >> 5) * 24;
  return add(unfused(mul(five_bits(block + 4, d, 0.0f, -16.0f), set1_f16(block))), set1_f16(block + 2));
}
GQA_OP Vec load_part(Q5_1, const std::byte* row, Index d, Index count) { return first_of(load(Q5_1{}, row, d), count); }
