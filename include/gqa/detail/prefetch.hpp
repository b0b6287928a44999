// SPDX-License-Identifier: Apache-2.0
/// @file
/// Prefetching: which rows are fetched before they are used, how far ahead, how fast, and in which order. No other file decides it, and no
/// result depends on it.
///
///   policy     chosen once a sequence: distance, pace, level
///   queue      runs of rows in the order in which they are read: the keys of a stage, its values, the next stage's first keys
///   cursor     the rows that a micro-kernel fetches while it takes some tokens: a few words by value, stepped as tokens go by
///
/// A row is fetched for each row that is used. How many have been fetched and not used yet is the lead: planning and the softmax, who read
/// no rows, increase it up to the policy's limit; reading brings it back to the distance, and keeps it there.
#pragma once

#include "gqa/detail/kernel_types.hpp"

namespace gqa::detail {

/// Rows of K or V in the order in which they are read: token by token, and head by head within a token.
struct RowRun {
  const std::byte* base = nullptr;  ///< the first row; of scattered tokens, what their offsets are added to
  const Index* offset = nullptr;    ///< bytes, a token each; null: all rows are evenly spaced
  Index tokens = 0;
  Index heads = 1;
  Index stride = 0;  ///< bytes from row to row; of scattered tokens, from head to head
  Index row_bytes = 0;

  GQA_ALWAYS_INLINE Index rows() const noexcept { return heads == 1 ? tokens : tokens * heads; }
};

/// How the rows of a sequence are prefetched.
struct PrefetchPolicy {
  /// What a fetch waits for. A processor runs ahead of its arithmetic: where the rows of several heads are fetched side by side, the fetches of
  /// many tokens would fill what other loads wait in.
  enum class Pace : std::uint8_t {
    free,        ///< nothing
    with_sums,   ///< the sums of the token before
    loads_also,  ///< nothing, but the next tokens are not loaded before the scores of those before them are there
  };
  bool on = false;            ///< false: the processor follows the loads
  bool second_level = false;  ///< into the second-level cache, not the first
  bool touch = false;   ///< rows are touched right before they are used, unless their loads are followed, see touch_row
  bool shared = false;  ///< the strips of a head share the fetching; or the first strip does it
  bool between = false;  ///< rows are fetched while a stage is planned, and during its softmax
  Pace pace = Pace::free;
  Index distance = 0;  ///< tokens that reading keeps ahead
  Index limit = 0;     ///< tokens ahead at most, where rows are fetched between reading, too
  Index side_tokens =
      0;  ///< tokens that each of several heads takes before the next one does; 0: the path's own choice
  Index softmax_bytes = 0;  ///< fetched during the softmax of a row and block, if `between`
};

/// What a policy is chosen by.
struct PrefetchFacts {
  Streaming streaming = Streaming::prefetched;
  bool streams = false;  ///< few rows over a cache whose rows follow each other: stages of many blocks
  bool runs = false;     ///< and blocks follow each other, see Stage::runs
  bool dense = false;    ///< the rows of a task's heads, and those of its tokens, are evenly spaced together
  bool packed = false;   ///< and there is nothing between them
  Index heads = 1;
  Index rows = 0;                    ///< query rows of a head
  Index row_bytes = 0;               ///< of the wider of keys and values
  Index few_rows_distance = kBlock;  ///< Kernels::few_rows_distance
};

inline constexpr Index kStreamedBytes = 8192;  ///< of one head's rows that are fetched ahead
inline constexpr Index kSoftmaxPieces = kBlock / kLanes;
inline constexpr Index kSoftmaxPiece = 192;  ///< bytes of a piece where there are several query rows
inline constexpr Index kBegunBytes = 4096;   ///< of rows that a processor follows: fetched for it to be on its way
inline constexpr Index kPrefetchGrain = 16;  ///< tokens: as many at least go by at one pace, of one run

/// Where one head's rows are streamed, some KiB ahead; where heads take a few tokens in turn, those of a turn at least; else a block, because
/// several strips take the same tokens. Stretches are long where there is arithmetic enough to make their beginnings dear.
GQA_ALWAYS_INLINE PrefetchPolicy choose_prefetch(const PrefetchFacts& facts) noexcept {
  constexpr Index long_bytes = Index{128} << 10;  // that all heads take in turn, at most
  const bool prefetched = facts.streaming == Streaming::prefetched;
  const bool few = facts.rows < kPanelRows;
  PrefetchPolicy policy{};
  policy.on = prefetched || !facts.runs;
  policy.second_level = !prefetched;
  policy.touch = !prefetched && facts.streams;
  policy.shared = !facts.runs;
  policy.between = prefetched && (facts.heads == 1 ? facts.runs : few && facts.packed);
  policy.softmax_bytes = facts.heads * facts.rows == 1   ? 2048
                         : facts.heads * facts.rows == 2 ? 1280
                                                         : kSoftmaxPiece * kSoftmaxPieces;
  policy.distance = kBlock;
  if (facts.heads == 1 && facts.runs) {
    const Index tokens = kStreamedBytes / facts.row_bytes / kPrefetchGrain * kPrefetchGrain;
    policy.distance = tokens <= 0       ? kPrefetchGrain
                      : tokens < kBlock ? tokens
                                        : kBlock;  // a block of the next keys is known
  } else if (facts.heads > 1) {
    const bool even = prefetched && facts.dense;
    const bool half = even && few && facts.rows >= 3 && facts.heads * facts.row_bytes * kBlock / 2 <= long_bytes;
    policy.pace = prefetched ? PrefetchPolicy::Pace::with_sums : PrefetchPolicy::Pace::loads_also;
    policy.side_tokens = half ? kBlock / 2 : 0;
    if (few)
      policy.distance = half || facts.heads == 2   ? kBlock / 2
                        : !even || facts.rows >= 3 ? kBlock / 4
                                                   : facts.few_rows_distance;
  }
  policy.limit = policy.distance + 4 * kBlock;
  return policy;
}

/// What a cursor seldom looks at.
struct PrefetchDetails {
  Index far_bytes = 0;                ///< of a row, where it is fetched into the second-level cache
  const RowRun* scattered = nullptr;  ///< where rows are, if they are not evenly spaced
};

/// The rows that a micro-kernel fetches while it takes some tokens.
struct PrefetchCursor {
  const std::byte* row = nullptr;  ///< the next; null: none
  Index even = 0;                  ///< rows that are evenly spaced, the next one included
  Index stride = 0;                ///< bytes from each of them to the next
  Index near_bytes = 0;            ///< of a row, where it is fetched into the first-level cache
  Index shift = 0;                 ///< a row is fetched for every 2^shift tokens
  Index token = 0;                 ///< of scattered rows
  const PrefetchDetails* details = nullptr;

  GQA_ALWAYS_INLINE PrefetchCursor() noexcept = default;
  /// From row number `first` of a run on.
  GQA_ALWAYS_INLINE PrefetchCursor(const RowRun& run, Index first, const PrefetchDetails& more) noexcept
      : stride(run.stride), near_bytes(run.row_bytes - more.far_bytes), details(&more) {
    if (run.offset == nullptr) {
      row = run.base + first * run.stride;
      even = run.rows() - first;
      return;
    }
    token = run.heads == 1 ? first : first / run.heads;
    const Index head = first - token * run.heads;
    row = run.base + run.offset[token] + head * run.stride;
    even = run.heads - head;
  }
  /// Leaves rows out, fewer than are left of the run.
  GQA_ALWAYS_INLINE void skip(Index rows) noexcept {
    if (details->scattered != nullptr) {
      const RowRun& run = *details->scattered;
      const Index heads = run.heads - even + rows;  // from the first head of `token` on
      const Index tokens = run.heads == 1 ? heads : heads / run.heads;
      const Index head = heads - tokens * run.heads;
      token += tokens;
      row = run.base + run.offset[token] + head * run.stride;
      even = run.heads - head;
    } else {
      row += rows * stride;
      even -= rows;
    }
  }
  GQA_ALWAYS_INLINE void next() noexcept {
    if (--even > 0) {
      row += stride;
    } else if (details->scattered != nullptr && ++token < details->scattered->tokens) {
      even = details->scattered->heads;
      row = details->scattered->base + details->scattered->offset[token];
    } else {
      row = nullptr;
    }
  }
  GQA_ALWAYS_INLINE void fetch() const noexcept {
    for (Index line = 0; line < near_bytes; line += 64) __builtin_prefetch(row + line, 0, 3);
    for (Index line = 0; line < details->far_bytes; line += 64) __builtin_prefetch(row + line, 0, 2);
  }
  GQA_ALWAYS_INLINE bool is_due(Index at) const noexcept { return (at & ((Index{1} << shift) - 1)) == 0; }
  /// How many rows are due while `tokens` tokens go by, a power of two of them, `at` a multiple.
  GQA_ALWAYS_INLINE Index due(Index at, Index tokens) const noexcept {
    if (row == nullptr) return 0;
    const Index rows = tokens >> shift;
    return rows > 0 ? rows : is_due(at) ? 1 : 0;
  }
};

/// The queue of rows that a worker reads, and how far they have been fetched.
///
/// The task appends a stage's blocks as it plans them. Kernels take tokens in stretches: every strip of every head takes the same ones
/// before any goes on. Rows of one run are fetched in a stretch, at one pace.
class Prefetcher {
 public:
  /// Runs that there must be room for, for stages of so many blocks.
  GQA_ALWAYS_INLINE static constexpr Index room(Index stage_blocks) noexcept { return 2 * stage_blocks + 1; }

  GQA_ALWAYS_INLINE Prefetcher() noexcept = default;  // of nothing
  GQA_ALWAYS_INLINE Prefetcher(const PrefetchPolicy& policy, RowRun* room, Index stage_blocks) noexcept
      : policy_(policy), keys_(room), values_(room + stage_blocks), next_(room + 2 * stage_blocks) {}

  GQA_ALWAYS_INLINE const PrefetchPolicy& policy() const noexcept { return policy_; }
  GQA_ALWAYS_INLINE bool on() const noexcept { return policy_.on; }
  GQA_ALWAYS_INLINE Index heads() const noexcept { return heads_; }
  /// Of the rows that are fetched in this stretch.
  GQA_ALWAYS_INLINE Index row_bytes() const noexcept { return row_bytes_; }
  /// Rows that have been fetched and not used.
  GQA_ALWAYS_INLINE Index lead() const noexcept { return lead_; }

  /// What is read next is not what was appended as that.
  GQA_ALWAYS_INLINE void restart() noexcept { lead_ = 0; }
  /// A stage of `heads` heads and at most `tokens` tokens begins, with keys of so many bytes.
  GQA_ALWAYS_INLINE void begin_stage(Index heads, Index tokens, Index k_row_bytes) noexcept {
    if (!policy_.on) return;
    if (!has_next_ || lead_ < 0) lead_ = 0;
    heads_ = heads;
    key_runs_ = value_runs_ = run_ = 0;
    has_next_ = reading_ = false;
    at_ = lead_;
    owed_ = 0;
    if (policy_.between) planning_bytes_ = bytes_of_block(tokens, k_row_bytes);
  }
  /// A block's rows, behind those of the blocks before it. Some of what is in the queue is fetched meanwhile.
  GQA_ALWAYS_INLINE void append(const RowRun& keys, const RowRun& values) noexcept {
    if (!policy_.on) {
      begin_followed(keys, followed_keys_);
      begin_followed(values, followed_values_);
      return;
    }
    if (key_runs_ == 0 && at_ > keys.rows()) at_ = lead_ = keys.rows();  // fewer than were expected
    push(keys_, key_runs_, keys);
    push(values_, value_runs_, values);
    if (!policy_.between) return;
    owed_ += planning_bytes_;
    const Index rows = owed_ / keys.row_bytes;
    owed_ -= rows * keys.row_bytes;
    fetch(rows);
  }
  /// The keys that are read after the stage.
  GQA_ALWAYS_INLINE void append_next(const RowRun& keys) noexcept {
    has_next_ = true;
    *next_ = keys;
  }
  /// All is appended. Keys so near that they have to be there by now are not fetched any more.
  GQA_ALWAYS_INLINE void begin_reading() noexcept {
    if (!policy_.on) return;
    reading_ = true;
    pass(0);
    for (Index missing = policy_.distance * heads_ - lead_; missing > 0 && run_ < key_runs_;) {
      const Index left = keys_[run_].rows() - at_;
      const Index rows = missing < left ? missing : left;
      pass(rows);
      lead_ += rows;
      missing -= rows;
    }
  }

  /// Before a kernel's first stretch.
  GQA_ALWAYS_INLINE void begin_stretches() noexcept {
    if (!policy_.on) return;
    pass(0);
    left_ = run_ < runs() ? run(run_).rows() - at_ : 0;
    if (left_ > 0) begin_run();
    else ahead_.row = nullptr;
    excess_ = lead_ - policy_.distance * heads_;
    excess_ = excess_ > 0 ? excess_ - excess_ % (heads_ * kPrefetchGrain / 2) : 0;
  }
  /// Where a stretch from token `first` to `last` has to end, for the sake of one run and one pace.
  GQA_ALWAYS_INLINE Index end_of_stretch(Index first, Index last) const noexcept {
    if (ahead_.row == nullptr) return last;
    const Index rows = excess_ == 0 ? left_ : 2 * (excess_ < left_ ? excess_ : left_);
    const Index end = round_up(first + (heads_ == 1 ? rows : (rows + heads_ - 1) / heads_), kPrefetchGrain);
    return end < last ? end : last;
  }
  /// So many strips of a head, one after the other, take the same tokens, so many at least, and share the fetching.
  GQA_ALWAYS_INLINE void share(Index strips, Index tokens) noexcept {
    const Index slower = excess_ > 0 ? 1 : 0;
    const Index rows = tokens >> slower;
    const Index most = strips < rows ? strips : rows;
    const bool shared = policy_.shared && (details_.scattered == nullptr || heads_ == 1);
    sharers_ = 0;
    while (shared && (Index{2} << sharers_) <= most && sharers_ < kMostShift) ++sharers_;
    ahead_.shift = sharers_ + slower;
  }
  /// What strip number `strip` fetches while it takes `tokens`.
  GQA_ALWAYS_INLINE PrefetchCursor cursor(Index strip, Index tokens) const noexcept {
    PrefetchCursor mine = ahead_;
    if (strip == 0 || mine.row == nullptr) return mine;
    const Index before = strip * (tokens >> ahead_.shift);
    if ((strip >> sharers_) != 0 || before >= left_) mine.row = nullptr;
    else mine.skip(before);
    return mine;
  }
  /// All strips of a head have taken `tokens` tokens, of which `used` were there.
  GQA_ALWAYS_INLINE void end_stretch(Index tokens, Index used) noexcept {
    if (!policy_.on) return;
    const Index share = (tokens >> ahead_.shift) << sharers_;
    const Index rows = share < left_ ? share : left_;
    pass(rows);
    lead_ += rows - used;
    if (lead_ < policy_.distance * heads_) fetch(policy_.distance * heads_ - lead_);  // where a run has ended
    begin_stretches();
  }
  /// The rows to fetch during a block's softmax of so many query rows, in pieces, kSoftmaxPieces for each query row: they follow each other in
  /// memory where `between` is set, and are evenly spread that way.
  GQA_ALWAYS_INLINE PrefetchCursor softmax_cursor(Index query_rows) noexcept {
    pass(0);
    if (run_ == runs() || run(run_).offset != nullptr || lead_ >= policy_.limit * heads_) return {};
    const RowRun& now = run(run_);
    const Index known = (now.rows() - at_) * now.row_bytes;
    const Index wanted = query_rows * policy_.softmax_bytes;
    const Index bytes = wanted < known ? wanted : known;
    PrefetchCursor pieces;
    pieces.details = &details_of_pieces_;
    pieces.stride = pieces.near_bytes = policy_.softmax_bytes / kSoftmaxPieces;
    pieces.even = bytes / pieces.stride;
    const Index rows = pieces.even * pieces.stride / now.row_bytes;
    if (rows > 0) pieces.row = now.base + at_ * now.stride;
    lead_ += rows;
    pass(rows);
    return pieces;
  }

 private:
  static constexpr Index kMostShift = 4;

  /// As many bytes while a block is planned as go by unnoticed; or if nothing has been fetched yet, of few blocks more, for the scores to
  /// begin with. In all no more than the first-level cache keeps.
  GQA_ALWAYS_INLINE Index bytes_of_block(Index tokens, Index row_bytes) const noexcept {
    const Index blocks = (tokens + kBlock - 1) / kBlock;
    const bool begun = lead_ > 0;
    const Index most = ((Index{32} << 10) - (begun ? kStreamedBytes : 0)) / blocks;
    const Index usual = begun ? 768 : 1024;
    const Index bytes = tokens * row_bytes;
    const Index first = (bytes < kStreamedBytes ? bytes : kStreamedBytes) / blocks;
    const Index wanted = begun || first < usual ? usual : first;
    return wanted < most ? wanted : most;
  }

  /// Fetches the first bytes of rows that do not go on where the last ones ended.
  GQA_ALWAYS_INLINE static void begin_followed(const RowRun& rows, const std::byte*& expected) noexcept {
    if (rows.offset != nullptr) return;
    const Index bytes = rows.rows() * rows.stride;
    if (rows.base != expected) {
      asm volatile("");  // see fetch
      for (Index line = 0; line < kBegunBytes && line < bytes; line += 64) __builtin_prefetch(rows.base + line, 0, 2);
    }
    expected = rows.base + bytes;
  }
  /// Puts a run behind the others, or if it goes on where the last one ends, into that.
  GQA_ALWAYS_INLINE static void push(RowRun* list, Index& count, const RowRun& more) noexcept {
    if (count > 0) {
      RowRun& last = list[count - 1];
      if (last.offset == nullptr && more.offset == nullptr && last.stride == more.stride &&
          last.base + last.rows() * last.stride == more.base) {
        last.tokens += more.tokens;
        return;
      }
    }
    list[count++] = more;
  }
  GQA_ALWAYS_INLINE const RowRun& run(Index i) const noexcept {
    return i < key_runs_ ? keys_[i] : i < key_runs_ + value_runs_ ? values_[i - key_runs_] : *next_;
  }
  /// Those that are known: while a stage is planned, keys.
  GQA_ALWAYS_INLINE Index runs() const noexcept {
    return reading_ ? key_runs_ + value_runs_ + (has_next_ ? 1 : 0) : key_runs_;
  }
  /// Goes on in the queue. While it grows, its last run may, too.
  GQA_ALWAYS_INLINE void pass(Index rows) noexcept {
    at_ += rows;
    for (const Index last = reading_ ? runs() : runs() - 1; run_ < last && at_ >= run(run_).rows(); ++run_)
      at_ -= run(run_).rows();
  }
  /// A cursor over what is left of the run.
  GQA_ALWAYS_INLINE void begin_run() noexcept {
    const RowRun& now = run(run_);
    details_.far_bytes = policy_.second_level ? now.row_bytes : 0;
    details_.scattered = now.offset == nullptr ? nullptr : &now;
    row_bytes_ = now.row_bytes;
    ahead_ = PrefetchCursor(now, at_, details_);
  }
  /// Fetches the next rows at once.
  GQA_ALWAYS_INLINE void fetch(Index rows) noexcept {
    asm volatile("");  // or a compiler may find that nothing comes of it, and leave the calls out
    for (pass(0); rows > 0 && run_ < runs() && at_ < run(run_).rows(); pass(0)) {
      begin_run();
      for (; rows > 0 && ahead_.row != nullptr; ahead_.next(), --rows, ++at_, ++lead_) ahead_.fetch();
    }
  }

  PrefetchPolicy policy_{};
  RowRun* keys_ = nullptr;
  RowRun* values_ = nullptr;
  RowRun* next_ = nullptr;
  Index key_runs_ = 0;
  Index value_runs_ = 0;
  bool has_next_ = false;
  bool reading_ = false;
  Index heads_ = 1;
  Index run_ = 0;   // the next row to fetch: the run it is in,
  Index at_ = 0;    // and its number there
  Index lead_ = 0;  // rows
  // Of a stretch:
  PrefetchDetails details_{};
  PrefetchCursor ahead_{};
  Index left_ = 0;       // rows of its run
  Index row_bytes_ = 0;  // of them
  Index excess_ = 0;     // rows ahead of the distance: while there are any, a row is fetched for every second token
  Index sharers_ = 0;    // strips that fetch, as a power of two
  PrefetchDetails details_of_pieces_{};
  const std::byte* followed_keys_ = nullptr;  // where rows that the processor follows go on
  const std::byte* followed_values_ = nullptr;
  // While a stage is planned:
  Index planning_bytes_ = 0;  // of a block
  Index owed_ = 0;            // bytes that were no whole row
};

}  // namespace gqa::detail
