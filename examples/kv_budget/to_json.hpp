// SPDX-License-Identifier: Apache-2.0
/// @file
/// The answers as JSON. Bytes are exact integers; times are seconds, rates bytes or operations a second.
#pragma once

#include <nlohmann/json.hpp>

#include "budget_rows.hpp"
#include "sizes.hpp"

namespace kv_budget {

template <class T>
void put(nlohmann::ordered_json& to, const char* name, const std::optional<T>& value) {
  if (value) to[name] = *value;
}

inline nlohmann::ordered_json kind_json(const gqa::LayerKind& kind) {
  nlohmann::ordered_json made{{"layers", kind.count},
                              {"query_heads", kind.query_heads},
                              {"kv_heads", kind.kv_heads},
                              {"head_dim", kind.head_dim},
                              {"value_dim", kind.width_of_values()}};
  if (kind.window > 0) made["window"] = kind.window;
  if (kind.shares_kv) made["shares_kv"] = true;
  if (kind.values_in_keys) made["values_in_keys"] = true;
  return made;
}

inline nlohmann::ordered_json row_json(const Row& row) {
  nlohmann::ordered_json made{{"label", row.label},
                              {"published", row.published},
                              {"bytes_per_token", row.token_bytes},
                              {"bytes_per_sequence", row.sequence_bytes},
                              {"bytes", row.batch_bytes},
                              {"bytes_unused_per_sequence", row.waste_bytes},
                              {"bytes_read_per_sequence_and_step", row.read_bytes}};
  if (row.kv_heads > 0) made["kv_heads"] = row.kv_heads;
  put(made, "devices", row.devices);
  if (row.devices)
    made["devices_in_powers_of_two"] = row.parallel_devices ? nlohmann::ordered_json(*row.parallel_devices) : nullptr;
  if (row.longest)
    made["longest_context"] = *row.longest == gqa::kUnlimited ? nullptr : nlohmann::ordered_json(*row.longest);
  put(made, "most_sequences", row.most);
  put(made, "decode_weights_seconds", row.weights_seconds);
  put(made, "decode_cache_seconds", row.cache_seconds);
  put(made, "prefill_seconds", row.prefill_seconds);
  put(made, "prefill_attention_seconds", row.prefill_attention_seconds);
  if (row.measured) made["measured"] = {{"bandwidth", row.measured->bandwidth}, {"prefill_flops", row.measured->flops}};
  return made;
}

inline nlohmann::ordered_json to_json(const NamedModel& model, const Question& q, const std::vector<Row>& rows) {
  nlohmann::ordered_json made{{"model", model.name},
                              {"context", q.context},
                              {"sequences", q.sequences},
                              {"k_format", gqa::kv_format_name(q.plan.k_format)},
                              {"v_format", gqa::kv_format_name(q.plan.v_format)},
                              {"page_size", q.plan.page_size},
                              {"chunk", q.plan.chunk},
                              {"windows_capped", q.plan.windows_capped}};
  if (const auto counted = gqa::count_parameters(model.shape)) {
    made["parameters"] = counted->total();
    made["active_parameters"] = counted->active();
  }
  put(made, "weight_bytes", q.weights);
  put(made, "memory", q.memory);
  put(made, "devices", q.devices);
  put(made, "bandwidth", q.bandwidth);
  put(made, "flops", q.flops);
  for (Index i = 0; i < model.shape.kind_count; ++i) made["layers"].push_back(kind_json(model.shape.kinds[i]));
  if (!model.notes.empty()) made["notes"] = model.notes;
  for (const Row& row : rows) made["rows"].push_back(row_json(row));
  return made;
}

}  // namespace kv_budget
