// SPDX-License-Identifier: Apache-2.0
/// @file
/// Who computes which spans of a fold, and in which order their states are merged.
#pragma once

#include "gqa/detail/task.hpp"

namespace gqa::detail::inline GQA_ABI {

/// A worker's hand in a fold that others may be at, too.
class FoldShare {
 public:
  /// @param spans of the fold
  FoldShare(const CallPlan& call, Index worker, FoldProgress& fold, SequenceTasks& tasks, Index spans) noexcept
      : call_(call), worker_(worker), fold_(fold), tasks_(tasks), spans_(spans) {}

  /// Claims spans: the next stage's, or if others may come for them, no more than a worker's share of what is left. None if all are claimed,
  /// or if there is no room for states that cannot be merged yet: then others are at work on spans before them, and go on with these.
  /// Deposits are as large as the states of sequences that were planned to have several spans; others have no room but the total.
  Claim claim(bool alone) noexcept {
    for (Claim claim;; give_back(claim)) {
      Index left = fold_.left.load(__ATOMIC_ACQUIRE);
      if (left <= 0) return {};
      claim = {};
      claim.first = spans_ - left;
      const Index share = alone ? left : 1 + (left - 1) / call_.workers;
      claim.count = share < kStageSpans ? share : kStageSpans;
      if (hold()) {
        claim.in_order = fold_.merged == claim.first;
        if (!claim.in_order) release();
      }
      if (!claim.in_order) {
        claim.count = tasks_.planned_spans() > 1 ? take_deposits(claim) : 0;
        if (claim.count == 0) return {};
      }
      if (fold_.left.compare_exchange(left, left - claim.count, __ATOMIC_ACQ_REL)) return claim;
    }
  }

  /// After the claimed spans have been computed. Whoever merges the last one stores the outputs.
  void finish(Claim& claim) {
    if (claim.in_order) {
      fold_.merged += claim.count;
      merge_arrived();
      release();
      return;
    }
    for (Index i = 0; i < claim.count; ++i) {
      Deposit* const deposit = claim.deposits[i];
      deposit->span = claim.first + i;
      deposit->next = fold_.arrived.load(__ATOMIC_RELAXED);
      while (!fold_.arrived.compare_exchange(deposit->next, deposit)) {
      }
    }
    if (hold()) release();
  }

 private:
  /// Takes the total, if nobody has it, and brings it up to date.
  bool hold() {
    if (fold_.held.exchange(true)) return false;
    merge_arrived();
    return true;
  }
  /// Leaves the total to others. What arrives meanwhile, from workers that found it held, is merged first.
  void release() {
    do {
      fold_.held.store(false);
    } while (fold_.arrived.load() != nullptr && hold());
  }

  /// Merges what has arrived as far as no span before it is missing.
  void merge_arrived() {
    for (Deposit* rest = fold_.arrived.exchange(nullptr); rest != nullptr;) {
      Deposit* const deposit = rest;
      rest = rest->next;
      Deposit** place = &fold_.waiting;
      while (*place != nullptr && (*place)->span < deposit->span) place = &(*place)->next;
      deposit->next = *place;
      *place = deposit;
    }
    while (fold_.waiting != nullptr && fold_.waiting->span == fold_.merged) {
      Deposit* const deposit = fold_.waiting;
      fold_.waiting = deposit->next;
      tasks_.merge(deposit);
      ++fold_.merged;
      free_deposit(deposit);
    }
    if (fold_.merged == spans_) {
      tasks_.store();
      ++fold_.merged;  // once
    }
  }

  /// Up to `claim.count` deposits: the worker's own, or else others'.
  Index take_deposits(Claim& claim) noexcept {
    Index taken = 0;
    for (Index i = 0, of = worker_; i < call_.workers && taken < claim.count;
         ++i, of = of + 1 < call_.workers ? of + 1 : 0) {
      Atomic<std::uint64_t>& used = call_.shares[of].deposits;
      for (std::uint64_t free = ~used.load(__ATOMIC_RELAXED) & bit_range(0, call_.worker_deposits);
           free != 0 && taken < claim.count; free &= free - 1) {
        const std::uint64_t bit = free & (~free + 1);
        if ((used.fetch_or(bit, __ATOMIC_ACQUIRE) & bit) == 0)
          claim.deposits[taken++] = ::new (deposit_at(of * call_.worker_deposits + __builtin_ctzll(bit))) Deposit;
      }
    }
    return taken;
  }
  void give_back(const Claim& claim) noexcept {
    if (claim.in_order) release();
    for (Index i = 0; i < claim.count && !claim.in_order; ++i) free_deposit(claim.deposits[i]);
  }
  void free_deposit(Deposit* deposit) noexcept {
    const Index number =
        (reinterpret_cast<std::byte*>(deposit) - call_.deposits) / static_cast<Index>(call_.deposit_bytes);
    const std::uint64_t bit = std::uint64_t{1} << (number % call_.worker_deposits);
    call_.shares[number / call_.worker_deposits].deposits.fetch_and(~bit, __ATOMIC_RELEASE);
  }
  void* deposit_at(Index number) const noexcept {
    return call_.deposits + static_cast<std::size_t>(number) * call_.deposit_bytes;
  }

  const CallPlan& call_;
  const Index worker_;
  FoldProgress& fold_;
  SequenceTasks& tasks_;
  const Index spans_;
};

}  // namespace gqa::detail::inline GQA_ABI
