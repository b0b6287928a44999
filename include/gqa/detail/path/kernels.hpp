// SPDX-License-Identifier: Apache-2.0
/// @file
/// Every path's kernels, and which of them a call uses.
#pragma once

#include "gqa/detail/path/region.hpp"

#define GQA_DETAIL_PATH_HEADERS
#include "gqa/detail/path/paths.def"
#undef GQA_DETAIL_PATH_HEADERS

namespace gqa::detail::inline GQA_ABI {

/// The kernels of a path that this process can run, for caches of some element types (CacheOf::types), for the extents that they are
/// compiled for, and for inputs that are taken as so many bf16 numbers each: one where q, k and v are bf16 or may be rounded to it, two
/// where they may be sums of two, none where they are to be taken as they are. What a path has no kernels for goes by the f32 arithmetic
/// of avx512.
template <unsigned Types, int HeadDim, int ValueDim>
inline const Kernels& kernels_for(Path path, int bf16_terms) noexcept {
#define GQA_DETAIL_PATH(name, architecture, test, arithmetic, reason) \
  GQA_DETAIL_FOR_##architecture(if (path == Path::name) return name::kernels_of<Types, HeadDim, ValueDim>(bf16_terms);)
#include "gqa/detail/path/paths.def"
#undef GQA_DETAIL_PATH
  return portable::kernels_of<Types, HeadDim, ValueDim>(bf16_terms);
}

/// The softmax of scores that a variant changes, compiled for the path of `kernels`.
template <class V>
inline SoftmaxKernel softmax_on(const Kernels& kernels) noexcept {
  const Path path = kernels.path;
#define GQA_DETAIL_PATH(name, architecture, test, arithmetic, reason) \
  GQA_DETAIL_FOR_##architecture(if (path == Path::name) return name::variant_softmax<V>(kernels);)
#include "gqa/detail/path/paths.def"
#undef GQA_DETAIL_PATH
  return portable::variant_softmax<V>(kernels);
}

/// A variant's mask that is an expression, likewise.
template <class V>
inline auto visible_on(const Kernels& kernels) noexcept {
  const Path path = kernels.path;
#define GQA_DETAIL_PATH(name, architecture, test, arithmetic, reason) \
  GQA_DETAIL_FOR_##architecture(if (path == Path::name) return &name::visible_tokens<V>;)
#include "gqa/detail/path/paths.def"
#undef GQA_DETAIL_PATH
  return &portable::visible_tokens<V>;
}

/// What changes a variant's outputs, likewise. Compiled for variants that have that, so the kernels of others do without it.
template <class V>
inline FinishKernel finish_on(const Kernels& kernels) noexcept {
  const Path path = kernels.path;
#define GQA_DETAIL_PATH(name, architecture, test, arithmetic, reason) \
  GQA_DETAIL_FOR_##architecture(if (path == Path::name) return &name::finish_rows<V>;)
#include "gqa/detail/path/paths.def"
#undef GQA_DETAIL_PATH
  return &portable::finish_rows<V>;
}

}  // namespace gqa::detail::inline GQA_ABI
