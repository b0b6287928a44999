// SPDX-License-Identifier: Apache-2.0
/// @file
/// Speculative decoding: a few draft tokens checked in one call, over a cache that comes from memory. Reading the cache is most
/// of a decode step and is shared by the drafts, so some of them should come almost free.
///
///   verify_<drafts>/<heads>/<type>/<tokens>/<path>/t<threads>

#include "attention_call.hpp"

namespace gqa::bench {
namespace {

void add_verify(Index drafts, const CacheShape& cache, int threads, double allowed_steps) {
  CallShape shape{.cache = cache, .query_tokens = drafts, .query_type = cache.query_type(), .threads = threads};
  add("verify_" + std::to_string(drafts) + "/" + shape.arguments(), [=](benchmark::State& state) {
    CallShape one = shape;
    one.query_tokens = 1;
    AttentionCall verify(shape), step(one);
    const TimedCall step_call([&] { step(); });
    const std::vector<double> beside =
        measure_call(state, threads, shape.work(), [&] { verify(); }, {[&] { return step_call(); }});
    const double steps = shape.cache.bytes() / static_cast<double>(state.counters["bytes_per_s"]) / beside[0];
    state.counters["decode_steps"] = steps;
    state.counters["percent_of_roofline"] = static_cast<double>(state.counters["percent_of_limit"]);
    state.counters["percent_of_limit"] = 100 / steps;
    if (allowed_steps > 0) state.counters["target_percent"] = 100 / allowed_steps;
    state.SetLabel("one decode step's speed");
  });
}

}  // namespace

void register_benchmarks() {
  for (const ElementType type : {ElementType::bf16, ElementType::f32})
    for (const int threads : thread_counts())
      for (const Index drafts : {2, 4, 8, 16})
        add_verify(drafts, {.type = type}, threads,
                   type != ElementType::bf16 ? 0
                   : drafts == 4             ? 1.15
                   : drafts == 8             ? 1.3
                                             : 0);
  for (const Index drafts : {4, 8}) add_verify(drafts, {.kv_heads = 32}, 1, 0);
}

}  // namespace gqa::bench
