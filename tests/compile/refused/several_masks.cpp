// SPDX-License-Identifier: Apache-2.0
// Of two masks one would not be asked.
// expected: The variant has several masks: it must have one of is_visible and visible_bits
#include "gqa/attention.hpp"

struct Mask : gqa::Causal {
  bool is_visible(gqa::Index, gqa::Index, gqa::Index) const { return true; }
#ifdef GQA_WRONG
  std::uint64_t visible_bits(const gqa::RowContext&, gqa::Index) const { return 1; }
#endif
};

void attend(const gqa::Sequence& sequence) { gqa::DynamicAttention{}(sequence, Mask{}); }

int main() { return 0; }
