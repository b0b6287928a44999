// SPDX-License-Identifier: Apache-2.0
/// @file
/// Regions of code for one instruction set, opened in any unit whatever its -m flags.
///
/// Everything that is included stands before the first region; in a region there are only namespaces and code. Products and sums
/// are contracted nowhere: what is fused says so. Nor are they put in another order, whatever the unit's flags say: a region's
/// floating-point arithmetic is that of the standard. All arithmetic that results depend on stands in regions.
#pragma once

#include <cstring>

#include "gqa/detail/plain_region.hpp"
#include "gqa/detail/prefetch.hpp"

#if GQA_DETAIL_X86
// GCC 12 reports the undefined operands that its own AVX-512 intrinsics are made of.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

/// Whether the target has a fused multiply-add of floats for certain.
#if defined(__FMA__) || defined(__FP_FAST_FMAF) || defined(__aarch64__) || defined(__powerpc64__) || \
    (defined(__riscv_flen) && __riscv_flen >= 32)
#define GQA_DETAIL_FUSED 1
#else
#define GQA_DETAIL_FUSED 0
#endif

#if defined(__clang__)
#define GQA_BEGIN_REGION(features, tuning) \
  GQA_BEGIN_PLAIN_REGION()                 \
  GQA_DETAIL_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define GQA_END_REGION()                 \
  GQA_DETAIL_PRAGMA(clang attribute pop) \
  GQA_END_PLAIN_REGION()
#else
// Passes that find nothing to improve in code unrolled by hand, and take a quarter of the time that a unit takes to compile; some make it
// slower.
#define GQA_DETAIL_FEWER_PASSES()                                                                                  \
  GQA_DETAIL_PRAGMA(                                                                                               \
      GCC optimize("no-code-hoisting,no-gcse,no-schedule-insns2,no-split-paths,no-store-merging,no-thread-jumps")) \
  GQA_DETAIL_PRAGMA(                                                                                               \
      GCC optimize("no-tree-ccp,no-tree-dominator-opts,no-tree-loop-distribute-patterns,no-tree-pre,no-tree-pta")) \
  GQA_DETAIL_PRAGMA(GCC optimize("no-tree-slp-vectorize,no-tree-tail-merge,no-tree-vrp"))
// The warnings again, for units that include immintrin.h before us. Then `tuning`: for no processor in particular, GCC 12 keeps integers
// that it has no register for in vector registers, and an address from there waits behind the products.
#define GQA_BEGIN_REGION(features, tuning)                          \
  GQA_DETAIL_BEGIN_QUIET()                                          \
  GQA_DETAIL_PRAGMA(GCC diagnostic ignored "-Wuninitialized")       \
  GQA_DETAIL_PRAGMA(GCC diagnostic ignored "-Wmaybe-uninitialized") \
  GQA_BEGIN_PLAIN_REGION()                                          \
  GQA_DETAIL_PRAGMA(GCC target(features))                           \
  GQA_DETAIL_PRAGMA(GCC target(tuning))                             \
  GQA_DETAIL_FEWER_PASSES()                                         \
  GQA_DETAIL_PRAGMA(GCC optimize("no-tree-loop-vectorize"))
#define GQA_END_REGION() \
  GQA_END_PLAIN_REGION() \
  GQA_DETAIL_END_QUIET()
#endif
#if GQA_DETAIL_NEON
// Regions for what an AArch64 processor may have beside NEON: `feature`, as "dotprod", in addition to all that the unit is compiled for, else
// GCC refuses to inline the unit's functions. It wants Armv8.2 for them, and where a unit is compiled for less, or might be, it is told what
// such units have.
#if defined(__clang__)
#define GQA_BEGIN_ARM_REGION(feature) \
  GQA_BEGIN_PLAIN_REGION()            \
  GQA_DETAIL_PRAGMA(clang attribute push(__attribute__((target(feature))), apply_to = function))
#define GQA_END_ARM_REGION()             \
  GQA_DETAIL_PRAGMA(clang attribute pop) \
  GQA_END_PLAIN_REGION()
#else
#if defined(__ARM_FEATURE_DOTPROD) || defined(__ARM_FEATURE_COMPLEX)  // Armv8.3, or 8.2 with these
#define GQA_DETAIL_ARM_UNIT ""
#else
#if defined(__ARM_FEATURE_AES)
#define GQA_DETAIL_ARM_CRYPTO "+crypto"
#else
#define GQA_DETAIL_ARM_CRYPTO ""
#endif
#if defined(__ARM_FEATURE_SVE)
#define GQA_DETAIL_ARM_SVE "+sve"
#else
#define GQA_DETAIL_ARM_SVE ""
#endif
#if defined(__ARM_FEATURE_FP16_SCALAR_ARITHMETIC)
#define GQA_DETAIL_ARM_FP16 "+fp16"
#else
#define GQA_DETAIL_ARM_FP16 ""
#endif
#define GQA_DETAIL_ARM_UNIT "arch=armv8.2-a" GQA_DETAIL_ARM_CRYPTO GQA_DETAIL_ARM_SVE GQA_DETAIL_ARM_FP16
#endif
#define GQA_DETAIL_ARM_TARGET(unit, feature) GQA_DETAIL_PRAGMA(GCC target(unit "+" feature))
#define GQA_BEGIN_ARM_REGION(feature) GQA_BEGIN_PLAIN_REGION() GQA_DETAIL_ARM_TARGET(GQA_DETAIL_ARM_UNIT, feature)
#define GQA_END_ARM_REGION() GQA_END_PLAIN_REGION()
#endif
#endif
#if GQA_DETAIL_X86 && !defined(__clang__)
#define GQA_BEGIN_PORTABLE_REGION() GQA_BEGIN_PLAIN_REGION() GQA_DETAIL_FEWER_PASSES()
#else  // elsewhere than on x86 this is the path in use, and what it loses by fewer passes is not known
#define GQA_BEGIN_PORTABLE_REGION() GQA_BEGIN_PLAIN_REGION()
#endif

/// Kernel building blocks: always inlined into the stage that uses them.
#define GQA_OP inline __attribute__((always_inline))
/// Kernels of a few hundred instructions, that are called by the stages: registers are for them alone.
#define GQA_KERNEL inline __attribute__((noinline))
#if GQA_DETAIL_X86
// Fused multiply-adds, maxima (the second where the first is NaN) and value, but 0 where x < floor (value where x is NaN), by what the unit's
// flags do not reach. With Clang they reach immintrin.h's functions, and its comparisons; they do not reach operators in a region, of which
// sums, differences and products are made too.
#if !defined(__clang__)
#define GQA_FMA_PS256(a, b, c) _mm256_fmadd_ps(a, b, c)
#define GQA_FMA_PS512(a, b, c) _mm512_fmadd_ps(a, b, c)
#define GQA_MAX_SS(a, b) _mm_max_ss(a, b)
#define GQA_MAX_PS128(a, b) _mm_max_ps(a, b)
#define GQA_MAX_PS256(a, b) _mm256_max_ps(a, b)
#define GQA_MAX_PS512(a, b) _mm512_max_ps(a, b)
#define GQA_ZERO_BELOW_PS256(x, floor, value) _mm256_and_ps(_mm256_cmp_ps(x, floor, _CMP_NLT_UQ), value)
#define GQA_ZERO_BELOW_PS512(x, floor, value) _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, floor, _CMP_NLT_UQ), value)
#else
#if __has_builtin(__builtin_elementwise_fma)
#define GQA_FMA_PS256(a, b, c) __builtin_elementwise_fma(a, b, c)
#define GQA_FMA_PS512(a, b, c) __builtin_elementwise_fma(a, b, c)
#else
#define GQA_FMA_PS256(a, b, c) __builtin_ia32_vfmaddps256(a, b, c)
#define GQA_FMA_PS512(a, b, c) _mm512_fmadd_round_ps(a, b, c, _MM_FROUND_CUR_DIRECTION)
#endif
#define GQA_MAX_SS(a, b) __builtin_ia32_maxss(a, b)
#define GQA_MAX_PS128(a, b) __builtin_ia32_maxps(a, b)
#define GQA_MAX_PS256(a, b) __builtin_ia32_maxps256(a, b)
#define GQA_MAX_PS512(a, b) _mm512_max_round_ps(a, b, _MM_FROUND_CUR_DIRECTION)
#define GQA_ZERO_BELOW_PS256(x, floor, value) \
  _mm256_castsi256_ps(_mm256_andnot_si256(reinterpret_cast<__m256i>(x < floor), _mm256_castps_si256(value)))
#define GQA_ZERO_BELOW_PS512(x, floor, value) \
  _mm512_castsi512_ps(_mm512_andnot_si512(reinterpret_cast<__m512i>(x < floor), _mm512_castps_si512(value)))
#endif
#endif

/// Unrolls the next loop whole, at any optimisation level that optimises.
#define GQA_UNROLL GQA_DETAIL_PRAGMA(GCC unroll 32)
/// Keeps the next loop a loop: its loads are to stay few instructions.
#if defined(__clang__)
#define GQA_NO_UNROLL GQA_DETAIL_PRAGMA(nounroll)
#else
#define GQA_NO_UNROLL GQA_DETAIL_PRAGMA(GCC unroll 1)
#endif

namespace gqa::detail {

/// Whether the rows of a codec are what f32 arithmetic computes with, as they lie.
template <class Codec>
inline constexpr bool kPlainRows = std::is_same_v<Codec, F32>;
/// Whether a codec's numbers may be larger than any bf16: not those of 16 bits.
template <class Codec>
inline constexpr bool kRoundsToInfinity = !std::is_same_v<Codec, Bf16> && !std::is_same_v<Codec, F16>;
/// Whether rows are integers, and one scale each: Codec::integer_bits of them, 8 or 4, as Int8 and Int4 have them.
template <class Codec>
inline constexpr bool kIntegers = requires {
  Codec::integer_bits;
};

}  // namespace gqa::detail

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI {

/// 1 / √head_dim, what q·k is multiplied by unless the caller says otherwise.
inline float default_scale(Index head_dim) noexcept { return 1.0f / __builtin_sqrtf(static_cast<float>(head_dim)); }

/// A user's score of one pair, in code of the unit's own instruction set, whichever path asks. Inlined into a path, the compiler would fuse
/// the user's products and sums where that path has fused ones, and the same functor would give other scores there.
template <class V>
__attribute__((noinline)) float user_score(const V& variant, float score, const RowContext& row, Index key_position) {
  if constexpr (ScoreOfContext<V>) return static_cast<float>(variant.score(score, row, key_position));
  else return static_cast<float>(variant.score(score, row.position, key_position, row.query_head));
}

}  // namespace gqa::detail::inline GQA_ABI

GQA_END_PLAIN_REGION()
