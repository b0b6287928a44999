// SPDX-License-Identifier: Apache-2.0
// Variants as a user of the library would write them.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "gqa/variant.hpp"

namespace gqa::test {

/// Documents of `length` tokens packed one after the other: causal within each.
struct PackedDocuments {
  Index length;
  PositionRange visible_range(Index query_position, Index kv_length) const {
    return {query_position / length * length, std::min(query_position + 1, kv_length)};
  }
};

/// Causal, less a pattern that differs from head to head; every token sees itself.
struct Sieve {
  PositionRange visible_range(Index query_position, Index kv_length) const {
    return {0, std::min(query_position + 1, kv_length)};
  }
  bool is_visible(Index query_position, Index key_position, Index query_head) const {
    return key_position == query_position || (key_position * 7 + query_position + query_head * 3) % 5 < 2;
  }
};

/// The first tokens and a window: what lies between is hidden in whole blocks, but inside the range.
struct SinksAndWindow {
  Index sinks;
  Index window;
  PositionRange visible_range(Index query_position, Index kv_length) const {
    return {0, std::min(query_position + 1, kv_length)};
  }
  bool is_visible(Index query_position, Index key_position, Index) const {
    return key_position < sinks || key_position > query_position - window;
  }
};

/// The same as ranges: what lies between is not even asked about.
struct SinksAndWindowRanges {
  Index sinks;
  Index window;
  std::array<PositionRange, 2> visible_range(Index query_position, Index kv_length) const {
    const Index end = std::min(query_position + 1, kv_length);
    return {PositionRange{query_position - window + 1, end}, PositionRange{0, std::min(sinks, end)}};  // in any order
  }
};

/// Linear biases (Press et al. 2022), causal.
struct Alibi {
  PositionRange visible_range(Index query_position, Index kv_length) const {
    return {0, std::min(query_position + 1, kv_length)};
  }
  float score(float score, Index query_position, Index key_position, Index query_head) const {
    const float slope = 0.5f / static_cast<float>(query_head + 1);
    return score - slope * static_cast<float>(query_position - key_position);
  }
};

/// Gemma 2's soft cap, causal.
struct SoftCap {
  float cap;
  PositionRange visible_range(Index query_position, Index kv_length) const {
    return {0, std::min(query_position + 1, kv_length)};
  }
  float score(float score, Index, Index, Index) const { return cap * std::tanh(score / cap); }
};

/// A mask and a score together, and a score of −∞ for what the mask leaves of one residue class.
struct SieveWithScores {
  PositionRange visible_range(Index query_position, Index kv_length) const {
    return Sieve{}.visible_range(query_position, kv_length);
  }
  bool is_visible(Index query_position, Index key_position, Index query_head) const {
    return Sieve{}.is_visible(query_position, key_position, query_head);
  }
  float score(float score, Index query_position, Index key_position, Index) const {
    if (key_position != query_position && key_position % 11 == 3) return -INFINITY;
    return 2.0f * score + 0.25f * static_cast<float>(key_position % 4);
  }
};

/// Nothing is visible to even positions, and to odd ones only what lies before them.
struct StrictlyBeforeOdd {
  PositionRange visible_range(Index query_position, Index kv_length) const {
    return query_position % 2 == 0 ? PositionRange{5, 5} : PositionRange{0, std::min(query_position, kv_length)};
  }
};

}  // namespace gqa::test
