// SPDX-License-Identifier: Apache-2.0
/// @file
/// What is worked out about a model: a row for each number of KV heads.
#pragma once

#include <algorithm>
#include <bit>
#include <optional>
#include <string>
#include <vector>

#include "model_file.hpp"

namespace kv_budget {

/// What the user asks about.
struct Question {
  gqa::KvPlan plan{};
  Index context = 0;  ///< tokens of a sequence
  Index sequences = 1;
  std::optional<Index> memory;      ///< bytes of a device
  std::optional<Index> weights;     ///< bytes
  std::string weights_are;          ///< where that number is from, if it was not given
  std::optional<Index> devices;     ///< that the longest context and the most sequences are asked for
  std::optional<double> bandwidth;  ///< bytes a second
  std::optional<double> flops;      ///< operations a second
};

/// How fast the library went on this machine with one number of KV heads.
struct MeasuredRate {
  double bandwidth = 0;  ///< bytes of keys and values a second, in decode steps
  double flops = 0;      ///< operations a second of attention in a prefill
};

/// The answers for one number of KV heads.
struct Row {
  std::string label;
  Index kv_heads = 0;  ///< of all layers; 0 if they differ
  bool published = false;
  gqa::ModelShape shape;
  Index token_bytes = 0, sequence_bytes = 0, batch_bytes = 0, waste_bytes = 0, read_bytes = 0;
  std::optional<Index> devices;           ///< if everything can be cut anywhere
  std::optional<Index> parallel_devices;  ///< in a power of two, KV heads whole
  std::optional<Index> longest, most;     ///< what is left beside the weights holds so much
  std::optional<MeasuredRate> measured;
  std::optional<double> weights_seconds, cache_seconds;  ///< of a decode step
  std::optional<double> prefill_seconds;                 ///< of one sequence: everything at --flops
  std::optional<double> prefill_attention_seconds;       ///< its attention alone, as measured
};

/// The number of KV heads that all layers have, or 0 if they differ or there are none to count.
inline Index common_kv_heads(const gqa::ModelShape& shape) {
  Index common = shape.kinds[0].kv_heads;
  for (Index i = 0; i < shape.kind_count; ++i) {
    const gqa::LayerKind& kind = shape.kinds[i];
    if (kind.kv_heads != common || kind.values_in_keys) common = 0;
  }
  return common;
}

/// The most KV heads that with_kv_heads can give all layers: the query heads of the layer that has the fewest.
inline Index mha_heads(const gqa::ModelShape& shape) {
  Index heads = shape.kinds[0].query_heads;
  for (Index i = 0; i < shape.kind_count; ++i) heads = std::min(heads, shape.kinds[i].query_heads);
  return heads;
}

inline std::string heads_label(Index kv_heads, Index query_heads) {
  if (kv_heads == query_heads) return "MHA";
  return kv_heads == 1 ? "MQA" : "GQA-" + std::to_string(kv_heads);
}

inline Row row_of(const std::string& label, const gqa::ModelShape& shape, bool published) {
  Row row;
  row.label = label;
  row.shape = shape;
  row.published = published;
  row.kv_heads = common_kv_heads(shape);
  return row;
}

/// The model as published and with other numbers of KV heads, from many to few. @param wanted empty: MHA and MQA
inline std::vector<Row> rows_for(const NamedModel& model, const std::vector<Index>& wanted) {
  const gqa::ModelShape& shape = model.shape;
  const Index all = mha_heads(shape), own = common_kv_heads(shape);
  std::vector<Row> rows;
  const auto add_published = [&] {
    const bool latent = shape.kinds[0].values_in_keys;
    rows.push_back(row_of(latent ? "MLA" : own == 0 ? "as published" : heads_label(own, all), shape, true));
  };
  const std::vector<Index> counts = wanted.empty() ? std::vector<Index>{all, 1} : wanted;
  for (const Index heads : counts) {
    if (heads == own) {
      add_published();
      continue;
    }
    rows.push_back(row_of(heads_label(heads, all), gqa::with_kv_heads(shape, heads), false));
  }
  const bool shown = std::any_of(rows.begin(), rows.end(), [](const Row& row) { return row.published; });
  if (!shown && wanted.empty()) {
    add_published();
    std::rotate(rows.begin() + 1, rows.end() - 1, rows.end());  // between the extremes
  }
  return rows;
}

/// The fewest devices, in powers of two, whose memory is more than the weights.
inline Index devices_for_weights(Index weights, Index memory) {
  Index devices = 1;
  while (gqa::detail::times(devices, memory) <= weights) devices *= 2;
  return devices;
}

/// What the devices have beside the weights; negative if these do not fit.
inline Index left_beside_weights(const Question& q) {
  return gqa::detail::times(*q.devices, *q.memory) - q.weights.value_or(0);
}

/// Fills in sensible values for what was not given: the weights in bf16, and as many devices as these need.
inline void complete(Question& q, const NamedModel& model) {
  if (!q.weights && model.weight_bytes > 0) {
    q.weights = model.weight_bytes;
    q.weights_are = "the file's size";
  }
  if (const auto counted = gqa::count_parameters(model.shape); counted && !q.weights) {
    q.weights = gqa::detail::times(2, counted->total());
    q.weights_are = "all parameters in bf16";
  }
  if (q.memory && !q.devices) q.devices = devices_for_weights(q.weights.value_or(0), *q.memory);
}

/// The share of the weights that a decode step reads: not the experts that nobody chose, nor the embedding.
inline double share_read(const gqa::ModelShape& shape, Index sequences) {
  const auto counted = gqa::count_parameters(shape);
  if (!counted) return 1;
  return static_cast<double>(*gqa::parameters_read(shape, sequences)) / static_cast<double>(counted->total());
}

inline void answer_time(Row& row, const Question& q, double weight_rate, double weight_share) {
  const double cache_rate = q.bandwidth ? *q.bandwidth : row.measured ? row.measured->bandwidth : 0;
  const Index cache = gqa::detail::times(row.read_bytes, q.sequences);
  if (cache_rate > 0) row.cache_seconds = gqa::seconds_to_read(cache, cache_rate);
  if (weight_rate > 0 && q.weights) row.weights_seconds = static_cast<double>(*q.weights) * weight_share / weight_rate;
  const gqa::PrefillFlops flops = gqa::prefill_flops(row.shape, q.context);
  if (q.flops && flops.linear > 0) row.prefill_seconds = gqa::seconds_to_compute(flops.total(), *q.flops);
  if (row.measured && row.measured->flops > 0)
    row.prefill_attention_seconds = gqa::seconds_to_compute(flops.attention, row.measured->flops);
}

/// @param published the model as it is: what the weights are those of, whatever KV heads a row has
inline void answer(std::vector<Row>& rows, const Question& q, const gqa::ModelShape& published) {
  const double weight_share = share_read(published, q.sequences);
  double weight_rate = q.bandwidth.value_or(0);
  if (weight_rate == 0)  // weights stream at least as well as the cache that streams best
    for (const Row& row : rows)
      if (row.measured) weight_rate = std::max(weight_rate, row.measured->bandwidth);
  for (Row& row : rows) {
    row.token_bytes = gqa::kv_bytes_per_token(row.shape, q.plan);
    row.sequence_bytes = gqa::kv_sequence_bytes(row.shape, q.plan, q.context);
    row.batch_bytes = gqa::kv_batch_bytes(row.shape, q.plan, q.context, q.sequences);
    row.waste_bytes = gqa::kv_waste_bytes(row.shape, q.plan, q.context);
    row.read_bytes = gqa::kv_bytes_read(row.shape, q.plan, q.context);
    if (q.memory) {
      const Index weights = q.weights.value_or(0);
      row.devices = gqa::devices_needed(gqa::detail::plus(weights, row.batch_bytes), *q.memory);
      row.parallel_devices =
          gqa::tensor_parallel_devices(row.shape, q.plan, q.context, q.sequences, weights, *q.memory);
      const Index left = std::max<Index>(left_beside_weights(q), 0);
      row.longest = gqa::longest_context(row.shape, q.plan, q.sequences, left);
      row.most = gqa::most_sequences(row.shape, q.plan, q.context, left);
    }
    answer_time(row, q, weight_rate, weight_share);
  }
}

}  // namespace kv_budget
