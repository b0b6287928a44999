// SPDX-License-Identifier: Apache-2.0
// A member named score that is private would never be called.
// expected: The variant's score cannot be called: it must be public, float score\(float score, gqa::Index query_position, gqa::Index key_position, gqa::Index query_head\) const, or
#include "gqa/attention.hpp"

struct Mask : gqa::Causal {
#ifdef GQA_WRONG
 private:
  float score(float s, gqa::Index, gqa::Index, gqa::Index) const { return s; }
#else
  float score(float s, gqa::Index, gqa::Index, gqa::Index) const { return s; }
#endif
};

void attend(const gqa::Sequence& sequence) { gqa::DynamicAttention{}(sequence, Mask{}); }

int main() { return 0; }
