// SPDX-License-Identifier: Apache-2.0
/// @file
/// Gradients: a forward call that leaves its log-sum-exp, and a backward call that gives those by queries, keys, values, a learned sink and an
/// additive bias; held against the definition in double precision, and the same bits on two threads.

#include <cstdio>
#include <random>
#include <vector>

#include "gqa/attention.hpp"
#include "gqa/backward.hpp"
#include "gqa/reference_backward.hpp"
#include "gqa/thread_pool.hpp"
#include "gqa/variants.hpp"

namespace {

constexpr gqa::Index kTokens = 300, kQueryHeads = 8, kKvHeads = 2, kDim = 64;

std::vector<float> normal(gqa::Index count, unsigned seed) {
  std::mt19937 bits(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& number : numbers) number = normal(bits);
  return numbers;
}

/// The largest difference from what a matrix of the definition's says, whose rows lie one behind the other here.
double error(const std::vector<float>& got, const Eigen::MatrixXd& wanted) {
  using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  return (Eigen::Map<const Rows>(got.data(), wanted.rows(), wanted.cols()).cast<double>() - wanted)
      .cwiseAbs()
      .maxCoeff();
}

}  // namespace

int main() {
  const std::vector<float> q = normal(kTokens * kQueryHeads * kDim, 1), k = normal(kTokens * kKvHeads * kDim, 2),
                           v = normal(kTokens * kKvHeads * kDim, 3), d_out = normal(kTokens * kQueryHeads * kDim, 4),
                           sinks = normal(kQueryHeads, 5), bias = normal(kQueryHeads * kTokens * kTokens, 6);
  const auto variant =
      gqa::compose(gqa::Causal{}, gqa::SoftCap{30},
                   gqa::AdditiveBias{gqa::BroadcastView<float>(bias.data(), 1, kQueryHeads, kTokens, kTokens)},
                   gqa::LearnedSinks{sinks});

  // The forward call. Its outputs and log-sum-exp are what the backward call needs.
  std::vector<float> out(q.size()), lse(kTokens * kQueryHeads);
  const gqa::Sequence sequence{.q = {q.data(), kTokens, kQueryHeads, kDim},
                               .kv = gqa::KvCacheView::contiguous(
                                   k.data(), v.data(), {.length = kTokens, .kv_heads = kKvHeads, .head_dim = kDim}),
                               .out = {out.data(), kTokens, kQueryHeads, kDim},
                               .lse = lse};
  gqa::GroupedQueryAttention<kQueryHeads, kKvHeads, kDim>{}(sequence, variant);

  // The backward call.
  std::vector<float> d_q(q.size()), d_k(k.size()), d_v(v.size()), d_sink(lse.size()), d_bias(bias.size());
  const gqa::SequenceGradients gradients{.d_out = {d_out.data(), kTokens, kQueryHeads, kDim},
                                         .d_q = {d_q.data(), kTokens, kQueryHeads, kDim},
                                         .d_k = {d_k.data(), kTokens, kKvHeads, kDim},
                                         .d_v = {d_v.data(), kTokens, kKvHeads, kDim},
                                         .d_sink = d_sink};
  const gqa::LookupGradient of_bias{.data = d_bias, .strides = {.head = kTokens * kTokens, .query = kTokens, .key = 1}};
  gqa::BackwardOptions options;
  options.lookups = {&of_bias, 1};
  const gqa::GroupedQueryAttentionBackward<kQueryHeads, kKvHeads, kDim> backward;
  backward(sequence, gradients, variant, options);
  std::vector<float> d_logits(kQueryHeads);
  gqa::sum_of_tokens(d_sink, d_logits);

  const gqa::ReferenceGradients wanted = gqa::reference_backward(sequence.q, sequence.kv, gradients.d_out, variant);
  const double errors[] = {error(d_q, wanted.d_q), error(d_k, wanted.d_k), error(d_v, wanted.d_v),
                           error(d_sink, wanted.d_sink)};
  std::printf("largest error of d_q %.1e, d_k %.1e, d_v %.1e, d_sink %.1e\n", errors[0], errors[1], errors[2],
              errors[3]);
  double bias_error = 0;
  for (gqa::Index row = 0; row < kTokens * kQueryHeads; ++row)
    for (gqa::Index t = 0; t < kTokens; ++t) {
      const gqa::Index token = row / kQueryHeads, head = row % kQueryHeads;
      const auto at = static_cast<std::size_t>((head * kTokens + token) * kTokens + t);
      bias_error = std::max(bias_error, std::abs(static_cast<double>(d_bias[at]) - wanted.d_lookups[0](row, t)));
    }
  std::printf("of the bias %.1e; the sinks' gradients:", bias_error);
  for (const float d : d_logits) std::printf(" %.3f", static_cast<double>(d));

  const std::vector<float> serial_q = d_q, serial_k = d_k;
  gqa::ThreadPoolExecutor two_threads(2);
  options.executor = two_threads;
  options.lookups = {};
  backward(sequence, gradients, variant, options);
  const bool same = serial_q == d_q && serial_k == d_k;
  std::printf("\non two threads: %s\n", same ? "the same bits" : "other bits");
  bool good = same && bias_error < 1e-4;
  for (const double e : errors) good = good && e < 1e-4;
  return good ? 0 : 1;
}
