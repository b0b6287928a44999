// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the rows of a tile see.
#pragma once

#include "gqa/detail/plan.hpp"

namespace gqa::detail::inline GQA_ABI {

/// Ranges of positions for each row, the same for the rows of a query token, and what any row sees.
class RowRanges {
 public:
  RowRanges(const CallPlan& call, const TaskScratch& scratch) noexcept
      : each_(call.variant.ranges), ranges_(scratch.ranges), seen_(scratch.visible_ranges) {}

  /// The rows [first_row, first_row + rows) of a sequence. Returns the hull of what they see.
  PositionRange mark(const CallPlan& call, const Sequence& sequence, Index first_row, Index rows) {
    rows_ = rows;
    seen_count_ = 0;
    for (Index row = 0; row < rows;) {
      const Index token = RowPlace(first_row + row, call.group).token;
      const Index last = (token + 1) * call.group - first_row;
      PositionRange* const mine = ranges_ + row * each_;
      visible_ranges(call.variant, query_context(call.variant, sequence, token), sequence.kv.length, mine);
      for (Index i = 0; i < each_; ++i)
        if (mine[i].begin < mine[i].end) add(mine[i]);
      if (row == 0 || mine->begin > latest_begin_) latest_begin_ = mine->begin;
      if (row == 0 || mine->end < earliest_end_) earliest_end_ = mine->end;
      for (Index same = row + 1; same < last && same < rows; ++same)
        for (Index i = 0; i < each_; ++i) ranges_[same * each_ + i] = mine[i];
      row = last;
    }
    if (seen_count_ == 0) return {};
    return {seen_[0].begin, seen_[seen_count_ - 1].end};
  }

  /// The tokens of the block at `begin` that lie in a row's ranges.
  std::uint64_t of(Index row, Index begin) const noexcept {
    if (each_ == 1) return tokens_of(ranges_[row], begin);
    std::uint64_t seen = 0;
    for (Index i = 0; i < each_; ++i) seen |= tokens_of(ranges_[row * each_ + i], begin);
    return seen;
  }
  /// Those that lie in any row's.
  std::uint64_t of_any(Index begin) const noexcept {
    if (seen_count_ == 1) return tokens_of(*seen_, begin);
    std::uint64_t seen = 0;
    for (Index i = first_behind(begin); i < seen_count_ && seen_[i].begin < begin + kBlock; ++i)
      seen |= tokens_of(seen_[i], begin);
    return seen;
  }
  /// The first block, from the one at `begin` on, of which a row sees something. There is one.
  Index next_block(Index begin) const noexcept {
    const Index from = seen_[first_behind(begin)].begin;
    return from > begin ? from / kBlock * kBlock : begin;
  }
  /// Whether every row sees all of the block at `begin`.
  bool whole(Index begin) const noexcept {
    if (each_ == 1) return latest_begin_ <= begin && earliest_end_ >= begin + kBlock;
    for (Index row = 0; row < rows_; ++row)
      if (of(row, begin) != kEveryToken) return false;
    return true;
  }

 private:
  static std::uint64_t tokens_of(const PositionRange& range, Index begin) noexcept {
    const Index first = range.begin - begin;
    const Index last = range.end - begin;
    return bit_range(first < 0 ? 0 : first, last > kBlock ? kBlock : last);
  }

  /// Keeps seen_ in ascending order, with a gap between neighbours.
  void add(PositionRange range) noexcept {
    Index end = seen_count_;
    while (end > 0 && seen_[end - 1].begin > range.end) --end;  // behind the range
    Index first = end;
    for (; first > 0 && seen_[first - 1].end >= range.begin; --first) {
      if (seen_[first - 1].begin < range.begin) range.begin = seen_[first - 1].begin;
      if (seen_[first - 1].end > range.end) range.end = seen_[first - 1].end;
    }
    if (first == end) {  // touches none: make room
      for (Index i = seen_count_++; i > first; --i) seen_[i] = seen_[i - 1];
    } else {
      for (Index i = end; i < seen_count_; ++i) seen_[first + 1 + i - end] = seen_[i];
      seen_count_ -= end - first - 1;
    }
    seen_[first] = range;
  }
  /// The first of seen_ that reaches beyond `position`.
  Index first_behind(Index position) const noexcept {
    Index low = 0;
    for (Index high = seen_count_; low < high;) {
      const Index middle = (low + high) / 2;
      if (seen_[middle].end > position) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  Index each_;             // ranges of a row
  PositionRange* ranges_;  // [row][each_]; empty ones are {0, 0}
  PositionRange* seen_;
  Index seen_count_ = 0;
  Index rows_ = 0;
  Index latest_begin_ = 0;  // of the rows' first ranges
  Index earliest_end_ = 0;
};

}  // namespace gqa::detail::inline GQA_ABI
