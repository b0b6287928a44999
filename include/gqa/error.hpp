// SPDX-License-Identifier: Apache-2.0
/// @file
/// What is thrown when an argument is wrong or storage has run out, and what happens under -fno-exceptions.
#pragma once

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "gqa/detail/config.hpp"

namespace gqa {

/// A wrong argument: the message names the argument, the value given and what was expected. Thrown before any work starts;
/// outputs are untouched.
class ArgumentError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// An owning cache has no room left. Everything is as it was before the call.
class StorageExhausted : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A call was stopped by its CallControl before its work was done. Its outputs are undefined: some rows may have been written.
class Stopped : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Called with the message, in units compiled with -fno-exceptions, where those would throw. It must not return; if it
/// does, the program is aborted.
using ErrorHandler = void (*)(const char* message);

namespace detail {
inline std::atomic<ErrorHandler> error_handler{nullptr};
}  // namespace detail

/// Sets the handler for units compiled with -fno-exceptions and returns the one before (null: print and abort).
/// Safe to call from any thread. Units compiled with exceptions throw and never call it.
GQA_ALWAYS_INLINE ErrorHandler set_error_handler(ErrorHandler handler) noexcept {
  return detail::error_handler.exchange(handler);
}

namespace detail::inline GQA_ABI {

template <class Exception>
[[noreturn]] inline void raise(const std::string& message) {
#if defined(__cpp_exceptions)
  throw Exception(message);
#else
  if (const ErrorHandler handler = error_handler.load()) handler(message.c_str());
  std::fprintf(stderr, "%s\n", message.c_str());
  std::abort();
#endif
}

/// "gqa: `argument` is `value`; expected `expected`".
[[noreturn]] inline void fail(const std::string& argument, const std::string& value, const std::string& expected) {
  raise<ArgumentError>("gqa: " + argument + " is " + value + "; expected " + expected);
}

[[noreturn]] inline void fail(const std::string& argument, Index value, const std::string& expected) {
  fail(argument, std::to_string(value), expected);
}

}  // namespace detail::inline GQA_ABI
}  // namespace gqa
