// SPDX-License-Identifier: Apache-2.0
// Every kind of mask, score, sink and change of outputs that the library ships, and your own, each in a few lines.
// Printed are the share of pairs that are visible and the largest difference from the definition in double precision.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "gqa/gqa.hpp"
#include "gqa/reference.hpp"

namespace {

using gqa::BroadcastView;
using gqa::Causal;
using gqa::compose;
using gqa::Full;
using gqa::Index;
using gqa::PositionRange;

// Your own score as an expression: Gemma 2's soft cap, then ALiBi's linear biases. `s` and `k` stand for the scores and the positions of many
// keys: what is returned is evaluated on vectors.
struct SoftCapAndAlibi : Causal {
  float cap;
  explicit SoftCapAndAlibi(float value) : cap(value) {}
  auto score(auto s, const gqa::RowContext& row, auto k) const {
    const float slope = std::exp2(-static_cast<float>(row.query_head + 1));
    return cap * tanh(s / cap) - slope * (row.position - k);
  }
};

// Your own mask as an expression: n_q × n_kv flags.
struct OwnFlags : Full {
  const std::uint8_t* allowed;
  Index n_kv;
  OwnFlags(const std::uint8_t* flags, Index width) : allowed(flags), n_kv(width) {}
  auto visible(const gqa::RowContext& row, auto k) const { return lookup(allowed + row.query * n_kv, k) != 0; }
};

// Whatever C++ can say, one score at a time: several times as slow as an expression.
struct CubeRoots : Causal {
  float score(float score, const gqa::RowContext&, Index) const { return std::cbrt(score); }
};

// Your own ranges: the first tokens and a window. What lies between costs nothing, and its pages may have been freed.
struct OwnRanges {
  std::array<PositionRange, 2> visible_range(Index query_position, Index kv_length) const {
    const Index end = std::min(query_position + 1, kv_length);
    return {PositionRange{0, std::min<Index>(4, end)}, PositionRange{query_position - 63, end}};
  }
};

constexpr Index kQueries = 16;
constexpr Index kLength = 300;
constexpr Index kQueryHeads = 8;
constexpr Index kKvHeads = 2;
constexpr Index kDim = 64;

std::vector<float> random_numbers(Index count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& x : numbers) x = normal(engine);
  return numbers;
}

// What share of the pairs of query rows and keys a variant shows, found by the definition: equal scores give each visible key the same
// weight, so that the log-sum-exp is the logarithm of how many there are. For variants without scores and sinks of their own.
template <class V>
double share_visible(const gqa::ConstTensorView& queries, const gqa::KvCacheView& kv, const V& variant) {
  const gqa::ReferenceResult counted = gqa::reference_attention(queries, kv, variant, 0.0);
  double pairs = 0.0;
  for (Index row = 0; row < kQueries * kQueryHeads; ++row) pairs += std::exp(counted.lse[row]);
  return pairs / static_cast<double>(kQueries * kQueryHeads * kLength);
}

}  // namespace

int main() {
  const std::vector<float> q = random_numbers(kQueries * kQueryHeads * kDim, 1);
  const std::vector<float> k = random_numbers(kLength * kKvHeads * kDim, 2);
  const std::vector<float> v = random_numbers(kLength * kKvHeads * kDim, 3);
  std::vector<float> out(q.size());
  const gqa::ConstTensorView queries(q.data(), kQueries, kQueryHeads, kDim);
  const auto kv =
      gqa::KvCacheView::contiguous(k.data(), v.data(), {.length = kLength, .kv_heads = kKvHeads, .head_dim = kDim});
  const gqa::TensorView result(out.data(), kQueries, kQueryHeads, kDim);
  const gqa::GroupedQueryAttention<kQueryHeads, kKvHeads, kDim> attention;

  bool right = true;
  const auto check = [&](const char* name, double share, const auto& variant) {
    attention(queries, kv, result, variant);
    const gqa::ReferenceResult expected = gqa::reference_attention(queries, kv, variant);
    double error = 0.0;
    for (Index row = 0; row < kQueries * kQueryHeads; ++row)
      for (Index d = 0; d < kDim; ++d) {
        const double given = static_cast<double>(out[static_cast<std::size_t>(row * kDim + d)]);
        const double distance = std::abs(expected.out(row, d) - given);
        error = distance <= error ? error : distance;  // a NaN stays
      }
    std::printf("%-42s %5.1f%% visible, largest error %.1e\n", name, 100.0 * share, error);
    right = right && error < 2e-6;
  };
  const auto mask = [&](const char* name, const auto& variant) {
    check(name, share_visible(queries, kv, variant), variant);
  };
  const double causal_share = share_visible(queries, kv, Causal{});
  const auto score = [&](const char* name, const auto& variant) { check(name, causal_share, variant); };

  // What is in range: blocks of keys outside cost nothing.
  const Index documents[] = {0, 120, 290, kLength};
  const PositionRange images[] = {{10, 20}, {285, 295}};
  const PositionRange valid[] = {{40, kLength}};
  mask("all keys", Full{});
  mask("causal", Causal{});
  mask("causal window", gqa::CausalWindow{64});
  mask("two-sided window", gqa::TwoSidedWindow{64, 4});
  mask("prefix, two-sided within", gqa::PrefixLm{290});
  mask("first tokens and a window", gqa::FirstTokensAndWindow{4, 64});
  mask("chunks", gqa::ChunkedLocal{128});
  mask("causal, images two-sided", gqa::CausalWithBlocks{images});
  mask("packed documents", gqa::PackedDocuments{documents});
  mask("causal, padding at the left", compose(Causal{}, gqa::ValidTokens{valid}));

  // What is hidden within that: words of 64 bits.
  std::vector<std::uint8_t> allowed(static_cast<std::size_t>(kQueries * kLength));
  for (std::size_t i = 0; i < allowed.size(); ++i) allowed[i] = i * 2654435761u % 7 < 3;
  const std::vector<Index> offsets = {0, 1, 3, 5, 7, 10};  // five blocks of 64 queries, and which of 64 keys they see
  const std::vector<Index> blocks = {0, 0, 1, 0, 2, 1, 3, 0, 3, 4};
  std::vector<std::int32_t> parents(kQueries);  // a binary tree of drafts
  for (Index i = 0; i < kQueries; ++i)
    parents[static_cast<std::size_t>(i)] = static_cast<std::int32_t>((i + 1) / 2 - 1);
  std::vector<std::uint64_t> ancestors(static_cast<std::size_t>(kQueries * gqa::DraftTree::words_a_node(kQueries)));
  gqa::DraftTree::fill_ancestors(parents, ancestors);
  mask("dilated window", gqa::DilatedWindow{4, 32});
  mask("boolean mask", gqa::BooleanMask{BroadcastView<std::uint8_t>(allowed.data(), 1, 1, kQueries, kLength)});
  mask("lists of blocks", gqa::BlockSparse{64, 64, offsets, blocks});
  mask("tree of drafts", gqa::DraftTree{kLength - kQueries, parents, ancestors});

  // How scores change: expressions, evaluated on vectors.
  std::vector<float> slopes(kQueryHeads);
  gqa::Alibi::fill_slopes(slopes);
  const std::vector<float> bias = random_numbers(kQueryHeads * kQueries * kLength, 4);
  const std::vector<float> buckets = random_numbers(32 * kQueryHeads, 5);
  constexpr Index distances = kLength;
  std::vector<float> t5(static_cast<std::size_t>(kQueryHeads * (distances + kQueries)));
  gqa::DistanceBias::fill_t5(buckets, kQueryHeads, false, 32, 128, 1 - kQueries, distances + kQueries, t5);
  const std::vector<float> numbers = random_numbers(kQueryHeads, 6);
  score("soft cap", compose(Causal{}, gqa::SoftCap{20.0f}));
  score("ALiBi", compose(Causal{}, gqa::Alibi{slopes}));
  score("additive bias",
        compose(Causal{}, gqa::AdditiveBias{BroadcastView<float>(bias.data(), 1, kQueryHeads, kQueries, kLength)}));
  score("T5's buckets", compose(Causal{}, gqa::DistanceBias{t5, distances + kQueries, 1 - kQueries}));
  score("a scale for each head", compose(Causal{}, gqa::HeadScale{numbers}));
  score("temperature of positions", compose(Causal{}, gqa::PositionTemperature{64, 0.1f}));
  score("learned sinks", compose(Causal{}, gqa::LearnedSinks{numbers}));

  // What is done to outputs: a factor for each KV head's values, and a gate (Qwen3-Next).
  const float of_values[kKvHeads] = {0.5f, 0.25f};
  const std::vector<float> logits = random_numbers(kQueries * kQueryHeads * kDim, 7);
  const gqa::ConstTensorView gates[] = {{logits.data(), kQueries, kQueryHeads, kDim}};
  score("a factor for each KV head's values", compose(Causal{}, gqa::ValueScale{of_values, kQueryHeads / kKvHeads}));
  score("sigmoid gate of outputs", compose(Causal{}, gqa::OutputGate{gates}));

  // Put together, and your own.
  check("window, soft cap and sinks", share_visible(queries, kv, gqa::CausalWindow{64}),
        compose(gqa::CausalWindow{64}, gqa::SoftCap{20.0f}, gqa::LearnedSinks{numbers}));
  mask("own mask: flags", OwnFlags{allowed.data(), kLength});
  mask("own ranges: first tokens and a window", OwnRanges{});
  score("own score: soft cap and ALiBi", SoftCapAndAlibi{20.0f});
  score("own score, one at a time: cube roots", CubeRoots{});
  return right ? 0 : 1;
}
