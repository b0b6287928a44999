// SPDX-License-Identifier: Apache-2.0
// The states of parts of a sequence, each from a call of its own that sees that part alone, and what they merge to. With this a test says
// which states are merged with which, and has the engine do no more than one part at a time: what machines do that share a sequence.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>

#include "problem.hpp"
#include "stepped_call.hpp"

namespace gqa::test {

/// What a variant sees of one part of the sequence.
template <class V>
struct PartOf {
  const V& whole;
  PositionRange part;
  std::array<PositionRange, static_cast<std::size_t>(detail::ranges_of<V>)> visible_range(Index query_position,
                                                                                          Index kv_length) const {
    std::array<PositionRange, static_cast<std::size_t>(detail::ranges_of<V>)> seen{};
    detail::get_ranges(whole, QueryContext{query_position}, kv_length, seen.data());
    for (PositionRange& range : seen) range = {std::max(range.begin, part.begin), std::min(range.end, part.end)};
    return seen;
  }
  bool is_visible(Index query_position, Index key_position, Index query_head) const {
    if constexpr (MaskingVariant<V>) return whole.is_visible(query_position, key_position, query_head);
    else return true;
  }
};

/// The state (m, l, o) of some query rows of one KV head, as a path's kernels have it. It begins as that of no tokens.
class RowsState {
 public:
  RowsState(const detail::Kernels& kernels, Index rows, Index value_dim) : kernels_(&kernels), tile_{} {
    tile_.rows = rows;
    tile_.value_dim = value_dim;
    detail::set_strides(tile_, kernels, value_dim);
    memory_.resize(bytes() / sizeof(Line));
    detail::Carver carver(data());
    detail::carve_state(carver, tile_, 1, rows);
    kernels.begin(tile_);
  }
  RowsState(const RowsState&) = delete;
  RowsState& operator=(const RowsState&) = delete;

  /// The tokens of this state, then those of another one.
  void merge(const RowsState& from) { kernels_->merge(tile_, from.tile_); }
  /// Takes a state from where the engine has it.
  void copy(const std::byte* state) { std::memcpy(data(), state, bytes()); }
  const detail::QueryTile& tile() const { return tile_; }
  std::byte* data() { return reinterpret_cast<std::byte*>(memory_.data()); }
  std::size_t bytes() const { return detail::state_bytes(tile_, 1, tile_.rows); }

  /// Outputs and log-sum-exps of the rows: all query heads of some tokens.
  void store(Output& output) const {
    const TensorView& view = output.view();
    detail::OutputTarget target;
    target.data = static_cast<std::byte*>(view.data);
    target.type = view.type;
    target.token_stride = view.strides.token * element_bytes(view.type);
    target.head_stride = view.strides.head * element_bytes(view.type);
    target.dim_stride = view.strides.dim;
    target.group = view.heads;
    target.lse = output.lse().data();
    target.lse_token_stride = view.heads;
    kernels_->store(tile_, target);
  }

 private:
  struct alignas(detail::kScratchAlignment) Line {
    std::byte bytes[detail::kScratchAlignment];
  };
  const detail::Kernels* kernels_;
  detail::QueryTile tile_;
  std::vector<Line> memory_;
};

/// Queries, and a cache of one KV head that they look at; no more rows than a tile has. Its calls have the scale of SteppedCall.
template <class V>
class PartwiseAttention {
 public:
  PartwiseAttention(const ConstTensorView& q, const KvCacheView& kv, const V& variant, Path path)
      : q_(q), kv_(kv), variant_(variant), path_(path) {}

  /// Parts of `part` tokens merge in ascending order within groups of `group` tokens, and those in ascending order.
  Result result(Index part, Index group) const {
    Output output(ElementType::f32, q_.tokens, q_.heads, kv_.value_dim);
    const Sequence sequence{q_, kv_, output.view(), {}, output.lse()};
    const detail::Kernels& kernels = *SteppedCall({&sequence, 1}, variant_, path_).call().sequences->kernels;
    RowsState total(kernels, q_.tokens * q_.heads, kv_.value_dim);
    for (Index begin = 0; begin < kv_.length; begin += group) {
      RowsState sum(kernels, q_.tokens * q_.heads, kv_.value_dim);
      const Index end = std::min(begin + group, kv_.length);
      for (Index at = begin; at < end; at += part) {
        RowsState state(kernels, q_.tokens * q_.heads, kv_.value_dim);
        compute(state, sequence, {at, std::min(at + part, end)});
        sum.merge(state);
      }
      total.merge(sum);
    }
    total.store(output);
    return output.result();
  }

 private:
  /// The state of the positions in `part`, which lie in one super-span.
  void compute(RowsState& state, const Sequence& sequence, const PositionRange& part) const {
    const PartOf<V> of_part{variant_, part};
    SteppedCall stepped({&sequence, 1}, of_part, path_);
    detail::SequenceTasks tasks = stepped.tasks(0, 0);
    const Index spans = tasks.enter(0, 0);
    detail::Claim claim;
    claim.in_order = true;
    for (; claim.first < spans; claim.first += claim.count) {
      claim.count = std::min(spans - claim.first, detail::kStageSpans);
      tasks.run(claim);
    }
    state.copy(stepped.call().totals);
  }

  const ConstTensorView& q_;
  const KvCacheView& kv_;
  const V& variant_;
  Path path_;
};

}  // namespace gqa::test
