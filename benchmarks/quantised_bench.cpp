// SPDX-License-Identifier: Apache-2.0
/// @file
/// Calls over quantised caches, in turn with the same calls over a bf16 cache; queries are bf16.
///
///   decode/<heads>/<codec>/<tokens>/<path>/t<threads>            one token over a cache that comes from memory, head-major
///   decode_paged                                                 the same over pages of 64 tokens in random order
///   verify_<drafts>                                              a few draft tokens
///   batch_ragged/<heads>/<codec>/<sequences>/<path>/t<threads>   a decode step of each; 100 to 4000 tokens
///   batch_paged                                                  the same over pages
///   prefill                                                      all tokens at once
///
/// The counter bf16_speed is how many times as fast the call is as the bf16 one, bits_per_element what an element takes in the cache,
/// scales included. Decode steps and batches are held against memory, drafts against one decode step, pages against a contiguous
/// cache; prefills and decode steps with one KV head, which memory does not bound, against the bf16 call.

#include <optional>

#include "batch_call.hpp"

namespace gqa::bench {
namespace {

using QuantisedAttention =
    GroupedQueryAttention<dynamic, dynamic, dynamic, dynamic,
                          CacheOf<bf16, Int8, Int4, Q8_0, Q4_0, Q8Kv, Fp8E4M3, Q5_0, Q5_1, Iq4Nl, Mxfp4>>;
using QuantisedCall = CallOf<QuantisedAttention>;
using QuantisedBatch = BatchCallOf<QuantisedAttention>;

constexpr const char* kBf16Speed = "the bf16 cache's speed";

CallShape call_of(const CacheShape& cache, Index query_tokens = 1, int threads = 1, Path path = best_path()) {
  return {.cache = cache,
          .query_tokens = query_tokens,
          .query_type = cache.query_type(),
          .path = path,
          .threads = threads,
          .cold = query_tokens < cache.tokens};
}

/// The same cache in bf16.
CacheShape in_bf16(CacheShape shape) {
  shape.type = ElementType::bf16;
  return shape;
}

/// Seconds of a call, of the bf16 one and of a third, if there is one.
struct Times {
  double call, bf16, third;
};
/// Times a call in turn with the bf16 one and, if there is one, with a third.
Times measure_beside_bf16(benchmark::State& state, const CacheShape& cache, int threads, const Work& work,
                          const std::function<void()>& call, const std::function<void()>& bf16_call,
                          const std::function<void()>& third = {}) {
  const TimedCall timed_bf16(bf16_call);
  std::vector<Side> beside{[&] { return timed_bf16(); }};
  std::optional<TimedCall> timed_third;
  if (third) {
    timed_third.emplace(third);
    beside.push_back([&] { return (*timed_third)(); });
  }
  const std::vector<double> medians = measure_call(state, threads, work, call, beside);
  const Times times{work.bytes / static_cast<double>(state.counters["bytes_per_s"]), medians[0],
                    third ? medians[1] : 0};
  state.counters["bf16_speed"] = times.bf16 / times.call;
  state.counters["bits_per_element"] = cache.bits();
  return times;
}

/// Holds the entry against another call, or against memory, instead of the nearer of the machine's limits.
void hold_against(benchmark::State& state, const char* what, double percent, double target_percent) {
  state.counters["percent_of_roofline"] = static_cast<double>(state.counters["percent_of_limit"]);
  state.counters["percent_of_limit"] = percent;
  if (target_percent > 0) state.counters["target_percent"] = target_percent;
  state.SetLabel(what);
}

void add_decode(const CallShape& shape, double target_percent = 0) {
  add("decode/" + shape.arguments(), [=](benchmark::State& state) {
    QuantisedCall step(shape),
        plain(call_of(in_bf16(shape.cache), 1, shape.threads, shape.path), normal_memory_beside());
    const Times times = measure_beside_bf16(
        state, shape.cache, shape.threads, shape.work(), [&] { step(); }, [&] { plain(); });
    if (shape.cache.kv_heads == 1) hold_against(state, kBf16Speed, 100 * times.bf16 / times.call, target_percent);
    else
      hold_against(state, limit_name(Limit::memory_read), static_cast<double>(state.counters["percent_of_memory"]),
                   target_percent);
  });
}

/// @param allowed times the contiguous cache's time
void add_paged(const CallShape& contiguous, double allowed) {
  CallShape shape = contiguous;
  shape.cache.layout = Layout::paged;
  add("decode_paged/" + shape.arguments(), [=](benchmark::State& state) {
    QuantisedCall step(shape), straight(contiguous), plain(call_of(in_bf16(shape.cache)), normal_memory_beside());
    const Times times = measure_beside_bf16(
        state, shape.cache, shape.threads, shape.work(), [&] { step(); }, [&] { plain(); }, [&] { straight(); });
    hold_against(state, "the contiguous cache's speed", 100 * times.third / times.call, 100 / allowed);
  });
}

void add_verify(Index drafts, const CacheShape& cache) {
  const CallShape shape = call_of(cache, drafts);
  add("verify_" + std::to_string(drafts) + "/" + shape.arguments(), [=](benchmark::State& state) {
    QuantisedCall verify(shape), step(call_of(cache)), plain(call_of(in_bf16(cache), drafts), normal_memory_beside());
    const Times times = measure_beside_bf16(
        state, cache, shape.threads, shape.work(), [&] { verify(); }, [&] { plain(); }, [&] { step(); });
    state.counters["decode_steps"] = times.call / times.third;
    hold_against(state, "one decode step's speed", 100 * times.third / times.call, 0);
  });
}

void add_batch(const std::string& operation, const CacheShape& cache, int threads) {
  const std::string name = operation + "/" + cache.heads_name() + "/" + cache.type_name() + "/64/" +
                           path_name(best_path()) + "/t" + std::to_string(threads);
  add(name, [=](benchmark::State& state) {
    QuantisedBatch call(cache, ragged_members(), threads);
    QuantisedBatch plain(in_bf16(cache), ragged_members(), threads, normal_memory_beside());
    measure_beside_bf16(
        state, cache, threads, call.work(), [&] { call(); }, [&] { plain(); });
    hold_against(state, limit_name(Limit::memory_read), static_cast<double>(state.counters["percent_of_memory"]), 0);
  });
}

void add_prefill(const CacheShape& cache, int threads, double target_percent) {
  const CallShape shape = call_of(cache, cache.tokens, threads);
  add("prefill/" + shape.arguments(), [=](benchmark::State& state) {
    QuantisedCall call(shape), plain(call_of(in_bf16(cache), cache.tokens, threads), normal_memory_beside());
    const Times times = measure_beside_bf16(
        state, cache, threads, shape.work(), [&] { call(); }, [&] { plain(); });
    hold_against(state, kBf16Speed, 100 * times.bf16 / times.call, target_percent);
  });
}

/// What is aimed for in decode steps, in percent of memory's speed, with one KV head of the bf16 call's; 0: nothing.
struct Targets {
  double mha, gqa, gqa_two_threads, mqa;
};

/// A codec's calls. Entries of one codec follow each other: they share the memory that their caches are cut from.
void add_codec(const KvEncoding& codec, const Targets& targets) {
  const CacheShape mha{.kv_heads = 32, .type = codec}, gqa{.type = codec}, mqa{.kv_heads = 1, .type = codec};
  for (const Index tokens : {8192, 32768})
    for (const int threads : thread_counts()) {
      const auto long_call = [&](CacheShape shape) {
        shape.tokens = tokens;
        return call_of(shape, 1, threads);
      };
      add_decode(long_call(mha), targets.mha);
      add_decode(long_call(gqa), threads == 1 ? targets.gqa : threads == 2 ? targets.gqa_two_threads : 0);
      add_decode(long_call(mqa), targets.mqa);
    }
  for (const CacheShape& shape : {mha, gqa}) add_paged(call_of(shape), 1.15);
  for (const Index drafts : {4, 8}) add_verify(drafts, gqa);
  for (const int threads : thread_counts()) {
    add_batch("batch_ragged", gqa, threads);
    add_batch("batch_paged", {.type = codec, .layout = Layout::paged}, threads);
  }
  // Portable kernels would take minutes.
  if (best_path() != Path::portable) add_prefill({.tokens = 2048, .type = codec}, 1, 90);
  for (const Path path : paths())
    if (path != best_path() && path != Path::portable)
      for (const CacheShape& shape : {mha, gqa}) add_decode(call_of(shape, 1, 1, path));
}

}  // namespace

void register_benchmarks() {
  add_codec(Int8{}, {85, 75, 85, 100});
  add_codec(Int4{}, {70, 50, 70, 0});
  add_codec(Q8_0{}, {75, 0, 0, 0});
  add_codec(Q4_0{}, {60, 0, 0, 0});
  add_codec(Q8Kv{}, {});
  add_codec(Fp8E4M3{}, {});
  for (const KvEncoding& codec : {KvEncoding(Q5_1{}), KvEncoding(Q5_0{}), KvEncoding(Iq4Nl{}), KvEncoding(Mxfp4{})})
    for (const Index kv_heads : {32, 8, 1}) add_decode(call_of({.kv_heads = kv_heads, .type = codec}));
}

}  // namespace gqa::bench
