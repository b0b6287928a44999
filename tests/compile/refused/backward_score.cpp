// SPDX-License-Identifier: Apache-2.0
// A score of one float has no derivative.
// expected: must be an expression
#include "gqa/reference_backward.hpp"

struct Doubled : gqa::Causal {
#ifdef GQA_WRONG
  float score(float s, gqa::Index, gqa::Index, gqa::Index) const { return 2.0f * s; }
#else
  auto score(auto s, const gqa::RowContext&, auto) const { return 2.0f * s; }
#endif
};

int main() {
  const float rows[4] = {};
  const gqa::ConstTensorView q(rows, 1, 1, 4);
  const auto kv = gqa::KvCacheView::contiguous(rows, rows, {1, 1, 4});
  return gqa::reference_backward(q, kv, q, Doubled{}).d_q.rows() == 1 ? 0 : 1;
}
