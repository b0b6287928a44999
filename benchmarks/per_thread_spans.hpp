// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the library would do if results might follow the number of threads: spans of any length, set from call to call, in place of 512 tokens.
/// Not part of the build: compare_determinism.py compiles rival_driver.cpp with `-include per_thread_spans.hpp`.
///
/// Spans are what the plan and the task loop count in, so the name alone is exchanged in these. What is derived from it at compile time (the
/// length of stages) stays, and super-spans are counted in spans of the library: calls must have no more than 64 spans, and lie within 32,768
/// tokens.
#pragma once

#define kSpan kLibrarySpan
#include "gqa/detail/kernel_types.hpp"
#undef kSpan

namespace {
gqa::Index tokens_of_span = gqa::detail::kLibrarySpan;
}

/// Tokens, a multiple of a block's 64. Not while a call runs.
extern "C" void gqa_driver_set_span(long tokens) { tokens_of_span = tokens; }

#define kSpan tokens_of_span
#include "gqa/detail/plan.hpp"
#undef kSpan
#define kSpan kLibrarySpan
#include "gqa/detail/fold_total.hpp"
#undef kSpan
#define kSpan tokens_of_span
