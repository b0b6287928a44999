// SPDX-License-Identifier: Apache-2.0
// The module gqa._gqa: what gqa/__init__.py hands on.
#include <nanobind/stl/string.h>

#include <gqa/version.hpp>

#include "attention.hpp"
#include "caches.hpp"
#include "rope.hpp"
#include "variant.hpp"

namespace gqa::python {

namespace {

std::string version() {
  return std::to_string(GQA_VERSION_MAJOR) + "." + std::to_string(GQA_VERSION_MINOR) + "." +
         std::to_string(GQA_VERSION_PATCH);
}

void bind_cpu(nb::module_& module) {
  module.attr("__version__") = version();
  module.def(
      "active_path", [] { return std::string(path_name(active_path().path)); },
      "The instruction set that calls take: the best that this processor has, or a lower one that GQA_PATH names.");
  module.def(
      "active_path_reason", [] { return std::string(active_path().reason); }, "Why it is that one: a sentence.");
  module.def(
      "paths",
      [] {
        nb::list names;
        for (const Path path : detail::kEveryPath)
          if (path_available(path)) names.append(path_name(path));
        return names;
      },
      nb::sig("def paths() -> list[str]"), "The instruction sets that can run here.");
  module.def(
      "row_bytes",
      [](const std::string& type, Index width) {
        const KvType stored = encoding_named(type, "type");
        if (width < 1 || width > detail::kMaxWidth || width % stored.block_elements() != 0)
          fail("width", std::to_string(width),
               "a multiple of " + std::to_string(stored.block_elements()) + ", 1 to 2^16");
        return stored.row_bytes(width);
      },
      nb::arg("type"), nb::arg("width"),
      "Bytes of a row of `width` elements in a storage format, without scales that lie outside of rows.");
}

}  // namespace

NB_MODULE(_gqa, module) {
  nb::set_leak_warnings(false);  // what daemon threads hold when Python ends is no leak of ours
  module.doc() = "Grouped-query, multi-query and multi-head attention on CPUs: the compiled part of the package gqa.";
  nb::exception<ArgumentError>(module, "Error", PyExc_ValueError).attr("__doc__") =
      "A wrong argument: the message names it, the value given, and what was expected. Nothing has been changed.";
  nb::exception<StorageExhausted>(module, "StorageExhausted", PyExc_RuntimeError).attr("__doc__") =
      "A cache or pool has no room left. Nothing has been changed.";
  nb::exception<Stopped>(module, "Stopped", PyExc_RuntimeError).attr("__doc__") =
      "A call was stopped by its CallControl; its outputs are undefined.";
  bind_cpu(module);
  bind_rope(module);
  bind_views(module);
  bind_caches(module);
  bind_variants(module);
  bind_attention(module);
  bind_budget(module);
}

}  // namespace gqa::python
