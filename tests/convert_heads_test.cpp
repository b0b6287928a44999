// SPDX-License-Identifier: Apache-2.0
// Fewer KV heads by merging, more by repeating, another order: what must come back bit for bit, what may change by rounding alone,
// what each method keeps, and what is refused.
#include "gqa/convert/heads.hpp"

#include <gtest/gtest.h>

#include <Eigen/LU>
#include <array>

#include "support/layers.hpp"
#include "support/messages.hpp"

namespace gqa::test {
namespace {

constexpr HeadShape kShape{12, 6, 8, 10};
constexpr Index kInputs = 24, kOutputs = 20, kTokens = 7;
constexpr double kEpsilon = 0x1p-53;
constexpr MergeMethod every_method[] = {MergeMethod::mean, MergeMethod::first, MergeMethod::random,
                                        MergeMethod::aligned_mean, MergeMethod::low_rank};
constexpr RopeLayout every_layout[] = {{RopePairs::none, 0},
                                       {RopePairs::interleaved, 0},
                                       {RopePairs::half_split, 0},
                                       {RopePairs::interleaved, 4},
                                       {RopePairs::half_split, 4}};

/// Second moments of random inputs with a mean.
InputMoments random_moments(Random& random) {
  const auto moment = [&] {
    Eigen::MatrixXd x = random_matrix(random, kInputs + 1, 200);
    x.row(0).array() += 2;
    x.bottomRows(1).setOnes();
    return Eigen::MatrixXd(x * x.transpose() / 200);
  };
  return {moment(), moment()};
}

/// Rounding errors of `steps` operations in a row, first order, in a layer's outputs: weights of the softmax change by twice a score's
/// error, which is a share of the largest score.
double rounding(double steps, const PlainOutputs& of) { return steps * kEpsilon * (2 + 4 * of.largest_score); }

void expect_same_outputs(const AttentionWeights& made, const AttentionWeights& from, const RopeLayout& rope,
                         double steps, bool causal = true) {
  Random random(99);
  const Eigen::MatrixXd x = random_matrix(random, from.q.cols(), kTokens);
  const PlainOutputs expected = plain_outputs(from, rope, x, causal), given = plain_outputs(made, rope, x, causal);
  const double share = rounding(steps, expected);
  for (Index i = 0; i < x.cols(); ++i)
    for (Index out = 0; out < from.o.rows(); ++out)
      ASSERT_LE(std::abs(given.outputs(out, i) - expected.outputs(out, i)),
                share * (expected.magnitude(out, i) + given.magnitude(out, i)))
          << "output " << out << " of token " << i;
}

TEST(MergeKvHeads, AsManyAsBeforeIsTheSameLayerBitForBit) {
  for (const bool biases : {false, true}) {
    Random random(1);
    const AttentionWeights w = random_layer(random, kShape, kInputs, kOutputs, biases);
    for (const MergeMethod method : every_method)
      for (const RopeLayout& rope : every_layout) {
        const MergedHeads made =
            merge_kv_heads(w, {.kv_heads = 6, .keys = method, .values = method, .rope = rope}, random_moments(random));
        EXPECT_TRUE(same_bits(made.weights, w));
        EXPECT_EQ(made.order, (std::vector<Index>{0, 1, 2, 3, 4, 5}));
        EXPECT_EQ(made.keys_kept, 1);
        EXPECT_EQ(made.values_kept, 1);
      }
  }
}

TEST(MergeKvHeads, EqualHeadsComeBackBitForBitWithEveryMethod) {
  for (const bool biases : {false, true})
    for (const Index few : {1, 2, 3}) {
      Random random(2);
      HeadShape shape = kShape;
      shape.kv_heads = few;
      const AttentionWeights w = random_layer(random, shape, kInputs, kOutputs, biases);
      for (const Index many : {6, 12}) {
        const AttentionWeights repeated = repeat_kv_heads(w, many);
        ASSERT_EQ(repeated.k.rows(), many * shape.head_dim);
        for (const MergeMethod method : every_method)
          for (const HeadGrouping grouping : {HeadGrouping::neighbours, HeadGrouping::similar})
            for (const RopeLayout& rope : every_layout) {
              const MergedHeads made = merge_kv_heads(
                  repeated, {.kv_heads = few, .keys = method, .values = method, .grouping = grouping, .rope = rope});
              EXPECT_TRUE(same_bits(made.weights, w)) << static_cast<int>(method) << ", " << few << " of " << many;
              EXPECT_EQ(made.keys_kept, 1);
              EXPECT_EQ(made.values_kept, 1);
            }
      }
    }
}

TEST(MergeKvHeads, MeanIsTheMeanAndFirstAndRandomAreHeadsOfTheGroup) {
  Random random(3);
  const AttentionWeights w = random_layer(random, kShape, kInputs, kOutputs, true);
  const auto merged = [&](MergeMethod method, std::uint64_t seed = 0) {
    return merge_kv_heads(
               w, {.kv_heads = 2, .keys = method, .values = method, .grouping = HeadGrouping::neighbours, .seed = seed})
        .weights;
  };
  const auto head = [](const auto& rows, Index which, Index width) { return rows.middleRows(which * width, width); };
  const AttentionWeights mean = merged(MergeMethod::mean), first = merged(MergeMethod::first);
  for (Index group = 0; group < 2; ++group) {
    const Eigen::MatrixXd k = (head(w.k, 3 * group, 8) + head(w.k, 3 * group + 1, 8) + head(w.k, 3 * group + 2, 8)) / 3;
    EXPECT_LE((head(mean.k, group, 8) - k).cwiseAbs().maxCoeff(), 8 * kEpsilon * w.k.cwiseAbs().maxCoeff());
    EXPECT_EQ(head(first.k, group, 8), head(w.k, 3 * group, 8));
    EXPECT_EQ(head(first.v, group, 10), head(w.v, 3 * group, 10));
    EXPECT_EQ(head(first.v_bias, group, 10), head(w.v_bias, 3 * group, 10));
  }
  EXPECT_EQ(mean.q, w.q);
  EXPECT_EQ(mean.o, w.o);
  EXPECT_EQ(first.q, w.q);
  std::array<bool, 3> seen{};
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const AttentionWeights made = merged(MergeMethod::random, seed);
    EXPECT_TRUE(same_bits(made, merged(MergeMethod::random, seed)));
    for (Index group = 0; group < 2; ++group) {
      Index from = -1;
      for (Index member = 0; member < 3; ++member)
        if (head(made.k, group, 8) == head(w.k, 3 * group + member, 8)) from = member;
      ASSERT_GE(from, 0);
      EXPECT_EQ(head(made.v, group, 10), head(w.v, 3 * group + from, 10)) << "keys and values of different heads";
      seen[static_cast<std::size_t>(from)] = true;
    }
  }
  EXPECT_TRUE(seen[0] && seen[1] && seen[2]) << "some heads are never drawn";
}

/// All heads of each run of `size` made from its first by `turn_k` and `turn_v`, undone in q and o or not.
template <class TurnKeys, class TurnValues>
AttentionWeights related_heads(AttentionWeights w, Index size, const TurnKeys& turn_k, const TurnValues& turn_v) {
  const Index d = w.shape.head_dim, dv = w.shape.value_dim;
  for (Index head = 0; head < w.shape.kv_heads; ++head) {
    const Index first = head / size * size;
    if (head == first) continue;
    const Eigen::MatrixXd tk = turn_k(), tv = turn_v();
    w.k.middleRows(head * d, d) = tk * w.k.middleRows(first * d, d);
    w.v.middleRows(head * dv, dv) = tv * w.v.middleRows(first * dv, dv);
    if (w.k_bias.size() > 0) w.k_bias.segment(head * d, d) = tk * w.k_bias.segment(first * d, d);
    if (w.v_bias.size() > 0) w.v_bias.segment(head * dv, dv) = tv * w.v_bias.segment(first * dv, dv);
  }
  return w;
}

/// A rotation that RoPE allows: pair by pair, anything in the dims that it leaves alone.
Eigen::MatrixXd allowed_rotation(Random& random, const RopeLayout& rope, Index width) {
  const Index dims = rope.pairs == RopePairs::none ? 0 : rope.dims == 0 ? width : rope.dims;
  Eigen::MatrixXd turn = Eigen::MatrixXd::Zero(width, width);
  for (Index pair = 0; pair < dims / 2; ++pair) {
    const Index a = rope.pairs == RopePairs::interleaved ? 2 * pair : pair;
    const Index b = rope.pairs == RopePairs::interleaved ? 2 * pair + 1 : pair + dims / 2;
    const double angle = 6.28 * random.uniform();
    turn(a, a) = turn(b, b) = std::cos(angle);
    turn(b, a) = std::sin(angle);
    turn(a, b) = -std::sin(angle);
  }
  if (dims < width) turn.bottomRightCorner(width - dims, width - dims) = random_orthogonal(random, width - dims);
  return turn;
}

TEST(MergeKvHeads, HeadsThatAreRotationsOfEachOtherMergeWithoutLoss) {
  for (const RopeLayout& rope : every_layout)
    for (const bool biases : {false, true})
      for (const Index few : {1, 2, 3})
        for (const MergeMethod method : {MergeMethod::aligned_mean, MergeMethod::low_rank}) {
          Random random(4);
          const AttentionWeights w = related_heads(
              random_layer(random, kShape, kInputs, kOutputs, biases), 6 / few,
              [&] { return allowed_rotation(random, rope, kShape.head_dim); },
              [&] { return random_orthogonal(random, kShape.value_dim); });
          for (const InputMoments& moments : {InputMoments{}, random_moments(random)}) {
            const MergeOptions options{.kv_heads = few, .keys = method, .values = method, .rope = rope};
            const MergedHeads made = merge_kv_heads(w, options, moments);
            // Sums of inputs² · dims terms, whose rounding errors the kept share has.
            constexpr double terms = static_cast<double>((kInputs + 1) * 12 * 10);
            EXPECT_NEAR(made.keys_kept, 1, terms * kEpsilon);
            EXPECT_NEAR(made.values_kept, 1, terms * kEpsilon);
            expect_same_outputs(made.weights, w, rope, 16 * terms);
          }
          MergeOptions pooled{.kv_heads = few, .keys = MergeMethod::mean, .values = MergeMethod::mean, .rope = rope};
          const MergedHeads mean = merge_kv_heads(w, pooled);
          EXPECT_LT(mean.keys_kept, 0.95) << "the rotations were none";
          EXPECT_LT(mean.values_kept, 0.95);
        }
}

TEST(MergeKvHeads, HeadsThatSpanTheSameSubspaceMergeWithoutLossByLowRank) {
  Random random(5);
  const auto mix = [&](Index width) {
    return [&random, width] {
      return Eigen::MatrixXd(random_orthogonal(random, width) + 0.3 * random_matrix(random, width, width, 0.3));
    };
  };
  const AttentionWeights w = related_heads(random_layer(random, kShape, kInputs, kOutputs, true), 3,
                                           mix(kShape.head_dim), mix(kShape.value_dim));
  for (const InputMoments& moments : {InputMoments{}, random_moments(random)}) {
    MergeOptions options{.kv_heads = 2, .keys = MergeMethod::low_rank, .values = MergeMethod::low_rank};
    const MergedHeads made = merge_kv_heads(w, options, moments);
    EXPECT_NEAR(made.keys_kept, 1,
                1e-10);  // an eigenvalue problem sees singular values squared: half the digits of a bad map are lost
    EXPECT_NEAR(made.values_kept, 1, 1e-10);
    expect_same_outputs(made.weights, w, {}, 1e6, false);
    options.keys = options.values = MergeMethod::aligned_mean;
    EXPECT_LT(merge_kv_heads(w, options, moments).values_kept, 1 - 1e-3);
  }
}

// A rotary pair of a head is a complex row; heads that are complex multiples of each other need no more than one.
TEST(MergeKvHeads, KeysWhosePairsAreMultiplesMergeWithoutLossByLowRank) {
  for (const RopeLayout& rope : {RopeLayout{RopePairs::interleaved, 0}, RopeLayout{RopePairs::half_split, 0}}) {
    Random random(6);
    const auto scaled = [&] {
      Eigen::MatrixXd turn = allowed_rotation(random, rope, kShape.head_dim);
      for (Index pair = 0; pair < kShape.head_dim / 2; ++pair) {
        const Index a = rope.pairs == RopePairs::interleaved ? 2 * pair : pair;
        const Index b = rope.pairs == RopePairs::interleaved ? 2 * pair + 1 : pair + kShape.head_dim / 2;
        const double factor = 0.5 + random.uniform();
        turn.row(a) *= factor;
        turn.row(b) *= factor;
      }
      return turn;
    };
    const AttentionWeights w = related_heads(random_layer(random, kShape, kInputs, kOutputs, true), 3, scaled,
                                             [&] { return random_orthogonal(random, kShape.value_dim); });
    const MergedHeads made =
        merge_kv_heads(w, {.kv_heads = 2, .keys = MergeMethod::low_rank, .rope = rope}, random_moments(random));
    EXPECT_NEAR(made.keys_kept, 1, 1e-12);
    expect_same_outputs(made.weights, w, rope, 1e5);
  }
}

/// Σ need-weighted lost energy of values, which low_rank minimises.
double lost_outputs(const AttentionWeights& made, const AttentionWeights& from, const std::vector<Index>& order,
                    const Eigen::MatrixXd& moment) {
  const Index group = from.shape.query_heads / from.shape.kv_heads, wide = made.shape.query_heads / made.shape.kv_heads;
  const Index dv = from.shape.value_dim;
  double lost = 0;
  for (Index h = 0; h < from.shape.query_heads; ++h) {
    const Index old_kv = order[static_cast<std::size_t>(h / group)], old_h = old_kv * group + h % group;
    const Eigen::MatrixXd difference = from.o.middleCols(old_h * dv, dv) * from.v.middleRows(old_kv * dv, dv) -
                                       made.o.middleCols(h * dv, dv) * made.v.middleRows(h / wide * dv, dv);
    lost += (difference * moment.topLeftCorner(kInputs, kInputs) * difference.transpose()).trace();
  }
  return lost;
}

TEST(MergeKvHeads, LowRankLosesLeastOfTheOutputsAndAlignmentLessThanTheMean) {
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    Random random(700 + seed);
    const AttentionWeights w = random_layer(random, kShape, kInputs, kOutputs, false);
    const InputMoments moments = random_moments(random);
    const auto lost = [&](MergeMethod method) {
      const MergedHeads made = merge_kv_heads(
          w, {.kv_heads = 2, .keys = method, .values = method, .grouping = HeadGrouping::neighbours}, moments);
      return lost_outputs(made.weights, w, made.order, moments.attended);
    };
    const double low_rank = lost(MergeMethod::low_rank);
    for (const MergeMethod other :
         {MergeMethod::mean, MergeMethod::first, MergeMethod::random, MergeMethod::aligned_mean})
      EXPECT_LT(low_rank, lost(other)) << static_cast<int>(other);
    const auto kept = [&](MergeMethod method) {
      return merge_kv_heads(w, {.kv_heads = 2, .keys = method, .values = method, .grouping = HeadGrouping::neighbours},
                            moments)
          .values_kept;
    };
    EXPECT_GT(kept(MergeMethod::aligned_mean), kept(MergeMethod::mean));
  }
}

TEST(MergeKvHeads, SimilarHeadsAreFoundWhereverTheyAre) {
  for (const MergeMethod method : {MergeMethod::mean, MergeMethod::aligned_mean, MergeMethod::low_rank})
    for (const Index few : {2, 3, 6}) {
      HeadShape shape = kShape;
      shape.query_heads = shape.kv_heads = 12;
      Random random(8);
      HeadShape small = shape;
      small.kv_heads = few;
      AttentionWeights w = repeat_kv_heads(random_layer(random, small, kInputs, kOutputs, true), 12);
      w.k += random_matrix(random, w.k.rows(), w.k.cols(), 0.005);
      w.v += random_matrix(random, w.v.rows(), w.v.cols(), 0.005);
      const std::vector<Index> scattered = permutation(12, 17);
      const AttentionWeights shuffled = permute_kv_heads(w, scattered);
      for (const InputMoments& moments : {InputMoments{}, random_moments(random)}) {
        MergeOptions options{.kv_heads = few, .keys = method, .values = method};
        const MergedHeads made = merge_kv_heads(shuffled, options, moments);
        const Index size = 12 / few;
        for (Index place = 0; place < 12; ++place) {
          const auto family = [&](Index at) {
            return scattered[static_cast<std::size_t>(made.order[static_cast<std::size_t>(at)])] / size;
          };
          EXPECT_EQ(family(place), family(place / size * size)) << few << " groups, place " << place;
        }
        EXPECT_GT(made.keys_kept, 0.98);
        options.grouping = HeadGrouping::neighbours;
        EXPECT_LT(merge_kv_heads(shuffled, options, moments).keys_kept, 0.9);
      }
    }
}

TEST(PermuteKvHeads, MovesHeadsAndWhatReadsThemAndLeavesOutputsUpToRounding) {
  for (const bool biases : {false, true})
    for (const RopeLayout& rope : every_layout) {
      Random random(9);
      const AttentionWeights w = random_layer(random, kShape, kInputs, kOutputs, biases);
      const std::vector<Index> order = permutation(6, 5);
      const AttentionWeights made = permute_kv_heads(w, order);
      for (Index i = 0; i < 6; ++i) {
        const Index old = order[static_cast<std::size_t>(i)];
        EXPECT_EQ(made.k.middleRows(i * 8, 8), w.k.middleRows(old * 8, 8));
        EXPECT_EQ(made.v.middleRows(i * 10, 10), w.v.middleRows(old * 10, 10));
        EXPECT_EQ(made.q.middleRows(i * 16, 16), w.q.middleRows(old * 16, 16));
        EXPECT_EQ(made.o.middleCols(i * 20, 20), w.o.middleCols(old * 20, 20));
      }
      // Each head's numbers are the same; the 12 · 10 products of an output, and its bias, are added in another order.
      expect_same_outputs(made, w, rope, 2 * (12 * 10 + 1));
      std::vector<Index> back(6);
      for (Index i = 0; i < 6; ++i) back[static_cast<std::size_t>(order[static_cast<std::size_t>(i)])] = i;
      EXPECT_TRUE(same_bits(permute_kv_heads(made, back), w));
    }
}

TEST(RepeatKvHeads, ChangesNoOutput) {
  for (const bool biases : {false, true}) {
    Random random(10);
    const AttentionWeights w = random_layer(random, kShape, kInputs, kOutputs, biases);
    const Eigen::MatrixXd x = random_matrix(random, kInputs, kTokens);
    EXPECT_TRUE(same_bits(repeat_kv_heads(w, 6), w));
    EXPECT_EQ(plain_outputs(repeat_kv_heads(w, 12), {}, x).outputs, plain_outputs(w, {}, x).outputs);
  }
}

TEST(MergeKvHeads, ZeroWeightsStayFinite) {
  Random random(11);
  AttentionWeights w = random_layer(random, kShape, kInputs, kOutputs, true);
  w.k.middleRows(0, 24).setZero();
  w.v.middleRows(10, 10).setZero();
  w.q.setZero();
  w.q_bias.setZero();
  w.o.leftCols(60).setZero();
  w.k_bias.setZero();
  for (const MergeMethod method : every_method)
    for (const RopeLayout& rope : every_layout)
      for (const Index few : {1, 2, 3}) {
        const MergedHeads made = merge_kv_heads(w, {.kv_heads = few, .keys = method, .values = method, .rope = rope});
        EXPECT_TRUE(made.weights.k.allFinite() && made.weights.v.allFinite() && made.weights.q.allFinite() &&
                    made.weights.o.allFinite());
        EXPECT_LE(made.values_kept, 1 + 1e-12);
      }
}

TEST(MergeKvHeads, NamesWhatIsWrong) {
  Random random(12);
  const AttentionWeights good = random_layer(random, kShape, kInputs, kOutputs, true);
  const auto with = [&](auto change, MergeOptions options = {.kv_heads = 2}, const InputMoments& moments = {}) {
    AttentionWeights w = good;
    change(w);
    return message_of([&] { merge_kv_heads(w, options, moments); });
  };
  const auto nothing = [](AttentionWeights&) {};
  EXPECT_EQ(with([](auto& w) { w.k.conservativeResize(40, kInputs); }),
            "gqa: weights.k.rows() is 40; expected kv_heads * head_dim = 48");
  EXPECT_EQ(with([](auto& w) { w.v.conservativeResize(60, 23); }),
            "gqa: weights.v.cols() is 23; expected q.cols() = 24");
  EXPECT_EQ(with([](auto& w) { w.o.conservativeResize(20, 96); }),
            "gqa: weights.o.cols() is 96; expected query_heads * value_dim = 120");
  EXPECT_EQ(with([](auto& w) { w.q.resize(0, 0); }), "gqa: weights.q.cols() is 0; expected 1 or more inputs");
  EXPECT_EQ(with([](auto& w) { w.v_bias.conservativeResize(59); }),
            "gqa: weights.v_bias.size() is 59; expected v.rows() = 60, or 0: no bias");
  EXPECT_EQ(with([](auto& w) { w.shape.kv_heads = 5; }),
            "gqa: weights.shape.kv_heads is 5; expected a divisor of query_heads = 12");
  EXPECT_EQ(with([](auto& w) { w.shape.value_dim = dynamic; }),
            "gqa: weights.shape.value_dim is -1; expected 1 to 1048576");
  EXPECT_EQ(with([](auto& w) { w.k(3, 5) = std::nan(""); }), "gqa: weights.k(3, 5) is nan; expected a finite number");
  EXPECT_EQ(with([](auto& w) { w.o_bias[1] = 1.0 / 0.0; }), "gqa: weights.o_bias[1] is inf; expected a finite number");
  EXPECT_EQ(with(nothing, {.kv_heads = 4}), "gqa: options.kv_heads is 4; expected a divisor of the layer's 6 KV heads");
  EXPECT_EQ(with(nothing, {.kv_heads = 0}), "gqa: options.kv_heads is 0; expected a divisor of the layer's 6 KV heads");
  EXPECT_EQ(with(nothing, {.kv_heads = 2, .rope = {RopePairs::half_split, 5}}),
            "gqa: rope.dims is 5; expected an even number, at most head_dim = 8");
  EXPECT_EQ(with(nothing, {.kv_heads = 2, .rope = {RopePairs::half_split, 10}}),
            "gqa: rope.dims is 10; expected an even number, at most head_dim = 8");
  EXPECT_EQ(with(nothing, {.kv_heads = 2, .keys = static_cast<MergeMethod>(9)}),
            "gqa: options.keys is 9; expected MergeMethod::mean, first, random, aligned_mean or low_rank");
  EXPECT_EQ(with(nothing, {.kv_heads = 2}, {Eigen::MatrixXd::Identity(24, 24), {}}),
            "gqa: moments.inputs is 24 x 24; expected (inputs + 1) x (inputs + 1), inputs + 1 = 25, or empty");
  Eigen::MatrixXd moment = Eigen::MatrixXd::Identity(25, 25);
  moment(2, 3) = 0.5;
  EXPECT_EQ(with(nothing, {.kv_heads = 2}, {{}, moment}),
            "gqa: moments.attended is not symmetric; expected a symmetric matrix");
  moment = -Eigen::MatrixXd::Identity(25, 25);
  EXPECT_EQ(with(nothing, {.kv_heads = 2}, {moment, {}}),
            "gqa: moments.inputs(0, 0) is -1.000000; expected 0 or more: the mean of a square");
  EXPECT_EQ(message_of([&] { repeat_kv_heads(good, 8); }),
            "gqa: kv_heads is 8; expected a multiple of the layer's 6 KV heads that divides its 12 query heads");
  EXPECT_EQ(message_of([&] {
              permute_kv_heads(good, std::vector<Index>{0, 1});
            }),
            "gqa: order.size() is 2; expected kv_heads = 6");
  EXPECT_EQ(message_of([&] {
              permute_kv_heads(good, std::vector<Index>{0, 1, 2, 3, 4, 4});
            }),
            "gqa: order[5] is 4; expected each of 0 to kv_heads - 1 = 5 once");
}

}  // namespace
}  // namespace gqa::test
