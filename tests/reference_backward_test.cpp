// SPDX-License-Identifier: Apache-2.0
// The gradients by definition: held to differences of the definition itself, for every stage of a variant.
#include "gqa/reference_backward.hpp"

#include <gtest/gtest.h>

#include "gqa/variants.hpp"
#include "support/gradients.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

/// GQA with Dv ≠ D; the first query token is not the first position.
constexpr Shape kGrouped{4, 2, 5, 3, 4, 9};

TEST(ReferenceBackward, IsTheDifferenceOfOutputsForEveryGrouping) {
  std::uint64_t seed = 301;
  for (const Index kv_heads : {4, 2, 1}) {
    SCOPED_TRACE(describe("kv heads", kv_heads));
    expect_gradients(GradientProblem({4, kv_heads, 5, 3, 4, 9}, seed++), Causal{});
  }
  expect_gradients(GradientProblem({3, 1, 2, 6, 3, 3}, seed), Causal{});
}

TEST(ReferenceBackward, HasTheRangesAndMasks) {
  const GradientProblem problem(kGrouped, 311);
  expect_gradients(problem, Full{});
  expect_gradients(problem, CausalWindow{3});
  expect_gradients(problem, FirstTokensAndWindow{2, 3});
  expect_gradients(problem, SinksAndWindowRanges{3, 2});
  expect_gradients(problem, Sieve{});
  expect_gradients(problem, SieveOfWords{});
}

TEST(ReferenceBackward, HasPositionsAndTheScale) {
  GradientProblem problem(kGrouped, 321);
  problem.positions = {7, 0, 3, 12};
  problem.scale = 0.75;
  expect_gradients(problem, Causal{});
}

TEST(ReferenceBackward, ReadsRingsAndPages) {
  expect_gradients(GradientProblem(kGrouped, 331, ring_place(6, CacheLayout::reversed)), CausalWindow{3});
  expect_gradients(GradientProblem(kGrouped, 332, paged_place(2, CacheLayout::interleaved)), Causal{});
}

TEST(ReferenceBackward, ARowThatSeesNothingHasZeros) {
  GradientProblem problem(kGrouped, 341);  // positions 5 … 8, of which the even ones see nothing
  const ReferenceGradients gradients = expect_gradients(problem, StrictlyBeforeOdd{});
  EXPECT_EQ(gradients.d_q.middleRows(1 * 4, 4).cwiseAbs().maxCoeff(), 0.0);
  EXPECT_EQ(gradients.d_q.middleRows(3 * 4, 4).cwiseAbs().maxCoeff(), 0.0);
  EXPECT_EQ(gradients.d_k.bottomRows(2 * 2).cwiseAbs().maxCoeff(), 0.0);  // no one sees 7 and 8 …
  for (Index t = 7; t < 9; ++t)
    for (Index h = 0; h < 2; ++h) *problem.k_at(t, h, 0) = *problem.v_at(t, h, 0) = NAN;
  const ReferenceGradients same = problem.gradients(StrictlyBeforeOdd{});  // … so that nothing of them shows
  EXPECT_TRUE(same.d_q == gradients.d_q && same.d_k == gradients.d_k && same.d_v == gradients.d_v);

  problem.positions = {0, 2, 4, 6};
  const ReferenceGradients none = problem.gradients(StrictlyBeforeOdd{});
  EXPECT_EQ(none.d_q.cwiseAbs().sum() + none.d_k.cwiseAbs().sum() + none.d_v.cwiseAbs().sum(), 0.0);
}

TEST(ReferenceBackward, HasTheSlopeOfCapsAndLinearBiases) {
  const GradientProblem problem(kGrouped, 351);
  const float slopes[] = {0.5f, 0.25f, 0.125f, 1.0f};
  const float scales[] = {2.0f, 0.5f, -1.0f, 1.5f};
  expect_gradients(problem, compose(Causal{}, gqa::SoftCap{1.5f}));
  expect_gradients(problem, compose(Causal{}, gqa::Alibi{slopes}));
  expect_gradients(problem, compose(Full{}, HeadScale{scales}, gqa::SoftCap{2.0f}, gqa::Alibi{slopes}));
}

/// e^…, ln, tanh, quotients, fused and plain products and sums of the score and of two biases for each pair.
struct Smooth : Causal {
  const float* bias;  // [query head][2][9]
  explicit Smooth(const float* biases) : bias(biases) {}
  auto score(auto s, const RowContext& row, auto k) const {
    const auto first = lookup(bias + row.query_head * 18, k);
    const auto second = lookup(bias + row.query_head * 18 + 9, k);
    return fma(s, 0.75f, tanh(first * s)) / (1.5f + exp(-s)) + log(1.25f + s * s + exp(second)) - second / (4.0f + k);
  }
};

TEST(ReferenceBackward, HasTheSlopeOfEverySmoothOperation) {
  const GradientProblem problem(kGrouped, 361);
  Numbers bias = on_grid(make_problem({4, 1, 18, 1, 1, 1}, 362).q);
  const Smooth variant(bias.values.data());
  const ReferenceGradients gradients = expect_gradients(problem, variant);
  ASSERT_EQ(gradients.d_lookups.size(), 3u);
  const auto f = [&] { return problem.objective(variant); };
  DifferenceCheck check(problem);
  for (Index h = 0; h < 4; ++h)
    for (Index t = 0; t < 9; ++t) {
      double first = 0.0, second = 0.0;  // `second` is looked up twice: in lookups 1 and 2
      for (Index i = 0; i < 4; ++i) {
        first += gradients.d_lookups[0](i * 4 + h, t);
        second += gradients.d_lookups[1](i * 4 + h, t) + gradients.d_lookups[2](i * 4 + h, t);
      }
      check.compare(&bias.at(0, h, t), first, f, describe("by the first bias of head", h, "key", t));
      check.compare(&bias.at(0, h, 9 + t), second, f, describe("by the second bias of head", h, "key", t));
    }
}

/// abs, min, max and select, with kinks at places that no score comes near.
struct Kinked : Causal {
  float places[4];
  auto score(auto s, const RowContext& row, auto k) const {
    const auto bent = 0.5f * abs(s - places[0]) + min(s, places[1]) * 1.25f - max(0.75f * s, 0.75f * places[2]);
    const auto chosen = select(s < places[3] && !(k == 2), s * s, select(row.position - k < 3, -s, 0.25f * k));
    return bent + 0.5f * chosen;
  }
};

TEST(ReferenceBackward, HasTheSlopeOfTheOperandThatIsTheValue) {
  const GradientProblem problem(kGrouped, 371);
  Kinked variant{};
  const double wanted[] = {0.0, 0.5, -0.25, 0.25};
  for (std::size_t i = 0; i < 4; ++i) variant.places[i] = quiet_place(problem, wanted[i]);
  expect_gradients(problem, variant);
}

TEST(ReferenceBackward, HasTheGradientByBiases) {
  const GradientProblem problem(kGrouped, 381);
  Numbers bias = on_grid(make_problem({4, 1, 9, 1, 4, 1}, 382).q);  // [query token][query head][key]
  using Bias = BroadcastView<float>;
  const auto variant = compose(
      Causal{}, AdditiveBias<float>{Bias(bias.values.data(), 1, 4, 4, 9, Bias::Strides{0, 9, 36, 1})}, gqa::SoftCap{2});
  const ReferenceGradients gradients = expect_gradients(problem, variant);
  ASSERT_EQ(gradients.d_lookups.size(), 1u);
  ASSERT_EQ(gradients.d_lookups[0].rows(), 16);
  ASSERT_EQ(gradients.d_lookups[0].cols(), 9);
  DifferenceCheck check(problem);
  for (Index i = 0; i < 4; ++i)
    for (Index h = 0; h < 4; ++h)
      for (Index t = 0; t < 9; ++t)
        check.compare(
            &bias.at(i, h, t), gradients.d_lookups[0](i * 4 + h, t), [&] { return problem.objective(variant); },
            describe("by the bias of", i, h, t));
}

TEST(ReferenceBackward, HasTheGradientByBiasesOfDistances) {
  const GradientProblem problem(kGrouped, 391);
  Numbers bias = on_grid(make_problem({4, 1, 12, 1, 1, 1}, 392).q);
  const Index least = -3;
  const auto variant = compose(Full{}, DistanceBias{bias.values, 12, least});
  const ReferenceGradients gradients = expect_gradients(problem, variant);
  DifferenceCheck check(problem);
  for (Index h = 0; h < 4; ++h)
    for (Index n = 0; n < 12; ++n) {
      double slope = 0.0;
      for (Index i = 0; i < 4; ++i) {
        const Index key = 5 + i - (n + least);
        if (key >= 0 && key < 9) slope += gradients.d_lookups[0](i * 4 + h, key);
      }
      check.compare(
          &bias.at(0, h, n), slope, [&] { return problem.objective(variant); },
          describe("by the bias of head", h, "distance", n + least));
    }
}

TEST(ReferenceBackward, HasTheGradientBySinks) {
  const GradientProblem problem(kGrouped, 401);
  for (const bool in_lse : {true, false}) {
    float logits[] = {0.5f, 1.25f, -1.0f, 0.0f};
    const auto variant = compose(CausalWindow{4}, LearnedSinks{logits, in_lse});
    const ReferenceGradients gradients = expect_gradients(problem, variant);
    DifferenceCheck check(problem);
    for (Index h = 0; h < 4; ++h) {
      double slope = 0.0;
      for (Index i = 0; i < 4; ++i) slope += gradients.d_sink[i * 4 + h];
      check.compare(
          &logits[h], slope, [&] { return problem.objective(variant); }, describe("by the sink of head", h));
    }
  }
  EXPECT_EQ(problem
                .gradients(Sinks{})  // the first head's is −∞
                .d_sink(Eigen::seqN(0, 4, 4))
                .cwiseAbs()
                .maxCoeff(),
            0.0);
  EXPECT_EQ(problem.gradients(Causal{}).d_sink, Eigen::VectorXd::Zero(16));
}

// A sum of the same to all scores and the sink of a row changes nothing, so its derivatives add up to 0.
TEST(ReferenceBackward, DerivativesByTheScoresOfARowAddUpToZero) {
  const GradientProblem problem(kGrouped, 411);
  const float bias[9] = {0.5f, -1.0f, 0.25f};
  const float logits[] = {0.5f, 1.25f, -1.0f, 0.0f};
  const auto variant =
      compose(Causal{}, AdditiveBias<float>{BroadcastView<float>(bias, 1, 1, 1, 9)}, LearnedSinks{logits});
  const ReferenceGradients gradients = problem.gradients(variant);
  for (Index row = 0; row < 16; ++row) {
    const auto by_bias = gradients.d_lookups[0].row(row);
    EXPECT_GT(by_bias.cwiseAbs().sum(), 0.01);
    // Two sums of 3 products, a subtraction, a product and a sum of 10: less than 32 roundings of the largest term, 2 p |g · v|.
    const double largest = 2.0 * 3.0 * 4.0 * 4.0;
    EXPECT_NEAR(by_bias.sum() + gradients.d_sink[row], 0.0, 32.0 * 0x1p-53 * largest);
  }
}

TEST(ReferenceBackward, HasTheFactorAndTheGateOfOutputs) {
  GradientProblem problem(kGrouped, 421);
  const float factors[] = {1.75f, -0.5f};
  problem.largest_output_factor = 1.75;
  const Numbers logits = make_problem({4, 1, 3, 1, 4, 1}, 422).q;
  const Tensor gate(logits, ElementType::bf16, TensorLayout::padded);
  const ConstTensorView gates[] = {gate.const_view()};
  expect_gradients(problem, compose(Causal{}, ValueScale{factors, 2}));
  expect_gradients(problem, compose(Causal{}, OutputGate{gates}));
  expect_gradients(problem, compose(Causal{}, OutputGate{gates}, ValueScale{factors, 2}, gqa::SoftCap{2}));
}

/// −∞ for keys that a mask would hide, and ln of what is 0 for others: a slope of ∞ · 0.
struct MinusInfinity : Causal {
  auto score(auto s, const RowContext&, auto k) const {
    return select(k == 1, -std::numeric_limits<float>::infinity() + 0.0f * s, s) +
           log(select(k == 3, 0.0f * s, 1.0f + 0.0f * s));
  }
};
struct WithoutOneAndThree : Causal {
  auto visible(const RowContext&, auto k) const { return k != 1 && k != 3; }
};

TEST(ReferenceBackward, WhatIsScoredMinusInfinityHasNoGradient) {
  const GradientProblem problem(kGrouped, 431);
  const ReferenceGradients gradients = expect_gradients(problem, MinusInfinity{});
  const ReferenceGradients masked = problem.gradients(WithoutOneAndThree{});
  for (const Index t : {1, 3})
    EXPECT_EQ(gradients.d_k.middleRows(t * 2, 2).cwiseAbs().sum() + gradients.d_v.middleRows(t * 2, 2).cwiseAbs().sum(),
              0.0);
  // Sums of 9 terms and of 7 of them may be added up in another order: a few roundings of what is below 16.
  EXPECT_LT((gradients.d_q - masked.d_q).cwiseAbs().maxCoeff(), 64.0 * 0x1p-53 * 16.0);
  EXPECT_LT((gradients.d_k - masked.d_k).cwiseAbs().maxCoeff(), 64.0 * 0x1p-53 * 16.0);
}

// GQA is MHA over repeated KV heads: the same rows, whose gradients by a KV head are those by its copies, added up.
TEST(ReferenceBackward, OfGroupsIsThatOfRepeatedHeadsAddedUp) {
  constexpr Index heads = 6, kv_heads = 2, group = 3, tokens = 5, length = 11, dim = 7, value_dim = 4;
  const Problem p = make_problem({heads, kv_heads, dim, value_dim, tokens, length}, 441);
  LogicalCache repeated{Numbers(length, heads, dim), Numbers(length, heads, value_dim)};
  for (Index t = 0; t < length; ++t)
    for (Index h = 0; h < heads; ++h) {
      for (Index d = 0; d < dim; ++d) repeated.k.at(t, h, d) = p.kv.k.at(t, h / group, d);
      for (Index d = 0; d < value_dim; ++d) repeated.v.at(t, h, d) = p.kv.v.at(t, h / group, d);
    }
  const Tensor q(p.q, ElementType::f32);
  const Tensor d_out(make_problem({heads, 1, value_dim, 1, tokens, 1}, 442).q, ElementType::f32);
  const StoredCaches grouped = store_cache(p.kv, ElementType::f32);
  const StoredCaches all = store_cache(repeated, ElementType::f32);
  const float bias[length] = {0.5f, -1.0f, 0.25f};
  const float logits[] = {0.5f, 1.25f, -1.0f, 0.0f, -0.25f, 0.75f};
  const auto variant = compose(Causal{}, gqa::SoftCap{2.0f},
                               AdditiveBias<float>{BroadcastView<float>(bias, 1, 1, 1, length)}, LearnedSinks{logits});
  const ReferenceGradients gqa = reference_backward(q.const_view(), grouped.view(), d_out.const_view(), variant);
  const ReferenceGradients mha = reference_backward(q.const_view(), all.view(), d_out.const_view(), variant);
  EXPECT_EQ(gqa.d_q, mha.d_q);
  EXPECT_EQ(gqa.d_sink, mha.d_sink);
  EXPECT_EQ(gqa.d_lookups[0], mha.d_lookups[0]);
  // A sum of tokens · group terms, in two orders; |dx| ≤ 2 |g · v|, and all numbers are below 4.
  const double largest = 2.0 * static_cast<double>(value_dim) * 4.0 * 4.0 * 4.0;
  const double terms = static_cast<double>(tokens * group);
  const double bound = 2.0 * terms * 0x1p-53 * terms * largest;
  for (Index t = 0; t < length; ++t)
    for (Index g = 0; g < kv_heads; ++g) {
      const auto summed = [&](const Eigen::MatrixXd& of) {
        return of.middleRows(t * heads + g * group, group).colwise().sum().eval();
      };
      EXPECT_LT((gqa.d_k.row(t * kv_heads + g) - summed(mha.d_k)).cwiseAbs().maxCoeff(), bound);
      EXPECT_LT((gqa.d_v.row(t * kv_heads + g) - summed(mha.d_v)).cwiseAbs().maxCoeff(), bound);
    }
  EXPECT_GT(gqa.d_k.cwiseAbs().maxCoeff(), 0.1);
}

}  // namespace
}  // namespace gqa::test
