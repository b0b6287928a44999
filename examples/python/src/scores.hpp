// SPDX-License-Identifier: Apache-2.0
/// @file
/// The library's changes of scores, chosen at run time among those that are compiled.
#pragma once

#include <cmath>
#include <gqa/variants.hpp>
#include <memory>
#include <optional>

#include "arrays.hpp"

namespace gqa::python {

/// What a change does to a score: the type of its expression. `none` is none; `any` are several that no expression is compiled for, which are
/// computed one score at a time.
enum class ScoreKind { none, scale, cap, alibi, bias_f32, bias_bf16, bias_f16, any };

/// One of the library's, with what it refers to.
struct ScoreChange {
  ScoreKind kind = ScoreKind::none;
  float cap = 0;
  std::vector<float> of_head{};  ///< slopes, or scales; empty slopes: the published ones of as many heads as there are
  std::optional<PositionTemperature> temperature{};  ///< instead of scales
  std::vector<BroadcastView<float>> f32{};           ///< biases, one for all sequences or one for each
  std::vector<BroadcastView<bf16>> bf16s{};
  std::vector<BroadcastView<f16>> f16s{};
  std::optional<DistanceBias> distances{};             ///< instead of such biases
  std::vector<float> table{};                          ///< of these
  std::vector<std::shared_ptr<const Array>> arrays{};  ///< kept alive

  template <class T>
  const std::vector<BroadcastView<T>>& biases() const {
    if constexpr (std::is_same_v<T, float>) return f32;
    else if constexpr (std::is_same_v<T, bf16>) return bf16s;
    else return f16s;
  }

  void check(const SequenceContext& sequence) const;
  /// In double, rounded once.
  float one(float score, const RowContext& row, Index key) const;
};

/// A change as an expression.
template <ScoreKind Kind>
struct ScoreExpressionOf {
  const ScoreChange* change = nullptr;

  auto score(auto s, const RowContext& row, auto k) const {
    const ScoreChange& of = *change;
    if constexpr (Kind == ScoreKind::scale)
      return of.temperature ? of.temperature->score(s, row, k) : HeadScale{of.of_head}.score(s, row, k);
    else if constexpr (Kind == ScoreKind::cap) return SoftCap{of.cap}.score(s, row, k);
    else if constexpr (Kind == ScoreKind::alibi) return Alibi{of.of_head}.score(s, row, k);
    else if constexpr (Kind == ScoreKind::bias_f32)
      return of.distances ? of.distances->score(s, row, k) : biased(of.f32, s, row, k);
    else if constexpr (Kind == ScoreKind::bias_bf16) return biased(of.bf16s, s, row, k);
    else return biased(of.f16s, s, row, k);
  }

 private:
  template <class T>
  static auto biased(const std::vector<BroadcastView<T>>& biases, auto s, const RowContext& row, auto k) {
    if (biases.size() == 1) return AdditiveBias<T>{biases[0]}.score(s, row, k);
    RowContext alone = row;
    alone.sequence = 0;
    return AdditiveBias<T>{biases[static_cast<std::size_t>(row.sequence)]}.score(s, alone, k);
  }
};

}  // namespace gqa::python
