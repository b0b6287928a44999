// SPDX-License-Identifier: Apache-2.0
// Score expressions: what trees are made of, how exact the library's own functions are, and what a variant is told of its rows.
#include "gqa/expression.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "gqa/attention.hpp"
#include "gqa/detail/tree_value.hpp"
#include "support/paths.hpp"
#include "support/problem.hpp"
#include "support/reference_check.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

using expression::Key;
using expression::Score;

TEST(Expression, TreesCountTheirNumbersAndPutThemInOrder) {
  const float bias[8] = {};
  const auto tree = 2.0f * tanh(Score{} / 3) - lookup(bias, Key{}, 4) * (7 - Key{});
  using Size = detail::TreeSize<std::remove_const_t<decltype(tree)>>;
  static_assert(Size::constants == 3 && Size::lookups == 1);
  float constants[3 * 2] = {};
  detail::RowLookup lookups[2];
  detail::TreeSlots{constants, lookups, 2}.put(tree);
  EXPECT_EQ(constants[0], 2.0f);
  EXPECT_EQ(constants[2], 3.0f);
  EXPECT_EQ(constants[4], 7.0f);
  EXPECT_EQ(lookups[0].data, bias);
  EXPECT_EQ(lookups[0].stride, 4);
}

TEST(Expression, TheReferenceEvaluatesTheSameTreeInDouble) {
  const std::int32_t documents[] = {5, 6, 7, 8};
  const auto value = [](const auto& tree, double score, Index key) { return detail::tree_value(tree, score, key); };
  EXPECT_EQ(value(fma(Score{}, 2.0f, Key{}), 0.5, 3), 4.0);
  EXPECT_EQ(value(-abs(Score{} - 1) / 4.0f, -2.0, 0), -0.75);
  EXPECT_EQ(value(select(Key{} > 2, exp(Score{}), 9.0f), 0.0, 3), 1.0);
  EXPECT_EQ(value(select(Key{} > 2, exp(Score{}), 9.0f), 0.0, 2), 9.0);
  EXPECT_EQ(value(min(Score{}, 1.0f) + max(Key{}, 2), 5.0, 1), 3.0);
  EXPECT_TRUE(value(lookup(documents, Key{}) == 7 && !(Key{} != 2), 0.0, 2));
  EXPECT_FALSE(value(lookup(documents, Key{}) >= 7 && (Key{} < 1 || Key{} <= 1), 0.0, 2));
}

// Units in the last place of the nearest float.
double ulps(float actual, double expected) {
  const float nearest = static_cast<float>(expected);
  if (actual == nearest) return 0.0;
  const double unit = std::max(std::ldexp(1.0, std::ilogb(nearest) - 23), 0x1p-149);
  return std::abs(static_cast<double>(actual) - expected) / unit;
}

/// The largest error of a function of the portable path, which the other paths repeat bit for bit, over floats in [from, to].
template <class Function, class Exact>
double largest_error(const Function& function, const Exact& exact, float from, float to) {
  double largest = 0.0;
  const auto first = std::bit_cast<std::uint32_t>(from);
  const auto last = std::bit_cast<std::uint32_t>(to);
  for (std::uint32_t bits = first; bits <= last && bits >= first; bits += 997 * 16) {
    detail::portable::Vec x;
    for (std::uint32_t i = 0; i < 16; ++i) x.lane[i] = std::bit_cast<float>(std::min(bits + 997 * i, last));
    const detail::portable::Vec y = function(x);
    for (std::size_t i = 0; i < 16; ++i)
      largest = std::max(largest, ulps(y.lane[i], exact(static_cast<double>(x.lane[i]))));
  }
  return largest;
}

TEST(Expression, FunctionsAreAsExactAsPromised) {
  using detail::portable::exponential;
  using detail::portable::hyperbolic_tangent;
  using detail::portable::logarithm;
  const auto exp = [](double x) { return std::exp(x); };
  const auto log = [](double x) { return std::log(x); };
  const auto tanh = [](double x) { return std::tanh(x); };
  const auto of = [](auto* f) { return [f](const detail::portable::Vec& x) { return f(x); }; };
  EXPECT_LT(largest_error(of(exponential), exp, 0.0f, 88.72f), 2.0);
  EXPECT_LT(largest_error(of(exponential), exp, -0.0f, -86.5f), 2.0);
  EXPECT_LT(largest_error(of(logarithm), log, 0x1p-149f, 0x1.fffffep127f), 2.0);
  EXPECT_LT(largest_error(of(logarithm), log, 0.7f, 1.4f), 2.0);
  EXPECT_LT(largest_error(of(hyperbolic_tangent), tanh, 0x1p-126f, 20.0f), 3.0);
  EXPECT_LT(largest_error(of(hyperbolic_tangent), tanh, -0x1p-126f, -20.0f), 3.0);
}

TEST(Expression, FunctionsAtTheEnds) {
  const auto at = [](auto* function, float x) {
    detail::portable::Vec v{};
    v.lane[0] = x;
    return function(v).lane[0];
  };
  using detail::portable::exponential;
  using detail::portable::hyperbolic_tangent;
  using detail::portable::logarithm;
  EXPECT_EQ(at(exponential, 0.0f), 1.0f);
  EXPECT_EQ(at(exponential, 89.0f), INFINITY);
  EXPECT_EQ(at(exponential, INFINITY), INFINITY);
  EXPECT_EQ(at(exponential, -87.0f), 0.0f);
  EXPECT_EQ(at(exponential, -INFINITY), 0.0f);
  EXPECT_TRUE(std::isnan(at(exponential, NAN)));
  EXPECT_EQ(at(logarithm, 1.0f), 0.0f);
  EXPECT_EQ(at(logarithm, 0.0f), -INFINITY);
  EXPECT_EQ(at(logarithm, -0.0f), -INFINITY);
  EXPECT_EQ(at(logarithm, INFINITY), INFINITY);
  EXPECT_TRUE(std::isnan(at(logarithm, -1.0f)));
  EXPECT_TRUE(std::isnan(at(logarithm, NAN)));
  EXPECT_EQ(at(hyperbolic_tangent, 0.0f), 0.0f);
  EXPECT_TRUE(std::signbit(at(hyperbolic_tangent, -0.0f)));
  EXPECT_EQ(at(hyperbolic_tangent, 1e30f), 1.0f);
  EXPECT_EQ(at(hyperbolic_tangent, -INFINITY), -1.0f);
  EXPECT_TRUE(std::isnan(at(hyperbolic_tangent, NAN)));
}

/// Functions over a wide range of arguments, for which every f32 path must have one result.
struct WideFunctions : gqa::Causal {
  int which;
  explicit WideFunctions(int number) : which(number) {}
  auto score(auto s, const RowContext&, auto k) const {
    const auto wide = s * (0.5f * k - 20.0f);
    const auto a = select(which == 0 + 0 * k, exp(wide), tanh(wide));
    return 0.01f * min(select(which == 2 + 0 * k, log(abs(wide)), a), 1000.0f) - max(0.0f, s) / 3.0f;
  }
};

class Rows : public PerPathAndType {};

TEST_P(Rows, FunctionsHaveTheSameBitsOnEveryF32Path) {
  if (!has_f32_arithmetic_only(path()) && type() == ElementType::bf16) GTEST_SKIP() << "products are in bf16";
  const Problem p = make_problem({4, 2, 16, 16, 20, 150}, 161, Distribution::large_scores);
  How how{path()};
  how.products = Products::as_stored;  // f32 arithmetic for f32 and f16 on every path
  for (const int which : {0, 1, 2})
    EXPECT_TRUE(same_bits(solve(p, cache_of(type()), {Path::portable}, WideFunctions{which}),
                          solve(p, cache_of(type()), how, WideFunctions{which})));
}

TEST_P(Rows, ASinkIsInTheReferenceToo) {
  const Problem p = make_problem({4, 2, 16, 16, 3, 700}, 162);
  const Types types = cache_of(type());
  const Tensor q(p.q, types.q);
  const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
  EXPECT_TRUE(
      within_bound(q.const_view(), kv.view(), {path()}, Sinks{}, attend(q.const_view(), kv.view(), {path()}, Sinks{})));
}

/// Sees nothing, and has a sink.
struct OnlyASink : gqa::Causal {
  PositionRange visible_range(Index, Index) const { return {}; }
  float sink(const RowContext&) const { return 0.75f; }
};

TEST_P(Rows, ARowThatSeesNothingButItsSinkIsZero) {
  const Result result = solve(make_problem({2, 1, 16, 16, 3, 40}, 163), cache_of(type()), {path()}, OnlyASink{});
  for (const float x : result.out) EXPECT_EQ(x, 0.0f);
  for (const float x : result.lse) EXPECT_NEAR(x, 0.75f, 1e-7f);
}

/// The three ways of writing one mask.
TEST_P(Rows, MasksOfPairsRowsAndWordsAreOne) {
  const Problem p = make_problem({4, 2, 16, 16, 20, 300}, 164);
  const Result pairs = solve(p, cache_of(type()), {path()}, Sieve{});
  EXPECT_TRUE(same_bits(pairs, solve(p, cache_of(type()), {path()}, SieveOfRows{})));
  EXPECT_TRUE(same_bits(pairs, solve(p, cache_of(type()), {path()}, SieveOfWords{})));
}

/// A window of its own for each sequence of a batch, and a bias for each query token of it.
struct OfSequences {
  std::span<const Index> window;
  std::span<const float> bias;  // [sequence][query token]
  Index queries;
  PositionRange visible_range(const QueryContext& query, Index kv_length) const {
    return CausalWindow{window[static_cast<std::size_t>(query.sequence)]}.visible_range(query.position, kv_length);
  }
  float score(float score, const RowContext& row, Index key_position) const {
    const float slope = bias[static_cast<std::size_t>(row.sequence * queries + row.query)];
    return score + slope * static_cast<float>(row.position - key_position);
  }
};
/// The same for one sequence alone.
struct OfOne : gqa::CausalWindow {
  std::span<const float> bias;
  OfOne(Index size, std::span<const float> biases) : CausalWindow{size}, bias(biases) {}
  float score(float score, Index query_position, Index key_position, Index) const {
    const float slope = bias[static_cast<std::size_t>(query_position - 190)];
    return score + slope * static_cast<float>(query_position - key_position);
  }
};

TEST_P(Rows, AVariantIsToldWhichSequenceAndQueryTokenItServes) {
  const Index windows[] = {30, 200, 7};
  const float biases[] = {0.1f, 0.2f, 0.3f, -0.1f, -0.2f, -0.3f, 0.0f, 0.5f, 1.0f};
  const Types types = cache_of(type());
  std::vector<Problem> problems;
  std::vector<Tensor> queries;
  std::vector<StoredCaches> caches;
  for (std::uint64_t i = 0; i < 3; ++i) {
    problems.push_back(make_problem({4, 2, 16, 16, 3, 193}, 165 + i));
    queries.emplace_back(problems.back().q, types.q);
    caches.push_back(store_cache(problems.back().kv, types.k, types.v, {}));
  }
  std::vector<std::vector<float>> outs(3, std::vector<float>(3 * 4 * 16));
  std::vector<Sequence> batch;
  for (std::size_t i = 0; i < 3; ++i)
    batch.push_back({queries[i].const_view(), caches[i].view(), TensorView(outs[i].data(), 3, 4, 16)});
  const DynamicAttention attention;
  attention(batch, OfSequences{windows, biases, 3}, How{path()}.options());
  for (std::size_t i = 0; i < 3; ++i) {
    const Result alone = attend(queries[i].const_view(), caches[i].view(), {path()},
                                OfOne{windows[i], std::span<const float>(biases).subspan(3 * i, 3)});
    EXPECT_EQ(outs[i], alone.out) << "sequence " << i;
  }
}

/// A window of 100, and a bias of positions, also where they are no floats.
struct FarPositions : gqa::CausalWindow {
  float base;
  explicit FarPositions(float start) : CausalWindow{100}, base(start) {}
  auto score(auto s, const RowContext&, auto k) const { return s + 0.01f * (k - base); }
};

TEST_P(Rows, PositionsAreRoundedOnceWhateverTheLanesAre) {
  const Problem p = make_problem({4, 2, 16, 16, 20, 256}, 169);
  const Types types = cache_of(type());
  const Tensor q(p.q, types.q);
  const StoredCaches kv = store_cache(p.kv, types.k, types.v, ring_place(256));
  for (const int bits : {24, 27, 28, 29, 31}) {  // from 2^28 on multiples of 16 are no floats
    const KvCacheView far = first_tokens(kv.view(), (Index{1} << bits) + 150);
    const FarPositions variant(std::ldexp(1.0f, bits));
    const Result whole = attend(q.const_view(), far, {path()}, variant);
    for (Index token = 0; token < 20; ++token) {
      const Index position[] = {far.length - 20 + token};
      ASSERT_TRUE(
          same_bits(whole.slice(token, 1), attend(q.const_view().slice(token, 1), far, {path()}, variant, position)))
          << bits << " bits, token " << token;
    }
  }
}

/// Two masks, of which one is an expression, and a sink that is left out of the log-sum-exp.
struct TwoMasks : gqa::Causal {
  bool is_visible(Index, Index key_position, Index) const { return key_position % 3 != 0; }
  auto visible(const RowContext& row, auto k) const { return row.position - k < 40 || k < 5; }
  float sink(const RowContext& row) const { return static_cast<float>(row.query_head); }
  bool sink_in_lse() const { return false; }
};

TEST_P(Rows, TheReferenceHasBothMasksAndLeavesSinksOut) {
  const Problem p = make_problem({4, 2, 16, 16, 30, 30}, 170);  // the first token sees nothing
  const Types types = cache_of(type());
  const Tensor q(p.q, types.q);
  const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
  const Result result = attend(q.const_view(), kv.view(), {path()}, TwoMasks{});
  const ReferenceResult reference = reference_attention(q.const_view(), kv.view(), TwoMasks{});
  const double most = has_f32_arithmetic_only(path()) ? 1e-4 : 0.05;
  for (Index row = 0; row < 30 * 4; ++row) {
    for (Index d = 0; d < 16; ++d)
      EXPECT_NEAR(static_cast<double>(result.at(row / 4, row % 4, d)), reference.out(row, d), most);
    const double lse = static_cast<double>(result.lse_at(row / 4, row % 4));
    if (row < 4) EXPECT_EQ(lse, reference.lse[row]);
    else EXPECT_NEAR(lse, reference.lse[row], most);
  }
  EXPECT_EQ(reference.lse[0], -INFINITY);
}

INSTANTIATE_TEST_SUITE_P(EveryPath, Rows, Rows::cases(), Rows::name);

}  // namespace
}  // namespace gqa::test
