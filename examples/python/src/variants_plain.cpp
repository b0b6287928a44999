// SPDX-License-Identifier: Apache-2.0
#include "compiled_variant.hpp"

namespace gqa::python {

Attend attend_plain(ScoreKind first, bool masked, bool output) {
  using enum ScoreKind;
  if (first == any) {
    if (output) return masked ? attend_with<any, none, true, true> : attend_with<any, none, false, true>;
    return masked ? attend_with<any, none, true, false> : attend_with<any, none, false, false>;
  }
  if (output) return masked ? attend_with<none, none, true, true> : attend_with<none, none, false, true>;
  return masked ? attend_with<none, none, true, false> : attend_with<none, none, false, false>;
}

}  // namespace gqa::python
