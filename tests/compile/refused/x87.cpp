// SPDX-License-Identifier: Apache-2.0
// Units that compute float expressions in a wider type are refused in one sentence. Here the wrong line is an option of the compiler.
// expected: gqa cannot keep its results exact where float is not computed in float: compile this unit without -mfpmath=387
#include "gqa/tensor_view.hpp"

int main() { return 0; }
