// SPDX-License-Identifier: Apache-2.0
// Eight query heads cannot share three KV heads evenly.
// expected: KvHeads must divide QueryHeads: every KV head serves the same number of query heads
#include "gqa/attention.hpp"

int main() {
#ifdef GQA_WRONG
  const gqa::GroupedQueryAttention<8, 3, 64> attention;
#else
  const gqa::GroupedQueryAttention<8, 4, 64> attention;
#endif
  return attention.shape().query_heads == 8 ? 0 : 1;
}
