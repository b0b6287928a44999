// SPDX-License-Identifier: Apache-2.0
/// @file
/// Sequences × columns × KV heads → units. The cut follows lengths only, never threads.
#pragma once

#include "gqa/detail/backward/check.hpp"
#include "gqa/detail/plan.hpp"

namespace gqa::detail {

/// Everything a worker of the backward pass needs, carved out of its slot of scratch.
struct BackwardScratch {
  BackwardTile tile{};
  TaskScratch asked{};            ///< what RowRanges and VariantCalls use of it
  std::uint64_t* kept = nullptr;  ///< [row]: visible tokens, while rows are taken one by one
  float* kept_d_q = nullptr;      ///< sums, meanwhile
  float* kept_d_k = nullptr;
  float* kept_d_v = nullptr;
};

/// Sizes that scratch follows from.
struct BackwardSizes {
  Index sequences = 0;
  Index units = 0;
  Index workers = 0;
  std::size_t slot_bytes = 0;
};

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

/// Room for a worker's tiles and columns. Words of two elements take half of what is there for them.
inline BackwardScratch carve_backward(Carver& carver, const BackwardCall& backward) noexcept {
  const CallPlan& call = backward.call;
  BackwardScratch scratch{};
  BackwardTile& tile = scratch.tile;
  TaskScratch& asked = scratch.asked;
  constexpr Index rows = kBackwardRows;
  tile.head_dim = call.shape.head_dim;
  tile.value_dim = call.shape.value_dim;
  const Index head = tile.head_width = round_up(tile.head_dim, kLanes);
  const Index value = tile.value_width = round_up(tile.value_dim, kLanes);
  const auto floats = [&](Index count) { return carver.take<float>(count); };
  tile.scores = floats(kBlock * rows);
  tile.d_weights = floats(kBlock * rows);
  tile.q_row_lanes = floats(rows * head);
  tile.q_dim_lanes = floats(rows * head);
  tile.d_out_row_lanes = floats(rows * value);
  tile.d_out_dim_lanes = floats(rows * value);
  tile.d_q = floats(rows * head);
  tile.keys = floats(kColumn * head);
  tile.key_dim_lanes = floats(kColumn * head);
  tile.values = floats(kColumn * value);
  tile.d_k = floats(kColumn * head);
  tile.d_v = floats(kColumn * value);
  tile.q = floats(rows * head);
  tile.d_out = floats(rows * value);
  tile.lse = floats(rows);
  tile.delta = floats(rows);
  if (call.variant.sink != nullptr) tile.sink = floats(rows);
  // Of bf16 pairs; words of one element are written in the place of scores and d_weights.
  tile.weights = floats(kBlock * rows / 2);
  tile.d_scores = floats(kBlock * rows / 2);
  tile.d_score_steps = floats(kBlock * rows / 2);
  if (!backward.lookups.empty()) tile.d_lookups = floats(kBlock * rows);
  scratch.kept = carver.take<std::uint64_t>(rows);
  scratch.kept_d_q = floats(rows * head);
  scratch.kept_d_k = floats(kBlock * head);
  scratch.kept_d_v = floats(kBlock * value);
  asked.units = carver.take<Block>(1);
  asked.tables = carver.take<Index>(AddressBook::table_size(1));
  bool scales = false;
  for (const Sequence& sequence : call.batch)
    for (Index i = 0; i <= sequence.kv.earlier_count; ++i) scales = scales || has_scales(sequence.kv.part(i));
  asked.scales = carver.take<StageScales>(scales ? 1 : 0);
  asked.ranges = carver.take<PositionRange>(rows * call.variant.ranges);
  asked.visible_ranges = carver.take<PositionRange>(rows * call.variant.ranges);
  asked.visible = carver.take<std::uint64_t>(rows);
  if (call.variant.asks_of_rows()) {
    asked.variant_rows = carver.take<VariantRows>(1);
    asked.row_context = carver.take<RowContext>(rows);
    asked.constants = floats(call.variant.constants * rows);
    asked.lookups = carver.take<RowLookup>(call.variant.lookups * rows);
    tile.variant_rows = asked.variant_rows;
  }
  asked.outputs = floats(rows * value);
  if (call.variant.change_output != nullptr) asked.changes = carver.take<OutputChange>(rows);
  tile.scale = call.scale;
  tile.sink_in_lse = call.variant.sink_in_lse;
  return scratch;
}

inline ColumnPlan plan_columns(const BackwardCall& backward, const BackwardRef& functor, std::size_t i,
                               Products products) {
  const Sequence& sequence = backward.call.batch[i];
  ColumnPlan plan;
  plan.bf16 = wants_bf16(sequence, backward.gradients[i], products);
  plan.kernels = &functor.kernels(backward.call.path, plan.bf16);
  for (Index part = 0; part <= sequence.kv.earlier_count; ++part) {
    const KvCacheView& kv = sequence.kv.part(part);
    if (!is_among(plan.kernels->compiled, kv.k_type) || !is_among(plan.kernels->compiled, kv.v_type))
      fail_unsupported(backward.call.batch, sequence, part, plan.kernels->compiled);
  }
  plan.rows = sequence.q.tokens * backward.call.group;
  plan.tiles = (plan.rows + kBackwardRows - 1) / kBackwardRows;
  plan.first_column = sequence.kv.first_position() / kColumn;
  const bool any = stored_positions(sequence.kv) > 0;
  plan.columns = any ? (sequence.kv.length - 1) / kColumn - plan.first_column + 1 : plan.rows > 0 ? 1 : 0;
  return plan;
}

/// Cuts a call into units, and fills in the plans of its sequences where there is room for them. Returns the sizes of scratch.
inline BackwardSizes plan_backward(BackwardCall& backward, const BackwardRef& functor, const BackwardOptions& options) {
  CallPlan& call = backward.call;
  BackwardSizes sizes;
  sizes.sequences = static_cast<Index>(call.batch.size());
  backward.units = 0;
  backward.tiles = 0;
  double time = 0.0;  // nanoseconds, roughly: 16 multiply-adds each
  for (std::size_t i = 0; i < call.batch.size(); ++i) {
    ColumnPlan plan = plan_columns(backward, functor, i, options.products);
    plan.first_unit = backward.units;
    const char* const length = "kv.length";
    const Checked units = Checked(plan.columns) * call.shape.kv_heads;
    backward.units = limited(units + backward.units, call, i, length, call.batch[i].kv.length);
    backward.tiles =
        limited(units * (plan.tiles > 0 ? plan.tiles : 1) + backward.tiles, call, i, length, call.batch[i].kv.length);
    const auto pairs = static_cast<double>(plan.rows) * static_cast<double>(plan.columns * kColumn);
    time += pairs * static_cast<double>(call.shape.kv_heads) *
            static_cast<double>(call.shape.head_dim + call.shape.value_dim) * (2.5 / 16.0);
    if (backward.plans != nullptr) backward.plans[i] = plan;
  }
  sizes.units = backward.units;
  Carver carver(nullptr);
  carve_backward(carver, backward);
  sizes.slot_bytes = carver.used();
  const Index concurrency = options.executor.concurrency();
  sizes.workers = workers_for(concurrency, backward.units, time);
  check_workers(concurrency, sizes.workers, Checked(static_cast<Index>(sizes.slot_bytes)));
  return sizes;
}

inline void carve_backward_call(Carver& carver, const BackwardSizes& sizes, BackwardCall& backward) noexcept {
  backward.plans = carver.take<ColumnPlan>(sizes.sequences);
  backward.done = carver.take<Atomic<Index>>(sizes.units);
  backward.next = carver.take<Atomic<Index>>(1);
  backward.slots = carver.take<std::byte>(static_cast<Index>(sizes.slot_bytes) * sizes.workers);
  backward.slot_bytes = sizes.slot_bytes;
  backward.workers = sizes.workers;
}

/// Scratch in bytes, with room to align a buffer of any alignment.
inline std::size_t total_scratch(const BackwardSizes& sizes) noexcept {
  Carver carver(nullptr);
  BackwardCall layout{};
  carve_backward_call(carver, sizes, layout);
  return carver.used() + kScratchAlignment;
}

}  // namespace gqa::detail::inline GQA_ABI
