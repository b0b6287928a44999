// SPDX-License-Identifier: Apache-2.0
#include "compiled_variant.hpp"

namespace gqa::python {

Attend attend_scale(ScoreKind second, bool masked) { return attend_pair<ScoreKind::scale>(second, masked); }

}  // namespace gqa::python
