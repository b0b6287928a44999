// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the states of a fold's spans are merged into, and in which association.
#pragma once

#include "gqa/detail/plan.hpp"

namespace gqa::detail::inline GQA_ABI {

// Once a span, from several places: functions of their own, so that a program has them once.

/// The states of `heads` KV heads side by side ← those of no tokens.
[[gnu::noinline]] inline void begin_states(const Kernels& kernels, const QueryTile& state, Index heads) {
  for (Index j = 0; j < heads; ++j) kernels.begin(head_tile(state, j));
}
/// The states of the tokens of `into`, then those of `from`.
[[gnu::noinline]] inline void merge_states(const Kernels& kernels, const QueryTile& into, const QueryTile& from,
                                           Index heads) {
  for (Index j = 0; j < heads; ++j) kernels.merge(head_tile(into, j), head_tile(from, j));
}

/// The total of a fold: spans are merged in ascending order within their super-span, and so are the super-spans. Its memory has the sum of the
/// complete super-spans and that of the one in progress; while this is the first that the fold sees, the two are one.
///
/// Spans are counted from the first that the fold sees. A span or super-span of which no row sees anything may be left out: its state would
/// change nothing. The workers at a fold share the memory, and one of them at a time has it; how far it is they know, see FoldProgress.
class FoldTotal {
 public:
  FoldTotal(const Kernels& kernels, const SequencePlan& plan) noexcept : kernels_(kernels), plan_(plan) {}

  /// Goes on to another fold: `heads` KV heads with the rows of `tile`, whose first span is number `first_span` of the sequence.
  void enter(std::byte* memory, const QueryTile& tile, Index heads, Index first_span) noexcept {
    heads_ = heads;
    first_span_ = first_span;
    complete_ = current_ = tile;
    Carver carver(memory);
    carve_state(carver, complete_, plan_.heads, plan_.tile_rows);
    if (plan_.has_super_spans) carve_state(carver, current_, plan_.heads, plan_.tile_rows);
  }

  /// The spans before `next` are in it, and more are to come. It begins when none are.
  void resume(Index next) {
    last_ = next - 1;
    if (next == 0) begin_states(kernels_, complete_, heads_);
  }
  /// Spans up to this one have come or are left out, and this one is next. If it lies in another super-span than they, theirs is complete.
  [[gnu::noinline]] void go_on_to(Index span) {
    const Index before = super_span(last_);
    last_ = span;
    if (super_span(span) == before) return;
    if (before > 0) merge_states(kernels_, complete_, current_, heads_);
    begin_states(kernels_, current_, heads_);
  }
  /// Adds the state of the span that it has gone on to. That of span 0 may as well be computed in first().
  [[gnu::noinline]] void add(const QueryTile& state) const {
    merge_states(kernels_, super_span(last_) > 0 ? current_ : complete_, state, heads_);
  }
  const QueryTile& first() const noexcept { return complete_; }

  /// The state of all `spans` spans, when they are in it.
  const QueryTile& finish(Index spans) const {
    if (super_span(spans - 1) > 0) merge_states(kernels_, complete_, current_, heads_);
    return complete_;
  }

 private:
  /// The super-span of a span, counted from the first that the fold sees.
  Index super_span(Index span) const noexcept {
    constexpr Index each = kSuperSpan / kSpan;
    return span < 0 ? 0 : (first_span_ + span) / each - first_span_ / each;
  }

  const Kernels& kernels_;
  const SequencePlan& plan_;
  Index heads_ = 0;
  Index first_span_ = 0;
  QueryTile complete_{};
  QueryTile current_{};  // unless it is the first
  Index last_ = -1;      // the span that it has gone on to, or -1
};

}  // namespace gqa::detail::inline GQA_ABI
