// SPDX-License-Identifier: Apache-2.0
/// @file
/// Random numbers that are a function of what they are for, and the same on every machine: nothing but integer arithmetic, and no state.
#pragma once

#include <cstdint>

#include "gqa/gqa.hpp"

namespace uptrain {

using gqa::Index;

/// What a number is drawn for: no two purposes share numbers.
enum class Purpose : std::uint64_t { parameters = 1, batches = 2, conversion = 3 };

/// 64 bits for (seed, purpose, step, index): SplitMix64's finaliser (Steele, Lea and Flood 2014), once over each.
inline std::uint64_t random_bits(std::uint64_t seed, Purpose purpose, std::uint64_t step, std::uint64_t index) {
  std::uint64_t mixed = 0;
  for (const std::uint64_t word : {seed, static_cast<std::uint64_t>(purpose), step, index}) {
    mixed += word + 0x9e3779b97f4a7c15u;
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
    mixed ^= mixed >> 31;
  }
  return mixed;
}

/// 0 … count − 1, evenly but for count / 2^64.
inline Index random_below(std::uint64_t bits, Index count) {
  return static_cast<Index>(bits % static_cast<std::uint64_t>(count));
}

/// −1 to 1 in steps of 2⁻²³, 1 left out: exact in f32.
inline float random_signed(std::uint64_t bits) {
  return static_cast<float>(static_cast<std::int64_t>(bits >> 40) - (std::int64_t{1} << 23)) * 0x1p-23f;
}

}  // namespace uptrain
