// SPDX-License-Identifier: Apache-2.0
// The AMX path against a scalar model of its arithmetic, bit for bit, for whole attention calls; the model against
// attention in double precision. On a machine with AMX the path runs on its tiles, on one with AVX-512 and bf16 on
// the emulator's.
#define GQA_DETAIL_EMULATED_AMX 1  // amx_emulator.hpp sees to it that the instructions work

#include <gtest/gtest.h>

#include "gqa/detail/path/amx.hpp"
#include "gqa/reference.hpp"
#include "support/amx_calls.hpp"
#include "support/executors.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

class Amx : public OnAmx {};

// ---- one instruction ----

#if defined(__x86_64__) && defined(__linux__)

using TileOfFloats = float[16][16];
using TileOfWords = std::uint16_t[16][32];

__attribute__((target("amx-tile,amx-bf16"))) void one_product(TileOfFloats& c, const TileOfWords& a,
                                                              const TileOfWords& b) {
  static constexpr detail::TileConfig config;
  asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
  asm volatile("tileloadd {(%0,%1,1), %%tmm5|tmm5, [%0+%1*1]}" : : "r"(&c), "r"(Index{64}) : "memory");
  asm volatile("tileloadd {(%0,%1,1), %%tmm3|tmm3, [%0+%1*1]}" : : "r"(&a), "r"(Index{64}) : "memory");
  asm volatile("tileloadd {(%0,%1,1), %%tmm7|tmm7, [%0+%1*1]}" : : "r"(&b), "r"(Index{64}) : "memory");
  asm volatile("tdpbf16ps {%%tmm7, %%tmm3, %%tmm5|tmm5, tmm3, tmm7}" : :);
  asm volatile("tilestored {%%tmm5, (%0,%1,1)|[%0+%1*1], tmm5}" : : "r"(&c), "r"(Index{64}) : "memory");
  asm volatile("tilerelease" : : : "memory");
}

// Random signs and mantissas; exponents spread over `exponents` values from `least` up, so that terms cancel, vanish
// or are denormal.
std::uint16_t random_bf16(Random& random, int least, int exponents) {
  const auto exponent = static_cast<std::uint32_t>(least + static_cast<int>(random.below(exponents)));
  return static_cast<std::uint16_t>((static_cast<std::uint32_t>(random.bits() & 1u) << 15) | (exponent << 7) |
                                    static_cast<std::uint32_t>(random.bits() & 127u));
}

TEST_F(Amx, OneTileProductIsTheModels) {
  struct Case {
    int least, exponents, least_c;
  };
  // Ordinary numbers; denormal operands and results, and sums that just reach normal ones; infinities and NaN.
  for (const Case& range :
       {Case{120, 14, 120}, Case{100, 60, 90}, Case{0, 80, 0}, Case{30, 36, 0}, Case{225, 31, 200}}) {
    Random random(static_cast<std::uint64_t>(1000 + range.least));
    for (int round = 0; round < 20; ++round) {
      alignas(64) TileOfFloats c;
      alignas(64) TileOfWords a;
      alignas(64) TileOfWords b;
      for (auto& row : a)
        for (std::uint16_t& x : row) x = random_bf16(random, range.least, range.exponents);
      for (auto& row : b)
        for (std::uint16_t& x : row) x = random_bf16(random, range.least, range.exponents);
      for (auto& row : c)
        for (float& x : row)
          x = std::bit_cast<float>(
              (static_cast<std::uint32_t>(random_bf16(random, range.least_c, range.exponents)) << 16) |
              static_cast<std::uint32_t>(random.bits() & 0xffffu));
      alignas(64) TileOfFloats result;
      std::memcpy(&result, &c, sizeof c);
      one_product(result, a, b);
      for (std::size_t m = 0; m < 16; ++m)
        for (std::size_t n = 0; n < 16; ++n) {
          float terms_a[32];
          float terms_b[32];
          for (std::size_t i = 0; i < 32; ++i) {
            terms_a[i] = detail::float_from_bf16(a[m][i]);
            terms_b[i] = detail::float_from_bf16(b[i / 2][2 * n + i % 2]);
          }
          const float expected = tile_product(terms_a, terms_b, c[m][n]);
          ASSERT_TRUE(same_value(expected, result[m][n]))
              << "exponents from " << range.least << ": " << std::hexfloat << expected << " and " << result[m][n];
        }
    }
  }
}

#endif

// ---- whole calls ----

TEST_F(Amx, EveryGroupSize) {
  for (const Index group : {1, 4, 7, 16, 29, 71, 128}) {
    const Index kv_heads = group > 16 ? 1 : 2;
    expect_model(make_problem({group * kv_heads, kv_heads, 32, 32, 1, detail::kSpan + 70}, 201));
    expect_model(make_problem({group * kv_heads, kv_heads, 16, 24, 3, 100}, 202));
  }
}

TEST_F(Amx, EveryCountOfRowsInATile) {
  for (const Index rows : {1, 2, 3, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65, 80, 112, 113, 127, 128, 129, 145})
    expect_model(make_problem({1, 1, 32, 48, rows, rows + 40}, 203));
}

TEST_F(Amx, EveryWidth) {
  for (const Index d : {8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 104, 112, 120, 128, 192, 256})
    expect_model(make_problem({4, 2, d, d, 2, 80}, 204));
  for (const Index d : {1, 2, 3, 7, 15, 17, 31, 33, 63, 65, 100}) expect_model(make_problem({3, 1, d, d, 3, 80}, 205));
  for (const auto& [d, dv] : {std::pair<Index, Index>{192, 128}, {576, 512}, {24, 7}, {7, 24}, {64, 16}, {16, 96}})
    expect_model(make_problem({20, 1, d, dv, 2, 80}, 206));
}

TEST_F(Amx, EveryLengthAroundTilesBlocksAndSpans) {
  for (const Index n_kv : {1,  2,  15, 16,  17,  31,  32,  33,  47,  48,  49,   63,   64,   65,
                           95, 96, 97, 127, 128, 129, 511, 512, 513, 545, 1023, 1024, 1025, 1600})
    expect_model(make_problem({4, 2, 32, 16, 1, n_kv}, 207));
  for (const Index n_kv : {17, 33, 64, 100, 129}) expect_model(make_problem({2, 1, 32, 16, n_kv, n_kv}, 208));
}

TEST_F(Amx, PrefillsAndChunks) {
  expect_model(make_problem({4, 1, 64, 64, 130, 130}, 209));
  expect_model(make_problem({2, 2, 64, 32, 130, detail::kSpan + 90}, 210));
  expect_model(make_problem({7, 1, 32, 32, 17, detail::kSpan + 9}, 211, Distribution::sinks));
}

TEST_F(Amx, EveryDistribution) {
  for (const Distribution distribution :
       {Distribution::normal, Distribution::sinks, Distribution::large_scores, Distribution::dominant_key,
        Distribution::equal_keys, Distribution::denormal}) {
    SCOPED_TRACE(distribution_name(distribution));
    expect_model(make_problem({4, 2, 64, 64, 3, detail::kSpan + 100}, 212, distribution));
    expect_model(make_problem({4, 2, 33, 31, 20, 100}, 213, distribution));
  }
}

// Scores from tiny to beyond what any f32 holds, in one tile: the steps to a weight differ, and no row may notice its
// neighbours'.
TEST_F(Amx, ScoresOfEverySizeSideBySide) {
  Problem p = make_problem({20, 1, 32, 32, 2, 150}, 214);
  for (Index h = 0; h < 20; ++h)
    for (Index t = 0; t < 2; ++t)
      for (Index d = 0; d < 32; ++d) p.q.at(t, h, d) *= std::ldexp(1.0f, static_cast<int>(h * 7 - 6));
  expect_model(p);
  expect_model(p, Full{}, {}, kBf16, 1.0f);
  expect_model(p, Full{}, {}, kBf16, 300.0f);
}

TEST_F(Amx, EveryScale) {
  const Problem p = make_problem({4, 2, 24, 24, 5, 100}, 215);
  for (const float scale : {0.0f, -0.0f, 1.0f, -0.25f, 0.3f, 1e-30f, -1e-42f, 1e10f}) {
    SCOPED_TRACE(scale);
    expect_model(p, Causal{}, {}, kBf16, scale);
    expect_model(p, SoftCap{2.0f}, {}, kBf16, scale);
  }
}

TEST_F(Amx, EveryStorage) {
  const Problem p = make_problem({6, 2, 40, 24, 9, 333}, 216);
  for (const CacheLayout layout : kCacheLayouts) {
    expect_model(p, Causal{}, contiguous_place(layout));
    expect_model(p, CausalWindow{150}, ring_place(170, layout));
    for (const Index page_size : {1, 7, 16, 32, 64, 1000}) expect_model(p, Causal{}, paged_place(page_size, layout));
  }
}

TEST_F(Amx, EveryVariant) {
  const Problem p = make_problem({4, 2, 32, 16, 40, detail::kSpan + 90}, 217);
  expect_model(p, Full{});
  for (const Index window : {1, 5, 20, 64, 77, 200}) expect_model(p, CausalWindow{window});
  expect_model(p, PackedDocuments{37});
  expect_model(p, Sieve{});
  expect_model(p, SinksAndWindow{4, 30});
  expect_model(p, Alibi{});
  expect_model(p, SoftCap{2.0f});
  expect_model(p, SieveWithScores{});
  expect_model(p, StrictlyBeforeOdd{});
}

TEST_F(Amx, GivenPositions) {
  const Problem p = make_problem({4, 2, 32, 16, 7, 300}, 218);
  const Index positions[] = {299, 0, 64, 63, 31, 32, 150};
  expect_model(p, Causal{}, {}, kBf16, std::nullopt, positions);
  expect_model(p, CausalWindow{40}, {}, kBf16, std::nullopt, positions);
}

// Values which some rows of a tile see and others do not, and in which 0 × value would not be 0.
TEST_F(Amx, NonFiniteInputsThatSomeRowsSee) {
  for (const float poison : {NAN, INFINITY, -INFINITY}) {
    SCOPED_TRACE(poison);
    Problem p = make_problem({6, 2, 36, 40, 70, 200}, 219);
    p.q.at(4, 1, 2) = poison;
    p.kv.k.at(180, 0, 5) = poison;
    p.kv.k.at(131, 1, 35) = poison;
    p.kv.v.at(185, 1, 6) = poison;
    p.kv.v.at(140, 0, 39) = poison;
    p.kv.v.at(3, 0, 19) = poison;
    expect_model(p);
    expect_model(p, CausalWindow{60});
    expect_model(p, Sieve{});
    expect_model(p, SieveWithScores{});
  }
}

TEST_F(Amx, ValuesThatRoundToInfinityAreCarefulToo) {
  Problem p = make_problem({2, 1, 16, 16, 30, 60}, 220);
  p.kv.v.at(45, 0, 3) = 3.4e38f;  // finite as f32
  expect_model(p, Causal{}, {}, {ElementType::bf16, ElementType::bf16, ElementType::f32, ElementType::f32});
}

TEST_F(Amx, EveryMixOfTypes) {
  const Problem p = make_problem({4, 2, 40, 24, 6, 150}, 221);
  for (const ElementType q : kEveryType)
    for (const ElementType k : kEveryType)
      for (const ElementType v : kEveryType)
        for (const ElementType out : {ElementType::f32, q}) expect_model(p, Causal{}, {}, {q, k, v, out});
}

TEST_F(Amx, ThreadsHaveTilesOfTheirOwn) {
  const Problem p = make_problem({8, 4, 32, 32, 50, detail::kSpan + 200}, 222);
  const Tensor q(p.q, ElementType::bf16);
  const StoredCaches kv = store_cache(p.kv, ElementType::bf16);
  const Result expected = amx_model(q.const_view(), kv.view());
  ThreadsExecutor threads{3};
  How how{Path::amx};
  how.executor = threads;
  for (int round = 0; round < 3; ++round) EXPECT_TRUE(same_bits(expected, attend(q.const_view(), kv.view(), how)));
}

TEST_F(Amx, TheInstructionsAreTheOnesThatThePreambleCounts) {
  if (amx_provider != AmxProvider::emulator) GTEST_SKIP() << "only the emulator counts";
  // One block for 128 rows: D / 32 · 4 · 8 products of scores with as many loads, 2 · 8 · Dv / 16 of outputs with 12
  // loads and 4 stores for 8 of them, and a product for every half of a group's weights.
  const Problem p = make_problem({128, 1, 128, 128, 1, detail::kBlock}, 223);
  const long products = amx_counts.products;
  const long loads = amx_counts.loads;
  const long stores = amx_counts.stores;
  const long configurations = amx_counts.configurations;
  const Result result = solve(p, kBf16, {Path::amx});
  EXPECT_TRUE(std::isfinite(result.out[0]));
  EXPECT_EQ(amx_counts.products - products, 128 + 128 + 16);
  EXPECT_EQ(amx_counts.loads - loads, 128 + 128 * 12 / 8 + 8 * 4);
  EXPECT_EQ(amx_counts.stores - stores, 32 + 64 + 8);
  EXPECT_EQ(amx_counts.configurations - configurations, 1) << "one task, one configuration";
  EXPECT_FALSE(amx_tiles_in_use()) << "a task that is over leaves no tiles behind";
}

// ---- the model, everywhere ----

// How far the model may be from exact attention, for bf16 inputs. A weight is off by half a bf16 ulp (2^-8), the cubic's
// error, and what its exponent is off by: the rounding of the score's sum, of the product with the scale and of the step
// to 128·(127 + x), each relative to |score| + 127. Outputs are quotients of two sums with such weights; their own
// additions are in f32. What is denormal is lost, absolutely.
template <class V>
void expect_near_reference(const Problem& p, const V& variant) {
  const Tensor q(p.q, ElementType::bf16);
  const StoredCaches kv = store_cache(p.kv, ElementType::bf16);
  const Result model = amx_model(q.const_view(), kv.view(), variant);
  const ReferenceResult exact = reference_attention(q.const_view(), kv.view(), variant);
  Problem magnitudes = p;  // Σ p |v| needs a reference of its own: the same scores, the values' magnitudes
  for (float& x : magnitudes.kv.v.values) x = std::abs(x);
  const StoredCaches kv_magnitudes = store_cache(magnitudes.kv, ElementType::bf16);
  const ReferenceResult sums = reference_attention(q.const_view(), kv_magnitudes.view(), variant);

  const double u = 0x1p-24;
  const auto dim = static_cast<double>(p.shape.head_dim);
  const auto length = static_cast<double>(p.shape.n_kv);
  double most_q = 0.0;
  double most_k = 0.0;
  for (const float x : p.q.values) most_q = std::max(most_q, std::abs(static_cast<double>(x)));
  for (const float x : p.kv.k.values) most_k = std::max(most_k, std::abs(static_cast<double>(x)));
  const double score = dim * most_q * most_k / std::sqrt(dim) * 1.02;  // no |score| is larger, natural units
  const double exponent = u * (score * (16.0 + dim / 16.0 + 8.0) + 8.0 * 127.0 * 0.7);
  const double weight_error = std::expm1(0x1p-8 + 0x1p-13 + exponent);
  const double additions = u * (32.0 + length / 16.0);
  for (Index row = 0; row < exact.lse.size(); ++row) {
    const Index token = row / p.shape.query_heads;
    const Index head = row % p.shape.query_heads;
    for (Index d = 0; d < p.shape.value_dim; ++d) {
      const double bound = sums.out(row, d) * (2.2 * weight_error + additions) + (length + 2.0) * 0x1p-125;
      ASSERT_LE(std::abs(static_cast<double>(model.at(token, head, d)) - exact.out(row, d)), bound)
          << p.shape << ", row " << row << ", dim " << d;
    }
    if (exact.lse[row] == -std::numeric_limits<double>::infinity()) {
      ASSERT_EQ(model.lse_at(token, head), -kInfinity);
      continue;
    }
    ASSERT_LE(std::abs(static_cast<double>(model.lse_at(token, head)) - exact.lse[row]),
              1.1 * weight_error + additions + 2.0 * u * std::abs(exact.lse[row]))
        << p.shape << ", row " << row;
  }
}

TEST(AmxModel, IsNearAttentionInDoublePrecision) {
  for (const Distribution distribution : {Distribution::normal, Distribution::sinks, Distribution::dominant_key,
                                          Distribution::equal_keys, Distribution::denormal}) {
    SCOPED_TRACE(distribution_name(distribution));
    expect_near_reference(make_problem({4, 2, 64, 64, 3, detail::kSpan + 100}, 224, distribution), Causal{});
    expect_near_reference(make_problem({4, 2, 33, 31, 20, 100}, 225, distribution), CausalWindow{30});
    expect_near_reference(make_problem({2, 1, 128, 128, 1, 2000}, 226, distribution), Full{});
  }
  expect_near_reference(make_problem({2, 1, 16, 16, 3, 70}, 227, Distribution::large_scores), Causal{});
  expect_near_reference(make_problem({4, 2, 16, 16, 30, 90}, 228), SieveWithScores{});
  expect_near_reference(make_problem({4, 2, 16, 16, 30, 90}, 229), StrictlyBeforeOdd{});
}

TEST(AmxModel, WeightsArePowersOfTwoRoundedToBf16) {
  EXPECT_EQ(weight(0.0f, 1.0f, 0.0f), 1.0f);
  EXPECT_EQ(weight(-kInfinity, 1.0f, 3.0f), 0.0f);
  EXPECT_EQ(weight(-1e30f, 1.0f, 3.0f), 0.0f);
  EXPECT_TRUE(std::isnan(weight(NAN, 1.0f, 3.0f)));
  for (int n = 0; n < 127; ++n) EXPECT_EQ(weight(static_cast<float>(-n), 1.0f, 0.0f), std::ldexp(1.0f, -n));
  for (const float m : {0.0f, -3.7f, 100.3f, 16383.0f, 16385.0f, 1e9f}) {
    EXPECT_EQ(weight(m, 1.0f, m), 1.0f) << m;
    for (float below = 0.0f; below < 126.0f; below += 0x1.3p-7f) {
      const float s = m - below;
      const double exact = std::exp2(static_cast<double>(s) - static_cast<double>(m));
      if (exact < 0x1p-126) {  // s is m less a whole number of ulps, of 64 at 1e9; weights that small are zero
        EXPECT_LE(weight(s, 1.0f, m), 0x1p-126f) << s << " below " << m;
        continue;
      }
      const double step = 0x1p-24 * (std::abs(static_cast<double>(m)) + 2.0 * 127.0) * 0.7;  // of X, in units of x
      const double error = std::expm1(0x1p-8 + 0x1p-13 + (std::abs(m) < 16384.0f ? step : 0x1p-16));
      ASSERT_NEAR(static_cast<double>(weight(s, 1.0f, m)), exact, exact * error) << s << " below " << m;
    }
  }
}

TEST(AmxModel, GivesAnOnlyTokensValueExactly) {
  const Problem p = make_problem({2, 1, 16, 16, 1, 1}, 230, Distribution::large_scores);
  const Tensor q(p.q, ElementType::bf16);
  const StoredCaches kv = store_cache(p.kv, ElementType::bf16);
  const Result model = amx_model(q.const_view(), kv.view());
  for (Index h = 0; h < 2; ++h)
    for (Index d = 0; d < 16; ++d) EXPECT_EQ(model.at(0, h, d), rounded_to(ElementType::bf16, p.kv.v.at(0, 0, d)));
}

}  // namespace
}  // namespace gqa::test
