// SPDX-License-Identifier: Apache-2.0
/// @file
/// The one task loop. Decode, verify, chunk and prefill, contiguous, ring and paged, every type and variant go through it.
#pragma once

#include "gqa/detail/asking.hpp"
#include "gqa/detail/row_ranges.hpp"
#include "gqa/detail/thread_setup.hpp"

namespace gqa::detail {

/// What a worker is at: rows [first_row, first_row + rows) of KV heads [first_head, first_head + heads), over the positions in `hull`.
struct TaskRange {
  Index first_row = 0;
  Index rows = 0;
  Index first_head = 0;
  Index heads = 0;
  PositionRange hull{};
};

/// Spans [first, first + count) of a fold, which a worker computes.
struct Claim {
  Index first = 0;
  Index count = 0;
  bool in_order = false;  ///< all spans before them are in the total, which nobody else has: they are added to it
  Deposit* deposits[kStageSpans] = {};  ///< else where their states go
};

GQA_ALWAYS_INLINE std::byte* deposit_state(Deposit* deposit) noexcept {
  return reinterpret_cast<std::byte*>(deposit) + kScratchAlignment;
}

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

/// What one worker needs for the folds of a sequence, one after the other: their inputs, their place in the plan, its scratch. What a fold
/// finds as the last one left it is not done again.
class SequenceTasks {
 public:
  SequenceTasks(const CallPlan& call, const Sequence& sequence, const SequencePlan& plan, std::byte* slot)
      : setup_(*plan.kernels),
        call_(call),
        sequence_(sequence),
        plan_(plan),
        kernels_(*plan.kernels),
        scratch_(carve(call, plan, slot)),
        addresses_(sequence.kv, scratch_.tables, plan.stage_blocks),
        rows_(call, scratch_) {
    streams_ = plan.heads == 1 && plan.stage_blocks > 1 && addresses_.follows();
    const VariantRef& variant = call.variant;
    scratch_.tile.scored = variant.softmax != nullptr;
    scratch_.tile.score_scale = scratch_.tile.scored ? call.scale : call.scale * kLog2E;
    softmax_ = scratch_.tile.scored ? variant.softmax(kernels_) : kernels_.softmax;
    if (variant.visible != nullptr) visible_ = variant.visible(kernels_);
    if (variant.asks_of_rows()) scratch_.tile.variant_rows = scratch_.variant_rows;
    total_ = scratch_.tile;
  }
  SequenceTasks(const SequenceTasks&) = delete;
  SequenceTasks& operator=(const SequenceTasks&) = delete;

  /// Whether fold number `fold` of the call is one of the sequence's.
  bool has(Index fold) const noexcept { return fold >= plan_.first_fold && fold < plan_.first_fold + plan_.folds; }

  /// What the plan takes a fold's spans to be; a tile may see more or less than that.
  Index planned_spans() const noexcept { return plan_.spans; }

  /// Goes on to a fold, whose total is number `total`. Returns how many spans it has.
  Index enter(Index fold, Index total) {
    Index head_group = fold - plan_.first_fold;
    Index tile = 0;
    if (plan_.tiles > 1) {
      tile = plan_.tiles - 1 - head_group % plan_.tiles;  // under a causal mask the last is the longest
      head_group /= plan_.tiles;
    }
    if (tile != tile_) take_rows(tile);
    if (packed_ && (tile != tile_ || head_group != head_group_)) packed_ = false;
    tile_ = tile;
    head_group_ = head_group;
    range_.first_head = head_group * plan_.heads;
    const Index heads = call_.shape.kv_heads - range_.first_head;
    range_.heads = heads < plan_.heads ? heads : plan_.heads;
    next_span_ = -1;
    Carver carver(call_.totals + static_cast<std::size_t>(total) * call_.total_bytes);
    place_state(carver, total_);
    return spans_of(range_.hull);
  }

  /// The states of the claimed spans, each from its own tokens alone, into the total or the deposits.
  void run(const Claim& claim) {
    if (!packed_) pack();
    claim_ = &claim;
    asked_ = asked_ && claim.first == next_span_;
    next_span_ = claim.first + claim.count;
    span_ = -1;
    if (claim.in_order && claim.first == 0) begin(total_);
    for (Index i = 0; i < claim.count && !claim.in_order; ++i) begin(deposited(claim.deposits[i]));
    Index at = (first_span_ + claim.first) * kSpan;
    Index end = at + claim.count * kSpan;
    if (at < range_.hull.begin) at = range_.hull.begin / kBlock * kBlock;
    if (end > range_.hull.end) end = range_.hull.end;
    const Index step = (streams_ || range_.heads > 1 ? plan_.stage_blocks : 1) * kBlock;
    while (at < end && (at = rows_.next_block(at)) < end) {
      run_stage(at, at + step < end ? at + step : end);
      at += step;
    }
    end_span();
  }

  /// The total's tokens, then those of a deposit. The first span's is what a total begins with, where nobody computed that span in order.
  void merge(Deposit* deposit) const {
    if (deposit->span == 0) begin(total_);
    merge(deposited(deposit));
  }

  /// Stores the total.
  void store() const {
    const bool wants_lse = !sequence_.lse.empty();
    if (call_.variant.sink == nullptr) return store(true, wants_lse);
    const bool before = wants_lse && !call_.variant.sink_in_lse;
    if (before) store(false, true);
    add_sinks();
    store(true, wants_lse && !before);
  }

 private:
  static TaskScratch carve(const CallPlan& call, const SequencePlan& plan, std::byte* slot) noexcept {
    Carver carver(slot);
    return carve_task(carver, call, plan);
  }

  /// Goes on to other rows.
  void take_rows(Index tile) {
    range_.first_row = tile * plan_.tile_rows;
    const Index rows = plan_.rows - range_.first_row;
    range_.rows = scratch_.tile.rows = total_.rows = rows < plan_.tile_rows ? rows : plan_.tile_rows;
    range_.hull = rows_.mark(call_, sequence_, range_.first_row, range_.rows);
    first_span_ = range_.hull.begin / kSpan;
  }

  /// Packs the queries of the heads, and what the variant is told and says of them.
  void pack() {
    packed_ = true;
    if (call_.variant.asks_of_rows()) tell_variant();
    for (Index j = 0; j < range_.heads; ++j)
      kernels_.pack(head_tile(scratch_.tile, j), rows_in(sequence_.q, range_.first_head + j));
  }

  void store(bool outputs, bool lse) const {
    for (Index j = 0; j < range_.heads; ++j) {
      OutputTarget target;
      const TensorView& out = sequence_.out;
      const Index first_head = (range_.first_head + j) * call_.group;
      const Index bytes = element_bytes(out.type);
      if (outputs) target.data = static_cast<std::byte*>(out.data) + first_head * out.strides.head * bytes;
      target.type = out.type;
      target.token_stride = out.strides.token * bytes;
      target.head_stride = out.strides.head * bytes;
      target.dim_stride = out.strides.dim;
      target.group = call_.group;
      target.first_row = range_.first_row;
      if (lse) {
        target.lse = sequence_.lse.data() + first_head;
        target.lse_token_stride = call_.shape.query_heads;
      }
      kernels_.store(head_tile(total_, j), target);
    }
  }

  RowContext context_of(Index kv_head, Index row) const noexcept {
    const RowPlace at(range_.first_row + row, call_.group);
    return {query_context(call_.variant, sequence_, at.token), kv_head * call_.group + at.head};
  }

  /// VariantRows of the heads.
  void tell_variant() {
    const VariantRef& variant = call_.variant;
    const Index stride = round_up(plan_.tile_rows, kLanes);
    for (Index j = 0; j < range_.heads; ++j) {
      RowContext* const contexts = scratch_.row_context + j * plan_.tile_rows;
      float* const constants = scratch_.constants + j * variant.constants * stride;
      RowLookup* const lookups = scratch_.lookups + j * variant.lookups * stride;
      ::new (scratch_.variant_rows + j) VariantRows{variant.variant, contexts, constants, lookups, stride};
      for (Index row = 0; row < range_.rows; ++row) {
        ::new (contexts + row) RowContext(context_of(range_.first_head + j, row));
        if (variant.put_trees != nullptr)
          variant.put_trees(variant.variant, contexts[row], {constants + row, lookups + row, stride});
      }
      for (Index i = 0; i < variant.constants; ++i)  // lanes without a row
        for (Index row = range_.rows; row < stride; ++row) constants[i * stride + row] = 0.0f;
    }
  }

  /// A sink is the state (sink, 1, 0) of one more token.
  void add_sinks() const {
    const RowTile& state = scratch_.tile;
    begin(state);
    for (Index j = 0; j < range_.heads; ++j) {
      const RowTile of_head = head_tile(state, j);
      for (Index row = 0; row < range_.rows; ++row) {
        const float sink = kLog2E * call_.variant.sink(call_.variant.variant, context_of(range_.first_head + j, row));
        const bool none = sink < -0x1.fffffep127f;  // -infinity
        of_head.m[row] = sink;
        of_head.l[row * of_head.l_stride] = none ? 0.0f : 1.0f;
        if (of_head.has_divisor) of_head.divisor[row] = none ? 0.0f : 1.0f;
      }
    }
    merge(state);
  }

  /// The task's rows of queries, or of outputs, in a KV head.
  template <class View>
  QuerySource rows_in(const View& view, Index head) const noexcept {
    QuerySource rows;
    const Index bytes = element_bytes(view.type);
    rows.type = view.type;
    rows.token_stride = view.strides.token * bytes;
    rows.head_stride = view.strides.head * bytes;
    rows.dim_stride = view.strides.dim;
    rows.group = call_.group;
    rows.first_row = range_.first_row;
    rows.data = static_cast<const std::byte*>(view.data) + head * call_.group * rows.head_stride;
    return rows;
  }

  /// Lays a state of the fold's heads and rows out.
  void place_state(Carver& carver, RowTile& state) const noexcept {
    carve_state(carver, state, plan_.heads, plan_.tile_rows);
  }
  RowTile deposited(Deposit* deposit) const noexcept {
    RowTile state = scratch_.tile;
    Carver carver(deposit_state(deposit));
    place_state(carver, state);
    return state;
  }
  void begin(const RowTile& state) const {
    for (Index j = 0; j < range_.heads; ++j) kernels_.begin(head_tile(state, j));
  }
  /// The state of the total's tokens, then those of `from`.
  void merge(const RowTile& from) const {
    for (Index j = 0; j < range_.heads; ++j) kernels_.merge(head_tile(total_, j), head_tile(from, j));
  }

  /// Where the state of a claimed span is computed. In order, that of the first span is the total, the others take turns.
  RowTile state_of(Index span) const noexcept {
    if (!claim_->in_order) return deposited(claim_->deposits[span - claim_->first]);
    return span == 0 ? total_ : scratch_.tile;
  }
  /// The spans before this one are complete. Those of which no row sees anything are never come to: their states would change nothing.
  void go_on_to(Index span) {
    if (span == span_) return;
    end_span();
    span_ = span;
    if (claim_->in_order && span > 0) begin(scratch_.tile);
  }
  void end_span() const {
    if (claim_->in_order && span_ > 0) merge(scratch_.tile);
  }

  /// The part of the block at `begin` that lies in the rows' ranges.
  BlockAddress address(Index begin) { return addresses_.block(begin, rows_.of_any(begin)); }

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
    Lines keys(stage, &Block::k, stage.k_row_bytes, plan_lines(end - begin, stage.k_row_bytes, asked_));
    for (; begin < end; begin += kBlock) {
      const BlockAddress here = addresses_.block(begin, seen_in(begin, stage.blocks));
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
      const Index span = span_of(stage, b);
      Stage part = stage;
      part.units += b * stage.heads;
      part.blocks = 0;
      while (b + part.blocks < stage.blocks && span_of(stage, b + part.blocks) == span) ++part.blocks;
      part.after = b + part.blocks < stage.blocks ? values_of(stage, b + part.blocks) : after;
      go_on_to(span);
      RowTile tile = state_of(span);
      tile.weights = scratch_.tile.weights + b * stage.heads * stage.weight_floats;
      tile.alpha = scratch_.tile.alpha + b * stage.heads * stage.alpha_floats;
      b += part.blocks;
      if (b == stage.blocks && end == range_.hull.end) ask_ends();
      add_to_state(tile, part, asks);
    }
  }

  /// Asks for what comes behind the last values: where outputs go, and the next heads' queries.
  void ask_ends() const {
    const Index next = range_.first_head + range_.heads;
    for (Index head = range_.first_head; head < next; ++head)
      rows_in(sequence_.out, head).ask<1, 3>(0, range_.rows, sequence_.out.dim);
    if (plan_.tiles > 1) return;  // its next task has other rows
    for (Index head = next; head < next + plan_.heads && head < call_.shape.kv_heads; ++head)
      rows_in(sequence_.q, head).ask<0, 3>(0, range_.rows, sequence_.q.dim);
  }

  Index span_of(const Stage& stage, Index b) const noexcept {
    return stage.units[b * stage.heads].begin / kSpan - first_span_;
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
        softmax_(unit, block, asks ? &values : nullptr);
      }
    }
    if (asks) stage.v_surplus = values.tokens();
    kernels_.accumulate[static_cast<std::size_t>(sequence_.kv.v_type)](tile, stage);
  }

  /// As many lines as come while a block is planned, behind those that were asked for before, or if none were, of few blocks more, for
  /// scores to begin with; no more than 32 KiB in all, or the first ones are gone from the first-level cache again.
  static Index plan_lines(Index tokens, Index row_bytes, bool asked) noexcept {
    const Index blocks = (tokens + kBlock - 1) / kBlock;
    const Index most = ((Index{32} << 10) - (asked ? Stream::kAhead : 0)) / Lines::kBytes / blocks;
    const Index usual = asked ? 12 : 16;
    const Index bytes = tokens * row_bytes < Stream::kAhead ? tokens * row_bytes : Stream::kAhead;
    const Index first = bytes / Lines::kBytes / blocks;
    const Index wanted = asked || first < usual ? usual : first;
    return wanted < most ? wanted : most;
  }
  /// The same for a row's softmax: the fewer rows, the more for each.
  static Index softmax_lines(Index rows) noexcept { return rows == 1 ? 32 : rows == 2 ? 20 : Lines::kUsual; }
  static void ask_lines(const std::byte* first, Index count) noexcept {
    asm volatile("");  // or a compiler may find that nothing comes of it, and leave the calls out
    for (Index line = 0; first != nullptr && line < count; ++line)
      __builtin_prefetch(first + line * Lines::kBytes, 0, 3);
  }

  /// The units of block number b of a stage.
  void add_block(const BlockAddress& here, Index b) {
    const bool whole = here.last - here.first == kBlock && rows_.whole(here.begin) && !call_.variant.masks();
    bool rows_differ = false;
    const std::uint64_t* visible = nullptr;
    for (Index j = 0; j < range_.heads; ++j) {
      const Index head = range_.first_head + j;
      Block& block = *::new (scratch_.units + b * range_.heads + j) Block{};
      block.begin = here.begin;
      block.k = k_rows(here, head);
      block.v = v_rows(here, head);
      block.k_offset = here.k_offset;
      block.v_offset = here.v_offset;
      block.k_stride = here.uniform ? addresses_.k_strides().token : 0;
      block.v_stride = here.uniform ? addresses_.v_strides().token : 0;
      block.first = here.first;
      block.last = here.last;
      if (!whole && (j == 0 || call_.variant.masks())) {
        visible = visible_of(b, j);
        rows_differ = mark_visible(visible_of(b, j), here.begin, bit_range(here.first, here.last));
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

  /// Per row, of unit j of block b of the stage.
  std::uint64_t* visible_of(Index b, Index j) const noexcept {
    return scratch_.visible + (b * range_.heads + j) * range_.rows;
  }
  /// The tokens of the block at `begin`, which would be the stage's block b, from the first that any row sees to the last, without those in no
  /// row's range. A variant that refines ranges is asked here, once a pair.
  std::uint64_t seen_in(Index begin, Index b) const {
    const std::uint64_t in_ranges = rows_.of_any(begin);
    if (!call_.variant.masks() || in_ranges == 0) return in_ranges;
    std::uint64_t seen = 0;
    for (Index j = 0; j < range_.heads; ++j) {
      for (Index row = 0; row < range_.rows; ++row) {
        std::uint64_t& bits = visible_of(b, j)[row];
        const std::uint64_t candidates = rows_.of(row, begin);
        bits = candidates == 0 ? 0 : refined(scratch_.variant_rows[j], row, begin, candidates);
        seen |= bits;
      }
    }
    if (seen == 0) return 0;
    return in_ranges & bit_range(__builtin_ctzll(seen), kBlock - __builtin_clzll(seen));
  }
  /// Those of the candidates, one at least, that the variant's masks let a row see.
  std::uint64_t refined(const VariantRows& rows, Index row, Index begin, std::uint64_t candidates) const {
    if (call_.variant.refine != nullptr) candidates = call_.variant.refine(rows, row, begin, candidates);
    return visible_ == nullptr || candidates == 0 ? candidates : visible_(rows, row, begin, candidates);
  }
  /// Which tokens of the block each row sees. True if that is not simply `all` for every row.
  bool mark_visible(std::uint64_t* visible, Index block_begin, std::uint64_t all) const noexcept {
    bool differ = false;
    for (Index row = 0; row < range_.rows; ++row) {
      if (!call_.variant.masks()) visible[row] = rows_.of(row, block_begin) & all;
      differ |= visible[row] != all;
    }
    return differ;
  }

  const ThreadSetup setup_;
  const CallPlan& call_;
  const Sequence& sequence_;
  const SequencePlan& plan_;
  const Kernels& kernels_;
  TaskScratch scratch_{};
  AddressBook addresses_;
  RowRanges rows_;
  RowTile total_{};  // of the fold
  SoftmaxKernel softmax_ = nullptr;
  VariantRef::Refine visible_ = nullptr;  // the mask that is an expression
  bool streams_ = false;                  // see Stage
  TaskRange range_{};
  Index first_span_ = 0;  // that is seen; spans are counted from it on
  // How far the worker is:
  Index tile_ = -1;  // whose rows are marked
  Index head_group_ = -1;
  bool packed_ = false;  // their queries are
  const Claim* claim_ = nullptr;
  Index next_span_ = -1;  // behind the last claim of the fold
  Index span_ = -1;       // that is being computed; or none
  bool asked_ = false;    // the first `ahead` keys of the next stage have been asked for
};

}  // namespace gqa::detail::inline GQA_ABI
