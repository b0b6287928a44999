// SPDX-License-Identifier: Apache-2.0
// The one unit in which the test programs' kernels are compiled, those of every codec; the programs themselves define GQA_COMPILED_KERNELS.
#include "every_codec.hpp"

#define GQA_COMPILE_KERNELS_HERE
#define GQA_COMPILED_CACHES ::gqa::test::EveryCache
#include "gqa/detail/path/kernels.hpp"
