// SPDX-License-Identifier: Apache-2.0
// Drawn variants by their definitions, pair by pair and in double precision, without the library's code for them: what the reference computes.
#pragma once

#include "random_variant.hpp"

namespace gqa::test {

/// Whether a part lets a row see a key.
inline bool part_sees(Part part, const VariantNumbers& n, const RowContext& row, Index key) {
  const Index position = row.position;
  const Index back = position - key;
  switch (part) {
    case Part::causal: return back >= 0;
    case Part::causal_window: return back >= 0 && back < n.window;
    case Part::two_sided_window: return back <= n.before && -back <= n.after;
    case Part::prefix_lm: return back >= 0 || (position >= 0 && position < n.prefix && key < n.prefix);
    case Part::first_tokens_and_window: return back >= 0 && (key < n.first || back < n.window);
    case Part::chunked_local: return back >= 0 && key / n.chunk == position / n.chunk;
    case Part::causal_with_blocks:
      for (const PositionRange& block : n.blocks)
        if (block.begin <= position && position < block.end && block.begin <= key && key < block.end) return true;
      return back >= 0;
    case Part::packed_documents:
      for (std::size_t i = 1; i < n.offsets.size(); ++i) {
        const Index begin = n.offsets[i - 1], end = n.offsets[i];
        if (begin <= position && position < end && begin <= key && key < end) return back >= 0 || !n.documents_causal;
      }
      return false;
    case Part::valid_tokens: {
      const PositionRange& valid = n.valid[static_cast<std::size_t>(row.sequence)];
      return valid.begin <= key && key < valid.end;
    }
    case Part::boolean_mask: return n.flags.at(row, key) != 0;
    case Part::dilated_window: return back >= 0 && back % n.step == 0 && back / n.step < n.count;
    case Part::block_sparse: {
      if (position < 0) return false;
      const auto b = static_cast<std::size_t>(position / n.query_block);
      if (b + 1 >= n.list_offsets.size()) return false;
      return std::count(n.listed.begin() + n.list_offsets[b], n.listed.begin() + n.list_offsets[b + 1],
                        key / n.key_block) != 0;
    }
    case Part::draft_tree:
      if (key < n.prefix) return true;
      for (Index node = row.query; node >= 0; node = n.parents[static_cast<std::size_t>(node)])
        if (node == key - n.prefix) return true;
      return false;
    case Part::users_condition: return back < 50 || key < 70;
    default: return true;
  }
}

/// T5's bucket of a distance, by the words of its paper's appendix: half of a side's buckets for one distance each, the others logarithmic.
inline Index bucket_of(const VariantNumbers& n, Index distance) {
  const Index side = n.two_sided_buckets ? n.buckets / 2 : n.buckets;
  const Index first = n.two_sided_buckets && distance < 0 ? side : 0;
  const Index away = n.two_sided_buckets ? std::abs(distance) : std::max<Index>(distance, 0);
  const Index exact = side / 2;
  if (away < exact) return first + away;
  const double share = std::log(static_cast<double>(away) / static_cast<double>(exact)) /
                       std::log(static_cast<double>(n.kFarthest) / static_cast<double>(exact));
  const auto far = static_cast<Index>(share * static_cast<double>(side - exact));
  return first + std::min(exact + far, side - 1);
}

/// What a part makes of a score.
inline double part_score(Part part, const VariantNumbers& n, double s, const RowContext& row, Index key) {
  const auto head = static_cast<std::size_t>(row.query_head);
  const auto back = static_cast<double>(row.position - key);
  const auto wide = [](auto x) { return static_cast<double>(static_cast<float>(x)); };
  switch (part) {
    case Part::soft_cap: return wide(n.cap) * std::tanh(s / wide(n.cap));
    case Part::alibi: return s - wide(n.slopes[head]) * back;
    case Part::bias_f32: return s + wide(n.bias_f32.at(row, key));
    case Part::bias_bf16: return s + wide(n.bias_bf16.at(row, key));
    case Part::bias_f16: return s + wide(n.bias_f16.at(row, key));
    case Part::distance_bias: {
      const Index bucket = bucket_of(n, row.position - key);
      return s + wide(n.table[static_cast<std::size_t>(bucket * n.extents.query_heads + row.query_head)]);
    }
    case Part::head_scale: return wide(n.scales[head]) * s;
    case Part::position_temperature: {
      if (row.position < 0) return s;
      const auto steps = static_cast<double>((row.position + 1) / n.floor_scale);
      return s * (1.0 + wide(0.1f) * std::log(1.0 + steps));
    }
    case Part::users_scalar_score: return 0.5 * s + 1.0;
    default: return s;
  }
}

/// What multiplies element d of a row's output.
inline double output_change(std::span<const Part> parts, const VariantNumbers& n, const RowContext& row, Index d) {
  double change = 1.0;
  for (const Part part : parts) {
    if (part == Part::value_scale)
      change *= static_cast<double>(n.factors[static_cast<std::size_t>(row.query_head / n.group())]);
    if (part == Part::output_gate) {
      const Tensor& logits = n.gates[static_cast<std::size_t>(row.sequence)];
      change /= 1.0 + std::exp(-static_cast<double>(logits.at(row.query, row.query_head, d)));
    }
  }
  return change;
}

/// One row's variant, whichever row it is told.
struct WrittenMask {
  const VariantNumbers& numbers;
  std::span<const Part> parts;
  RowContext at;
  PositionRange visible_range(Index, Index kv_length) const { return {0, kv_length}; }
  bool is_visible(const RowContext&, Index key) const {
    return std::all_of(parts.begin(), parts.end(), [&](Part part) { return part_sees(part, numbers, at, key); });
  }
};
struct WrittenScore : WrittenMask {
  float score(float s, const RowContext&, Index key) const {
    double changed = static_cast<double>(s);
    for (const Part part : parts) changed = part_score(part, numbers, changed, at, key);
    return static_cast<float>(changed);
  }
};
struct WrittenSink : WrittenMask {
  float sink(const RowContext&) const { return numbers.sinks[static_cast<std::size_t>(at.query_head)]; }
  bool sink_in_lse() const { return numbers.sinks_in_lse; }
};

}  // namespace gqa::test
