// SPDX-License-Identifier: Apache-2.0
/// @file
/// Which tokens of a cache are read as plain elements, by its length; see KvCacheConfig::newest_tokens.
#pragma once

#include "gqa/detail/config.hpp"

namespace gqa::detail {

/// What the ends of a sequence's parts are multiples of: a block has one part.
inline constexpr Index kPartTokens = 64;

/// Where the newest tokens begin, of which there are at least so many, or all: at a multiple of kPartTokens. Of none, behind the last token.
GQA_ALWAYS_INLINE constexpr Index newest_begin(Index length, Index newest_tokens) noexcept {
  if (newest_tokens == 0) return length;
  return length > newest_tokens ? (length - newest_tokens) / kPartTokens * kPartTokens : 0;
}

/// Slots that they take: for what a block begins with, and for kPartTokens more, so that as many tokens may be dropped.
GQA_ALWAYS_INLINE constexpr Index newest_slots(Index newest_tokens) noexcept {
  return newest_tokens == 0 ? 0 : ((newest_tokens - 1 + kPartTokens - 1) / kPartTokens + 2) * kPartTokens;
}

}  // namespace gqa::detail
