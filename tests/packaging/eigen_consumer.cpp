// SPDX-License-Identifier: Apache-2.0
// Somebody else's program with Eigen matrices.
#include "gqa/eigen.hpp"

int main() {
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> out(3, 16);
  const gqa::TensorView view = gqa::tensor_view(out, 2);
  return view.tokens == 3 && view.heads == 2 && view.dim == 8 ? 0 : 1;
}
