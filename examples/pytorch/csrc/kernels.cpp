// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels of every path, element type, and of the codecs that a GqaCache may store, compiled once.
#define GQA_COMPILE_KERNELS_HERE
#define GQA_COMPILED_CACHES gqa::CacheOf<float, gqa::bf16, gqa::f16, gqa::Int8, gqa::Int4, gqa::Q8_0>
#include "gqa/detail/path/kernels.hpp"
