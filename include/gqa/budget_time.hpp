// SPDX-License-Identifier: Apache-2.0
/// @file
/// How many parameters a model has, what a decode step reads and what a prefill computes, and the times that follow.
///
/// Decoding is bound by memory: a step reads the weights it uses once and each sequence's cache once, so that its time is at least
/// bytes / bandwidth. Prefill is bound by arithmetic. Both times are bounds from below; a kernel's share of them is what the
/// benchmarks measure.
#pragma once

#include <optional>

#include "gqa/budget.hpp"

namespace gqa {

/// Parameters of a model, by what becomes of them.
struct ParameterCount {
  Index embedding = 0;            ///< looked up, a row a token
  Index output = 0;               ///< the last layer's matrix; 0 where it is the embedding
  Index attention = 0;            ///< matrices
  Index feed_forward = 0;         ///< matrices, all experts and the routers
  Index active_feed_forward = 0;  ///< of these, what one token goes through
  Index vectors = 0;              ///< norms, biases, sinks
  Index other = 0;

  GQA_ALWAYS_INLINE constexpr Index total() const noexcept {
    return embedding + output + attention + feed_forward + vectors + other;
  }
  /// What one token goes through, the embedding and output layers counted whole: the "A22B" of a name.
  GQA_ALWAYS_INLINE constexpr Index active() const noexcept { return total() - feed_forward + active_feed_forward; }
};

/// Floating-point operations, a product and a sum being two.
struct PrefillFlops {
  double linear = 0;  ///< projections, feed-forward layers, and the output layer for the last token; 0 where not known
  double attention = 0;  ///< scores and weighted values of all visible pairs
  GQA_ALWAYS_INLINE constexpr double total() const noexcept { return linear + attention; }
};

namespace detail::inline GQA_ABI {

/// Matrices of the attention layers of one kind, and their biases and norms.
constexpr void add_attention(ParameterCount& count, const ModelShape& model, const LayerKind& kind) {
  const ParameterShape& p = model.parameters;
  const Index h = p.hidden_size, hq = kind.query_heads, hkv = kind.kv_heads;
  Index matrices = 0, vectors = times(p.norm_vectors, h);
  if (kind.values_in_keys) {
    const LatentProjections& l = model.latent;
    const Index query_width = times(hq, l.nope_dim + l.rope_dim);
    matrices = l.query_rank == 0 ? times(h, query_width) : times(l.query_rank, plus(h, query_width));
    matrices = plus(matrices, times(h, l.kv_rank + l.rope_dim));
    matrices = plus(matrices, times(l.kv_rank, times(hq, l.nope_dim + l.value_dim)));
    matrices = plus(matrices, times(times(hq, l.value_dim), h));
    vectors = plus(vectors, l.query_rank + l.kv_rank);
  } else {
    const Index dv = kind.width_of_values();
    const Index q = times(hq, kind.head_dim);
    const Index kv = kind.shares_kv ? 0 : times(hkv, kind.head_dim + dv);
    matrices = plus(times(h, plus(q, kv)), times(times(hq, dv), h));
    if (p.qkv_bias) vectors = plus(vectors, plus(q, kv));
    if (p.output_bias) vectors = plus(vectors, h);
    if (p.qk_norm) vectors = plus(vectors, times(2, kind.head_dim));
    vectors = plus(vectors, times(p.head_scalars, hq));
  }
  count.attention = plus(count.attention, times(kind.count, matrices));
  count.vectors = plus(count.vectors, times(kind.count, vectors));
}

constexpr void add_feed_forward(ParameterCount& count, Index h, const FeedForwardKind& kind) {
  const auto matrices = [&](Index inner) { return times(times(kind.matrices, h), inner); };
  const auto biases = [&](Index inner) {
    return kind.bias && inner > 0 ? plus(times(kind.matrices - 1, inner), h) : 0;
  };
  const Index always = plus(matrices(kind.intermediate), times(h, kind.experts));
  const Index expert = matrices(kind.expert_intermediate);
  const Index vectors = plus(plus(biases(kind.intermediate), times(kind.experts, biases(kind.expert_intermediate))),
                             kind.bias ? kind.experts : 0);
  count.feed_forward = plus(count.feed_forward, times(kind.count, plus(always, times(kind.experts, expert))));
  count.active_feed_forward =
      plus(count.active_feed_forward, times(kind.count, plus(always, times(kind.active_experts, expert))));
  count.vectors = plus(count.vectors, times(kind.count, vectors));
}

[[noreturn]] inline void fail_feed_forward(Index at, const char* member, Index value, const Text& expected) {
  fail("model.feed_forward[" + to_text(at) + "]." + member, value, expected);
}

constexpr void check_feed_forward(const ModelShape& model) {
  const auto in_range = [](Index value) { return value >= 0 && value <= kMostOfAShape; };
  if (model.feed_forward_count < 0 || model.feed_forward_count > ModelShape::max_kinds)
    fail("model.feed_forward_count", model.feed_forward_count, "0 to " + to_text(ModelShape::max_kinds));
  for (Index i = 0; i < model.feed_forward_count; ++i) {
    const FeedForwardKind& kind = model.feed_forward[i];
    if (kind.count < 1 || !in_range(kind.count)) fail_feed_forward(i, "count", kind.count, "1 to 2^31");
    if (!in_range(kind.intermediate)) fail_feed_forward(i, "intermediate", kind.intermediate, "0 to 2^31");
    if (!in_range(kind.experts)) fail_feed_forward(i, "experts", kind.experts, "0 to 2^31");
    if (kind.active_experts < 0 || kind.active_experts > kind.experts)
      fail_feed_forward(i, "active_experts", kind.active_experts, "0 to the " + to_text(kind.experts) + " experts");
    if (!in_range(kind.expert_intermediate))
      fail_feed_forward(i, "expert_intermediate", kind.expert_intermediate, "0 to 2^31");
    if (kind.matrices != 2 && kind.matrices != 3) fail_feed_forward(i, "matrices", kind.matrices, "2 or 3");
  }
}

constexpr void check_parameters(const ParameterShape& p) {
  const auto in_range = [](Index value) { return value >= 0 && value <= kMostOfAShape; };
  if (!in_range(p.hidden_size)) fail("model.parameters.hidden_size", p.hidden_size, "0 to 2^31");
  if (!in_range(p.vocabulary)) fail("model.parameters.vocabulary", p.vocabulary, "0 to 2^31");
  if (!in_range(p.norm_vectors)) fail("model.parameters.norm_vectors", p.norm_vectors, "0 to 2^31");
  if (!in_range(p.final_norm_vectors)) fail("model.parameters.final_norm_vectors", p.final_norm_vectors, "0 to 2^31");
  if (!in_range(p.head_scalars)) fail("model.parameters.head_scalars", p.head_scalars, "0 to 2^31");
  if (p.other < 0) fail("model.parameters.other", p.other, "0 or more");
}

constexpr std::optional<ParameterCount> count(const ModelShape& model) {
  check_model(model);
  check_feed_forward(model);
  check_parameters(model.parameters);
  const ParameterShape& p = model.parameters;
  if (p.hidden_size == 0) return std::nullopt;
  ParameterCount made;
  made.embedding = times(p.vocabulary, p.hidden_size);
  made.output = p.tied_embeddings ? 0 : made.embedding;
  made.vectors = times(p.final_norm_vectors, p.hidden_size);
  made.other = p.other;
  for (Index i = 0; i < model.kind_count; ++i) add_attention(made, model, model.kinds[i]);
  for (Index i = 0; i < model.feed_forward_count; ++i) add_feed_forward(made, p.hidden_size, model.feed_forward[i]);
  const Index sum = plus(plus(plus(made.embedding, made.output), plus(made.attention, made.feed_forward)),
                         plus(made.vectors, made.other));
  must_fit("model.parameters.hidden_size", p.hidden_size, sum);
  return made;
}

constexpr std::optional<Index> parameters_of_step(const ModelShape& model, Index sequences) {
  check_count("sequences", sequences, 1);
  const std::optional<ParameterCount> all = count(model);
  if (!all) return std::nullopt;
  Index unread = model.parameters.tied_embeddings ? 0 : all->embedding;
  for (Index i = 0; i < model.feed_forward_count; ++i) {
    const FeedForwardKind& kind = model.feed_forward[i];
    const Index wanted = times(sequences, kind.active_experts);
    const Index idle = wanted < kind.experts ? kind.experts - wanted : 0;
    unread += kind.count * idle * kind.matrices * model.parameters.hidden_size * kind.expert_intermediate;
  }
  return all->total() - unread;
}

/// Of the last `seen` tokens of a sequence, those that are read as plain elements.
constexpr Index plain_tokens_read(const KvPlan& plan, Index tokens, Index seen) {
  const Index begin = tokens - seen;
  const Index first = plan.first_tokens < tokens ? plan.first_tokens : tokens;
  const Index of_first = first > begin ? first - begin : 0;
  Index newest = newest_begin(tokens, plan.newest_tokens);
  if (newest < first) newest = first;
  if (newest < begin) newest = begin;
  return of_first + tokens - newest;
}

constexpr Index bytes_read(const ModelShape& model, const KvPlan& plan, Index tokens) {
  check_budget(model, plan);
  check_count("tokens", tokens, 0);
  Index bytes = 0;
  for (Index i = 0; i < model.kind_count; ++i) {
    const LayerKind& kind = model.kinds[i];
    const Index seen = kind.window != 0 && kind.window < tokens ? kind.window : tokens;
    const Index plain = has_plain_tokens(kind, plan) ? plain_tokens_read(plan, tokens, seen) : 0;
    const Index each =
        plus(times(row_pair_bytes(kind, plan), seen - plain), times(plain_pair_bytes(kind, plan), plain));
    bytes = plus(bytes, times(kind.count, each));
  }
  return must_fit("tokens", tokens, bytes);
}

/// (query, key) pairs of one query head in a causal prefill of n tokens.
constexpr double visible_pairs(double n, Index window) {
  const double w = static_cast<double>(window);
  if (window == 0 || w >= n) return n * (n + 1) / 2;
  return w * (w + 1) / 2 + (n - w) * w;
}

constexpr PrefillFlops flops_of_prefill(const ModelShape& model, Index tokens) {
  check_count("tokens", tokens, 0);
  PrefillFlops flops;
  const double n = static_cast<double>(tokens);
  if (const std::optional<ParameterCount> all = count(model); all && tokens > 0) {
    const double output = static_cast<double>(model.parameters.tied_embeddings ? all->embedding : all->output);
    flops.linear = 2 * n * static_cast<double>(all->attention + all->active_feed_forward) + 2 * output;
  }
  for (Index i = 0; i < model.kind_count; ++i) {
    const LayerKind& kind = model.kinds[i];
    Index width = kind.head_dim + kind.width_of_values();
    // A prefill expands the latent to heads, which is less work than scores over the latent itself.
    if (kind.values_in_keys && model.latent.value_dim > 0)
      width = model.latent.nope_dim + model.latent.rope_dim + model.latent.value_dim;
    flops.attention += 2 * static_cast<double>(kind.count) * static_cast<double>(kind.query_heads) *
                       static_cast<double>(width) * visible_pairs(n, kind.window);
  }
  return flops;
}

[[noreturn]] inline void fail_number(const char* argument, double value, const char* expected) {
  fail(argument, to_text(value), expected);
}

constexpr double seconds(const char* argument, double amount, double rate) {
  if (!(rate > 0) || rate > (std::numeric_limits<double>::max)()) fail_number(argument, rate, "a positive number");
  return amount / rate;
}

}  // namespace detail::inline GQA_ABI

/// Parameters, counted from model.parameters, model.feed_forward and the attention layers; nothing if hidden_size is 0.
GQA_ALWAYS_INLINE constexpr std::optional<ParameterCount> count_parameters(const ModelShape& model) {
  return detail::count(model);
}

/// Parameters that a decode step of `sequences` tokens reads: all but the rows of the embedding that nobody looks up and the experts
/// that nobody chose. Of a mixture, as many experts as `sequences` tokens choose if no two choose the same: the most.
GQA_ALWAYS_INLINE constexpr std::optional<Index> parameters_read(const ModelShape& model, Index sequences) {
  return detail::parameters_of_step(model, sequences);
}

/// Bytes of keys and values that one decode step of one sequence reads when `tokens` tokens are cached, in all layers: what windows
/// hide is not read; layers that share a cache each read it.
GQA_ALWAYS_INLINE constexpr Index kv_bytes_read(const ModelShape& model, const KvPlan& plan, Index tokens) {
  return detail::bytes_read(model, plan, tokens);
}

/// Operations of a causal prefill of one sequence of `tokens` tokens.
GQA_ALWAYS_INLINE constexpr PrefillFlops prefill_flops(const ModelShape& model, Index tokens) {
  return detail::flops_of_prefill(model, tokens);
}

/// Seconds that reading `bytes` bytes takes. @param bandwidth bytes a second, above 0
GQA_ALWAYS_INLINE constexpr double seconds_to_read(Index bytes, double bandwidth) {
  return detail::seconds("bandwidth", static_cast<double>(bytes), bandwidth);
}

/// Seconds that `flops` operations take. @param rate operations a second, above 0
GQA_ALWAYS_INLINE constexpr double seconds_to_compute(double flops, double rate) {
  return detail::seconds("rate", flops, rate);
}

}  // namespace gqa
