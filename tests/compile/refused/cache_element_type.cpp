// SPDX-License-Identifier: Apache-2.0
// The same for what a cache holds.
// expected: no matching function for call
// expected: Element
#include "gqa/kv_cache_view.hpp"

#ifdef GQA_WRONG
using T = int;
#else
using T = gqa::bf16;
#endif

int main() {
  const T rows[16] = {};
  const auto view = gqa::KvCacheView::contiguous(rows, rows, gqa::KvShape{2, 1, 8});
  return view.length == 2 ? 0 : 1;
}
