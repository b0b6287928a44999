// SPDX-License-Identifier: Apache-2.0
// Loads of Bf16, once per path.

GQA_OP Vec load(Bf16, const std::byte* row, Index d) { return widen_bf16(load_words(row + d * Bf16::bytes)); }
GQA_OP Vec load_part(Bf16, const std::byte* row, Index d, Index count) {
  return widen_bf16(load_words_part(row + d * Bf16::bytes, count));
}
