// SPDX-License-Identifier: Apache-2.0
// A second file that calls attention, by a functor of another kind.
#include "gqa/gqa.hpp"

void attend(const gqa::ConstTensorView& q, const gqa::KvCacheView& kv, const gqa::TensorView& out);

void attend(const gqa::ConstTensorView& q, const gqa::KvCacheView& kv, const gqa::TensorView& out) {
  gqa::DynamicAttention{}(q, kv, out, gqa::CausalWindow{4});
  using Quantised =
      gqa::GroupedQueryAttention<gqa::dynamic, gqa::dynamic, gqa::dynamic, gqa::dynamic, gqa::CacheOf<gqa::Int8>>;
  if (kv.k_type == gqa::Int8::type) Quantised{}(q, kv, out);
}
