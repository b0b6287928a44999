// SPDX-License-Identifier: Apache-2.0
// Gradients through everything that a variant may be made of: scores, biases, sinks, output factors and gates, and users' expressions.
#include <gtest/gtest.h>

#include "gqa/backward.hpp"
#include "gqa/variants.hpp"
#include "support/backward_cases.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

/// Scores of these tests are below 16: products of 16 or 24 normal numbers over √D, and what variants add.
constexpr double kLargest = 16.0;
/// tanh has a second derivative below 0.77, a cap of c one of 0.77 / c; c tanh(s / c) has five roundings.
ScoreErrors cap_errors(double cap) {
  return {.curvature = 0.77 / cap, .roundings = 8.0, .magnitude = kLargest, .slope_roundings = 8.0};
}
/// A product with the distance and a sum; distances are below 200 and slopes of heads below 1/8.
constexpr ScoreErrors kLinear{.roundings = 4.0, .magnitude = 32.0, .slope_roundings = 2.0};

class BackwardVariants : public BackwardPerPathAndType {
 protected:
  Shape shape() const { return slow() ? Shape{4, 2, 16, 12, 6, 70} : Shape{4, 2, 24, 20, 20, 150}; }
  StoredProblem stored(std::uint64_t seed) const { return {shape(), seed, type()}; }
};

TEST_P(BackwardVariants, CapsLinearBiasesAndScales) {
  const StoredProblem p = stored(701);
  const float slopes[] = {0.125f, 0.0625f, 0.03125f, 0.015625f};
  const float scales[] = {1.5f, 0.5f, -1.0f, 1.25f};
  hold(p.inputs(), compose(Causal{}, gqa::SoftCap{2.0f}), cap_errors(2.0));
  hold(p.inputs(), compose(Full{}, gqa::Alibi{slopes}), kLinear);
  ScoreErrors scaled = cap_errors(3.0);
  scaled.largest_slope = 1.5;
  scaled.curvature *= 2.25;
  hold(p.inputs(), compose(CausalWindow{50}, HeadScale{scales}, gqa::SoftCap{3.0f}), scaled);
  hold(p.inputs(), compose(Causal{}, PositionTemperature{16, 0.25f}),
       {.largest_slope = 2.0, .roundings = 4.0, .magnitude = kLargest, .slope_roundings = 2.0});
  hold(p.inputs(), CapAndAlibi(4.0f), {.curvature = 0.2, .roundings = 12.0, .magnitude = 80.0, .slope_roundings = 8.0});
}

TEST_P(BackwardVariants, SinksInAndOutOfTheLogSumExp) {
  const StoredProblem p = stored(711);
  const float logits[] = {0.5f, 3.0f, -2.0f, 0.0f};
  for (const bool in_lse : {true, false}) {
    hold(p.inputs(), compose(CausalWindow{30}, LearnedSinks{logits, in_lse}));
    hold(p.inputs(), compose(StrictlyBeforeOdd{}, LearnedSinks{logits, in_lse}));
  }
  hold(p.inputs(), Sinks{});  // one of −∞
  const float far[] = {60.0f, -60.0f, 200.0f, -200.0f};
  for (const bool in_lse : {true, false}) hold(p.inputs(), compose(Causal{}, LearnedSinks{far, in_lse}));
}

TEST_P(BackwardVariants, OutputFactorsAndGates) {
  const StoredProblem p = stored(721);
  const float factors[] = {1.75f, -0.5f};
  hold(p.inputs(), compose(Causal{}, ValueScale{factors, 2}));
  const Numbers logits = make_problem({4, 1, shape().value_dim, 1, shape().n_q, 0}, 722).q;
  for (const ElementType type : kEveryType) {
    const Tensor gate(logits, type, TensorLayout::padded);
    const ConstTensorView gates[] = {gate.const_view()};
    hold(p.inputs(), compose(Causal{}, OutputGate{gates}));
    hold(p.inputs(), compose(CausalWindow{30}, OutputGate{gates}, ValueScale{factors, 2}, gqa::SoftCap{4.0f}),
         cap_errors(4.0));
  }
}

/// fma, exp, log, tanh, quotients, products, sums, differences, abs, min, max and select.
struct EveryOperation : Causal {
  const float* bias;  ///< [query head][2][200]
  explicit EveryOperation(const float* biases) : bias(biases) {}
  auto score(auto s, const RowContext& row, auto k) const {
    const auto first = lookup(bias + row.query_head * 400, k);
    const auto second = lookup(bias + row.query_head * 400 + 200, k);
    const auto smooth =
        fma(s, 0.75f, tanh(0.25f * first * s)) / (1.5f + exp(-abs(0.125f * s))) + log(2.0f + exp(0.25f * second));
    const auto bent = min(max(s, -9.0f), 9.0f) * 0.25f - second / (4.0f + k);
    return select(k < 40 || row.position - k < 30, smooth + bent, -s);
  }
};

// Derivatives of the parts are below 2 and second ones below 2, by any of their operands; less than 40 operations on numbers below 32.
constexpr ScoreErrors kEveryError{
    .largest_slope = 2.0, .curvature = 2.0, .roundings = 40.0, .magnitude = 32.0, .slope_roundings = 40.0 * 4.0};

TEST_P(BackwardVariants, EveryOperationOfAnExpression) {
  const StoredProblem p = stored(731);
  const std::vector<float> bias = make_problem({4, 1, 400, 1, 1, 0}, 732).q.values;
  hold(p.inputs(), EveryOperation(bias.data()), kEveryError);
  const std::vector<float> key_bias = make_problem({4, 1, 200, 1, 1, 0}, 733).q.values;
  std::vector<std::int32_t> documents(200);
  for (std::size_t i = 0; i < 200; ++i) documents[i] = static_cast<std::int32_t>(i / 45);
  hold(p.inputs(), Everything(key_bias.data(), documents.data()), kEveryError);
}

/// Scores of −∞ whose slopes are no numbers: ln 0.
struct MinusInfinity : Causal {
  auto score(auto s, const RowContext&, auto k) const {
    return select(k == 1, -std::numeric_limits<float>::infinity() + 0.0f * s, s) +
           log(select(k == 3, 0.0f * s, 1.0f + 0.0f * s));
  }
};

TEST_P(BackwardVariants, WhatIsScoredMinusInfinityHasNoGradient) {
  const StoredProblem p = stored(741);
  hold(p.inputs(), MinusInfinity{}, kEveryError);
  std::vector<float> bias(200, 0.0f);
  bias[2] = bias[5] = -INFINITY;
  hold(p.inputs(), compose(Causal{}, AdditiveBias<float>{BroadcastView<float>(bias.data(), 1, 1, 1, 200)}), kLinear);
  std::fill(bias.begin(), bias.end(), -INFINITY);  // of everything: rows attend to nothing
  hold(p.inputs(), compose(Causal{}, AdditiveBias<float>{BroadcastView<float>(bias.data(), 1, 1, 1, 200)}), kLinear);
}

INSTANTIATE_TEST_SUITE_P(EveryPath, BackwardVariants, BackwardVariants::cases(), BackwardVariants::name);

}  // namespace
}  // namespace gqa::test
