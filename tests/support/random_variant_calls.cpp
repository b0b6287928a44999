// SPDX-License-Identifier: Apache-2.0
#include "random_variant_calls.hpp"

namespace gqa::test {
namespace {

/// A user's mask as an expression, and score as a function.
struct NearOrEarly {
  auto visible(const RowContext& row, auto k) const { return row.position - k < 50 || k < 70; }
};
struct HalfAndOne {
  float score(float score, const RowContext&, Index) const { return 0.5f * score + 1.0f; }
};

/// Of the heads of a scope, from an array with `each` elements a head.
template <class T>
std::span<const T> of_heads(const ScopedVariant& v, const std::vector<T>& all, Index each = 1) {
  const std::span<const T> span(all);
  if (v.scope.head < 0) return span;
  return span.subspan(static_cast<std::size_t>(v.scope.head * each), static_cast<std::size_t>(each));
}

template <Part P>
auto range_part(const ScopedVariant& v) {
  const VariantNumbers& n = v.numbers;
  if constexpr (P == Part::full) return Full{};
  if constexpr (P == Part::causal) return Causal{};
  if constexpr (P == Part::causal_window) return CausalWindow{n.window};
  if constexpr (P == Part::two_sided_window) return TwoSidedWindow{n.before, n.after};
  if constexpr (P == Part::prefix_lm) return PrefixLm{n.prefix};
  if constexpr (P == Part::first_tokens_and_window) return FirstTokensAndWindow{n.first, n.window};
  if constexpr (P == Part::chunked_local) return ChunkedLocal{n.chunk};
  if constexpr (P == Part::causal_with_blocks) return CausalWithBlocks{n.blocks};
  if constexpr (P == Part::packed_documents) return PackedDocuments{n.offsets, n.documents_causal};
  if constexpr (P == Part::valid_tokens)
    return ValidTokens{std::span(n.valid).subspan(static_cast<std::size_t>(v.scope.first_sequence))};
}

template <Part P>
auto mask_part(const ScopedVariant& v) {
  const VariantNumbers& n = v.numbers;
  if constexpr (P == Part::boolean_mask) return BooleanMask{n.flags.part(v.scope)};
  if constexpr (P == Part::dilated_window) return DilatedWindow{n.step, n.count};
  if constexpr (P == Part::block_sparse) return BlockSparse{n.query_block, n.key_block, n.list_offsets, n.listed};
  if constexpr (P == Part::draft_tree) return DraftTree{n.prefix, n.parents, n.ancestors};
  if constexpr (P == Part::users_condition) return NearOrEarly{};
}

template <Part P>
auto score_part(const ScopedVariant& v) {
  const VariantNumbers& n = v.numbers;
  if constexpr (P == Part::soft_cap) return SoftCap{n.cap};
  if constexpr (P == Part::alibi) return Alibi{of_heads(v, n.slopes)};
  if constexpr (P == Part::bias_f32) return AdditiveBias{n.bias_f32.part(v.scope)};
  if constexpr (P == Part::bias_bf16) return AdditiveBias{n.bias_bf16.part(v.scope)};
  if constexpr (P == Part::bias_f16) return AdditiveBias{n.bias_f16.part(v.scope)};
  if constexpr (P == Part::distance_bias)
    return DistanceBias{of_heads(v, n.distance_bias, n.distances), n.distances, n.least};
  if constexpr (P == Part::head_scale) return HeadScale{of_heads(v, n.scales)};
  if constexpr (P == Part::position_temperature) return PositionTemperature{n.floor_scale, 0.1f};
  if constexpr (P == Part::users_scalar_score) return HalfAndOne{};
}

template <Part P>
auto output_part(const ScopedVariant& v) {
  const VariantNumbers& n = v.numbers;
  if constexpr (P == Part::learned_sinks) return LearnedSinks{of_heads(v, n.sinks), n.sinks_in_lse};
  if constexpr (P == Part::value_scale) {
    if (v.scope.head < 0) return ValueScale{n.factors, n.group()};
    return ValueScale{std::span(n.factors).subspan(static_cast<std::size_t>(v.scope.head / n.group()), 1), 1};
  }
  if constexpr (P == Part::output_gate) return OutputGate{v.gates};
}

template <Part P>
auto make_part(const ScopedVariant& v) {
  if constexpr (P <= Part::valid_tokens) return range_part<P>(v);
  else if constexpr (P <= Part::users_condition) return mask_part<P>(v);
  else if constexpr (P <= Part::users_scalar_score) return score_part<P>(v);
  else return output_part<P>(v);
}

/// What is done with a variant of any type.
struct Job {
  enum class Kind : std::uint8_t { call, ask_scratch, find_first } kind;
  const DrawnAttention* attention;
  std::span<const Sequence> batch;
  const Options* options;
  std::size_t bytes;
  Index sequence;
  const DrawnSequence* extents;
  Index first;
};

template <class V>
void do_job(const V& variant, Job& job) {
  switch (job.kind) {
    case Job::Kind::call: (*job.attention)(job.batch, variant, *job.options); break;
    case Job::Kind::ask_scratch: job.bytes = job.attention->scratch_bytes(job.batch, variant, *job.options); break;
    case Job::Kind::find_first:
      job.first = job.extents->n_kv;
      for (Index token = 0; token < job.extents->n_q; ++token) {
        PositionRange ranges[detail::kMaxRanges];
        const QueryContext query{job.extents->position(token), token, job.sequence};
        detail::get_ranges(variant, query, job.extents->n_kv, ranges);
        for (Index i = 0; i < detail::ranges_of<V>; ++i)
          if (std::max<Index>(ranges[i].begin, 0) < std::min(ranges[i].end, job.extents->n_kv))
            job.first = std::min(job.first, std::max<Index>(ranges[i].begin, 0));
      }
      break;
  }
}

/// A composition: its parts, and what is compiled for it.
struct Combination {
  std::vector<Part> parts;
  void (*run)(const ScopedVariant&, Job&);
};

template <Part First, Part... More>
Combination of() {
  return {{First, More...}, [](const ScopedVariant& v, Job& job) {
            if constexpr (sizeof...(More) == 0) do_job(make_part<First>(v), job);
            else do_job(compose(make_part<First>(v), make_part<More>(v)...), job);
          }};
}

const std::vector<Combination>& list() {
  using enum Part;
  static const std::vector<Combination> all = {
      of<full>(),
      of<causal>(),
      of<causal_window>(),
      of<two_sided_window>(),
      of<prefix_lm>(),
      of<first_tokens_and_window>(),
      of<chunked_local>(),
      of<causal_with_blocks>(),
      of<packed_documents>(),
      of<valid_tokens>(),
      of<boolean_mask>(),
      of<dilated_window>(),
      of<block_sparse>(),
      of<draft_tree>(),
      of<causal, users_condition>(),
      of<full, soft_cap>(),
      of<causal, alibi>(),
      of<full, bias_f32>(),
      of<causal, bias_bf16>(),
      of<causal, bias_f16>(),
      of<full, distance_bias>(),
      of<causal, head_scale>(),
      of<causal, position_temperature>(),
      of<causal, users_scalar_score>(),
      of<causal, learned_sinks>(),
      of<full, value_scale>(),
      of<causal, output_gate>(),
      of<causal_window, soft_cap>(),
      of<causal_window, learned_sinks>(),
      of<causal, valid_tokens, alibi>(),
      of<first_tokens_and_window, bias_f32>(),
      of<boolean_mask, soft_cap, bias_f32>(),
      of<block_sparse, boolean_mask, learned_sinks>(),
      of<draft_tree, alibi>(),
      of<packed_documents, distance_bias>(),
      of<two_sided_window, head_scale, bias_f16>(),
      of<chunked_local, position_temperature, output_gate, value_scale>(),
      of<causal_with_blocks, dilated_window, soft_cap, users_scalar_score, users_condition>(),
  };
  return all;
}

const Combination& at(Index combination) { return list()[static_cast<std::size_t>(combination)]; }

}  // namespace

const char* part_name(Part part) {
  constexpr const char* names[] = {"full",
                                   "causal",
                                   "causal window",
                                   "two-sided window",
                                   "prefix",
                                   "first tokens and window",
                                   "chunks",
                                   "causal with blocks",
                                   "documents",
                                   "valid tokens",
                                   "boolean mask",
                                   "dilated window",
                                   "lists of blocks",
                                   "draft tree",
                                   "a condition",
                                   "soft cap",
                                   "ALiBi",
                                   "f32 bias",
                                   "bf16 bias",
                                   "f16 bias",
                                   "distance bias",
                                   "head scale",
                                   "temperature",
                                   "a scalar score",
                                   "sinks",
                                   "value scale",
                                   "output gate"};
  return names[static_cast<int>(part)];
}

Index combinations() { return static_cast<Index>(list().size()); }
std::span<const Part> parts_of(Index combination) { return at(combination).parts; }
std::string combination_name(Index combination) {
  std::string name;
  for (const Part part : parts_of(combination)) name += (name.empty() ? "" : ", ") + std::string(part_name(part));
  return name;
}

ScopedVariant::ScopedVariant(const VariantNumbers& all, Index which, const Scope& part)
    : numbers(all), combination(which), scope(part) {
  for (std::size_t s = static_cast<std::size_t>(part.first_sequence); s < all.gate_views.size(); ++s) {
    ConstTensorView gate = all.gate_views[s];
    if (part.queries >= 0) gate = gate.slice(part.first_query, part.queries);
    if (part.head >= 0) {
      gate.data = static_cast<const std::byte*>(gate.data) + part.head * gate.strides.head * element_bytes(gate.type);
      gate.heads = 1;
    }
    gates.push_back(gate);
    if (part.queries >= 0) break;  // a part of one sequence
  }
}

void call(const ScopedVariant& variant, const DrawnAttention& attention, std::span<const Sequence> batch,
          const Options& options) {
  Job job{Job::Kind::call, &attention, batch, &options, 0, 0, nullptr, 0};
  at(variant.combination).run(variant, job);
}

std::size_t scratch_bytes(const ScopedVariant& variant, const DrawnAttention& attention,
                          std::span<const Sequence> batch, const Options& options) {
  Job job{Job::Kind::ask_scratch, &attention, batch, &options, 0, 0, nullptr, 0};
  at(variant.combination).run(variant, job);
  return job.bytes;
}

Index first_in_range(const ScopedVariant& variant, Index sequence, const DrawnSequence& extents) {
  Job job{Job::Kind::find_first, nullptr, {}, nullptr, 0, sequence, &extents, 0};
  at(variant.combination).run(variant, job);
  return job.first;
}

}  // namespace gqa::test
