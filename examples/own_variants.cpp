// SPDX-License-Identifier: Apache-2.0
// Masks and scores of your own: a boolean mask, an additive bias, a soft cap, and first tokens with a window. Each is a struct of a few lines,
// compiled into the kernels of every path, and held here against the definition in double precision.
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

using gqa::Index;
using gqa::PositionRange;

// n_q × n_kv flags, true where the query may look. Queries are the last n_q positions of the cache.
struct BooleanMask {
  const std::uint8_t* allowed;
  Index n_q;
  Index n_kv;
  PositionRange visible_range(Index, Index kv_length) const { return {0, kv_length}; }
  bool is_visible(Index query_position, Index key_position, Index) const {
    return allowed[(query_position - (n_kv - n_q)) * n_kv + key_position] != 0;
  }
};

// query head × n_q × n_kv numbers, added to the scaled scores.
struct AdditiveBias {
  const float* bias;
  Index n_q;
  Index n_kv;
  PositionRange visible_range(Index query_position, Index kv_length) const {
    return gqa::Causal{}.visible_range(query_position, kv_length);
  }
  float score(float score, Index query_position, Index key_position, Index query_head) const {
    return score + bias[(query_head * n_q + query_position - (n_kv - n_q)) * n_kv + key_position];
  }
};

// Gemma 2's.
struct SoftCap : gqa::Causal {
  float cap;
  explicit SoftCap(float value) : cap(value) {}
  float score(float score, Index, Index, Index) const { return cap * std::tanh(score / cap); }
};

// The first tokens and a window. What lies between costs nothing, and its pages may have been freed.
struct FirstTokensAndWindow {
  Index first;
  Index window;
  std::array<PositionRange, 2> visible_range(Index query_position, Index kv_length) const {
    const Index end = std::min(query_position + 1, kv_length);
    return {PositionRange{0, std::min(first, end)}, PositionRange{query_position - window + 1, end}};
  }
};

constexpr Index kQueries = 5;
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
  const auto show = [&](const char* name, const auto& variant) {
    attention(queries, kv, result, variant);
    const gqa::ReferenceResult expected = gqa::reference_attention(queries, kv, variant);
    double error = 0.0;
    for (Index row = 0; row < kQueries * kQueryHeads; ++row)
      for (Index d = 0; d < kDim; ++d)
        error = std::max(
            error, std::abs(expected.out(row, d) - static_cast<double>(out[static_cast<std::size_t>(row * kDim + d)])));
    std::printf("%-24s largest error %.1e\n", name, error);
    right = right && error < 2e-6;
  };

  std::vector<std::uint8_t> allowed(static_cast<std::size_t>(kQueries * kLength));
  for (std::size_t i = 0; i < allowed.size(); ++i) allowed[i] = i * 2654435761u % 7 < 3;
  const std::vector<float> bias = random_numbers(kQueryHeads * kQueries * kLength, 4);

  show("boolean mask", BooleanMask{allowed.data(), kQueries, kLength});
  show("additive bias", AdditiveBias{bias.data(), kQueries, kLength});
  show("soft cap", SoftCap{20.0f});
  show("first tokens and window", FirstTokensAndWindow{4, 64});
  return right ? 0 : 1;
}
