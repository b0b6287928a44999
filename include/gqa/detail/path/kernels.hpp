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
inline const Kernels& kernels_for([[maybe_unused]] Path path, [[maybe_unused]] int bf16_terms) noexcept {
#if GQA_DETAIL_X86
  if (path == Path::amx && bf16_terms == 2) return amx::two_terms::kernels<Types, HeadDim, ValueDim>();
  if (path == Path::amx && bf16_terms == 1) return amx::one_term::kernels<Types, HeadDim, ValueDim>();
  if (path == Path::avx512bf16 && bf16_terms == 1) return avx512bf16::kernels<Types, HeadDim, ValueDim>();
  if (path >= Path::avx512) return avx512::kernels<Types, HeadDim, ValueDim>();
  if (path == Path::avx2) return avx2::kernels<Types, HeadDim, ValueDim>();
#endif
  return portable::kernels<Types, HeadDim, ValueDim>();
}

/// The softmax of scores that a variant changes, compiled for the path of `kernels`.
template <class V>
inline SoftmaxKernel softmax_on([[maybe_unused]] const Kernels& kernels) noexcept {
#if GQA_DETAIL_X86
  if (kernels.path == Path::amx && kernels.bf16_terms == 2) return amx::softmax<2, avx512::VariantScore<V>>;
  if (kernels.path == Path::amx) return amx::softmax<1, avx512::VariantScore<V>>;
  if (kernels.path == Path::avx512bf16) return avx512bf16::softmax<avx512::VariantScore<V>>;
  if (kernels.path == Path::avx512) return avx512::softmax<avx512::VariantScore<V>>;
  if (kernels.path == Path::avx2) return avx2::softmax<avx2::VariantScore<V>>;
#endif
  return portable::softmax<portable::VariantScore<V>>;
}

/// A variant's mask that is an expression, likewise.
template <class V>
inline auto visible_on([[maybe_unused]] const Kernels& kernels) noexcept {
#if GQA_DETAIL_X86
  if (kernels.path >= Path::avx512) return &avx512::visible_tokens<V>;
  if (kernels.path == Path::avx2) return &avx2::visible_tokens<V>;
#endif
  return &portable::visible_tokens<V>;
}

}  // namespace gqa::detail::inline GQA_ABI
