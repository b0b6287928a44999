// SPDX-License-Identifier: Apache-2.0
// Loads of F16, once per path.

GQA_OP Vec load(F16, const std::byte* row, Index d) { return widen_f16(load_words(row + d * F16::bytes)); }
GQA_OP Vec load_part(F16, const std::byte* row, Index d, Index count) {
  return widen_f16(load_words_part(row + d * F16::bytes, count));
}
