// SPDX-License-Identifier: Apache-2.0
/// @file
/// Variants of Python's: lists of parts, each a mask, a change of scores, a sink or a change of outputs.
#pragma once

#include "masks.hpp"
#include "scores.hpp"
#include "views.hpp"

namespace gqa::python {

/// What one part, or a list of them, says. Shared by the calls that use it; nothing in it changes.
struct Variant {
  std::string text;  ///< what repr says
  std::vector<std::shared_ptr<const Mask>> masks{};
  std::vector<std::shared_ptr<const ScoreChange>> scores{};
  std::optional<std::vector<float>> sinks{};
  bool sinks_in_lse = true;
  std::vector<Array> gates{};  ///< one for each sequence
  bool gated = false;
  std::optional<std::vector<float>> value_factors{};
  std::vector<std::shared_ptr<const Array>> arrays{};  ///< those of its parts that calls read
};

/// Parts in order. @throws ArgumentError if two have a sink, or a gate
Variant composed(const std::vector<Variant>& parts);
/// A name ("causal", "full", "alibi"), a Variant, or a list or tuple of those.
Variant variant_of(nb::handle object);

/// The same for one call: what its parts need to know of it is filled in.
struct BoundVariant {
  const Variant* variant;
  std::vector<ScoreChange> scores{};  ///< with slopes, where those were left to the number of heads
  bool has_bits = false;
  const Mask* two_ranges = nullptr;
  std::vector<ConstTensorView> gates{};
  Index group = 1;  ///< query heads of a KV head
};
/// @throws ArgumentError if there is no mask among the parts, or two that have two ranges
BoundVariant bound(const Variant& variant, Index query_heads, Index kv_heads);

using Functor = GroupedQueryAttention<dynamic, dynamic, dynamic, dynamic, EveryCache>;

/// The call, with the variant's type.
void attend(const Functor& functor, const std::vector<Sequence>& batch, const BoundVariant& variant,
            const Options& options);

void bind_variants(nb::module_& module);

}  // namespace gqa::python
