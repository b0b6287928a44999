// SPDX-License-Identifier: Apache-2.0
/// @file
/// The task loop of the backward pass: tiles of query rows, one after the other, beside a column of tokens.
///
///     S = Q·Kᵀ   P = exp(S − LSE)   dP = dO·Vᵀ   dS = P ∘ (dP − Δ)   dV += Pᵀ·dO   dK += dSᵀ·Q   dQ += dS·K
///
/// with Δ = rowsum(dO ∘ O) (Dao 2023, "FlashAttention-2", algorithm 2). The score matrix is recomputed block by block and never stored.
#pragma once

#include <thread>

#include "gqa/detail/backward/column.hpp"
#include "gqa/detail/float_environment.hpp"
#include "gqa/detail/row_ranges.hpp"
#include "gqa/detail/variant_calls.hpp"

namespace gqa::detail::inline GQA_ABI {

/// What one worker needs for units, one after the other.
///
/// The sums of a column's keys and values are the unit's own. Those of a query row are added up column by column, in ascending order: a unit
/// adds what it has for a tile when the column before has added its own. Units are claimed in such an order that a unit waits for one that
/// has been claimed before, never for one that nobody is at.
class ColumnTasks {
 public:
  ColumnTasks(const BackwardCall& backward, std::byte* slot)
      : backward_(backward), call_(backward.call), scratch_(carve(backward, slot)), rows_(call_, scratch_.asked) {}
  ColumnTasks(const ColumnTasks&) = delete;
  ColumnTasks& operator=(const ColumnTasks&) = delete;

  /// Runs a unit of sequence number i; false if the call ended meanwhile.
  bool run(Index unit, Index i) {
    enter(unit, i);
    if (backward_.in_order && unit > 0 && !wait_for(unit - 1, tiles_of(unit - 1, i) + 1)) return false;
    for (Index tile = 0; tile < plan_->tiles; ++tile) {
      const bool any = take_rows(tile) && add_blocks();
      if (unit_column_ > 0 && !wait_for(unit - call_.shape.kv_heads, tile + 1)) return false;
      if (ended()) return false;
      if (any || unit_column_ == 0) store_queries(any);
      backward_.done[unit].store(tile + 1, __ATOMIC_RELEASE);
      if (call_.control != nullptr) add_relaxed(call_.control->done, Index{1});
    }
    store_column();
    backward_.done[unit].store(plan_->tiles + 1, __ATOMIC_RELEASE);
    if (plan_->tiles == 0 && call_.control != nullptr) add_relaxed(call_.control->done, Index{1});
    return true;
  }

 private:
  static BackwardScratch carve(const BackwardCall& backward, std::byte* slot) noexcept {
    Carver carver(slot);
    return carve_backward(carver, backward);
  }

  bool ended() const noexcept { return has_ended(call_); }

  /// Until a unit is through with so many tiles; false if the call ended meanwhile.
  bool wait_for(Index unit, Index tiles) const noexcept {
    constexpr int spins = 64;
    for (int turn = 0; backward_.done[unit].load(__ATOMIC_ACQUIRE) < tiles; ++turn) {
      if (ended()) return false;
      if (turn >= spins) std::this_thread::yield();
    }
    return true;
  }

  /// Tiles of a unit of sequence i or of one before it.
  Index tiles_of(Index unit, Index i) const noexcept {
    while (unit < backward_.plans[i].first_unit) --i;
    return backward_.plans[i].tiles;
  }

  void enter(Index unit, Index i) {
    const auto number = static_cast<std::size_t>(i);
    sequence_ = &call_.batch[number];
    gradients_ = &backward_.gradients[number];
    plan_ = backward_.plans + i;
    kernels_ = plan_->kernels;
    unit_column_ = (unit - plan_->first_unit) / call_.shape.kv_heads;
    range_.first_head = (unit - plan_->first_unit) % call_.shape.kv_heads;
    range_.heads = 1;
    column_begin_ = (plan_->first_column + unit_column_) * kColumn;
    const bool scored = backward_.variant.differentiate != nullptr;
    differentiate_ = scored ? backward_.variant.differentiate(call_.path, plan_->bf16) : kernels_->differentiate;
    path_kernels_.path = call_.path;
    visible_ = call_.variant.visible != nullptr ? call_.variant.visible(path_kernels_) : nullptr;
    BackwardTile& tile = scratch_.tile;
    if (kernels_->word_elements == 1) {
      tile.weights = tile.scores;
      tile.d_scores = tile.d_score_steps = tile.d_weights;
    } else {
      tile.weights = words_.weights;
      tile.d_scores = words_.d_scores;
      tile.d_score_steps = words_.d_score_steps;
    }
    column_.enter(*sequence_, *kernels_, range_.first_head);
  }

  /// Goes on to a tile. Whether some row of it may see something of the column; then its rows are there.
  bool take_rows(Index number) {
    BackwardTile& tile = scratch_.tile;
    range_.first_row = number * kBackwardRows;
    range_.rows = plan_->rows - range_.first_row;
    if (range_.rows > kBackwardRows) range_.rows = kBackwardRows;
    tile.rows = range_.rows;
    range_.hull = rows_.mark(call_, *sequence_, range_.first_row, range_.rows);
    const bool sees = range_.hull.begin < column_begin_ + kColumn && range_.hull.end > column_begin_;
    const bool first = unit_column_ == 0 && !gradients_->d_sink.empty();
    if (!sees && !first) return false;
    load_tile();
    return sees;
  }

  TensorRows<const std::byte> rows_of(const ConstTensorView& tensor) const noexcept {
    return rows_of_head<const std::byte>(tensor, range_.first_head, call_.group, range_.first_row);
  }
  /// The number of a row among those of all heads, (token, head).
  std::size_t row_number(Index row) const noexcept {
    const RowPlace at(range_.first_row + row, call_.group);
    return static_cast<std::size_t>(at.token * call_.shape.query_heads + range_.first_head * call_.group + at.head);
  }

  /// Queries, gradients of outputs and what belongs to each row.
  void load_tile() {
    BackwardTile& tile = scratch_.tile;
    const VariantCalls asked{call_, *sequence_, variant_plan_, range_, scratch_.asked};
    if (call_.variant.asks_of_rows()) asked.tell_rows();
    for (Index row = 0; row < round_up(tile.rows, kLanes); ++row) {
      const bool there = row < tile.rows;
      tile.lse[row] = there ? sequence_->lse[row_number(row)] : 0.0f;
      if (tile.sink == nullptr) continue;
      tile.sink[row] =
          there ? call_.variant.sink(call_.variant.variant, asked.context_of(range_.first_head, row)) : 0.0f;
    }
    kernels_->load_rows(rows_of(sequence_->q), tile.rows, tile.head_dim, tile.q, tile.head_width);
    kernels_->load_rows(rows_of(gradients_->d_out), tile.rows, tile.value_dim, tile.d_out, tile.value_width);
    kernels_->load_rows(rows_of(sequence_->out), tile.rows, tile.value_dim, scratch_.asked.outputs, tile.value_width);
    kernels_->prepare(tile, scratch_.asked.outputs);
    if (call_.variant.change_output != nullptr) change_gradients(asked);
    kernels_->pack(tile, 0, tile.rows);
    rows_looked_at_ = false;
    clear_floats(tile.d_q, tile.rows * tile.head_width);
    if (unit_column_ == 0 && !gradients_->d_sink.empty())
      for (Index row = 0; row < tile.rows; ++row) gradients_->d_sink[row_number(row)] = tile.sink[row];
  }

  /// The gradients by outputs before the variant changed them: factors and gates, once more.
  void change_gradients(const VariantCalls& asked) {
    BackwardTile& tile = scratch_.tile;
    OutputTarget to{};
    to.data = reinterpret_cast<std::byte*>(tile.d_out);
    to.token_stride = tile.value_width * Index{sizeof(float)};
    to.dim_stride = 1;
    asked.change(path_kernels_, tile.d_out, tile.value_width, tile.value_dim, 0, to);
  }

  /// The tile's products with every block of the column of which a row sees something; false if there is none.
  bool add_blocks() {
    bool any = false;
    for (Index b = 0; b < kColumnBlocks; ++b) {
      const Index begin = column_begin_ + b * kBlock;
      if (begin >= range_.hull.end || begin + kBlock <= range_.hull.begin) continue;
      Block& block = *::new (scratch_.asked.units) Block{};
      block.begin = begin;
      block.visible = scratch_.asked.visible;
      const std::uint64_t seen = mark_visible(begin);
      if (seen == 0) continue;
      any = true;
      block.first = __builtin_ctzll(seen);
      block.last = kBlock - __builtin_clzll(seen);
      column_.stage(block, b, seen);
      if (hides_nonfinite(b, seen)) add_apart(block, b);
      else add_block(block, b, true);
    }
    return any;
  }

  /// Which tokens of the block at `begin` each row sees. Returns those that any does.
  std::uint64_t mark_visible(Index begin) const {
    std::uint64_t seen = 0;
    for (Index row = 0; row < range_.rows; ++row) {
      std::uint64_t bits = rows_.of(row, begin);
      if (bits != 0 && call_.variant.masks())
        bits = call_.variant.refined(visible_, *scratch_.asked.variant_rows, row, begin, bits);
      scratch_.asked.visible[row] = bits;
      seen |= bits;
    }
    return seen;
  }

  void add_block(const Block& block, Index b, bool with_lookups) {
    const BackwardTile& tile = scratch_.tile;
    kernels_->score(tile, b, block.last);
    for (const LookupGradient& lookup : backward_.lookups) {
      if (!with_lookups) break;
      backward_.variant.lookup(call_.path, lookup.lookup)(tile, block);
      add_lookups(lookup, block);
    }
    differentiate_(tile, block);
    kernels_->accumulate(tile, b, block.last);
  }

  void add_lookups(const LookupGradient& lookup, const Block& block) const {
    const LookupGradient::Strides& strides = lookup.strides;
    float* const of_sequence = lookup.data.data() + lookup.offset + (sequence_ - call_.batch.data()) * strides.sequence;
    for (Index row = 0; row < range_.rows; ++row) {
      const RowPlace at(range_.first_row + row, call_.group);
      float* const of_row = of_sequence + (range_.first_head * call_.group + at.head) * strides.head +
                            at.token * strides.query + block.begin * strides.key;
      for (std::uint64_t seen = block.visible[row]; seen != 0; seen &= seen - 1) {
        const Index t = __builtin_ctzll(seen);
        of_row[t * strides.key] += scratch_.tile.d_lookups[t * kBackwardRows + row];
      }
    }
  }

  /// Whether a number that is none lies where some row of the tile does not look, in staged keys and values or in the rows themselves: a
  /// weight of 0 is then not enough.
  bool hides_nonfinite(Index b, std::uint64_t seen) noexcept {
    const BackwardTile& tile = scratch_.tile;
    std::uint64_t seen_by_all = kEveryToken;
    for (Index row = 0; row < range_.rows; ++row) seen_by_all &= scratch_.asked.visible[row];
    if (((seen | column_.tokens(b)) & ~seen_by_all) == 0) return false;
    if (!rows_looked_at_) {
      rows_looked_at_ = true;
      const Index elements = kernels_->word_elements;
      rows_finite_ = all_finite_as(elements, tile.q, tile.rows * tile.head_width) &&
                     all_finite_as(elements, tile.d_out, tile.rows * tile.value_width);
    }
    return !rows_finite_ || !column_.is_finite(b);
  }

  /// The same as add_block, of rows and tokens that see each other alone: what a row does not see is zero then, and sums that are not its own
  /// are put back. Sums by keys add the rows of a word at once, as add_block does: the order within a word is the processor's.
  void add_apart(const Block& block, Index b) {
    std::uint64_t* const visible = scratch_.asked.visible;
    const std::uint64_t staged = column_.tokens(b);
    const Index rows = scratch_.tile.rows;
    const Index words = kernels_->word_elements;
    std::memcpy(scratch_.kept, visible, static_cast<std::size_t>(rows) * sizeof *visible);
    for (Index row = 0; row < rows; row += words) {
      const std::uint64_t first = scratch_.kept[row];
      if (words == 1) {
        add_some(block, b, row, 1, first, true, true);
        continue;
      }
      const std::uint64_t second = row + 1 < rows ? scratch_.kept[row + 1] : 0;
      add_some(block, b, row, 1, first, true, false);
      add_some(block, b, row + 1, 1, second, true, false);
      add_some(block, b, row, 2, first & second, false, true);
      add_some(block, b, row, 1, first & ~second, false, true);
      add_some(block, b, row + 1, 1, second & ~first, false, true);
    }
    column_.stage_alone(block, b, staged);
    kernels_->pack(scratch_.tile, 0, rows);
    std::memcpy(visible, scratch_.kept, static_cast<std::size_t>(rows) * sizeof *visible);
  }
  /// What `count` rows, which all see `tokens`, add to their own gradients, and lookups', if `by_queries`; to those of these tokens if `by_keys`.
  void add_some(const Block& block, Index b, Index first, Index count, std::uint64_t tokens, bool by_queries,
                bool by_keys) {
    if (tokens == 0) return;
    const BackwardTile& tile = scratch_.tile;
    const auto bytes = [](Index floats) { return static_cast<std::size_t>(floats) * sizeof(float); };
    const auto among = [&](Index row) { return row >= first && row < first + count; };
    float* const d_k = tile.d_k + b * kBlock * tile.head_width;
    float* const d_v = tile.d_v + b * kBlock * tile.value_width;
    for (Index row = 0; row < tile.rows; ++row) scratch_.asked.visible[row] = among(row) ? tokens : 0;
    column_.stage_alone(block, b, tokens);
    kernels_->pack(tile, first, first + count);
    std::memcpy(scratch_.kept_d_q, tile.d_q, bytes(tile.rows * tile.head_width));
    std::memcpy(scratch_.kept_d_k, d_k, bytes(kBlock * tile.head_width));
    std::memcpy(scratch_.kept_d_v, d_v, bytes(kBlock * tile.value_width));
    add_block(block, b, by_queries);
    for (Index row = 0; row < tile.rows; ++row)
      if (!by_queries || !among(row))
        std::memcpy(tile.d_q + row * tile.head_width, scratch_.kept_d_q + row * tile.head_width,
                    bytes(tile.head_width));
    for (Index t = 0; t < kBlock; ++t) {
      if (by_keys && ((tokens >> t) & 1u) != 0) continue;
      std::memcpy(d_k + t * tile.head_width, scratch_.kept_d_k + t * tile.head_width, bytes(tile.head_width));
      std::memcpy(d_v + t * tile.value_width, scratch_.kept_d_v + t * tile.value_width, bytes(tile.value_width));
    }
  }

  /// d_q of the tile: written by the first column, added to by the others.
  void store_queries(bool any) {
    const TensorView& to = gradients_->d_q;
    if (to.data == nullptr) return;
    const BackwardTile& tile = scratch_.tile;
    if (!any) clear_floats(tile.d_q, tile.rows * tile.head_width);
    for (Index row = 0; row < tile.rows; ++row) {
      const RowPlace at(range_.first_row + row, call_.group);
      float* const out = static_cast<float*>(to.data) + at.token * to.strides.token +
                         (range_.first_head * call_.group + at.head) * to.strides.head;
      kernels_->store_rows(tile.d_q + row * tile.head_width, tile.head_width, 1, tile.head_dim, call_.scale,
                           unit_column_ > 0, out, 0);
    }
  }

  /// d_k and d_v of the column.
  void store_column() const {
    const KvCacheView& kv = sequence_->kv;
    const BackwardTile& tile = scratch_.tile;
    const Index oldest = kv.first_position();
    const Index first = column_begin_ > oldest ? column_begin_ : oldest;
    const Index last = column_begin_ + kColumn < kv.length ? column_begin_ + kColumn : kv.length;
    if (first >= last) return;
    column_.clear_unseen();
    const auto store = [&](const TensorView& to, const float* sums, Index width, Index dim, float factor) {
      if (to.data == nullptr) return;
      float* const out =
          static_cast<float*>(to.data) + (first - oldest) * to.strides.token + range_.first_head * to.strides.head;
      kernels_->store_rows(sums + (first - column_begin_) * width, width, last - first, dim, factor, false, out,
                           to.strides.token);
    };
    store(gradients_->d_k, tile.d_k, tile.head_width, tile.head_dim, call_.scale);
    store(gradients_->d_v, tile.d_v, tile.value_width, tile.value_dim, 1.0f);
  }

  const FloatEnvironment environment_{};
  const BackwardCall& backward_;
  const CallPlan& call_;
  BackwardScratch scratch_;
  const BackwardTile words_ = scratch_.tile;  // where words of two elements go
  ColumnRows column_{call_, scratch_};
  RowRanges rows_;
  SequencePlan variant_plan_ = plan_of_variant();
  Kernels path_kernels_{};  // says the path
  // Of the unit:
  const Sequence* sequence_ = nullptr;
  const SequenceGradients* gradients_ = nullptr;
  const ColumnPlan* plan_ = nullptr;
  const BackwardKernels* kernels_ = nullptr;
  DifferentiateKernel differentiate_ = nullptr;
  VariantRef::Refine visible_ = nullptr;  // the mask that is an expression
  Index unit_column_ = 0;                 // counted from the sequence's first
  Index column_begin_ = 0;                // its first position
  bool rows_looked_at_ = false;           // rows_finite_ is known: of the tile's queries and gradients of outputs
  bool rows_finite_ = false;
  TaskRange range_{};

  static SequencePlan plan_of_variant() noexcept {
    SequencePlan plan;
    plan.tile_rows = kBackwardRows;
    return plan;
  }
};

}  // namespace gqa::detail::inline GQA_ABI
