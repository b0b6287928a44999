// SPDX-License-Identifier: Apache-2.0
// Of two masks one would not be asked.
// expected: The variant has several masks: it must have one of is_visible, visible_bits and visible
#include "gqa/attention.hpp"

struct Mask : gqa::Causal {
  bool is_visible(gqa::Index, gqa::Index, gqa::Index) const { return true; }
#ifdef GQA_WRONG
  auto visible(const gqa::RowContext& row, auto k) const { return k < row.position; }
#endif
};

void attend(const gqa::Sequence& sequence) { gqa::DynamicAttention{}(sequence, Mask{}); }

int main() { return 0; }
