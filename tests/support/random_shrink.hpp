// SPDX-License-Identifier: Apache-2.0
// A failing case made small: as few numbers as it needs to fail, each of them as small as it can be.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

namespace gqa::test {

/// What a case of a list of numbers does: its own list, in which nothing is too large or superfluous, if it fails; nothing if it passes.
using FailingCase = std::function<std::optional<std::vector<std::uint64_t>>(const std::vector<std::uint64_t>&)>;

/// Greedy. Runs of numbers are left out; then each number goes to the least with which the case still fails: small ones by trying all, others
/// by halves between one that passes and one that fails. Over again until nothing changes, or after `most` tries.
class Shrinker {
 public:
  /// `offsets` must fail.
  Shrinker(std::vector<std::uint64_t> offsets, const FailingCase& fails, int most)
      : best_(std::move(offsets)), fails_(fails), most_(most) {}

  std::vector<std::uint64_t> run() {
    for (int round = 0; round < 2; ++round) {  // what is smaller may be shorter, once more
      leave_out();
      while (lessen()) continue;
    }
    return best_;
  }
  int tries() const { return tries_; }

 private:
  static constexpr std::uint64_t kFew = 40;
  static constexpr std::size_t kLongestRun = 8;

  static std::size_t length(const std::vector<std::uint64_t>& list) {  // zeros at the end are no numbers
    std::size_t size = list.size();
    while (size > 0 && list[size - 1] == 0) --size;
    return size;
  }

  /// Takes the candidate if it fails and is better than the best: shorter, if `shorter`, or smaller where they differ first.
  bool take(const std::vector<std::uint64_t>& candidate, bool shorter) {
    if (tries_ >= most_) return false;
    ++tries_;
    std::optional<std::vector<std::uint64_t>> failed = fails_(candidate);
    if (!failed || !(shorter ? length(*failed) < length(best_) : *failed < best_)) return false;
    best_ = std::move(*failed);
    return true;
  }

  void leave_out() {
    for (std::size_t size = kLongestRun; size > 0; --size) {
      for (std::size_t i = 0; i + size <= length(best_);) {
        std::vector<std::uint64_t> candidate = best_;
        const auto first = candidate.begin() + static_cast<std::ptrdiff_t>(i);
        candidate.erase(first, first + static_cast<std::ptrdiff_t>(size));
        if (!take(candidate, true)) ++i;
      }
    }
  }

  bool take_number(std::size_t i, std::uint64_t value) {
    std::vector<std::uint64_t> candidate = best_;
    candidate[i] = value;
    return take(candidate, false);
  }

  bool lessen() {
    bool lessened = false;
    for (std::size_t i = 0; i < best_.size(); ++i) {
      std::uint64_t passes = 0;  // with this number, or with less
      if (best_[i] == 0) continue;
      if (take_number(i, 0)) {
        lessened = true;
        continue;
      }
      while (i < best_.size() && best_[i] > passes + 1 && tries_ < most_) {
        const std::uint64_t next = best_[i] <= kFew ? passes + 1 : passes + (best_[i] - passes) / 2;
        if (take_number(i, next)) lessened = true;
        else passes = next;
      }
    }
    return lessened;
  }

  std::vector<std::uint64_t> best_;
  const FailingCase& fails_;
  int most_;
  int tries_ = 0;
};

}  // namespace gqa::test
