// SPDX-License-Identifier: Apache-2.0
/// @file
/// Many sequences in one call.
///
///   batch_ragged/<heads>/<type>/<sequences>/<path>/t<threads>    a decode step of each; 100 to 4000 tokens, contiguous caches
///   batch_paged                                                  the same over pages of 64 tokens
///   batch_uniform                                                a decode step of each; 2048 tokens
///   batch_mixed                                                  the same with a 512-token chunk of one more sequence's prompt

#include "batch_call.hpp"

namespace gqa::bench {
namespace {

void add_batch(const std::string& operation, const CacheShape& cache, const std::vector<Member>& members, int threads,
               double target_percent = 0) {
  const std::string name = operation + "/" + cache.heads_name() + "/" + cache.type_name() + "/" +
                           std::to_string(members.size()) + "/" + path_name(best_path()) + "/t" +
                           std::to_string(threads);
  add(name, [=](benchmark::State& state) {
    BatchCall call(cache, members, threads);
    Work work = call.work();
    work.target_percent = target_percent;
    measure_call(state, threads, work, [&] { call(); });
  });
}

}  // namespace

void register_benchmarks() {
  const std::vector<Member> ragged = ragged_members();
  const std::vector<Member> uniform(64, Member{1, 2048});
  std::vector<Member> mixed = uniform;
  mixed.push_back({512, 2048});

  for (const int threads : thread_counts()) {
    for (const ElementType type : {ElementType::bf16, ElementType::f32})
      add_batch("batch_ragged", {.type = type}, ragged, threads, 85);
    add_batch("batch_ragged", {.kv_heads = 1, .type = ElementType::bf16}, ragged, threads);
    add_batch("batch_paged", {.type = ElementType::bf16, .layout = Layout::paged}, ragged, threads);
    add_batch("batch_uniform", {.type = ElementType::bf16}, uniform, threads);
    add_batch("batch_mixed", {.type = ElementType::bf16}, mixed, threads);
  }
}

}  // namespace gqa::bench
