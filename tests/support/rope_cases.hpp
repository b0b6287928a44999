// SPDX-License-Identifier: Apache-2.0
// A test for each way of pairing dims and each element type.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "gqa/rope.hpp"
#include "support/paths.hpp"

namespace gqa::test {

using RopeCase = std::tuple<RopePairs, ElementType>;

inline auto rope_cases() {
  return testing::Combine(testing::Values(RopePairs::half_split, RopePairs::interleaved),
                          testing::ValuesIn(kEveryType));
}
inline std::string rope_case_name(const testing::TestParamInfo<RopeCase>& each) {
  return std::string(std::get<0>(each.param) == RopePairs::half_split ? "half_split_" : "interleaved_") +
         element_name(std::get<1>(each.param));
}

}  // namespace gqa::test
