// SPDX-License-Identifier: Apache-2.0
/// @file
/// Whole prompts, chunks of them behind a long cache, and prompts under a sliding window.
///
///   prefill/<heads>/<type>/<tokens>/<path>/t<threads>            causal, all tokens at once
///   prefill_f32_queries                                          the same with f32 queries over a 16-bit cache
///   prefill_chunk_<new>                                          only the last <new> of the tokens are queries
///   prefill_window_<width>                                       causal with a sliding window
///
/// The last two are held against a plain prefill of as many visible pairs: cost should follow them.

#include <cmath>

#include "attention_call.hpp"

namespace gqa::bench {
namespace {

CallShape prefill_of(const CacheShape& cache, int threads = 1, Path path = best_path()) {
  return {.cache = cache,
          .query_tokens = cache.tokens,
          .query_type = cache.query_type(),
          .path = path,
          .threads = threads,
          .cold = false};
}

void add_prefill(const std::string& operation, const CallShape& shape, double target_percent = 0) {
  add(operation + "/" + shape.arguments(), [=](benchmark::State& state) {
    AttentionCall call(shape);
    Work work = shape.work();
    work.target_percent = target_percent;
    measure_call(state, shape.threads, work, [&] { call(); });
  });
}

/// A call in which not every query sees a whole triangle, beside a plain prefill of as many pairs.
void add_beside_plain(const std::string& operation, const CallShape& shape, double target_percent) {
  add(operation + "/" + shape.arguments(), [=](benchmark::State& state) {
    CallShape plain = shape;
    plain.window = 0;
    plain.query_tokens = plain.cache.tokens = static_cast<Index>(std::lround(std::sqrt(2 * shape.pairs())));
    const Index most = std::max(plain.cache.tokens, shape.cache.tokens);  // room for both
    normal_memory().rows(shape.cache.type, shape.cache.head_dim,
                         static_cast<std::size_t>(2 * most * shape.cache.kv_heads + 4096));
    AttentionCall call(shape), plain_call(plain);
    const TimedCall timed_plain([&] { plain_call(); });
    const std::vector<double> beside =
        measure_call(state, shape.threads, shape.work(), [&] { call(); }, {[&] { return timed_plain(); }});
    const double plain_rate = attention_flop(plain.pairs(), plain.cache) / beside[0];
    state.counters["percent_of_roofline"] = static_cast<double>(state.counters["percent_of_limit"]);
    state.counters["percent_of_limit"] = 100 * static_cast<double>(state.counters["flop_per_s"]) / plain_rate;
    state.counters["target_percent"] = target_percent;
    state.SetLabel("a plain prefill's FLOP/s");
  });
}

}  // namespace

void register_benchmarks() {
  constexpr ElementType bf16 = ElementType::bf16, f16 = ElementType::f16, f32 = ElementType::f32;
  if (best_path() == Path::portable) {  // long prompts would take minutes
    for (const Index tokens : {64, 128, 256}) add_prefill("prefill", prefill_of({.tokens = tokens, .type = f32}));
    return;
  }
  const bool tiles = best_path() == Path::amx;
  const auto on_tiles = [&](double target) { return tiles ? target : 0.0; };
  // Without tiles a long prompt takes seconds, and says no more than a shorter one.
  const Index width_tokens = tiles ? 4096 : 1024;

  for (const int threads : thread_counts()) {
    add_prefill("prefill", prefill_of({.tokens = 4096, .type = bf16}, threads), on_tiles(52));
    add_prefill("prefill", prefill_of({.tokens = 2048, .type = bf16}, threads), on_tiles(50));
    add_prefill("prefill", prefill_of({.tokens = 512, .type = bf16}, threads), on_tiles(35));
    for (const Path path : {Path::avx512, Path::avx2})
      if (path_available(path) && path <= best_path())
        add_prefill("prefill", prefill_of({.tokens = 2048, .type = f32}, threads, path), 75);
  }
  add_prefill("prefill", prefill_of({.head_dim = 64, .tokens = width_tokens, .type = bf16}), on_tiles(32));
  add_prefill("prefill", prefill_of({.head_dim = 96, .tokens = width_tokens, .type = bf16}), on_tiles(42));
  add_prefill("prefill", prefill_of({.head_dim = 256, .tokens = width_tokens, .type = bf16}), on_tiles(62));
  for (const Index kv_heads : {32, 1})
    add_prefill("prefill", prefill_of({.kv_heads = kv_heads, .tokens = 1024, .type = bf16}));
  for (const ElementType type : {f16, f32}) add_prefill("prefill", prefill_of({.tokens = 512, .type = type}));
  CallShape f32_queries = prefill_of({.tokens = 2048, .type = f16});
  f32_queries.query_type = f32;
  add_prefill("prefill_f32_queries", f32_queries, on_tiles(200));
  for (const Path path : paths())
    if (path != best_path())
      for (const ElementType type : {bf16, f32})
        add_prefill("prefill", prefill_of({.tokens = path == Path::portable ? 128 : 512, .type = type}, 1, path));

  CallShape chunk = prefill_of({.tokens = 8192 + 512, .type = bf16});
  chunk.query_tokens = 512;
  add_beside_plain("prefill_chunk_512", chunk, 90);
  CallShape window = prefill_of({.tokens = 8192, .type = bf16});
  window.window = 1024;
  add_beside_plain("prefill_window_1024", window, 90);
}

}  // namespace gqa::bench
