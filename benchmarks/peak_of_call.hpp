// SPDX-License-Identifier: Apache-2.0
/// @file
/// Which of the machine's peaks a call is held against.
#pragma once

#include "gqa/attention.hpp"
#include "machine_limits.hpp"

namespace gqa::bench {

/// The multiply-adds of the kernels that a call takes. Bf16 products need queries, keys and values in bf16, or the caller to ask for
/// them; without them, or on a path that has none, the kernels of the f32 path below run. Where numbers are sums of two terms, three
/// products count as one: such a call reaches a third of the peak at most. Codecs are held against f32 products.
inline Limit peak_of_call(Path path, ElementType query_type, KvType kv_type, Products products = Products::as_stored) {
  const bool bf16 = query_type == ElementType::bf16 && kv_type == ElementType::bf16;
  const int terms = bf16 || products == Products::bf16 ? 1 : products == Products::bf16_terms ? 2 : 0;
  return peak_of(detail::kernels_for<AnyCache::types, dynamic, dynamic>(path, terms).path, terms > 0);
}

}  // namespace gqa::bench
