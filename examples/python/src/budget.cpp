// SPDX-License-Identifier: Apache-2.0
// How much memory a KV cache takes, and what fits into a memory.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <gqa/budget.hpp>
#include <gqa/budget_presets.hpp>

#include "attention.hpp"

namespace gqa::python {

namespace {

/// Budgets name two formats by their bits.
KvFormat budget_format(const std::string& name) {
  return kv_format_named(name == "int8" ? "i8" : name == "int4" ? "i4" : name);
}

KvPlan plan_of(const std::string& k_type, const std::optional<std::string>& v_type, Index page_size,
               bool windows_capped, Index chunk, Index first_tokens, Index newest_tokens,
               const std::string& plain_type) {
  return {.k_format = budget_format(k_type),
          .v_format = budget_format(v_type.value_or(k_type)),
          .page_size = page_size,
          .windows_capped = windows_capped,
          .chunk = chunk,
          .first_tokens = first_tokens,
          .newest_tokens = newest_tokens,
          .plain_format = budget_format(plain_type)};
}

}  // namespace

void bind_budget(nb::module_& module) {
  using namespace nb::literals;
  nb::class_<KvPlan>(module, "KvPlan",
                     "How a cache is stored: formats, page size (0: one piece), whether layers with a window keep no "
                     "more than it, tokens that are\n"
                     "appended at a time.")
      .def(
          "__init__",
          [](KvPlan* self, std::string k_type, std::optional<std::string> v_type, Index page_size, bool windows_capped,
             Index chunk, Index first_tokens, Index newest_tokens, std::string plain_type) {
            new (self) KvPlan(
                plan_of(k_type, v_type, page_size, windows_capped, chunk, first_tokens, newest_tokens, plain_type));
          },
          "k_type"_a = "bf16", "v_type"_a = nb::none(), nb::kw_only(), "page_size"_a = 0, "windows_capped"_a = true,
          "chunk"_a = 1, "first_tokens"_a = 0, "newest_tokens"_a = 0, "plain_type"_a = "bf16");

  nb::class_<ModelShape>(module, "ModelShape",
                         "A model's attention layers, counted by kind: what its KV cache's bytes follow from.")
      .def(nb::init<>())
      .def(
          "add_layers",
          [](ModelShape& self, Index count, Index query_heads, Index kv_heads, Index head_dim, Index value_dim,
             Index window, bool shares_kv, bool values_in_keys) {
            self.add_layers({.count = count,
                             .query_heads = query_heads,
                             .kv_heads = kv_heads,
                             .head_dim = head_dim,
                             .value_dim = value_dim,
                             .window = window,
                             .shares_kv = shares_kv,
                             .values_in_keys = values_in_keys});
          },
          "count"_a, nb::kw_only(), "query_heads"_a, "kv_heads"_a, "head_dim"_a, "value_dim"_a = 0, "window"_a = 0,
          "shares_kv"_a = false, "values_in_keys"_a = false,
          "Adds `count` layers that are alike. window: tokens that a query sees, 0 for all. shares_kv: they read "
          "another layer's cache.\n"
          "values_in_keys: a value row is the first value_dim numbers of the key row (multi-head latent attention).")
      .def_static(
          "preset", [](const std::string& name) { return preset(name); }, "name"_a,
          "A published model: one of gqa.presets().")
      .def(
          "with_kv_heads", [](const ModelShape& self, Index kv_heads) { return with_kv_heads(self, kv_heads); },
          "kv_heads"_a, "The same model with so many KV heads in every layer.")
      .def_prop_ro(
          "layers", [](const ModelShape& self) { return layer_count(self); }, "Attention layers in all.")
      .def(
          "bytes_per_token", [](const ModelShape& self, const KvPlan& plan) { return kv_bytes_per_token(self, plan); },
          "plan"_a = KvPlan(), nb::sig("def bytes_per_token(self, plan: KvPlan = ...) -> int"),
          "Bytes that a token adds to a sequence in all layers, while it is within all windows.")
      .def(
          "sequence_bytes",
          [](const ModelShape& self, Index tokens, const KvPlan& plan) {
            return kv_sequence_bytes(self, plan, tokens);
          },
          "tokens"_a, "plan"_a = KvPlan(), nb::sig("def sequence_bytes(self, tokens: int, plan: KvPlan = ...) -> int"),
          "Bytes of one sequence's caches, all layers.")
      .def(
          "longest_context",
          [](const ModelShape& self, Index memory, Index sequences, const KvPlan& plan) -> nb::object {
            const Index tokens = longest_context(self, plan, sequences, memory);
            return tokens == kUnlimited ? nb::none() : nb::object(nb::int_(tokens));
          },
          "memory"_a, "sequences"_a = 1, "plan"_a = KvPlan(),
          nb::sig("def longest_context(self, memory: int, sequences: int = 1, plan: KvPlan = ...) -> int | None"),
          "The longest context of which so many sequences fit in `memory` bytes; None: windows hold the cache below "
          "that at any length.")
      .def(
          "most_sequences",
          [](const ModelShape& self, Index memory, Index tokens, const KvPlan& plan) {
            return most_sequences(self, plan, tokens, memory);
          },
          "memory"_a, "tokens"_a, "plan"_a = KvPlan(),
          nb::sig("def most_sequences(self, memory: int, tokens: int, plan: KvPlan = ...) -> int"),
          "The most sequences of `tokens` tokens that fit in `memory` bytes at once.")
      .def(
          "most_kv_heads",
          [](const ModelShape& self, Index memory, Index tokens, Index sequences, const KvPlan& plan) {
            return most_kv_heads_that_fit(self, plan, tokens, sequences, memory);
          },
          "memory"_a, "tokens"_a, "sequences"_a = 1, "plan"_a = KvPlan(),
          nb::sig("def most_kv_heads(self, memory: int, tokens: int, sequences: int = 1, plan: KvPlan = ...) -> int | "
                  "None"),
          "The most KV heads, of those that divide every layer's query heads, with which the cache fits; None if one "
          "is too many.")
      .def(
          "widest_format",
          [](const ModelShape& self, Index memory, Index tokens, Index sequences,
             const KvPlan& plan) -> std::optional<std::string> {
            const std::optional<KvFormat> format = widest_format_that_fits(self, plan, tokens, sequences, memory);
            if (!format) return std::nullopt;
            const std::string name = kv_format_name(*format);
            return name == "i8" ? "int8" : name == "i4" ? "int4" : name;
          },
          "memory"_a, "tokens"_a, "sequences"_a = 1, "plan"_a = KvPlan(),
          nb::sig("def widest_format(self, memory: int, tokens: int, sequences: int = 1, plan: KvPlan = ...) -> str | "
                  "None"),
          "The format of most bytes in which keys and values both fit; None if the smallest does not.");

  module.def(
      "devices_needed", [](Index bytes, Index memory) { return devices_needed(bytes, memory); }, "bytes"_a, "memory"_a,
      "Devices of `memory` bytes each that hold `bytes` between them.");
  module.def(
      "presets",
      [] {
        nb::list names;
        for (Index i = 0; i < preset_count; ++i) names.append(std::string(preset_name(i)));
        return names;
      },
      nb::sig("def presets() -> list[str]"), "Names of published models, for ModelShape.preset.");
}

}  // namespace gqa::python
