// SPDX-License-Identifier: Apache-2.0
#include "variant.hpp"

#include <nanobind/stl/string.h>

#include "compiled_variant.hpp"

namespace gqa::python {

Variant composed(const std::vector<Variant>& parts) {
  Variant all;
  for (const Variant& part : parts) {
    all.text += (all.text.empty() ? "" : ", ") + part.text;
    all.masks.insert(all.masks.end(), part.masks.begin(), part.masks.end());
    all.scores.insert(all.scores.end(), part.scores.begin(), part.scores.end());
    all.arrays.insert(all.arrays.end(), part.arrays.begin(), part.arrays.end());
    if (part.sinks) {
      if (all.sinks) fail("variant", "two parts with sinks", "one: a row has one sink");
      all.sinks = part.sinks;
      all.sinks_in_lse = part.sinks_in_lse;
    }
    if (part.gated) {
      if (all.gated) fail("variant", "two parts with an output gate", "one: a row has one gate");
      all.gates = part.gates;
      all.gated = true;
    }
    if (part.value_factors) {
      if (all.value_factors) fail("variant", "two parts that scale values", "one");
      all.value_factors = part.value_factors;
    }
  }
  return all;
}

BoundVariant bound(const Variant& variant, Index query_heads, Index kv_heads) {
  BoundVariant call{.variant = &variant};
  if (variant.masks.empty())
    fail("variant", "[" + variant.text + "]", "a part that says what is seen: \"causal\", \"full\" or another mask");
  for (const std::shared_ptr<const Mask>& mask : variant.masks) {
    call.has_bits = call.has_bits || mask->has_bits;
    if (!mask->two_ranges) continue;
    if (call.two_ranges != nullptr) fail("variant", "two parts of first tokens and a window", "one");
    call.two_ranges = mask.get();
  }
  for (const std::shared_ptr<const ScoreChange>& change : variant.scores) {
    call.scores.push_back(*change);
    ScoreChange& mine = call.scores.back();
    if (mine.kind == ScoreKind::alibi && mine.of_head.empty()) {
      mine.of_head.resize(static_cast<std::size_t>(query_heads > 0 ? query_heads : 0));
      Alibi::fill_slopes(mine.of_head);
    }
    if (mine.distances) mine.distances->bias = mine.table;
  }
  for (const Array& gate : variant.gates) call.gates.push_back(tensor(gate, "(tokens, query heads, value dim)"));
  if (kv_heads > 0) call.group = query_heads / kv_heads;
  return call;
}

namespace {

/// The function for the stages that a variant has, on vectors if there is one.
Attend compiled_for(const BoundVariant& call) {
  using enum ScoreKind;
  const std::size_t changes = call.scores.size();
  const bool output = call.variant->gated || call.variant->value_factors.has_value();
  const ScoreKind first = changes > 0 ? call.scores[0].kind : none;
  const ScoreKind second = changes > 1 ? call.scores[1].kind : none;
  if (first == none) return attend_plain(none, call.has_bits, output);
  Attend found = nullptr;
  if (changes <= 2 && !output) {
    if (first == scale) found = attend_scale(second, call.has_bits);
    else if (first == cap) found = attend_cap(second, call.has_bits);
    else if (first == alibi) found = attend_alibi(second, call.has_bits);
    else found = attend_bias(first, second, call.has_bits);
  }
  return found != nullptr ? found : attend_plain(any, call.has_bits, output);
}

/// A list in a list, within Python's own limit: a list may lie in itself.
struct Deeper {
  Deeper() {
    if (Py_EnterRecursiveCall(" in a variant's lists") != 0) throw nb::python_error();
  }
  Deeper(const Deeper&) = delete;
  Deeper& operator=(const Deeper&) = delete;
  ~Deeper() { Py_LeaveRecursiveCall(); }
};

}  // namespace

void attend(const Functor& functor, const std::vector<Sequence>& batch, const BoundVariant& variant,
            const Options& options) {
  compiled_for(variant)(functor, batch, variant, options);
}

Variant variant_of(nb::handle object) {
  if (nb::isinstance<nb::str>(object)) {
    const std::string name = text(object, "variant", "characters of Unicode");
    if (name == "causal") return {.text = name, .masks = {mask_of(Causal{})}};
    if (name == "full") return {.text = name, .masks = {mask_of(Full{})}};
    if (name == "alibi") {
      const auto change = std::make_shared<ScoreChange>();
      change->kind = ScoreKind::alibi;
      return {.text = name, .scores = {change}};
    }
    fail("variant", "\"" + name + "\"", "\"causal\", \"full\", \"alibi\", or what gqa.causal_window and the like make");
  }
  Variant* variant = nullptr;
  if (nb::try_cast<Variant*>(object, variant, false) && variant != nullptr) return *variant;
  if (!nb::isinstance<nb::list>(object) && !nb::isinstance<nb::tuple>(object))
    fail("variant", "a " + nb::cast<std::string>(nb::str(object.type().attr("__name__"))),
         "a name, a Variant, or a list of these");
  std::vector<Variant> parts;
  const Deeper deeper;
  for (const nb::handle part : nb::borrow<nb::object>(object)) parts.push_back(variant_of(part));
  return composed(parts);
}

}  // namespace gqa::python
