// SPDX-License-Identifier: Apache-2.0
// Gradients by what scores look up: additive biases of every broadcasting, biases of distances, and users' lookups.
#include <gtest/gtest.h>

#include "gqa/backward.hpp"
#include "gqa/variants.hpp"
#include "support/backward_cases.hpp"

namespace gqa::test {
namespace {

/// A sum of two numbers below 16.
constexpr ScoreErrors kSum{.roundings = 2.0, .magnitude = 16.0};

class BackwardLookups : public BackwardPerPathAndType {
 protected:
  Shape shape() const { return slow() ? Shape{4, 2, 9, 6, 6, 70} : Shape{4, 2, 24, 20, 70, 280}; }

  /// Gradients by lookup `number`, added to elements that are 0.5, held to the definition; and those by all else too.
  template <class V, class Element>
  void hold_lookup(const StoredProblem& p, const V& variant, int number, const LookupGradient::Strides& strides,
                   Index offset, std::size_t size, const Element& element, const ScoreErrors& errors = kSum) const {
    for (BackwardHow how : hows()) {
      std::vector<float> data(size, 0.5f);
      const LookupGradient lookups[] = {{number, data, strides, offset}};
      how.lookups = lookups;
      Output given = run_forward(p.inputs(), how, variant);
      const Gradients actual = run_backward(p.inputs(), given, how, variant);
      const GradientBound bound(p.inputs(), p.inputs().kv, given, how, variant, errors);
      EXPECT_TRUE(bound.holds(actual)) << products_name(how.products);
      EXPECT_TRUE(bound.lookups_hold(number, data, 0.5f, element)) << products_name(how.products);
      how.lookups = {};
      EXPECT_TRUE(same_gradients(actual, run_backward(p.inputs(), given, how, variant)))
          << "gradients by lookups change no other";
    }
  }

  template <class T>
  void hold_bias(bool by_head, bool by_query) const {
    SCOPED_TRACE(describe(element_name(ElementTraits<T>::type), "by head", by_head, "by query", by_query));
    const Shape s = shape();
    const StoredProblem p(s, 901, type());
    const Index heads = by_head ? s.query_heads : 1, queries = by_query ? s.n_q : 1;
    const Numbers numbers = make_problem({heads, 1, s.n_kv, 1, queries, 0}, 902).q;
    std::vector<T> bias;
    for (Index h = 0; h < heads; ++h)
      for (Index i = 0; i < queries; ++i)
        for (Index t = 0; t < s.n_kv; ++t) bias.push_back(T(numbers.at(i, h, t)));
    const BroadcastView<T> view(bias.data(), 1, heads, queries, s.n_kv);
    const LookupGradient::Strides strides{0, by_head ? queries * s.n_kv : 0, by_query ? s.n_kv : 0, 1};
    hold_lookup(p, compose(Causal{}, AdditiveBias<T>{view}), 0, strides, 0, bias.size(),
                [&](Index i, Index h, Index t) { return h * strides.head + i * strides.query + t; });
  }
};

TEST_P(BackwardLookups, AdditiveBiasesOfEveryBroadcasting) {
  for (const bool by_head : {true, false})
    for (const bool by_query : {true, false}) {
      hold_bias<float>(by_head, by_query);
      hold_bias<bf16>(by_head, by_query);
    }
}

// Each sequence has biases of its own, head by head, with gaps between them.
TEST_P(BackwardLookups, BiasesOfSequences) {
  Shape s = shape();
  const StoredProblem a(s, 905, type());
  s.n_q = 3;
  s.n_kv -= 5;
  const StoredProblem b(s, 906, type());
  const Index keys = shape().n_kv;
  const BroadcastView<float>::Strides by{4 * keys + 7, keys, 0, 1};
  const std::vector<float> bias = make_problem({1, 1, 2 * by.sequence, 1, 1, 0}, 907).q.values;
  const auto variant = compose(Causal{}, AdditiveBias<float>{BroadcastView<float>(bias.data(), 2, 4, 1, keys, by)});
  const auto alone = [&](Index i) {  // what the second sequence of a batch is told
    return compose(Causal{}, AdditiveBias<float>{BroadcastView<float>(bias.data() + i * by.sequence, 1, 4, 1, keys,
                                                                      {0, by.head, 0, 1})});
  };
  for (const BackwardHow& how : hows()) {
    std::vector<float> data(bias.size(), 0.0f);
    const LookupGradient lookups[] = {{0, data, {by.sequence, by.head, 0, 1}, 0}};
    Output of_a = run_forward(a.inputs(), how, alone(0)), of_b = run_forward(b.inputs(), how, alone(1));
    auto memory_a = GradientTensors::of<Causal>(a.inputs()), memory_b = GradientTensors::of<Causal>(b.inputs());
    const Sequence batch[] = {{a.inputs().q, a.inputs().kv, of_a.view(), {}, of_a.lse()},
                              {b.inputs().q, b.inputs().kv, of_b.view(), {}, of_b.lse()}};
    const SequenceGradients gradients[] = {memory_a.gradients(a.inputs().d_out), memory_b.gradients(b.inputs().d_out)};
    BackwardHow with = how;
    with.lookups = lookups;
    DynamicAttentionBackward{}(batch, gradients, variant, with.options());
    const auto element = [&](Index, Index h, Index t) { return h * by.head + t; };
    const auto part = [&](Index i) {
      const auto first = data.begin() + i * by.sequence;
      return std::vector<float>(first, first + by.sequence);
    };
    EXPECT_TRUE(
        GradientBound(a.inputs(), a.inputs().kv, of_a, how, alone(0), kSum).lookups_hold(0, part(0), 0.0f, element));
    EXPECT_TRUE(
        GradientBound(b.inputs(), b.inputs().kv, of_b, how, alone(1), kSum).lookups_hold(0, part(1), 0.0f, element));
  }
}

TEST_P(BackwardLookups, OneNumberForAll) {
  const Shape s = shape();
  const StoredProblem p(s, 911, type());
  const float bias[] = {0.25f};
  const BroadcastView<float> view(bias, 1, 1, 1, s.n_kv, {0, 0, 0, 0});
  hold_lookup(p, compose(Full{}, AdditiveBias<float>{view}), 0, {0, 0, 0, 0}, 0, 1,
              [](Index, Index, Index) { return 0; });
}

TEST_P(BackwardLookups, BiasesOfDistances) {
  const Shape s = shape();
  const StoredProblem p(s, 921, type());
  const Index first = s.n_kv - s.n_q, least = first - (s.n_kv - 1), distances = s.n_kv - least;
  const std::vector<float> bias = make_problem({4, 1, distances, 1, 1, 0}, 922).q.values;
  const auto at = [&](Index i, Index h, Index t) { return h * distances + first + i - t - least; };
  hold_lookup(p, compose(Full{}, DistanceBias{bias, distances, least}), 0, {0, distances, 1, -1}, first - least,
              bias.size(), at);
  ScoreErrors capped{.curvature = 0.4, .roundings = 12.0, .magnitude = 16.0, .slope_roundings = 8.0};
  hold_lookup(p, compose(CausalWindow{60}, DistanceBias{bias, distances, least}, SoftCap{2.0f}), 0,
              {0, distances, 1, -1}, first - least, bias.size(), at, capped);
}

/// Three lookups, of which two read the same numbers.
struct ThreeLookups : Causal {
  const float* numbers;  ///< [query head][2][300]
  auto score(auto s, const RowContext& row, auto k) const {
    using expression::lookup;
    const auto a = lookup(numbers + row.query_head * 600, k);
    const auto b = lookup(numbers + row.query_head * 600 + 300, k);
    return (1.0f + 0.25f * tanh(b)) * s + a * b;
  }
};

TEST_P(BackwardLookups, OfAUsersExpression) {
  const StoredProblem p(shape(), 931, type());
  std::vector<float> numbers = make_problem({4, 1, 600, 1, 1, 0}, 932).q.values;
  for (float& x : numbers) x *= 0.5f;
  const ThreeLookups variant{{}, numbers.data()};
  // Slopes by a number: below 2, and for the tanh below 0.25 |s|, |s| < 16.
  const ScoreErrors errors{
      .largest_slope = 4.0, .curvature = 1.0, .roundings = 12.0, .magnitude = 20.0, .slope_roundings = 16.0 * 4.0};
  for (int number = 0; number < 3; ++number)
    hold_lookup(
        p, variant, number, {0, 300, 0, 1}, 0, 1200, [](Index, Index h, Index t) { return h * 300 + t; }, errors);
}

INSTANTIATE_TEST_SUITE_P(EveryPath, BackwardLookups, BackwardLookups::cases(), BackwardLookups::name);

}  // namespace
}  // namespace gqa::test
