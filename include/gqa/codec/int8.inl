// SPDX-License-Identifier: Apache-2.0
// Loads of Int8, once per path.

GQA_OP Vec load(Int8, const ScaledRow& row, Index d) {
  return mul(widen_i8(load_bytes(row.data + d)), scales_of(row, d, kLanes));
}
GQA_OP Vec load_part(Int8, const ScaledRow& row, Index d, Index count) {
  return first_of(mul(widen_i8(load_bytes_part(row.data + d, count)), scales_of(row, d, count)), count);
}
