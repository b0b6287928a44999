// SPDX-License-Identifier: Apache-2.0
/// @file
/// What integrating.md shows, as a program: an engine that owns its buffers, block tables and threads, and calls attention over them. The lines
/// between a marker "[name]" and the next are those of the page (check.py); main holds what they compute to the definition, and to itself.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <span>
#include <thread>
#include <vector>

// [includes]
#include "gqa/gqa.hpp"
// []
#include "gqa/reference.hpp"

void without_exceptions(const float* q, const gqa::KvCacheView& kv, float* out);  // no_exceptions.cpp

namespace engine {

constexpr gqa::Index kQueryHeads = 32, kKvHeads = 8, kHeadDim = 128;

// [first call]
// One layer's cache, allocated by the engine: (KV head, token, dim) with room for max_tokens, in f16.
struct LayerCache {
  const void* keys;
  const void* values;
  gqa::Index max_tokens;
};

// out ← attention of the last n_q of `length` tokens, causal; the queries' own keys and values are in the cache already.
void attend(const float* q, gqa::Index n_q, const LayerCache& cache, gqa::Index length, float* out) {
  static const gqa::GroupedQueryAttention<kQueryHeads, kKvHeads, kHeadDim> attention;
  const auto steps = gqa::KvStrides::head_major(kKvHeads, cache.max_tokens, kHeadDim);
  const auto kv = gqa::KvCacheView::contiguous(cache.keys, gqa::ElementType::f16, cache.values, gqa::ElementType::f16,
                                               {length, kKvHeads, kHeadDim}, steps, steps);
  attention({q, n_q, kQueryHeads, kHeadDim}, kv, {out, n_q, kQueryHeads, kHeadDim});
}
// []

// [paged]
// The engine's own pool: blocks of 16 tokens, [block][token][KV head][dim], and a table of block numbers for each sequence.
struct Pool {
  const gqa::bf16* keys;
  const gqa::bf16* values;
  gqa::Index blocks;
};
struct Request {
  std::vector<std::int32_t> table;
  gqa::Index length;         // cached tokens, those of this step among them
  gqa::Index first, tokens;  // its rows in the step's tensors
};

gqa::KvCacheView view_of(const Pool& pool, const Request& request) {
  constexpr gqa::Index block_tokens = 16;
  const auto steps = gqa::KvStrides::token_major(kKvHeads, kHeadDim, block_tokens);
  return gqa::KvCacheView::paged(pool.keys, pool.values, {request.length, kKvHeads, kHeadDim}, request.table,
                                 block_tokens, pool.blocks, steps, steps);
}

// One step of all requests, prefill chunks and decode steps mixed: one call. q and out: tokens of all × Hq × D.
void step(const Pool& pool, const std::vector<Request>& requests, const gqa::ConstTensorView& q,
          const gqa::TensorView& out, const gqa::Options& options) {
  static const gqa::GroupedQueryAttention<kQueryHeads, kKvHeads, kHeadDim, kHeadDim, gqa::CacheOf<gqa::bf16>> attention;
  std::vector<gqa::Sequence> batch;
  for (const Request& request : requests)
    batch.push_back({.q = q.slice(request.first, request.tokens),
                     .kv = view_of(pool, request),
                     .out = out.slice(request.first, request.tokens)});
  attention(batch, gqa::Causal{}, options);
}
// []

// [threads]
// Any type with these two members; here one that starts threads, where an engine has a pool.
struct Threads {
  gqa::Index count;
  gqa::Index concurrency() const { return count; }
  void parallel_for(gqa::Index tasks, const gqa::TaskRef& work) const {
    std::atomic<gqa::Index> next{0};
    std::vector<std::jthread> threads;
    for (gqa::Index i = 0; i < count; ++i)
      threads.emplace_back([&] {
        for (gqa::Index task = next++; task < tasks; task = next++) work(task);
      });
  }
};
// []

// [scratch]
// Memory that the engine planned for: nothing is allocated in the call, nor kept by the functor.
void step_in(std::vector<std::byte>& arena, const gqa::DynamicAttention& attention,
             std::span<const gqa::Sequence> batch, gqa::Options options) {
  const std::size_t needed = attention.scratch_bytes(batch, options);
  if (arena.size() < needed) arena.resize(needed);
  options.scratch = arena;
  attention(batch, options);
}
// []

// [configuration]
// What a model's configuration says at run time becomes a type once a call.
struct LayerConfig {
  gqa::Index window;  // 0: none
  float soft_cap;     // 0: none
};
template <class Call>
void with_variant(const LayerConfig& layer, const Call& call) {
  if (layer.window > 0 && layer.soft_cap > 0)
    call(gqa::compose(gqa::CausalWindow{layer.window}, gqa::SoftCap{layer.soft_cap}));
  else if (layer.window > 0) call(gqa::CausalWindow{layer.window});
  else if (layer.soft_cap > 0) call(gqa::compose(gqa::Causal{}, gqa::SoftCap{layer.soft_cap}));
  else call(gqa::Causal{});
}
// []

// [errors]
bool try_step(const gqa::DynamicAttention& attention, std::span<const gqa::Sequence> batch) {
  try {
    attention(batch);
    return true;
  } catch (const gqa::ArgumentError& error) {  // "gqa: batch[1].kv.page_size is 0; expected …"
    std::fprintf(stderr, "%s\n", error.what());
    return false;
  }
}
// []

}  // namespace engine

namespace {

int failures = 0;
void expect(bool holds, const char* what) {
  std::printf("%s: %s\n", what, holds ? "yes" : "NO");
  if (!holds) ++failures;
}

template <class T>
std::vector<T> normal(gqa::Index count, unsigned seed) {
  std::mt19937 bits(seed);
  std::normal_distribution<float> draw;
  std::vector<T> made;
  for (gqa::Index i = 0; i < count; ++i) made.push_back(T(draw(bits)));
  return made;
}

}  // namespace

int main() {
  using namespace engine;
  constexpr gqa::Index max_tokens = 100, length = 70, n_q = 3;
  const std::vector<gqa::f16> keys = normal<gqa::f16>(kKvHeads * max_tokens * kHeadDim, 1);
  const std::vector<gqa::f16> values = normal<gqa::f16>(kKvHeads * max_tokens * kHeadDim, 2);
  const std::vector<float> q = normal<float>(n_q * kQueryHeads * kHeadDim, 3);
  std::vector<float> out(q.size());
  attend(q.data(), n_q, {keys.data(), values.data(), max_tokens}, length, out.data());

  const auto steps = gqa::KvStrides::head_major(kKvHeads, max_tokens, kHeadDim);
  const auto kv = gqa::KvCacheView::contiguous(keys.data(), values.data(), {length, kKvHeads, kHeadDim}, steps, steps);
  const gqa::ConstTensorView queries(q.data(), n_q, kQueryHeads, kHeadDim);
  const auto wanted = gqa::reference_attention(queries, kv, gqa::Causal{});
  double error = 0;
  for (gqa::Index row = 0; row < n_q * kQueryHeads; ++row)
    for (gqa::Index d = 0; d < kHeadDim; ++d)
      error = std::max(error, std::abs(wanted.out(row, d) - out[static_cast<std::size_t>(row * kHeadDim + d)]));
  expect(error < 1e-5, "the first call is what the definition says");

  // Two requests in a pool of 16-token blocks, one a chunk and one a decode step; then each by itself.
  constexpr gqa::Index blocks = 9, tokens = 6;
  const std::vector<gqa::bf16> pool_keys = normal<gqa::bf16>(blocks * 16 * kKvHeads * kHeadDim, 4);
  const std::vector<gqa::bf16> pool_values = normal<gqa::bf16>(blocks * 16 * kKvHeads * kHeadDim, 5);
  const Pool pool{pool_keys.data(), pool_values.data(), blocks};
  const std::vector<Request> requests = {{{7, 2, 5}, 40, 0, 5}, {{2, 0, 8, 3}, 64, 5, 1}};  // they share block 2
  const std::vector<float> step_q = normal<float>(tokens * kQueryHeads * kHeadDim, 6);
  const gqa::ConstTensorView step_queries(step_q.data(), tokens, kQueryHeads, kHeadDim);
  std::vector<float> together(step_q.size()), alone(step_q.size());
  const auto rows = [&](std::vector<float>& to) { return gqa::TensorView(to.data(), tokens, kQueryHeads, kHeadDim); };
  Threads threads{3};
  step(pool, requests, step_queries, rows(together), {.executor = threads});
  for (const Request& request : requests) step(pool, {request}, step_queries, rows(alone), {});
  expect(together == alone, "a batch on three threads has the bits of each request by itself");

  const gqa::DynamicAttention attention;
  std::vector<gqa::Sequence> batch = {
      {.q = step_queries.slice(0, 5), .kv = view_of(pool, requests[0]), .out = rows(alone).slice(0, 5)}};
  std::vector<std::byte> arena;
  step_in(arena, attention, batch, {});
  expect(together == alone, "and in scratch of the engine's");

  with_variant({.window = 0, .soft_cap = 0}, [&](const auto& variant) { attention(batch, variant); });
  expect(together == alone, "a configuration without window and soft cap is causal");
  with_variant({.window = 8, .soft_cap = 30}, [&](const auto& variant) { attention(batch, variant); });
  expect(together != alone, "one with them is not");

  batch[0].kv.page_size = 0;
  expect(!try_step(attention, batch), "a wrong argument is named");
  without_exceptions(q.data(), kv, out.data());
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
