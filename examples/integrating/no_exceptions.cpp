// SPDX-License-Identifier: Apache-2.0
/// @file
/// A unit without exceptions, beside one with them: part of integrating.md.
#include <cstdio>
#include <cstdlib>

#include "gqa/gqa.hpp"

#if defined(__cpp_exceptions)
#error "to be compiled with -fno-exceptions"
#endif

void without_exceptions(const float* q, const gqa::KvCacheView& kv, float* out);

namespace {

// [handler]
// Where there are no exceptions an error ends in this handler, with the same message. It must not return.
[[noreturn]] void on_error(const char* message) {
  std::fprintf(stderr, "attention: %s\n", message);
  std::exit(EXIT_FAILURE);
}
// []

}  // namespace

void without_exceptions(const float* q, const gqa::KvCacheView& kv, float* out) {
  // [set handler]
  gqa::set_error_handler(on_error);  // once a process
  // []
  gqa::DynamicAttention{}({q, 1, 32, kv.head_dim}, kv, {out, 1, 32, kv.head_dim});
}
