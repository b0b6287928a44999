// SPDX-License-Identifier: Apache-2.0
// A gate that is no row of logits would never be read.
// expected: The variant's output_gate cannot be called: it must be public, gqa::GateRow output_gate\(const gqa::RowContext& row\) const
#include "gqa/attention.hpp"

struct Gated : gqa::Causal {
#ifdef GQA_WRONG
  float output_gate(const gqa::RowContext&) const { return 0.5f; }
#else
  const float* output_gate(const gqa::RowContext&) const { return nullptr; }
#endif
};

void attend(const gqa::Sequence& sequence) { gqa::DynamicAttention{}(sequence, Gated{}); }

int main() { return 0; }
