// SPDX-License-Identifier: Apache-2.0
// The one file of a target with GQA_COMPILED_KERNELS that compiles the kernels. Its own definition wins; it may use the library, too.
#define GQA_COMPILE_KERNELS_HERE
#include "gqa/gqa.hpp"

#if !defined(GQA_COMPILED_KERNELS)
#error "to be compiled with both definitions"
#endif

float elsewhere();

int main() {
  const float keys[16] = {1.0f};
  const float values[16] = {3.0f};
  float out[16] = {};
  gqa::DynamicAttention{}({keys, 1, 1, 16},
                          gqa::KvCacheView::contiguous(keys, values, {.length = 1, .kv_heads = 1, .head_dim = 16}),
                          {out, 1, 1, 16});
  const float difference = out[0] - elsewhere();
  return out[0] > 2.0f && !(difference < 0.0f) && !(difference > 0.0f) ? 0 : 1;
}
