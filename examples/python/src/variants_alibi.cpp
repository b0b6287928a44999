// SPDX-License-Identifier: Apache-2.0
#include "compiled_variant.hpp"

namespace gqa::python {

Attend attend_alibi(ScoreKind second, bool masked) { return attend_pair<ScoreKind::alibi>(second, masked); }

}  // namespace gqa::python
