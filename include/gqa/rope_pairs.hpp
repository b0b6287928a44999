// SPDX-License-Identifier: Apache-2.0
/// @file
/// Which dims of a head rotary position embedding turns together.
#pragma once

#include <cstdint>

namespace gqa {

/// Which of the turned dims of a row make a pair (Su et al. 2021, "RoFormer", section 3.2.2).
enum class RopePairs : std::uint8_t {
  half_split,   ///< i and i + dims / 2: GPT-NeoX's, Hugging Face's for Llama
  interleaved,  ///< 2i and 2i + 1: GPT-J's, Meta's own for Llama, GLM's, llama2.c's, GGUF's for Llama
  none          ///< no rotary embedding; for conversions of weights (gqa/convert.hpp), and refused by gqa::Rope
};

}  // namespace gqa
