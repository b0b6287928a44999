// SPDX-License-Identifier: Apache-2.0
// Another file of that target: it compiles no kernels.
#include "gqa/gqa.hpp"

float elsewhere();

float elsewhere() {
  const float keys[16] = {1.0f};
  const float values[16] = {3.0f};
  float out[16] = {};
  gqa::GroupedQueryAttention<1, 1, 16>{}(
      {keys, 1, 1, 16}, gqa::KvCacheView::contiguous(keys, values, {.length = 1, .kv_heads = 1, .head_dim = 16}),
      {out, 1, 1, 16});
  return out[0];
}
