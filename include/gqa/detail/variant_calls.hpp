// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a worker asks of a variant for the rows that it is at: contexts and trees before scores, sinks and changes of outputs after the last
/// span. Masks are asked for block by block, by the task itself.
#pragma once

#include "gqa/detail/fold_total.hpp"
#include "gqa/detail/row_ranges.hpp"

namespace gqa::detail {

/// What a worker is at: rows [first_row, first_row + rows) of KV heads [first_head, first_head + heads), over the positions in `hull`.
struct TaskRange {
  Index first_row = 0;
  Index rows = 0;
  Index first_head = 0;
  Index heads = 0;
  PositionRange hull{};
};

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

/// Refers to what a worker has of its sequence; `range` and `scratch` change as it goes on.
struct VariantCalls {
  const CallPlan& call;
  const Sequence& sequence;
  const SequencePlan& plan;
  const TaskRange& range;
  const TaskScratch& scratch;

  RowContext context_of(Index kv_head, Index row) const noexcept {
    const RowPlace at(range.first_row + row, call.group);
    return {query_context(call.variant, sequence, at.token), kv_head * call.group + at.head};
  }

  /// VariantRows of the heads.
  void tell_rows() const {
    const VariantRef& variant = call.variant;
    const Index stride = round_up(plan.tile_rows, kLanes);
    for (Index j = 0; j < range.heads; ++j) {
      RowContext* const contexts = scratch.row_context + j * plan.tile_rows;
      float* const constants = scratch.constants + j * variant.constants * stride;
      RowLookup* const lookups = scratch.lookups + j * variant.lookups * stride;
      ::new (scratch.variant_rows + j) VariantRows{variant.variant, contexts, constants, lookups, stride};
      for (Index row = 0; row < range.rows; ++row) {
        ::new (contexts + row) RowContext(context_of(range.first_head + j, row));
        if (variant.put_trees != nullptr)
          variant.put_trees(variant.variant, contexts[row], {constants + row, lookups + row, stride});
      }
      for (Index i = 0; i < variant.constants; ++i)  // lanes without a row
        for (Index row = range.rows; row < stride; ++row) constants[i * stride + row] = 0.0f;
    }
  }

  /// A sink is the state (sink, 1, 0) of one more token.
  void add_sinks(const QueryTile& total) const {
    const QueryTile& state = scratch.tile;
    begin_states(*plan.kernels, state, range.heads);
    for (Index j = 0; j < range.heads; ++j) {
      const QueryTile of_head = head_tile(state, j);
      for (Index row = 0; row < range.rows; ++row) {
        const float sink = kLog2E * call.variant.sink(call.variant.variant, context_of(range.first_head + j, row));
        const bool none = sink < -0x1.fffffep127f;  // -infinity
        of_head.m[row] = sink;
        of_head.l[row * of_head.l_stride] = none ? 0.0f : 1.0f;
        if (of_head.has_divisor) of_head.divisor[row] = none ? 0.0f : 1.0f;
      }
    }
    merge_states(*plan.kernels, total, state, range.heads);
  }

  /// The outputs of head number j of the task, as floats first, changed as the variant says.
  void store_changed(const QueryTile& total, Index j, const OutputTarget& target) const {
    const Index width = round_up(total.value_dim, kLanes);
    OutputTarget rows{};
    rows.data = reinterpret_cast<std::byte*>(scratch.outputs);
    rows.token_stride = width * Index{sizeof(float)};
    rows.dim_stride = 1;
    turn_back(sequence.kv, call.path, scratch.rotated, rows);
    plan.kernels->store(total, rows);
    change(*plan.kernels, scratch.outputs, width, total.value_dim, j, target);
  }

  /// target ← the task's rows of `dim` floats, `width` apart, of its head number j, changed as the variant says.
  void change(const Kernels& kernels, float* rows, Index width, Index dim, Index j, const OutputTarget& target) const {
    for (Index row = 0; row < range.rows; ++row) {
      OutputChange& change = *::new (scratch.changes + row) OutputChange{};
      call.variant.change_output(call.variant.variant, context_of(range.first_head + j, row), change);
    }
    call.variant.finish(kernels)(rows, width, range.rows, dim, scratch.changes, target);
  }
};

}  // namespace gqa::detail::inline GQA_ABI
