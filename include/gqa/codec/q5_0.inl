// SPDX-License-Identifier: Apache-2.0
// Loads of Q5_0, once per path; and codes of five bits, which Q5_1 has too.

// Codes of elements d … d + 15 of a block, less `low` where the fifth bit is off, less `high` where it is on.
GQA_OP Vec five_bits(const std::byte* codes, Index d, float low, float high) {
  std::uint32_t fifth;
  __builtin_memcpy(&fifth, codes, sizeof fifth);
  const Vec four = codes_of(kNibbles, codes + 4, d);
  return sub(four, select(fifth >> (d & 16) & 0xffffu, set1(high), set1(low)));
}

GQA_OP Vec load(Q5_0, const std::byte* row, Index d) {
  const std::byte* const block = row + (d >> 5) * 22;
  return mul(five_bits(block + 2, d, 16.0f, 0.0f), set1_f16(block));
}
GQA_OP Vec load_part(Q5_0, const std::byte* row, Index d, Index count) { return first_of(load(Q5_0{}, row, d), count); }
