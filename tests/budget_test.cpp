// SPDX-License-Identifier: Apache-2.0
// Budgets: bytes of rows, sequences and batches against sums over layers and positions, the inverse questions against trying every
// answer, the published figures, and errors.
#include "gqa/budget.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "gqa/budget_presets.hpp"
#include "support/messages.hpp"

namespace gqa::test {
namespace {

constexpr Index GiB = Index{1} << 30;
constexpr Index GB = 1'000'000'000;

constexpr ModelShape uniform(Index layers, Index query_heads, Index kv_heads, Index head_dim, Index window = 0) {
  ModelShape model;
  model.add_layers(
      {.count = layers, .query_heads = query_heads, .kv_heads = kv_heads, .head_dim = head_dim, .window = window});
  return model;
}

constexpr KvPlan in(KvFormat format) { return {.k_format = format, .v_format = format}; }

// --- the published figures, at compile time ---------------------------------------------------------------------------

constexpr ModelShape kMha = uniform(80, 64, 64, 128);
constexpr ModelShape kGqa = uniform(80, 64, 8, 128);
static_assert(kv_sequence_bytes(kMha, KvPlan{}, 131072) == 343'597'383'680);  // 343.6 GB: hundreds of gigabytes
static_assert(kv_sequence_bytes(kGqa, KvPlan{}, 131072) == 42'949'672'960);   // 42.9 GB
static_assert(kv_sequence_bytes(kMha, KvPlan{}, 131072) == 8 * kv_sequence_bytes(kGqa, KvPlan{}, 131072));
static_assert(kv_bytes_per_token(kMha, KvPlan{}) == 8 * kv_bytes_per_token(with_kv_heads(kMha, 8), KvPlan{}));
static_assert(kv_sequence_bytes(preset("llama-2-70b"), KvPlan{}, 131072) == 42'949'672'960);

// Devices of 80 GB, weights of 140 GB, one sequence: 7 become 3, and with whole nodes 8 become 4.
constexpr Index kWeights = 140 * GB, kDevice = 80 * GB;
static_assert(devices_needed(kWeights + kv_sequence_bytes(kMha, KvPlan{}, 131072), kDevice) == 7);
static_assert(devices_needed(kWeights + kv_sequence_bytes(kGqa, KvPlan{}, 131072), kDevice) == 3);
static_assert(tensor_parallel_devices(kMha, KvPlan{}, 131072, 1, kWeights, kDevice) == 8);
static_assert(tensor_parallel_devices(kGqa, KvPlan{}, 131072, 1, kWeights, kDevice) == 4);

// Mistral's window caps its cache: 32 layers x 8 KV heads x 128 x 4096 tokens x 2 x 2 bytes.
constexpr ModelShape kMistral = preset("mistral-7b-v0.1");
static_assert(kv_sequence_bytes(kMistral, KvPlan{}, 4096) == GiB / 2);
static_assert(kv_sequence_bytes(kMistral, KvPlan{}, 1'000'000) == GiB / 2);
static_assert(kv_sequence_bytes(kMistral, KvPlan{.windows_capped = false}, 8192) == GiB);
static_assert(longest_context(kMistral, KvPlan{}, 1, GiB / 2) == kUnlimited);
static_assert(longest_context(kMistral, KvPlan{}, 1, GiB / 2 - 1) == 4095);

// DeepSeek-V3: one row of 576 a token and layer, of which values are the first 512.
static_assert(kv_bytes_per_token(preset("deepseek-v3"), KvPlan{}) == 61 * 576 * 2);
static_assert(kv_bytes_per_token(with_kv_heads(preset("deepseek-v3"), 128), KvPlan{}) == 61 * 128 * (192 + 128) * 2);

// --- rows --------------------------------------------------------------------------------------------------------------

TEST(BudgetFormats, RowsOf128AreAsOtherEnginesHaveThem) {
  const auto row = [](const char* name) { return kv_row_bytes(kv_format_named(name), 128); };
  EXPECT_EQ(row("f32"), 512);
  EXPECT_EQ(row("bf16"), 256);
  EXPECT_EQ(row("f16"), 256);
  EXPECT_EQ(row("i8"), 132);
  EXPECT_EQ(row("i4"), 68);
  EXPECT_EQ(row("fp8_e4m3"), 128);
  EXPECT_EQ(row("fp8_e5m2"), 128);
  EXPECT_EQ(row("q8_kv"), 136);
  EXPECT_EQ(row("q8_0"), 136);
  EXPECT_EQ(row("q5_1"), 96);
  EXPECT_EQ(row("q5_0"), 88);
  EXPECT_EQ(row("q4_1"), 80);
  EXPECT_EQ(row("q4_0"), 72);
  EXPECT_EQ(row("iq4_nl"), 72);
  EXPECT_EQ(row("mxfp4"), 68);
  EXPECT_EQ(row("nvfp4"), 72);
}

TEST(BudgetFormats, TableIsInTheOrderOfTheEnumAndNamesAreUnique) {
  std::set<std::string> names;
  for (std::size_t i = 0; i < std::size(kKvFormats); ++i) {
    EXPECT_EQ(static_cast<std::size_t>(kKvFormats[i].format), i);
    EXPECT_TRUE(names.insert(kKvFormats[i].name).second) << kKvFormats[i].name;
    EXPECT_EQ(kv_format_named(kKvFormats[i].name), kKvFormats[i].format);
  }
}

TEST(BudgetFormats, LibraryFormatsAreItsElementTypes) {
  for (const ElementType type : {ElementType::f32, ElementType::bf16, ElementType::f16}) {
    EXPECT_TRUE(kv_format_info(kv_format_of(type)).in_library);
    EXPECT_STREQ(kv_format_name(kv_format_of(type)), element_name(type));
    for (const Index width : {1, 5, 64, 576})
      EXPECT_EQ(kv_row_bytes(kv_format_of(type), width), width * element_bytes(type));
  }
}

TEST(BudgetFormats, BlocksMustDivideTheWidth) {
  EXPECT_EQ(kv_row_bytes(KvFormat::i4, 5), 3 + 4);  // half a byte is a byte
  EXPECT_EQ(kv_row_bytes(KvFormat::nvfp4, 80), 45);
  EXPECT_TRUE(kv_format_has_width(KvFormat::q8_0, 96));
  EXPECT_FALSE(kv_format_has_width(KvFormat::q8_0, 80));
  EXPECT_FALSE(kv_format_has_width(KvFormat::f32, 0));
}

// --- bytes -------------------------------------------------------------------------------------------------------------

/// Pages that hold the tokens a query may still need, at the length at which these are most; by going through all positions.
Index pages_by_walking(Index kept, Index page, Index tokens) {
  Index most = 0;
  for (Index length = 1; length <= tokens; ++length) {
    std::set<Index> pages;
    for (Index p = std::max<Index>(0, length - kept); p < length; ++p) pages.insert(p / page);
    most = std::max(most, static_cast<Index>(pages.size()));
  }
  return most;
}

TEST(Budget, SlotsAreThePagesThatASequenceTouchesAsItGrows) {
  for (const Index window : {0, 1, 2, 7, 8, 9, 30})
    for (const Index page : {1, 2, 7, 8, 64})
      for (const Index chunk : {1, 4})
        for (const Index tokens : {1, 2, 7, 8, 9, 16, 31, 64, 65, 100}) {
          SCOPED_TRACE(testing::Message()
                       << "window " << window << ", page " << page << ", chunk " << chunk << ", tokens " << tokens);
          LayerKind kind{.count = 1, .query_heads = 1, .kv_heads = 1, .head_dim = 1, .window = window};
          const KvPlan plan{.page_size = page, .chunk = chunk};
          const Index kept = window == 0 ? tokens : std::min(tokens, window + chunk - 1);
          EXPECT_EQ(kv_slots(kind, plan, tokens), page * pages_by_walking(kept, page, tokens));
          const KvPlan unpaged{.chunk = chunk};
          EXPECT_EQ(kv_slots(kind, unpaged, tokens), kept);
          const KvPlan whole{.page_size = page, .windows_capped = false, .chunk = chunk};
          EXPECT_EQ(kv_slots(kind, whole, tokens), page * ((tokens + page - 1) / page));
        }
}

TEST(Budget, SequencesAreTheSumOverLayersHeadsAndTokens) {
  ModelShape model;
  model.add_layers({.count = 3, .query_heads = 8, .kv_heads = 4, .head_dim = 64, .value_dim = 32, .window = 10});
  model.add_layers({.count = 2, .query_heads = 8, .kv_heads = 2, .head_dim = 32});
  model.add_layers({.count = 7, .query_heads = 8, .kv_heads = 2, .head_dim = 32, .shares_kv = true});
  model.add_layers(
      {.count = 1, .query_heads = 8, .kv_heads = 1, .head_dim = 96, .value_dim = 64, .values_in_keys = true});
  for (const KvFormatInfo& k : kKvFormats)
    for (const KvFormatInfo& v : kKvFormats)
      for (const Index tokens : {0, 1, 9, 10, 11, 100}) {
        const KvPlan plan{.k_format = k.format, .v_format = v.format};
        const auto bytes = [&](KvFormat format, Index width) { return kv_row_bytes(format, width); };
        const Index windowed = std::min<Index>(tokens, 10);
        const Index expected = 3 * 4 * windowed * (bytes(k.format, 64) + bytes(v.format, 32)) +
                               2 * 2 * tokens * (bytes(k.format, 32) + bytes(v.format, 32)) +
                               tokens * bytes(k.format, 96);
        ASSERT_EQ(kv_sequence_bytes(model, plan, tokens), expected) << k.name << ' ' << v.name << ' ' << tokens;
        ASSERT_EQ(kv_batch_bytes(model, plan, tokens, 5), 5 * expected);
        if (tokens == 1) {
          ASSERT_EQ(kv_bytes_per_token(model, plan), expected);
        }
      }
}

TEST(Budget, WasteIsWhatHoldsNoToken) {
  const ModelShape model = uniform(2, 4, 2, 8, 10);
  const KvPlan plan{.page_size = 16};
  const KvPlan exact{};
  for (Index tokens = 0; tokens < 100; ++tokens)
    EXPECT_EQ(kv_waste_bytes(model, plan, tokens),
              kv_sequence_bytes(model, plan, tokens) - kv_sequence_bytes(model, exact, tokens));
  EXPECT_EQ(kv_waste_bytes(uniform(1, 1, 1, 1), plan, 17), 15 * 2 * 2);
  EXPECT_EQ(kv_waste_bytes(uniform(1, 1, 1, 1), plan, 32), 0);
  EXPECT_EQ(kv_waste_bytes(model, exact, 17), 0);
}

TEST(Budget, KindsThatAreTheSameAreCountedTogether) {
  ModelShape model;
  for (int i = 0; i < 100; ++i)
    model.add_layers({.count = 1,
                      .query_heads = 4,
                      .kv_heads = 2,
                      .head_dim = 8,
                      .value_dim = i % 3 == 0 ? 8 : 0,
                      .window = i % 2 == 0 ? 16 : 0});
  EXPECT_EQ(model.kind_count, 2);  // a value dim of 0 is the head dim
  EXPECT_EQ(model.kinds[0].count, 50);
  EXPECT_EQ(layer_count(model), 100);
}

// --- the other way round -----------------------------------------------------------------------------------------------

ModelShape mixed() {
  ModelShape model;
  model.add_layers({.count = 5, .query_heads = 12, .kv_heads = 6, .head_dim = 32, .window = 20});
  model.add_layers({.count = 1, .query_heads = 12, .kv_heads = 6, .head_dim = 32});
  return model;
}

TEST(BudgetInverse, LongestContextIsTheLastThatFits) {
  const ModelShape model = mixed();
  for (const Index page : {0, 1, 7, 16})
    for (const Index sequences : {1, 3})
      for (const Index memory : {0, 100, 3000, 100'000, 1'000'000, 4'000'000}) {
        const KvPlan plan{.page_size = page};
        const Index longest = longest_context(model, plan, sequences, memory);
        Index tried = 0;
        while (kv_batch_bytes(model, plan, tried + 1, sequences) <= memory) ++tried;
        EXPECT_EQ(longest, tried) << "page " << page << ", sequences " << sequences << ", memory " << memory;
      }
}

TEST(BudgetInverse, MostSequencesIsTheLastThatFits) {
  const ModelShape model = mixed();
  for (const Index tokens : {1, 19, 20, 21, 500})
    for (const Index memory : {0, 100'000, 3'333'333}) {
      const Index most = most_sequences(model, KvPlan{}, tokens, memory);
      EXPECT_LE(kv_batch_bytes(model, KvPlan{}, tokens, most), memory);
      EXPECT_GT(kv_batch_bytes(model, KvPlan{}, tokens, most + 1), memory);
    }
}

TEST(BudgetInverse, DevicesRoundUp) {
  EXPECT_EQ(devices_needed(0, 10), 0);
  EXPECT_EQ(devices_needed(1, 10), 1);
  EXPECT_EQ(devices_needed(10, 10), 1);
  EXPECT_EQ(devices_needed(11, 10), 2);
  EXPECT_EQ(devices_needed(kUnlimited, 1), kUnlimited);
}

TEST(BudgetInverse, ParallelDevicesKeepKvHeadsWhole) {
  const ModelShape mqa = uniform(1, 8, 1, 64);
  const Index cache = kv_sequence_bytes(mqa, KvPlan{}, 100);
  EXPECT_EQ(tensor_parallel_devices(mqa, KvPlan{}, 100, 1, 0, cache), 1);
  EXPECT_EQ(tensor_parallel_devices(mqa, KvPlan{}, 100, 1, 0, cache - 1), std::nullopt);  // one KV head cannot be cut
  EXPECT_EQ(tensor_parallel_devices(mqa, KvPlan{}, 100, 1, 7, cache + 1), 8);
  const ModelShape gqa = uniform(1, 12, 3, 64);  // on two devices, two heads and one; on four, one each and one copy
  const Index head = kv_sequence_bytes(gqa, KvPlan{}, 100) / 3;
  EXPECT_EQ(tensor_parallel_devices(gqa, KvPlan{}, 100, 1, 0, 2 * head), 2);
  EXPECT_EQ(tensor_parallel_devices(gqa, KvPlan{}, 100, 1, 0, 2 * head - 1), 4);
}

TEST(BudgetInverse, WidestFormatIsTheLargestThatFits) {
  const ModelShape model = mixed();
  for (const Index memory : {10'000, 100'000, 200'000, 300'000, 500'000, 1'000'000}) {
    const std::optional<KvFormat> widest = widest_format_that_fits(model, KvPlan{}, 100, 2, memory);
    for (const KvFormatInfo& info : kKvFormats) {
      const Index bytes = kv_batch_bytes(model, in(info.format), 100, 2);
      if (bytes > memory) continue;
      ASSERT_TRUE(widest.has_value()) << memory;
      EXPECT_LE(bytes, kv_batch_bytes(model, in(*widest), 100, 2)) << memory << ' ' << info.name;
    }
    if (widest) {
      EXPECT_LE(kv_batch_bytes(model, in(*widest), 100, 2), memory);
    }
  }
  EXPECT_EQ(widest_format_that_fits(model, KvPlan{}, 100, 2, 10), std::nullopt);
  EXPECT_EQ(widest_format_that_fits(model, KvPlan{}, 100, 2, GB), KvFormat::f32);
  // D = 80 has no blocks of 32, whatever would fit.
  const Index eight_bits = kv_sequence_bytes(uniform(1, 1, 1, 80), in(KvFormat::i8), 10);
  EXPECT_EQ(widest_format_that_fits(uniform(1, 1, 1, 80), KvPlan{}, 10, 1, eight_bits + 1), KvFormat::i8);
  EXPECT_EQ(widest_format_that_fits(uniform(1, 1, 1, 80), KvPlan{}, 10, 1, eight_bits - 1), KvFormat::fp8_e4m3);
}

TEST(BudgetInverse, MostKvHeadsIsTheLargestDivisorThatFits) {
  const ModelShape model = mixed();
  const std::vector<Index> divisors{1, 2, 3, 4, 6, 12};
  for (const Index memory : {10'000, 50'000, 100'000, 200'000, 300'000, 600'000, 10'000'000}) {
    std::optional<Index> expected;
    for (const Index heads : divisors)
      if (kv_batch_bytes(with_kv_heads(model, heads), KvPlan{}, 100, 2) <= memory) expected = heads;
    EXPECT_EQ(most_kv_heads_that_fit(model, KvPlan{}, 100, 2, memory), expected) << memory;
  }
}

TEST(BudgetInverse, EveryDivisorOfTheQueryHeadsIsTried) {
  for (const Index query_heads : {1, 2, 7, 9, 16, 30, 64, 71, 72}) {
    const ModelShape model = uniform(1, query_heads, query_heads, 4);
    const Index one = kv_sequence_bytes(with_kv_heads(model, 1), KvPlan{}, 10);
    for (Index fitting = 0; fitting <= query_heads; ++fitting) {
      std::optional<Index> expected;
      for (Index heads = 1; heads <= fitting; ++heads)
        if (query_heads % heads == 0) expected = heads;
      EXPECT_EQ(most_kv_heads_that_fit(model, KvPlan{}, 10, 1, fitting * one), expected)
          << query_heads << ' ' << fitting;
    }
  }
}

TEST(BudgetInverse, WithKvHeadsChangesNothingElse) {
  const ModelShape model = mixed();
  const ModelShape same = with_kv_heads(model, 6);
  ASSERT_EQ(same.kind_count, model.kind_count);
  for (Index i = 0; i < same.kind_count; ++i) {
    EXPECT_TRUE(same.kinds[i].same_kind(model.kinds[i]));
    EXPECT_EQ(same.kinds[i].count, model.kinds[i].count);
  }
  for (const Index heads : {1, 2, 3, 4, 12})
    EXPECT_EQ(6 * kv_sequence_bytes(with_kv_heads(model, heads), KvPlan{}, 50),
              heads * kv_sequence_bytes(model, KvPlan{}, 50));
}

// --- errors ------------------------------------------------------------------------------------------------------------

TEST(BudgetErrors, AreNamed) {
  const ModelShape model = mixed();
  const auto with = [&](auto change) {
    ModelShape changed = model;
    change(changed.kinds[1]);
    return message_of([&] { static_cast<void>(kv_sequence_bytes(changed, KvPlan{}, 1)); });
  };
  EXPECT_EQ(with([](LayerKind& kind) { kind.kv_heads = 5; }),
            "gqa: model.kinds[1].kv_heads is 5; expected a divisor of the 12 query heads");
  EXPECT_EQ(with([](LayerKind& kind) { kind.count = 0; }), "gqa: model.kinds[1].count is 0; expected 1 to 2^31");
  EXPECT_EQ(with([](LayerKind& kind) { kind.query_heads = -1; }),
            "gqa: model.kinds[1].query_heads is -1; expected 1 to 2^31");
  EXPECT_EQ(with([](LayerKind& kind) { kind.head_dim = 0; }), "gqa: model.kinds[1].head_dim is 0; expected 1 to 2^31");
  EXPECT_EQ(with([](LayerKind& kind) { kind.value_dim = -2; }),
            "gqa: model.kinds[1].value_dim is -2; expected 1 to 2^31, or 0 for head_dim");
  EXPECT_EQ(with([](LayerKind& kind) { kind.window = -1; }),
            "gqa: model.kinds[1].window is -1; expected 1 or more, or 0 for none");
  EXPECT_EQ(with([](LayerKind& kind) {
              kind.values_in_keys = true;
              kind.value_dim = 33;
            }),
            "gqa: model.kinds[1].value_dim is 33; expected head_dim at most, where values lie in keys");
  EXPECT_EQ(message_of([] { static_cast<void>(kv_sequence_bytes(ModelShape{}, KvPlan{}, 1)); }),
            "gqa: model.kind_count is 0; expected 1 to 64");
  EXPECT_EQ(message_of([&] {
              ModelShape shared = uniform(1, 1, 1, 1);
              shared.kinds[0].shares_kv = true;
              static_cast<void>(kv_sequence_bytes(shared, KvPlan{}, 1));
            }),
            "gqa: model.kinds is layers that all share another's cache; expected one that stores its own");

  EXPECT_EQ(message_of([] {
              static_cast<void>(kv_slots(LayerKind{.count = 1, .query_heads = 4, .kv_heads = 3}, KvPlan{}, 1));
            }),
            "gqa: kind.kv_heads is 3; expected a divisor of the 4 query heads");
  EXPECT_EQ(message_of([&] {
              ModelShape wrong = model;
              wrong.kind_count = -1;
              wrong.add_layers({.count = 1, .query_heads = 1, .kv_heads = 1, .head_dim = 1});
            }),
            "gqa: kinds of layers is -1; expected 64 at most");
  EXPECT_EQ(message_of([&] { static_cast<void>(kv_sequence_bytes(model, KvPlan{.page_size = -1}, 1)); }),
            "gqa: plan.page_size is -1; expected 1 or more, or 0 for no pages");
  EXPECT_EQ(message_of([&] { static_cast<void>(kv_sequence_bytes(model, KvPlan{.first_tokens = 63}, 1)); }),
            "gqa: plan.first_tokens is 63; expected a multiple of 64, 0 to 2^48");
  EXPECT_EQ(message_of([&] { static_cast<void>(kv_sequence_bytes(model, KvPlan{.newest_tokens = -1}, 1)); }),
            "gqa: plan.newest_tokens is -1; expected 0 to 2^48");
  EXPECT_EQ(message_of([&] { static_cast<void>(kv_sequence_bytes(model, KvPlan{.chunk = 0}, 1)); }),
            "gqa: plan.chunk is 0; expected 1 or more");
  EXPECT_EQ(message_of([&] { static_cast<void>(kv_sequence_bytes(model, in(static_cast<KvFormat>(99)), 1)); }),
            "gqa: format is 99; expected a member of KvFormat");
  EXPECT_EQ(message_of([&] { static_cast<void>(kv_sequence_bytes(model, KvPlan{}, -1)); }),
            "gqa: tokens is -1; expected 0 or more");
  EXPECT_EQ(message_of([&] { static_cast<void>(kv_batch_bytes(model, KvPlan{}, 1, -1)); }),
            "gqa: sequences is -1; expected 0 or more");
  EXPECT_EQ(message_of([&] { static_cast<void>(longest_context(model, KvPlan{}, 0, 1)); }),
            "gqa: sequences is 0; expected 1 or more");
  EXPECT_EQ(message_of([&] { static_cast<void>(most_sequences(model, KvPlan{}, 0, 1)); }),
            "gqa: tokens is 0; expected 1 or more");
  EXPECT_EQ(message_of([&] { static_cast<void>(devices_needed(1, 0)); }), "gqa: memory is 0; expected 1 or more");
  EXPECT_EQ(message_of([&] { static_cast<void>(with_kv_heads(model, 5)); }),
            "gqa: kv_heads is 5; expected a divisor of the 12 query heads");
  EXPECT_EQ(message_of([&] { static_cast<void>(with_kv_heads(model, 0)); }),
            "gqa: kv_heads is 0; expected a divisor of the 12 query heads");
  EXPECT_EQ(message_of([&] { static_cast<void>(kv_sequence_bytes(uniform(1, 1, 1, 80), in(KvFormat::q4_0), 1)); }),
            "gqa: width is 80; expected a multiple of 32, q4_0's block");
  EXPECT_NE(message_of([&] {
              static_cast<void>(kv_format_named("int8"));
            }).find("gqa: format is int8; expected one of f32, bf16,"),
            std::string::npos);
  EXPECT_NE(message_of([] {
              static_cast<void>(preset("llama-5"));
            }).find("gqa: preset is llama-5; expected one of llama-2-7b,"),
            std::string::npos);
  EXPECT_NE(message_of([] {
              ModelShape many;
              for (Index i = 1; i < 100; ++i)
                many.add_layers({.count = 1, .query_heads = 1, .kv_heads = 1, .head_dim = i});
            }).find("gqa: kinds of layers is 65; expected 64 at most"),
            std::string::npos);
}

TEST(BudgetErrors, OverflowIsAnErrorAndNeverAWrongAnswer) {
  const ModelShape huge = uniform(Index{1} << 31, Index{1} << 31, Index{1} << 31, Index{1} << 31);
  EXPECT_NE(message_of([&] { static_cast<void>(kv_bytes_per_token(huge, KvPlan{})); }).find("63 bits"),
            std::string::npos);
  EXPECT_EQ(longest_context(huge, KvPlan{}, 1, kUnlimited), 0);
  const ModelShape model = mixed();
  EXPECT_NE(
      message_of([&] { static_cast<void>(kv_sequence_bytes(model, KvPlan{}, kUnlimited)); }).find("gqa: tokens is "),
      std::string::npos);
  EXPECT_NE(message_of([&] {
              static_cast<void>(kv_batch_bytes(model, KvPlan{}, 1000, kUnlimited));
            }).find("gqa: sequences is "),
            std::string::npos);
  const Index longest = longest_context(model, KvPlan{.page_size = 1 << 30}, 1, kUnlimited - 1);
  EXPECT_GT(longest, Index{1} << 50);
  EXPECT_LE(kv_sequence_bytes(model, KvPlan{.page_size = 1 << 30}, longest), kUnlimited - 1);
  EXPECT_EQ(tensor_parallel_devices(huge, KvPlan{}, kUnlimited, kUnlimited, 0, kUnlimited), std::nullopt);
  EXPECT_EQ(widest_format_that_fits(huge, KvPlan{}, 1, 1, kUnlimited), std::nullopt);
  EXPECT_EQ(most_kv_heads_that_fit(huge, KvPlan{}, 1, 1, kUnlimited), std::nullopt);
}

}  // namespace
}  // namespace gqa::test
