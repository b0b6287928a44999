// SPDX-License-Identifier: Apache-2.0
// Every kernel of every path, once: the source of the libraries that gqa_add_kernels makes.
#define GQA_COMPILE_KERNELS_HERE
#include <gqa/detail/path/kernels.hpp>
