// SPDX-License-Identifier: Apache-2.0
/// @file
/// How much perplexity changes between two runs over the same text.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

namespace llama {

/// By how many percent perplexity is more than before, and the standard error of that: sequences are what varies.
struct Change {
  double percent = 0, deviation = 0;
};

/// @param losses, before  nats, of each sequence
/// @param predicted       tokens that a sequence's loss is of
inline Change change(const std::vector<double>& losses, const std::vector<double>& before,
                     const std::vector<double>& predicted) {
  double count = 0, sum = 0, squares = 0;
  for (std::size_t i = 0; i < losses.size(); ++i) {
    count += predicted[i];
    sum += losses[i] - before[i];
  }
  const double mean = sum / count;
  for (std::size_t i = 0; i < losses.size(); ++i) {
    const double off = losses[i] - before[i] - mean * predicted[i];
    squares += off * off;
  }
  const auto sequences = static_cast<double>(losses.size());
  const double deviation = sequences > 1 ? std::sqrt(squares * sequences / (sequences - 1)) / count : 0;
  return {100 * std::expm1(mean), 100 * std::exp(mean) * deviation};
}

}  // namespace llama
