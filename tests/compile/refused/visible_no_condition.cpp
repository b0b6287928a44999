// SPDX-License-Identifier: Apache-2.0
// A member named visible that returns no condition cannot be evaluated.
// expected: The variant's visible cannot be called: it must be public, auto visible\(const gqa::RowContext& row, auto k\) const, and return a condition of gqa::expression
#include "gqa/attention.hpp"

struct Mask : gqa::Causal {
#ifdef GQA_WRONG
  auto visible(const gqa::RowContext& row, auto k) const { return row.position - k; }
#else
  auto visible(const gqa::RowContext& row, auto k) const { return row.position - k < 10; }
#endif
};

void attend(const gqa::Sequence& sequence) { gqa::DynamicAttention{}(sequence, Mask{}); }

int main() { return 0; }
