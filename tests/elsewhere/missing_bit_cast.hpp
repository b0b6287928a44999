// SPDX-License-Identifier: Apache-2.0
// std::bit_cast, which the tests use and the library of Emscripten 3.1.6 lacks. Included before everything else.
#pragma once

#include <bit>

#if !defined(__cpp_lib_bit_cast)
namespace std {
template <class To, class From>
constexpr To bit_cast(const From& from) noexcept {
  return __builtin_bit_cast(To, from);
}
}  // namespace std
#endif
