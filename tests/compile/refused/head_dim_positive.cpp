// SPDX-License-Identifier: Apache-2.0
// A row of no elements.
// expected: HeadDim must be positive, or gqa::dynamic
#include "gqa/attention.hpp"

int main() {
#ifdef GQA_WRONG
  const gqa::MultiHeadAttention<8, 0> attention;
#else
  const gqa::MultiHeadAttention<8, gqa::dynamic> attention;
#endif
  return attention.shape().query_heads == 8 ? 0 : 1;
}
