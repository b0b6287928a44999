// SPDX-License-Identifier: Apache-2.0
/// @file
/// Who runs the tasks of a call: the concept for a host program's own pool, the serial executor and OpenMP.
#pragma once

#include <concepts>
#include <type_traits>

#include "gqa/detail/config.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace gqa {

/// One call's work, as numbered tasks: `work(i)` runs task i. A reference, valid during the executor's call only; safe to
/// call from several threads at once with different i. Never throws: what a variant throws is kept, and thrown by the call.
///
/// What a call of the library hands out are no more tasks than the executor runs at the same time. Each goes through a share of
/// the call's work, then helps with what is left of the others': no work waits for one that starts late.
class TaskRef {
 public:
  using Function = void (*)(void* context, Index task);
  GQA_ALWAYS_INLINE TaskRef(void* context, Function function) noexcept : context_(context), function_(function) {}
  GQA_ALWAYS_INLINE void operator()(Index task) const noexcept { function_(context_, task); }

 private:
  void* context_;
  Function function_;
};

/// An executor runs work(0) … work(count − 1), each exactly once, in any order, on any threads, and returns when all are done.
/// `concurrency()` is the largest number of tasks it will run at the same time, at least 1: a call has at most so many, and scratch for each.
/// Results never depend on it. A call that finds less to do than is worth waking so many threads hands out fewer tasks; one that finds, when
/// parallel_for has returned, that not every task was run throws.
template <class E>
concept Executor = requires(E& executor, Index count, const TaskRef& work) {
  executor.parallel_for(count, work);
  { executor.concurrency() } -> std::convertible_to<Index>;
};

/// Runs the tasks one after the other on the calling thread.
struct SerialExecutor {
  GQA_ALWAYS_INLINE static constexpr Index concurrency() noexcept { return 1; }
  GQA_ALWAYS_INLINE static void parallel_for(Index count, const TaskRef& work) noexcept {
    for (Index task = 0; task < count; ++task) work(task);
  }
};

namespace detail::inline GQA_ABI {

#if defined(_OPENMP)
inline void run_on_team(int threads, Index count, const TaskRef& work) noexcept {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (Index task = 0; task < count; ++task) work(task);
}
#endif

/// An executor with its type erased.
template <class E>
inline Index executor_concurrency(void* executor) {
  return static_cast<Index>(static_cast<E*>(executor)->concurrency());
}
template <class E>
inline void run_on_executor(void* executor, Index count, const TaskRef& work) {
  static_cast<E*>(executor)->parallel_for(count, work);
}

}  // namespace detail::inline GQA_ABI

#if defined(_OPENMP)
/// Runs the tasks in an OpenMP region of `threads` threads (0: OpenMP's default), or of as many as there are tasks; a single one on the calling
/// thread. Only in units compiled with -fopenmp.
/// A process that has been forked from one with OpenMP threads must not use it: that is so of every OpenMP region with GCC's libgomp.
struct OpenMpExecutor {
  int threads = 0;
  GQA_ALWAYS_INLINE Index concurrency() const noexcept { return threads > 0 ? threads : omp_get_max_threads(); }
  GQA_ALWAYS_INLINE void parallel_for(Index count, const TaskRef& work) const noexcept {
    if (count <= 1) return SerialExecutor::parallel_for(count, work);
    const Index most = concurrency();
    detail::run_on_team(static_cast<int>(most < count ? most : count), count, work);
  }
};
#endif

/// Refers to any executor; what the options hold. The executor must outlive the call.
class ExecutorRef {
 public:
  /// Serial.
  GQA_ALWAYS_INLINE ExecutorRef() noexcept : ExecutorRef(nullptr, nullptr, nullptr) {}

  template <Executor E>
  requires(!std::same_as<std::remove_cv_t<E>, ExecutorRef>) GQA_ALWAYS_INLINE ExecutorRef(E& executor)
  noexcept  // NOLINT(google-explicit-constructor): a reference in all but name
      : ExecutorRef(const_cast<void*>(static_cast<const void*>(&executor)), &detail::executor_concurrency<E>,
                    &detail::run_on_executor<E>) {}

  GQA_ALWAYS_INLINE Index concurrency() const { return concurrency_ == nullptr ? 1 : concurrency_(executor_); }
  GQA_ALWAYS_INLINE void parallel_for(Index count, const TaskRef& work) const {
    if (run_ == nullptr) return SerialExecutor::parallel_for(count, work);
    run_(executor_, count, work);
  }

 private:
  using Concurrency = Index (*)(void*);
  using Run = void (*)(void*, Index, const TaskRef&);
  GQA_ALWAYS_INLINE ExecutorRef(void* executor, Concurrency width, Run run) noexcept
      : executor_(executor), concurrency_(width), run_(run) {}

  void* executor_;
  Concurrency concurrency_;
  Run run_;
};

}  // namespace gqa
