// SPDX-License-Identifier: Apache-2.0
// A type without visible_range is not a variant, and the compiler says which concept it fails.
// expected: (no match for call|no matching function for call)
// expected: Variant
// expected: visible_range
#include "gqa/attention.hpp"

struct Mask {
#ifndef GQA_WRONG
  gqa::PositionRange visible_range(gqa::Index, gqa::Index length) const { return {0, length}; }
#endif
};

void attend(const gqa::Sequence& sequence) { gqa::DynamicAttention{}(sequence, Mask{}); }

int main() { return 0; }
