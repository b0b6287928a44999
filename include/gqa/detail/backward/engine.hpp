// SPDX-License-Identifier: Apache-2.0
/// @file
/// Check, plan, execute: the way of every backward call.
#pragma once

#include "gqa/detail/backward/task.hpp"
#include "gqa/detail/engine.hpp"

namespace gqa::detail::inline GQA_ABI {

/// The number of the sequence that a unit is of.
inline Index sequence_of_unit(const BackwardCall& backward, Index unit) noexcept {
  Index low = 0;
  for (Index high = static_cast<Index>(backward.call.batch.size()) - 1; low < high;) {
    const Index middle = (low + high + 1) / 2;
    if (backward.plans[middle].first_unit <= unit) low = middle;
    else high = middle - 1;
  }
  return low;
}

inline void run_units(const BackwardCall& backward, Index worker) {
  ColumnTasks tasks(backward, backward.slots + static_cast<std::size_t>(worker) * backward.slot_bytes);
  for (;;) {
    const Index unit = backward.next->fetch_add(1, __ATOMIC_RELAXED);
    if (unit >= backward.units || !tasks.run(unit, sequence_of_unit(backward, unit))) return;
  }
}

/// Runs a worker; what its variant throws is kept, as run_worker() has it.
inline void run_backward_worker(const BackwardCall& backward, Index worker) noexcept {
  guard_worker(*backward.call.status, [&] { run_units(backward, worker); });
}

inline void execute_backward(BackwardCall& backward, const ExecutorRef& executor) {
  for (Index unit = 0; unit < backward.units; ++unit) ::new (backward.done + unit) Atomic<Index>(0);
  ::new (backward.next) Atomic<Index>(0);
  begin_progress(backward.call.control, backward.tiles);
  const TaskRef work(&backward, [](void* plan, Index worker) {
    run_backward_worker(*static_cast<const BackwardCall*>(plan), worker);
  });
  run_workers(*backward.call.status, executor, backward.workers, work, [] {});
}

inline std::size_t backward_scratch(std::span<const Sequence> batch, std::span<const SequenceGradients> gradients,
                                    const BackwardRef& functor, const VariantRef& variant,
                                    const BackwardVariant& slopes, const BackwardOptions& options) {
  if (batch.empty()) return 0;
  BackwardCall backward{};
  backward.variant = slopes;
  check_backward(batch, gradients, functor, variant, options, backward);
  return total_scratch(plan_backward(backward, functor, options));
}

/// Gradients of every sequence of the batch.
inline void differentiate(std::span<const Sequence> batch, std::span<const SequenceGradients> gradients,
                          const BackwardRef& functor, const VariantRef& variant, const BackwardVariant& slopes,
                          const BackwardOptions& options, ScratchCache& cache) {
  if (batch.empty() && gradients.empty()) return begin_progress(options.control, 0);
  BackwardCall backward{};
  backward.variant = slopes;
  check_backward(batch, gradients, functor, variant, options, backward);
  CallPlan& call = backward.call;
  call.control = options.control;
  {
    const FloatEnvironment environment;
    call.scale = options.scale.has_value() ? *options.scale : default_scale(call.shape.head_dim);
  }
  const BackwardSizes sizes = plan_backward(backward, functor, options);
  if (backward.units == 0) return begin_progress(call.control, 0);
  const std::size_t needed = total_scratch(sizes);
  if (!options.scratch.empty() && options.scratch.size() < needed)
    fail("options.scratch.size()", static_cast<Index>(options.scratch.size()),
         "at least scratch_bytes() = " + to_text(needed));
  CallStatus status{};
  call.status = &status;
  const auto run = [&](std::byte* memory) {
    const auto misalignment = reinterpret_cast<std::uintptr_t>(memory) % kScratchAlignment;
    Carver carver(misalignment == 0 ? memory : memory + (kScratchAlignment - misalignment));
    carve_backward_call(carver, sizes, backward);
    plan_backward(backward, functor, options);
    execute_backward(backward, options.executor);
  };
  if (!options.scratch.empty()) return run(options.scratch.data());
  ScratchLease lease(cache, needed);
  run(lease.data());
}

}  // namespace gqa::detail::inline GQA_ABI
