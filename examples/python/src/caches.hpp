// SPDX-License-Identifier: Apache-2.0
/// @file
/// Owning caches of Python's: the library's, and who uses them.
#pragma once

#include "views.hpp"

namespace gqa::python {

/// If the object is an owning cache: its view, which keeps it alive.
bool view_of_cache(nb::handle object, View& view);

void bind_caches(nb::module_& module);

}  // namespace gqa::python
