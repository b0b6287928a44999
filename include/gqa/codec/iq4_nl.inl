// SPDX-License-Identifier: Apache-2.0
// Loads of Iq4Nl, once per path.

GQA_OP Vec load(Iq4Nl, const std::byte* row, Index d) {
  const std::byte* const block = row + (d >> 5) * 18;
  return scaled_codes<kUnevenNibbles>(block + 2, d, set1_f16(block));
}
GQA_OP Vec load_part(Iq4Nl, const std::byte* row, Index d, Index count) {
  return first_of(load(Iq4Nl{}, row, d), count);
}
