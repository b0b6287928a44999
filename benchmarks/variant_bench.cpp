// SPDX-License-Identifier: Apache-2.0
/// @file
/// What variants cost: calls with a mask, changed scores or sinks in turn with the same calls under a plain causal mask. percent_of_limit is
/// the causal call's time over the variant's.
///
///   variant/<kind>/<decode, verify or prefill>/<heads>/<type>/<tokens>/<path>/t<threads>

#include <cmath>

#include "attention_call.hpp"
#include "gqa/variants.hpp"

namespace gqa::bench {
namespace {

constexpr Index kDrafts = 16;

/// What masks, biases and sinks refer to, for calls of `queries` query tokens over `tokens`.
struct Operands {
  std::vector<float> slopes, sinks, biases;
  std::vector<bf16> brief;
  std::vector<std::uint8_t> flags;
  std::vector<std::int32_t> documents;
  std::vector<Index> offsets, listed, list_ends;
  std::vector<std::int32_t> parents;
  std::vector<std::uint64_t> ancestors;
  Index heads;
  Index queries;
  Index tokens;

  Operands(Index query_heads, Index query_tokens, Index length)
      : slopes(static_cast<std::size_t>(query_heads)),
        sinks(slopes.size(), 0.5f),
        biases(static_cast<std::size_t>(query_tokens * length)),
        flags(biases.size()),
        documents(static_cast<std::size_t>(length)),
        heads(query_heads),
        queries(query_tokens),
        tokens(length) {
    Alibi::fill_slopes(slopes);
    for (std::size_t i = 0; i < biases.size(); ++i) {
      biases[i] = static_cast<float>(i % 127) * 0.01f;
      brief.emplace_back(biases[i]);
      flags[i] = i % 9 != 0;
    }
    for (std::size_t i = 0; i < documents.size(); ++i) documents[i] = static_cast<std::int32_t>(i / 700);
    for (Index i = 0; i <= length; i += length / 4) offsets.push_back(i);
    list_ends.push_back(0);
    for (Index block = 0; block * 128 < length; ++block) {  // every second block of keys
      for (Index key = block % 2; key <= block; key += 2) listed.push_back(key);
      list_ends.push_back(static_cast<Index>(listed.size()));
    }
    for (std::int32_t node = 0; node < kDrafts; ++node) parents.push_back((node + 1) / 2 - 1);  // two children each
    ancestors.resize(parents.size());
    DraftTree::fill_ancestors(parents, ancestors);
  }
  template <class T>
  BroadcastView<T> view(const std::vector<T>& of) const {
    return {of.data(), 1, 1, queries, tokens};
  }
};

/// A user's expression: documents by their numbers.
struct DocumentNumbers : Causal {
  const std::int32_t* number;
  explicit DocumentNumbers(const std::int32_t* numbers) : number(numbers) {}
  auto visible(const RowContext& row, auto k) const { return lookup(number, k) == number[row.position]; }
};
/// A score that changes nothing, one at a time: what calling a functor costs.
struct Identity : Causal {
  float score(float score, const RowContext&, Index) const { return score; }
};
/// Soft cap by the C library, one at a time.
struct ScalarSoftCap : Causal {
  float score(float score, const RowContext&, Index) const { return 50.0f * std::tanh(score / 50.0f); }
};

/// @param allowed  times the causal call's time, or 0
template <class Make>
void add_variant(const std::string& kind, const CallShape& shape, double allowed, const Make& make) {
  const char* const call = shape.query_tokens == 1         ? "/decode/"
                           : shape.query_tokens == kDrafts ? "/verify/"
                                                           : "/prefill/";
  add("variant/" + kind + call + shape.arguments(), [=](benchmark::State& state) {
    const Operands operands(shape.cache.query_heads, shape.query_tokens, shape.cache.tokens);
    const auto variant = make(operands);
    AttentionCall changed(shape), plain(shape);
    const TimedCall causal([&] { plain(); });
    const std::vector<double> beside =
        measure_call(state, shape.threads, shape.work(), [&] { changed.with(variant); }, {[&] { return causal(); }});
    const double seconds = shape.cache.bytes() / static_cast<double>(state.counters["bytes_per_s"]);
    state.counters["causal_calls"] = seconds / beside[0];
    state.counters["percent_of_limit"] = 100 * beside[0] / seconds;
    if (allowed > 0) state.counters["target_percent"] = 100 / allowed;
    state.SetLabel("the causal call's speed");
  });
}

/// A tree of drafts beside as many drafts in a row.
void add_tree(const CallShape& shape) {
  add_variant("draft_tree", shape, 1.03, [](const Operands& o) {
    return DraftTree{o.tokens - kDrafts, o.parents, o.ancestors};
  });
}

void add_variants(const CallShape& shape) {
  const bool decode = shape.query_tokens == 1;
  const double scored = decode || shape.query_type == ElementType::f32 ? 1.10 : 1.20;
  add_variant("window", shape, 0, [](const Operands& o) { return CausalWindow{o.tokens / 2}; });
  add_variant("whole_window", shape, 1.03, [](const Operands& o) { return CausalWindow{o.tokens}; });
  add_variant("prefix", shape, decode ? 1.03 : 0, [](const Operands& o) { return PrefixLm{o.tokens / 4}; });
  add_variant("documents", shape, decode ? 0 : 1.03, [](const Operands& o) { return PackedDocuments{o.offsets}; });
  add_variant("document_numbers", shape, scored, [](const Operands& o) { return DocumentNumbers(o.documents.data()); });
  add_variant("boolean", shape, decode ? 1.10 : 0,
              [](const Operands& o) { return compose(Causal{}, BooleanMask{o.view(o.flags)}); });
  add_variant("block_sparse_half", shape, 0.60, [](const Operands& o) {
    return compose(Causal{}, BlockSparse{128, 128, o.list_ends, o.listed});
  });
  add_variant("soft_cap", shape, scored, [](const Operands&) { return compose(Causal{}, SoftCap{50.0f}); });
  add_variant("alibi", shape, scored, [](const Operands& o) { return compose(Causal{}, Alibi{o.slopes}); });
  add_variant("bias_f32", shape, scored,
              [](const Operands& o) { return compose(Causal{}, AdditiveBias{o.view(o.biases)}); });
  add_variant("bias_bf16", shape, scored,
              [](const Operands& o) { return compose(Causal{}, AdditiveBias{o.view(o.brief)}); });
  add_variant("sinks", shape, scored, [](const Operands& o) { return compose(Causal{}, LearnedSinks{o.sinks}); });
  add_variant("scalar_identity", shape, 0, [](const Operands&) { return Identity{}; });
  add_variant("scalar_soft_cap", shape, 0, [](const Operands&) { return ScalarSoftCap{}; });
}

}  // namespace

void register_benchmarks() {
  for (const ElementType type : {ElementType::bf16, ElementType::f32}) {
    add_variants({.cache = {.tokens = 8192, .type = type}, .query_type = type});
    add_tree({.cache = {.tokens = 8192, .type = type}, .query_tokens = kDrafts, .query_type = type});
    add_variants({.cache = {.tokens = 2048, .type = type}, .query_tokens = 2048, .query_type = type, .cold = false});
  }
}

}  // namespace gqa::bench
