// SPDX-License-Identifier: Apache-2.0
// The types of a functor's caches are named by gqa::CacheOf.
// expected: (constraint failure|constraints not satisfied)
// expected: CacheTypes
#include "gqa/attention.hpp"

#ifdef GQA_WRONG
using Cache = gqa::bf16;
#else
using Cache = gqa::CacheOf<gqa::bf16>;
#endif

int main() {
  const gqa::GroupedQueryAttention<8, 2, 64, 64, Cache> attention;
  return attention.shape().kv_heads == 2 ? 0 : 1;
}
