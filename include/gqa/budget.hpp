// SPDX-License-Identifier: Apache-2.0
/// @file
/// How much memory a KV cache takes, and the questions the other way round. Exact integers, constexpr, no allocation; the owning
/// caches of gqa/kv_cache.hpp allocate just what is said here.
///
///     constexpr gqa::ModelShape model = gqa::preset("llama-2-70b");                      // gqa/budget_presets.hpp
///     constexpr gqa::KvPlan plan{.k_format = gqa::KvFormat::bf16, .v_format = gqa::KvFormat::bf16};
///     gqa::kv_sequence_bytes(model, plan, 131072);                                       // 42949672960
///     gqa::longest_context(model, plan, 16, memory);                                     // tokens, for 16 sequences
///     gqa::devices_needed(weights + cache, memory_of_one);
///
/// All functions throw ArgumentError that names what is wrong with the model (`model.kinds[0].kv_heads`), the plan (`plan.page_size`)
/// or an argument, and where a result does not fit in 63 bits. All are safe to call from any thread.
/// Not part of gqa/gqa.hpp: attention does not need it.
#pragma once

#include <optional>

#include "gqa/budget_formats.hpp"
#include "gqa/budget_model.hpp"
#include "gqa/detail/plain_tokens.hpp"

namespace gqa {

/// How a cache is stored.
struct KvPlan {
  KvFormat k_format = KvFormat::bf16;
  KvFormat v_format = KvFormat::bf16;
  /// Tokens in a page; 0: one piece for a sequence. Pages are taken whole.
  Index page_size = 0;
  /// True: a layer with a window keeps no more than the window (RingKvCache; with pages, those that the window touches). False: it
  /// keeps every token, as ContiguousKvCache and PagedKvPool do.
  bool windows_capped = true;
  /// Tokens that are appended at a time, draft tokens included. A window of w tokens keeps w + chunk − 1, because the first query of
  /// a chunk still needs what its last tokens would push out.
  Index chunk = 1;
  /// Tokens that a cache keeps as plain elements of this format besides: see KvCacheConfig::newest_tokens. Not in layers whose windows are
  /// capped.
  Index first_tokens = 0;
  Index newest_tokens = 0;
  KvFormat plain_format = KvFormat::bf16;
};

/// What longest_context returns where memory does not limit it: all layers have windows, and these fit.
inline constexpr Index kUnlimited = (std::numeric_limits<Index>::max)();

namespace detail::inline GQA_ABI {

constexpr void check_plan(const KvPlan& plan) {
  static_cast<void>(format_info(plan.k_format));
  static_cast<void>(format_info(plan.v_format));
  if (plan.page_size < 0) fail("plan.page_size", plan.page_size, "1 or more, or 0 for no pages");
  if (plan.chunk < 1) fail("plan.chunk", plan.chunk, "1 or more");
  static_cast<void>(format_info(plan.plain_format));
  constexpr Index most = Index{1} << 48;
  if (plan.first_tokens < 0 || plan.first_tokens > most || plan.first_tokens % kPartTokens != 0)
    fail("plan.first_tokens", plan.first_tokens, "a multiple of 64, 0 to 2^48");
  if (plan.newest_tokens < 0 || plan.newest_tokens > most) fail("plan.newest_tokens", plan.newest_tokens, "0 to 2^48");
}

/// ceil(a / b) without the sum that could overflow.
constexpr Index divide_up(Index a, Index b) { return a / b + (a % b != 0 ? 1 : 0); }

/// Tokens that a layer has to keep of a sequence of `tokens`.
constexpr Index kept_tokens(const LayerKind& kind, const KvPlan& plan, Index tokens) {
  if (kind.window == 0 || !plan.windows_capped) return tokens;
  const Index kept = plus(kind.window, plan.chunk - 1);
  return kept < tokens ? kept : tokens;
}

/// Tokens that a layer has memory for. A run of n tokens touches at most ceil((n − 1) / page) + 1 pages, wherever it starts.
constexpr Index slots_of(const LayerKind& kind, const KvPlan& plan, Index tokens) {
  const Index kept = kept_tokens(kind, plan, tokens);
  if (plan.page_size == 0 || tokens == 0) return kept;
  const Index pages = divide_up(tokens, plan.page_size);
  const Index touched = divide_up(kept - 1, plan.page_size) + 1;
  return times(touched < pages ? touched : pages, plan.page_size);
}

/// Bytes of one token's keys and values in one layer.
constexpr Index row_pair_bytes(const LayerKind& kind, const KvPlan& plan) {
  const Index k = row_bytes(plan.k_format, kind.head_dim);
  return times(kind.kv_heads, kind.values_in_keys ? k : k + row_bytes(plan.v_format, kind.width_of_values()));
}

/// The same as plain elements.
constexpr Index plain_pair_bytes(const LayerKind& kind, const KvPlan& plan) {
  return row_pair_bytes(kind, KvPlan{.k_format = plan.plain_format, .v_format = plan.plain_format});
}

constexpr bool has_plain_tokens(const LayerKind& kind, const KvPlan& plan) {
  return (plan.first_tokens > 0 || plan.newest_tokens > 0) && (kind.window == 0 || !plan.windows_capped);
}

/// Bytes of a sequence in a layer.
constexpr Index layer_bytes(const LayerKind& kind, const KvPlan& plan, Index tokens) {
  const Index bytes = times(row_pair_bytes(kind, plan), slots_of(kind, plan, tokens));
  if (tokens == 0 || !has_plain_tokens(kind, plan)) return bytes;
  return plus(bytes, times(plain_pair_bytes(kind, plan), plan.first_tokens + newest_slots(plan.newest_tokens)));
}

constexpr Index stored_bytes(const ModelShape& model, const KvPlan& plan, Index tokens) {
  Index bytes = 0;
  for (Index i = 0; i < model.kind_count; ++i) {
    const LayerKind& kind = model.kinds[i];
    if (kind.shares_kv) continue;
    bytes = plus(bytes, times(kind.count, layer_bytes(kind, plan, tokens)));
  }
  return bytes;
}

constexpr void check_budget(const ModelShape& model, const KvPlan& plan) {
  check_model(model);
  check_plan(plan);
}

constexpr void check_count(const char* argument, Index value, Index least) {
  if (value < least) fail(argument, value, least == 0 ? "0 or more" : "1 or more");
}

constexpr Index must_fit(const char* argument, Index value, Index bytes) {
  if (bytes == kIndexMax) fail(argument, value, "one whose bytes fit in 63 bits");
  return bytes;
}

constexpr Index sequence_bytes(const ModelShape& model, const KvPlan& plan, Index tokens) {
  check_budget(model, plan);
  check_count("tokens", tokens, 0);
  return must_fit("tokens", tokens, stored_bytes(model, plan, tokens));
}

constexpr Index batch_bytes(const ModelShape& model, const KvPlan& plan, Index tokens, Index sequences) {
  check_count("sequences", sequences, 0);
  return must_fit("sequences", sequences, times(sequence_bytes(model, plan, tokens), sequences));
}

constexpr Index token_bytes(const ModelShape& model, const KvPlan& plan) {
  check_budget(model, plan);
  KvPlan unpaged = plan;
  unpaged.page_size = unpaged.first_tokens = unpaged.newest_tokens = 0;
  return must_fit("model.kind_count", model.kind_count, stored_bytes(model, unpaged, 1));
}

constexpr Index wasted_bytes(const ModelShape& model, const KvPlan& plan, Index tokens) {
  KvPlan unpaged = plan;
  unpaged.page_size = 0;
  return sequence_bytes(model, plan, tokens) - stored_bytes(model, unpaged, tokens);
}

/// The largest n in [0, most] of which `fits` is true; fits(0) is, and once it is false it stays so.
template <class Fits>
constexpr Index largest(Index most, const Fits& fits) {
  if (fits(most)) return most;
  Index good = 0, bad = most;
  while (bad - good > 1) {
    const Index middle = good + (bad - good) / 2;
    (fits(middle) ? good : bad) = middle;
  }
  return good;
}

constexpr Index longest(const ModelShape& model, const KvPlan& plan, Index sequences, Index memory) {
  check_budget(model, plan);
  check_count("sequences", sequences, 1);
  check_count("memory", memory, 0);
  // A sum that saturates is the largest Index: more than any memory but that one, which nobody has.
  return largest(kUnlimited, [&](Index tokens) {
    const Index bytes = times(stored_bytes(model, plan, tokens), sequences);
    return bytes <= memory && bytes != kIndexMax;
  });
}

constexpr Index most_at_once(const ModelShape& model, const KvPlan& plan, Index tokens, Index memory) {
  check_count("tokens", tokens, 1);
  check_count("memory", memory, 0);
  return memory / sequence_bytes(model, plan, tokens);
}

constexpr Index devices_for(Index bytes, Index memory) {
  check_count("bytes", bytes, 0);
  check_count("memory", memory, 1);
  return divide_up(bytes, memory);
}

/// Cache bytes of one of `devices` devices: each has whole KV heads, and a copy where there are not enough of them.
constexpr Index share_of_device(const ModelShape& model, const KvPlan& plan, Index tokens, Index devices) {
  Index bytes = 0;
  for (Index i = 0; i < model.kind_count; ++i) {
    LayerKind kind = model.kinds[i];
    if (kind.shares_kv) continue;
    kind.kv_heads = divide_up(kind.kv_heads, devices);
    bytes = plus(bytes, times(kind.count, layer_bytes(kind, plan, tokens)));
  }
  return bytes;
}

constexpr std::optional<Index> parallel_devices(const ModelShape& model, const KvPlan& plan, Index tokens,
                                                Index sequences, Index weights, Index memory) {
  check_budget(model, plan);
  check_count("tokens", tokens, 0);
  check_count("sequences", sequences, 0);
  check_count("weights", weights, 0);
  check_count("memory", memory, 1);
  for (Index devices = 1; devices <= (Index{1} << 20); devices *= 2) {
    const Index cache = times(share_of_device(model, plan, tokens, devices), sequences);
    const Index bytes = plus(divide_up(weights, devices), cache);
    if (bytes <= memory && bytes != kIndexMax) return devices;
  }
  return std::nullopt;
}

constexpr bool formats_fit_widths(const ModelShape& model, KvFormat k, KvFormat v) {
  for (Index i = 0; i < model.kind_count; ++i) {
    const LayerKind& kind = model.kinds[i];
    if (!has_width(format_info(k), kind.head_dim)) return false;
    if (!kind.values_in_keys && !has_width(format_info(v), kind.width_of_values())) return false;
  }
  return true;
}

constexpr std::optional<KvFormat> widest_format(const ModelShape& model, const KvPlan& plan, Index tokens,
                                                Index sequences, Index memory) {
  check_budget(model, plan);
  check_count("tokens", tokens, 0);
  check_count("sequences", sequences, 0);
  check_count("memory", memory, 0);
  std::optional<KvFormat> best;
  Index best_bytes = -1;
  for (const KvFormatInfo& info : kKvFormats) {
    if (!formats_fit_widths(model, info.format, info.format)) continue;
    KvPlan changed = plan;
    changed.k_format = changed.v_format = info.format;
    const Index bytes = times(stored_bytes(model, changed, tokens), sequences);
    if (bytes > memory || bytes == kIndexMax || bytes <= best_bytes) continue;
    best = info.format;
    best_bytes = bytes;
  }
  return best;
}

constexpr std::optional<Index> most_heads(const ModelShape& model, const KvPlan& plan, Index tokens, Index sequences,
                                          Index memory) {
  check_budget(model, plan);
  check_count("tokens", tokens, 0);
  check_count("sequences", sequences, 0);
  check_count("memory", memory, 0);
  Index fewest_queries = kMostOfAShape;
  for (Index i = 0; i < model.kind_count; ++i) {
    const Index heads = model.kinds[i].query_heads;
    if (heads < fewest_queries) fewest_queries = heads;
  }
  const auto fits = [&](Index heads) {
    for (Index i = 0; i < model.kind_count; ++i)
      if (model.kinds[i].query_heads % heads != 0) return false;
    const Index bytes = times(stored_bytes(with_heads(model, heads), plan, tokens), sequences);
    return bytes <= memory && bytes != kIndexMax;
  };
  // Divisors from the largest down: those above the square root are what those below leave.
  Index root = 1;
  while (root < fewest_queries / root) ++root;
  for (Index divisor = 1; divisor <= root; ++divisor)
    if (fewest_queries % divisor == 0 && fits(fewest_queries / divisor)) return fewest_queries / divisor;
  for (Index divisor = root; divisor >= 1; --divisor)
    if (fewest_queries % divisor == 0 && fits(divisor)) return divisor;
  return std::nullopt;
}

}  // namespace detail::inline GQA_ABI

/// Bytes that a token adds to a sequence, in all layers together, while it is within all windows. Without the waste of pages.
GQA_ALWAYS_INLINE constexpr Index kv_bytes_per_token(const ModelShape& model, const KvPlan& plan) {
  return detail::token_bytes(model, plan);
}

/// Tokens that one layer of this kind has memory for when a sequence has `tokens`: the capacity of its cache, or its pages' tokens.
/// With pages and a window, as many as the window can touch wherever pages begin, so that a sequence that grows never needs more.
GQA_ALWAYS_INLINE constexpr Index kv_slots(const LayerKind& kind, const KvPlan& plan, Index tokens) {
  detail::check_kind(kind, -1);
  detail::check_plan(plan);
  detail::check_count("tokens", tokens, 0);
  return detail::must_fit("tokens", tokens, detail::slots_of(kind, plan, tokens));
}

/// Bytes of the caches of one sequence of `tokens` tokens, all layers.
GQA_ALWAYS_INLINE constexpr Index kv_sequence_bytes(const ModelShape& model, const KvPlan& plan, Index tokens) {
  return detail::sequence_bytes(model, plan, tokens);
}

/// Bytes of the caches of `sequences` sequences of `tokens` tokens each.
GQA_ALWAYS_INLINE constexpr Index kv_batch_bytes(const ModelShape& model, const KvPlan& plan, Index tokens,
                                                 Index sequences) {
  return detail::batch_bytes(model, plan, tokens, sequences);
}

/// Of kv_sequence_bytes, what holds no token: the rest of the last page, and what a window's first page holds from before it.
GQA_ALWAYS_INLINE constexpr Index kv_waste_bytes(const ModelShape& model, const KvPlan& plan, Index tokens) {
  return detail::wasted_bytes(model, plan, tokens);
}

/// The longest context, in tokens, of which `sequences` fit in `memory` bytes: 0 if not one token does, kUnlimited if windows hold
/// the cache below `memory` at any length.
GQA_ALWAYS_INLINE constexpr Index longest_context(const ModelShape& model, const KvPlan& plan, Index sequences,
                                                  Index memory) {
  return detail::longest(model, plan, sequences, memory);
}

/// The most sequences of `tokens` tokens that fit in `memory` bytes at once.
GQA_ALWAYS_INLINE constexpr Index most_sequences(const ModelShape& model, const KvPlan& plan, Index tokens,
                                                 Index memory) {
  return detail::most_at_once(model, plan, tokens, memory);
}

/// Devices of `memory` bytes each that hold `bytes` bytes (weights and caches) between them, if these can be cut anywhere.
GQA_ALWAYS_INLINE constexpr Index devices_needed(Index bytes, Index memory) {
  return detail::devices_for(bytes, memory);
}

/// Devices of `memory` bytes each for tensor parallelism: a power of two, weights cut evenly, and KV heads whole. Where there are
/// more devices than KV heads each head is kept more than once, so that fewer heads do not always mean fewer devices.
/// @return nothing if no number of devices up to 2^20 does, because one KV head is too large
GQA_ALWAYS_INLINE constexpr std::optional<Index> tensor_parallel_devices(const ModelShape& model, const KvPlan& plan,
                                                                         Index tokens, Index sequences, Index weights,
                                                                         Index memory) {
  return detail::parallel_devices(model, plan, tokens, sequences, weights, memory);
}

/// The format of most bytes in which keys and values both fit `memory`, and so the fewest bits one has to go down to. Among formats
/// of the same size the first in kKvFormats; those whose blocks do not divide the model's widths are left out.
/// @return nothing if the smallest does not fit
GQA_ALWAYS_INLINE constexpr std::optional<KvFormat> widest_format_that_fits(const ModelShape& model, const KvPlan& plan,
                                                                            Index tokens, Index sequences,
                                                                            Index memory) {
  return detail::widest_format(model, plan, tokens, sequences, memory);
}

/// The most KV heads, of those that divide every layer's query heads, with which the model's cache fits `memory`.
/// @return nothing if one is too many
GQA_ALWAYS_INLINE constexpr std::optional<Index> most_kv_heads_that_fit(const ModelShape& model, const KvPlan& plan,
                                                                        Index tokens, Index sequences, Index memory) {
  return detail::most_heads(model, plan, tokens, sequences, memory);
}

}  // namespace gqa
