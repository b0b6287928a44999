// SPDX-License-Identifier: Apache-2.0
#include "compiled_variant.hpp"

namespace gqa::python {

Attend attend_bias(ScoreKind first, ScoreKind second, bool masked) {
  using enum ScoreKind;
  if (first == bias_f32) return attend_pair<bias_f32>(second, masked);
  if (second != none) return nullptr;
  if (first == bias_bf16)
    return masked ? attend_with<bias_bf16, none, true, false> : attend_with<bias_bf16, none, false, false>;
  return masked ? attend_with<bias_f16, none, true, false> : attend_with<bias_f16, none, false, false>;
}

}  // namespace gqa::python
