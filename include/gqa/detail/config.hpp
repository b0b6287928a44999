// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the compiler must not do, the index type, and the tag that keeps units with different flags apart.
#pragma once

#include <cstddef>
#include <cstdint>

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
#elif PTRDIFF_MAX < 0x7fffffffffffffff
#error "gqa needs a 64-bit target: extents, strides and positions of caches are 64-bit numbers"
#include "gqa/see_the_error_above"
#endif

// Results are the same bits on every path because the order of every addition is fixed. -ffast-math lets the compiler
// change that order and drop the tests for NaN and infinity, so the library refuses instead of answering differently.
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error \
    "gqa cannot keep its results exact under -ffast-math, -Ofast or -ffinite-math-only: compile this unit without them"
#include "gqa/see_the_error_above"
#endif

// Function bodies depend on the unit's -m flags and on -fno-exceptions. Each combination has its own inline namespace, so
// that a unit built with -march=native never lends its instructions to a plain one through a shared weak symbol.
#if defined(__AVX512F__)
#define GQA_DETAIL_ISA avx512f
#elif defined(__AVX2__) && defined(__FMA__)
#define GQA_DETAIL_ISA avx2_fma
#elif defined(__AVX2__)
#define GQA_DETAIL_ISA avx2
#elif defined(__AVX__)
#define GQA_DETAIL_ISA avx
#elif defined(__SSE4_2__)
#define GQA_DETAIL_ISA sse42
#else
#define GQA_DETAIL_ISA base
#endif
#if defined(__cpp_exceptions)
#define GQA_DETAIL_EXC exc
#else
#define GQA_DETAIL_EXC noexc
#endif
#define GQA_DETAIL_PASTE3(a, b, c) abi_##a##_##b##_##c
#define GQA_DETAIL_TAG(a, b, c) GQA_DETAIL_PASTE3(a, b, c)
/// The inline namespace of every function body in the library.
#define GQA_ABI GQA_DETAIL_TAG(v0, GQA_DETAIL_ISA, GQA_DETAIL_EXC)

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

namespace gqa {

/// Counts, positions and strides. Signed, so that differences and reversed strides are ordinary values.
using Index = std::ptrdiff_t;

}  // namespace gqa
