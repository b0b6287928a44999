// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a call is given besides its variant: the sequence, and the options common to a batch.
#pragma once

#include <atomic>
#include <cstdint>
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
  TensorView out;     ///< n_q × Hq × Dv; must not overlap anything else of the call
  /// Positions of the query tokens, n_q of them, any numbers; empty: the last n_q positions of the cache, n_kv − n_q + i.
  std::span<const Index> positions = {};
  /// If not empty, n_q × Hq (token, head): the natural logarithm of the sum of exp(score) of each row; −∞ where nothing is
  /// visible. Must not overlap anything else of the call. On Path::amx with bf16 products the sum is that of the weights after they are
  /// rounded to bf16, so that the logarithm may be off by up to 2⁻⁸ (0.004); everywhere else it is that of the weights before.
  std::span<float> lse = {};
};

/// What f32 and f16 numbers are multiplied as on the paths with bf16 products, Path::avx512bf16, Path::amx and Path::neon_bf16. A call whose queries,
/// keys and values are all bf16 takes those products whatever is asked for here; the other paths have the f32 arithmetic alone.
///
/// bf16 products are exact, and so are bf16 queries, keys and values; sums are f32, and the scale multiplies the sum. What is rounded are
/// the weights of the softmax, to the nearest bf16: each is off by up to 2⁻⁸ of itself. Outputs are divided by the sum of the rounded
/// weights, so that the error of an output is at most Σ w·|v − o| · 2⁻⁸, to first order: it does not grow with what all values have in
/// common. A caller who wants none of it sets Options::path to Path::avx512 or Path::neon, whose arithmetic is f32 for every type.
///
/// Denormal numbers, those below 2⁻¹²⁶, are zero for these products: in queries, in keys, in values, and where a sum becomes one. The f32
/// arithmetic takes them as they are.
enum class Products : std::uint8_t {
  /// As they are stored, by the f32 arithmetic.
  as_stored,
  /// Rounded to bf16: an input is off by up to 2⁻⁸ of itself, and so is a weight of the softmax, see above.
  bf16,
  /// On Path::amx as sums of two bf16 numbers, with three tile products for one: for ordinary inputs errors of about ten times those
  /// of the f32 arithmetic, and a five-hundredth of those of bf16. How fast that is has not been measured. On the others as stored.
  ///
  /// A number x is taken as x₁ + x₂, the nearest bf16 and the bf16 nearest to what is left, so that |x₂| ≤ 2⁻⁸ |x| and x₁ + x₂ is off
  /// by at most 2⁻¹⁷ |x| (2⁻¹⁶ where x rounds to infinity); a bf16 and an f16 are exactly such sums. Of a product x·y everything but
  /// x₂·y₂ is added, in f32; weights of the softmax are f32 numbers here. So each product is off by at most this share of its
  /// magnitude:
  ///
  /// |      | bf16 | f16        | f32        |
  /// |------|------|------------|------------|
  /// | bf16 | 0    | 0          | 2⁻¹⁷       |
  /// | f16  | 0    | 2⁻¹⁶       | 1.5 · 2⁻¹⁶ |
  /// | f32  | 2⁻¹⁷ | 1.5 · 2⁻¹⁶ | 2⁻¹⁵       |
  ///
  /// That is the most; a usual product is off by a tenth of it, to either side. Besides, terms below 2⁻¹²⁶ are taken as zero: a number
  /// is off by up to 2⁻¹²⁶, whatever its size. No finite number becomes infinite. Infinities and NaN show where they show in the f32
  /// arithmetic, but an infinity that is stored as bf16, or is multiplied by another one, may show as NaN.
  bf16_terms,
};

/// What other threads see of a call while it runs, and how they stop it. One for each call at a time; it must outlive the call. All members may
/// be read and written from any thread.
struct CallControl {
  /// Set by anybody: the call ends as soon as every worker has finished what it is at, a few thousand cached tokens at most, and throws
  /// gqa::Stopped; without exceptions it returns, with done < total. Outputs are undefined then; all else is as usable as before. It is not
  /// reset: a call that finds it set throws at once.
  std::atomic<bool> stop{false};
  /// Parts of the call's work that are done, of `total`: spans of 512 cached tokens, for each tile of queries. Both are set to 0 and the
  /// number of parts when a call begins to work, after its arguments have been checked.
  std::atomic<Index> done{0};
  std::atomic<Index> total{0};
};

/// Common to all sequences of a call.
struct Options {
  /// Multiplies q·k. Default: 1 / √D.
  std::optional<float> scale = std::nullopt;
  /// Who runs the tasks. Default: the calling thread. Never changes a result.
  ExecutorRef executor = {};
  /// Instruction set; default: active_path(). Must be one that this process can run.
  std::optional<Path> path = std::nullopt;
  /// What f32 and f16 inputs are multiplied as, on paths with bf16 products.
  Products products = Products::as_stored;
  /// Scratch of at least scratch_bytes(…) bytes, any alignment, not shared with a call that runs at the same time, nor with anything
  /// else of this one. Default: the functor's own, allocated on first use and kept.
  std::span<std::byte> scratch = {};
  /// Progress, and a way to stop the call from another thread. Default: none.
  CallControl* control = nullptr;
};

}  // namespace gqa
