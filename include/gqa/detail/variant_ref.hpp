// SPDX-License-Identifier: Apache-2.0
/// @file
/// A variant with its type erased, so that checking, planning and the task loop are compiled once.
#pragma once

#include <type_traits>

#include "gqa/detail/path/kernels.hpp"
#include "gqa/variant.hpp"

namespace gqa::detail {

/// Refers to a variant for the length of a call. Absent parts are null.
struct VariantRef {
  using Range = void (*)(const void* variant, Index query_position, Index kv_length, PositionRange* ranges);
  using Refine = std::uint64_t (*)(const void* variant, std::uint64_t candidates, Index query_position,
                                   Index query_head, Index block_begin);
  using Transform = void (*)(const RowTile&, const Block&, const void* variant, const Index* positions,
                             const Index* heads, Index block_begin);

  const void* variant = nullptr;
  Range range = nullptr;
  Index ranges = 1;         ///< how many ranges `range` gives, at most kMaxRanges
  Refine refine = nullptr;  ///< keeps the bits t of candidates whose position block_begin + t is visible
  Transform (*transform)(const Kernels&) = nullptr;  ///< the score functor, compiled for a path
  void (*check)(const void* variant) = nullptr;      ///< throws if the variant's own parameters are wrong
};

/// Whether V has a member of a name, of whatever kind and access: then the name is ambiguous in a class that has another one of another
/// base. Of a final class only a public one that is not overloaded is found.
struct OptionalMembers {
  int is_visible, score, check;
};
template <class V>
struct WithOptionalMembers : V, OptionalMembers {};

#define GQA_DETAIL_HAS_MEMBER(name)                          \
  template <class V>                                         \
  consteval bool has_##name() {                              \
    if constexpr (!std::is_class_v<V>) return false;         \
    else if constexpr (std::is_final_v<V>) return requires { \
        &V::name;                                            \
      };                                                     \
    else return !requires {                                  \
        &WithOptionalMembers<V>::name;                       \
      };                                                     \
  }
GQA_DETAIL_HAS_MEMBER(is_visible)
GQA_DETAIL_HAS_MEMBER(score)
GQA_DETAIL_HAS_MEMBER(check)
#undef GQA_DETAIL_HAS_MEMBER

/// Says in sentences which member of a variant has a form that would not be called.
template <class V>
consteval void check_members() {
  static_assert(!has_is_visible<V>() || MaskingVariant<V>,
                "The variant's is_visible cannot be called: it must be public, bool is_visible(gqa::Index "
                "query_position, gqa::Index "
                "key_position, gqa::Index query_head) const");
  static_assert(!has_score<V>() || ScoringVariant<V>,
                "The variant's score cannot be called: it must be public, float score(float score, gqa::Index "
                "query_position, gqa::Index "
                "key_position, gqa::Index query_head) const");
  static_assert(
      !has_check<V>() || requires(const V& variant) { variant.check(); },
      "The variant's check cannot be called: it must be public, void check() const");
}

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

template <Variant V>
VariantRef variant_ref(const V& variant) noexcept {
  check_members<V>();
  VariantRef ref;
  ref.variant = &variant;
  ref.ranges = ranges_of<V>;
  ref.range = [](const void* self, Index query_position, Index kv_length, PositionRange* ranges) {
    get_ranges(*static_cast<const V*>(self), query_position, kv_length, ranges);
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
