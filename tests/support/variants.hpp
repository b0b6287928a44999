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

/// Soft cap, then linear biases, as an expression.
struct CapAndAlibi : gqa::Causal {
  float cap;
  explicit CapAndAlibi(float value) : cap(value) {}
  auto score(auto s, const RowContext& row, auto k) const {
    const float slope = 0.5f / static_cast<float>(row.query_head + 1);
    return cap * tanh(s / cap) - slope * (row.position - k);
  }
};

/// Biases of keys, by query head, with every kind of node; a window and a document number as a condition; and a learned sink.
struct Everything : gqa::Causal {
  const float* bias;             ///< [position][4]
  const std::int32_t* document;  ///< [position]
  Everything(const float* biases, const std::int32_t* documents) : bias(biases), document(documents) {}
  auto score(auto s, const RowContext& row, auto k) const {
    const auto biased = fma(s, 0.75f, lookup(bias + row.query_head % 4, k, 4));
    const auto near = select(row.position - k < 20, exp(-0.05f * (row.position - k)), -0.125f);
    return min(max(biased, -6.0f), 6.0f) + near - 0.1f * log(1.0f + abs(k - 100));
  }
  auto visible(const RowContext& row, auto k) const {
    const auto mine = lookup(document, k) == document[row.position];
    return (mine && !(k == row.position - 3)) || k == row.position || k < 2;
  }
  float sink(const RowContext& row) const { return 0.25f * static_cast<float>(row.query_head) - 0.5f; }
};

/// A learned sink alone; the first query head has none.
struct Sinks : gqa::Causal {
  float sink(const RowContext& row) const {
    return row.query_head == 0 ? -INFINITY : 1.5f - 0.5f * static_cast<float>(row.query_head);
  }
};

/// Sieve as words, and told of rows.
struct SieveOfRows : gqa::Causal {
  bool is_visible(const RowContext& row, Index key_position) const {
    return Sieve{}.is_visible(row.position, key_position, row.query_head);
  }
};
struct SieveOfWords : gqa::Causal {
  std::uint64_t visible_bits(const RowContext& row, Index block_begin) const {
    std::uint64_t bits = 0;
    for (Index t = 0; t < 64; ++t)
      if (Sieve{}.is_visible(row.position, block_begin + t, row.query_head)) bits |= std::uint64_t{1} << t;
    return bits;
  }
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
