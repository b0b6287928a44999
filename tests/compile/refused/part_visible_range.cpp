// SPDX-License-Identifier: Apache-2.0
// A part whose ranges would not be asked would let everything be seen.
// expected: The variant's visible_range cannot be called: it must be public, and take
#include "gqa/attention.hpp"
#include "gqa/variants/compose.hpp"

struct Window {
#ifdef GQA_WRONG
  gqa::PositionRange visible_range(gqa::Index position) const { return {position - 5, position + 1}; }
#else
  gqa::PositionRange visible_range(gqa::Index position, gqa::Index) const { return {position - 5, position + 1}; }
#endif
};

void attend(const gqa::Sequence& sequence) { gqa::DynamicAttention{}(sequence, gqa::compose(gqa::Causal{}, Window{})); }

int main() { return 0; }
