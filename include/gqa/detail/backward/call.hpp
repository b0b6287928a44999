// SPDX-License-Identifier: Apache-2.0
/// @file
/// A backward call and its plan as plain data.
#pragma once

#include "gqa/detail/backward/tile.hpp"
#include "gqa/detail/call.hpp"
#include "gqa/gradients.hpp"

namespace gqa::detail {

/// What a backward functor says of every call.
struct BackwardRef {
  FunctorRef functor{};  ///< without kernels_for
  const BackwardKernels& (*kernels)(Path path, bool bf16) noexcept = nullptr;
};

/// What a variant's score adds to the backward pass; null where it does not change scores.
struct BackwardVariant {
  DifferentiateKernel (*differentiate)(Path path, bool bf16) noexcept = nullptr;
  DifferentiateKernel (*lookup)(Path path, Index number) noexcept = nullptr;
  Index lookups = 0;  ///< of the score
};

/// How a sequence is cut. Its unit is a column of tokens of one KV head; units are numbered column by column, all heads of each.
struct ColumnPlan {
  const BackwardKernels* kernels = nullptr;
  bool bf16 = false;  ///< whether they may be of bf16 products
  Index first_unit = 0;
  Index columns = 0;       ///< one at least, if there are queries
  Index first_column = 0;  ///< position / kColumn of the first
  Index tiles = 0;         ///< of query rows that share a KV head
  Index rows = 0;          ///< n_q · G
};

/// A checked and planned backward call.
struct BackwardCall {
  CallPlan call{};  ///< batch, shape, path, variant, group, scale, control and status
  std::span<const SequenceGradients> gradients{};
  std::span<const LookupGradient> lookups{};
  BackwardVariant variant{};
  bool in_order = false;          ///< some lookup's gradient is summed up over units: these run one after the other
  ColumnPlan* plans = nullptr;    ///< by sequence
  Atomic<Index>* done = nullptr;  ///< by unit: tiles that it is through with; 1 more behind its end
  Atomic<Index>* next = nullptr;  ///< the next unit to claim
  Index units = 0;
  Index tiles = 0;  ///< of all units
  Index workers = 0;
  std::byte* slots = nullptr;  ///< `slot_bytes` for each worker
  std::size_t slot_bytes = 0;
};

}  // namespace gqa::detail
