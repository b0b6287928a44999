// SPDX-License-Identifier: Apache-2.0
/// @file
/// Storage formats of keys and values by name.
#pragma once

#include "arrays.hpp"

namespace gqa::python {

/// "f32", "bf16", "f16" (or NumPy's names of these), "int8", "int4", "q8_0", "q4_0", "q5_0", "q5_1", "iq4_nl", "q8_kv", "fp8_e4m3", "fp8_e5m2", "mxfp4".
/// @throws ArgumentError that lists them
KvEncoding encoding_named(const std::string& name, const std::string& argument);
/// "int8"
std::string format_name(KvType type);
/// Of plain elements alone.
ElementType element_named(const std::string& name, const std::string& argument);

/// What every functor here is compiled for.
using EveryCache = CacheOf<float, bf16, f16, Q8_0, Q4_0, Int8, Int4, Q5_0, Q5_1, Iq4Nl, Q8Kv, Fp8E4M3, Fp8E5M2, Mxfp4>;

}  // namespace gqa::python
