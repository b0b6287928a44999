// SPDX-License-Identifier: Apache-2.0
// Of two forms of a mask one would not be asked.
// expected: The variant has several masks: it must have one of is_visible and visible_bits, in one form
#include "gqa/attention.hpp"

struct Mask : gqa::Causal {
  bool is_visible(gqa::Index, gqa::Index, gqa::Index) const { return true; }
#ifdef GQA_WRONG
  bool is_visible(const gqa::RowContext&, gqa::Index) const { return false; }
#endif
};

void attend(const gqa::Sequence& sequence) { gqa::DynamicAttention{}(sequence, Mask{}); }

int main() { return 0; }
