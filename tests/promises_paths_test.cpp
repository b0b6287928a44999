// SPDX-License-Identifier: Apache-2.0
// For f32 arithmetic: portable = AVX2 = AVX-512, bit for bit, on every KV type. Paths with bf16 products run that same arithmetic
// unless queries, keys and values are all bf16 or the caller accepts rounding.
#include <gtest/gtest.h>

#include "support/problem.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

class Paths : public testing::TestWithParam<ElementType> {
 public:
  static std::string name(const testing::TestParamInfo<ElementType>& info) { return element_name(info.param); }

 protected:
  void SetUp() override {
    report_paths_not_run();
    if (f32_paths().size() < 2) GTEST_SKIP() << "this machine has the portable path alone";
  }
  ElementType type() const { return GetParam(); }

  /// Every path that must take the f32 arithmetic for these types gives the portable path's bits.
  template <class V = Causal>
  static void all_agree(const Problem& p, const Types& types, const V& variant = {}) {
    const Result portable = solve(p, types, {Path::portable}, variant);
    const bool all_bf16 = types.q == ElementType::bf16 && types.k == ElementType::bf16 && types.v == ElementType::bf16;
    for (const Path path : available_paths())
      if (has_f32_arithmetic_only(path) || !all_bf16) {
        EXPECT_TRUE(same_bits(portable, solve(p, types, {path}, variant)))
            << "portable and " << path_name(path) << "; " << types << "; " << p.shape;
      }
  }
};

TEST_P(Paths, EveryWidth) {
  for (Index d = 8; d <= 576; d += d < 128 ? 8 : 64)
    all_agree(make_problem({2, 1, d, d, 2, 70}, 111), cache_of(type()));
  for (const Index d : {1, 2, 3, 7, 15, 17, 31, 33, 63, 65, 100})
    all_agree(make_problem({2, 1, d, d, 2, 70}, 112), all_of(type()));
  for (const auto& [d, dv] : {std::pair<Index, Index>{192, 128}, {576, 512}, {24, 7}, {7, 24}})
    all_agree(make_problem({3, 1, d, dv, 3, 70}, 113), cache_of(type()));
}

TEST_P(Paths, EveryCountOfRowsFromOneToATile) {
  for (Index n_q = 1; n_q <= 20; ++n_q) all_agree(make_problem({3, 3, 24, 40, n_q, 70}, 114), cache_of(type()));
  for (const Index n_q : {31, 32, 33, 63, 64, 65})
    all_agree(make_problem({2, 1, 16, 16, n_q, 70}, 115), cache_of(type()));
  for (const Index group : {1, 2, 3, 4, 5, 6, 7, 8, 16, 29, 71, 128})
    all_agree(make_problem({group, 1, 16, 16, 1, 130}, 116), cache_of(type()));
}

TEST_P(Paths, EveryLengthAroundBlocksAndSpans) {
  for (const Index n_kv : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1023, 1024, 1025, 1600})
    all_agree(make_problem({4, 2, 24, 24, 1, n_kv}, 117), cache_of(type()));
  all_agree(make_problem({2, 1, 16, 16, 140, 140}, 118), all_of(type()));
  all_agree(make_problem({2, 1, 16, 16, 66, detail::kSpan + 66}, 119), all_of(type()));
}

TEST_P(Paths, EveryDistribution) {
  for (const Distribution distribution :
       {Distribution::normal, Distribution::sinks, Distribution::large_scores, Distribution::dominant_key,
        Distribution::equal_keys, Distribution::denormal}) {
    SCOPED_TRACE(distribution_name(distribution));
    all_agree(make_problem({4, 2, 32, 32, 3, detail::kSpan + 100}, 120, distribution), cache_of(type()));
    all_agree(make_problem({4, 2, 33, 31, 3, 100}, 121, distribution), all_of(type()));
  }
}

TEST_P(Paths, EveryVariant) {
  const Problem p = make_problem({4, 2, 16, 16, 20, detail::kSpan + 90}, 122);
  all_agree(p, cache_of(type()), Full{});
  all_agree(p, cache_of(type()), CausalWindow{77});
  all_agree(p, cache_of(type()), Sieve{});
  all_agree(p, cache_of(type()), Alibi{});
  all_agree(p, cache_of(type()), SoftCap{2.0f});
  all_agree(p, cache_of(type()), CapAndAlibi{2.0f});
  all_agree(p, cache_of(type()), Sinks{});
  all_agree(p, cache_of(type()), SieveWithScores{});
  all_agree(p, cache_of(type()), StrictlyBeforeOdd{});
}

// NaN and infinities travel the same way on every path.
TEST_P(Paths, NonFiniteInputs) {
  for (const float poison : {NAN, INFINITY, -INFINITY}) {
    SCOPED_TRACE(poison);
    Problem p = make_problem({4, 2, 20, 20, 30, 200}, 123);
    p.q.at(4, 1, 2) = poison;
    p.kv.k.at(180, 0, 5) = poison;
    p.kv.v.at(185, 1, 6) = poison;
    p.kv.v.at(3, 0, 19) = poison;
    all_agree(p, cache_of(type()));
    all_agree(p, all_of(type()), Sieve{});
  }
}

TEST_P(Paths, NumbersAtTheEndsOfTheirTypes) {
  // Largest finite numbers, denormals of each type and zeros of both signs, mixed with ordinary ones.
  const float ends[] = {65504.0f, -65504.0f, 0x1p-24f, -0x1.8p-15f, 0x1p-140f, 0.0f, -0.0f, 3.0e38f};
  Problem p = make_problem({4, 2, 24, 24, 6, 150}, 124);
  Random random(125);
  for (float& x : p.kv.v.values)
    if (random.below(3) == 0) x = ends[random.below(8)];
  for (float& x : p.kv.k.values)
    if (random.below(3) == 0) x = ends[random.below(7)];
  for (float& x : p.q.values) x = random.below(2) == 0 ? 0x1p-12f * x : ends[2 + random.below(5)];
  all_agree(p, cache_of(type()));
  all_agree(p, all_of(type()));
}

// Every bit pattern of the 16-bit types widens the same way on every path: one V row per group of 24 patterns, one key each, so
// that the output is the pattern's value.
TEST_P(Paths, Every16BitPatternIsWidenedTheSameWay) {
  if (type() == ElementType::f32) GTEST_SKIP() << "f32 is not widened";
  constexpr Index width = 256;
  for (Index first = 0; first < 65536; first += width) {
    std::vector<std::uint16_t> patterns(width);
    for (Index i = 0; i < width; ++i) patterns[static_cast<std::size_t>(i)] = static_cast<std::uint16_t>(first + i);
    const std::vector<float> zero(1, 0.0f);
    KvCacheView kv =
        type() == ElementType::bf16
            ? KvCacheView::contiguous(zero.data(), reinterpret_cast<const bf16*>(patterns.data()), {1, 1, 1, width})
            : KvCacheView::contiguous(zero.data(), reinterpret_cast<const f16*>(patterns.data()), {1, 1, 1, width});
    Result expected{1, 1, width, {}, {0.0f}};
    for (const std::uint16_t bits : patterns)
      expected.out.push_back(type() == ElementType::bf16 ? detail::float_from_bf16(bits)
                                                         : detail::float_from_f16(bits));
    for (const Path path : f32_paths())
      ASSERT_TRUE(same_bits(expected, attend(ConstTensorView(zero.data(), 1, 1, 1), kv, {path})))
          << path_name(path) << ", patterns from " << first;
  }
}

class PathsWithBf16Products : public PerPath {};

TEST_P(PathsWithBf16Products, TakeTheF32ArithmeticUnlessTheTypesOrTheCallerAllowOther) {
  const Problem p = make_problem({4, 2, 32, 32, 5, detail::kSpan + 40}, 126);
  for (const ElementType q : kEveryType)
    for (const ElementType k : kEveryType)
      for (const ElementType v : kEveryType) {
        if (q == ElementType::bf16 && k == ElementType::bf16 && v == ElementType::bf16) continue;
        const Types types{q, k, v, ElementType::f32};
        How how{path()};
        how.products = Products::as_stored;
        EXPECT_TRUE(same_bits(solve(p, types, {best_f32_path()}), solve(p, types, how))) << on(path()) << "; " << types;
      }
}

TEST_P(PathsWithBf16Products, RoundEveryTypeToBf16WhereTheCallerAcceptsIt) {
  const Problem p = make_problem({4, 2, 32, 32, 5, detail::kSpan + 40}, 127);
  Problem rounded = p;
  for (std::vector<float>* values : {&rounded.q.values, &rounded.kv.k.values, &rounded.kv.v.values})
    for (float& x : *values) x = rounded_to(ElementType::bf16, x);
  How how{path()};
  how.products = Products::bf16;
  if (has_f32_arithmetic_only(path())) {
    for (const ElementType type : kEveryType)
      EXPECT_TRUE(same_bits(solve(p, cache_of(type), {path()}), solve(p, cache_of(type), how)))
          << on(path()) << " has no bf16 products: the option is nothing to it";
    return;
  }
  EXPECT_TRUE(
      same_bits(solve(rounded, cache_of(ElementType::bf16), {path()}), solve(p, cache_of(ElementType::f32), how)))
      << on(path()) << ": f32, rounded in the call, is bf16, rounded before";
  EXPECT_TRUE(same_bits(solve(rounded, cache_of(ElementType::bf16), {path()}),
                        solve(rounded, cache_of(ElementType::bf16), how)))
      << on(path()) << ": bf16 needs no option";
}

// Sums of two terms are for tiles. Elsewhere nobody notices who asks for them.
TEST_P(PathsWithBf16Products, SumsOfTermsAreForAmxAlone) {
  const Problem p = make_problem({4, 2, 32, 32, 5, detail::kSpan + 40}, 128);
  How stored{path()};
  stored.products = Products::as_stored;
  How terms{path()};
  terms.products = Products::bf16_terms;
  for (const ElementType q : kEveryType)
    for (const ElementType kv : kEveryType) {
      const Types types{q, kv, kv, ElementType::f32};
      const bool same = path() != Path::amx || (q == ElementType::bf16 && kv == ElementType::bf16);
      EXPECT_EQ(same, bool(same_bits(solve(p, types, stored), solve(p, types, terms)))) << on(path()) << "; " << types;
    }
}

// bf16 and f16 are sums of two terms exactly, so that it makes no difference which of them, or f32, a number is stored as.
TEST_P(PathsWithBf16Products, NumbersThatAreSumsOfTermsAreTheSameInEveryTypeThatHoldsThem) {
  Problem p = make_problem({4, 2, 32, 24, 5, detail::kSpan + 40}, 129);
  for (std::vector<float>* values : {&p.q.values, &p.kv.k.values, &p.kv.v.values})
    for (float& x : *values) x = rounded_to(ElementType::f16, x);
  How how{path()};
  how.products = Products::bf16_terms;
  EXPECT_TRUE(same_bits(solve(p, cache_of(ElementType::f16), how), solve(p, cache_of(ElementType::f32), how)))
      << on(path()) << ": f16 and f32";
  for (std::vector<float>* values : {&p.q.values, &p.kv.k.values, &p.kv.v.values})
    for (float& x : *values) x = rounded_to(ElementType::bf16, x);
  const Types mixed{ElementType::f16, ElementType::bf16, ElementType::bf16, ElementType::f32};
  EXPECT_TRUE(same_bits(solve(p, mixed, how), solve(p, cache_of(ElementType::f32), how)))
      << on(path()) << ": bf16 and f32";
}

INSTANTIATE_TEST_SUITE_P(EveryType, Paths, testing::ValuesIn(kEveryType), Paths::name);
INSTANTIATE_TEST_SUITE_P(EveryPath, PathsWithBf16Products, PathsWithBf16Products::cases(), PathsWithBf16Products::name);

}  // namespace
}  // namespace gqa::test
