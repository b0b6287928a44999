// SPDX-License-Identifier: Apache-2.0
/// @file
/// One new token over a cache that comes from memory, as it does in a model where each layer has its own.
///
///   decode/<heads>/<type>/<tokens>/<path>/t<threads>            head-major cache
///   decode_token_major, decode_paged, decode_ring               the same over other storage
///   decode_latent                                               V in K's rows (MLA): bytes are counted once
///   decode_l2                                                   over a cache that stays in the second-level cache
///   decode_tiny                                                 what a call costs by itself

#include "attention_call.hpp"

namespace gqa::bench {
namespace {

CallShape decode_of(const CacheShape& cache, int threads = 1, Path path = best_path()) {
  return {.cache = cache, .query_type = cache.query_type(), .path = path, .threads = threads};
}

void add_decode(const char* operation, const CallShape& shape, double target_percent = 0) {
  add(std::string(operation) + "/" + shape.arguments(), [=](benchmark::State& state) {
    AttentionCall step(shape);
    Work work = shape.work();
    work.target_percent = target_percent;
    measure_call(state, shape.threads, work, [&] { step(); });
    state.counters["ns_per_token"] = 1e9 * shape.cache.bytes() / static_cast<double>(state.counters["bytes_per_s"]) /
                                     static_cast<double>(shape.cache.tokens);
  });
}

/// Fewer KV heads beside all of them: cost should follow the bytes.
void add_decode_against_mha(const CallShape& shape, double target_speedup = 0) {
  add("decode/" + shape.arguments(), [=](benchmark::State& state) {
    CallShape all = shape;
    all.cache.kv_heads = all.cache.query_heads;
    const double ideal = static_cast<double>(shape.cache.query_heads / shape.cache.kv_heads);
    normal_memory().rows(all.cache.type, all.cache.head_dim,  // room for both, before either points into it
                         2 * out_of_cache_bytes() / stored_row_bytes(all.cache.type, all.cache.head_dim));
    AttentionCall step(shape), mha(all);
    const TimedCall mha_call([&] { mha(); });
    const std::vector<double> beside =
        measure_call(state, shape.threads, shape.work(), [&] { step(); }, {[&] { return mha_call(); }});
    const double seconds = shape.cache.bytes() / static_cast<double>(state.counters["bytes_per_s"]);
    state.counters["percent_of_roofline"] = static_cast<double>(state.counters["percent_of_limit"]);
    state.counters["speedup_over_mha"] = beside[0] / seconds;
    state.counters["percent_of_limit"] = 100 * beside[0] / seconds / ideal;
    if (target_speedup > 0) state.counters["target_percent"] = 100 * target_speedup / ideal;
    state.SetLabel("MHA's speed by the share of KV heads");
  });
}

void add_decode_in_l2(CallShape shape, double target_percent = 0) {
  shape.cold = false;
  add("decode_l2/" + shape.arguments(), [=](benchmark::State& state) {
    AttentionCall step(shape);
    Work work = shape.work();
    work.memory = Limit::l2_read;
    work.resident = true;
    work.target_percent = target_percent;
    measure_call(state, shape.threads, work, [&] { step(); });
  });
}

void add_tiny(Index query_heads, Index kv_heads) {
  CallShape shape = decode_of(
      {.query_heads = query_heads, .kv_heads = kv_heads, .head_dim = 64, .tokens = 16, .type = ElementType::f32});
  shape.cold = false;
  add("decode_tiny/" + shape.arguments(), [=](benchmark::State& state) {
    AttentionCall step(shape);
    const TimedCall timed([&] { step(); });
    const std::vector<double> medians = take_turns({[&] { return timed(); }}, seconds_per_entry());
    for (auto _ : state) state.SetIterationTime(medians[0]);
    constexpr double target = 1e-6;
    state.counters["nanoseconds"] = medians[0] * 1e9;
    state.counters["percent_of_limit"] = 100 * target / medians[0];
    if (query_heads == 1) state.counters["target_percent"] = 100;
    state.SetLabel("one call a microsecond");
  });
}

CacheShape with(CacheShape shape, ElementType type, Index tokens, Layout layout = Layout::head_major) {
  shape.type = type;
  shape.tokens = tokens;
  shape.layout = layout;
  return shape;
}

}  // namespace

void register_benchmarks() {
  const CacheShape mha{.kv_heads = 32}, gqa{.kv_heads = 8}, mqa{.kv_heads = 1};
  constexpr ElementType bf16 = ElementType::bf16;

  // Entries of one type follow each other: they share the memory that their caches are cut from.
  for (const ElementType type : {bf16, ElementType::f16, ElementType::f32}) {
    for (const Index tokens : {Index{8192}, Index{32768}})
      for (const CacheShape& shape : {mha, gqa})
        for (const int threads : thread_counts()) {
          add_decode("decode", decode_of(with(shape, type, tokens), threads), 90);
          add_decode("decode_token_major", decode_of(with(shape, type, tokens, Layout::token_major), threads), 85);
        }
    for (const Path path : paths()) {
      if (path == best_path()) continue;
      for (const CacheShape& shape : {mha, gqa, mqa})
        if (type == bf16 || shape.kv_heads == 8) add_decode("decode", decode_of(with(shape, type, 8192), 1, path));
    }
    if (type != bf16) continue;

    for (const int threads : thread_counts()) {
      for (const CacheShape& odd :
           {CacheShape{.query_heads = 28, .kv_heads = 4}, CacheShape{.query_heads = 40, .kv_heads = 8},
            CacheShape{.query_heads = 71, .kv_heads = 1, .head_dim = 64}})
        add_decode("decode", decode_of(odd, threads), 85);
      add_decode_against_mha(decode_of({.kv_heads = 2}, threads), 10);
      add_decode_against_mha(decode_of(mqa, threads), 12);
      add_decode_in_l2(decode_of({.tokens = 512}, threads), 40);
      add_decode_in_l2(decode_of({.tokens = 128}, threads));
    }
    for (const Index kv_heads : {16, 4}) add_decode_against_mha(decode_of({.kv_heads = kv_heads}));
    for (const Index tokens : {1024, 2048, 4096, 16384, 65536, 131072})
      add_decode("decode", decode_of(with(gqa, bf16, tokens)));
    add_decode("decode_paged", decode_of(with(gqa, bf16, 8192, Layout::paged)));
    for (const Index heads : {8, 16, 128})
      for (const int threads : thread_counts())
        add_decode("decode_latent",
                   decode_of({.query_heads = heads, .kv_heads = 1, .head_dim = 576, .layout = Layout::latent}, threads),
                   85);
    add_decode("decode_ring", decode_of(with(gqa, bf16, 8192, Layout::ring)));
  }
  add_tiny(1, 1);
  add_tiny(32, 8);
}

}  // namespace gqa::bench
