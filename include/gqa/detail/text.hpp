// SPDX-License-Identifier: Apache-2.0
/// @file
/// Words and numbers put together for messages. In place of std::string, whose functions are shared by units with different compiler flags;
/// these are not.
#pragma once

#include <concepts>
#include <cstdint>
#include <cstdio>

#include "gqa/detail/config.hpp"

namespace gqa::detail::inline GQA_ABI {

/// A short text: what is longer is cut off. Small, because functions that check arguments have many of them.
struct Text {
  static constexpr int kRoom = 246;
  char characters[kRoom];  // the last one is always zero
  std::uint16_t size;

  GQA_ALWAYS_INLINE Text() noexcept : size(0) { characters[0] = '\0'; }
  GQA_ALWAYS_INLINE Text(const char* words) noexcept;  // NOLINT(google-explicit-constructor)
  /// Of a std::string, say, of a caller that has one.
  template <class S>
  requires requires(const S& string) {
    { string.c_str() } -> std::same_as<const char*>;
  }
  GQA_ALWAYS_INLINE Text(const S& string) noexcept;  // NOLINT(google-explicit-constructor)

  GQA_ALWAYS_INLINE const char* c_str() const noexcept { return characters; }
  GQA_ALWAYS_INLINE bool empty() const noexcept { return size == 0; }
};

/// Writes words behind what stands in room[0 … size), as far as there is room for them and a zero. Returns how much stands there then.
inline __attribute__((noinline, cold)) int append_words(char* room, int size, int most, const char* words) noexcept {
  while (*words != '\0' && size < most - 1) room[size++] = *words++;
  room[size] = '\0';
  return size;
}

GQA_ALWAYS_INLINE Text& operator+=(Text& text, const char* words) noexcept {
  text.size = static_cast<std::uint16_t>(append_words(text.characters, text.size, Text::kRoom, words));
  return text;
}
GQA_ALWAYS_INLINE Text& operator+=(Text& text, const Text& more) noexcept { return text += more.c_str(); }
GQA_ALWAYS_INLINE Text::Text(const char* words) noexcept : Text() { *this += words; }
template <class S>
requires requires(const S& string) {
  { string.c_str() } -> std::same_as<const char*>;
}
GQA_ALWAYS_INLINE Text::Text(const S& string) noexcept : Text(string.c_str()) {}

inline __attribute__((noinline, cold)) Text operator+(const Text& a, const Text& b) noexcept {
  Text both = a;
  both += b;
  return both;
}

/// In decimal digits.
inline __attribute__((noinline, cold)) Text digits_of(std::uint64_t magnitude, bool negative) noexcept {
  char digits[24];
  char* first = digits + sizeof digits - 1;
  *first = '\0';
  do {
    *--first = static_cast<char>('0' + magnitude % 10);
    magnitude /= 10;
  } while (magnitude != 0);
  if (negative) *--first = '-';
  return Text(first);
}
template <std::integral T>
GQA_ALWAYS_INLINE Text to_text(T value) noexcept {
  const auto bits = static_cast<std::uint64_t>(value);
  const bool negative = value < T{0};
  return digits_of(negative ? 0 - bits : bits, negative);
}
inline __attribute__((noinline, cold)) Text to_text(double value) noexcept {
  char digits[64];
  std::snprintf(digits, sizeof digits, "%g", value);
  return Text(digits);
}

}  // namespace gqa::detail::inline GQA_ABI
