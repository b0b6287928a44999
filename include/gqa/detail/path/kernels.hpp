// SPDX-License-Identifier: Apache-2.0
/// @file
/// Every path's kernels, and which of them a call uses.
#pragma once

#include "gqa/detail/path/amx.hpp"
#include "gqa/detail/path/avx2.hpp"
#include "gqa/detail/path/avx512.hpp"
#include "gqa/detail/path/avx512bf16.hpp"
#include "gqa/detail/path/portable.hpp"

namespace gqa::detail::inline GQA_ABI {

/// The kernels of a path that this process can run, for caches of some element types (CacheOf::types), for the extents that they are
/// compiled for, and for inputs that are taken as so many bf16 numbers each: one where q, k and v are bf16 or may be rounded to it, two
/// where they may be sums of two, none where they are to be taken as they are. What a path has no kernels for goes by the f32 arithmetic
/// of avx512.
template <unsigned Types, int HeadDim, int ValueDim>
inline const Kernels& kernels_for(Path path, [[maybe_unused]] int bf16_terms) noexcept {
  switch (path) {
#if GQA_DETAIL_X86
    case Path::amx:
      return bf16_terms == 1   ? amx::one_term::kernels<Types, HeadDim, ValueDim>()
             : bf16_terms == 2 ? amx::two_terms::kernels<Types, HeadDim, ValueDim>()
                               : avx512::kernels<Types, HeadDim, ValueDim>();
    case Path::avx512bf16:
      return bf16_terms == 1 ? avx512bf16::kernels<Types, HeadDim, ValueDim>()
                             : avx512::kernels<Types, HeadDim, ValueDim>();
    case Path::avx512: return avx512::kernels<Types, HeadDim, ValueDim>();
    case Path::avx2: return avx2::kernels<Types, HeadDim, ValueDim>();
#endif
    default: return portable::kernels<Types, HeadDim, ValueDim>();
  }
}

/// A user's score functor compiled for the path of `kernels`.
template <class V>
inline auto transform_on(const Kernels& kernels) noexcept {
  switch (kernels.path) {
#if GQA_DETAIL_X86
    case Path::amx: return &amx::transform<V>;
    case Path::avx512bf16:  // the same layout of scores
    case Path::avx512: return &avx512::transform<V>;
    case Path::avx2: return &avx2::transform<V>;
#endif
    default: return &portable::transform<V>;
  }
}

}  // namespace gqa::detail::inline GQA_ABI
