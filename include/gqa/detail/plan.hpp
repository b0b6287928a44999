// SPDX-License-Identifier: Apache-2.0
/// @file
/// Sequences × KV heads × query tiles × spans → tasks. The cut follows lengths and strides only, never threads.
#pragma once

#include "gqa/detail/check.hpp"

namespace gqa::detail {

/// Everything a task needs besides its inputs, carved out of one slot of scratch (and, if split, out of the partials).
struct TaskScratch {
  Block* units = nullptr;      ///< of a stage
  RowTile tile;                ///< the state of the current span
  RowTile total;               ///< the state of the spans before it
  Index* tables = nullptr;     ///< AddressBook
  Index* row_begin = nullptr;  ///< per row: what it sees
  Index* row_end = nullptr;
  Index* row_position = nullptr;     ///< per row
  Index* row_head = nullptr;         ///< per row, for the heads of one KV head
  std::uint64_t* visible = nullptr;  ///< per unit and row
};

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

/// Room for the state of `rows` rows of each of `heads` KV heads; l_stride and o_stride are there.
inline void carve_state(Carver& carver, RowTile& tile, Index heads, Index rows) noexcept {
  tile.m = carver.take<float>(heads * state_rows(rows));
  tile.l = carver.take<float>(heads * state_rows(rows) * tile.l_stride);
  tile.o = carver.take<float>(heads * rows * tile.o_stride);
}

inline std::size_t state_bytes(RowTile like, Index heads, Index rows) noexcept {
  Carver carver(nullptr);
  carve_state(carver, like, heads, rows);
  return carver.used();
}

/// Strides of the state, as the kernels want them.
inline void set_strides(RowTile& tile, const Kernels& kernels, Index value_dim) noexcept {
  tile.l_stride = kernels.l_stride;
  tile.o_stride = round_up(value_dim, kernels.o_multiple);
}

/// Floats of one unit's weights.
inline Index unit_weights(const Kernels& kernels, Index rows) noexcept {
  return round_up(state_rows(rows), kernels.weight_rows) * kBlock;
}

/// Room for a task of a sequence.
inline TaskScratch carve_task(Carver& carver, const SequencePlan& plan, const HeadShape& shape) noexcept {
  TaskScratch scratch{};
  RowTile& tile = scratch.tile;
  const Kernels& kernels = *plan.kernels;
  const Index heads = plan.heads;
  const Index rows = plan.tile_rows;
  const Index units = plan.stage_blocks * heads;
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
  scratch.row_begin = carver.take<Index>(rows);
  scratch.row_end = carver.take<Index>(rows);
  scratch.row_position = carver.take<Index>(rows);
  scratch.row_head = carver.take<Index>(rows);
  scratch.visible = carver.take<std::uint64_t>(units * rows);
  tile.staging = carver.take<std::byte>(kernels.staging_bytes(rows, shape.head_dim, shape.value_dim));
  scratch.total = tile;
  carve_state(carver, tile, heads, rows);
  carve_state(carver, scratch.total, heads, rows);
  return scratch;
}

/// KV heads that a task takes side by side. Where the heads of a token are adjacent in memory, walking one head alone would read
/// a few hundred bytes of every token's few thousand; so several go together: as many as fit in a tile, and in the second-level
/// cache with a block of their keys and values. Where they take a few tokens in turn, and there are spans enough for many tasks, more
/// go together, for long runs. It changes no bit.
inline Index heads_per_task(const KvCacheView& kv, const Kernels& kernels, Index rows, Index spans) noexcept {
  constexpr Index many = 8;
  const bool in_turn = kernels.stream_rows[static_cast<int>(kv.k_type)].followed > 0 && rows < kGroupRows;
  const Index block_bytes = Index{1} << (in_turn && spans >= many ? 20 : 17);
  const auto magnitude = [](Index stride) { return stride < 0 ? -stride : stride; };
  if (magnitude(kv.k_strides.head) >= magnitude(kv.k_strides.token)) return 1;
  const Index by_rows = kTileRows / (rows > 0 ? rows : 1);
  const Index by_bytes = block_bytes / (kBlock * kv.head_dim * element_bytes(kv.k_type));
  const Index fit = by_rows < by_bytes ? by_rows : by_bytes;
  return fit < 1 ? 1 : fit < kv.kv_heads ? fit : kv.kv_heads;
}

/// How many spans a range lies in; one at least.
constexpr Index spans_of(const PositionRange& range) noexcept {
  return range.begin < range.end ? (range.end - 1) / kSpan + 1 - range.begin / kSpan : 1;
}

/// As how many bf16 numbers a call takes one of its inputs, see kernels_for.
constexpr int bf16_terms(ElementType q, ElementType k, ElementType v, Products products) noexcept {
  if (q == ElementType::bf16 && k == ElementType::bf16 && v == ElementType::bf16) return 1;
  return products == Products::bf16 ? 1 : products == Products::bf16_terms ? 2 : 0;
}

inline SequencePlan plan_sequence(const CallPlan& call, const Sequence& sequence, Products products) {
  SequencePlan plan;
  const HeadShape& shape = call.shape;
  plan.kernels =
      &call.kernels_for(call.path, bf16_terms(sequence.q.type, sequence.kv.k_type, sequence.kv.v_type, products));
  plan.rows = sequence.q.tokens * (shape.query_heads / shape.kv_heads);
  if (plan.rows == 0) return plan;
  plan.tile_rows = plan.rows < kTileRows ? plan.rows : kTileRows;
  plan.tiles = (plan.rows + plan.tile_rows - 1) / plan.tile_rows;
  if (plan.tiles == 1) plan.spans = spans_of(visible_hull(call.variant, sequence, 0, sequence.q.tokens));
  plan.heads = heads_per_task(sequence.kv, *plan.kernels, plan.rows, plan.spans);
  plan.head_groups = (shape.kv_heads + plan.heads - 1) / plan.heads;
  // Many where few rows are streamed through memory, some where heads lie side by side, one where the work is worth more than the reading.
  const auto stream_rows = [&](ElementType type) {
    return plan.kernels->stream_rows[static_cast<int>(type)].of(call.streaming);
  };
  const Index of_keys = stream_rows(sequence.kv.k_type);
  const Index of_values = stream_rows(sequence.kv.v_type);
  const Index most = of_keys < of_values ? of_keys : of_values;
  const bool streams = plan.heads == 1 && plan.tile_rows <= most;
  const bool few = plan.heads > 1 && plan.rows < kGroupRows && most > 0 && call.streaming == Streaming::prefetched;
  plan.stage_blocks = streams ? kStageBlocks : few ? side_blocks(plan.heads * plan.rows) : 1;
  plan.task_count = plan.head_groups * plan.tiles * plan.spans;
  return plan;
}

/// Counts a call's tasks, and fills in the plans of its sequences where there is room for them. Returns the sizes of scratch.
inline ScratchSizes plan_batch(CallPlan& call, const Options& options) {
  ScratchSizes sizes;
  const std::span<const Sequence> batch = call.batch;
  SequencePlan* const plans = call.sequences;
  sizes.sequences = static_cast<Index>(batch.size());
  SequencePlan plan;
  call.task_count = 0;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    plan = plan_sequence(call, batch[i], options.products);
    plan.first_task = call.task_count;
    call.task_count += plan.task_count;
    if (plan.spans > 1) {
      plan.progress = sizes.progress;
      plan.partial = sizes.partial_bytes;
      sizes.progress += plan.head_groups;
      RowTile strides{};
      set_strides(strides, *plan.kernels, call.shape.value_dim);
      sizes.partial_bytes +=
          state_bytes(strides, plan.heads, plan.rows) * static_cast<std::size_t>(plan.head_groups * plan.spans);
    }
    if (plan.task_count > 0) {
      Carver carver(nullptr);
      carve_task(carver, plan, call.shape);
      if (carver.used() > sizes.slot_bytes) sizes.slot_bytes = carver.used();
    }
    if (plans != nullptr) plans[i] = plan;
  }
  const Index concurrency = options.executor.concurrency();
  const Index most = concurrency > 1 ? concurrency : 1;  // whatever it says now: the call has been checked
  sizes.workers = call.task_count < most ? call.task_count : most;
  return sizes;
}

/// Lays the call's scratch out from `carver`, or only measures it.
inline void carve_call(Carver& carver, const ScratchSizes& sizes, CallPlan& plan) noexcept {
  plan.sequences = carver.take<SequencePlan>(sizes.sequences);
  plan.progress = carver.take<Progress>(sizes.progress);
  plan.partials = carver.take<std::byte>(static_cast<Index>(sizes.partial_bytes));
  plan.queues = carver.take<WorkerTasks>(sizes.workers);
  plan.slots = carver.take<std::byte>(static_cast<Index>(sizes.slot_bytes) * sizes.workers);
  plan.slot_bytes = sizes.slot_bytes;
  plan.workers = sizes.workers;
}

}  // namespace gqa::detail::inline GQA_ABI
