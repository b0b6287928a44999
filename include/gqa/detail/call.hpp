// SPDX-License-Identifier: Apache-2.0
/// @file
/// A call and its plan as plain data: what checking fills in, what planning cuts, and what tasks read.
#pragma once

#include <span>

#include "gqa/detail/coded_rows.hpp"
#include "gqa/detail/scratch.hpp"
#include "gqa/detail/variant_ref.hpp"
#include "gqa/heads.hpp"
#include "gqa/options.hpp"

namespace gqa::detail {

/// How one sequence is cut. Depends on its lengths, strides and visible range alone, never on threads or company.
///
/// Its unit is a fold: the spans of one tile of rows in one head group. Their states are merged in ascending order within their super-span,
/// and the super-spans' in ascending order into one total: left folds both, whoever computes the spans.
struct SequencePlan {
  const Kernels* kernels = nullptr;
  Index first_fold = 0;
  Index folds = 0;       ///< head_groups · tiles
  Index first_span = 0;  ///< spans of the folds before its own, by the count that workers' shares are cut by
  Index spans = 1;       ///< of a fold; where there are several tiles, roughly: each has those that it sees
  Index rows = 0;        ///< n_q · G, the rows that share a KV head
  Index tile_rows = 0;   ///< rows of a tile, the last may have fewer
  Index tiles = 0;
  Index stage_blocks = 1;  ///< blocks of a stage
  Index heads = 1;         ///< KV heads that a fold has side by side: several where they are adjacent in memory
  Index head_groups = 0;
  bool has_super_spans = false;  ///< a fold may see several: its total has a second state, of the one in progress
  Index scale_blocks = 0;        ///< blocks of a stage whose rows have scales outside of them: all, or none
  Index rotated_floats = 0;      ///< room for rows that are rotated; none, if none are
};

/// The kernels of a path for inputs that are taken as so many bf16 numbers each, see kernels_for.
using KernelsFor = const Kernels& (*)(Path path, int bf16_terms) noexcept;

/// What a functor says of every call.
struct FunctorRef {
  HeadShape shape{};         ///< static and given extents
  unsigned cache_types = 0;  ///< CacheOf::types
  KernelsFor kernels_for = nullptr;
  const CodedRows* coded = nullptr;  ///< where a codec is not one of plain elements
};

/// The state of a span that is complete while one before it is not. The state's memory follows it, see deposit_state.
struct Deposit {
  Deposit* next = nullptr;
  Index span = 0;
};

/// A fold that a worker has begun, and how far it is. Others may claim spans of it.
///
/// Spans that directly follow those in the total are added to it by whoever holds it; other ones are left as deposits, and added by whoever
/// holds the total when those before them are there. Nobody waits for it: a worker that finds it held leaves its deposit to the holder.
struct alignas(kScratchAlignment) FoldProgress {
  Atomic<Index> fold{0};              ///< its number
  Atomic<Index> left{0};              ///< spans that nobody has claimed, the last ones
  Atomic<bool> held{false};           ///< somebody adds to the total
  Atomic<Deposit*> arrived{nullptr};  ///< deposits that no holder has seen
  Index merged = 0;                   ///< the holder's: spans that are in the total, the first ones
  Deposit* waiting = nullptr;         ///< the holder's: deposits that cannot be merged yet, in ascending order
};

/// A worker's share of a call's folds: neighbours, so that it reads memory in order; and if it is the same thread as in the call before,
/// what it reads may be in its own caches still. When they are all taken it takes other workers' folds, then spans of folds in progress.
/// Whoever finds a share exhausted sees what those who claimed its folds had done before: none of them is at a fold that came earlier.
struct alignas(kScratchAlignment) WorkerShare {
  Atomic<Index> next{0};  ///< the next fold to claim
  Index end = 0;
  Atomic<std::uint64_t> deposits{0};  ///< which of its deposits are in use, as bits

  /// A fold; or none, if it is not before `end`.
  GQA_ALWAYS_INLINE Index claim() noexcept { return next.fetch_add(1, __ATOMIC_ACQ_REL); }
  GQA_ALWAYS_INLINE bool exhausted() const noexcept { return next.load(__ATOMIC_ACQUIRE) >= end; }
};

/// How a call ends before its work is done: somebody asked for it, or a worker threw. And how many workers have run.
struct CallStatus {
  Atomic<bool> ended{false};  ///< no worker begins anything more
  Atomic<bool> threw{false};  ///< the first exception is being kept, or has been
  Atomic<Index> ran{0};       ///< workers that have returned
  void* exception = nullptr;  ///< where it is kept, a std::exception_ptr; null in units without exceptions
};

/// A checked and planned call.
struct CallPlan {
  std::span<const Sequence> batch{};
  HeadShape shape{};
  KernelsFor kernels_for = nullptr;
  const CodedRows* coded = nullptr;
  Path path = Path::portable;
  Streaming streaming = Streaming::prefetched;
  Index group = 1;
  VariantRef variant{};
  float scale = 1.0f;
  CallControl* control = nullptr;
  CallStatus* status = nullptr;
  SequencePlan* sequences = nullptr;
  Index folds = 0;
  Index spans = 0;                   ///< of all folds, see SequencePlan::first_span
  Index workers = 0;                 ///< as many as the executor runs at the same time, or fewer
  WorkerShare* shares = nullptr;     ///< one for each worker
  FoldProgress* progress = nullptr;  ///< one for each worker: of the fold that it has begun
  std::byte* totals = nullptr;       ///< states, `total_bytes` for each worker: of the fold that it has begun
  std::byte* deposits = nullptr;     ///< `deposit_bytes` each, `worker_deposits` for each worker
  std::byte* slots = nullptr;        ///< scratch, `slot_bytes` for each worker
  std::size_t total_bytes = 0;
  std::size_t deposit_bytes = 0;
  Index worker_deposits = 0;
  std::size_t slot_bytes = 0;
};

/// Whether a call is to end before its work is done.
GQA_ALWAYS_INLINE bool has_ended(const CallPlan& call) noexcept {
  if (call.control != nullptr && load_relaxed(call.control->stop)) call.status->ended.store(true, __ATOMIC_RELAXED);
  return call.status->ended.load(__ATOMIC_RELAXED);
}

/// Sizes that scratch follows from.
struct ScratchSizes {
  Index sequences = 0;
  std::size_t total_bytes = 0;
  std::size_t deposit_bytes = 0;
  Index worker_deposits = 0;
  std::size_t slot_bytes = 0;
  Index workers = 0;
};

}  // namespace gqa::detail
