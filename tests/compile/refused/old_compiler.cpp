// SPDX-License-Identifier: Apache-2.0
// A compiler that says that it is an older one, after the standard library's headers, which ask for the version too.
// expected: gqa needs GCC 11 or newer, or Clang 14 or newer: this compiler is older
#include <string>

#if defined(GQA_WRONG) && defined(__clang__)
#pragma clang diagnostic ignored "-Wbuiltin-macro-redefined"
#undef __clang_major__
#define __clang_major__ 13
#elif defined(GQA_WRONG)
#undef __GNUC__
#define __GNUC__ 10
#endif
#include "gqa/detail/config.hpp"

int main() { return 0; }
