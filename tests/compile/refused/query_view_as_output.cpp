// SPDX-License-Identifier: Apache-2.0
// A view of queries, read only, does not pass for an output.
// expected: (no known conversion|could not convert|no viable conversion|no match for call|cannot convert)
#include "gqa/attention.hpp"

void attend(const gqa::ConstTensorView& q, const gqa::KvCacheView& kv, const gqa::TensorView& out) {
#ifdef GQA_WRONG
  gqa::DynamicAttention{}(out, kv, q);
#else
  gqa::DynamicAttention{}(q, kv, out);
#endif
}

int main() { return 0; }
