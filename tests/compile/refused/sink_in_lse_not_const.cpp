// SPDX-License-Identifier: Apache-2.0
// A sink_in_lse that would not be called would leave the sink in.
// expected: The variant's sink_in_lse cannot be called: it must be public, bool sink_in_lse\(\) const
#include "gqa/attention.hpp"

struct Sink : gqa::Causal {
  float sink(const gqa::RowContext&) const { return 0.0f; }
#ifdef GQA_WRONG
  bool sink_in_lse() { return false; }
#else
  bool sink_in_lse() const { return false; }
#endif
};

void attend(const gqa::Sequence& sequence) { gqa::DynamicAttention{}(sequence, Sink{}); }

int main() { return 0; }
