// SPDX-License-Identifier: Apache-2.0
/// @file
/// Which rows are asked for ahead of the arithmetic, when, and in which order.
#pragma once

#include "gqa/detail/kernel_types.hpp"

namespace gqa::detail {

/// Evenly spaced rows that a strip asks for, one by one.
struct Asked {
  const std::byte* row = nullptr;  ///< the next; null: none are
  Index stride = 0;
  Index left = 0;
  Index bytes = 0;  ///< of a row
  Index shift = 0;  ///< tokens that the strip takes for each of them, as a power of two

  GQA_ALWAYS_INLINE Asked() noexcept = default;
  GQA_ALWAYS_INLINE bool is_due(Index token) const noexcept { return (token & ((Index{1} << shift) - 1)) == 0; }
  GQA_ALWAYS_INLINE void next() noexcept {
    if (--left > 0) row += stride;
    else row = nullptr;
  }
  /// Those that are due while tokens [from, from + tokens) go by, a power of two of them, `from` a multiple. They are not left any more.
  GQA_ALWAYS_INLINE Asked due(Index from, Index tokens) noexcept {
    Asked these = *this;
    const Index rows = tokens >> shift;
    if (row == nullptr || (rows == 0 && !is_due(from))) {
      these.row = nullptr;
      return these;
    }
    const Index now = rows > 0 ? rows : 1;
    if (now < left) {
      these.left = now;
      row += now * stride;
      left -= now;
    } else {
      row = nullptr;
    }
    return these;
  }
};

/// Lines of keys or values, of one head or of heads side by side, that are asked for while none of them are read: from a stage's first row
/// on, as far as its blocks are evenly spaced and follow each other in memory.
class Lines {
 public:
  static constexpr Index kBytes = 64;  ///< of a line
  static constexpr Index kUsual = 12;  ///< lines at a time during a row's softmax

  /// Rows of `row_bytes` for each head, without gaps; `count` lines at a time.
  GQA_ALWAYS_INLINE Lines(const Stage& stage, const std::byte* Block::*rows, Index row_bytes, Index count) noexcept
      : stage_(stage), rows_(rows), token_bytes_(stage.heads * row_bytes), count_(count) {}
  GQA_ALWAYS_INLINE Index count() const noexcept { return count_; }
  /// The next count() lines; or null, where there are not so many.
  GQA_ALWAYS_INLINE const std::byte* take() noexcept {
    const Index bytes = count_ * kBytes;
    if (left_ < bytes && !reach(bytes)) return nullptr;
    taken_ += bytes;
    next_ += bytes;
    left_ -= bytes;
    return next_ - bytes;
  }
  /// Leaves out tokens whose rows somebody else asks for; if there are no more, nothing is left to take.
  GQA_ALWAYS_INLINE void skip(Index tokens) noexcept {
    const Index bytes = tokens * token_bytes_;
    if (!reach(bytes)) {
      left_ = 0;
      return;
    }
    next_ += bytes;
    left_ -= bytes;
  }
  /// Tokens whose rows were taken, whole.
  GQA_ALWAYS_INLINE Index tokens() const noexcept { return taken_ / token_bytes_; }

 private:
  /// So many bytes follow; those of blocks that the stage does not have yet are not known.
  GQA_ALWAYS_INLINE bool reach(Index bytes) noexcept {
    for (; left_ < bytes; ++block_) {
      if (block_ == stage_.blocks) return false;
      const Block& block = stage_.units[block_ * stage_.heads];
      if (block.k_stride == 0) return false;  // rows anywhere
      const std::byte* const first = block.*rows_ + block.first * token_bytes_;
      if (block_ == 0) next_ = first;
      else if (first != next_ + left_) return false;
      left_ += (block.last - block.first) * token_bytes_;
    }
    return true;
  }

  const Stage& stage_;
  const std::byte* Block::*rows_;
  Index token_bytes_;
  Index count_;
  Index block_ = 0;
  const std::byte* next_ = nullptr;
  Index left_ = 0;   // bytes
  Index taken_ = 0;  // bytes
};

/// Rows that are asked for some way before they are worked on, one for each token that a head's strips take. Those of a run of blocks, of
/// one KV head or of several whose rows are evenly spaced from head to head and token to token; then the first of what is read after them.
struct Stream {
  static constexpr Index kAhead = 8192;  ///< bytes, where rows are streamed
  static constexpr Index kGrain = 16;    ///< tokens: as many at least go by between one kind of rows and the next
  static constexpr Index kMostShift = 4;
  static constexpr Index kSlowTokens = kGrain / 2;  ///< a surplus is a multiple of them
  Asked rows{};
  const Upcoming* then = nullptr;
  Index heads = 1;
  Index askers = 0;  ///< strips that ask, as a power of two
  /// Rows that have been asked for farther ahead than usual: until they are used up, every second token asks for one.
  Index surplus = 0;
  bool shares = false;  ///< all strips ask; or the first one, where rows are asked for little more than a strip ahead

  GQA_ALWAYS_INLINE Stream() noexcept = default;
  /// Rows of `count` tokens, the first that of `now`; those of `ahead` of them have been asked for, and of `more`, a multiple of
  /// kSlowTokens; or all, as scattered rows are.
  GQA_ALWAYS_INLINE Stream(const Upcoming& now, Index count, const Upcoming& after, Index ahead, Index more,
                           Index kv_heads, bool all_ask) noexcept
      : then(&after), heads(kv_heads), shares(all_ask) {
    begin(now, count);
    const bool all = ahead + more >= count || now.stride == 0;
    passed((all ? count : ahead + more) * heads);
    if (!all) surplus = more * heads;
  }
  GQA_ALWAYS_INLINE bool asks() const noexcept { return rows.row != nullptr; }
  /// So many strips, one after the other, take the same tokens, so many at least, and share the asking.
  GQA_ALWAYS_INLINE void share(Index strips, Index tokens) noexcept {
    askers = 0;
    const Index rows_asked = surplus > 0 ? tokens / 2 : tokens;
    const Index most = strips < rows_asked ? strips : rows_asked;
    while (shares && (Index{2} << askers) <= most && askers < kMostShift) ++askers;
    rows.shift = surplus > 0 ? askers + 1 : askers;
  }
  /// What strip number `strip` asks for while it takes `tokens`, no more than until().
  GQA_ALWAYS_INLINE Asked part(Index strip, Index tokens) const noexcept {
    Asked mine = rows;
    const Index before = strip * (tokens >> rows.shift);
    if (strip >= Index{1} << askers || before >= rows.left) mine.row = nullptr;
    if (mine.row == nullptr) return mine;
    mine.row += before * mine.stride;
    mine.left -= before;
    return mine;
  }
  /// Where the tokens from `first` on, and before `last`, end for which rows of one kind are asked for, at one pace.
  GQA_ALWAYS_INLINE Index until(Index first, Index last) const noexcept {
    if (!asks()) return last;
    const Index pending = surplus <= 0 ? rows.left : 2 * (surplus < rows.left ? surplus : rows.left);
    const Index end = round_up(first + (heads == 1 ? pending : (pending + heads - 1) / heads), kGrain);
    return end < last ? end : last;
  }
  /// All strips of a head have taken so many tokens. If more than there were rows, none of the next kind has been asked for yet.
  GQA_ALWAYS_INLINE void passed(Index tokens) noexcept {
    if (!asks()) return;
    if (surplus > 0) {
      tokens /= 2;
      surplus -= tokens;
      if (surplus <= 0) rows.shift = askers;
    }
    if (tokens >= rows.left) return go_on();
    rows.row += tokens * rows.stride;
    rows.left -= tokens;
  }

 private:
  GQA_ALWAYS_INLINE void go_on() noexcept {
    rows.row = nullptr;
    rows.shift = askers;
    surplus = 0;
    if (then == nullptr || then->first >= then->last) return;
    begin(*then, then->stride != 0 ? then->last - then->first : 1);  // scattered rows: the first token's only
    then = nullptr;
  }
  GQA_ALWAYS_INLINE void begin(const Upcoming& from, Index tokens) noexcept {
    rows.row = from.data + from.offset[from.first];
    rows.stride = heads > 1 ? from.head_stride : from.stride;
    rows.left = tokens * heads;
    rows.bytes = from.row_bytes;
  }
};

/// Rows that come next, of `heads` KV heads, asked for in the order of memory while others are worked on: evenly, because a processor
/// can wait for a few dozen lines at a time, and does nothing else when it is asked for more.
struct Ahead {
  Upcoming next;
  Upcoming then;  ///< none once it is `next`
  Index heads;
  Streaming streaming;
  Index work;      ///< that there is meanwhile
  Index rows = 0;  ///< to ask for
  Index token = 0;
  Index head = 0;
  Index credit = 0;  ///< work done times rows, less work times rows asked for

  /// While rows `now` are worked on: those of them that are `distance` off; then the first of `after`, or all of them.
  GQA_ALWAYS_INLINE Ahead(const Upcoming& now, const Upcoming& after, const Stage& stage, Index all_work,
                          Index distance) noexcept
      : next(now), then(after), heads(stage.heads), streaming(stage.streaming), work(all_work) {
    next.first += distance;
    if (then.last > then.first + distance) then.last = then.first + distance;
    rows = heads * (now.last - now.first);
    token = next.first;
    if (token >= next.last) go_on();
  }
  /// Heads take a few tokens in turn, and prefetch instructions do all the reading: the evener they come, the faster.
  GQA_ALWAYS_INLINE bool evenly() const noexcept { return heads > 1 && streaming == Streaming::prefetched; }
  /// A part of the work is done.
  GQA_ALWAYS_INLINE void done(Index part) noexcept {
    credit += part * rows;
    for (; credit >= work && token < next.last; credit -= work) {
      const std::byte* const row = next.data + head * next.head_stride + next.offset[token];
      for (Index line = 0; line < next.row_bytes; line += 64) {
        if (streaming == Streaming::prefetched) __builtin_prefetch(row + line, 0, 3);
        else __builtin_prefetch(row + line, 0, 2);  // second-level cache
      }
      if (++head < heads) continue;
      head = 0;
      if (++token == next.last) go_on();
    }
  }

 private:
  GQA_ALWAYS_INLINE void go_on() noexcept {
    next = then;
    then.last = then.first;
    token = next.first;
  }
};

/// How a kernel asks for rows while it works: by distance, or as work is done, or not.
struct Asker {
  Stream stream{};
  Ahead* ahead = nullptr;
};

/// How many tokens rows are asked for ahead: where one head's rows are streamed, some KiB; where heads take a few tokens in turn, a turn
/// at least; else a block. A multiple of Stream::kGrain, or of the turn of one or two rows, if that is `short_turn`. Turns are long where
/// there is arithmetic enough to make their beginnings dear, and what is asked for meanwhile stays in the second-level cache.
GQA_ALWAYS_INLINE void set_distances(Stage& stage, Index rows, Index short_turn) noexcept {
  const Index row_bytes = stage.k_row_bytes > stage.v_row_bytes ? stage.k_row_bytes : stage.v_row_bytes;
  if (stage.runs() && stage.heads == 1) {
    const Index ahead = Stream::kAhead / row_bytes / Stream::kGrain * Stream::kGrain;
    stage.ahead = ahead <= 0 ? Stream::kGrain : ahead < kBlock ? ahead : kBlock;  // of what comes next a block is known
    return;
  }
  if (stage.heads == 1 || rows >= kGroupRows) return;
  constexpr Index most = Index{128} << 10;  // bytes
  stage.long_turns = stage.asks && rows >= 3 && stage.heads * row_bytes * kBlock / 2 <= most;
  stage.ahead = stage.long_turns || stage.heads == 2 ? kBlock / 2 : !stage.asks || rows >= 3 ? kBlock / 4 : short_turn;
}

}  // namespace gqa::detail
