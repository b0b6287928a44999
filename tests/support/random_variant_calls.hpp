// SPDX-License-Identifier: Apache-2.0
// Calls with drawn variants. What is compiled for each type of variant is in random_variant_calls.cpp, once for all programs.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "every_codec.hpp"
#include "gqa/attention.hpp"
#include "random_variant.hpp"

namespace gqa::test {

/// What is called: for any heads, widths and codecs.
using DrawnAttention = GroupedQueryAttention<dynamic, dynamic, dynamic, dynamic, EveryCache>;

const char* part_name(Part part);

/// The compositions that there are, each a type.
Index combinations();
/// Their parts, in order.
std::span<const Part> parts_of(Index combination);
std::string combination_name(Index combination);

/// A variant with the numbers of a part of a call.
struct ScopedVariant {
  const VariantNumbers& numbers;
  Index combination;
  Scope scope;
  std::vector<ConstTensorView> gates;

  ScopedVariant(const VariantNumbers& all, Index which, const Scope& part = {});
};

/// Calls the functor.
void call(const ScopedVariant& variant, const DrawnAttention& attention, std::span<const Sequence> batch,
          const Options& options);
/// Its scratch_bytes.
std::size_t scratch_bytes(const ScopedVariant& variant, const DrawnAttention& attention,
                          std::span<const Sequence> batch, const Options& options);
/// The first position of a sequence that is in a range of any of its queries; its length if there is none.
Index first_in_range(const ScopedVariant& variant, Index sequence, const DrawnSequence& extents);

}  // namespace gqa::test
