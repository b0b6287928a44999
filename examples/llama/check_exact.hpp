// SPDX-License-Identifier: Apache-2.0
/// @file
/// Whether a model's logits are the same bits however its prompt goes through it.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "generate.hpp"
#include "gqa/thread_pool.hpp"

namespace llama {

/// One way of running a prompt, and how many of its logits were other numbers than token by token, on one thread, in a contiguous cache.
struct ExactRun {
  CacheKind kind;
  Index chunk;
  int threads;
  Index different = 0;
};

inline const char* cache_name(CacheKind kind) {
  return kind == CacheKind::contiguous ? "contiguous" : kind == CacheKind::paged ? "paged" : "ring";
}

/// Logits of every token of the prompt, in chunks.
inline Columns prompt_logits(const Weights& weights, gqa::Options options, const CachePlan& plan,
                             const std::vector<Token>& prompt, int threads) {
  const gqa::ThreadPoolExecutor pool(threads);
  options.executor = pool;
  const Llama model(weights, options, plan.capacity);
  ModelCache cache(weights.config, plan);
  return generate(model, cache, prompt, {.chunk = plan.chunk, .keep_logits = true}).logits;
}

/// Every kind of cache, in chunks of 1, 7, 64 tokens and at once, and with 1, 2 and 3 threads.
/// @param on_run  called with each as soon as it is known
/// @throws std::runtime_error if a logit is not finite
inline std::vector<ExactRun> check_exact(const Weights& weights, const gqa::Options& options, const Format& format,
                                         bool rotate, const std::vector<Token>& prompt,
                                         const std::function<void(const ExactRun&)>& on_run = {}) {
  const auto count = static_cast<Index>(prompt.size());
  const auto plan = [&](CacheKind kind, Index chunk) { return CachePlan{kind, format, count, chunk, rotate}; };
  const Columns expected = prompt_logits(weights, options, plan(CacheKind::contiguous, 1), prompt, 1);
  expect_finite(expected);  // a NaN is never equal to itself
  std::vector<ExactRun> runs;
  int threads = 1;
  for (const Index chunk : std::set<Index>{1, std::min<Index>(7, count), std::min<Index>(64, count), count})
    for (const CacheKind kind : {CacheKind::contiguous, CacheKind::paged, CacheKind::ring}) {
      ExactRun run{kind, chunk, threads};
      threads = threads % 3 + 1;
      const Columns logits = prompt_logits(weights, options, plan(kind, chunk), prompt, run.threads);
      run.different = logits.cols() == expected.cols() ? (logits.array() != expected.array()).count() : expected.size();
      if (on_run) on_run(run);
      runs.push_back(run);
    }
  return runs;
}

}  // namespace llama
