// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the compiler must not do, and the index type.
#pragma once

#if defined(__STDC_HOSTED__) && !__STDC_HOSTED__
#error "gqa needs the whole standard library: compile this unit without -ffreestanding"
#include "gqa/see_the_error_above"
#endif

#include <cstddef>
#include <cstdint>

#include "gqa/detail/abi_tag.hpp"

// What is refused is refused in a sentence. The compiler stops at the file after it, which does not exist: what it would say of the rest of
// the headers helps nobody.
#if !defined(__GNUC__)
#error "gqa needs GCC 11 or newer, or Clang 14 or newer; MSVC, and Clang in MSVC's place, are not supported"
#include "gqa/see_the_error_above"
#elif (defined(__clang__) && __clang_major__ < 14) || (!defined(__clang__) && __GNUC__ < 11)
#error "gqa needs GCC 11 or newer, or Clang 14 or newer: this compiler is older"
#include "gqa/see_the_error_above"
#elif __cplusplus < 202002L
#error "gqa needs C++20: compile this unit with -std=c++20 or newer"
#include "gqa/see_the_error_above"
#elif defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "gqa needs a little-endian target: rows of caches are stored as other programs have them"
#include "gqa/see_the_error_above"
#elif PTRDIFF_MAX < 0x7fffffffffffffff && !defined(__wasm__)
#error "gqa needs a 64-bit target or WebAssembly: extents, strides and positions of caches are 64-bit numbers"
#include "gqa/see_the_error_above"
#endif

// Results are the same bits on every path because the order of every addition is fixed. -ffast-math lets the compiler
// change that order and drop the tests for NaN and infinity, so the library refuses instead of answering differently. Of its parts, those
// that every compiler can be told not to use are put off where results are computed: see detail/path/region.hpp.
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error \
    "gqa cannot keep its results exact under -ffast-math, -Ofast or -ffinite-math-only: compile this unit without them"
#include "gqa/see_the_error_above"
#endif
// 1 and 2: float expressions are computed in double or long double, or (−1) in whatever is at hand. Clang says −1 for flags that are put off.
#if defined(__FLT_EVAL_METHOD__) && \
    (__FLT_EVAL_METHOD__ == 1 || __FLT_EVAL_METHOD__ == 2 || (__FLT_EVAL_METHOD__ < 0 && !defined(__clang__)))
#error "gqa cannot keep its results exact where float is not computed in float: compile this unit without -mfpmath=387"
#include "gqa/see_the_error_above"
#endif

/// Members of plain public types are forwarded from here: never emitted as a symbol of their own.
#define GQA_ALWAYS_INLINE inline __attribute__((always_inline))

// GCC for Windows does not align the stack for registers wider than 16 bytes (its bug 54412): code that spills them there crashes.
#if defined(__x86_64__) && defined(_WIN32) && !defined(__clang__)
#define GQA_DETAIL_X86 0
#elif defined(__x86_64__)
#define GQA_DETAIL_X86 1
#else
#define GQA_DETAIL_X86 0
#endif

#if defined(__aarch64__) && defined(__ARM_NEON) && defined(__ARM_FP)
#define GQA_DETAIL_NEON 1
#else
#define GQA_DETAIL_NEON 0
#endif

#if defined(__wasm_simd128__)
#define GQA_DETAIL_WASM 1
#else
#define GQA_DETAIL_WASM 0
#endif

namespace gqa {

/// Counts, positions and strides. Signed, so that differences and reversed strides are ordinary values. 64 bits also where addresses have 32,
/// as in WebAssembly: what is worked out from arguments then fits there as it does elsewhere, and what lies beyond the addresses is refused.
#if PTRDIFF_MAX < 0x7fffffffffffffff
using Index = std::int64_t;
#else
using Index = std::ptrdiff_t;
#endif

}  // namespace gqa
