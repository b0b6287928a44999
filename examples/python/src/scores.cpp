// SPDX-License-Identifier: Apache-2.0
#include "scores.hpp"

namespace gqa::python {

namespace {

template <class T>
void check_biases(const std::vector<BroadcastView<T>>& biases, const SequenceContext& sequence) {
  if (biases.size() == 1) return AdditiveBias<T>{biases[0]}.check(sequence);
  if (sequence.sequence >= static_cast<Index>(biases.size()))
    fail("len(bias)", std::to_string(biases.size()),
         "one for each sequence, " + std::to_string(sequence.sequence + 1) + " at least");
  SequenceContext alone = sequence;
  alone.sequence = 0;
  AdditiveBias<T>{biases[static_cast<std::size_t>(sequence.sequence)]}.check(alone);
}

template <class T>
double bias_at(const std::vector<BroadcastView<T>>& biases, const RowContext& row, Index key) {
  RowContext at = row;
  if (biases.size() > 1) at.sequence = 0;
  const BroadcastView<T>& bias = biases[biases.size() == 1 ? 0 : static_cast<std::size_t>(row.sequence)];
  return static_cast<double>(static_cast<float>(bias.row(at)[key * bias.strides.key]));
}

}  // namespace

void ScoreChange::check(const SequenceContext& sequence) const {
  switch (kind) {
    case ScoreKind::scale: return temperature ? temperature->check() : HeadScale{of_head}.check(sequence);
    case ScoreKind::cap: return SoftCap{cap}.check();
    case ScoreKind::alibi: return Alibi{of_head}.check(sequence);
    case ScoreKind::bias_f32: return distances ? distances->check(sequence) : check_biases(f32, sequence);
    case ScoreKind::bias_bf16: return check_biases(bf16s, sequence);
    case ScoreKind::bias_f16: return check_biases(f16s, sequence);
    default: return;
  }
}

float ScoreChange::one(float score, const RowContext& row, Index key) const {
  const auto s = static_cast<double>(score);
  const auto head = static_cast<std::size_t>(row.query_head);
  const double distance = static_cast<double>(row.position) - static_cast<double>(key);
  switch (kind) {
    case ScoreKind::scale: {
      if (!temperature) return static_cast<float>(static_cast<double>(of_head[head]) * s);
      const double steps =
          row.position < 0
              ? 0.0
              : std::floor((static_cast<double>(row.position) + 1.0) / static_cast<double>(temperature->floor_scale));
      return static_cast<float>(s * (1.0 + static_cast<double>(temperature->strength) * std::log1p(steps)));
    }
    case ScoreKind::cap: return static_cast<float>(static_cast<double>(cap) * std::tanh(s / static_cast<double>(cap)));
    case ScoreKind::alibi: return static_cast<float>(s - static_cast<double>(of_head[head]) * distance);
    case ScoreKind::bias_f32:
      if (distances)
        return static_cast<float>(
            s + static_cast<double>(table[head * static_cast<std::size_t>(distances->distances) +
                                          static_cast<std::size_t>(row.position - key - distances->least)]));
      return static_cast<float>(s + bias_at(f32, row, key));
    case ScoreKind::bias_bf16: return static_cast<float>(s + bias_at(bf16s, row, key));
    case ScoreKind::bias_f16: return static_cast<float>(s + bias_at(f16s, row, key));
    default: return score;
  }
}

}  // namespace gqa::python
