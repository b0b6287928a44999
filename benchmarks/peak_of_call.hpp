// SPDX-License-Identifier: Apache-2.0
/// @file
/// Which of the machine's peaks a call is held against.
#pragma once

#include "gqa/attention.hpp"
#include "machine_limits.hpp"

namespace gqa::bench {

/// The multiply-adds of the kernels that a call takes. Bf16 products need queries, keys and values in bf16, or the caller's
/// acceptance; without them, or on a path that has none, the kernels of the f32 path below run.
inline Limit peak_of_call(Path path, ElementType query_type, ElementType kv_type, bool accept_bf16_products = false) {
  const bool bf16_products = accept_bf16_products || (query_type == ElementType::bf16 && kv_type == ElementType::bf16);
  return peak_of(detail::kernels_for(path, bf16_products).path, bf16_products);
}

}  // namespace gqa::bench
