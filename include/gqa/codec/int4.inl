// SPDX-License-Identifier: Apache-2.0
// Loads of Int4, once per path.

GQA_OP Vec load(Int4, const ScaledRow& row, Index d) {
  return mul(codes_of(kOffsetNibbles, row.data + (d >> 5) * 16, d), scales_of(row, d, kLanes));
}
GQA_OP Vec load_part(Int4, const ScaledRow& row, Index d, Index count) {
  return first_of(mul(codes_of(kOffsetNibbles, row.data + (d >> 5) * 16, d), scales_of(row, d, count)), count);
}
