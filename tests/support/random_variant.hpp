// SPDX-License-Identifier: Apache-2.0
// The parameters of shipped variants, drawn: numbers, and the memory that masks, biases, trees and gates lie in.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <vector>

#include "gqa/variants.hpp"
#include "random_draws.hpp"
#include "tensors.hpp"

namespace gqa::test {

/// What a variant is composed of.
enum class Part : std::uint8_t {
  full,
  causal,
  causal_window,
  two_sided_window,
  prefix_lm,
  first_tokens_and_window,
  chunked_local,
  causal_with_blocks,
  packed_documents,
  valid_tokens,
  boolean_mask,
  dilated_window,
  block_sparse,
  draft_tree,
  users_condition,
  soft_cap,
  alibi,
  bias_f32,
  bias_bf16,
  bias_f16,
  distance_bias,
  head_scale,
  position_temperature,
  users_scalar_score,
  learned_sinks,
  value_scale,
  output_gate
};

/// One sequence of a drawn call.
struct DrawnSequence {
  Index n_q = 1;
  Index n_kv = 1;
  std::vector<Index> positions;  ///< given ones; empty: the last of the cache
  Index position(Index token) const {
    return positions.empty() ? n_kv - n_q + token : positions[static_cast<std::size_t>(token)];
  }
};

/// What variants are drawn for.
struct DrawnExtents {
  Index query_heads = 1;
  Index kv_heads = 1;
  Index value_dim = 1;
  std::vector<DrawnSequence> sequences;

  Index longest() const {
    Index most = 0;
    for (const DrawnSequence& s : sequences) most = std::max(most, s.n_kv);
    return most;
  }
  bool same_queries() const {
    return std::all_of(sequences.begin(), sequences.end(),
                       [&](const DrawnSequence& s) { return s.n_q == sequences.front().n_q; });
  }
};

/// The part of a call that is made again alone: query tokens [first_query, first_query + queries) of one or all sequences from
/// `first_sequence` on, and of one query head or all.
struct Scope {
  Index first_sequence = 0;
  Index first_query = 0;
  Index queries = -1;  ///< −1: all
  Index head = -1;     ///< −1: all
};

/// Elements of masks and biases, with a view.
template <class T>
struct DrawnElements {
  std::vector<T> memory;
  BroadcastView<T> view;

  template <class Make>
  void draw(Draws& draws, const DrawnExtents& extents, const Make& make) {
    const Index sequences = draws.flag("view has sequences") ? static_cast<Index>(extents.sequences.size()) : 1;
    const Index heads = draws.flag("view has heads") ? extents.query_heads : 1;
    const Index queries = extents.same_queries() && draws.flag("view has queries") ? extents.sequences.front().n_q : 1;
    const Index keys = std::max<Index>(extents.longest(), 1) + draws.draw("view's further keys", 0, 70);
    const Index step = draws.draw("view's key stride", 1, 3);
    const Index row = keys * step + draws.draw("view's gap", 0, 5);
    typename BroadcastView<T>::Strides strides{heads * queries * row, queries * row, row, step};
    if (draws.flag("view has queries outside of heads")) strides = {heads * queries * row, row, heads * row, step};
    const auto size = static_cast<std::size_t>(sequences * heads * queries * row);
    const bool backwards = draws.flag("view runs backwards");
    memory.resize(size);
    for (std::size_t i = 0; i < size; ++i) memory[i] = make();
    const T* first = memory.data();
    if (backwards && size > 0) {
      first += size - 1;
      strides = {-strides.sequence, -strides.head, -strides.query, -strides.key};
    }
    view = BroadcastView<T>(first, sequences, heads, queries, keys, strides);
  }

  const T& at(const RowContext& row, Index key) const {
    return view.data[(view.sequences == 1 ? 0 : row.sequence * view.strides.sequence) +
                     (view.heads == 1 ? 0 : row.query_head * view.strides.head) +
                     (view.queries == 1 ? 0 : row.query * view.strides.query) + key * view.strides.key];
  }

  BroadcastView<T> part(const Scope& scope) const {
    BroadcastView<T> part = view;
    const auto move = [&](Index& extent, Index first, Index count, Index stride) {
      if (extent == 1) return;
      part.data += first * stride;
      extent = count < 0 ? extent - first : count;
    };
    move(part.sequences, scope.first_sequence, -1, part.strides.sequence);
    if (scope.head >= 0) move(part.heads, scope.head, 1, part.strides.head);
    move(part.queries, scope.first_query, scope.queries, part.strides.query);
    return part;
  }
};

/// The parameters of all parts; those that a variant does not have are not drawn.
struct VariantNumbers {
  DrawnExtents extents;
  Index window = 1, before = 0, after = 0, prefix = 0, first = 0, chunk = 1, step = 1, count = 1;
  std::vector<PositionRange> blocks, valid;
  std::vector<Index> offsets;
  bool documents_causal = true;
  DrawnElements<std::uint8_t> flags;
  Index query_block = 1, key_block = 1;
  std::vector<Index> list_offsets, listed;
  std::vector<std::int32_t> parents;
  std::vector<std::uint64_t> ancestors;
  float cap = 1.0f;
  std::vector<float> slopes;
  DrawnElements<float> bias_f32;
  DrawnElements<bf16> bias_bf16;
  DrawnElements<f16> bias_f16;
  std::vector<float> table, distance_bias;
  bool two_sided_buckets = false;
  Index buckets = 4, least = 0, distances = 1;
  static constexpr Index kFarthest = 40;  ///< T5's max_distance
  std::vector<float> scales;
  Index floor_scale = 1;
  std::vector<float> sinks;
  bool sinks_in_lse = true;
  std::vector<float> factors;
  std::vector<Tensor> gates;
  std::vector<ConstTensorView> gate_views;

  Index group() const { return extents.query_heads / extents.kv_heads; }
  void draw(Part part, Draws& draws, Random& numbers);

 private:
  void draw_ranges(Part part, Draws& draws);
  void draw_masks(Part part, Draws& draws, Random& numbers);
  void draw_scores(Part part, Draws& draws, Random& numbers);
  void draw_outputs(Part part, Draws& draws, Random& numbers);
  void draw_distances(Draws& draws, Random& numbers);
};

inline void VariantNumbers::draw_ranges(Part part, Draws& draws) {
  const Index longest = extents.longest();
  const auto ascending = [&](const char* gap, const char* size, Index pieces, const auto& take) {
    for (Index at = 0; pieces > 0; --pieces) {
      const Index begin = at + draws.draw(gap, 0, 20);
      at = begin + draws.draw(size, 0, longest);
      take(begin, at);
    }
  };
  if (part == Part::causal_window || part == Part::first_tokens_and_window)
    window = draws.draw("window", 1, longest + 10);
  if (part == Part::two_sided_window) {
    before = draws.draw("before", 0, longest + 10);
    after = draws.draw("after", 0, longest + 10);
  }
  if (part == Part::prefix_lm) prefix = draws.draw("prefix", 0, longest + 10);
  if (part == Part::first_tokens_and_window) first = draws.draw("first tokens", 0, 70);
  if (part == Part::chunked_local) chunk = draws.draw("chunk", 1, longest + 10);
  if (part == Part::causal_with_blocks)
    ascending("gap before block", "block", draws.draw("blocks", 0, 3), [&](Index begin, Index end) {
      blocks.push_back({begin, end});
    });
  if (part == Part::packed_documents) {
    documents_causal = !draws.flag("documents are two-sided");
    offsets.push_back(draws.draw("first document's begin", 0, 3));
    for (Index left = draws.draw("documents", 1, 4); left > 0; --left)
      offsets.push_back(offsets.back() + draws.draw("document", 0, longest));
  }
  if (part == Part::valid_tokens) {
    for (const DrawnSequence& s : extents.sequences) {
      const Index begin = draws.draw("padding", 0, s.n_kv);
      valid.push_back({begin, s.n_kv - draws.draw("padding behind", 0, s.n_kv - begin)});
    }
  }
}

inline void VariantNumbers::draw_masks(Part part, Draws& draws, Random& numbers) {
  if (part == Part::boolean_mask) {
    const Index of_eight = draws.draw("eighths that are hidden", 0, 8);
    flags.draw(draws, extents,
               [&] { return static_cast<std::uint8_t>(numbers.below(8) < of_eight ? 0 : 1 + numbers.below(255)); });
  }
  if (part == Part::dilated_window) {
    step = draws.draw("step", 1, 70);
    count = draws.draw("count", 1, extents.longest() + 1);
  }
  if (part == Part::block_sparse) {
    query_block = draws.draw("query block", 1, 100);
    key_block = draws.draw("key block", 1, 130);
    const Index of_four = draws.draw("fourths that are hidden", 0, 3);
    list_offsets.push_back(0);
    for (Index b = draws.draw("listed query blocks", 1, (extents.longest() + 10) / query_block + 1); b > 0; --b) {
      for (Index k = 0; k <= extents.longest() / key_block + 1; ++k)
        if (numbers.below(4) >= of_four) listed.push_back(k);
      list_offsets.push_back(static_cast<Index>(listed.size()));
    }
  }
  if (part == Part::draft_tree) {
    const Index nodes = extents.sequences.front().n_q;
    prefix = extents.sequences.front().n_kv - nodes;
    const Index kind = draws.draw("tree: a chain, roots, any", 0, 2);
    for (Index i = 0; i < nodes; ++i)
      parents.push_back(static_cast<std::int32_t>(kind == 0 ? i - 1 : kind == 1 ? -1 : numbers.below(i + 1) - 1));
    ancestors.resize(static_cast<std::size_t>(nodes * DraftTree::words_a_node(nodes)));
    DraftTree::fill_ancestors(parents, ancestors);
  }
}

inline void VariantNumbers::draw_distances(Draws& draws, Random& numbers) {
  Index last = 0;  // of the queries' positions
  for (const DrawnSequence& s : extents.sequences)
    for (Index i = 0; i < s.n_q; ++i) {
      last = std::max(last, s.position(i));
      least = std::min(least, s.position(i) - (s.n_kv - 1));
    }
  least -= draws.draw("further distances behind", 0, 5);
  distances = last - least + 1 + draws.draw("further distances", 0, 5);
  two_sided_buckets = draws.flag("buckets to both sides");
  buckets = draws.draw("buckets", 4, 32);
  table.resize(static_cast<std::size_t>(buckets * extents.query_heads));
  for (float& x : table) x = numbers.normal();
  distance_bias.resize(static_cast<std::size_t>(extents.query_heads * distances));
  DistanceBias::fill_t5(table, extents.query_heads, two_sided_buckets, buckets, kFarthest, least, distances,
                        distance_bias);
}

inline void VariantNumbers::draw_scores(Part part, Draws& draws, Random& numbers) {
  const auto heads = static_cast<std::size_t>(extents.query_heads);
  constexpr float caps[] = {50.0f, 5.0f, 0.5f};
  if (part == Part::soft_cap) cap = draws.pick("cap", caps);
  if (part == Part::alibi) {
    slopes.resize(heads);
    Alibi::fill_slopes(slopes);
  }
  if (part == Part::bias_f32) bias_f32.draw(draws, extents, [&] { return numbers.normal(); });
  if (part == Part::bias_bf16) bias_bf16.draw(draws, extents, [&] { return bf16(numbers.normal()); });
  if (part == Part::bias_f16) bias_f16.draw(draws, extents, [&] { return f16(numbers.normal()); });
  if (part == Part::distance_bias) draw_distances(draws, numbers);
  if (part == Part::head_scale)
    for (std::size_t h = 0; h < heads; ++h) scales.push_back(static_cast<float>(3.0 * numbers.uniform() - 1.5));
  if (part == Part::position_temperature) floor_scale = draws.draw("floor scale", 1, 100);
  if (part == Part::learned_sinks) {
    sinks_in_lse = !draws.flag("sinks are left out of the LSE");
    for (std::size_t h = 0; h < heads; ++h)
      sinks.push_back(numbers.below(9) == 0 ? -INFINITY : 2.0f * numbers.normal());
  }
}

inline void VariantNumbers::draw_outputs(Part part, Draws& draws, Random& numbers) {
  if (part == Part::value_scale)
    for (Index h = 0; h < extents.kv_heads; ++h) factors.push_back(0.7f * numbers.normal());
  if (part != Part::output_gate) return;
  constexpr ElementType types[] = {ElementType::f32, ElementType::bf16, ElementType::f16};
  constexpr TensorLayout layouts[] = {TensorLayout::packed, TensorLayout::head_major, TensorLayout::padded,
                                      TensorLayout::reversed};
  const ElementType type = draws.pick("gate's type", types);
  const TensorLayout layout = draws.pick("gate's layout", layouts);
  for (const DrawnSequence& s : extents.sequences) {
    Numbers logits(s.n_q, extents.query_heads, extents.value_dim);
    for (float& x : logits.values) x = (numbers.below(9) == 0 ? 200.0f : 3.0f) * numbers.normal();
    gates.emplace_back(logits, type, layout);
    gate_views.push_back(gates.back().const_view());
  }
}

inline void VariantNumbers::draw(Part part, Draws& draws, Random& numbers) {
  draw_ranges(part, draws);
  draw_masks(part, draws, numbers);
  draw_scores(part, draws, numbers);
  draw_outputs(part, draws, numbers);
}

}  // namespace gqa::test
