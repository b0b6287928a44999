// SPDX-License-Identifier: Apache-2.0
// The one unit in which the test programs' kernels are compiled; the programs themselves define GQA_COMPILED_KERNELS.
#define GQA_COMPILE_KERNELS_HERE
#include "gqa/detail/path/kernels.hpp"
