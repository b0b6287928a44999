// SPDX-License-Identifier: Apache-2.0
/// @file
/// Gradients of attention: dQ, dK and dV of the functors of gqa/attention.hpp, for the same views and variants.
///
///     attention(Sequence{q, kv, out, {}, lse});                             // forward, with its log-sum-exp
///     backward(Sequence{q, kv, out, {}, lse}, {.d_out = d_out, .d_q = d_q, .d_k = d_k, .d_v = d_v});
#pragma once

#include <span>

#include "gqa/detail/backward/engine.hpp"
#include "gqa/detail/path/backward_kernels.hpp"
#include "gqa/gradients.hpp"

namespace gqa {

namespace detail::inline GQA_ABI {

template <Variant V>
BackwardVariant backward_variant() {
  static_assert(
      !ScoringVariant<V> || ScoreExpression<V>,
      "The variant's score has no derivative that could be found: for gradients it must be an expression, auto "
      "score(auto s, const gqa::RowContext& row, auto k) const, see gqa::expression");
  BackwardVariant variant;
  if constexpr (ScoreExpression<V>) {
    variant.differentiate = [](Path path, bool bf16) noexcept {
      return on_backward_path(path, bf16, []<class Kind>(Kind) { return Kind::template differentiate_for<V>(); });
    };
    variant.lookup = [](Path path, Index number) noexcept {
      return on_backward_path(path, false,
                              [&]<class Kind>(Kind) { return Kind::template differentiate_lookup_for<V>(number); });
    };
    variant.lookups = ScoreSize<V>::lookups;
  }
  return variant;
}

}  // namespace detail::inline GQA_ABI

/// d_logits[h] ← the sum of d_sink (token, head) over `tokens` tokens, in ascending order: the gradient by logits that the tokens of a head
/// share, such as LearnedSinks'.
/// @throws ArgumentError unless d_sink has d_logits.size() floats for each of a whole number of tokens
GQA_ALWAYS_INLINE void sum_of_tokens(std::span<const float> d_sink, std::span<float> d_logits) {
  const std::size_t heads = d_logits.size();
  if (heads == 0 || d_sink.size() % heads != 0)
    detail::fail("d_sink.size()", detail::to_text(d_sink.size()),
                 "a multiple of d_logits.size() = " + detail::to_text(heads));
  for (float& sum : d_logits) sum = 0.0f;
  for (std::size_t i = 0; i < d_sink.size(); ++i) d_logits[i % heads] += d_sink[i];
}

/// The backward pass of GroupedQueryAttention: from the gradient of a loss by outputs, dO, those by queries, keys and values,
///
///     P = exp(S − LSE)   dV = Pᵀ·dO   dS = P ∘ (dO·Vᵀ − rowsum(dO ∘ O))   dQ = dS·K · scale   dK = dSᵀ·Q · scale,
///
/// the query heads of a group adding up in their KV head. Scores are recomputed from Q, K and the forward call's log-sum-exp, block by block,
/// and the score matrix is never stored (Dao et al. 2022, "FlashAttention", algorithm 4; Dao 2023, "FlashAttention-2", algorithm 2). Where a
/// variant changes scores, its expression is differentiated. Scores that are changed by a plain function of floats are refused at compile time.
///
/// Same bits, whatever the company: gradients do not depend on the batch, threads, executor, storage or strides; in f32 arithmetic not on the
/// path either. Each element is a sum in a fixed order: dK and dV over the query rows (token, head of the group) in ascending order, by
/// tiles of 64; dQ over tokens, by columns of 256. (Zeros have a value, not a sign, in this, and a NaN is a NaN.)
///
/// Elements that hold anything in tokens that no query sees never reach a gradient; gradients by these tokens are zero. So are those by
/// queries that see nothing.
///
/// Template parameters, thread safety and allocation: as GroupedQueryAttention. Gradients must not overlap any input or each other; what is
/// certain and cheap to find is refused, within a sequence. Scratch is a tile and a column for each thread, and a number for each column and
/// KV head.
template <int QueryHeads, int KvHeads, int HeadDim, int ValueDim = HeadDim, detail::CacheTypes Cache = AnyCache>
class GroupedQueryAttentionBackward {
  static_assert(detail::HeadExtent<QueryHeads>, "QueryHeads must be positive, or gqa::dynamic");
  static_assert(detail::HeadExtent<KvHeads>, "KvHeads must be positive, or gqa::dynamic");
  static_assert(detail::HeadExtent<HeadDim>, "HeadDim must be positive, or gqa::dynamic");
  static_assert(detail::HeadExtent<ValueDim>, "ValueDim must be positive, or gqa::dynamic");
  static_assert(detail::heads_divide<QueryHeads, KvHeads>,
                "KvHeads must divide QueryHeads: every KV head serves the same number of query heads");

 public:
  GQA_ALWAYS_INLINE GroupedQueryAttentionBackward() = default;
  GQA_ALWAYS_INLINE GroupedQueryAttentionBackward(const GroupedQueryAttentionBackward&) = default;
  GQA_ALWAYS_INLINE GroupedQueryAttentionBackward& operator=(const GroupedQueryAttentionBackward&) = default;
  GQA_ALWAYS_INLINE ~GroupedQueryAttentionBackward() = default;

  /// Fixes dynamic extents for all calls. @throws ArgumentError as GroupedQueryAttention
  GQA_ALWAYS_INLINE explicit GroupedQueryAttentionBackward(HeadShape shape)
      : shape_(detail::merge_shapes({QueryHeads, KvHeads, HeadDim, ValueDim}, shape)) {}

  /// One sequence with the default variant, Causal.
  /// @param sequence  as in the forward call; out and lse are read
  /// @throws ArgumentError naming what is wrong; gradients are untouched then. Stopped, if options.control asks for it, and whatever the
  ///         variant or the executor throws; gradients are undefined then.
  GQA_ALWAYS_INLINE void operator()(const Sequence& sequence, const SequenceGradients& gradients,
                                    const BackwardOptions& options = {}) const {
    (*this)(sequence, gradients, Causal{}, options);
  }
  template <Variant V>
  GQA_ALWAYS_INLINE void operator()(const Sequence& sequence, const SequenceGradients& gradients, const V& variant,
                                    const BackwardOptions& options = {}) const {
    (*this)(std::span<const Sequence>(&sequence, 1), std::span<const SequenceGradients>(&gradients, 1), variant,
            options);
  }

  /// A ragged batch; gradients[i] are those of batch[i].
  GQA_ALWAYS_INLINE void operator()(std::span<const Sequence> batch, std::span<const SequenceGradients> gradients,
                                    const BackwardOptions& options = {}) const {
    (*this)(batch, gradients, Causal{}, options);
  }
  template <Variant V>
  GQA_ALWAYS_INLINE void operator()(std::span<const Sequence> batch, std::span<const SequenceGradients> gradients,
                                    const V& variant, const BackwardOptions& options = {}) const {
    detail::differentiate(batch, gradients, functor(), detail::variant_parts(variant), detail::backward_variant<V>(),
                          options, scratch_);
  }

  /// Bytes of scratch that the same call would use: what Options::scratch must offer. Depends on shapes, variant, lookups and the executor's
  /// concurrency, not on the data.
  /// @throws ArgumentError as the call does
  template <Variant V = Causal>
  GQA_ALWAYS_INLINE std::size_t scratch_bytes(std::span<const Sequence> batch,
                                              std::span<const SequenceGradients> gradients, const V& variant = {},
                                              const BackwardOptions& options = {}) const {
    return detail::backward_scratch(batch, gradients, functor(), detail::variant_parts(variant),
                                    detail::backward_variant<V>(), options);
  }

  /// Frees the scratch that earlier calls left for later ones. Thread safe; calls that are running keep theirs until they have ended.
  GQA_ALWAYS_INLINE void release_scratch() const noexcept { scratch_.release(); }

  /// The extents that are fixed; the others are gqa::dynamic.
  GQA_ALWAYS_INLINE HeadShape shape() const noexcept { return shape_; }

 private:
  GQA_ALWAYS_INLINE detail::BackwardRef functor() const noexcept {
    return {{shape_, Cache::types, nullptr, detail::coded_rows<Cache::types>()},
            &detail::backward_kernels<Cache::types>};
  }

  HeadShape shape_{QueryHeads, KvHeads, HeadDim, ValueDim};
  mutable detail::ScratchCache scratch_{};
};

/// That of MultiHeadAttention.
template <int Heads, int HeadDim, int ValueDim = HeadDim, detail::CacheTypes Cache = AnyCache>
using MultiHeadAttentionBackward = GroupedQueryAttentionBackward<Heads, Heads, HeadDim, ValueDim, Cache>;

/// That of MultiQueryAttention.
template <int Heads, int HeadDim, int ValueDim = HeadDim, detail::CacheTypes Cache = AnyCache>
using MultiQueryAttentionBackward = GroupedQueryAttentionBackward<Heads, 1, HeadDim, ValueDim, Cache>;

/// All extents from the constructor or the call.
using DynamicAttentionBackward = GroupedQueryAttentionBackward<dynamic, dynamic, dynamic, dynamic>;

}  // namespace gqa
