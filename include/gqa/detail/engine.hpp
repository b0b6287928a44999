// SPDX-License-Identifier: Apache-2.0
/// @file
/// Check, plan, execute: the way of every call.
#pragma once

#include <optional>

#include "gqa/detail/task.hpp"

namespace gqa::detail::inline GQA_ABI {

/// The number of the sequence that task number `index` of a call is of.
inline Index sequence_of(const CallPlan& call, Index index) noexcept {
  Index low = 0;  // the last one whose first task is not after `index`, skipping those without tasks
  for (Index high = static_cast<Index>(call.batch.size()) - 1; low < high;) {
    const Index middle = (low + high + 1) / 2;
    if (call.sequences[middle].first_task <= index) low = middle;
    else high = middle - 1;
  }
  return low;
}

/// Runs the tasks of one worker, then those that other workers have not come to.
inline void run_worker(const CallPlan& call, Index worker) {
  std::byte* const slot = call.slots + static_cast<std::size_t>(worker) * call.slot_bytes;
  std::optional<SequenceTasks> sequence;
  const auto enter = [&](Index task) {
    if (sequence.has_value() && sequence->has(task)) return;
    const Index i = sequence_of(call, task);
    sequence.emplace(call, call.batch[static_cast<std::size_t>(i)], call.sequences[i], slot);
  };
  for (Index i = 0, of = worker; i < call.workers; ++i, of = of + 1 < call.workers ? of + 1 : 0) {
    WorkerTasks& tasks = call.queues[of];
    if (tasks.next.load(std::memory_order_relaxed) >= tasks.end) continue;  // shared, not taken from another core
    for (Index task; (task = tasks.claim()) < tasks.end;) {
      enter(task);
      sequence->run(task, 1 + tasks.claim_more(task + 1, sequence->joins(task), call.workers));
    }
  }
}

inline void execute(CallPlan& call, const ScratchSizes& sizes, const ExecutorRef& executor) {
  for (Index i = 0; i < sizes.progress; ++i) ::new (&call.progress[i]) Progress{};
  for (Index i = 0, begin = 0; i < call.workers; ++i) {
    WorkerTasks& tasks = *::new (&call.queues[i]) WorkerTasks{};
    tasks.next.store(begin, std::memory_order_relaxed);
    tasks.end = begin += (call.task_count - begin) / (call.workers - i);
  }
  const TaskRef work(&call, [](void* plan, Index worker) { run_worker(*static_cast<const CallPlan*>(plan), worker); });
  executor.parallel_for(call.workers, work);
}

/// Scratch in bytes, with room to align a buffer of any alignment.
inline std::size_t total_scratch(const ScratchSizes& sizes) noexcept {
  Carver carver(nullptr);
  CallPlan layout{};
  carve_call(carver, sizes, layout);
  return carver.used() + kScratchAlignment;
}

inline std::size_t scratch_needed(std::span<const Sequence> batch, const FunctorRef& functor, const VariantRef& variant,
                                  const Options& options) {
  if (batch.empty()) return 0;
  CallPlan call{};
  check_call(batch, functor, variant, options, call);
  return total_scratch(plan_batch(call, options));
}

/// out ← attention(q, kv) for every sequence of the batch.
inline void attend(std::span<const Sequence> batch, const FunctorRef& functor, const VariantRef& variant,
                   const Options& options, ScratchCache& cache) {
  if (batch.empty()) return;
  CallPlan call{};
  check_call(batch, functor, variant, options, call);
  {
    const FloatEnvironment environment;
    call.scale = options.scale.has_value() ? *options.scale : default_scale(call.shape.head_dim);
  }
  const ScratchSizes sizes = plan_batch(call, options);
  if (call.task_count == 0) return;
  const std::size_t needed = total_scratch(sizes);
  if (!options.scratch.empty() && options.scratch.size() < needed)
    fail("options.scratch.size()", static_cast<Index>(options.scratch.size()),
         "at least scratch_bytes() = " + to_text(needed));

  const auto run = [&](std::byte* memory) {
    const auto misalignment = reinterpret_cast<std::uintptr_t>(memory) % kScratchAlignment;
    Carver carver(misalignment == 0 ? memory : memory + (kScratchAlignment - misalignment));
    carve_call(carver, sizes, call);
    plan_batch(call, options);
    execute(call, sizes, options.executor);
  };
  if (!options.scratch.empty()) return run(options.scratch.data());
  ScratchLease lease(cache, needed);
  run(lease.data());
}

}  // namespace gqa::detail::inline GQA_ABI
