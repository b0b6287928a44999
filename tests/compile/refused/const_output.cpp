// SPDX-License-Identifier: Apache-2.0
// An output cannot be made from memory that must not be written.
// expected: (no matching function for call|no matching constructor)
// expected: is_const_v
#include "gqa/tensor_view.hpp"

int main() {
  float row[8] = {};
#ifdef GQA_WRONG
  const float* out = row;
#else
  float* out = row;
#endif
  const gqa::TensorView view(out, 1, 1, 8);
  return view.dim == 8 ? 0 : 1;
}
