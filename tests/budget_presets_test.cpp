// SPDX-License-Identifier: Apache-2.0
// The presets: their parameters are those that were published, which one wrong width would change, and their caches are those of
// their descriptions. Times: parameters read, bytes read and operations, against sums over layers and tokens.
#include "gqa/budget_presets.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>

#include "gqa/budget_time.hpp"
#include "support/messages.hpp"

namespace gqa::test {
namespace {

Index total(const char* name) {
  const auto counted = count_parameters(preset(name));
  return counted ? counted->total() : 0;
}

TEST(BudgetPresets, ParametersAreAsPublished) {
  // Source: the parameter counts that keras-team/keras-hub gives for these checkpoints (keras_hub/src/models/*/*_presets.py).
  EXPECT_EQ(total("llama-2-7b"), 6'738'415'616);
  EXPECT_EQ(total("llama-3-8b"), 8'030'261'248);
  EXPECT_EQ(total("llama-3.1-8b"), 8'030'261'248);
  EXPECT_EQ(total("mistral-7b-v0.1"), 7'241'732'096);
  EXPECT_EQ(total("mistral-7b-v0.3"), 7'248'023'552);
  EXPECT_EQ(total("mixtral-8x7b"), 46'702'792'704);
  EXPECT_EQ(total("qwen2.5-0.5b"), 494'032'768);
  EXPECT_EQ(total("qwen2.5-1.5b"), 1'543'714'304);
  EXPECT_EQ(total("qwen2.5-3b"), 3'085'938'688);
  EXPECT_EQ(total("qwen2.5-7b"), 7'615'616'512);
  EXPECT_EQ(total("qwen2.5-32b"), 32'763'876'352);
  EXPECT_EQ(total("qwen2.5-72b"), 72'706'203'648);
  EXPECT_EQ(total("qwen3-0.6b"), 596'049'920);
  EXPECT_EQ(total("qwen3-1.7b"), 1'720'574'976);
  EXPECT_EQ(total("qwen3-4b"), 4'022'468'096);
  EXPECT_EQ(total("qwen3-8b"), 8'190'735'360);
  EXPECT_EQ(total("qwen3-14b"), 14'768'307'200);
  EXPECT_EQ(total("qwen3-32b"), 32'762'123'264);
  EXPECT_EQ(total("qwen3-30b-a3b"), 30'532'122'624);
  EXPECT_EQ(total("qwen3-235b-a22b"), 235'093'634'560);
  EXPECT_EQ(total("gemma-2-2b"), 2'614'341'888);
  EXPECT_EQ(total("gemma-2-9b"), 9'241'705'984);
  EXPECT_EQ(total("gemma-2-27b"), 27'227'128'320);
  EXPECT_EQ(total("gemma-3-270m"), 268'098'176);
  EXPECT_EQ(total("gemma-3-1b"), 999'885'952);
  EXPECT_EQ(total("gemma-3-4b"), 3'880'099'328);
  EXPECT_EQ(total("gemma-3-12b"), 11'765'788'416);
  EXPECT_EQ(total("gemma-3-27b"), 27'009'002'240);
  EXPECT_EQ(total("phi-3-mini-4k"), 3'821'079'552);
  EXPECT_EQ(total("phi-3-mini-128k"), 3'821'079'552);
  EXPECT_EQ(total("gpt-oss-20b"), 20'914'757'184);
  EXPECT_EQ(total("gpt-oss-120b"), 116'829'156'672);
}

TEST(BudgetPresets, ParametersAreAsTheNameSays) {
  const auto billions = [](const char* name) { return static_cast<double>(total(name)) / 1e9; };
  EXPECT_NEAR(billions("llama-2-13b"), 13, 0.5);
  EXPECT_NEAR(billions("llama-2-70b"), 70, 1.5);
  EXPECT_NEAR(billions("llama-3-70b"), 70, 1);
  EXPECT_NEAR(billions("llama-3.1-70b"), 70, 1);
  EXPECT_NEAR(billions("llama-3.3-70b"), 70, 1);
  EXPECT_NEAR(billions("llama-3.1-405b"), 405, 1);
  EXPECT_NEAR(billions("llama-3.2-1b"), 1.23, 0.01);  // as Meta's model card has it
  EXPECT_NEAR(billions("llama-3.2-3b"), 3.21, 0.01);
  EXPECT_NEAR(billions("mixtral-8x22b"), 141, 1);
  EXPECT_NEAR(billions("qwen2.5-14b"), 14.7, 0.1);
  EXPECT_NEAR(billions("falcon-7b"), 7, 0.3);
  EXPECT_NEAR(billions("falcon-40b"), 40, 1.5);
  EXPECT_NEAR(billions("falcon-180b"), 180, 2);
  EXPECT_NEAR(billions("phi-3-small-8k"), 7.4, 0.05);
  EXPECT_NEAR(billions("phi-3-medium-4k"), 14, 0.1);
  EXPECT_NEAR(billions("phi-4"), 14.7, 0.1);
  EXPECT_NEAR(billions("phi-4-mini"), 3.8, 0.05);
  EXPECT_NEAR(billions("smollm2-135m"), 0.135, 0.001);
  EXPECT_NEAR(billions("smollm2-360m"), 0.362, 0.002);
  EXPECT_NEAR(billions("smollm2-1.7b"), 1.71, 0.01);
  EXPECT_NEAR(billions("deepseek-v2-lite"), 15.7, 0.1);
  EXPECT_NEAR(billions("deepseek-v2"), 236, 0.5);
  EXPECT_NEAR(billions("deepseek-v3"), 671, 0.5);
  EXPECT_NEAR(billions("glm-4-9b"), 9.4, 0.05);
}

TEST(BudgetPresets, ActiveParametersAreAsPublished) {
  const auto billions = [](const char* name) {
    return static_cast<double>(count_parameters(preset(name))->active()) / 1e9;
  };
  EXPECT_NEAR(billions("mixtral-8x7b"), 12.9, 0.05);
  EXPECT_NEAR(billions("mixtral-8x22b"), 39, 0.5);
  EXPECT_NEAR(billions("qwen3-30b-a3b"), 3.3, 0.1);
  EXPECT_NEAR(billions("qwen3-235b-a22b"), 22, 0.5);
  EXPECT_NEAR(billions("deepseek-v2"), 21, 0.5);
  EXPECT_NEAR(billions("deepseek-v3"), 37, 0.6);
  EXPECT_EQ(count_parameters(preset("llama-3-8b"))->active(), total("llama-3-8b"));
}

TEST(BudgetPresets, EachIsWholeAndNamedOnce) {
  std::set<std::string_view> names;
  for (Index i = 0; i < preset_count; ++i) {
    const std::string_view name = preset_name(i);
    SCOPED_TRACE(name);
    EXPECT_TRUE(names.insert(name).second);
    const ModelShape model = preset(name);
    EXPECT_GT(kv_bytes_per_token(model, KvPlan{}), 0);
    Index feed_forward = 0;
    for (Index k = 0; k < model.feed_forward_count; ++k) feed_forward += model.feed_forward[k].count;
    EXPECT_EQ(feed_forward, layer_count(model));
    EXPECT_GT(prefill_flops(model, 100).attention, 0);
    const bool uncounted = name.starts_with("gemma-3n") || name.starts_with("gemma-4");
    EXPECT_EQ(count_parameters(model).has_value(), !uncounted);
  }
  EXPECT_THROW(static_cast<void>(preset_name(preset_count)), ArgumentError);
  EXPECT_THROW(static_cast<void>(preset_name(-1)), ArgumentError);
}

/// Layers of one sort in a model: with a window or without, storing or reading another's.
Index layers(const char* name, Index window, bool shares) {
  const ModelShape model = preset(name);
  Index count = 0;
  for (Index i = 0; i < model.kind_count; ++i) {
    const LayerKind& kind = model.kinds[i];
    if (kind.window == window && kind.shares_kv == shares) count += kind.count;
  }
  return count;
}

TEST(BudgetPresets, WindowsAndSharedCachesAreWhereTheModelsHaveThem) {
  EXPECT_EQ(layers("gemma-2-9b", 4096, false), 21);
  EXPECT_EQ(layers("gemma-2-9b", 0, false), 21);
  EXPECT_EQ(layers("gemma-3-1b", 512, false), 22);  // 26 layers, every sixth full
  EXPECT_EQ(layers("gemma-3-1b", 0, false), 4);
  EXPECT_EQ(layers("gemma-3-27b", 1024, false), 52);
  EXPECT_EQ(layers("gemma-3-27b", 0, false), 10);
  EXPECT_EQ(layers("gpt-oss-120b", 128, false), 18);
  EXPECT_EQ(layers("gpt-oss-120b", 0, false), 18);
  EXPECT_EQ(layers("gemma-3n-e4b", 512, false), 16);
  EXPECT_EQ(layers("gemma-3n-e4b", 0, false), 4);
  EXPECT_EQ(layers("gemma-3n-e4b", 512, true), 12);
  EXPECT_EQ(layers("gemma-3n-e4b", 0, true), 3);
  EXPECT_EQ(layers("gemma-4-e2b", 512, false), 12);
  EXPECT_EQ(layers("gemma-4-e2b", 0, false), 3);
  EXPECT_EQ(layers("gemma-4-e2b", 0, true) + layers("gemma-4-e2b", 512, true), 20);
  EXPECT_EQ(layers("gemma-4-31b", 0, false), 10);
  // Full layers of Gemma 4 have heads of 512, and here 4 of them: 10 x 4 x 512 x 2 x 2 and 50 x 16 x 256 x 2 x 2 bytes.
  EXPECT_EQ(kv_bytes_per_token(preset("gemma-4-31b"), KvPlan{}), 10 * 4 * 512 * 4 + 50 * 16 * 256 * 4);
  // What shares stores nothing.
  EXPECT_EQ(kv_bytes_per_token(preset("gemma-3n-e4b"), KvPlan{}), 20 * 2 * 256 * 2 * 2);
}

// --- times -------------------------------------------------------------------------------------------------------------

TEST(BudgetTime, DecodeReadsWhatIsVisible) {
  const ModelShape model = preset("gemma-3n-e4b");
  const Index row = 2 * 256 * 2 * 2;  // layers that share a cache read it as well
  EXPECT_EQ(kv_bytes_read(model, KvPlan{}, 100), 35 * row * 100);
  EXPECT_EQ(kv_bytes_read(model, KvPlan{}, 10'000), row * (28 * 512 + 7 * 10'000));
  EXPECT_EQ(kv_bytes_read(preset("deepseek-v3"), KvPlan{}, 1000), 61 * 576 * 2 * 1000);
  EXPECT_EQ(kv_bytes_read(preset("llama-2-70b"), KvPlan{.page_size = 64}, 65), 65 * 327680);  // not the rest of a page
  // The first 64 of 1000 tokens and those from 896 on are read in 16 bits, the others in 4.5.
  constexpr KvPlan mixed{
      .k_format = KvFormat::q4_0, .v_format = KvFormat::q4_0, .first_tokens = 64, .newest_tokens = 64};
  EXPECT_EQ(kv_bytes_read(preset("llama-2-70b"), mixed, 1000), 168 * 327680 + 832 * 92160);
  EXPECT_EQ(kv_bytes_read(preset("llama-2-70b"), mixed, 50), 50 * 327680);
}

TEST(BudgetTime, AMixtureReadsTheExpertsThatAreChosen) {
  const ModelShape dense = preset("llama-3-8b");
  EXPECT_EQ(*parameters_read(dense, 1), total("llama-3-8b") - 128256 * 4096);  // the embedding is looked up
  EXPECT_EQ(*parameters_read(dense, 7), *parameters_read(dense, 1));
  EXPECT_EQ(*parameters_read(preset("smollm2-135m"), 1), total("smollm2-135m"));  // it is the output layer too
  const ModelShape mixture = preset("mixtral-8x7b");
  const Index all = total("mixtral-8x7b") - 32000 * 4096, expert = Index{32} * 3 * 4096 * 14336;
  EXPECT_EQ(*parameters_read(mixture, 1), all - 6 * expert);
  EXPECT_EQ(*parameters_read(mixture, 3), all - 2 * expert);
  EXPECT_EQ(*parameters_read(mixture, 4), all);
  EXPECT_EQ(*parameters_read(mixture, 1000), all);
  EXPECT_FALSE(parameters_read(preset("gemma-4-e2b"), 1).has_value());
}

TEST(BudgetTime, PrefillComputesTheVisiblePairs) {
  for (const Index window : {0, 1, 7, 50, 100}) {
    ModelShape model;
    model.add_layers({.count = 3, .query_heads = 4, .kv_heads = 2, .head_dim = 8, .value_dim = 6, .window = window});
    for (const Index tokens : {0, 1, 6, 7, 8, 50, 99}) {
      Index pairs = 0;
      for (Index i = 0; i < tokens; ++i) pairs += window == 0 ? i + 1 : std::min(i + 1, window);
      EXPECT_EQ(prefill_flops(model, tokens).attention, static_cast<double>(2 * 3 * 4 * (8 + 6) * pairs));
      EXPECT_EQ(prefill_flops(model, tokens).linear, 0);  // widths are not known
    }
  }
  const ModelShape llama = preset("llama-3-8b");
  const double matrices = 32.0 * (4096.0 * (4096 + 2 * 1024 + 4096) + 3.0 * 4096 * 14336);
  EXPECT_EQ(prefill_flops(llama, 1000).linear, 2 * 1000 * matrices + 2 * 128256.0 * 4096);
  EXPECT_EQ(prefill_flops(llama, 0).total(), 0);
  const double expanded = 2.0 * 61 * 128 * (192 + 128) * 1000 * 1001 / 2;
  EXPECT_EQ(prefill_flops(preset("deepseek-v3"), 1000).attention, expanded);
}

TEST(BudgetTime, SecondsAreAmountsOverRates) {
  EXPECT_EQ(seconds_to_read(1'000'000, 5e5), 2.0);
  EXPECT_EQ(seconds_to_compute(3e12, 1e12), 3.0);
  for (const double rate : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    EXPECT_THROW(static_cast<void>(seconds_to_read(1, rate)), ArgumentError);
    EXPECT_THROW(static_cast<void>(seconds_to_compute(1, rate)), ArgumentError);
  }
}

TEST(BudgetTime, WrongShapesAreNamed) {
  const auto complaint = [](auto change) {
    ModelShape model = preset("mixtral-8x7b");
    change(model);
    return message_of([&] { static_cast<void>(count_parameters(model)); });
  };
  EXPECT_EQ(complaint([](ModelShape& m) { m.feed_forward[0].active_experts = 9; }),
            "gqa: model.feed_forward[0].active_experts is 9; expected 0 to the 8 experts");
  EXPECT_EQ(complaint([](ModelShape& m) { m.feed_forward[0].matrices = 4; }),
            "gqa: model.feed_forward[0].matrices is 4; expected 2 or 3");
  EXPECT_EQ(complaint([](ModelShape& m) { m.feed_forward[0].count = 0; }),
            "gqa: model.feed_forward[0].count is 0; expected 1 to 2^31");
  EXPECT_EQ(complaint([](ModelShape& m) { m.feed_forward_count = 65; }),
            "gqa: model.feed_forward_count is 65; expected 0 to 64");
  EXPECT_EQ(complaint([](ModelShape& m) { m.kind_count = -1; }), "gqa: model.kind_count is -1; expected 1 to 64");
  EXPECT_EQ(complaint([](ModelShape& m) { m.parameters.hidden_size = -1; }),
            "gqa: model.parameters.hidden_size is -1; expected 0 to 2^31");
  EXPECT_EQ(complaint([](ModelShape& m) { m.parameters.other = -1; }),
            "gqa: model.parameters.other is -1; expected 0 or more");
  EXPECT_EQ(complaint([](ModelShape& m) { m.latent.nope_dim = kUnlimited; }),
            "gqa: model.latent.nope_dim is " + std::to_string(kUnlimited) + "; expected 0 to 2^31");
  EXPECT_NE(complaint([](ModelShape& m) {
              m.parameters.hidden_size = m.feed_forward[0].experts = Index{1} << 31;
              m.feed_forward[0].expert_intermediate = Index{1} << 31;
            }).find("63 bits"),
            std::string::npos);
}

}  // namespace
}  // namespace gqa::test
