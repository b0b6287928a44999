// SPDX-License-Identifier: Apache-2.0
#include "rope.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <gqa/detail/check_overlap.hpp>
#include <optional>

namespace gqa::python {

namespace {

RopeScaling scaling_named(const std::string& name) {
  constexpr const char* names[] = {"none", "linear", "ntk", "yarn", "llama3", "longrope"};
  for (int i = 0; i < 6; ++i)
    if (name == names[i]) return static_cast<RopeScaling>(i);
  fail("scaling", "\"" + name + "\"", "one of none, linear, ntk, yarn, llama3, longrope");
}

Rope make_rope(Index dims, Index positions, double base, bool interleaved, const std::string& scaling, double factor,
               Index original_positions, double beta_fast, double beta_slow, bool truncate, double mscale,
               double mscale_all_dim, double low_freq_factor, double high_freq_factor, nb::object divisors,
               double max_positions, double attention_factor, nb::object sections) {
  RopeOptions options;
  options.dims = dims;
  options.base = base;
  options.pairs = interleaved ? RopePairs::interleaved : RopePairs::half_split;
  options.scaling = scaling_named(scaling);
  options.factor = factor;
  options.original_positions = original_positions;
  options.beta_fast = beta_fast;
  options.beta_slow = beta_slow;
  options.truncate = truncate;
  options.mscale = mscale;
  options.mscale_all_dim = mscale_all_dim;
  options.low_freq_factor = low_freq_factor;
  options.high_freq_factor = high_freq_factor;
  options.max_positions = max_positions;
  options.attention_factor = attention_factor;
  std::vector<double> numbers;
  if (!divisors.is_none()) {
    for (const nb::handle divisor : divisors) {
      double number = 0;
      if (!nb::try_cast<double>(divisor, number))
        fail("divisors[" + std::to_string(numbers.size()) + "]", nb::cast<std::string>(nb::repr(divisor)), "a number");
      numbers.push_back(number);
    }
  }
  options.divisors = numbers;
  if (!sections.is_none()) {
    const std::vector<Index> given = indices(sections, "sections");
    if (given.size() > 4) fail("len(sections)", std::to_string(given.size()), "4 axes at most");
    std::copy(given.begin(), given.end(), options.sections.begin());
  }
  return Rope(options, positions);
}

TensorView rows_of(nb::handle object, std::optional<Array>& array) {
  array.emplace(object, "rows", true);
  const TensorView rows = output(*array, "(tokens, heads, dim)");
  if (!detail::elements_are_distinct(rows))
    fail("rows", "of elements that share memory", "an element of its own for every (token, head, dim)");
  return rows;
}

}  // namespace

void bind_rope(nb::module_& module) {
  using namespace nb::literals;
  nb::class_<Rope>(module, "Rope",
                   "Rotary position embeddings: queries are turned in place, keys as they are appended to a cache "
                   "(append(…, rope=rope)).\n\n"
                   "dims: elements of a row that are turned, even. positions: how many the table has.\n"
                   "interleaved: pairs are neighbours (GPT-J), not halves (GPT-NeoX, Llama).\n"
                   "scaling: \"none\", \"linear\", \"ntk\", \"yarn\", \"llama3\" or \"longrope\", with the numbers "
                   "that a configuration has for it.")
      .def(
          "__init__",
          [](Rope* self, Index dims, Index positions, double base, bool interleaved, std::string scaling, double factor,
             Index original_positions, double beta_fast, double beta_slow, bool truncate, double mscale,
             double mscale_all_dim, double low_freq_factor, double high_freq_factor, nb::object divisors,
             double max_positions, double attention_factor, nb::object sections) {
            new (self) Rope(make_rope(dims, positions, base, interleaved, scaling, factor, original_positions,
                                      beta_fast, beta_slow, truncate, mscale, mscale_all_dim, low_freq_factor,
                                      high_freq_factor, divisors, max_positions, attention_factor, sections));
          },
          "dims"_a, "positions"_a, nb::kw_only(), "base"_a = 10000.0, "interleaved"_a = false, "scaling"_a = "none",
          "factor"_a = 1.0, "original_positions"_a = 0, "beta_fast"_a = 32.0, "beta_slow"_a = 1.0, "truncate"_a = true,
          "mscale"_a = 0.0, "mscale_all_dim"_a = 0.0, "low_freq_factor"_a = 1.0, "high_freq_factor"_a = 4.0,
          "divisors"_a = nb::none(), "max_positions"_a = 0.0, "attention_factor"_a = 0.0, "sections"_a = nb::none())
      .def(
          "__call__",
          [](const Rope& rope, nb::object rows, nb::object position) {
            std::optional<Array> array;
            const TensorView view = rows_of(rows, array);
            Index first = 0;
            if (nb::try_cast<Index>(position, first)) rope(view, first);
            else rope(view, indices(position, "position"));
            return rows;
          },
          "rows"_a, "position"_a,
          nb::sig("def __call__(self, rows: gqa.typing.Array, position: int | typing.Sequence[int] | gqa.typing.Array) "
                  "-> typing.Any"),
          "Turns rows (tokens, heads, dim) in place, and returns them.\n\n"
          "position: that of the first token, the others follow; or one for each token (with several axes: all of the "
          "first axis, then the next).")
      .def(
          "shift",
          [](const Rope& rope, nb::object rows, Index by) {
            std::optional<Array> array;
            rope.shift(rows_of(rows, array), by);
            return rows;
          },
          "rows"_a, "by"_a, nb::sig("def shift(self, rows: gqa.typing.Array, by: int) -> typing.Any"),
          "Moves rows that have been turned for some position by a number of positions, in place.")
      .def_prop_ro("positions", &Rope::positions)
      .def_prop_ro("attention_factor", &Rope::attention_factor);

  nb::class_<Norm>(module, "RmsNorm",
                   "RMS norm of queries and keys, a head of a token at a time: row / sqrt(mean of squares + epsilon) * "
                   "(weights + weight_offset).")
      .def(
          "__init__",
          [](Norm* self, nb::object weights, float weight_offset, double epsilon) {
            new (self)
                Norm{weights.is_none() ? std::vector<float>{} : floats(weights, "weights"), weight_offset, epsilon};
          },
          "weights"_a = nb::none(), nb::kw_only(), "weight_offset"_a = 0.0f, "epsilon"_a = 1e-6)
      .def(
          "__call__",
          [](const Norm& norm, nb::object rows) {
            std::optional<Array> array;
            rms_norm(rows_of(rows, array), norm.options());
            return rows;
          },
          "rows"_a, nb::sig("def __call__(self, rows: gqa.typing.Array) -> typing.Any"),
          "Normalises rows (tokens, heads, dim) in place, and returns them.");

  module.def(
      "hadamard_rotate",
      [](nb::object rows, Index block) {
        std::optional<Array> array;
        hadamard_rotate(rows_of(rows, array), block);
        return rows;
      },
      "rows"_a, "block"_a, nb::sig("def hadamard_rotate(rows: gqa.typing.Array, block: int) -> typing.Any"),
      "Each block of `block` elements of rows (tokens, heads, dim) times the Hadamard matrix over sqrt(block), in "
      "place. Done twice it is undone.");
}

}  // namespace gqa::python
