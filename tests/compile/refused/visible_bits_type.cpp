// SPDX-License-Identifier: Apache-2.0
// Thirty-two bits are half of a block's.
// expected: The variant's visible_bits cannot be called: it must be public, std::uint64_t visible_bits\(const gqa::RowContext& row, gqa::Index block_begin\) const
#include "gqa/attention.hpp"

struct Mask : gqa::Causal {
#ifdef GQA_WRONG
  std::uint32_t visible_bits(const gqa::RowContext&, gqa::Index) const { return 1; }
#else
  std::uint64_t visible_bits(const gqa::RowContext&, gqa::Index) const { return 1; }
#endif
};

void attend(const gqa::Sequence& sequence) { gqa::DynamicAttention{}(sequence, Mask{}); }

int main() { return 0; }
