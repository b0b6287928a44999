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

/// What a worker's last task has left for its next one, where both are parts of one split sequence.
struct LeftBehind {
  const SequencePlan* plan = nullptr;  ///< that sequence's; or null
  Index head_group = 0;                ///< whose packed queries are in the slot
  Index next_part = 0;                 ///< whose first keys have been asked for, if `asked`
  bool asked = false;
};

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

/// The state of a span of a split sequence, at its place in the partials.
inline RowTile partial_state(const CallPlan& call, const SequencePlan& plan, const RowTile& like, Index head_group,
                             Index span) noexcept {
  RowTile state = like;
  const std::size_t bytes = state_bytes(like, plan.heads, plan.rows);
  Carver carver(call.partials + plan.partial + static_cast<std::size_t>(head_group * plan.spans + span) * bytes);
  carve_state(carver, state, plan.heads, plan.rows);
  return state;
}

/// One task: its inputs, its place in the plan, its scratch.
class Task {
 public:
  Task(const CallPlan& call, const Sequence& sequence, const SequencePlan& plan, const TaskRange& range,
       const TaskScratch& scratch, bool packed = false, bool asked = false)
      : call_(call),
        sequence_(sequence),
        plan_(plan),
        kernels_(*plan.kernels),
        range_(range),
        scratch_(scratch),
        addresses_(sequence.kv, scratch.tables, plan.stage_blocks),
        asked_(asked) {
    scratch_.tile.rows = scratch_.total.rows = range.rows;
    streams_ = plan.heads == 1 && plan.stage_blocks > 1 && addresses_.follows();
    scratch_.tile.score_scale = scratch_.total.score_scale =
        call.variant.transform == nullptr ? call.scale * kLog2E : call.scale;
    scratch_.tile.scored = scratch_.total.scored = call.variant.transform != nullptr;
    if (call.variant.transform != nullptr) transform_ = call.variant.transform(kernels_);
    mark_ranges();
    for (Index j = 0; j < range.heads && !packed; ++j) {
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

  /// Computes the state of every span of the task's hull and merges them in ascending order. The result is `total()`.
  void run() {
    const Index first = range_.hull.begin / kSpan;
    run_spans(first, 1);
    for (Index span = first + 1; span * kSpan < range_.hull.end; ++span) {
      run_spans(span, 1);
      merge(scratch_.total, scratch_.tile);
    }
  }

  /// Where the state of a span is: of a split sequence, among the partials; else that of the first one is the total, the others take
  /// turns.
  RowTile state_of(Index span) const noexcept {
    if (plan_.spans > 0)
      return partial_state(call_, plan_, scratch_.tile, range_.first_head / plan_.heads, span - plan_.first_span);
    return span == range_.hull.begin / kSpan ? scratch_.total : scratch_.tile;
  }

  /// The states of `count` spans, each from its own tokens alone.
  void run_spans(Index first, Index count) {
    for (Index span = first; span < first + count; ++span) {
      const RowTile state = state_of(span);
      for (Index j = 0; j < range_.heads; ++j) kernels_.begin(head_tile(state, j));
    }
    Index begin = first * kSpan;
    Index end = begin + count * kSpan;
    if (begin < range_.hull.begin) begin = range_.hull.begin / kBlock * kBlock;
    if (end > range_.hull.end) end = range_.hull.end;
    const Index step = (streams_ || range_.heads > 1 ? plan_.stage_blocks : 1) * kBlock;
    for (; begin < end; begin += step) run_stage(begin, begin + step < end ? begin + step : end);
  }

  /// The state of the tokens of `into`, then those of `from`.
  void merge(const RowTile& into, const RowTile& from) const {
    for (Index j = 0; j < range_.heads; ++j) kernels_.merge(head_tile(into, j), head_tile(from, j));
  }

  void store(const RowTile& state) const {
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
      kernels_.store(head_tile(state, j), target);
    }
  }

  const RowTile& total() const noexcept { return scratch_.total; }

  /// Whether the first keys behind the last stage have been asked for.
  bool asked() const noexcept { return asked_; }

 private:
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
  bool streams_ = false;  // see Stage
  bool asked_;            // the first `ahead` keys of the next stage
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
  const Index parts = plan.spans > 0 ? plan.parts : plan.tiles;
  const Index head_group = local / parts;
  const Index part = local % parts;

  Carver carver(slot);
  TaskScratch scratch = carve_task(carver, plan, call.shape);
  TaskRange range;
  range.first_head = head_group * plan.heads;
  range.heads =
      call.shape.kv_heads - range.first_head < plan.heads ? call.shape.kv_heads - range.first_head : plan.heads;

  if (plan.spans == 0) {
    left = {};
    const Index tile = plan.tiles - 1 - part;  // under a causal mask the last tile is the longest: start with it
    range.first_row = tile * plan.tile_rows;
    range.rows = plan.rows - range.first_row < plan.tile_rows ? plan.rows - range.first_row : plan.tile_rows;
    range.hull = visible_hull(call.variant, sequence, range.first_row / call.group,
                              (range.first_row + range.rows - 1) / call.group + 1);
    Task task(call, sequence, plan, range, scratch);
    task.run();
    task.store(task.total());
    return;
  }

  range.rows = plan.rows;
  range.hull = visible_hull(call.variant, sequence, 0, sequence.q.tokens);
  const bool packed = left.plan == &plan && left.head_group == head_group;
  Task task(call, sequence, plan, range, scratch, packed, packed && left.next_part == part && left.asked);
  const Index first = part * plan.part_spans;
  const Index count = plan.spans - first < plan.part_spans ? plan.spans - first : plan.part_spans;
  task.run_spans(plan.first_span + first, count);
  left = {&plan, head_group, part + 1, task.asked()};
  // Whoever finishes last merges; the order of merging is that of the sequence, whoever it is.
  if (call.counters[plan.counter + head_group].fetch_add(1, std::memory_order_acq_rel) + 1 != plan.parts) return;
  const RowTile total = task.state_of(plan.first_span);
  for (Index span = 1; span < plan.spans; ++span) task.merge(total, task.state_of(plan.first_span + span));
  task.store(total);
}

}  // namespace gqa::detail::inline GQA_ABI
