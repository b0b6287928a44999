// SPDX-License-Identifier: Apache-2.0
/// @file
/// Check, plan, execute: the way of every call.
#pragma once

#include <exception>
#include <optional>

#include "gqa/detail/fold.hpp"

namespace gqa::detail::inline GQA_ABI {

/// The number of the last of `count` plans that is not behind `index`, by what they count their first of; those without any are skipped.
template <class Plan>
Index plan_of(const Plan* plans, std::size_t count, Index index, Index Plan::*first) noexcept {
  Index low = 0;
  for (Index high = static_cast<Index>(count) - 1; low < high;) {
    const Index middle = (low + high + 1) / 2;
    if (plans[middle].*first <= index) low = middle;
    else high = middle - 1;
  }
  return low;
}
/// The number of the sequence that a fold or a span is of.
inline Index sequence_of(const CallPlan& call, Index index, Index SequencePlan::*first) noexcept {
  return plan_of(call.sequences, call.batch.size(), index, first);
}

/// One worker's way through a call: its own folds, those that others have not come to, and spans of folds in progress.
class Worker {
 public:
  Worker(const CallPlan& call, Index number) noexcept : call_(call), number_(number) {}

  void run() {
    for (Index i = 0; i < call_.workers; ++i) {
      WorkerShare& share = call_.shares[other(i)];
      while (!share.exhausted() && !ended()) {  // looked at first: shared, not taken from another core
        const Index fold = share.claim();
        if (fold >= share.end) break;
        const Index spans = enter(fold, number_);
        if (spans == 1 || call_.workers == 1) run_alone(spans);
        else run_shared(publish(call_.progress[number_], fold, spans), spans);
      }
    }
    for (Index i = 0; i < call_.workers && !ended(); ++i) {
      FoldProgress& progress = call_.progress[other(i)];
      if (progress.left.load(__ATOMIC_ACQUIRE) <= 0) continue;
      run_shared(progress, enter(progress.fold.load(__ATOMIC_RELAXED), other(i)));
    }
  }

  /// Makes a fold known to other workers.
  static FoldProgress& publish(FoldProgress& progress, Index fold, Index spans) noexcept {
    progress.fold.store(fold, __ATOMIC_RELAXED);
    progress.merged = 0;
    progress.left.store(spans, __ATOMIC_RELEASE);
    return progress;
  }

 private:
  Index other(Index i) const noexcept {
    const Index of = number_ + i;
    return of < call_.workers ? of : of - call_.workers;
  }

  bool ended() const noexcept { return has_ended(call_); }

  /// Goes on to a fold, whose total is number `total`. Returns how many spans it has.
  Index enter(Index fold, Index total) {
    if (!tasks_.has_value() || !tasks_->has(fold)) {
      const Index i = sequence_of(call_, fold, &SequencePlan::first_fold);
      tasks_.emplace(call_, call_.batch[static_cast<std::size_t>(i)], call_.sequences[i],
                     call_.slots + static_cast<std::size_t>(number_) * call_.slot_bytes);
    }
    return tasks_->enter(fold, total);
  }

  /// All spans of a fold that nobody else is at.
  void run_alone(Index spans) {
    Claim claim;
    claim.in_order = true;
    for (; claim.first < spans && !ended(); claim.first += claim.count) {
      claim.count = spans - claim.first < kStageSpans ? spans - claim.first : kStageSpans;
      run_claim(claim, spans);
    }
    if (claim.first >= spans) tasks_->store();
  }

  void run_shared(FoldProgress& progress, Index spans) {
    FoldShare fold(call_, number_, progress, *tasks_, spans);
    while (!ended()) {
      Claim claim = fold.claim(!call_.shares[number_].exhausted());
      if (claim.count == 0) return;
      run_claim(claim, spans);
      fold.finish(claim);
    }
  }

  /// @param spans of the fold
  void run_claim(const Claim& claim, Index spans) {
    tasks_->run(claim);
    count_done(claim, spans);
  }

  /// Every fold counts as the spans that the plan has for it.
  void count_done(const Claim& claim, Index spans) noexcept {
    if (call_.control == nullptr) return;
    const auto of_plan = [&](Index done) { return tasks_->planned_spans() * done / spans; };
    add_relaxed(call_.control->done, of_plan(claim.first + claim.count) - of_plan(claim.first));
  }

  const CallPlan& call_;
  const Index number_;
  std::optional<SequenceTasks> tasks_{};
};

/// Runs a worker's share of a call. What its variant throws is kept, the first of it, and ends the call.
template <class Work>
void guard_worker(CallStatus& status, const Work& work) noexcept {
#if defined(__cpp_exceptions)
  try {
    work();
  } catch (...) {
    if (!status.threw.exchange(true)) *static_cast<std::exception_ptr*>(status.exception) = std::current_exception();
    status.ended.store(true, __ATOMIC_RELAXED);
  }
#else
  work();
#endif
  status.ran.fetch_add(1, __ATOMIC_RELEASE);
}

inline void run_worker(const CallPlan& call, Index worker) noexcept {
  guard_worker(*call.status, [&] { Worker(call, worker).run(); });
}

/// Ends a call that was stopped. Returns in units without exceptions.
inline void stopped() {
#if defined(__cpp_exceptions)
  throw Stopped("gqa: the call was stopped by options.control");
#endif
}

/// A call begins that has `total` spans, or is stopped already.
inline void begin_progress(CallControl* control, Index total) {
  if (control == nullptr) return;
  store_relaxed(control->done, Index{0});
  store_relaxed(control->total, total);
  if (load_relaxed(control->stop)) stopped();
}

/// Cuts the folds into one share for each worker, by their spans. Where there are fewer folds than workers, all are made known at once, so
/// that none waits for a worker that begins late.
inline void share_out(const CallPlan& call) {
  for (Index worker = 0, fold = 0; worker < call.workers; ++worker) {
    WorkerShare& share = *::new (&call.shares[worker]) WorkerShare{};
    ::new (&call.progress[worker]) FoldProgress{};
    share.next.store(fold, __ATOMIC_RELAXED);
    if (worker + 1 == call.workers) {
      fold = call.folds;
    } else {
      const Index span =
          call.spans / call.workers * (worker + 1) + call.spans % call.workers * (worker + 1) / call.workers;
      const SequencePlan& plan = call.sequences[sequence_of(call, span, &SequencePlan::first_span)];
      const Index to = plan.first_fold + (span - plan.first_span) / plan.spans;
      if (to > fold) fold = to;
    }
    share.end = fold;
  }
  if (call.folds >= call.workers) return;
  for (Index fold = 0; fold < call.folds; ++fold) {
    const Index i = sequence_of(call, fold, &SequencePlan::first_fold);
    const SequencePlan& plan = call.sequences[i];
    const Index first_row = (plan.tiles - 1 - (fold - plan.first_fold) % plan.tiles) * plan.tile_rows;
    const Index last_row = first_row + plan.tile_rows < plan.rows ? first_row + plan.tile_rows : plan.rows;
    const PositionRange hull = visible_hull(call.variant, call.batch[static_cast<std::size_t>(i)],
                                            first_row / call.group, (last_row - 1) / call.group + 1);
    Worker::publish(call.progress[fold * call.workers / call.folds], fold, spans_of(hull));
  }
  for (Index worker = 0; worker < call.workers; ++worker) call.shares[worker].end = 0;
}

/// Runs a call's workers, then `finish`; throws what one of them threw, or that the call was stopped.
template <class Finish>
void run_workers(CallStatus& status, const ExecutorRef& executor, Index workers, const TaskRef& work,
                 const Finish& finish) {
#if defined(__cpp_exceptions)
  std::exception_ptr exception;
  status.exception = &exception;
#endif
  executor.parallel_for(workers, work);
  const Index ran = status.ran.load(__ATOMIC_ACQUIRE);
  if (ran != workers)
    fail("options.executor", "one that ran " + to_text(ran) + " of " + to_text(workers) + " tasks",
         "parallel_for to run every task once before it returns");
  finish();
#if defined(__cpp_exceptions)
  if (exception != nullptr) std::rethrow_exception(exception);
#endif
  if (status.ended.load(__ATOMIC_RELAXED)) stopped();
}

inline void execute(CallPlan& call, const ExecutorRef& executor) {
  CallStatus status{};
  call.status = &status;
  begin_progress(call.control, call.spans);
  share_out(call);
  const TaskRef work(&call, [](void* plan, Index worker) { run_worker(*static_cast<const CallPlan*>(plan), worker); });
  run_workers(status, executor, call.workers, work, [&] {
    // Spans may be left that nobody had room for, see FoldShare::claim: with no other worker about, they are in order.
    bool left = false;
    for (Index i = 0; i < call.workers; ++i) left = left || call.progress[i].left.load(__ATOMIC_RELAXED) > 0;
    if (left && !status.ended.load(__ATOMIC_RELAXED)) run_worker(call, 0);
  });
}

/// What q·k is multiplied by.
inline float scale_of(const Options& options, Index head_dim) noexcept {
  const FloatEnvironment environment;
  return options.scale.has_value() ? *options.scale : default_scale(head_dim);
}

/// Calls run(carver) with `needed` bytes of scratch: the caller's, or the functor's own. @throws ArgumentError if the caller's are fewer
template <class Run>
void with_scratch(std::span<std::byte> given, std::size_t needed, ScratchCache& cache, const Run& run) {
  const auto aligned = [&](std::byte* memory) {
    const auto misalignment = reinterpret_cast<std::uintptr_t>(memory) % kScratchAlignment;
    Carver carver(misalignment == 0 ? memory : memory + (kScratchAlignment - misalignment));
    run(carver);
  };
  if (kShortAddresses && needed > static_cast<std::size_t>(kMostScratch))
    raise<StorageExhausted>("gqa: no memory for the scratch of this call: more than " + to_text(kMostScratch) +
                            " bytes");
  if (!given.empty()) {
    if (given.size() < needed)
      fail("options.scratch.size()", static_cast<Index>(given.size()), "at least scratch_bytes() = " + to_text(needed));
    return aligned(given.data());
  }
  ScratchLease lease(cache, needed);
  aligned(lease.data());
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
  if (batch.empty()) return begin_progress(options.control, 0);
  CallPlan call{};
  check_call(batch, functor, variant, options, call);
  call.control = options.control;
  call.scale = scale_of(options, call.shape.head_dim);
  SequencePlan single{};  // of a call of one sequence, which need not be planned twice
  if (batch.size() == 1) call.sequences = &single;
  const ScratchSizes sizes = plan_batch(call, options);
  if (call.folds == 0) return begin_progress(call.control, 0);
  with_scratch(options.scratch, total_scratch(sizes), cache, [&](Carver& carver) {
    carve_call(carver, sizes, call);
    if (batch.size() == 1) call.sequences = &single;
    else plan_batch(call, options);
    execute(call, options.executor);
  });
}

}  // namespace gqa::detail::inline GQA_ABI
