// SPDX-License-Identifier: Apache-2.0
/// @file
/// The one task loop. Decode, verify, chunk and prefill, contiguous, ring and paged, every type and variant go through it.
#pragma once

#include "gqa/detail/fold_total.hpp"
#include "gqa/detail/hidden_values.hpp"
#include "gqa/detail/prefetch.hpp"
#include "gqa/detail/row_ranges.hpp"
#include "gqa/detail/thread_setup.hpp"
#include "gqa/detail/variant_calls.hpp"

namespace gqa::detail {

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
        rows_(call, scratch_),
        values_(call.shape.value_dim, scratch_),
        total_(kernels_, plan) {
    take_part(sequence.kv.earlier_count);
    const VariantRef& variant = call.variant;
    scratch_.tile.scored = variant.softmax != nullptr;
    scratch_.tile.score_scale = scratch_.tile.scored ? call.scale : call.scale * kLog2E;
    softmax_ = scratch_.tile.scored ? variant.softmax(kernels_) : kernels_.softmax;
    if (variant.visible != nullptr) visible_ = variant.visible(kernels_);
    if (variant.asks_of_rows()) scratch_.tile.variant_rows = scratch_.variant_rows;
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
    total_.enter(call_.totals + static_cast<std::size_t>(total) * call_.total_bytes, scratch_.tile, range_.heads,
                 first_span_);
    return spans_of(range_.hull);
  }

  /// The states of the claimed spans, each from its own tokens alone, into the total or the deposits.
  void run(const Claim& claim) {
    claim_ = &claim;
    if (claim.first != next_span_) prefetcher_.restart();
    next_span_ = claim.first + claim.count;
    span_ = -1;
    if (claim.in_order) total_.resume(claim.first);
    for (Index i = 0; i < claim.count && !claim.in_order; ++i) begin(deposited(claim.deposits[i]));
    Index at = (first_span_ + claim.first) * kSpan;
    Index end = at + claim.count * kSpan;
    if (at < range_.hull.begin) at = range_.hull.begin / kBlock * kBlock;
    if (end > range_.hull.end) end = range_.hull.end;
    while (at < end && (at = rows_.next_block(at)) < end) {
      if (sequence_.kv.earlier_count != 0) go_on_to_part(at);
      if (!packed_) pack();
      const Index step = (streams_ || range_.heads > 1 ? stage_blocks_ : 1) * kBlock;
      Index behind = at + step < end ? at + step : end;
      if (behind > part_->length) behind = part_->length;
      run_stage(at, behind);
      at = behind;
    }
    end_span();
    if (claim.in_order) total_.go_on_to(claim.first + claim.count - 1);
  }

  /// Adds a deposit to the total, which has all spans before it.
  void merge(Deposit* deposit) {
    total_.resume(deposit->span);
    total_.go_on_to(deposit->span);
    total_.add(deposited(deposit));
  }

  /// Stores the total, which has all spans.
  void store() const {
    const QueryTile& total = total_.finish(spans_of(range_.hull));
    const bool wants_lse = !sequence_.lse.empty();
    if (call_.variant.sink == nullptr) return store(total, true, wants_lse);
    const bool before = wants_lse && !call_.variant.sink_in_lse;
    if (before) store(total, false, true);
    asked_.add_sinks(total);
    store(total, true, wants_lse && !before);
  }

 private:
  static TaskScratch carve(const CallPlan& call, const SequencePlan& plan, std::byte* slot) noexcept {
    Carver carver(slot);
    return carve_task(carver, call, plan);
  }

  /// Goes on to the part that the block at `begin` lies in.
  void go_on_to_part(Index begin) {
    if (begin < part_begin_ || begin >= part_->length) take_part(sequence_.kv.part_of(begin));
  }
  /// Rows are those of part number `part`.
  [[gnu::noinline]] void take_part(Index part) {
    part_ = &sequence_.kv.part(part);
    part_begin_ = sequence_.kv.begin_of_part(part);
    addresses_ = AddressBook(*part_, scratch_.tables, plan_.stage_blocks);
    const CodecKernels& keys = key_kernels(kernels_, *part_);
    if (keys_ != nullptr && keys.pack != keys_->pack) packed_ = false;
    keys_ = &keys;
    values_.take(value_kernels(kernels_, *part_));
    stage_blocks_ = stage_blocks_of(call_, plan_, *part_);
    streams_ = plan_.heads == 1 && stage_blocks_ > 1 && addresses_.follows();
    runs_ = streams_ && !addresses_.hops(call_.streaming);
    prefetcher_ = Prefetcher(choose_prefetch(prefetch_facts()), scratch_.queue, plan_.stage_blocks);
  }

  /// Goes on to other rows.
  void take_rows(Index tile) {
    range_.first_row = tile * plan_.tile_rows;
    const Index rows = plan_.rows - range_.first_row;
    range_.rows = scratch_.tile.rows = rows < plan_.tile_rows ? rows : plan_.tile_rows;
    range_.hull = rows_.mark(call_, sequence_, range_.first_row, range_.rows);
    first_span_ = range_.hull.begin / kSpan;
  }

  /// Packs the queries of the heads, and what the variant is told and says of them.
  void pack() {
    packed_ = true;
    if (call_.variant.asks_of_rows()) asked_.tell_rows();
    const auto pack_rows = keys_->pack != nullptr ? keys_->pack : kernels_.pack;
    for (Index j = 0; j < range_.heads; ++j) {
      QuerySource queries = rows_in(sequence_.q, range_.first_head + j);
      const Index rotation = sequence_.kv.k_rotation;
      if (rotates(rotation)) queries = rotate_queries(call_, scratch_.tile, queries, rotation, scratch_.rotated);
      pack_rows(head_tile(scratch_.tile, j), queries);
    }
  }

  void store(const QueryTile& total, bool outputs, bool lse) const {
    for (Index j = 0; j < range_.heads; ++j) {
      OutputTarget target{rows_in<std::byte>(sequence_.out, range_.first_head + j)};
      turn_back(sequence_.kv, call_.path, scratch_.rotated, target);
      const bool changed = call_.variant.change_output != nullptr;
      if (outputs && changed) asked_.store_changed(head_tile(total, j), j, target);
      if (!outputs || changed) target.data = nullptr;
      if (lse) {
        target.lse = sequence_.lse.data() + (range_.first_head + j) * call_.group;
        target.lse_token_stride = call_.shape.query_heads;
      }
      kernels_.store(head_tile(total, j), target);
    }
  }

  /// The task's rows of queries, or of outputs, in a KV head.
  template <class Byte = const std::byte, class View>
  TensorRows<Byte> rows_in(const View& view, Index head) const noexcept {
    return rows_of_head<Byte>(view, head, call_.group, range_.first_row);
  }

  QueryTile deposited(Deposit* deposit) const noexcept {
    QueryTile state = scratch_.tile;
    Carver carver(deposit_state(deposit));
    carve_state(carver, state, plan_.heads, plan_.tile_rows);
    return state;
  }
  void begin(const QueryTile& state) const { begin_states(kernels_, state, range_.heads); }

  /// Where the state of a claimed span is computed. In order, the first span's is what the total begins with, the others take turns.
  QueryTile state_of(Index span) const noexcept {
    if (!claim_->in_order) return deposited(claim_->deposits[span - claim_->first]);
    return span == 0 ? total_.first() : scratch_.tile;
  }
  /// The spans before this one are complete. Those of which no row sees anything are never come to: their states would change nothing.
  void go_on_to(Index span) {
    if (span == span_) return;
    end_span();
    span_ = span;
    if (!claim_->in_order) return;
    total_.go_on_to(span);
    if (span > 0) begin(scratch_.tile);
  }
  void end_span() const {
    if (claim_->in_order && span_ > 0) total_.add(scratch_.tile);
  }

  /// The part of the block at `begin` that lies in the rows' ranges.
  BlockAddress address(Index begin) { return addresses_.block(begin, rows_.of_any(begin)); }

  const std::byte* k_rows(const BlockAddress& at, Index head) const noexcept {
    return static_cast<const std::byte*>(part_->k) + at.k_base + head * addresses_.k_strides().head;
  }
  const std::byte* v_rows(const BlockAddress& at, Index head) const noexcept {
    return static_cast<const std::byte*>(part_->v) + at.v_base + head * addresses_.v_strides().head;
  }

  /// The blocks in [begin, end), of one part: scores → variant → online softmax → accumulate, for each KV head of the task.
  void run_stage(Index begin, Index end) {
    const Stage stage = plan_stage(begin, end);
    if (stage.blocks == 0) return;
    keys_->scores(scratch_.tile, stage, prefetcher_);
    for (Index b = 0; b < stage.blocks;) {  // span by span: each has a state of its own
      const Index span = span_of(stage, b);
      Stage part = stage;
      part.units += b * stage.heads;
      part.blocks = 0;
      while (b + part.blocks < stage.blocks && span_of(stage, b + part.blocks) == span) ++part.blocks;
      go_on_to(span);
      QueryTile tile = state_of(span);
      tile.weights = scratch_.tile.weights + b * stage.heads * stage.weight_floats;
      tile.alpha = scratch_.tile.alpha + b * stage.heads * stage.alpha_floats;
      b += part.blocks;
      add_to_state(tile, part);
    }
  }

  /// The blocks in [begin, end) of which a row sees something.
  Stage plan_stage(Index begin, Index end) {
    Stage stage;
    stage.units = scratch_.units;
    stage.heads = range_.heads;
    stage.runs = runs_;
    stage.weight_floats = unit_weights(kernels_, range_.rows);
    stage.alpha_floats = round_up(range_.rows, kLanes);
    prefetcher_.begin_stage(range_.heads, end - begin, k_row_bytes());
    for (; begin < end; begin += kBlock) {
      const std::uint64_t seen = seen_in(begin, stage.blocks);
      const BlockAddress here = addresses_.block(begin, seen);
      if (here.first >= here.last) continue;
      if (plan_.scale_blocks > 0) find_scales(here, seen, stage.blocks);
      add_block(here, stage.blocks++);
      prefetcher_.append(keys_of(here), values_of(here));
    }
    if (stage.blocks == 0) return stage;
    const BlockAddress after = end < range_.hull.end && end < part_->length ? address(end) : BlockAddress{};
    if (after.first < after.last) prefetcher_.append_next(keys_of(after));
    prefetcher_.begin_reading();
    return stage;
  }

  Index span_of(const Stage& stage, Index b) const noexcept {
    return stage.units[b * stage.heads].begin / kSpan - first_span_;
  }

  void add_to_state(const QueryTile& tile, const Stage& stage) {
    for (Index b = 0; b < stage.blocks; ++b) {
      for (Index j = 0; j < stage.heads; ++j) {
        const Block& block = stage.units[b * stage.heads + j];
        const QueryTile unit = unit_tile(tile, stage, b, j);
        softmax_(unit, block, prefetcher_);
      }
    }
    values_.accumulate(tile, stage, prefetcher_);
  }

  Index k_row_bytes() const noexcept { return addresses_.k_row_bytes(); }
  Index v_row_bytes() const noexcept { return addresses_.v_row_bytes(); }

  /// What the part's prefetching is chosen by.
  PrefetchFacts prefetch_facts() const noexcept {
    PrefetchFacts facts{};
    facts.streaming = call_.streaming;
    facts.streams = streams_;
    facts.runs = runs_;
    facts.dense = addresses_.dense(plan_.heads) && !addresses_.hops(call_.streaming);
    facts.packed =
        facts.dense && addresses_.k_strides().head == k_row_bytes() && addresses_.v_strides().head == v_row_bytes();
    facts.heads = plan_.heads;
    facts.rows = plan_.tile_rows;
    facts.row_bytes = k_row_bytes() > v_row_bytes() ? k_row_bytes() : v_row_bytes();
    facts.few_rows_distance = kernels_.few_rows_distance(sequence_.kv.head_dim);
    return facts;
  }
  /// The keys and the values of a block, of all heads of the task.
  RowRun keys_of(const BlockAddress& at) const noexcept {
    return rows_of(at, k_rows(at, range_.first_head), at.k_offset, addresses_.k_strides(), k_row_bytes());
  }
  RowRun values_of(const BlockAddress& at) const noexcept {
    return rows_of(at, v_rows(at, range_.first_head), at.v_offset, addresses_.v_strides(), v_row_bytes());
  }
  RowRun rows_of(const BlockAddress& at, const std::byte* base, const Index* offset, const ByteStrides& strides,
                 Index row_bytes) const noexcept {
    const Index tokens = at.last - at.first;
    const bool even = at.uniform && (range_.heads == 1 || addresses_.dense(range_.heads));
    if (!even) return {base, offset + at.first, tokens, range_.heads, strides.head, row_bytes};
    const Index stride = range_.heads == 1 ? strides.token : strides.head;
    return {base + at.first * strides.token, nullptr, tokens, range_.heads, stride, row_bytes};
  }

  /// The scales of the rows of a block, number b of a stage, where they lie outside of these.
  void find_scales(const BlockAddress& here, std::uint64_t seen, Index b) const {
    call_.coded->find_scales(*part_, here, seen, range_.first_head, range_.heads, scratch_.scales[b]);
  }

  /// The units of block number b of a stage.
  void add_block(const BlockAddress& here, Index b) {
    const std::uint64_t all = bit_range(here.first, here.last);
    const bool masks = call_.variant.masks();
    const bool whole = all == kEveryToken && !masks && rows_.whole(here.begin);
    std::uint64_t hidden = 0;
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
      if (!whole && (j == 0 || masks)) {
        hidden = mark_visible(visible_of(b, j), here.begin, all);
        visible = all == kEveryToken && hidden == 0 ? nullptr : visible_of(b, j);
      }
      block.visible = visible;
      if (plan_.scale_blocks > 0) block.scales = scratch_.scales[b].head + j;
      values_.mark(block, hidden);
    }
  }

  /// Per row, of unit j of block b of the stage.
  std::uint64_t* visible_of(Index b, Index j) const noexcept {
    return scratch_.visible + (b * range_.heads + j) * range_.rows;
  }
  /// The tokens of the block at `begin`, which would be the stage's block b, from the first that any row sees to the last, in whole
  /// sixteens (cut finer, streams would break), without those in no row's range. A variant that refines ranges is asked here, once a pair.
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
    return in_ranges &
           bit_range(__builtin_ctzll(seen) / kLanes * kLanes, round_up(kBlock - __builtin_clzll(seen), kLanes));
  }
  /// Those of the candidates, one at least, that the variant's masks let a row see.
  std::uint64_t refined(const VariantRows& rows, Index row, Index begin, std::uint64_t candidates) const {
    return call_.variant.refined(visible_, rows, row, begin, candidates);
  }
  /// Which tokens of the block each row sees. Returns those of `all` that are hidden from some row.
  std::uint64_t mark_visible(std::uint64_t* visible, Index block_begin, std::uint64_t all) const noexcept {
    std::uint64_t seen_by_all = all;
    for (Index row = 0; row < range_.rows; ++row) {
      if (!call_.variant.masks()) visible[row] = rows_.of(row, block_begin) & all;
      seen_by_all &= visible[row];
    }
    return all & ~seen_by_all;
  }

  const ThreadSetup setup_;
  const CallPlan& call_;
  const Sequence& sequence_;
  const SequencePlan& plan_;
  const Kernels& kernels_;
  TaskScratch scratch_{};
  const KvCacheView* part_ = nullptr;  // that rows are of
  Index part_begin_ = 0;
  const CodecKernels* keys_ = nullptr;  // the part's
  Index stage_blocks_ = 1;              // over it
  AddressBook addresses_{};
  RowRanges rows_;
  HiddenValues values_;
  FoldTotal total_;
  SoftmaxKernel softmax_ = nullptr;
  VariantRef::Refine visible_ = nullptr;  // the mask that is an expression
  bool streams_ = false;                  // few rows over many blocks whose rows follow each other
  bool runs_ = false;                     // see Stage
  Prefetcher prefetcher_{};
  TaskRange range_{};
  const VariantCalls asked_{call_, sequence_, plan_, range_, scratch_};
  Index first_span_ = 0;  // that is seen; spans are counted from it on
  // How far the worker is:
  Index tile_ = -1;  // whose rows are marked
  Index head_group_ = -1;
  bool packed_ = false;  // their queries are
  const Claim* claim_ = nullptr;
  Index next_span_ = -1;  // behind the last claim of the fold
  Index span_ = -1;       // that is being computed; or none
};

}  // namespace gqa::detail::inline GQA_ABI
