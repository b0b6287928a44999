// SPDX-License-Identifier: Apache-2.0
// The AMX path's sums of two bf16 terms: whole calls against the scalar model, bit for bit; and what becomes of numbers at the ends
// of f32. How near the sums are to exact attention is accuracy_test's business, which runs once more on this path.
#define GQA_DETAIL_EMULATED_AMX 1  // amx_emulator.hpp sees to it that the instructions work

#include <gtest/gtest.h>

#include "gqa/detail/path/amx.hpp"
#include "support/amx_calls.hpp"
#include "support/executors.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

constexpr ElementType f32 = ElementType::f32;
constexpr ElementType f16 = ElementType::f16;
constexpr ElementType bf16 = ElementType::bf16;

/// Two terms everywhere; and each place where there is one, in turn.
constexpr Types kSomeTypes[] = {
    {f32, f32, f32, f32}, {f16, f16, f16, f32}, {f32, bf16, bf16, f32}, {bf16, f32, f16, f16}, {f16, bf16, f32, bf16}};

class AmxTerms : public OnAmx {
 protected:
  template <class V = Causal>
  static void expect_terms(const Problem& p, const V& variant = {}, const Place& place = {},
                           std::optional<float> scale = std::nullopt, std::span<const Index> positions = {}) {
    for (const Types& types : kSomeTypes) expect_model<2>(p, variant, place, types, scale, positions);
  }

  static Result with_terms(const Problem& p, const Types& types = {}) {
    How how{Path::amx};
    how.products = Products::bf16_terms;
    return solve(p, types, how);
  }
  static Result as_stored(const Problem& p, const Types& types = {}) {
    How how{Path::amx};
    how.products = Products::as_stored;
    return solve(p, types, how);
  }
};

// ---- whole calls are the model's ----

TEST_F(AmxTerms, EveryMixOfTypes) {
  const Problem p = make_problem({4, 2, 40, 24, 6, 150}, 301);
  for (const ElementType q : kEveryType)
    for (const ElementType k : kEveryType)
      for (const ElementType v : kEveryType) {
        if (q == bf16 && k == bf16 && v == bf16) {
          expect_model<1>(p, Causal{}, {}, kBf16);  // by plain products, whatever is asked for
          EXPECT_TRUE(same_bits(as_stored(p, kBf16), with_terms(p, kBf16)));
          continue;
        }
        for (const ElementType out : {f32, q}) expect_model<2>(p, Causal{}, {}, {q, k, v, out});
      }
}

TEST_F(AmxTerms, EveryGroupSizeFromMultiHeadToMultiQuery) {
  for (const Index group : {1, 4, 7, 16, 29, 128}) {
    const Index kv_heads = group > 16 ? 1 : 2;
    expect_terms(make_problem({group * kv_heads, kv_heads, 32, 32, 1, detail::kSpan + 70}, 302));
    expect_terms(make_problem({group * kv_heads, kv_heads, 16, 24, 3, 100}, 303));
  }
}

TEST_F(AmxTerms, EveryCountOfRowsInATile) {
  for (const Index rows : {1, 2, 15, 16, 17, 31, 32, 33, 48, 49, 64, 80, 127, 128, 129})
    expect_terms(make_problem({1, 1, 32, 48, rows, rows + 40}, 304));
}

TEST_F(AmxTerms, EveryWidth) {
  for (const Index d : {8, 16, 24, 32, 40, 48, 64, 96, 128, 192, 256})
    expect_terms(make_problem({4, 2, d, d, 2, 80}, 305));
  for (const Index d : {1, 2, 3, 7, 15, 17, 31, 33, 63, 65}) expect_terms(make_problem({3, 1, d, d, 3, 80}, 306));
  for (const auto& [d, dv] : {std::pair<Index, Index>{192, 128}, {576, 512}, {24, 7}, {7, 24}, {64, 16}, {16, 96}})
    expect_terms(make_problem({20, 1, d, dv, 2, 80}, 307));
}

TEST_F(AmxTerms, EveryLengthAroundTilesBlocksAndSpans) {
  for (const Index n_kv : {1, 2, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 95, 96, 97, 128, 129, 511, 512, 513, 1025})
    expect_terms(make_problem({4, 2, 32, 16, 1, n_kv}, 308));
  for (const Index n_kv : {17, 33, 64, 130}) expect_terms(make_problem({2, 1, 32, 16, n_kv, n_kv}, 309));
}

TEST_F(AmxTerms, EveryDistribution) {
  for (const Distribution distribution :
       {Distribution::normal, Distribution::sinks, Distribution::large_scores, Distribution::dominant_key,
        Distribution::equal_keys, Distribution::denormal}) {
    SCOPED_TRACE(distribution_name(distribution));
    expect_terms(make_problem({4, 2, 64, 64, 3, detail::kSpan + 100}, 310, distribution));
    expect_terms(make_problem({4, 2, 33, 31, 20, 100}, 311, distribution));
  }
}

TEST_F(AmxTerms, EveryScale) {
  const Problem p = make_problem({4, 2, 24, 24, 5, 100}, 312);
  for (const float scale : {0.0f, -0.0f, 1.0f, -0.25f, 300.0f, 1e-30f, -1e-42f, 1e10f}) {
    SCOPED_TRACE(scale);
    expect_terms(p, Causal{}, {}, scale);
    expect_terms(p, SoftCap{2.0f}, {}, scale);
  }
}

TEST_F(AmxTerms, EveryStorage) {
  const Problem p = make_problem({6, 2, 40, 24, 3, 200}, 313);
  for (const CacheLayout layout : kCacheLayouts) {
    expect_terms(p, Causal{}, contiguous_place(layout));
    expect_terms(p, CausalWindow{90}, ring_place(110, layout));
    for (const Index page_size : {1, 7, 16, 32, 64, 1000}) expect_terms(p, Causal{}, paged_place(page_size, layout));
  }
}

TEST_F(AmxTerms, EveryVariant) {
  const Problem p = make_problem({4, 2, 32, 16, 18, detail::kSpan + 20}, 314);
  expect_terms(p, Full{});
  for (const Index window : {1, 20, 64, 77, 200}) expect_terms(p, CausalWindow{window});
  expect_terms(p, PackedDocuments{37});
  expect_terms(p, Sieve{});
  expect_terms(p, SinksAndWindow{4, 30});
  expect_terms(p, Alibi{});
  expect_terms(p, SoftCap{2.0f});
  expect_terms(p, SieveWithScores{});
  expect_terms(p, StrictlyBeforeOdd{});
}

TEST_F(AmxTerms, GivenPositions) {
  const Problem p = make_problem({4, 2, 32, 16, 7, 300}, 315);
  const Index positions[] = {299, 0, 64, 63, 31, 32, 150};
  expect_terms(p, Causal{}, {}, std::nullopt, positions);
  expect_terms(p, CausalWindow{40}, {}, std::nullopt, positions);
}

// Values which some rows of a tile see and others do not, and in which 0 × value would not be 0.
TEST_F(AmxTerms, NonFiniteInputsThatSomeRowsSee) {
  const float strange_nan = std::bit_cast<float>(0xffffffffu);  // half a unit added to its bits, it is zero
  const float thin_nan = std::bit_cast<float>(0x7f800001u);     // its upper half alone is infinity
  for (const float poison : {NAN, strange_nan, thin_nan, INFINITY, -INFINITY}) {
    SCOPED_TRACE(std::bit_cast<std::uint32_t>(poison));
    Problem p = make_problem({6, 2, 36, 40, 24, 130}, 316);
    p.q.at(4, 1, 2) = poison;
    p.kv.k.at(121, 0, 5) = poison;
    p.kv.k.at(109, 1, 35) = poison;
    p.kv.v.at(123, 1, 6) = poison;
    p.kv.v.at(115, 0, 39) = poison;
    p.kv.v.at(3, 0, 19) = poison;
    expect_terms(p);
    expect_terms(p, CausalWindow{20});
    expect_terms(p, Sieve{});
    expect_terms(p, SieveWithScores{});
  }
}

TEST_F(AmxTerms, NumbersAtTheEndsOfTheirTypes) {
  // Largest numbers, which rounded to bf16 are infinite; halves between two bf16; f16's and f32's denormals; zeros of both signs.
  const float ends[] = {std::numeric_limits<float>::max(),
                        -std::numeric_limits<float>::max(),
                        0x1.fefffep127f,
                        0x1.ffp127f,
                        65504.0f,
                        0x1.01p0f,
                        -0x1.03p0f,
                        0x1.0080p0f,
                        0x1p-24f,
                        0x1p-126f,
                        0x1.fffffep-127f,
                        -0x1.01p-119f,
                        0x1p-140f,
                        0.0f,
                        -0.0f};
  Problem p = make_problem({4, 2, 40, 24, 20, 150}, 317);
  Random random(318);
  for (float& x : p.kv.v.values)
    if (random.below(3) == 0) x = ends[random.below(15)];
  for (float& x : p.kv.k.values)
    if (random.below(3) == 0) x = ends[4 + random.below(11)];
  for (float& x : p.q.values)
    if (random.below(3) == 0) x = ends[4 + random.below(11)];
  expect_terms(p);
  expect_terms(p, CausalWindow{9});
  for (float& x : p.kv.k.values)
    if (random.below(50) == 0) x = ends[random.below(4)];
  expect_terms(p);
}

TEST_F(AmxTerms, ThreadsHaveTilesOfTheirOwn) {
  const Problem p = make_problem({8, 4, 32, 32, 50, detail::kSpan + 200}, 319);
  const Tensor q(p.q, f32);
  const StoredCaches kv = store_cache(p.kv, f32);
  const Result expected = amx_model<2>(q.const_view(), kv.view());
  ThreadsExecutor threads{3};
  How how{Path::amx};
  how.products = Products::bf16_terms;
  how.executor = threads;
  for (int round = 0; round < 3; ++round) EXPECT_TRUE(same_bits(expected, attend(q.const_view(), kv.view(), how)));
}

TEST_F(AmxTerms, ThreeProductsForOneAndLessThanThreeLoads) {
  if (amx_provider != AmxProvider::emulator) GTEST_SKIP() << "only the emulator counts";
  const Problem p = make_problem({128, 1, 128, 128, 1, detail::kBlock}, 320);
  const auto count = [&](const Types& types, long products, long loads) {
    const long products_before = amx_counts.products;
    const long loads_before = amx_counts.loads;
    with_terms(p, types);
    EXPECT_EQ(amx_counts.products - products_before, products) << types;
    EXPECT_EQ(amx_counts.loads - loads_before, loads) << types;
  };
  // As the same test of one term counts, but 12 products with 8 loads for 4 with 4 of scores, and 24 with 16 + 4 + 4 loads for 8
  // with 12 of outputs; weights have two terms in their sum.
  count({f32, f32, f32, f32}, 3 * 128 + 3 * 128 + 32, 2 * 128 + 128 * (16 + 4) / 8 + 8 * 6);
  // A cache of one term: 8 products with 6 loads, 16 with 12 + 4.
  count({f32, bf16, bf16, f32}, 2 * 128 + 2 * 128 + 32, 128 * 6 / 4 + 128 * (12 + 4) / 8 + 8 * 6);
}

// ---- beside the f32 arithmetic ----

/// Where one result is NaN, infinite of either sign or finite, so is the other.
testing::AssertionResult same_kinds(const Result& expected, const Result& actual) {
  const auto kind = [](float x) { return std::isnan(x) ? 2 : std::isinf(x) ? (x > 0.0f ? 1 : -1) : 0; };
  for (std::size_t i = 0; i < expected.out.size(); ++i)
    if (kind(expected.out[i]) != kind(actual.out[i]))
      return testing::AssertionFailure() << "out " << i << " is " << actual.out[i] << ", with f32 " << expected.out[i];
  for (std::size_t i = 0; i < expected.lse.size(); ++i)
    if (kind(expected.lse[i]) != kind(actual.lse[i]))
      return testing::AssertionFailure() << "lse " << i << " is " << actual.lse[i] << ", with f32 " << expected.lse[i];
  return testing::AssertionSuccess();
}

// The second term of a number or of a weight is zero or of the other sign now and then; times infinity it would make NaN.
TEST_F(AmxTerms, AnInfinityDoesWhatItDoesInTheF32Arithmetic) {
  for (const Types& types : {cache_of(f32), cache_of(f16), Types{bf16, f32, f32, f32}, Types{f32, f16, f32, f32}})
    for (const float poison : {INFINITY, -INFINITY, NAN}) {
      SCOPED_TRACE(describe(types, poison));
      Problem p = make_problem({4, 2, 20, 24, 12, 100}, 321);
      const Problem plain = p;
      p.kv.k.at(95, 0, 5) = poison;  // an infinite score hides the key from some rows and takes the others whole
      EXPECT_TRUE(same_kinds(as_stored(p, types), with_terms(p, types))) << "in a key";
      p = plain;
      p.kv.v.at(93, 1, 6) = poison;
      EXPECT_TRUE(same_kinds(as_stored(p, types), with_terms(p, types))) << "in a value";
      if (types.q == bf16) continue;  // whose infinities stay first terms
      p = plain;
      p.q.at(7, 2, 3) = poison;
      EXPECT_TRUE(same_kinds(as_stored(p, types), with_terms(p, types))) << "in a query";
    }
}

TEST_F(AmxTerms, ANumberNearTheLargestF32IsFinite) {
  const float largest = std::numeric_limits<float>::max();
  for (const float end : {largest, -largest, 0x1.fefffep127f, 0x1.ffp127f}) {
    Problem p = make_problem({2, 1, 16, 16, 30, 60}, 322);
    p.kv.v.at(45, 0, 3) = end;
    const Result result = with_terms(p);
    for (const float x : result.out) ASSERT_TRUE(std::isfinite(x)) << end;
    // A row that sees it and no other token has it to 2⁻¹⁶.
    const Tensor q(p.q, f32);
    const StoredCaches kv = store_cache(p.kv, f32);
    How how{Path::amx};
    how.products = Products::bf16_terms;
    const Index positions[] = {45};
    const Result only = attend(q.const_view().slice(0, 1), kv.view(), how, CausalWindow{1}, positions);
    EXPECT_NEAR(static_cast<double>(only.at(0, 0, 3) / end), 1.0, 0x1.01p-16) << end;
  }
}

// What is below 2⁻¹²⁶, or has a second term below it, loses that much and no more.
TEST_F(AmxTerms, TinyNumbersLoseAtMostTheLeastNormalNumber) {
  Problem p = make_problem({1, 1, 8, 16, 1, 1}, 323);
  const float tiny[] = {0x1p-126f,         0x1.8p-127f,    0x1p-149f,        -0x1.fffffep-127f,
                        0x1.234566p-120f,  0x1.01p-119f,   0x1.fffffep-126f, 0x1.008002p-118f,
                        -0x1.abcdeep-117f, 0x1.7fffp-123f, 0x1p-133f,        0x1.0101p-116f};
  for (Index d = 0; d < 12; ++d) p.kv.v.at(0, 0, d) = tiny[d];
  const Result result = with_terms(p);
  for (Index d = 0; d < 12; ++d)
    EXPECT_LE(std::abs(static_cast<double>(result.at(0, 0, d)) - static_cast<double>(tiny[d])),
              0x1p-126 + 0x1p-17 * std::abs(static_cast<double>(tiny[d])))
        << d;
}

// ---- the model's splitting ----

TEST(AmxTermsModel, TwoTermsAreWhatIsPromised) {
  Random random(324);
  for (int i = 0; i < 100000; ++i) {
    const float x = std::bit_cast<float>(static_cast<std::uint32_t>(random.bits()));
    if (!std::isfinite(x)) continue;
    const auto [first, second] = terms_of<2>(x);
    ASSERT_EQ(first, rounded_to(bf16, first)) << x;
    ASSERT_EQ(second, rounded_to(bf16, second)) << x;
    const auto exact = static_cast<double>(x);
    const double least = 0x1p-133;  // of bf16
    ASSERT_LE(std::abs(static_cast<double>(second)), 0x1.02p-8 * std::abs(exact) + least) << x;
    const double share = std::abs(exact) < 0x1.ffp127 ? 0x1p-17 : 0x1.01p-16;
    ASSERT_LE(std::abs(exact - static_cast<double>(first) - static_cast<double>(second)),
              share * std::abs(exact) + least)
        << x;
    ASSERT_TRUE(std::isfinite(first + second)) << x;
  }
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const float x = detail::float_from_f16(static_cast<std::uint16_t>(bits));
    if (!std::isfinite(x)) continue;
    const auto [first, second] = terms_of<2>(x);
    ASSERT_EQ(first + second, x);
  }
  EXPECT_EQ(terms_of<2>(INFINITY)[0], 0.0f);
  EXPECT_EQ(terms_of<2>(-INFINITY)[1], -INFINITY);
  EXPECT_TRUE(std::isnan(terms_of<2>(NAN)[1]));
}

}  // namespace
}  // namespace gqa::test
