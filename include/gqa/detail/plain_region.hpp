// SPDX-License-Identifier: Apache-2.0
/// @file
/// Regions of code whose floating-point arithmetic is that of the standard, whatever the unit's flags say: products and sums are contracted
/// nowhere, nor put in another order. Of the unit's own instruction set; for others see detail/path/region.hpp.
///
/// Everything that is included stands before a region. What is always inlined gets the flags of where it is inlined: functions that results
/// depend on are functions of their own.
#pragma once

#include <type_traits>

#include "gqa/detail/config.hpp"

#define GQA_DETAIL_PRAGMA(text) _Pragma(#text)

// What strict sets of warnings find in the regions and is meant: floats that are compared for equality, and switches that name every
// enumerator and have no default. GCC also takes a template argument of type int that is an array's extent for a conversion that may
// change a sign; Clang, which does not, is left to look for those that may.
#if defined(__clang__)
#define GQA_DETAIL_BEGIN_QUIET()                              \
  GQA_DETAIL_PRAGMA(clang diagnostic push)                    \
  GQA_DETAIL_PRAGMA(clang diagnostic ignored "-Wfloat-equal") \
  GQA_DETAIL_PRAGMA(clang diagnostic ignored "-Wswitch-default")
#define GQA_DETAIL_END_QUIET() GQA_DETAIL_PRAGMA(clang diagnostic pop)
#else
#define GQA_DETAIL_BEGIN_QUIET()                               \
  GQA_DETAIL_PRAGMA(GCC diagnostic push)                       \
  GQA_DETAIL_PRAGMA(GCC diagnostic ignored "-Wfloat-equal")    \
  GQA_DETAIL_PRAGMA(GCC diagnostic ignored "-Wswitch-default") \
  GQA_DETAIL_PRAGMA(GCC diagnostic ignored "-Wsign-conversion")
#define GQA_DETAIL_END_QUIET() GQA_DETAIL_PRAGMA(GCC diagnostic pop)
#endif

#if defined(__clang__)
// The pragma that says `precise` also puts contraction on. What immintrin.h's functions do is compiled with the unit's flags, wherever they
// are inlined: see GQA_FMA_PS and its like.
#if GQA_DETAIL_X86 || __clang_major__ >= 16
#define GQA_BEGIN_PLAIN_REGION()                \
  GQA_DETAIL_BEGIN_QUIET()                      \
  GQA_DETAIL_PRAGMA(float_control(push))        \
  GQA_DETAIL_PRAGMA(float_control(precise, on)) \
  GQA_DETAIL_PRAGMA(clang fp reassociate(off))  \
  GQA_DETAIL_PRAGMA(clang fp contract(off))
#define GQA_END_PLAIN_REGION()          \
  GQA_DETAIL_PRAGMA(float_control(pop)) \
  GQA_DETAIL_END_QUIET()
#else  // No float_control yet. Contraction is put back as the language has it; reassociation, if the unit asked for it, stays off.
#define GQA_BEGIN_PLAIN_REGION()               \
  GQA_DETAIL_BEGIN_QUIET()                     \
  GQA_DETAIL_PRAGMA(clang fp reassociate(off)) \
  GQA_DETAIL_PRAGMA(clang fp contract(off))
#define GQA_END_PLAIN_REGION()             \
  GQA_DETAIL_PRAGMA(clang fp contract(on)) \
  GQA_DETAIL_END_QUIET()
#endif
#else
#define GQA_BEGIN_PLAIN_REGION()                                                                           \
  GQA_DETAIL_BEGIN_QUIET()                                                                                 \
  GQA_DETAIL_PRAGMA(GCC push_options)                                                                      \
  GQA_DETAIL_PRAGMA(                                                                                       \
      GCC optimize("fp-contract=off,no-unsafe-math-optimizations,no-associative-math,no-reciprocal-math")) \
  GQA_DETAIL_PRAGMA(GCC optimize("signed-zeros,trapping-math,no-rounding-math"))
#define GQA_END_PLAIN_REGION()       \
  GQA_DETAIL_PRAGMA(GCC pop_options) \
  GQA_DETAIL_END_QUIET()
#endif

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI {

/// A product that is rounded before it is added to something: with -ffp-contract=fast Clang fuses the two in regions as well.
template <class T>
GQA_ALWAYS_INLINE T rounded_product(T product) noexcept {
  static_assert(std::is_floating_point_v<T>, "a float or a double");
#if defined(__clang__) && GQA_DETAIL_X86
  asm("" : "+x"(product));
#elif defined(__clang__) && defined(__aarch64__)
  asm("" : "+w"(product));
#endif
  return product;
}

}  // namespace gqa::detail::inline GQA_ABI

GQA_END_PLAIN_REGION()
