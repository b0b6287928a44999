// SPDX-License-Identifier: Apache-2.0
// A member named sink with other parameters would never be called.
// expected: The variant's sink cannot be called: it must be public, float sink\(const gqa::RowContext& row\) const
#include "gqa/attention.hpp"

struct Mask : gqa::Causal {
#ifdef GQA_WRONG
  float sink(gqa::Index, gqa::Index) const { return 0.0f; }
#else
  float sink(const gqa::RowContext&) const { return 0.0f; }
#endif
};

void attend(const gqa::Sequence& sequence) { gqa::DynamicAttention{}(sequence, Mask{}); }

int main() { return 0; }
