// SPDX-License-Identifier: Apache-2.0
/// @file
/// Numbers of bytes as people write them: GB is 10⁹ bytes, GiB is 2³⁰.
#pragma once

#include <charconv>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>

#include "gqa/budget.hpp"

namespace kv_budget {

using gqa::Index;

struct Unit {
  std::string_view name;
  double factor;
};
inline constexpr Unit kPieces[] = {{"", 1},         {"B", 1},        {"kB", 1e3},    {"KB", 1e3},     {"MB", 1e6},
                                  {"GB", 1e9},     {"TB", 1e12},    {"PB", 1e15},   {"KiB", 0x1p10}, {"MiB", 0x1p20},
                                  {"GiB", 0x1p30}, {"TiB", 0x1p40}, {"PiB", 0x1p50}};

/// "80GiB", "140 GB", "1.5TB", "4096" in bytes. @throws std::invalid_argument that says what is wrong
inline double parse_amount(std::string_view text) {
  const std::string given(text);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || !std::isfinite(value) || value < 0)
    throw std::invalid_argument("\"" + given + "\" is no size; expected a number and a unit, as 80GiB or 140GB");
  std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  while (unit.starts_with(' ')) unit.remove_prefix(1);
  for (const Unit& known : kPieces)
    if (unit == known.name) return value * known.factor;
  throw std::invalid_argument(
      "\"" + given + "\" ends in \"" + std::string(unit) +
      "\"; expected B, kB, MB, GB, TB, PB (powers of 1000) or KiB, MiB, GiB, TiB, PiB (of 1024)");
}

/// The same as a whole number of bytes, rounded to nearest.
inline Index parse_size(std::string_view text) {
  const double bytes = parse_amount(text);
  if (bytes >= 0x1p63) throw std::invalid_argument("\"" + std::string(text) + "\" does not fit in 63 bits");
  return static_cast<Index>(std::llround(bytes));
}

/// "1,310,720".
inline std::string with_commas(Index value) {
  std::string digits = std::to_string(value);
  for (std::size_t at = digits.size(); at > 3 + (value < 0 ? 1u : 0u);) digits.insert(at -= 3, ",");
  return digits;
}

inline std::string printed(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

/// "343.6 GB": powers of 1000, as memory of devices and weights is quoted.
inline std::string in_gb(double bytes) {
  constexpr const char* names[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
  int unit = 0;
  for (; bytes >= 999.95 && unit < 6; ++unit) bytes /= 1000;  // what would print as 1000.0 is one of the next
  return printed(unit == 0 ? "%.0f " : "%.1f ", bytes) + names[unit];
}
inline std::string in_gb(Index bytes) { return in_gb(static_cast<double>(bytes)); }

/// "320.0 GiB": powers of 1024.
inline std::string in_gib(Index bytes) {
  constexpr const char* names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  for (; value >= 1023.95 && unit < 6; ++unit) value /= 1024;
  return printed(unit == 0 ? "%.0f " : "%.1f ", value) + names[unit];
}

/// "3.42 ms".
inline std::string in_seconds(double seconds) {
  if (seconds < 1e-3) return printed("%.3g us", seconds * 1e6);
  if (seconds < 1) return printed("%.3g ms", seconds * 1e3);
  return printed(seconds < 100 ? "%.3g s" : "%.0f s", seconds);
}

/// A context, or "any" where nothing limits it.
inline std::string in_tokens(Index tokens) { return tokens == gqa::kUnlimited ? "any" : with_commas(tokens); }

}  // namespace kv_budget
