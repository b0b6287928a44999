// SPDX-License-Identifier: Apache-2.0
// Loads of F32, once per path.

GQA_OP Vec load(F32, const std::byte* row, Index d) { return load(typed<const float>(row + d * F32::bytes)); }
GQA_OP Vec load_part(F32, const std::byte* row, Index d, Index count) {
  return load_floats_part(row + d * F32::bytes, count);
}
