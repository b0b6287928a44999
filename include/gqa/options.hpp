// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a call is given besides its variant: the sequence, and the options common to a batch.
#pragma once

#include <optional>
#include <span>

#include "gqa/cpu.hpp"
#include "gqa/executor.hpp"
#include "gqa/kv_cache_view.hpp"
#include "gqa/tensor_view.hpp"

namespace gqa {

/// One sequence of a call: prefill, a chunk, a decode step or a few tokens to verify, by its number of query tokens.
struct Sequence {
  ConstTensorView q;  ///< n_q × Hq × D
  KvCacheView kv;     ///< n_kv tokens × Hkv × (D, Dv); the queries' own tokens are already in it
  TensorView out;     ///< n_q × Hq × Dv; must not overlap q, kv or another sequence's out
  /// Positions of the query tokens, n_q of them; empty: the last n_q positions of the cache, n_kv − n_q + i.
  std::span<const Index> positions = {};
  /// If not empty, n_q × Hq (token, head): the natural logarithm of the sum of exp(score) of each row; −∞ where nothing is
  /// visible.
  std::span<float> lse = {};
};

/// Common to all sequences of a call.
struct Options {
  /// Multiplies q·k. Default: 1 / √D.
  std::optional<float> scale = std::nullopt;
  /// Who runs the tasks. Default: the calling thread. Never changes a result.
  ExecutorRef executor = {};
  /// Instruction set; default: active_path(). Must be one that this process can run.
  std::optional<Path> path = std::nullopt;
  /// On paths with bf16 products (Path::amx, Path::avx512bf16), use them for f32 and f16 inputs too, rounded to bf16. Otherwise
  /// those inputs take the f32 arithmetic.
  bool accept_bf16_products = false;
  /// Scratch of at least scratch_bytes(…) bytes, any alignment, not shared with a call that runs at the same time. Default: the
  /// functor's own, allocated on first use and kept.
  std::span<std::byte> scratch = {};
};

}  // namespace gqa
