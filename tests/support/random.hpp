// SPDX-License-Identifier: Apache-2.0
// Seeded numbers, the same on every machine and standard library, and the input distributions of the tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "gqa/detail/config.hpp"

namespace gqa::test {

/// SplitMix64: a counter run through a mixing function.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u) {}

  std::uint64_t bits() {
    state_ += 0x9e3779b97f4a7c15u;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  /// In [0, 1).
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  /// In [0, count).
  Index below(Index count) { return static_cast<Index>(bits() % static_cast<std::uint64_t>(count)); }
  /// About normal, mean 0 and deviation 1: the sum of four uniforms.
  float normal() { return static_cast<float>((uniform() + uniform() + uniform() + uniform() - 2.0) * std::sqrt(3.0)); }
  template <class T>
  void shuffle(std::vector<T>& items) {
    for (std::size_t i = items.size(); i > 1; --i)
      std::swap(items[i - 1], items[static_cast<std::size_t>(below(static_cast<Index>(i)))]);
  }

 private:
  std::uint64_t state_;
};

/// 0, 1, …, count − 1 in a seeded random order.
inline std::vector<Index> permutation(Index count, std::uint64_t seed) {
  std::vector<Index> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), Index{0});
  Random(seed).shuffle(order);
  return order;
}

/// How queries, keys and values are drawn.
enum class Distribution : std::uint8_t {
  normal,        ///< all of them normal
  sinks,         ///< a few strong directions shared by all keys and queries, and first tokens that everyone attends to
  large_scores,  ///< scaled scores of about ±10,000
  dominant_key,  ///< one key takes nearly all the weight of every query
  equal_keys,    ///< all keys the same: every weight is equal
  far_values,    ///< values of mean 64: their distance from the output is a small part of them
  denormal       ///< values that are denormal in the type they are stored in
};

inline const char* distribution_name(Distribution distribution) {
  constexpr const char* names[] = {"normal",     "sinks",      "large_scores", "dominant_key",
                                   "equal_keys", "far_values", "denormal"};
  return names[static_cast<int>(distribution)];
}

}  // namespace gqa::test
