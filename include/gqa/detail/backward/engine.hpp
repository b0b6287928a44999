// SPDX-License-Identifier: Apache-2.0
/// @file
/// Check, plan, execute: the way of every backward call.
#pragma once

#include "gqa/detail/backward/task.hpp"
#include "gqa/detail/engine.hpp"

namespace gqa::detail::inline GQA_ABI {

inline void run_units(const BackwardCall& backward, Index worker) {
  ColumnTasks tasks(backward, backward.slots + static_cast<std::size_t>(worker) * backward.slot_bytes);
  for (;;) {
    const Index unit = backward.next->fetch_add(1, __ATOMIC_RELAXED);
    if (unit >= backward.units) return;
    const Index i = plan_of(backward.plans, backward.call.batch.size(), unit, &ColumnPlan::first_unit);
    if (!tasks.run(unit, i)) return;
  }
}

inline void execute_backward(BackwardCall& backward, const ExecutorRef& executor) {
  for (Index unit = 0; unit < backward.units; ++unit) ::new (backward.done + unit) Atomic<Index>(0);
  ::new (backward.next) Atomic<Index>(0);
  begin_progress(backward.call.control, backward.tiles);
  const TaskRef work(&backward, [](void* plan, Index worker) {
    const BackwardCall& call = *static_cast<const BackwardCall*>(plan);
    guard_worker(*call.call.status, [&] { run_units(call, worker); });
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
  call.scale = scale_of(options, call.shape.head_dim);
  const BackwardSizes sizes = plan_backward(backward, functor, options);
  if (backward.units == 0) return begin_progress(call.control, 0);
  CallStatus status{};
  call.status = &status;
  with_scratch(options.scratch, total_scratch(sizes), cache, [&](Carver& carver) {
    carve_backward_call(carver, sizes, backward);
    plan_backward(backward, functor, options);
    execute_backward(backward, options.executor);
  });
}

}  // namespace gqa::detail::inline GQA_ABI
