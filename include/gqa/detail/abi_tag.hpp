// SPDX-License-Identifier: Apache-2.0
/// @file
/// GQA_ABI, the inline namespace that keeps units with different compiler flags apart.
///
/// What a unit's functions are made of depends on its flags. Units of one program that were compiled with different ones must not share
/// them, as they would share weak symbols of one name: a function with an instruction that only some processors have could then be called
/// by a unit that was compiled for all. So every function body of the library stands in a namespace that is named after the flags.
///
/// The name is abi_v1, the instruction set in hexadecimal digits, one bit for each of the compiler's macros below, and letters for the
/// rest. What is not among them changes no instruction that the library's functions can hold.
#pragma once

// 1 if `macro` is defined as 1, else 0.
#define GQA_DETAIL_BIT(macro) GQA_DETAIL_BIT_OF(macro)
#define GQA_DETAIL_BIT_OF(value) GQA_DETAIL_BIT_IF(GQA_DETAIL_COMMA_##value 1, 0, 0)
#define GQA_DETAIL_BIT_IF(...) GQA_DETAIL_SECOND(__VA_ARGS__)
#define GQA_DETAIL_SECOND(first, second, ...) second
#define GQA_DETAIL_COMMA_1 0,

// A hexadecimal digit of four macros.
#define GQA_DETAIL_HEX(a, b, c, d) \
  GQA_DETAIL_HEX_OF(GQA_DETAIL_BIT(a), GQA_DETAIL_BIT(b), GQA_DETAIL_BIT(c), GQA_DETAIL_BIT(d))
#define GQA_DETAIL_HEX_OF(a, b, c, d) GQA_DETAIL_HEX_OF_BITS(a, b, c, d)
#define GQA_DETAIL_HEX_OF_BITS(a, b, c, d) GQA_DETAIL_DIGIT_##a##b##c##d
#define GQA_DETAIL_DIGIT_0000 0
#define GQA_DETAIL_DIGIT_0001 1
#define GQA_DETAIL_DIGIT_0010 2
#define GQA_DETAIL_DIGIT_0011 3
#define GQA_DETAIL_DIGIT_0100 4
#define GQA_DETAIL_DIGIT_0101 5
#define GQA_DETAIL_DIGIT_0110 6
#define GQA_DETAIL_DIGIT_0111 7
#define GQA_DETAIL_DIGIT_1000 8
#define GQA_DETAIL_DIGIT_1001 9
#define GQA_DETAIL_DIGIT_1010 a
#define GQA_DETAIL_DIGIT_1011 b
#define GQA_DETAIL_DIGIT_1100 c
#define GQA_DETAIL_DIGIT_1101 d
#define GQA_DETAIL_DIGIT_1110 e
#define GQA_DETAIL_DIGIT_1111 f

#define GQA_DETAIL_PASTE2(a, b) GQA_DETAIL_PASTE2_OF(a, b)
#define GQA_DETAIL_PASTE2_OF(a, b) a##b
#define GQA_DETAIL_PASTE4(a, b, c, d) GQA_DETAIL_PASTE2(GQA_DETAIL_PASTE2(a, b), GQA_DETAIL_PASTE2_LATER(c, d))
#define GQA_DETAIL_PASTE2_LATER(a, b) GQA_DETAIL_PASTE2_LATER_OF(a, b)  // a macro does not expand within itself
#define GQA_DETAIL_PASTE2_LATER_OF(a, b) a##b

// --- the instruction set -------------------------------------------------------------------------------------------------

#if defined(__x86_64__) || defined(__i386__)
#define GQA_DETAIL_ISA_SSE                                                       \
  GQA_DETAIL_PASTE4(GQA_DETAIL_HEX(__SSE3__, __SSSE3__, __SSE4_1__, __SSE4_2__), \
                    GQA_DETAIL_HEX(__SSE4A__, __POPCNT__, __LZCNT__, __MOVBE__), \
                    GQA_DETAIL_HEX(__BMI__, __BMI2__, __TBM__, __ADX__),         \
                    GQA_DETAIL_HEX(__PCLMUL__, __AES__, __SHA__, __CRC32__))
#define GQA_DETAIL_ISA_AVX                                                                       \
  GQA_DETAIL_PASTE4(GQA_DETAIL_HEX(__AVX__, __AVX2__, __FMA__, __F16C__),                        \
                    GQA_DETAIL_HEX(__FMA4__, __XOP__, __GFNI__, __VAES__),                       \
                    GQA_DETAIL_HEX(__AVXVNNI__, __AVXIFMA__, __AVXNECONVERT__, __AVXVNNIINT8__), \
                    GQA_DETAIL_HEX(__AVXVNNIINT16__, __VPCLMULQDQ__, __PRFCHW__, __GCC_HAVE_SYNC_COMPARE_AND_SWAP_16))
#define GQA_DETAIL_ISA_AVX512                                                                              \
  GQA_DETAIL_PASTE4(GQA_DETAIL_HEX(__AVX512F__, __AVX512BW__, __AVX512DQ__, __AVX512VL__),                 \
                    GQA_DETAIL_HEX(__AVX512CD__, __AVX512VBMI__, __AVX512VBMI2__, __AVX512IFMA__),         \
                    GQA_DETAIL_HEX(__AVX512VNNI__, __AVX512BITALG__, __AVX512VPOPCNTDQ__, __AVX512BF16__), \
                    GQA_DETAIL_HEX(__AVX512FP16__, __AVX512ER__, __AVX512PF__, __AVX512VP2INTERSECT__))
#define GQA_DETAIL_ISA_LATER                                                                    \
  GQA_DETAIL_PASTE4(GQA_DETAIL_HEX(__AVX10_1__, __AVX10_1_512__, __AVX10_2__, __AVX10_2_512__), \
                    GQA_DETAIL_HEX(__APX_F__, __CMPCCXADD__, __RAOINT__, __MOVRS__),            \
                    GQA_DETAIL_HEX(__MOVDIRI__, __MOVDIR64B__, __LAHF_SAHF__, __3dNOW__),       \
                    GQA_DETAIL_HEX(__RDRND__, __CLWB__, __XSAVE__, __SHA512__))
#define GQA_DETAIL_ISA \
  GQA_DETAIL_PASTE4(GQA_DETAIL_ISA_SSE, GQA_DETAIL_ISA_AVX, GQA_DETAIL_ISA_AVX512, GQA_DETAIL_ISA_LATER)
#elif defined(__aarch64__)
#if defined(__ARM_FEATURE_RCPC)  // these two have values
#define GQA_DETAIL_RCPC __ARM_FEATURE_RCPC
#else
#define GQA_DETAIL_RCPC 0
#endif
#if defined(__ARM_FEATURE_SVE_BITS)
#define GQA_DETAIL_SVE_BITS __ARM_FEATURE_SVE_BITS
#else
#define GQA_DETAIL_SVE_BITS 0
#endif
#define GQA_DETAIL_ISA_V8                                                                                             \
  GQA_DETAIL_PASTE4(                                                                                                  \
      GQA_DETAIL_HEX(__ARM_FEATURE_ATOMICS, __ARM_FEATURE_CRC32, __ARM_FEATURE_QRDMX, __ARM_FEATURE_DOTPROD),         \
      GQA_DETAIL_HEX(__ARM_FEATURE_FP16_SCALAR_ARITHMETIC, __ARM_FEATURE_FP16_VECTOR_ARITHMETIC,                      \
                     __ARM_FEATURE_FP16_FML, __ARM_FEATURE_COMPLEX),                                                  \
      GQA_DETAIL_HEX(__ARM_FEATURE_JCVT, __ARM_FEATURE_FRINT, __ARM_FEATURE_MATMUL_INT8, __ARM_FEATURE_BF16),         \
      GQA_DETAIL_HEX(__ARM_FEATURE_BF16_SCALAR_ARITHMETIC, __ARM_FEATURE_BF16_VECTOR_ARITHMETIC, __ARM_FEATURE_PAUTH, \
                     __ARM_FEATURE_MEMORY_TAGGING))
#define GQA_DETAIL_ISA_V9                                                                                  \
  GQA_DETAIL_PASTE4(                                                                                       \
      GQA_DETAIL_HEX(__ARM_FEATURE_SVE, __ARM_FEATURE_SVE2, __ARM_FEATURE_SVE2p1, __ARM_FEATURE_SVE_BF16), \
      GQA_DETAIL_HEX(__ARM_FEATURE_SVE_MATMUL_INT8, __ARM_FEATURE_SVE2_BITPERM, __ARM_FEATURE_SVE2_SHA3,   \
                     __ARM_FEATURE_SVE2_AES),                                                              \
      GQA_DETAIL_HEX(__ARM_FEATURE_SME, __ARM_FEATURE_SME2, __ARM_FEATURE_MOPS, __ARM_FEATURE_CSSC),       \
      GQA_DETAIL_HEX(__ARM_FEATURE_LSE128, __ARM_FEATURE_LS64, __ARM_FEATURE_FAMINMAX, __ARM_FEATURE_LUT))
#define GQA_DETAIL_ISA_CRYPTO                                                                                    \
  GQA_DETAIL_PASTE4(                                                                                             \
      GQA_DETAIL_HEX(__ARM_FEATURE_AES, __ARM_FEATURE_SHA2, __ARM_FEATURE_SHA3, __ARM_FEATURE_SHA512),           \
      GQA_DETAIL_HEX(__ARM_FEATURE_SM3, __ARM_FEATURE_SM4, __ARM_FEATURE_CRYPTO, __ARM_FEATURE_RNG),             \
      GQA_DETAIL_HEX(__ARM_FEATURE_BTI_DEFAULT, __ARM_FEATURE_TME, __ARM_FEATURE_FP8, __ARM_FEATURE_SVE_B16B16), \
      GQA_DETAIL_HEX(__AARCH64EB__, __ARM_FEATURE_GCS_DEFAULT, __ARM_FEATURE_FCMA, __ARM_FEATURE_NUMERIC_MAXMIN))
#define GQA_DETAIL_ISA                                                                                          \
  GQA_DETAIL_PASTE4(GQA_DETAIL_PASTE2(__ARM_ARCH, GQA_DETAIL_ISA_V8), GQA_DETAIL_ISA_V9, GQA_DETAIL_ISA_CRYPTO, \
                    GQA_DETAIL_PASTE2_LATER(GQA_DETAIL_RCPC, GQA_DETAIL_SVE_BITS))
#elif defined(__wasm__)
#define GQA_DETAIL_ISA                                                                                          \
  GQA_DETAIL_PASTE2(                                                                                            \
      GQA_DETAIL_HEX(__wasm_simd128__, __wasm_relaxed_simd__, __wasm_nontrapping_fptoint__, __wasm_sign_ext__), \
      GQA_DETAIL_HEX(__wasm_bulk_memory__, __wasm_atomics__, __wasm_multivalue__, __wasm_tail_call__))
#else
#define GQA_DETAIL_ISA other
#endif

// --- the rest ------------------------------------------------------------------------------------------------------------

#if defined(__cpp_exceptions)
#define GQA_DETAIL_EXCEPTIONS e
#else
#define GQA_DETAIL_EXCEPTIONS x
#endif
// Code that is not optimised is right too, but tens of times as slow: a debug unit does not lend it to others.
#if defined(__OPTIMIZE__)
#define GQA_DETAIL_OPTIMISED o
#else
#define GQA_DETAIL_OPTIMISED d
#endif
// An instrumented unit must not run code that is not: it would report what is no error (threads, memory) or overlook what is.
#if defined(__has_feature)
#define GQA_DETAIL_HAS_FEATURE(feature) __has_feature(feature)
#else
#define GQA_DETAIL_HAS_FEATURE(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_HWADDRESS__) || GQA_DETAIL_HAS_FEATURE(address_sanitizer) || \
    GQA_DETAIL_HAS_FEATURE(hwaddress_sanitizer)
#define GQA_DETAIL_SANITIZER a
#elif defined(__SANITIZE_THREAD__) || GQA_DETAIL_HAS_FEATURE(thread_sanitizer)
#define GQA_DETAIL_SANITIZER t
#elif GQA_DETAIL_HAS_FEATURE(memory_sanitizer)
#define GQA_DETAIL_SANITIZER m
#elif GQA_DETAIL_HAS_FEATURE(undefined_behavior_sanitizer)
#define GQA_DETAIL_SANITIZER u
#else
#define GQA_DETAIL_SANITIZER n
#endif

/// The inline namespace of every function body in the library.
#define GQA_ABI                                                              \
  GQA_DETAIL_PASTE2(GQA_DETAIL_PASTE2_LATER(abi_v1_, GQA_DETAIL_EXCEPTIONS), \
                    GQA_DETAIL_PASTE4(GQA_DETAIL_OPTIMISED, GQA_DETAIL_SANITIZER, _, GQA_DETAIL_ISA))
