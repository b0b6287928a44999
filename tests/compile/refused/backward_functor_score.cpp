// SPDX-License-Identifier: Apache-2.0
// A score of one float has no derivative that the backward pass could find.
// expected: for gradients it must be an expression
#include "gqa/backward.hpp"

struct Doubled : gqa::Causal {
#ifdef GQA_WRONG
  float score(float s, gqa::Index, gqa::Index, gqa::Index) const { return 2.0f * s; }
#else
  auto score(auto s, const gqa::RowContext&, auto) const { return 2.0f * s; }
#endif
};

int main() {
  const gqa::DynamicAttentionBackward backward;
  backward(gqa::Sequence{}, gqa::SequenceGradients{}, Doubled{});
}
