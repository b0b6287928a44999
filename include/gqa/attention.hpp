// SPDX-License-Identifier: Apache-2.0
/// @file
/// The functors: grouped-query, multi-head and multi-query attention as one template.
#pragma once

#include <span>

#include "gqa/detail/engine.hpp"
#include "gqa/heads.hpp"
#include "gqa/options.hpp"
#include "gqa/variant.hpp"

namespace gqa {

/// Scaled dot-product attention in which `QueryHeads` query heads share `KvHeads` KV heads (Ainslie et al. 2023, "GQA"):
/// query head h reads KV head h / (QueryHeads / KvHeads). For each row, a (query token, query head) pair,
///
///     out = Σ_t softmax_t(scale · q·k_t) v_t       over the positions t that the variant lets the query see,
///
/// computed block by block with an online softmax (Milakov and Gimelshein 2018; Dao et al. 2022, "FlashAttention"), so that
/// every KV row is read once per group and tile of queries and nothing of the size of the score matrix is ever stored.
///
/// Same bits, whatever the company: for one path, one set of element types and one variant, a row's result does not depend on
/// the batch, chunking, threads, executor, storage, strides or grouping it was computed with. (Zeros have a value, not a sign, in
/// this, and a NaN is a NaN.)
/// The order of sums follows from positions alone: the states of 512 tokens each are merged in ascending order within every 32,768 tokens,
/// and those in ascending order. Both begin at multiples of their length.
///
/// @tparam QueryHeads Hq, or gqa::dynamic
/// @tparam KvHeads    Hkv, a divisor of Hq, or gqa::dynamic
/// @tparam HeadDim    D, width of a query and key row, or gqa::dynamic
/// @tparam ValueDim   Dv, width of a value and output row, or gqa::dynamic; D unless given
/// @tparam Cache      gqa::CacheOf<the types of keys and values>; any type unless given. No bit of a result depends on it.
///
/// Extents that are dynamic here and in the constructor's shape come from each call's views. What is static is checked against them,
/// and a unit compiles no kernels for other head dims.
///
/// Thread safety: calls on one functor may run at the same time. Copies share nothing.
/// Aliasing: outputs (rows and LSE) must not overlap any input, or each other. Refused is what is certain and cheap to find: an output
/// that fills its memory, from its first to its last element, with any element of something else in it, or the other way round; two
/// tensors that do not, and begin at the same place; and for the outputs of different sequences the same, among any 17 that follow each
/// other in the batch. Not looked for: overlap with the pages of a pool, and that of two tensors between whose rows others may lie.
/// No alignment is needed beyond the elements' own.
/// Allocation: none once scratch has been allocated by a first call of the same size, or if the caller gives scratch. Scratch is of the size of
/// what each thread works on; release_scratch() gives it back. Threads that call one functor at the same time have scratch of their own,
/// and do not slow each other down.
/// Fork: after fork() the child may call and destroy functors that the parent had, also if other threads were in a call.
template <int QueryHeads, int KvHeads, int HeadDim, int ValueDim = HeadDim, detail::CacheTypes Cache = AnyCache>
class GroupedQueryAttention {
  static_assert(detail::HeadExtent<QueryHeads>, "QueryHeads must be positive, or gqa::dynamic");
  static_assert(detail::HeadExtent<KvHeads>, "KvHeads must be positive, or gqa::dynamic");
  static_assert(detail::HeadExtent<HeadDim>, "HeadDim must be positive, or gqa::dynamic");
  static_assert(detail::HeadExtent<ValueDim>, "ValueDim must be positive, or gqa::dynamic");
  static_assert(detail::heads_divide<QueryHeads, KvHeads>,
                "KvHeads must divide QueryHeads: every KV head serves the same number of query heads");

 public:
  GQA_ALWAYS_INLINE GroupedQueryAttention() = default;
  GQA_ALWAYS_INLINE GroupedQueryAttention(const GroupedQueryAttention&) = default;
  GQA_ALWAYS_INLINE GroupedQueryAttention& operator=(const GroupedQueryAttention&) = default;
  GQA_ALWAYS_INLINE ~GroupedQueryAttention() = default;

  /// Fixes dynamic extents for all calls. @throws ArgumentError if the shape contradicts a static extent, has an extent that is
  /// neither positive nor gqa::dynamic, or if its KV heads do not divide its query heads.
  GQA_ALWAYS_INLINE explicit GroupedQueryAttention(HeadShape shape)
      : shape_(detail::merge_shapes({QueryHeads, KvHeads, HeadDim, ValueDim}, shape)) {}

  /// One sequence with the default variant, Causal: out ← attention(q, kv).
  /// @param q   n_q × Hq × D, the last n_q positions of the sequence
  /// @param kv  the cache, the queries' own tokens included
  /// @param out n_q × Hq × Dv
  /// @throws ArgumentError naming what is wrong; out is untouched then. Stopped, if options.control asks for it, and whatever the variant
  ///         or the executor throws; out is undefined then.
  GQA_ALWAYS_INLINE void operator()(const ConstTensorView& q, const KvCacheView& kv, const TensorView& out,
                                    const Options& options = {}) const {
    (*this)(Sequence{q, kv, out}, Causal{}, options);
  }

  /// One sequence with a variant of choice.
  template <Variant V>
  GQA_ALWAYS_INLINE void operator()(const ConstTensorView& q, const KvCacheView& kv, const TensorView& out,
                                    const V& variant, const Options& options = {}) const {
    (*this)(Sequence{q, kv, out}, variant, options);
  }

  /// One sequence, with positions and log-sum-exp output where they are given.
  GQA_ALWAYS_INLINE void operator()(const Sequence& sequence, const Options& options = {}) const {
    (*this)(std::span<const Sequence>(&sequence, 1), Causal{}, options);
  }
  template <Variant V>
  GQA_ALWAYS_INLINE void operator()(const Sequence& sequence, const V& variant, const Options& options = {}) const {
    (*this)(std::span<const Sequence>(&sequence, 1), variant, options);
  }

  /// A ragged batch: sequences of different query and cache lengths, prefills, chunks and decode steps mixed.
  GQA_ALWAYS_INLINE void operator()(std::span<const Sequence> batch, const Options& options = {}) const {
    (*this)(batch, Causal{}, options);
  }
  template <Variant V>
  GQA_ALWAYS_INLINE void operator()(std::span<const Sequence> batch, const V& variant,
                                    const Options& options = {}) const {
    detail::attend(batch, functor(), detail::variant_ref(variant), options, scratch_);
  }

  /// Bytes of scratch that the same call would use: what Options::scratch must offer.
  /// Depends on shapes, element types, strides and rotations of the cache, positions, variant, path and the executor's concurrency, not on
  /// the data.
  /// @throws ArgumentError as the call does
  GQA_ALWAYS_INLINE std::size_t scratch_bytes(std::span<const Sequence> batch, const Options& options = {}) const {
    return scratch_bytes(batch, Causal{}, options);
  }
  template <Variant V>
  GQA_ALWAYS_INLINE std::size_t scratch_bytes(std::span<const Sequence> batch, const V& variant,
                                              const Options& options = {}) const {
    return detail::scratch_needed(batch, functor(), detail::variant_ref(variant), options);
  }

  /// Frees the scratch that earlier calls left for later ones. Thread safe; calls that are running keep theirs until they have ended.
  GQA_ALWAYS_INLINE void release_scratch() const noexcept { scratch_.release(); }

  /// The extents that are fixed; the others are gqa::dynamic.
  GQA_ALWAYS_INLINE HeadShape shape() const noexcept { return shape_; }

 private:
  GQA_ALWAYS_INLINE detail::FunctorRef functor() const noexcept {
    constexpr int head_dim = detail::compiled_head_dim(HeadDim);
    constexpr int value_dim = detail::compiled_value_dim(ValueDim);
    return {shape_, Cache::types, &detail::kernels_for<Cache::types, head_dim, value_dim>,
            detail::coded_rows<Cache::types>()};
  }

  HeadShape shape_{QueryHeads, KvHeads, HeadDim, ValueDim};
  mutable detail::ScratchCache scratch_{};
};

/// Standard multi-head attention: one KV head per query head (Vaswani et al. 2017).
template <int Heads, int HeadDim, int ValueDim = HeadDim, detail::CacheTypes Cache = AnyCache>
using MultiHeadAttention = GroupedQueryAttention<Heads, Heads, HeadDim, ValueDim, Cache>;

/// Multi-query attention: one KV head for all query heads (Shazeer 2019).
template <int Heads, int HeadDim, int ValueDim = HeadDim, detail::CacheTypes Cache = AnyCache>
using MultiQueryAttention = GroupedQueryAttention<Heads, 1, HeadDim, ValueDim, Cache>;

/// All extents from the constructor or the call.
using DynamicAttention = GroupedQueryAttention<dynamic, dynamic, dynamic, dynamic>;

}  // namespace gqa
