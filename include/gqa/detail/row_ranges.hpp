// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the rows of a tile see.
#pragma once

#include "gqa/detail/plan.hpp"

namespace gqa::detail::inline GQA_ABI {

/// A range of positions for each row, the same for the rows of a query token.
class RowRanges {
 public:
  explicit RowRanges(const TaskScratch& scratch) noexcept
      : begin_(scratch.row_begin), end_(scratch.row_end), position_(scratch.row_position) {}

  /// The rows [first_row, first_row + rows) of a sequence. Returns the hull of what they see.
  PositionRange mark(const CallPlan& call, const Sequence& sequence, Index first_row, Index rows) {
    rows_ = rows;
    gaps_ = false;
    PositionRange covered;
    for (Index row = 0; row < rows;) {
      const Index token = RowPlace(first_row + row, call.group).token;
      const Index last = (token + 1) * call.group - first_row;
      const Index position = query_position(sequence, token);
      const PositionRange seen = visible_range(call.variant, position, sequence.kv.length);
      // Rows far apart may leave positions between them that no row sees.
      if (seen.begin < seen.end) {
        gaps_ = gaps_ || (covered.end > 0 && (seen.begin > covered.end || seen.end < covered.begin));
        if (covered.end == 0 || seen.begin < covered.begin) covered.begin = seen.begin;
        if (seen.end > covered.end) covered.end = seen.end;
      }
      if (row == 0 || seen.begin > latest_begin_) latest_begin_ = seen.begin;
      if (row == 0 || seen.end < earliest_end_) earliest_end_ = seen.end;
      for (; row < last && row < rows; ++row) {
        begin_[row] = seen.begin;
        end_[row] = seen.end;
        position_[row] = position;
      }
    }
    return covered;
  }

  /// The tokens of the block at `begin` that lie in a row's range.
  std::uint64_t of(Index row, Index begin) const noexcept { return tokens_of({begin_[row], end_[row]}, begin); }
  /// Those of `hull`, which the rows' ranges lie in, that any row sees.
  std::uint64_t of_any(const PositionRange& hull, Index begin) const noexcept {
    const std::uint64_t tokens = tokens_of(hull, begin);
    if (!gaps_) return tokens;
    std::uint64_t seen = 0;
    for (Index row = 0; row < rows_; ++row) seen |= of(row, begin);
    return tokens & seen;
  }
  /// Whether every row sees all of the block at `begin`.
  bool whole(Index begin) const noexcept { return latest_begin_ <= begin && earliest_end_ >= begin + kBlock; }
  /// Of each row.
  const Index* positions() const noexcept { return position_; }

 private:
  static std::uint64_t tokens_of(const PositionRange& range, Index begin) noexcept {
    const Index first = range.begin - begin;
    const Index last = range.end - begin;
    return bit_range(first < 0 ? 0 : first, last > kBlock ? kBlock : last);
  }

  Index* begin_;
  Index* end_;
  Index* position_;
  Index rows_ = 0;
  Index latest_begin_ = 0;
  Index earliest_end_ = 0;
  bool gaps_ = false;  // positions in the hull that may be in no row's range
};

}  // namespace gqa::detail::inline GQA_ABI
