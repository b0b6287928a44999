// SPDX-License-Identifier: Apache-2.0
// A failing case made small: each of its numbers as small as it can be while the case still fails.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

namespace gqa::test {

/// What a case of a list of numbers does: its own list, in which nothing is too large or superfluous, if it fails; nothing if it passes.
using FailingCase = std::function<std::optional<std::vector<std::uint64_t>>(const std::vector<std::uint64_t>&)>;

struct Shrunk {
  std::vector<std::uint64_t> offsets;
  int tries = 0;
};

/// Greedy: each number goes to 0 if it may, else by halves to one above a number with which the case passes; all over again until none moves,
/// or after `most` tries. `offsets` must fail.
inline Shrunk shrink(std::vector<std::uint64_t> offsets, const FailingCase& fails, int most = 2000) {
  Shrunk best{std::move(offsets), 0};
  const auto try_with = [&](std::size_t i, std::uint64_t value) {
    if (best.tries >= most) return false;
    ++best.tries;
    std::vector<std::uint64_t> candidate = best.offsets;
    candidate[i] = value;
    std::optional<std::vector<std::uint64_t>> failed = fails(candidate);
    if (!failed || !(*failed < best.offsets)) return false;  // what follows a smaller number may be anything
    best.offsets = std::move(*failed);
    return true;
  };
  for (bool moved = true; moved && best.tries < most;) {
    moved = false;
    for (std::size_t i = 0; i < best.offsets.size(); ++i) {
      if (best.offsets[i] == 0) continue;
      if (try_with(i, 0)) {
        moved = true;
        continue;
      }
      std::uint64_t passes = 0;
      while (i < best.offsets.size() && best.offsets[i] > passes + 1 && best.tries < most) {
        const std::uint64_t middle = passes + (best.offsets[i] - passes) / 2;
        if (try_with(i, middle)) moved = true;
        else passes = middle;
      }
    }
  }
  return best;
}

}  // namespace gqa::test
