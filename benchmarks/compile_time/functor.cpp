// SPDX-License-Identifier: Apache-2.0
// What one call costs to compile: a decode step of Llama-3-8B's attention over a bf16 cache. With ANY_CACHE the functor would take every
// type of cache, with ANY_SHAPE every extent as well; with CODEC, say gqa::Int8, caches of that codec too.
#include <gqa/gqa.hpp>

#if defined(ANY_SHAPE)
using Attention = gqa::DynamicAttention;
#elif defined(ANY_CACHE)
using Attention = gqa::GroupedQueryAttention<32, 8, 128>;
#elif defined(CODEC)
using Attention = gqa::GroupedQueryAttention<32, 8, 128, 128, gqa::CacheOf<gqa::bf16, CODEC>>;
#else
using Attention = gqa::GroupedQueryAttention<32, 8, 128, 128, gqa::CacheOf<gqa::bf16>>;
#endif

void decode_step(const gqa::bf16* query, const gqa::bf16* keys, const gqa::bf16* values, gqa::Index tokens,
                 gqa::bf16* result) {
  const Attention attention;
  attention({query, 1, 32, 128},
            gqa::KvCacheView::contiguous(keys, values, {.length = tokens, .kv_heads = 8, .head_dim = 128}),
            {result, 1, 32, 128});
}
