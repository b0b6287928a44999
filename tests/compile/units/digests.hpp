// SPDX-License-Identifier: Apache-2.0
// What each unit of the program reports: a digest of the bits of every result, per path and case. Plain data only, so that
// units with different flags share no function through it.
#pragma once

#include <cstdint>

inline constexpr int kPaths = 8;  // as many as gqa::Path has
inline constexpr int kCases = 7;

struct Digests {
  std::uint64_t value[kPaths][kCases];  // 0 for paths that this machine cannot run
  const char* path_names[kPaths];
};

using Unit = void (*)(Digests&);
