// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a call of the backward pass is given besides the forward call's sequences.
#pragma once

#include <span>

#include "gqa/options.hpp"
#include "gqa/variants/broadcast_view.hpp"

namespace gqa {

/// Beside a Sequence whose out and lse are as the forward call left them: the gradient of a loss by its output, and where those by its inputs
/// go. Gradients are f32, whatever the inputs are, and overwritten. One without data is not wanted.
struct SequenceGradients {
  ConstTensorView d_out{};  ///< n_q × Hq × Dv
  TensorView d_q{};         ///< n_q × Hq × D, f32, dim stride 1
  /// n × Hkv × D, f32, dim stride 1, n = n_kv − kv.first_position(): row t is that of position kv.first_position() + t. Of a codec other
  /// than plain elements, by the numbers that its rows stand for.
  TensorView d_k{};
  TensorView d_v{};  ///< n × Hkv × Dv, likewise
  /// n_q × Hq (token, head): by the variant's sink of each row. By a logit that rows share it is the sum over these, see sum_of_tokens.
  std::span<float> d_sink{};
};

/// The gradient by what one lookup of the variant's score expression reads, such as an additive bias: an element (sequence, query head, query
/// token, key position) for each pair, at data[s · strides.sequence + h · strides.head + i · strides.query + t · strides.key], f32. It is
/// added to what is there. A stride of 0, or any strides with which pairs share an element, sum over them, always in the same order; such
/// sums over keys, KV heads or sequences, or over two lookups but for those of the same pairs, are worked out one after the other. Pairs that are not visible add nothing.
struct LookupGradient {
  using Strides = BroadcastStrides;
  Index lookup = 0;         ///< its number in the expression, in the order of writing
  std::span<float> data{};  ///< no memory of another argument's
  Strides strides{};
  Index offset = 0;  ///< of element (0, 0, 0, 0) in data
};

/// Options of a backward call. `scale`, `path`, `products`, `executor` and `control` as in the forward call, whose scale it must be; the work
/// that `control` counts are tiles of 64 query rows beside columns of 256 cached tokens.
///
/// Products are of bf16 where the path has them and queries, keys, values and d_out are all bf16, or Products::bf16 is asked for: weights and
/// gradients of scores are then rounded to bf16, each off by up to 2⁻⁸ of itself, and everything is summed up in f32.
struct BackwardOptions : Options {
  std::span<const LookupGradient> lookups{};
};

}  // namespace gqa
