// SPDX-License-Identifier: Apache-2.0
/// @file
/// The functor, and instruction sets by name.
#pragma once

#include "arrays.hpp"

namespace gqa::python {

/// @throws ArgumentError that lists the names
Path path_named(const std::string& name);

void bind_attention(nb::module_& module);
void bind_budget(nb::module_& module);

}  // namespace gqa::python
