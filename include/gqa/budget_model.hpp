// SPDX-License-Identifier: Apache-2.0
/// @file
/// The shape of a model, as far as memory and time follow from it: which kinds of attention layers it has, what they store a token,
/// and how many parameters it holds. No weights, no names.
///
///     gqa::ModelShape gemma;                                                       // Gemma 3 27B: five windowed layers, one full
///     gemma.add_layers({.count = 52, .query_heads = 32, .kv_heads = 16, .head_dim = 128, .window = 1024});
///     gemma.add_layers({.count = 10, .query_heads = 32, .kv_heads = 16, .head_dim = 128});
///
/// The order of layers does not matter to any of these numbers, so that layers are counted by kind. Everything is constexpr.
#pragma once

#include <limits>
#include <string>

#include "gqa/error.hpp"

namespace gqa {

/// Attention layers that are all alike.
struct LayerKind {
  Index count = 0;        ///< layers of this kind, 1 or more
  Index query_heads = 0;  ///< Hq
  Index kv_heads = 0;     ///< Hkv; must divide Hq
  Index head_dim = 0;     ///< D, the width of a query or key row
  Index value_dim = 0;    ///< Dv, the width of a value row; 0: the same as head_dim
  Index window = 0;       ///< tokens that a query sees, itself included; 0: all
  /// True: the layers store nothing and read what another layer stored (Gemma 3n, Gemma 4).
  bool shares_kv = false;
  /// True: a value row is the first value_dim numbers of the key row and is not stored. Multi-head latent attention is one KV head
  /// of this sort: head_dim = latent + rotary width (576), value_dim = latent (512).
  bool values_in_keys = false;

  /// Dv.
  GQA_ALWAYS_INLINE constexpr Index width_of_values() const noexcept { return value_dim == 0 ? head_dim : value_dim; }
  /// Alike but for the count.
  GQA_ALWAYS_INLINE constexpr bool same_kind(const LayerKind& other) const noexcept {
    return query_heads == other.query_heads && kv_heads == other.kv_heads && head_dim == other.head_dim &&
           width_of_values() == other.width_of_values() && window == other.window && shares_kv == other.shares_kv &&
           values_in_keys == other.values_in_keys;
  }
};

/// Feed-forward layers that are all alike: a dense part, experts of which a router chooses some, or both.
struct FeedForwardKind {
  Index count = 0;                ///< layers of this kind
  Index intermediate = 0;         ///< inner width of the dense part, shared experts included; 0: none
  Index experts = 0;              ///< experts in a layer; 0: none
  Index active_experts = 0;       ///< experts that a token goes through
  Index expert_intermediate = 0;  ///< inner width of one expert
  Index matrices = 3;             ///< 3: gate, up, down; 2: up, down
  bool bias = false;              ///< each matrix, and the router, has one
};

/// The projections of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): what the latent is made from and expanded to.
struct LatentProjections {
  Index query_rank = 0;  ///< 0: queries are projected in one step
  Index kv_rank = 0;     ///< the latent's width
  Index nope_dim = 0;    ///< width of a head's part without rotation
  Index rope_dim = 0;    ///< width of the rotated part, which all heads share
  Index value_dim = 0;   ///< width of a head's values once expanded
};

/// What parameters are counted from. All zero: not known, as for models whose other parts this description does not cover.
struct ParameterShape {
  Index hidden_size = 0;
  Index vocabulary = 0;
  bool tied_embeddings = false;  ///< the output layer is the embedding
  Index norm_vectors = 2;        ///< vectors of hidden_size a layer: 2 for two RMSNorms, 4 for two LayerNorms with bias
  Index final_norm_vectors = 1;
  bool qk_norm = false;      ///< two vectors of head_dim a layer
  bool qkv_bias = false;     ///< biases of query, key and value projections
  bool output_bias = false;  ///< bias of the output projection
  Index head_scalars = 0;    ///< numbers kept for each query head of each layer (an attention sink)
  Index other = 0;           ///< anything else: learned positions
};

/// A model. Build it with add_layers(), from a preset (gqa/budget_presets.hpp), or read it from a checkpoint's description, as the
/// example kv_budget does.
struct ModelShape {
  static constexpr Index max_kinds = 64;  ///< kinds of attention, or of feed-forward layers, that one model may mix

  LayerKind kinds[max_kinds]{};
  Index kind_count = 0;
  FeedForwardKind feed_forward[max_kinds]{};
  Index feed_forward_count = 0;
  ParameterShape parameters{};
  LatentProjections latent{};
  Index max_context = 0;  ///< tokens that the model was made for; 0: not said

  /// Adds layers, to a kind that is there already where it is the same.
  /// @throws ArgumentError if there are more than max_kinds kinds
  GQA_ALWAYS_INLINE constexpr void add_layers(const LayerKind& kind);
  /// Adds feed-forward layers. @throws ArgumentError if there are more than max_kinds kinds
  GQA_ALWAYS_INLINE constexpr void add_feed_forward(const FeedForwardKind& kind);
};

namespace detail::inline GQA_ABI {

inline constexpr Index kIndexMax = (std::numeric_limits<Index>::max)();

// Numbers above are not shapes of models; below, no product of two overflows.
inline constexpr Index kMostOfAShape = Index{1} << 31;

/// a · b and a + b, or the largest Index where that is more. Neither is negative.
constexpr Index times(Index a, Index b) noexcept {
  Index product = 0;
  return __builtin_mul_overflow(a, b, &product) ? kIndexMax : product;
}
constexpr Index plus(Index a, Index b) noexcept {
  Index sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? kIndexMax : sum;
}

/// @param at which of model.kinds; below 0: a kind on its own
[[noreturn]] inline void fail_kind(Index at, const char* member, Index value, const Text& expected) {
  fail((at < 0 ? "kind." : "model.kinds[" + to_text(at) + "].") + member, value, expected);
}

constexpr void check_room(const char* what, Index count) {
  if (count < 0 || count >= ModelShape::max_kinds)
    fail(what, count < 0 ? count : count + 1, to_text(ModelShape::max_kinds) + " at most");
}

constexpr void add_kind(ModelShape& model, const LayerKind& kind) {
  for (Index i = 0; i < model.kind_count; ++i) {
    LayerKind& known = model.kinds[i];
    if (!known.same_kind(kind)) continue;
    known.count = plus(known.count, kind.count);
    return;
  }
  check_room("kinds of layers", model.kind_count);
  model.kinds[model.kind_count++] = kind;
}

constexpr bool same_feed_forward(const FeedForwardKind& a, const FeedForwardKind& b) {
  return a.intermediate == b.intermediate && a.experts == b.experts && a.active_experts == b.active_experts &&
         a.expert_intermediate == b.expert_intermediate && a.matrices == b.matrices && a.bias == b.bias;
}

constexpr void add_feed_forward_kind(ModelShape& model, const FeedForwardKind& kind) {
  for (Index i = 0; i < model.feed_forward_count; ++i) {
    FeedForwardKind& known = model.feed_forward[i];
    if (!same_feed_forward(known, kind)) continue;
    known.count = plus(known.count, kind.count);
    return;
  }
  check_room("kinds of feed-forward layers", model.feed_forward_count);
  model.feed_forward[model.feed_forward_count++] = kind;
}

constexpr void check_kind(const LayerKind& kind, Index at) {
  const auto in_range = [](Index value) { return value >= 1 && value <= kMostOfAShape; };
  if (!in_range(kind.count)) fail_kind(at, "count", kind.count, "1 to 2^31");
  if (!in_range(kind.query_heads)) fail_kind(at, "query_heads", kind.query_heads, "1 to 2^31");
  if (!in_range(kind.kv_heads)) fail_kind(at, "kv_heads", kind.kv_heads, "1 to 2^31");
  if (kind.query_heads % kind.kv_heads != 0)
    fail_kind(at, "kv_heads", kind.kv_heads, "a divisor of the " + to_text(kind.query_heads) + " query heads");
  if (!in_range(kind.head_dim)) fail_kind(at, "head_dim", kind.head_dim, "1 to 2^31");
  if (kind.value_dim < 0 || kind.value_dim > kMostOfAShape)
    fail_kind(at, "value_dim", kind.value_dim, "1 to 2^31, or 0 for head_dim");
  if (kind.values_in_keys && kind.width_of_values() > kind.head_dim)
    fail_kind(at, "value_dim", kind.value_dim, "head_dim at most, where values lie in keys");
  if (kind.window < 0) fail_kind(at, "window", kind.window, "1 or more, or 0 for none");
}

constexpr void check_latent(const LatentProjections& latent) {
  const auto in_range = [](Index value) { return value >= 0 && value <= kMostOfAShape; };
  if (!in_range(latent.query_rank)) fail("model.latent.query_rank", latent.query_rank, "0 to 2^31");
  if (!in_range(latent.kv_rank)) fail("model.latent.kv_rank", latent.kv_rank, "0 to 2^31");
  if (!in_range(latent.nope_dim)) fail("model.latent.nope_dim", latent.nope_dim, "0 to 2^31");
  if (!in_range(latent.rope_dim)) fail("model.latent.rope_dim", latent.rope_dim, "0 to 2^31");
  if (!in_range(latent.value_dim)) fail("model.latent.value_dim", latent.value_dim, "0 to 2^31");
}

/// @throws ArgumentError naming what is wrong with the attention layers
constexpr void check_model(const ModelShape& model) {
  if (model.kind_count < 1 || model.kind_count > ModelShape::max_kinds)
    fail("model.kind_count", model.kind_count, "1 to " + to_text(ModelShape::max_kinds));
  check_latent(model.latent);
  bool stores = false;
  for (Index i = 0; i < model.kind_count; ++i) {
    const LayerKind& kind = model.kinds[i];
    check_kind(kind, i);
    stores = stores || !kind.shares_kv;
  }
  if (!stores) fail("model.kinds", "layers that all share another's cache", "one that stores its own");
}

constexpr Index layer_count(const ModelShape& model) {
  check_model(model);
  Index layers = 0;
  for (Index i = 0; i < model.kind_count; ++i) layers = plus(layers, model.kinds[i].count);
  return layers;
}

/// The same model with `kv_heads` KV heads in every layer.
constexpr ModelShape with_heads(const ModelShape& model, Index kv_heads) {
  check_model(model);
  ModelShape changed = model;
  changed.kind_count = 0;
  for (Index i = 0; i < model.kind_count; ++i) {
    LayerKind kind = model.kinds[i];
    if (kv_heads < 1 || kind.query_heads % kv_heads != 0)
      fail("kv_heads", kv_heads, "a divisor of the " + to_text(kind.query_heads) + " query heads");
    if (kind.values_in_keys) {  // then there are no heads to count; what the latent expands to has some
      const LatentProjections& latent = model.latent;
      if (latent.nope_dim + latent.rope_dim < 1 || latent.value_dim < 1)
        fail("kv_heads", kv_heads, "a model whose model.latent says how wide its heads are");
      kind.head_dim = latent.nope_dim + latent.rope_dim;
      kind.value_dim = latent.value_dim;
      kind.values_in_keys = false;
    }
    kind.kv_heads = kv_heads;
    add_kind(changed, kind);
  }
  for (Index i = changed.kind_count; i < ModelShape::max_kinds; ++i) changed.kinds[i] = LayerKind{};
  bool latent_left = false;
  for (Index i = 0; i < changed.kind_count; ++i) latent_left = latent_left || changed.kinds[i].values_in_keys;
  if (!latent_left) changed.latent = LatentProjections{};
  return changed;
}

}  // namespace detail::inline GQA_ABI

GQA_ALWAYS_INLINE constexpr void ModelShape::add_layers(const LayerKind& kind) { detail::add_kind(*this, kind); }
GQA_ALWAYS_INLINE constexpr void ModelShape::add_feed_forward(const FeedForwardKind& kind) {
  detail::add_feed_forward_kind(*this, kind);
}

/// Attention layers in all. @throws ArgumentError naming what is wrong with the model
GQA_ALWAYS_INLINE constexpr Index layer_count(const ModelShape& model) { return detail::layer_count(model); }

/// What if the model had `kv_heads` KV heads in every layer, all else equal? As many as query heads is multi-head attention, one is
/// multi-query attention. Multi-head latent attention becomes attention over the heads that its latent expands to.
/// @throws ArgumentError unless `kv_heads` divides every layer's query heads
GQA_ALWAYS_INLINE constexpr ModelShape with_kv_heads(const ModelShape& model, Index kv_heads) {
  return detail::with_heads(model, kv_heads);
}

}  // namespace gqa
