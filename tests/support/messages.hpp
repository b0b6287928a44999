// SPDX-License-Identifier: Apache-2.0
// What a call says that is refused.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "gqa/error.hpp"

namespace gqa::test {

inline constexpr const char* kNothingThrown = "nothing was thrown";

/// The message of the ArgumentError that `call` throws, or kNothingThrown.
template <class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const ArgumentError& error) {
    return error.what();
  }
  return kNothingThrown;
}

/// Whether a message names an argument and shows its value, and what it says was expected has `expectation` in it. Any value if that is empty.
inline testing::AssertionResult says(const std::string& message, const std::string& argument, const std::string& value,
                                     const std::string& expectation) {
  const std::string beginning = "gqa: " + argument + " is " + value;
  const std::size_t expected = message.find("; expected ");
  const bool value_is_all = value.empty() || expected == beginning.size();
  if (message.rfind(beginning, 0) == 0 && expected != std::string::npos && value_is_all &&
      message.find(expectation, expected) != std::string::npos)
    return testing::AssertionSuccess();
  return testing::AssertionFailure() << "the message is\n  " << message << "\nand should be\n  " << beginning
                                     << "; expected … " << expectation << " …";
}

}  // namespace gqa::test
