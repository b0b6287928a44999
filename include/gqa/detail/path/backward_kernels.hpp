// SPDX-License-Identifier: Apache-2.0
/// @file
/// Every path's kernels of the backward pass, and which of them a call uses.
#pragma once

#include "gqa/detail/backward/tile.hpp"
#include "gqa/detail/path/kernels.hpp"

GQA_BEGIN_PORTABLE_REGION()
namespace gqa::detail::inline GQA_ABI::portable {
inline constexpr int kGradientRows = 4;
inline constexpr int kGradientVectors = 1;
#include "gqa/detail/path/backward_scores.inl"
#include "gqa/detail/path/backward.inl"
}  // namespace gqa::detail::inline GQA_ABI::portable
#if GQA_DETAIL_NEON
namespace gqa::detail::inline GQA_ABI::neon {
inline constexpr int kGradientRows = 4;  // 16 registers of sums, 4 of words
inline constexpr int kGradientVectors = 1;
#include "gqa/detail/path/backward_scores.inl"
#include "gqa/detail/path/backward.inl"
}  // namespace gqa::detail::inline GQA_ABI::neon
#endif
GQA_END_PLAIN_REGION()

#if GQA_DETAIL_X86

GQA_BEGIN_REGION("avx2,fma,f16c", "tune=haswell")
namespace gqa::detail::inline GQA_ABI::avx2 {
inline constexpr int kGradientRows = 6;  // 12 registers of sums, 2 of words, 1 that is spread
inline constexpr int kGradientVectors = 1;
#include "gqa/detail/path/backward_scores.inl"
#include "gqa/detail/path/backward.inl"
}  // namespace gqa::detail::inline GQA_ABI::avx2
GQA_END_REGION()

GQA_BEGIN_REGION("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", "tune=icelake-server")
namespace gqa::detail::inline GQA_ABI::avx512 {
inline constexpr int kGradientRows = 8;
inline constexpr int kGradientVectors = 2;
#include "gqa/detail/path/backward_scores.inl"
#include "gqa/detail/path/backward.inl"
}  // namespace gqa::detail::inline GQA_ABI::avx512
GQA_END_REGION()

GQA_BEGIN_REGION("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", "tune=icelake-server")
namespace gqa::detail::inline GQA_ABI::avx512bf16_backward {
using namespace avx512;  // with its scores: a function of this region cannot be inlined into one of that
inline constexpr int kGradientRows = 8;
inline constexpr int kGradientVectors = 2;
// Two neighbouring bf16, the first in the lower half.
struct PairWord {
  static constexpr int kElements = 2;
  static GQA_OP Vec splat(const float* word) {
    std::int32_t bits;
    __builtin_memcpy(&bits, word, sizeof bits);
    return _mm512_castsi512_ps(_mm512_set1_epi32(bits));
  }
  static GQA_OP Vec add(const Vec& a, const Vec& b, const Vec& sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  static GQA_OP __m512i widened(const Vec& a) {
    return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a)));
  }
  static GQA_OP Vec join(const Vec (&elements)[2]) {
    return _mm512_castsi512_ps(_mm512_or_si512(widened(elements[0]), _mm512_slli_epi32(widened(elements[1]), 16)));
  }
  static GQA_OP void put(float* row, Index d, const Vec& elements) {
    const auto bits = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(elements));
    _mm256_storeu_si256(static_cast<__m256i*>(static_cast<void*>(row + d / 2)), bits);
  }
  static GQA_OP Vec get(const float* row, Index d) {
    return avx512::load(Bf16{}, reinterpret_cast<const std::byte*>(row), d);
  }
};
#include "gqa/detail/path/backward.inl"
}  // namespace gqa::detail::inline GQA_ABI::avx512bf16_backward
GQA_END_REGION()

#endif  // GQA_DETAIL_X86

namespace gqa::detail::inline GQA_ABI {

/// Calls use(kind) with the Backward of a path, with bf16 products if they are asked for and the path has them. AMX has those of the
/// AVX-512 path: no tiles are used here. NEON's are for the forward pass alone.
template <class Use>
auto on_backward_path(Path path, [[maybe_unused]] bool bf16, const Use& use) {
#if GQA_DETAIL_X86
  const bool has_bf16 = path == Path::avx512bf16 || path == Path::amx;
  if (bf16 && has_bf16) return use(avx512bf16_backward::Backward<avx512bf16_backward::PairWord>{});
  if (has_bf16 || path == Path::avx512) return use(avx512::Backward<avx512::FloatWord>{});
  if (path == Path::avx2) return use(avx2::Backward<avx2::FloatWord>{});
#elif GQA_DETAIL_NEON
  if (path == Path::neon || path == Path::neon_bf16) return use(neon::Backward<neon::FloatWord>{});
#endif
  return use(portable::Backward<portable::FloatWord>{});
}

template <unsigned Types>
const BackwardKernels& backward_kernels(Path path, bool bf16) noexcept {
  const BackwardKernels* kernels = nullptr;
  on_backward_path(path, bf16, [&]<class Kind>(Kind) { kernels = &Kind::template kernels<Types>(); });
  return *kernels;
}

}  // namespace gqa::detail::inline GQA_ABI
