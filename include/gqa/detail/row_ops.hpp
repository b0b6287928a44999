// SPDX-License-Identifier: Apache-2.0
/// @file
/// What whole rows go through on their way into a cache: conversions between element types, and turns of pairs. The same bits on every path
/// and with every compiler flag; written once, and compiled for registers of several lengths, because they are to keep up with memory.
#pragma once

#include <utility>

#include "gqa/cpu.hpp"
#include "gqa/detail/path/region.hpp"
#include "gqa/detail/row_codec.hpp"

namespace gqa::detail {

/// The functions of one instruction set. Null: a codec's own does as well.
struct RowOps {
  RowEncoder f32_to_bf16;
  RowEncoder f32_to_f16;
  RowEncoder bf16_to_f32;
  RowEncoder f16_to_f32;
  /// Turns pairs [first, last) of a row. Those are i and i + dims / 2 if `split`, else 2i and 2i + 1.
  /// @param turns  cosines of the pairs, then sines, of all dims / 2
  void (*turn)(float* row, const float* turns, Index dims, bool split, Index first, Index last);
  /// Whose encoders of codecs belong to these.
  RowSet set;
};

}  // namespace gqa::detail

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI {

/// (a, b) ← (a·cos − b·sin, b·cos + a·sin), in f32, every product and sum rounded.
template <class T>
GQA_OP void turn_pairs(T* a, T* b, Index step, const float* cosines, const float* sines, Index count) {
  for (Index i = 0; i < count; ++i) {
    const auto x = static_cast<float>(a[i * step]);
    const auto y = static_cast<float>(b[i * step]);
    a[i * step] = static_cast<T>(rounded_product(x * cosines[i]) - rounded_product(y * sines[i]));
    b[i * step] = static_cast<T>(rounded_product(y * cosines[i]) + rounded_product(x * sines[i]));
  }
}

}  // namespace gqa::detail::inline GQA_ABI

namespace gqa::detail::inline GQA_ABI::portable::rows {

inline constexpr int kLanes = 4;
inline constexpr RowSet kSet = RowSet::portable;
#define GQA_DETAIL_ROWS_F16C 0
#include "gqa/detail/row_ops.inl"
#undef GQA_DETAIL_ROWS_F16C

}  // namespace gqa::detail::inline GQA_ABI::portable::rows

GQA_END_PLAIN_REGION()

#if GQA_DETAIL_X86

GQA_BEGIN_REGION("avx2,fma,f16c", "tune=haswell")

namespace gqa::detail::inline GQA_ABI::avx2::rows {

inline constexpr int kLanes = 8;
inline constexpr RowSet kSet = RowSet::avx2;
#define GQA_DETAIL_ROWS_F16C 1
#include "gqa/detail/row_ops.inl"

}  // namespace gqa::detail::inline GQA_ABI::avx2::rows

GQA_END_REGION()

GQA_BEGIN_REGION("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", "tune=icelake-server")

namespace gqa::detail::inline GQA_ABI::avx512::rows {

inline constexpr int kLanes = 16;
inline constexpr RowSet kSet = RowSet::avx512;
#include "gqa/detail/row_ops.inl"
#undef GQA_DETAIL_ROWS_F16C

}  // namespace gqa::detail::inline GQA_ABI::avx512::rows

GQA_END_REGION()

GQA_BEGIN_REGION("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", "tune=icelake-server")

namespace gqa::detail::inline GQA_ABI::avx512bf16::rows {

/// By the processor's own rounding, in a third of the instructions. That takes denormals for zeros: rows that have some are converted again.
inline void f32_to_bf16(const std::byte* from, Index step, Index dim, std::byte* row, std::byte* scale) {
  constexpr Index lanes = 16;
  Index i = 0;
  unsigned denormals = 0;
  if (step == 1)
    for (; i + lanes <= dim; i += lanes) {
      const __m512 x = _mm512_loadu_ps(from + i * 4);
      const __m256bh rounded = _mm512_cvtneps_pbh(x);
      std::memcpy(row + i * 2, &rounded, sizeof rounded);
      denormals |= _mm512_fpclass_ps_mask(x, 0x20);
    }
  if (denormals != 0) i = 0;
  if (i < dim) avx512::rows::f32_to_bf16(from + i * step * 4, step, dim - i, row + i * 2, scale);
}

inline constexpr RowOps kOps{f32_to_bf16,
                             avx512::rows::f32_to_f16,
                             avx512::rows::bf16_to_f32,
                             avx512::rows::f16_to_f32,
                             avx512::rows::turn_row,
                             RowSet::avx512};

}  // namespace gqa::detail::inline GQA_ABI::avx512bf16::rows

GQA_END_REGION()

#endif

namespace gqa::detail::inline GQA_ABI {

/// Of what a path may use.
inline const RowOps& row_ops_of([[maybe_unused]] Path path) noexcept {
#if GQA_DETAIL_X86
  if (path >= Path::avx512bf16) return avx512bf16::rows::kOps;
  if (path >= Path::avx512) return avx512::rows::kOps;
  if (path >= Path::avx2) return avx2::rows::kOps;
#endif
  return portable::rows::kOps;
}
/// Of the path that calls take by default.
/// @throws ArgumentError if GQA_PATH is not a path's name
inline const RowOps& row_ops() {
  static const RowOps& chosen = row_ops_of(active_path().path);
  return chosen;
}

}  // namespace gqa::detail::inline GQA_ABI
