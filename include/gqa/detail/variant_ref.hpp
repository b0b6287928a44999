// SPDX-License-Identifier: Apache-2.0
/// @file
/// A variant with its type erased, so that checking, planning and the task loop are compiled once.
#pragma once

#include "gqa/detail/path/kernels.hpp"
#include "gqa/variant.hpp"

namespace gqa::detail {

/// Refers to a variant for the length of a call. Absent parts are null.
struct VariantRef {
  using Range = PositionRange (*)(const void* variant, Index query_position, Index kv_length);
  using Refine = std::uint64_t (*)(const void* variant, std::uint64_t candidates, Index query_position,
                                   Index query_head, Index block_begin);
  using Transform = void (*)(const RowTile&, const Block&, const void* variant, const Index* positions,
                             const Index* heads, Index block_begin);

  const void* variant = nullptr;
  Range range = nullptr;
  Refine refine = nullptr;  ///< keeps the bits t of candidates whose position block_begin + t is visible
  Transform (*transform)(const Kernels&) = nullptr;  ///< the score functor, compiled for a path
  void (*check)(const void* variant) = nullptr;      ///< throws if the variant's own parameters are wrong
};

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

template <Variant V>
VariantRef variant_ref(const V& variant) noexcept {
  VariantRef ref;
  ref.variant = &variant;
  ref.range = [](const void* self, Index query_position, Index kv_length) {
    return static_cast<const V*>(self)->visible_range(query_position, kv_length);
  };
  if constexpr (MaskingVariant<V>) {
    ref.refine = [](const void* self, std::uint64_t candidates, Index query_position, Index query_head,
                    Index block_begin) {
      std::uint64_t visible = 0;
      for (std::uint64_t rest = candidates; rest != 0; rest &= rest - 1) {
        const int t = __builtin_ctzll(rest);
        if (static_cast<const V*>(self)->is_visible(query_position, block_begin + t, query_head))
          visible |= std::uint64_t{1} << t;
      }
      return visible;
    };
  }
  if constexpr (ScoringVariant<V>) ref.transform = [](const Kernels& kernels) { return transform_on<V>(kernels); };
  if constexpr (requires { variant.check(); })
    ref.check = [](const void* self) { static_cast<const V*>(self)->check(); };
  return ref;
}

}  // namespace gqa::detail::inline GQA_ABI
