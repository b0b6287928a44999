// SPDX-License-Identifier: Apache-2.0
/// @file
/// What is thrown when an argument is wrong or storage has run out, and what happens under -fno-exceptions.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "gqa/detail/text.hpp"

namespace gqa {

/// A wrong argument: the message names the argument, the value given and what was expected. Thrown before any work starts;
/// outputs are untouched.
class ArgumentError : public std::invalid_argument {
 public:
  GQA_ALWAYS_INLINE explicit ArgumentError(const char* message) : std::invalid_argument(message) {}
  GQA_ALWAYS_INLINE explicit ArgumentError(const std::string& message) : std::invalid_argument(message) {}
};

/// An owning cache has no room left. Everything is as it was before the call.
class StorageExhausted : public std::runtime_error {
 public:
  GQA_ALWAYS_INLINE explicit StorageExhausted(const char* message) : std::runtime_error(message) {}
  GQA_ALWAYS_INLINE explicit StorageExhausted(const std::string& message) : std::runtime_error(message) {}
};

/// A call was stopped by its CallControl before its work was done. Its outputs are undefined: some rows may have been written.
class Stopped : public std::runtime_error {
 public:
  GQA_ALWAYS_INLINE explicit Stopped(const char* message) : std::runtime_error(message) {}
};

/// Called with the message, in units compiled with -fno-exceptions, where those would throw. It must not return; if it
/// does, the program is aborted.
using ErrorHandler = void (*)(const char* message);

namespace detail {
inline ErrorHandler error_handler =
    nullptr;  // atomic, by builtins: std::atomic's functions are shared by units of other flags
}  // namespace detail

/// Sets the handler for units compiled with -fno-exceptions and returns the one before (null: print and abort).
/// Safe to call from any thread. Units compiled with exceptions throw and never call it.
GQA_ALWAYS_INLINE ErrorHandler set_error_handler(ErrorHandler handler) noexcept {
  return __atomic_exchange_n(&detail::error_handler, handler, __ATOMIC_SEQ_CST);
}

namespace detail::inline GQA_ABI {

template <class Exception>
[[noreturn]] inline void raise(const char* message) {
#if defined(__cpp_exceptions)
  throw Exception(message);
#else
  if (const ErrorHandler handler = __atomic_load_n(&error_handler, __ATOMIC_SEQ_CST)) handler(message);
  std::fprintf(stderr, "%s\n", message);
  std::abort();
#endif
}
template <class Exception>
[[noreturn]] inline void raise(const Text& message) {
  raise<Exception>(message.c_str());
}

/// "gqa: `argument` is `value`; expected `expected`".
[[noreturn]] inline void fail(const Text& argument, const Text& value, const Text& expected) {
  char message[3 * Text::kRoom + 32];
  int size = 0;
  const char* const parts[] = {"gqa: ", argument.c_str(), " is ", value.c_str(), "; expected ", expected.c_str()};
  for (const char* part : parts) size = append_words(message, size, sizeof message, part);
  raise<ArgumentError>(message);
}

[[noreturn]] inline void fail(const Text& argument, Index value, const Text& expected) {
  fail(argument, to_text(value), expected);
}

}  // namespace detail::inline GQA_ABI
}  // namespace gqa
