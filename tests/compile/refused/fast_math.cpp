// SPDX-License-Identifier: Apache-2.0
// Units compiled with -Ofast and its parts are refused in one sentence. Here the wrong line is an option of the compiler.
// expected: gqa cannot keep its results exact under -ffast-math, -Ofast or -ffinite-math-only
#include "gqa/tensor_view.hpp"

int main() { return 0; }
