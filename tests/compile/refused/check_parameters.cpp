// SPDX-License-Identifier: Apache-2.0
// A member named check with parameters would never be called.
// expected: The variant's check cannot be called: it must be public, void check\(\) const
#include "gqa/attention.hpp"

struct Mask : gqa::Causal {
#ifdef GQA_WRONG
  void check(int) const {}
#else
  void check() const {}
#endif
};

void attend(const gqa::Sequence& sequence) { gqa::DynamicAttention{}(sequence, Mask{}); }

int main() { return 0; }
