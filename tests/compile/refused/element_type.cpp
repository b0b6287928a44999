// SPDX-License-Identifier: Apache-2.0
// double is no element type of queries, outputs or caches.
// expected: (no matching function for call|no matching constructor)
// expected: Element
#include "gqa/tensor_view.hpp"

#ifdef GQA_WRONG
using T = double;
#else
using T = float;
#endif

int main() {
  const T row[8] = {};
  const gqa::ConstTensorView view(row, 1, 1, 8);
  return view.dim == 8 ? 0 : 1;
}
