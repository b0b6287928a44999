// SPDX-License-Identifier: Apache-2.0
/// @file
/// A call and its plan as plain data: what checking fills in, what planning cuts, and what tasks read.
#pragma once

#include <atomic>
#include <span>

#include "gqa/detail/address.hpp"
#include "gqa/detail/scratch.hpp"
#include "gqa/detail/variant_ref.hpp"
#include "gqa/heads.hpp"
#include "gqa/options.hpp"

namespace gqa::detail {

/// How one sequence is cut. Depends on its lengths, strides and visible range alone, never on threads or company.
struct SequencePlan {
  const Kernels* kernels = nullptr;
  Index first_task = 0;
  Index task_count = 0;
  Index rows = 0;       ///< n_q · G, the rows that share a KV head
  Index tile_rows = 0;  ///< rows of a tile, the last may have fewer
  Index tiles = 0;
  Index stage_blocks = 1;  ///< blocks of a stage
  Index heads = 1;         ///< KV heads that a task walks side by side: several where they are adjacent in memory
  Index head_groups = 0;
  Index spans = 1;          ///< where a sequence of one tile is cut: as many as are visible; else one
  std::size_t partial = 0;  ///< of several spans: where their states lie in CallPlan::partials, in bytes
  Index progress = 0;       ///< of several spans: the first of head_groups in CallPlan::progress
};

/// How far the spans of a head group are.
struct Progress {
  std::atomic<Index> spans{0};  ///< how many are done
  /// Spans, from the first on, whose states are in the first one's: for the worker that took them all in order, and for the last one.
  Index merged = 0;
};

/// The kernels of a path for inputs that are taken as so many bf16 numbers each, see kernels_for.
using KernelsFor = const Kernels& (*)(Path path, int bf16_terms) noexcept;

/// What a functor says of every call.
struct FunctorRef {
  HeadShape shape{};         ///< static and given extents
  unsigned cache_types = 0;  ///< CacheOf::types
  KernelsFor kernels_for = nullptr;
};

/// A worker's share of a call's tasks: neighbours, so that it reads memory in order; and if it is the same thread as in the call before,
/// the states of a split sequence are in its own caches still. When they are all taken it helps the other workers.
struct alignas(kScratchAlignment) WorkerTasks {
  std::atomic<Index> next{0};  ///< the next task to claim
  Index end = 0;

  /// A task; or none, if it is not before `end`.
  GQA_ALWAYS_INLINE Index claim() noexcept { return next.fetch_add(1, std::memory_order_relaxed); }
  /// How many behind the one that was claimed are, too: no more than `most`, and a worker's share of what is left.
  GQA_ALWAYS_INLINE Index claim_more(Index first, Index most, Index workers) noexcept {
    const Index share = (end - first) / workers;
    const Index more = most < share ? most : share;
    return more > 0 && next.compare_exchange_strong(first, first + more, std::memory_order_relaxed) ? more : 0;
  }
};

/// A checked and planned call.
struct CallPlan {
  std::span<const Sequence> batch{};
  HeadShape shape{};
  KernelsFor kernels_for = nullptr;
  Path path = Path::portable;
  Streaming streaming = Streaming::prefetched;
  Index group = 1;
  VariantRef variant{};
  float scale = 1.0f;
  SequencePlan* sequences = nullptr;
  Index task_count = 0;
  std::byte* partials = nullptr;  ///< states of spans: the first is the total, others wait for those before them
  Progress* progress = nullptr;   ///< one for each head group that has several spans
  WorkerTasks* queues = nullptr;  ///< one for each worker
  Index workers = 0;              ///< as many as the executor runs at the same time, or fewer
  std::byte* slots = nullptr;     ///< scratch, `slot_bytes` for each worker
  std::size_t slot_bytes = 0;
};

/// Sizes that scratch follows from.
struct ScratchSizes {
  Index sequences = 0;
  Index progress = 0;
  std::size_t partial_bytes = 0;
  std::size_t slot_bytes = 0;
  Index workers = 0;
};

}  // namespace gqa::detail
