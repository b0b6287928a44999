// SPDX-License-Identifier: Apache-2.0
// A member named is_visible with other parameters would never be called.
// expected: The variant's is_visible cannot be called: it must be public, bool is_visible\(gqa::Index query_position, gqa::Index key_position, gqa::Index query_head\) const
#include "gqa/attention.hpp"

struct Mask : gqa::Causal {
#ifdef GQA_WRONG
  bool is_visible(gqa::Index, gqa::Index) const { return true; }
#else
  bool is_visible(gqa::Index, gqa::Index, gqa::Index) const { return true; }
#endif
};

void attend(const gqa::Sequence& sequence) { gqa::DynamicAttention{}(sequence, Mask{}); }

int main() { return 0; }
