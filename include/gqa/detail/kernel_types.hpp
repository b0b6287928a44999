// SPDX-License-Identifier: Apache-2.0
/// @file
/// What crosses from the baseline code to a path's kernels: pointers and plain structs, never a vector.
#pragma once

#include "gqa/cpu.hpp"
#include "gqa/element.hpp"

namespace gqa::detail {

/// Lanes of the logical vector that every f32 path computes with: one AVX-512 register, two of AVX2, four of NEON.
inline constexpr Index kLanes = 16;
/// Tokens that the online softmax takes at a time. Blocks start at multiples of kBlock, absolute positions.
inline constexpr Index kBlock = 64;
/// Tokens in a span, the unit of parallel work along the sequence. Spans start at multiples of kSpan, absolute positions: a
/// span's state depends on its own tokens alone, and states merge in ascending order.
inline constexpr Index kSpan = 512;
/// log2 e: scores are kept in units of log2.
inline constexpr float kLog2E = 1.44269504088896340736f;
/// Rows, (query token, query head) pairs, that share one pass over a KV head.
inline constexpr Index kTileRows = 128;
/// Spans, and blocks, that one stage of a task takes at most.
inline constexpr Index kStageSpans = 4;
inline constexpr Index kStageBlocks = kStageSpans * kSpan / kBlock;
/// Every token of a block, as bits.
inline constexpr std::uint64_t kEveryToken = ~std::uint64_t{0};
static_assert(kBlock == 64, "the visible tokens of a block are the bits of one std::uint64_t");
static_assert(kSpan % kBlock == 0);

constexpr Index round_up(Index value, Index multiple) noexcept { return (value + multiple - 1) / multiple * multiple; }

/// Rows from which a group of 16, a row a lane, is worth its idle lanes.
inline constexpr Index kGroupRows = 13;
/// What `rows` rows are rounded up to where each has one float: whole groups, if there are any.
constexpr Index state_rows(Index rows) noexcept { return rows < kGroupRows ? rows : round_up(rows, kLanes); }

/// The rows of one tile for one KV head, and the scratch that holds them. Strides in floats.
///
/// A row's state over the tokens seen so far is (m, l, o): running maximum of its scores in units of log2, the sum of
/// exp2(score − m), as one number or as kLanes partial sums, and the unnormalised output.
struct RowTile {
  Index rows = 0;
  Index head_dim = 0;
  Index value_dim = 0;
  void* q = nullptr;   ///< packed queries, the path's own layout; rows × q_stride floats of room
  Index q_stride = 0;  ///< round_up(head_dim, 2·kLanes)
  float* weights =
      nullptr;  ///< of one block: scores, then weights; [row][token], [token][row] in groups; or the path's own
  Index weight_floats = 0;  ///< from one block's to the next one's, in a stage of several; set by unit_tile
  float* m = nullptr;       ///< state_rows(rows)
  float* l = nullptr;       ///< state_rows(rows) × l_stride
  float* o = nullptr;       ///< rows × o_stride
  Index l_stride = 1;       ///< partial sums: 1 or kLanes
  Index o_stride = 0;      ///< value_dim rounded up to what the path asks for; the order within a row is the path's own
  float* alpha = nullptr;  ///< round_up(rows, kLanes): what this block's softmax multiplies the older o by
  std::byte* staging = nullptr;  ///< the path's own, staging_bytes() of it: widened or repacked K and V of one block
  float score_scale = 1.0f;      ///< multiplies q·k; includes log2 e unless a scoring variant wants natural scores
  bool scored = false;           ///< a scoring variant goes over the scores: `transform` leaves them in units of log2
};

/// Rows that will be read soon: row t at data + offset[t] bytes, for t in [first, last).
struct Upcoming {
  const std::byte* data = nullptr;
  const Index* offset = nullptr;
  Index first = 0;
  Index last = 0;
  Index head_stride = 0;  ///< bytes from a head's rows to the next head's
  Index row_bytes = 0;
  Index stride = 0;  ///< bytes from each row to the next, if that is the same for all; or 0
};

/// The tokens of one block of one KV head that some row of the tile sees: [first, last) within the block.
///
/// Row of token t: k + k_offset[t] bytes, for t in [first, last) only.
struct Block {
  Index begin = 0;  ///< the block's first position, a multiple of kBlock
  const std::byte* k = nullptr;
  const std::byte* v = nullptr;
  const Index* k_offset = nullptr;  ///< kBlock entries
  const Index* v_offset = nullptr;  ///< kBlock entries
  Index k_stride = 0;  ///< bytes from each token to the next, if that is the same for all of [first, last); or 0
  Index v_stride = 0;
  Index first = 0;
  Index last = 0;
  const std::uint64_t* visible = nullptr;  ///< per row, bit t: sees token t; null: every row sees all kBlock tokens
  bool careful = false;  ///< V holds a non-finite value in a token that some rows see and others do not
  Upcoming next_k;       ///< of a stage's last block: the keys of this head that the task reads after it; or none
};

/// What one stage of a task takes before the next stage has its turn: the keys of some blocks, then their softmax, then their
/// values. A decode step has few rows, and its stages many blocks: memory is then read in long runs. A tile of many rows has one
/// block, which stays in the caches. Either way a block's arithmetic is its own.
///
/// A unit is one block of one KV head; the unit of block b and head j is units[b · heads + j].
struct Stage {
  const Block* units = nullptr;
  Index blocks = 0;
  Index heads = 1;          ///< KV heads side by side; they share the tokens [first, last) of a block
  Index k_head_stride = 0;  ///< bytes from a head's rows to the next head's
  Index v_head_stride = 0;
  Index k_row_bytes = 0;
  Index v_row_bytes = 0;
  bool streams = false;  ///< few rows are streamed through memory, many blocks a stage
  bool asks =
      false;  ///< rows are asked for by their distance from those that are worked on, see Stream; several heads are dense
  /// Rows are asked for as work is done, see Ahead: they are not evenly spaced from block to block, or from head to head; or loads
  /// are followed, and there is work enough to hide it.
  bool prefetch = false;
  Streaming streaming = Streaming::prefetched;
  Upcoming after;  ///< what is read after the last values; or none
  Index k_surplus =
      0;  ///< rows at the beginning that are asked for before any is read, besides Stream::rows_ahead; streams only
  Index v_surplus = 0;
  Index weight_floats = 0;  ///< from a unit's weights to the next one's
  Index alpha_floats = 0;   ///< from a unit's alpha to the next one's

  /// Whether blocks that follow each other in memory are taken as one run, see run_of.
  GQA_ALWAYS_INLINE bool runs() const noexcept { return streams && !prefetch; }
  /// Whether streamed rows are touched right before they are used, unless the processor follows the loads that take them.
  GQA_ALWAYS_INLINE bool touches() const noexcept { return streaming == Streaming::followed && streams; }
};

/// The keys and values of block b of a stage, of its first head.
GQA_ALWAYS_INLINE Upcoming keys_of(const Stage& stage, Index b) noexcept {
  const Block& block = stage.units[b * stage.heads];
  return {block.k, block.k_offset, block.first, block.last, stage.k_head_stride, stage.k_row_bytes, block.k_stride};
}
GQA_ALWAYS_INLINE Upcoming values_of(const Stage& stage, Index b) noexcept {
  const Block& block = stage.units[b * stage.heads];
  return {block.v, block.v_offset, block.first, block.last, stage.v_head_stride, stage.v_row_bytes, block.v_stride};
}
/// What is read after them: the next block's keys, at last the first values; the next block's values, at last what comes after the
/// stage.
GQA_ALWAYS_INLINE Upcoming after_keys(const Stage& stage, Index b) noexcept {
  return b + 1 < stage.blocks ? keys_of(stage, b + 1) : values_of(stage, 0);
}
GQA_ALWAYS_INLINE Upcoming after_values(const Stage& stage, Index b) noexcept {
  return b + 1 < stage.blocks ? values_of(stage, b + 1) : stage.after;
}

/// Evenly spaced rows that a strip asks for, one by one.
struct Asked {
  const std::byte* row = nullptr;  ///< the next; null: none are
  Index stride = 0;
  Index left = 0;
  Index bytes = 0;  ///< of a row
  Index shift = 0;  ///< tokens that the strip takes for each of them, as a power of two

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

/// Lines of one head's keys or values that are asked for while none of them are read: from a stage's first row on, as far as its blocks
/// follow each other in memory.
class Lines {
 public:
  static constexpr Index kBytes = 64;  ///< of a line

  GQA_ALWAYS_INLINE Lines(const Stage& stage, const std::byte* Block::*rows, Index row_bytes) noexcept
      : stage_(stage), rows_(rows), row_bytes_(row_bytes) {}
  /// The next `count` lines; or null, where there are not so many.
  GQA_ALWAYS_INLINE const std::byte* take(Index count) noexcept {
    const Index bytes = count * kBytes;
    if (!reach(bytes)) return nullptr;
    taken_ += bytes;
    next_ += bytes;
    left_ -= bytes;
    return next_ - bytes;
  }
  /// Leaves out rows that somebody else asks for.
  GQA_ALWAYS_INLINE void skip(Index rows) noexcept {
    const Index bytes = rows * row_bytes_;
    if (!reach(bytes)) return;
    next_ += bytes;
    left_ -= bytes;
  }
  /// Whole rows that were taken.
  GQA_ALWAYS_INLINE Index rows() const noexcept { return taken_ / row_bytes_; }

 private:
  /// So many bytes follow; those of blocks that the stage does not have yet are not known.
  GQA_ALWAYS_INLINE bool reach(Index bytes) noexcept {
    for (; left_ < bytes; ++block_) {
      if (block_ == stage_.blocks) return false;
      const Block& block = stage_.units[block_];
      const std::byte* const first = block.*rows_ + block.first * row_bytes_;
      if (block_ == 0) next_ = first;
      else if (first != next_ + left_) return false;
      left_ += (block.last - block.first) * row_bytes_;
    }
    return true;
  }

  const Stage& stage_;
  const std::byte* Block::*rows_;
  Index row_bytes_;
  Index block_ = 0;
  const std::byte* next_ = nullptr;
  Index left_ = 0;   // bytes
  Index taken_ = 0;  // bytes
};

/// Rows that are asked for some way before they are worked on, one for each token that a head's strips take. Those of a run of blocks
/// of one KV head, or of one block of several, whose rows are evenly spaced from head to head and token to token; then the first of what
/// is read after them.
struct Stream {
  static constexpr Index kAhead = 8192;  ///< bytes, where rows are streamed
  static constexpr Index kGrain = 16;    ///< tokens: as many at least go by between one kind of rows and the next
  static constexpr Index kMostShift = 4;
  static constexpr Index kSlowRows = kGrain / 2;  ///< a surplus is a multiple of them
  Asked rows;
  const Upcoming* then = nullptr;
  Index heads = 1;
  Index askers = 0;  ///< strips that ask, as a power of two
  Index surplus =
      0;  ///< rows that are asked for farther ahead: until they are used up, every second token asks for one
  bool shares = false;  ///< all strips ask; or the first one, where rows are asked for little more than a strip ahead

  /// Tokens that rows of one head are asked for ahead, where they are streamed.
  GQA_ALWAYS_INLINE static Index rows_ahead(const Stage& stage) noexcept {
    const Index row_bytes = stage.k_row_bytes > stage.v_row_bytes ? stage.k_row_bytes : stage.v_row_bytes;
    const Index ahead = kAhead / row_bytes / kGrain * kGrain;
    return ahead > 0 ? ahead : kGrain;
  }

  GQA_ALWAYS_INLINE Stream() noexcept = default;
  /// Rows of `count` tokens, the first that of `now`; those of `ahead` of them have been asked for, and of `more`; or all, as scattered
  /// rows are.
  GQA_ALWAYS_INLINE Stream(const Upcoming& now, Index count, const Upcoming& after, Index ahead, Index more,
                           Index kv_heads, bool all_ask) noexcept
      : then(&after), heads(kv_heads), shares(all_ask) {
    begin(now, count);
    const bool all = ahead + more >= count || now.stride == 0;
    passed((all ? count : ahead + more) * heads);
    if (!all) surplus = more;
  }
  GQA_ALWAYS_INLINE bool asks() const noexcept { return rows.row != nullptr; }
  /// So many strips, one after the other, take the same tokens, so many at least, and share the asking.
  GQA_ALWAYS_INLINE void share(Index strips, Index tokens) noexcept {
    askers = 0;
    const Index most = strips < tokens ? strips : tokens;
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
    const Index end =
        round_up(first + (surplus > 0 ? 2 * (surplus < rows.left ? surplus : rows.left) : rows.left), kGrain);
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
  Index work;  ///< that there is meanwhile
  Index rows;  ///< to ask for
  Index token;
  Index head = 0;
  Index credit = 0;  ///< work done times rows, less work times rows asked for

  /// While rows `now` are worked on: those of them that are some way off, see distance_of; then the first of `after`, or all of them.
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
  Stream stream;
  Ahead* ahead = nullptr;
};

/// How many tokens rows are asked for ahead: a block, if heads do not take a few tokens in turn. A multiple of Stream::kGrain.
GQA_ALWAYS_INLINE Index distance_of(const Stage& stage, bool in_turn) noexcept {
  return !in_turn || stage.heads == 1 ? kBlock : stage.heads == 2 ? kBlock / 2 : kBlock / 4;
}

/// How many blocks of a stage, from b on, are one run: whole, not careful, and their rows (keys or values) evenly spaced as if they
/// were of one block. Where rows are streamed, which one head's alone are, kernels take a run at a time: what a block begins and ends
/// with leaves memory idle.
GQA_ALWAYS_INLINE Index run_of(const Stage& stage, Index b, const std::byte* Block::*rows,
                               Index Block::*stride) noexcept {
  const Block* const first = stage.units + b;
  const auto whole = [](const Block& block) { return block.first == 0 && block.last == kBlock && !block.careful; };
  Index run = 1;
  if (!stage.runs() || stage.heads > 1 || first->*stride == 0 || !whole(*first)) return run;
  while (b + run < stage.blocks && whole(first[run]) && first[run].*stride == first->*stride &&
         first[run].*rows == first->*rows + run * kBlock * (first->*stride))
    ++run;
  return run;
}

/// The j-th KV head's state and queries, of a tile that holds several heads.
GQA_ALWAYS_INLINE RowTile head_tile(const RowTile& tile, Index j) noexcept {
  RowTile part = tile;
  part.q = static_cast<float*>(tile.q) + j * round_up(tile.rows, kLanes) * tile.q_stride;
  part.m = tile.m + j * state_rows(tile.rows);
  part.l = tile.l + j * state_rows(tile.rows) * tile.l_stride;
  part.o = tile.o + j * tile.rows * tile.o_stride;
  return part;
}

/// The state, queries, weights and alpha of one unit.
GQA_ALWAYS_INLINE RowTile unit_tile(const RowTile& tile, const Stage& stage, Index b, Index j) noexcept {
  RowTile part = head_tile(tile, j);
  part.weights = tile.weights + (b * stage.heads + j) * stage.weight_floats;
  part.weight_floats = stage.weight_floats;
  part.alpha = tile.alpha + (b * stage.heads + j) * stage.alpha_floats;
  return part;
}

/// Where a tile's queries come from: row r is query token (first_row + r) / group, query head head + (first_row + r) % group.
struct QuerySource {
  const std::byte* data = nullptr;  ///< query token 0, query head `head`
  ElementType type = ElementType::f32;
  Index token_stride = 0;  ///< bytes
  Index head_stride = 0;   ///< bytes
  Index dim_stride = 0;    ///< elements
  Index group = 1;
  Index first_row = 0;
};

/// Where a tile's outputs go; rows as in QuerySource.
struct OutputTarget {
  std::byte* data = nullptr;
  ElementType type = ElementType::f32;
  Index token_stride = 0;  ///< bytes
  Index head_stride = 0;   ///< bytes
  Index dim_stride = 0;    ///< elements
  Index group = 1;
  Index first_row = 0;
  float* lse = nullptr;  ///< query token 0, query head `head`; or null
  Index lse_token_stride = 0;
};

/// One path's kernels: the stages of a task. `scores` and `accumulate` take all units of a stage, in the order of memory, and are
/// per element type; the others take one head's tile.
struct Kernels {
  Path path = Path::portable;
  void (*pack)(const RowTile&, const QuerySource&) = nullptr;  ///< tile.q ← queries, scaled
  void (*begin)(const RowTile&) = nullptr;                     ///< state ← that of no tokens: (−∞, 0, 0)
  void (*scores[3])(const RowTile&, const Stage&) = {};        ///< weights ← scaled q·k of the blocks
  void (*softmax)(const RowTile&, const Block&,
                  Lines*) = nullptr;  ///< weights ← exp2(score − m); m, l, alpha; asks, or not
  void (*accumulate[3])(const RowTile&, const Stage&) = {};           ///< o ← alpha·o + weights·V, block by block
  bool (*nonfinite[3])(const Block&, Index value_dim) = {};           ///< any NaN or infinity in V of [first, last)?
  void (*merge)(const RowTile& into, const RowTile& from) = nullptr;  ///< state `into` ← into, then from
  void (*store)(const RowTile&, const OutputTarget&) = nullptr;       ///< out ← o / l; lse ← m + log l
  Index (*staging_bytes)(Index rows, Index head_dim, Index value_dim) = nullptr;
  Index weight_rows = 1;      ///< what state_rows(rows) is rounded up to for weights
  Index l_stride = 1;         ///< see RowTile
  Index o_multiple = kLanes;  ///< what o_stride is a multiple of
  /// Up to so many rows, keys and values of an element type are streamed: many blocks a stage.
  struct StreamRows {
    Index prefetched = 0;
    Index followed = 0;
    constexpr Index of(Streaming streaming) const noexcept {
      return streaming == Streaming::prefetched ? prefetched : followed;
    }
  };
  StreamRows stream_rows[3] = {};
  void (*enter)() = nullptr;  ///< before and after a task, where the path has state of the thread to set up; or null
  void (*leave)() = nullptr;
};

}  // namespace gqa::detail
