// SPDX-License-Identifier: Apache-2.0
/// @file
/// The one task loop. Decode, verify, chunk and prefill, contiguous, ring and paged, every type and variant go through it.
#pragma once

#include "gqa/detail/asking.hpp"
#include "gqa/detail/float_environment.hpp"
#include "gqa/detail/plan.hpp"

namespace gqa::detail {

/// The part of a sequence that one task computes: rows [first_row, first_row + rows) of KV heads [first_head, first_head + heads)
/// over the positions in `hull`.
struct TaskRange {
  Index first_row = 0;
  Index rows = 0;
  Index first_head = 0;
  Index heads = 0;
  PositionRange hull;
};

/// What a worker's last task has left for its next one.
struct LeftBehind {
  const SequencePlan* plan = nullptr;  ///< the sequence's, for which the slot is carved as `scratch` says; or null
  TaskScratch scratch;
  Index head_group = -1;  ///< whose packed queries are in the slot; or none
  Index next_part = 0;    ///< the one behind the last task's
  bool asked = false;     ///< its first keys have been asked for
  bool merged = false;    ///< the states of all spans before it are merged
};

/// What was done for a task before it begins.
struct DoneBefore {
  bool packed = false;  ///< the queries
  bool asked = false;   ///< the first keys asked for
  bool merged = false;  ///< the states of all spans before the task's, if there are any, are in the total
};

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

/// One task: its inputs, its place in the plan, its scratch.
class Task {
 public:
  Task(const CallPlan& call, const Sequence& sequence, const SequencePlan& plan, const TaskRange& range,
       const TaskScratch& scratch, const DoneBefore& before)
      : call_(call),
        sequence_(sequence),
        plan_(plan),
        kernels_(*plan.kernels),
        range_(range),
        scratch_(scratch),
        addresses_(sequence.kv, scratch.tables, plan.stage_blocks),
        first_span_(range.hull.begin / kSpan),
        in_order_(before.merged),
        asked_(before.asked) {
    scratch_.tile.rows = scratch_.total.rows = range.rows;
    if (plan.parts > 1) scratch_.total = partial(0);
    streams_ = plan.heads == 1 && plan.stage_blocks > 1 && addresses_.follows();
    scratch_.tile.score_scale = scratch_.total.score_scale =
        call.variant.transform == nullptr ? call.scale * kLog2E : call.scale;
    scratch_.tile.scored = scratch_.total.scored = call.variant.transform != nullptr;
    if (call.variant.transform != nullptr) transform_ = call.variant.transform(kernels_);
    mark_ranges();
    for (Index j = 0; j < range.heads && !before.packed; ++j) {
      QuerySource source;
      const Index bytes = element_bytes(sequence.q.type);
      source.data = static_cast<const std::byte*>(sequence.q.data) +
                    (range.first_head + j) * call.group * sequence.q.strides.head * bytes;
      source.type = sequence.q.type;
      source.token_stride = sequence.q.strides.token * bytes;
      source.head_stride = sequence.q.strides.head * bytes;
      source.dim_stride = sequence.q.strides.dim;
      source.group = call.group;
      source.first_row = range.first_row;
      kernels_.pack(head_tile(scratch_.tile, j), source);
    }
  }

  /// The states of `count` spans, each from its own tokens alone. Where all before them are in the total, each goes there as soon as it is
  /// complete, and its place is free for the next one; else they stay among the partials.
  void run_spans(Index first, Index count) {
    begin_span(open_ = first);
    Index begin = first * kSpan;
    Index end = begin + count * kSpan;
    if (begin < range_.hull.begin) begin = range_.hull.begin / kBlock * kBlock;
    if (end > range_.hull.end) end = range_.hull.end;
    const Index step = (streams_ || range_.heads > 1 ? plan_.stage_blocks : 1) * kBlock;
    for (; begin < end; begin += step) run_stage(begin, begin + step < end ? begin + step : end);
    go_on_to(first + count - 1);
    end_span(open_);
  }

  /// Adds the spans [from, to), counted from the sequence's first, which are among the partials, to the total.
  void merge_partials(Index from, Index to) const {
    for (; from < to; ++from) merge(partial(from));
  }

  /// Stores the total.
  void store() const {
    for (Index j = 0; j < range_.heads; ++j) {
      OutputTarget target;
      const TensorView& out = sequence_.out;
      const Index first_head = (range_.first_head + j) * call_.group;
      const Index bytes = element_bytes(out.type);
      target.data = static_cast<std::byte*>(out.data) + first_head * out.strides.head * bytes;
      target.type = out.type;
      target.token_stride = out.strides.token * bytes;
      target.head_stride = out.strides.head * bytes;
      target.dim_stride = out.strides.dim;
      target.group = call_.group;
      target.first_row = range_.first_row;
      if (!sequence_.lse.empty()) {
        target.lse = sequence_.lse.data() + first_head;
        target.lse_token_stride = call_.shape.query_heads;
      }
      kernels_.store(head_tile(scratch_.total, j), target);
    }
  }

  /// Whether the first keys behind the last stage have been asked for.
  bool asked() const noexcept { return asked_; }

 private:
  /// The state of a span, counted from the sequence's first, at its place among the partials.
  RowTile partial(Index span) const noexcept {
    RowTile state = scratch_.tile;
    const std::size_t bytes = state_bytes(state, plan_.heads, plan_.rows);
    const Index group = range_.first_head / plan_.heads;
    Carver carver(call_.partials + plan_.partial + static_cast<std::size_t>(group * plan_.spans + span) * bytes);
    carve_state(carver, state, plan_.heads, plan_.rows);
    return state;
  }

  /// Where the state of a span is. In order, that of the first is the total, the others take turns.
  RowTile state_of(Index span) const noexcept {
    if (!in_order_) return partial(span - first_span_);
    return span == first_span_ ? scratch_.total : scratch_.tile;
  }
  void begin_span(Index span) const {
    const RowTile state = state_of(span);
    for (Index j = 0; j < range_.heads; ++j) kernels_.begin(head_tile(state, j));
  }
  void end_span(Index span) const {
    if (in_order_ && span > first_span_) merge(scratch_.tile);
  }
  /// The spans before this one are complete.
  void go_on_to(Index span) {
    while (open_ < span) {
      end_span(open_);
      begin_span(++open_);
    }
  }
  /// The state of the total's tokens, then those of `from`.
  void merge(const RowTile& from) const {
    for (Index j = 0; j < range_.heads; ++j) kernels_.merge(head_tile(scratch_.total, j), head_tile(from, j));
  }

  /// What each row sees; the rows of a query token, the same.
  void mark_ranges() {
    PositionRange covered;
    for (Index row = 0; row < range_.rows;) {
      const Index token = RowPlace(range_.first_row + row, call_.group).token;
      const Index last = (token + 1) * call_.group - range_.first_row;
      const Index position = query_position(sequence_, token);
      const PositionRange seen = visible_range(call_.variant, position, sequence_.kv.length);
      // Rows far apart may leave positions between them that no row sees.
      if (seen.begin < seen.end) {
        gaps_ = gaps_ || (covered.end > 0 && (seen.begin > covered.end || seen.end < covered.begin));
        if (covered.end == 0 || seen.begin < covered.begin) covered.begin = seen.begin;
        if (seen.end > covered.end) covered.end = seen.end;
      }
      if (row == 0 || seen.begin > latest_begin_) latest_begin_ = seen.begin;
      if (row == 0 || seen.end < earliest_end_) earliest_end_ = seen.end;
      for (; row < last && row < range_.rows; ++row) {
        scratch_.row_begin[row] = seen.begin;
        scratch_.row_end[row] = seen.end;
        scratch_.row_position[row] = position;
      }
    }
  }

  /// The part of the block at `begin` that the task's rows see.
  BlockAddress address(Index begin) {
    const Index first = range_.hull.begin - begin;
    const Index last = range_.hull.end - begin;
    const std::uint64_t hull = bit_range(first < 0 ? 0 : first, last > kBlock ? kBlock : last);
    return addresses_.block(begin, gaps_ ? hull & seen_by_any(begin) : hull);
  }

  /// The tokens of the block at `begin` that lie in a row's range.
  std::uint64_t row_range(Index row, Index begin) const noexcept {
    const Index first = scratch_.row_begin[row] - begin;
    const Index last = scratch_.row_end[row] - begin;
    return bit_range(first < 0 ? 0 : first, last > kBlock ? kBlock : last);
  }
  std::uint64_t seen_by_any(Index begin) const noexcept {
    std::uint64_t seen = 0;
    for (Index row = 0; row < range_.rows; ++row) seen |= row_range(row, begin);
    return seen;
  }

  const std::byte* k_rows(const BlockAddress& at, Index head) const noexcept {
    return static_cast<const std::byte*>(sequence_.kv.k) + at.k_base + head * addresses_.k_strides().head;
  }
  const std::byte* v_rows(const BlockAddress& at, Index head) const noexcept {
    return static_cast<const std::byte*>(sequence_.kv.v) + at.v_base + head * addresses_.v_strides().head;
  }

  /// The blocks in [begin, end): scores → variant → online softmax → accumulate, for each KV head of the task.
  void run_stage(Index begin, Index end) {
    Stage stage;
    stage.units = scratch_.units;
    stage.heads = range_.heads;
    stage.k_head_stride = addresses_.k_strides().head;
    stage.v_head_stride = addresses_.v_strides().head;
    stage.k_row_bytes = sequence_.kv.head_dim * element_bytes(sequence_.kv.k_type);
    stage.v_row_bytes = sequence_.kv.value_dim * element_bytes(sequence_.kv.v_type);
    stage.streams = streams_;
    stage.streaming = call_.streaming;
    const bool hops = addresses_.hops(call_.streaming);
    stage.asks =
        call_.streaming == Streaming::prefetched && !hops && (range_.heads == 1 || addresses_.dense(range_.heads));
    stage.prefetch = !stage.asks && (!streams_ || hops);
    stage.weight_floats = unit_weights(kernels_, range_.rows);
    stage.alpha_floats = round_up(range_.rows, kLanes);
    set_distances(stage, range_.rows, kernels_.short_turn(sequence_.kv.head_dim));
    const bool asks = asks_between(stage);
    Lines keys(stage, &Block::k, stage.k_row_bytes, asked_ ? kFewPlanLines : kPlanLines);
    for (; begin < end; begin += kBlock) {
      const BlockAddress here = address(begin);
      if (here.first >= here.last) continue;
      add_block(here, stage.blocks++);
      if (!asks) continue;
      if (asked_ && stage.blocks == 1) keys.skip(stage.ahead);
      ask_lines(keys.take(), keys.count());
    }
    if (stage.blocks == 0) return;
    if (asks) stage.k_surplus = asked_ ? keys.tokens() : keys.tokens() - stage.ahead;
    asked_ = link_blocks(stage, end < range_.hull.end ? address(end) : BlockAddress{});
    const Upcoming after = stage.units[(stage.blocks - 1) * stage.heads].next_k;
    kernels_.scores[static_cast<std::size_t>(sequence_.kv.k_type)](scratch_.tile, stage);
    for (Index b = 0; b < stage.blocks;) {  // span by span: each has a state of its own
      const Index span = stage.units[b * stage.heads].begin / kSpan;
      Stage part = stage;
      part.units += b * stage.heads;
      part.blocks = 0;
      while (b + part.blocks < stage.blocks && stage.units[(b + part.blocks) * stage.heads].begin / kSpan == span)
        ++part.blocks;
      part.after = b + part.blocks < stage.blocks ? values_of(stage, b + part.blocks) : after;
      go_on_to(span);
      RowTile tile = state_of(span);
      tile.weights = scratch_.tile.weights + b * stage.heads * stage.weight_floats;
      tile.alpha = scratch_.tile.alpha + b * stage.heads * stage.alpha_floats;
      add_to_state(tile, part, asks);
      b += part.blocks;
    }
  }

  /// Whether lines are asked for while a stage is planned, and during its softmax: memory need not be idle then.
  bool asks_between(const Stage& stage) const noexcept {
    if (!stage.asks || stage.heads == 1) return stage.asks && streams_;
    return range_.rows < kGroupRows && addresses_.k_strides().head == stage.k_row_bytes &&
           addresses_.v_strides().head == stage.v_row_bytes;
  }
  void add_to_state(const RowTile& tile, Stage& stage, bool asks) {
    Lines values(stage, &Block::v, stage.v_row_bytes, softmax_lines(stage.heads * range_.rows));
    if (asks) values.skip(stage.ahead);
    for (Index b = 0; b < stage.blocks; ++b) {
      for (Index j = 0; j < stage.heads; ++j) {
        const Block& block = stage.units[b * stage.heads + j];
        const RowTile unit = unit_tile(tile, stage, b, j);
        if (transform_ != nullptr)
          transform_(unit, block, call_.variant.variant, scratch_.row_position, mark_heads(range_.first_head + j),
                     block.begin);
        kernels_.softmax(unit, block, asks ? &values : nullptr);
      }
    }
    if (asks) stage.v_surplus = values.tokens();
    kernels_.accumulate[static_cast<std::size_t>(sequence_.kv.v_type)](tile, stage);
  }

  // As many lines as come while a block is planned: 32 KiB in all, or the first ones are gone from the first-level cache again.
  static constexpr Index kPlanLines = 16;
  static constexpr Index kFewPlanLines = 12;  // behind those that were asked for before
  /// The same for a row's softmax: the fewer rows, the more for each.
  static Index softmax_lines(Index rows) noexcept { return rows == 1 ? 32 : rows == 2 ? 20 : Lines::kUsual; }
  static void ask_lines(const std::byte* first, Index count) noexcept {
    asm volatile("");  // or a compiler may find that nothing comes of it, and leave the calls out
    for (Index line = 0; first != nullptr && line < count; ++line)
      __builtin_prefetch(first + line * Lines::kBytes, 0, 3);
  }

  /// The units of block number b of a stage.
  void add_block(const BlockAddress& here, Index b) {
    const bool whole = here.last - here.first == kBlock && latest_begin_ <= here.begin &&
                       earliest_end_ >= here.begin + kBlock && call_.variant.refine == nullptr;
    bool rows_differ = false;
    const std::uint64_t* visible = nullptr;
    for (Index j = 0; j < range_.heads; ++j) {
      const Index head = range_.first_head + j;
      Block& block = *::new (scratch_.units + b * range_.heads + j) Block;
      block.begin = here.begin;
      block.k = k_rows(here, head);
      block.v = v_rows(here, head);
      block.k_offset = here.k_offset;
      block.v_offset = here.v_offset;
      block.k_stride = here.uniform ? addresses_.k_strides().token : 0;
      block.v_stride = here.uniform ? addresses_.v_strides().token : 0;
      block.first = here.first;
      block.last = here.last;
      if (!whole && (j == 0 || call_.variant.refine != nullptr)) {
        std::uint64_t* const bits = scratch_.visible + (b * range_.heads + j) * range_.rows;
        rows_differ = mark_visible(bits, here.begin, head, bit_range(here.first, here.last));
        visible = bits;
      }
      block.visible = visible;
      block.careful = rows_differ &&
                      kernels_.nonfinite[static_cast<std::size_t>(sequence_.kv.v_type)](block, call_.shape.value_dim);
    }
  }

  /// Tells the last units where their heads go on, `after` being the block behind the stage: kernels prefetch it. False if there is none.
  bool link_blocks(const Stage& stage, const BlockAddress& after) {
    if (after.first >= after.last) return false;
    const Index stride = after.uniform ? addresses_.k_strides().token : 0;
    for (Index j = 0; j < stage.heads; ++j) {
      const std::byte* const rows = k_rows(after, range_.first_head + j);
      scratch_.units[(stage.blocks - 1) * stage.heads + j].next_k = {
          rows, after.k_offset, after.first, after.last, stage.k_head_stride, stage.k_row_bytes, stride};
    }
    return true;
  }

  /// Which tokens of the block each row sees. True if that is not simply `all` for every row.
  bool mark_visible(std::uint64_t* visible, Index block_begin, Index kv_head, std::uint64_t all) const {
    bool differ = false;
    for (Index row = 0; row < range_.rows; ++row) {
      std::uint64_t bits = row_range(row, block_begin) & all;
      if (call_.variant.refine != nullptr)
        bits = call_.variant.refine(call_.variant.variant, bits, scratch_.row_position[row], query_head(kv_head, row),
                                    block_begin);
      visible[row] = bits;
      differ |= bits != all;
    }
    return differ;
  }

  Index query_head(Index kv_head, Index row) const noexcept {
    return kv_head * call_.group + RowPlace(range_.first_row + row, call_.group).head;
  }

  const Index* mark_heads(Index kv_head) const {
    for (Index row = 0; row < range_.rows; ++row) scratch_.row_head[row] = query_head(kv_head, row);
    return scratch_.row_head;
  }

  const CallPlan& call_;
  const Sequence& sequence_;
  const SequencePlan& plan_;
  const Kernels& kernels_;
  const TaskRange range_;
  TaskScratch scratch_;
  AddressBook addresses_;
  VariantRef::Transform transform_ = nullptr;
  bool streams_ = false;    // see Stage
  const Index first_span_;  // of the sequence; where tiles take all spans, of the tile
  const bool in_order_;     // all spans before the task's are in the total
  Index open_ = 0;          // the span that is being computed
  bool asked_;              // the first `ahead` keys of the next stage
  Index latest_begin_ = 0;
  Index earliest_end_ = 0;
  bool gaps_ = false;  // positions in the hull that may be in no row's range
};

/// The thread as the kernels need it, for the length of a task.
class ThreadSetup {
 public:
  explicit ThreadSetup(const Kernels& kernels) noexcept : kernels_(kernels) {
    if (kernels_.enter != nullptr) kernels_.enter();
  }
  ~ThreadSetup() {
    if (kernels_.leave != nullptr) kernels_.leave();
  }
  ThreadSetup(const ThreadSetup&) = delete;
  ThreadSetup& operator=(const ThreadSetup&) = delete;

 private:
  const FloatEnvironment environment_;
  const Kernels& kernels_;
};

/// Runs task number `index` of a call in a slot of scratch. `left` is what the task before left there.
inline void run_task(const CallPlan& call, Index index, std::byte* slot, LeftBehind& left) {
  Index low = 0;  // the last sequence whose first task is not after `index`, skipping those without tasks
  for (Index high = static_cast<Index>(call.batch.size()) - 1; low < high;) {
    const Index middle = (low + high + 1) / 2;
    if (call.sequences[middle].first_task <= index) low = middle;
    else high = middle - 1;
  }
  const Sequence& sequence = call.batch[static_cast<std::size_t>(low)];
  const SequencePlan& plan = call.sequences[low];
  const ThreadSetup setup(*plan.kernels);
  const Index local = index - plan.first_task;
  const bool tiled = plan.tiles > 1;  // else the spans are cut
  const Index parts = tiled ? plan.tiles : plan.parts;
  const Index head_group = local / parts;
  const Index part = local % parts;
  if (left.plan != &plan) {
    Carver carver(slot);
    left = {&plan, carve_task(carver, plan, call.shape)};
  }

  TaskRange range;
  range.first_head = head_group * plan.heads;
  range.heads =
      call.shape.kv_heads - range.first_head < plan.heads ? call.shape.kv_heads - range.first_head : plan.heads;
  if (tiled) {
    const Index tile = plan.tiles - 1 - part;  // under a causal mask the last tile is the longest: start with it
    range.first_row = tile * plan.tile_rows;
    range.rows = plan.rows - range.first_row < plan.tile_rows ? plan.rows - range.first_row : plan.tile_rows;
    range.hull = visible_hull(call.variant, sequence, range.first_row / call.group,
                              (range.first_row + range.rows - 1) / call.group + 1);
    Task task(call, sequence, plan, range, left.scratch, {.merged = true});
    task.run_spans(range.hull.begin / kSpan, spans_of(range.hull));
    task.store();
    return;
  }

  range.rows = plan.rows;
  range.hull = visible_hull(call.variant, sequence, 0, sequence.q.tokens);
  DoneBefore before;
  before.packed = left.head_group == head_group;
  const bool follows = before.packed && left.next_part == part;
  before.asked = follows && left.asked;
  before.merged = part == 0 || (follows && left.merged);
  Task task(call, sequence, plan, range, left.scratch, before);
  const Index first = part * plan.part_spans;
  const Index count = plan.spans - first < plan.part_spans ? plan.spans - first : plan.part_spans;
  task.run_spans(plan.first_span + first, count);
  left.head_group = head_group;
  left.next_part = part + 1;
  left.asked = task.asked();
  left.merged = before.merged;
  if (plan.parts > 1) {
    // Whoever finishes last merges what is left; the order of merging is that of the sequence, whoever it is.
    Progress& progress = call.progress[plan.progress + head_group];
    if (before.merged) progress.merged = first + count;
    if (progress.parts.fetch_add(1, std::memory_order_acq_rel) + 1 != plan.parts) return;
    task.merge_partials(progress.merged, plan.spans);
  }
  task.store();
}

}  // namespace gqa::detail::inline GQA_ABI
