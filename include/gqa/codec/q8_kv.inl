// SPDX-License-Identifier: Apache-2.0
// Loads of Q8Kv, once per path.

GQA_OP Vec q8_kv_scale(const std::byte* row) {
  float scale;
  __builtin_memcpy(&scale, row, sizeof scale);
  return set1(scale);
}
GQA_OP Vec load(Q8Kv, const std::byte* row, Index d) {
  return mul(widen_i8(load_bytes(row + 8 + d)), q8_kv_scale(row));
}
GQA_OP Vec load_part(Q8Kv, const std::byte* row, Index d, Index count) {
  return first_of(mul(widen_i8(load_bytes_part(row + 8 + d, count)), q8_kv_scale(row)), count);
}
