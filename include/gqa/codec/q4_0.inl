// SPDX-License-Identifier: Apache-2.0
// Loads of Q4_0, once per path.

GQA_OP Vec load(Q4_0, const std::byte* row, Index d) {
  const std::byte* const block = row + (d >> 5) * 18;
  return scaled_codes<kOffsetNibbles>(block + 2, d, set1_f16(block));
}
GQA_OP Vec load_part(Q4_0, const std::byte* row, Index d, Index count) { return first_of(load(Q4_0{}, row, d), count); }
