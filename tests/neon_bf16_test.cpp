// SPDX-License-Identifier: Apache-2.0
// Path::neon_bf16 against a scalar model of its arithmetic, bit for bit: single instructions, and whole attention calls. Processors without
// the instructions skip these tests; what the model is, they test everywhere.
#include <gtest/gtest.h>

#include "gqa/detail/path/region.hpp"
#include "support/neon_bf16_model.hpp"
#include "support/paths.hpp"
#include "support/random.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

inline constexpr Types kBf16 = {ElementType::bf16, ElementType::bf16, ElementType::bf16, ElementType::f32};

class NeonBf16 : public testing::Test {
 protected:
  void SetUp() override {
    if (!path_available(Path::neon_bf16)) GTEST_SKIP() << "this machine is no AArch64 with bf16 products";
  }

  /// The path = the model, for one problem in one storage: inputs rounded to bf16.
  template <class V = Causal>
  static void expect_model(const Problem& p, const V& variant = {}, const Place& place = {}, const Types& types = kBf16,
                           std::optional<float> scale = std::nullopt) {
    const Tensor q(p.q, types.q);
    const StoredCaches kv = store_cache(p.kv, types.k, types.v, place);
    How how{Path::neon_bf16, types.out};
    how.scale = scale;
    how.products = Products::bf16;
    const Result model = neon_bf16_model(q.const_view(), kv.view(), variant, scale);
    EXPECT_TRUE(same_bits(rounded_result(model, types.out), attend(q.const_view(), kv.view(), how, variant)))
        << p.shape << "; " << place.name() << "; " << types;
  }
};

// ---- one instruction ----

#if GQA_DETAIL_NEON

GQA_BEGIN_ARM_REGION("+bf16", "bf16")
// Rows of four bf16; [row][column] of sums.
__attribute__((noinline)) void one_matrix(float (&c)[4], const std::uint16_t (&a)[8], const std::uint16_t (&b)[8]) {
  float32x4_t sum = vld1q_f32(c);
  asm("bfmmla %0.4s, %1.8h, %2.8h" : "+w"(sum) : "w"(vld1q_u16(a)), "w"(vld1q_u16(b)));
  vst1q_f32(c, sum);
}
__attribute__((noinline)) void one_dot(float (&c)[4], const std::uint16_t (&a)[8], const std::uint16_t (&b)[8]) {
  float32x4_t sum = vld1q_f32(c);
  asm("bfdot %0.4s, %1.8h, %2.8h" : "+w"(sum) : "w"(vld1q_u16(a)), "w"(vld1q_u16(b)));
  vst1q_f32(c, sum);
}
GQA_END_ARM_REGION()

// Random signs and mantissas; exponents spread over `exponents` values from `least` up, so that terms cancel, vanish or are denormal.
std::uint16_t random_bf16(Random& random, int least, int exponents) {
  const auto exponent = static_cast<std::uint32_t>(least + static_cast<int>(random.below(exponents)));
  return static_cast<std::uint16_t>((static_cast<std::uint32_t>(random.bits() & 1u) << 15) | (exponent << 7) |
                                    static_cast<std::uint32_t>(random.bits() & 127u));
}

TEST_F(NeonBf16, OneInstructionIsTheModels) {
  struct Case {
    int least, exponents, least_c;
  };
  // Ordinary numbers; denormal operands and results, and sums that just reach normal ones; infinities and NaN.
  for (const Case& range :
       {Case{120, 14, 120}, Case{100, 60, 90}, Case{0, 80, 0}, Case{30, 36, 0}, Case{225, 31, 200}}) {
    Random random(static_cast<std::uint64_t>(1000 + range.least));
    for (int round = 0; round < 20000; ++round) {
      std::uint16_t bits[2][8];
      float x[2][8], c[4];
      for (int operand = 0; operand < 2; ++operand)
        for (int i = 0; i < 8; ++i) {
          bits[operand][i] = random_bf16(random, range.least, range.exponents);
          x[operand][i] = detail::float_from_bf16(bits[operand][i]);
        }
      for (float& sum : c)
        sum = std::bit_cast<float>(
            (static_cast<std::uint32_t>(random_bf16(random, range.least_c, range.exponents)) << 16) |
            static_cast<std::uint32_t>(random.bits() & 0xffffu));
      float matrix[4], dot[4];
      std::copy(c, c + 4, matrix);
      std::copy(c, c + 4, dot);
      one_matrix(matrix, bits[0], bits[1]);
      one_dot(dot, bits[0], bits[1]);
      for (int i = 0; i < 4; ++i) {
        const float* const a = x[0] + i / 2 * 4;
        const float* const b = x[1] + i % 2 * 4;
        const float first = bf16_pair(c[i], a[0], b[0], a[1], b[1]);
        ASSERT_TRUE(same_value(bf16_pair(first, a[2], b[2], a[3], b[3]), matrix[i]))
            << "exponents from " << range.least << ": " << std::hexfloat << matrix[i];
        ASSERT_TRUE(same_value(bf16_pair(c[i], x[0][2 * i], x[1][2 * i], x[0][2 * i + 1], x[1][2 * i + 1]), dot[i]))
            << "exponents from " << range.least << ": " << std::hexfloat << dot[i];
      }
    }
  }
}

#endif

// ---- whole calls ----

TEST_F(NeonBf16, EveryGroupSize) {
  for (const Index group : {1, 2, 3, 4, 5, 6, 7, 8, 16, 29, 71, 128})
    expect_model(make_problem({group, 1, 24, 24, 1, 70}, 202));
  for (const Index group : {1, 4, 7}) expect_model(make_problem({group * 2, 2, 32, 32, 1, detail::kSpan + 70}, 201));
}

TEST_F(NeonBf16, EveryCountOfRowsInATile) {
  for (const Index rows : {1, 2, 3, 5, 7, 9, 12, 13, 15, 17, 33, 127, 128, 129, 145})
    expect_model(make_problem({1, 1, 16, 40, rows, rows + 9}, 203));
}

TEST_F(NeonBf16, EveryWidth) {
  for (const Index d : {8, 16, 64, 128, 256}) expect_model(make_problem({4, 2, d, d, 2, 80}, 204));
  for (const Index d : {1, 2, 3, 4, 5, 7, 9, 15, 17, 31, 33, 100}) expect_model(make_problem({3, 1, d, d, 3, 80}, 205));
  for (const Index rows : {1, 2, 3, 8}) expect_model(make_problem({rows, 1, 27, 29, 1, 80}, 206));
  expect_model(make_problem({3, 1, 576, 512, 1, 70}, 207));
}

TEST_F(NeonBf16, EveryLengthAroundStepsBlocksAndSpans) {
  for (const Index n_kv : {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 127, 129, 511, 512, 513, 1025})
    expect_model(make_problem({4, 2, 16, 16, 1, n_kv}, 208));
}

TEST_F(NeonBf16, PrefillsAndChunks) {
  expect_model(make_problem({4, 1, 32, 32, 70, 70}, 209));
  expect_model(make_problem({7, 1, 16, 16, 17, detail::kSpan + 9}, 211, Distribution::sinks));
}

TEST_F(NeonBf16, EveryDistribution) {
  for (const Distribution distribution :
       {Distribution::normal, Distribution::sinks, Distribution::large_scores, Distribution::dominant_key,
        Distribution::equal_keys, Distribution::far_values, Distribution::denormal}) {
    SCOPED_TRACE(distribution_name(distribution));
    expect_model(make_problem({4, 2, 64, 64, 2, 100}, 212, distribution));
    expect_model(make_problem({4, 2, 33, 31, 9, 100}, 213, distribution));
  }
}

TEST_F(NeonBf16, EveryStorage) {
  const Problem p = make_problem({6, 2, 40, 24, 3, 333}, 216);
  for (const CacheLayout layout : kCacheLayouts) {
    expect_model(p, Causal{}, contiguous_place(layout));
    expect_model(p, CausalWindow{150}, ring_place(170, layout));
    for (const Index page_size : {1, 7, 64}) expect_model(p, Causal{}, paged_place(page_size, layout));
  }
}

TEST_F(NeonBf16, EveryVariantAndScale) {
  const Problem p = make_problem({4, 2, 16, 16, 20, 190}, 217);
  expect_model(p, Full{});
  for (const Index window : {1, 5, 20, 64, 77}) expect_model(p, CausalWindow{window});
  expect_model(p, PackedDocuments{37});
  expect_model(p, Sieve{});
  expect_model(p, SinksAndWindow{4, 30});
  expect_model(p, SieveWithScores{});
  for (const float scale : {0.0f, 1.0f, -0.25f, 1e-30f, 1e10f}) expect_model(p, Causal{}, {}, kBf16, scale);
}

// Values which some rows of a tile see and others do not, and in which 0 × value would not be 0.
TEST_F(NeonBf16, NonFiniteInputsThatSomeRowsSee) {
  for (const float poison : {NAN, INFINITY, -INFINITY}) {
    SCOPED_TRACE(poison);
    Problem p = make_problem({6, 2, 36, 40, 12, 200}, 219);
    p.q.at(4, 1, 2) = poison;
    p.kv.k.at(192, 0, 5) = poison;
    p.kv.k.at(131, 1, 35) = poison;
    p.kv.v.at(195, 1, 6) = poison;
    p.kv.v.at(190, 0, 39) = poison;
    p.kv.v.at(3, 0, 19) = poison;
    expect_model(p);
    expect_model(p, CausalWindow{60});
    expect_model(p, Sieve{});
  }
}

TEST_F(NeonBf16, ValuesThatRoundToInfinityAreCarefulToo) {
  Problem p = make_problem({2, 1, 16, 16, 30, 60}, 220);
  p.kv.v.at(45, 0, 3) = 3.4e38f;  // finite as f32
  expect_model(p, Causal{}, {}, {ElementType::bf16, ElementType::bf16, ElementType::f32, ElementType::f32});
}

TEST_F(NeonBf16, EveryMixOfTypes) {
  const Problem p = make_problem({4, 2, 40, 24, 3, 100}, 221);
  for (const ElementType q : kEveryType)
    for (const ElementType k : kEveryType)
      for (const ElementType v : kEveryType) expect_model(p, Causal{}, {}, {q, k, v, q});
}

// ---- the model, everywhere ----

TEST(NeonBf16Model, RoundsSumsToOdd) {
  EXPECT_EQ(sum_to_odd(1.0f, 2.0f), 3.0f);
  EXPECT_EQ(sum_to_odd(1.0f, 0x1p-24f), 1.0f + 0x1p-23f) << "a half: cut, and the last bit set";
  EXPECT_EQ(sum_to_odd(1.0f, 0x1p-126f), 1.0f + 0x1p-23f);
  EXPECT_EQ(sum_to_odd(1.0f, -0x1p-126f), 1.0f - 0x1p-24f) << "just below 1 the last bit is set";
  EXPECT_EQ(sum_to_odd(-1.0f, 0x1p-60f), -1.0f + 0x1p-24f);
  EXPECT_EQ(sum_to_odd(1.0f + 0x1p-23f, 0x1.8p-24f), 1.0f + 0x1p-23f) << "the last bit is set already";
  EXPECT_EQ(sum_to_odd(0x1.8p-126f, -0x1p-126f), 0.0f) << "denormal";
  EXPECT_EQ(sum_to_odd(0x1.fffffep127f, 0x1p100f), 0x1.fffffep127f);
  EXPECT_EQ(sum_to_odd(0x1.fffffep127f, 0x1p104f), kInfinity);
}

TEST(NeonBf16Model, IsNearAttentionInDoublePrecision) {
  for (const Index n_kv : {1, 70, 600}) {
    const Problem p = make_problem({4, 2, 32, 16, 1, n_kv}, 224);
    const Tensor q(p.q, ElementType::bf16);
    const StoredCaches kv = store_cache(p.kv, ElementType::bf16);
    const Result model = neon_bf16_model(q.const_view(), kv.view());
    const ReferenceResult exact = reference_attention(q.const_view(), kv.view(), Causal{});
    for (Index head = 0; head < 4; ++head) {
      EXPECT_NEAR(static_cast<double>(model.lse_at(0, head)), exact.lse[head], 1e-5);
      // Σ w·|v − o| · 2⁻⁸, and what f32 sums lose; normal values are below 5.
      for (Index d = 0; d < 16; ++d)
        EXPECT_NEAR(static_cast<double>(model.at(0, head, d)), exact.out(head, d), 10.0 * 0x1p-8);
    }
  }
}

}  // namespace
}  // namespace gqa::test
