// SPDX-License-Identifier: Apache-2.0
// Masks and scores of your own: a boolean mask, an additive bias, a soft cap with linear biases, first tokens with a window, learned sinks,
// and a score that is computed one at a time. Each is a struct of a few lines, compiled into the kernels of every path, and held here
// against the definition in double precision.
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

// n_q × n_kv flags, true where the query may look. `k` stands for the positions of the keys: what is returned is evaluated for many at once.
struct BooleanMask : gqa::Full {
  const std::uint8_t* allowed;
  Index n_kv;
  BooleanMask(const std::uint8_t* flags, Index width) : allowed(flags), n_kv(width) {}
  auto visible(const gqa::RowContext& row, auto k) const { return lookup(allowed + row.query * n_kv, k) != 0; }
};

// query head × n_q × n_kv numbers, added to the scaled scores.
struct AdditiveBias : gqa::Causal {
  const float* bias;
  Index n_q;
  Index n_kv;
  AdditiveBias(const float* biases, Index rows, Index width) : bias(biases), n_q(rows), n_kv(width) {}
  auto score(auto s, const gqa::RowContext& row, auto k) const {
    return s + lookup(bias + (row.query_head * n_q + row.query) * n_kv, k);
  }
};

// Gemma 2's soft cap, then ALiBi's linear biases.
struct SoftCapAndAlibi : gqa::Causal {
  float cap;
  explicit SoftCapAndAlibi(float value) : cap(value) {}
  auto score(auto s, const gqa::RowContext& row, auto k) const {
    const float slope = std::exp2(-static_cast<float>(row.query_head + 1));
    return cap * tanh(s / cap) - slope * (row.position - k);
  }
};

// A learned number for each query head joins the sum of weights, as in gpt-oss.
struct LearnedSinks : gqa::Causal {
  const float* sinks;
  explicit LearnedSinks(const float* numbers) : sinks(numbers) {}
  float sink(const gqa::RowContext& row) const { return sinks[row.query_head]; }
};

// Whatever C++ can say, one score at a time: several times as slow as an expression.
struct CubeRoots : gqa::Causal {
  float score(float score, const gqa::RowContext&, Index) const { return std::cbrt(score); }
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

  show("boolean mask", BooleanMask{allowed.data(), kLength});
  show("additive bias", AdditiveBias{bias.data(), kQueries, kLength});
  show("soft cap and ALiBi", SoftCapAndAlibi{20.0f});
  show("learned sinks", LearnedSinks{bias.data()});
  show("cube roots of scores", CubeRoots{});
  show("first tokens and window", FirstTokensAndWindow{4, 64});
  return right ? 0 : 1;
}
