// SPDX-License-Identifier: Apache-2.0
/// @file
/// Whether this program runs under AddressSanitizer or ThreadSanitizer, which change what a test may ask of the system.
#pragma once

/// 1 if it does, else 0.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define GQA_TEST_IS_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define GQA_TEST_IS_SANITIZED 1
#endif
#endif
#if !defined(GQA_TEST_IS_SANITIZED)
#define GQA_TEST_IS_SANITIZED 0
#endif
