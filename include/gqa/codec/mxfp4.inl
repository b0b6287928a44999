// SPDX-License-Identifier: Apache-2.0
// Loads of Mxfp4, once per path.

GQA_OP Vec load(Mxfp4, const std::byte* row, Index d) {
  const std::byte* const block = row + (d >> 5) * 17;
  return scaled_codes<kFloatNibbles>(block + 1, d, set1(half_of_e8m0(*block)));
}
GQA_OP Vec load_part(Mxfp4, const std::byte* row, Index d, Index count) {
  return first_of(load(Mxfp4{}, row, d), count);
}
