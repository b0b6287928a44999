// SPDX-License-Identifier: Apache-2.0
/// @file
/// Sequences × KV heads × query tiles → folds of spans. The cut follows lengths and strides only, never threads.
#pragma once

#include "gqa/detail/check.hpp"
#include "gqa/detail/prefetch.hpp"
#include "gqa/detail/rotated_calls.hpp"

namespace gqa::detail {

/// Everything a worker needs besides inputs, totals and deposits, carved out of its slot of scratch.
struct TaskScratch {
  Block* units = nullptr;                   ///< of a stage
  QueryTile tile{};                         ///< the state of the current span
  Index* tables = nullptr;                  ///< AddressBook
  StageScales* scales = nullptr;            ///< per block of a stage, if they lie outside of rows
  PositionRange* ranges = nullptr;          ///< per row: what it sees, VariantRef::ranges of them
  PositionRange* visible_ranges = nullptr;  ///< what any row sees: as many as those of all rows
  VariantRows* variant_rows = nullptr;      ///< per head, if the variant asks for them; what they refer to follows
  RowContext* row_context = nullptr;        ///< per head and row
  float* constants = nullptr;               ///< per head, constant and row
  RowLookup* lookups = nullptr;             ///< per head, lookup and row
  std::uint64_t* visible = nullptr;         ///< per unit and row
  float* outputs = nullptr;                 ///< of a head's rows, if the variant changes them
  OutputChange* changes = nullptr;          ///< by row, likewise
  float* rotated = nullptr;         ///< the tile's queries of a head, or an output, where keys or values are rotated
  RowRun* queue = nullptr;          ///< Prefetcher
  std::byte* kept_state = nullptr;  ///< HiddenValues: of tiles of few rows, else null
  std::size_t state_bytes = 0;
};

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

static_assert(kPartTokens == kBlock, "a block lies in one part");

/// Room for the state of `rows` rows of each of `heads` KV heads; l_stride, has_divisor and o_stride are there.
inline void carve_state(Carver& carver, QueryTile& tile, Index heads, Index rows) noexcept {
  tile.m = carver.take<float>(heads * state_rows(rows));
  tile.l = carver.take<float>(heads * state_rows(rows) * tile.l_stride);
  if (tile.has_divisor) tile.divisor = carver.take<float>(heads * state_rows(rows));
  tile.o = carver.take<float>(heads * rows * tile.o_stride);
}

inline std::size_t state_bytes(QueryTile like, Index heads, Index rows) noexcept {
  Carver carver(nullptr);
  carve_state(carver, like, heads, rows);
  return carver.used();
}

/// Strides of the state, as the kernels want them.
inline void set_strides(QueryTile& tile, const Kernels& kernels, Index value_dim) noexcept {
  tile.l_stride = kernels.l_stride;
  tile.has_divisor = kernels.has_divisor;
  tile.o_stride = round_up(value_dim, kernels.o_multiple);
}

/// Floats of one unit's weights.
inline Index unit_weights(const Kernels& kernels, Index rows) noexcept {
  return round_up(state_rows(rows), kernels.weight_rows) * kBlock;
}

/// Room for the work on folds of a sequence.
inline TaskScratch carve_task(Carver& carver, const CallPlan& call, const SequencePlan& plan) noexcept {
  const HeadShape& shape = call.shape;
  TaskScratch scratch{};
  QueryTile& tile = scratch.tile;
  const Kernels& kernels = *plan.kernels;
  const Index heads = plan.heads;
  const Index rows = plan.tile_rows;
  const Index units = plan.stage_blocks * heads;
  const Index ranges = rows * call.variant.ranges;
  tile.rows = rows;
  tile.head_dim = shape.head_dim;
  tile.value_dim = shape.value_dim;
  tile.q_stride = round_up(shape.head_dim, 2 * kLanes);
  set_strides(tile, kernels, shape.value_dim);
  tile.q = carver.take<float>(heads * round_up(rows, kLanes) * tile.q_stride);
  tile.weights = carver.take<float>(units * unit_weights(kernels, rows));
  tile.alpha = carver.take<float>(units * round_up(rows, kLanes));
  scratch.units = carver.take<Block>(units);
  scratch.tables = carver.take<Index>(AddressBook::table_size(plan.stage_blocks));
  scratch.scales = carver.take<StageScales>(plan.scale_blocks);
  scratch.ranges = carver.take<PositionRange>(ranges);
  scratch.visible_ranges = carver.take<PositionRange>(ranges);
  if (call.variant.asks_of_rows()) {
    scratch.variant_rows = carver.take<VariantRows>(heads);
    scratch.row_context = carver.take<RowContext>(heads * rows);
    scratch.constants = carver.take<float>(heads * call.variant.constants * round_up(rows, kLanes));
    scratch.lookups = carver.take<RowLookup>(heads * call.variant.lookups * round_up(rows, kLanes));
  }
  if (call.variant.change_output != nullptr) {
    scratch.outputs = carver.take<float>(rows * round_up(shape.value_dim, kLanes));
    scratch.changes = carver.take<OutputChange>(rows);
  }
  scratch.rotated = carver.take<float>(plan.rotated_floats);
  scratch.visible = carver.take<std::uint64_t>(units * rows);
  tile.staging = carver.take<std::byte>(kernels.staging_bytes(rows, shape.head_dim, shape.value_dim));
  carve_state(carver, tile, heads, rows);
  scratch.queue = carver.take<RowRun>(Prefetcher::room(plan.stage_blocks));
  scratch.state_bytes = state_bytes(tile, heads, rows);
  if (rows < kPanelRows) scratch.kept_state = carver.take<std::byte>(static_cast<Index>(scratch.state_bytes));
  return scratch;
}

/// What reads a part's keys, and its values.
inline const CodecKernels& key_kernels(const Kernels& kernels, const KvCacheView& part) noexcept {
  return kernels.of(part.k_type, part.k_scales.dim);
}
inline const CodecKernels& value_kernels(const Kernels& kernels, const KvCacheView& part) noexcept {
  return kernels.of(part.v_type, part.v_scales.dim);
}

/// KV heads that a task takes side by side. Where the heads of a token are adjacent in memory, walking one head alone would read
/// a few hundred bytes of every token's few thousand; so several go together: as many as fit in a tile, and in the second-level
/// cache with a block of their keys and values. Where they take a few tokens in turn, and there are spans enough for many tasks, more
/// go together, for long runs. It changes no bit.
inline Index heads_per_task(const KvCacheView& kv, const CodecKernels& keys, Index rows, Index spans) noexcept {
  constexpr Index many = 8;
  const bool in_turn = keys.stream_rows.followed > 0 && rows < kPanelRows;
  const Index block_bytes = Index{1} << (in_turn && spans >= many ? 20 : 17);
  if (magnitude(kv.k_strides.head) >= magnitude(kv.k_strides.token)) return 1;
  const Index by_rows = kTileRows / (rows > 0 ? rows : 1);
  const Index by_bytes = block_bytes / (kBlock * kv.k_type.row_bytes(kv.head_dim));
  const Index fit = by_rows < by_bytes ? by_rows : by_bytes;
  return fit < 1 ? 1 : fit < kv.kv_heads ? fit : kv.kv_heads;
}

/// The part of a sequence that holds most positions.
inline const KvCacheView& longest_part(const KvCacheView& kv) noexcept {
  Index longest = kv.earlier_count;
  const auto tokens = [&](Index i) { return kv.part(i).length - kv.begin_of_part(i); };
  for (Index i = 0; i < kv.earlier_count; ++i)
    if (tokens(i) > tokens(longest)) longest = i;
  return kv.part(longest);
}

/// Blocks of a stage over a part. Many where few rows are streamed through memory, some where heads lie side by side, one where the work is worth
/// more than the reading.
[[gnu::noinline]] inline Index stage_blocks_of(const CallPlan& call, const SequencePlan& plan,
                                               const KvCacheView& part) noexcept {
  const Index of_keys = key_kernels(*plan.kernels, part).stream_rows.of(call.streaming);
  const Index of_values = value_kernels(*plan.kernels, part).stream_rows.of(call.streaming);
  const Index most = of_keys < of_values ? of_keys : of_values;
  const bool streams = plan.heads == 1 && plan.tile_rows <= most;
  const bool few = plan.heads > 1 && plan.rows < kPanelRows && most > 0 && call.streaming == Streaming::prefetched;
  return streams ? kStageBlocks : few ? side_blocks(plan.heads * plan.rows) : 1;
}

/// How many spans a range lies in; one at least.
constexpr Index spans_of(const PositionRange& range) noexcept {
  return range.begin < range.end ? (range.end - 1) / kSpan + 1 - range.begin / kSpan : 1;
}

/// The hull of what the first query tokens of a sequence and the last ones see, a tile's of each. Where positions rise that is what all see; else
/// the plan is a little worse.
inline PositionRange sampled_hull(const CallPlan& call, const Sequence& sequence) {
  const Index tokens = sequence.q.tokens;
  if (tokens <= 2 * kTileRows) return visible_hull(call.variant, sequence, 0, tokens);
  const PositionRange first = visible_hull(call.variant, sequence, 0, kTileRows);
  const PositionRange last = visible_hull(call.variant, sequence, tokens - kTileRows, tokens);
  if (first.begin == first.end) return last;
  if (last.begin == last.end) return first;
  return {first.begin < last.begin ? first.begin : last.begin, first.end > last.end ? first.end : last.end};
}

inline SequencePlan plan_sequence(const CallPlan& call, const Sequence& sequence, Products products) {
  SequencePlan plan;
  const HeadShape& shape = call.shape;
  const KvCacheView& kv = sequence.kv;
  plan.kernels = &call.kernels_for(call.path, bf16_terms(sequence.q.type, kv, products));
  for (Index i = 0; i <= kv.earlier_count; ++i)
    if (!plan.kernels->supports(kv.part(i).k_type, kv.part(i).v_type))
      fail_unsupported(call.batch, sequence, i, plan.kernels->compiled);
  plan.rows = sequence.q.tokens * (shape.query_heads / shape.kv_heads);
  if (plan.rows == 0) return plan;
  plan.tile_rows = plan.rows < kTileRows ? plan.rows : kTileRows;
  plan.tiles = (plan.rows + plan.tile_rows - 1) / plan.tile_rows;
  plan.spans = spans_of(sampled_hull(call, sequence));
  // By what the cache holds, not by the hull: a tile may see more than the tokens that were sampled.
  plan.has_super_spans = kv.first_position() / kSuperSpan < (kv.length - 1) / kSuperSpan;
  const KvCacheView& longest = longest_part(kv);
  plan.heads = heads_per_task(longest, key_kernels(*plan.kernels, longest), plan.rows, plan.spans);
  plan.head_groups = (shape.kv_heads + plan.heads - 1) / plan.heads;
  bool scales = false;
  for (Index i = 0; i <= kv.earlier_count; ++i) {
    const Index blocks = stage_blocks_of(call, plan, kv.part(i));
    if (blocks > plan.stage_blocks) plan.stage_blocks = blocks;
    scales = scales || has_scales(kv.part(i));
  }
  plan.folds = plan.head_groups * plan.tiles;
  plan.scale_blocks = scales ? plan.stage_blocks : 0;
  plan.rotated_floats = rotated_floats(kv, plan.tile_rows);
  return plan;
}

/// Nanoseconds that a sequence's spans take, roughly: 20 elements of keys and values a nanosecond where rows are few, and fewer the more
/// rows there are. It decides how many threads are worth waking, and no bit.
inline double estimated_time(const CallPlan& call, const SequencePlan& plan, const Sequence& sequence) noexcept {
  const Index seen = plan.spans * kSpan < sequence.kv.length ? plan.spans * kSpan : sequence.kv.length;
  const auto elements = static_cast<double>(seen) * static_cast<double>(call.shape.head_dim + call.shape.value_dim);
  const auto heads = static_cast<double>(call.shape.kv_heads);
  return elements * heads * (0.04 * static_cast<double>(plan.tiles) + 0.006 * static_cast<double>(plan.rows));
}

/// What a worker should have to do at least, in nanoseconds: waking a thread takes about as long. Tests, whose calls are small, change it.
inline Atomic<Index>& time_worth_a_worker() noexcept {
  static Atomic<Index> nanoseconds(2000);
  return nanoseconds;
}

/// Workers of a call of so many pieces of work, which take so many nanoseconds.
inline Index workers_for(Index concurrency, Index pieces, double time) noexcept {
  const Index workers = concurrency < pieces ? concurrency : pieces;
  const double worth = time / static_cast<double>(time_worth_a_worker().load(__ATOMIC_RELAXED));
  const Index worthy = worth < static_cast<double>(workers) ? static_cast<Index>(worth) : workers;
  if (worthy >= 1) return worthy;
  return pieces > 0 ? 1 : 0;  // whatever the executor says now: the call has been checked
}

/// Deposits of a worker: enough that nobody has to leave a fold to others because one of them is slow; no more than there are spans, or
/// bits in WorkerShare::deposits.
inline Index deposits_of_worker(Index spans, Index workers, std::size_t bytes) noexcept {
  if (workers == 1) return 0;
  constexpr std::size_t usual = std::size_t{1} << 20;
  const Index fit = bytes == 0 ? 0 : static_cast<Index>(usual / bytes);
  const Index wanted = fit < kStageSpans ? kStageSpans : fit < 64 ? fit : 64;
  const Index share = (spans + workers - 1) / workers;
  return share < wanted ? share : wanted;
}

/// A call has no more spans in its folds, and no part of its scratch more bytes.
inline constexpr Index kMostOfAll = Index{1} << 40;

inline Index limited(const Checked& total, const CallPlan& call, std::size_t i, const char* member, Index given) {
  if (!total.at_most(kMostOfAll))
    fail(ArgumentName{static_cast<Index>(i), call.batch.size() > 1}(member), given,
         "one with which the call has at most 2^40 spans");
  return total.value();
}

/// Workers of so many bytes each, of an executor that runs so many tasks at the same time.
inline void check_workers(Index concurrency, Index workers, const Checked& bytes) {
  if (!(bytes * workers).at_most(kMostOfAll))
    fail("options.executor.concurrency()", concurrency, "so many that their scratch is at most 2^40 bytes");
}

/// Counts a call's folds, and fills in the plans of its sequences where there is room for them. Returns the sizes of scratch.
inline ScratchSizes plan_batch(CallPlan& call, const Options& options) {
  ScratchSizes sizes;
  const std::span<const Sequence> batch = call.batch;
  SequencePlan* const plans = call.sequences;
  sizes.sequences = static_cast<Index>(batch.size());
  SequencePlan plan;
  call.folds = 0;
  call.spans = 0;
  double time = 0.0;
  Index most_spans = 1;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    plan = plan_sequence(call, batch[i], options.products);
    plan.first_fold = call.folds;
    plan.first_span = call.spans;
    if (plan.folds > 0) {
      call.folds += plan.folds;
      call.spans = limited(Checked(plan.folds) * plan.spans + call.spans, call, i, "q.tokens", batch[i].q.tokens);
      time += estimated_time(call, plan, batch[i]);
      QueryTile state{};
      set_strides(state, *plan.kernels, call.shape.value_dim);
      const std::size_t bytes = state_bytes(state, plan.heads, plan.tile_rows);
      const std::size_t of_total = plan.has_super_spans ? 2 * bytes : bytes;
      if (of_total > sizes.total_bytes) sizes.total_bytes = of_total;
      if (plan.spans > 1 && bytes > sizes.deposit_bytes) sizes.deposit_bytes = bytes;
      if (plan.spans > most_spans) most_spans = plan.spans;
      Carver carver(nullptr);
      carve_task(carver, call, plan);
      if (carver.used() > sizes.slot_bytes) sizes.slot_bytes = carver.used();
    }
    if (plans != nullptr) plans[i] = plan;
  }
  const Index concurrency = options.executor.concurrency();
  sizes.workers = workers_for(concurrency, call.spans, time);
  if (sizes.workers > 1 && most_spans > 1) {
    sizes.deposit_bytes += kScratchAlignment;  // of the Deposit itself
    sizes.worker_deposits = deposits_of_worker(call.spans, sizes.workers, sizes.deposit_bytes);
  }
  const Checked bytes = Checked(static_cast<Index>(sizes.deposit_bytes)) * sizes.worker_deposits +
                        static_cast<Index>(sizes.slot_bytes + sizes.total_bytes);
  check_workers(concurrency, sizes.workers, bytes);
  return sizes;
}

/// Lays the call's scratch out from `carver`, or only measures it.
inline void carve_call(Carver& carver, const ScratchSizes& sizes, CallPlan& plan) noexcept {
  const auto bytes = [&](std::size_t each, Index count) {
    return carver.take<std::byte>(static_cast<Index>(each) * count);
  };
  plan.sequences = carver.take<SequencePlan>(sizes.sequences);
  plan.shares = carver.take<WorkerShare>(sizes.workers);
  plan.progress = carver.take<FoldProgress>(sizes.workers);
  plan.totals = bytes(sizes.total_bytes, sizes.workers);
  plan.deposits = bytes(sizes.deposit_bytes, sizes.worker_deposits * sizes.workers);
  plan.slots = bytes(sizes.slot_bytes, sizes.workers);
  plan.total_bytes = sizes.total_bytes;
  plan.deposit_bytes = sizes.deposit_bytes;
  plan.worker_deposits = sizes.worker_deposits;
  plan.slot_bytes = sizes.slot_bytes;
  plan.workers = sizes.workers;
}

}  // namespace gqa::detail::inline GQA_ABI
