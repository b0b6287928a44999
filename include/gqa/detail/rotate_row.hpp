// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows rotated: the Hadamard transform of each block of a row. The same bits on every path and with every compiler flag; written once, and
/// compiled for registers of several lengths.
#pragma once

#include <cstring>
#include <utility>

#include "gqa/cpu.hpp"
#include "gqa/detail/path/region.hpp"
#include "gqa/detail/rotation.hpp"

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI::portable::rotation {

inline constexpr int kLanes = 4;
#include "gqa/detail/rotate_row.inl"

}  // namespace gqa::detail::inline GQA_ABI::portable::rotation

GQA_END_PLAIN_REGION()

#if GQA_DETAIL_X86

GQA_BEGIN_REGION("avx2,fma", "tune=haswell")

namespace gqa::detail::inline GQA_ABI::avx2::rotation {

inline constexpr int kLanes = 8;
#include "gqa/detail/rotate_row.inl"

}  // namespace gqa::detail::inline GQA_ABI::avx2::rotation

GQA_END_REGION()

GQA_BEGIN_REGION("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma", "tune=icelake-server")

namespace gqa::detail::inline GQA_ABI::avx512::rotation {

inline constexpr int kLanes = 16;
#include "gqa/detail/rotate_row.inl"

}  // namespace gqa::detail::inline GQA_ABI::avx512::rotation

GQA_END_REGION()

#endif

namespace gqa::detail::inline GQA_ABI {

/// By what a path may use.
inline RotateRow rotate_row_on([[maybe_unused]] Path path) noexcept {
#if GQA_DETAIL_X86
  if (path >= Path::avx512) return avx512::rotation::rotate_row;
  if (path >= Path::avx2) return avx2::rotation::rotate_row;
#endif
  return portable::rotation::rotate_row;
}

}  // namespace gqa::detail::inline GQA_ABI
