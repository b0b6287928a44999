// SPDX-License-Identifier: Apache-2.0
/// @file
/// The variants' types: which stages one has is compiled, what they do is looked up. One softmax for each pair of score changes and path.
#pragma once

#include "variant.hpp"

namespace gqa::python {

/// What a row sees: what all masks let it see.
struct CompiledRanges {
  const BoundVariant* bound;

  std::array<PositionRange, 2> visible_range(const QueryContext& query, Index kv_length) const {
    std::array<PositionRange, 2> seen{PositionRange{0, kv_length}, PositionRange{0, 0}};
    if (bound->two_ranges != nullptr) bound->two_ranges->ranges(query, kv_length, seen.data());
    for (const std::shared_ptr<const Mask>& mask : bound->variant->masks) {
      if (mask.get() == bound->two_ranges) continue;
      PositionRange range;
      mask->ranges(query, kv_length, &range);
      for (PositionRange& of_all : seen) {
        if (range.begin > of_all.begin) of_all.begin = range.begin;
        if (range.end < of_all.end) of_all.end = range.end;
      }
    }
    return seen;
  }
  void check(const SequenceContext& sequence) const {
    const Variant& variant = *bound->variant;
    for (const std::shared_ptr<const Mask>& mask : variant.masks) mask->check(sequence);
    for (const ScoreChange& change : bound->scores) change.check(sequence);
    if (variant.sinks) LearnedSinks{*variant.sinks}.check(sequence);
    if (variant.gated) OutputGate{bound->gates}.check(sequence);
    if (variant.value_factors) ValueScale{*variant.value_factors, bound->group}.check(sequence);
  }
  float sink(const RowContext& row) const {
    return bound->variant->sinks ? (*bound->variant->sinks)[static_cast<std::size_t>(row.query_head)]
                                 : -__builtin_inff();
  }
  bool sink_in_lse() const { return bound->variant->sinks_in_lse; }
};

template <bool Masked>
struct CompiledMask : CompiledRanges {};
template <>
struct CompiledMask<true> : CompiledRanges {
  std::uint64_t visible_bits(const RowContext& row, Index block_begin) const {
    std::uint64_t bits = ~std::uint64_t{0};
    for (const std::shared_ptr<const Mask>& mask : bound->variant->masks)
      if (mask->has_bits) bits &= mask->bits(row, block_begin);
    return bits;
  }
};

template <class Base, ScoreKind First, ScoreKind Second>
struct CompiledScores : Base {
  template <expression::Value S>
  auto score(const S& s, const RowContext& row, const expression::Key& k) const {
    const auto first = ScoreExpressionOf<First>{&this->bound->scores[0]}.score(s, row, k);
    if constexpr (Second == ScoreKind::none) return first;
    else return ScoreExpressionOf<Second>{&this->bound->scores[1]}.score(first, row, k);
  }
};
template <class Base>
struct CompiledScores<Base, ScoreKind::none, ScoreKind::none> : Base {};
template <class Base>
struct CompiledScores<Base, ScoreKind::any, ScoreKind::none> : Base {
  float score(float score, const RowContext& row, Index key) const {
    for (const ScoreChange& change : this->bound->scores) score = change.one(score, row, key);
    return score;
  }
};

template <class Base, bool Changed>
struct CompiledOutput : Base {};
template <class Base>
struct CompiledOutput<Base, true> : Base {
  float output_factor(const RowContext& row) const {
    const Variant& variant = *this->bound->variant;
    return variant.value_factors ? ValueScale{*variant.value_factors, this->bound->group}.output_factor(row) : 1.0f;
  }
  GateRow output_gate(const RowContext& row) const {
    return this->bound->variant->gated ? OutputGate{this->bound->gates}.output_gate(row) : GateRow{};
  }
};

template <ScoreKind First, ScoreKind Second, bool Masked, bool Output>
using CompiledVariant = CompiledOutput<CompiledScores<CompiledMask<Masked>, First, Second>, Output>;

/// The call with that type: instantiated in variants_*.cpp.
template <ScoreKind First, ScoreKind Second, bool Masked, bool Output>
void attend_with(const Functor& functor, const std::vector<Sequence>& batch, const BoundVariant& bound,
                 const Options& options) {
  CompiledVariant<First, Second, Masked, Output> variant{};
  variant.bound = &bound;
  functor(std::span<const Sequence>(batch), variant, options);
}

using Attend = void (*)(const Functor&, const std::vector<Sequence>&, const BoundVariant&, const Options&);

/// Those whose first change of scores is of one kind, in variants_<kind>.cpp; null if no such pair is compiled.
Attend attend_plain(ScoreKind first, bool masked, bool output);
Attend attend_scale(ScoreKind second, bool masked);
Attend attend_cap(ScoreKind second, bool masked);
Attend attend_alibi(ScoreKind second, bool masked);
Attend attend_bias(ScoreKind first, ScoreKind second, bool masked);

/// Of the pairs that begin with First.
template <ScoreKind First>
Attend attend_pair(ScoreKind second, bool masked) {
  using enum ScoreKind;
  switch (second) {
    case none: return masked ? attend_with<First, none, true, false> : attend_with<First, none, false, false>;
    case scale: return masked ? attend_with<First, scale, true, false> : attend_with<First, scale, false, false>;
    case cap: return masked ? attend_with<First, cap, true, false> : attend_with<First, cap, false, false>;
    case alibi: return masked ? attend_with<First, alibi, true, false> : attend_with<First, alibi, false, false>;
    case bias_f32:
      return masked ? attend_with<First, bias_f32, true, false> : attend_with<First, bias_f32, false, false>;
    default: return nullptr;
  }
}

}  // namespace gqa::python
