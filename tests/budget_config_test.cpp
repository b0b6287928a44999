// SPDX-License-Identifier: Apache-2.0
// Reading a Hugging Face config.json, examples/kv_budget: configurations of published models give their presets, each model_type's
// unwritten rules are followed, and what is unknown, missing or contradictory is named.
#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "../examples/kv_budget/hf_config.hpp"
#include "gqa/budget_presets.hpp"

namespace kv_budget {
namespace {

NamedModel read(const std::string& text) { return model_from_config(json::parse(text), "config.json"); }
NamedModel read_json(const json& config) { return model_from_config(config, "config.json"); }

std::string complaint(const json& config) {
  try {
    read_json(config);
  } catch (const ModelFileError& error) {
    return error.what();
  }
  return "nothing thrown";
}

/// The same layers, in any order, the same feed-forward layers, and as many parameters.
testing::AssertionResult same(const gqa::ModelShape& a, const gqa::ModelShape& b) {
  if (a.kind_count != b.kind_count)
    return testing::AssertionFailure() << a.kind_count << " kinds, not " << b.kind_count;
  for (Index i = 0; i < a.kind_count; ++i) {
    const gqa::LayerKind& kind = a.kinds[i];
    Index found = 0;
    for (Index j = 0; j < b.kind_count; ++j)
      if (kind.same_kind(b.kinds[j])) found = b.kinds[j].count;
    if (found != kind.count)
      return testing::AssertionFailure() << "kind " << i << " has " << kind.count << " layers, not " << found;
  }
  const auto p = gqa::count_parameters(a), q = gqa::count_parameters(b);
  if (p.has_value() != q.has_value()) return testing::AssertionFailure() << "parameters known on one side";
  if (p && (p->total() != q->total() || p->active() != q->active()))
    return testing::AssertionFailure() << p->total() << " parameters, " << p->active() << " active, not " << q->total()
                                       << ", " << q->active();
  if (b.max_context > 0 && a.max_context != b.max_context)
    return testing::AssertionFailure() << "context " << a.max_context << ", not " << b.max_context;
  return testing::AssertionSuccess();
}

// --- published configurations ------------------------------------------------------------------------------------------

TEST(BudgetConfig, LlamaIsItsPreset) {
  EXPECT_TRUE(
      same(read(R"({"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": false})")
               .shape,
           gqa::preset("llama-3.1-8b")));
  EXPECT_TRUE(
      same(read(R"({"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
    "num_hidden_layers": 16, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "head_dim": 64,
    "tie_word_embeddings": true})")
               .shape,
           gqa::preset("llama-3.2-1b")));
}

TEST(BudgetConfig, WithoutKvHeadsLlamaIsMultiHead) {
  EXPECT_TRUE(
      same(read(R"({"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
    "num_hidden_layers": 32, "vocab_size": 32000, "max_position_embeddings": 4096})")
               .shape,
           gqa::preset("llama-2-7b")));
}

TEST(BudgetConfig, MistralHasAWindowUnlessItIsNull) {
  json config = json::parse(R"({"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 32000,
    "max_position_embeddings": 32768, "sliding_window": 4096})");
  EXPECT_TRUE(same(read_json(config).shape, gqa::preset("mistral-7b-v0.1")));
  config["sliding_window"] = nullptr;
  EXPECT_TRUE(same(read_json(config).shape, gqa::preset("mistral-7b-v0.2")));
  config.erase("sliding_window");  // transformers' default is 4096, and that is said
  const NamedModel model = read_json(config);
  EXPECT_TRUE(same(model.shape, gqa::preset("mistral-7b-v0.1")));
  ASSERT_EQ(model.notes.size(), 1u);
  EXPECT_EQ(model.notes[0], "sliding_window is missing: 4096, as mistral has it by default");
}

TEST(BudgetConfig, MixturesAreTheirPresets) {
  EXPECT_TRUE(
      same(read(R"({"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000,
    "max_position_embeddings": 32768, "sliding_window": null})")
               .shape,
           gqa::preset("mixtral-8x7b")));
  EXPECT_TRUE(same(
      read(R"({"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_attention_heads": 32, "num_hidden_layers": 48, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
    "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [], "vocab_size": 151936,
    "max_position_embeddings": 40960, "use_sliding_window": false, "sliding_window": null, "max_window_layers": 48,
    "tie_word_embeddings": false})")
          .shape,
      gqa::preset("qwen3-30b-a3b")));
  EXPECT_TRUE(
      same(read(R"({"model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_attention_heads": 64,
    "num_hidden_layers": 24, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 32, "num_experts_per_tok": 4,
    "experts_per_token": 4, "vocab_size": 201088, "max_position_embeddings": 131072, "sliding_window": 128, "attention_bias": true,
    "tie_word_embeddings": false})")
               .shape,
           gqa::preset("gpt-oss-20b")));
}

TEST(BudgetConfig, QwenUsesItsWindowOnlyIfItSaysSo) {
  json config =
      json::parse(R"({"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 131072,
    "sliding_window": 131072, "use_sliding_window": false, "max_window_layers": 20, "tie_word_embeddings": false})");
  EXPECT_TRUE(same(read_json(config).shape, gqa::preset("qwen2.5-7b")));
  config["use_sliding_window"] = true;
  const gqa::ModelShape shape = read_json(config).shape;
  ASSERT_EQ(shape.kind_count, 2);
  EXPECT_EQ(shape.kinds[0].count, 20);
  EXPECT_EQ(shape.kinds[0].window, 0);
  EXPECT_EQ(shape.kinds[1].count, 8);
  EXPECT_EQ(shape.kinds[1].window, 131072);
}

TEST(BudgetConfig, GemmaAlternatesAndNestsItsText) {
  EXPECT_TRUE(
      same(read(R"({"model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, "num_attention_heads": 16,
    "num_hidden_layers": 42, "num_key_value_heads": 8, "head_dim": 256, "sliding_window": 4096, "vocab_size": 256000,
    "max_position_embeddings": 8192})")
               .shape,
           gqa::preset("gemma-2-9b")));
  EXPECT_TRUE(same(
      read(R"({"model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "num_attention_heads": 4,
    "num_hidden_layers": 26, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512, "sliding_window_pattern": 6,
    "vocab_size": 262144, "max_position_embeddings": 32768})")
          .shape,
      gqa::preset("gemma-3-1b")));
  // The 4B model's text_config leaves out its heads: 8, 4 and 256 are gemma3_text's defaults.
  const NamedModel nested = read(R"({"model_type": "gemma3", "vision_config": {"hidden_size": 1152}, "text_config": {
    "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024,
    "vocab_size": 262144}})");
  gqa::ModelShape expected = gqa::preset("gemma-3-4b");
  expected.max_context = 0;
  EXPECT_TRUE(same(nested.shape, expected));
  ASSERT_EQ(nested.notes.size(), 1u);
  EXPECT_EQ(nested.notes[0], "text_config.num_key_value_heads is missing: 4, as gemma3_text has it by default");
}

TEST(BudgetConfig, LayersThatShareCachesAreFound) {
  EXPECT_TRUE(same(read(R"({"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text", "hidden_size": 2048,
    "num_attention_heads": 8, "num_hidden_layers": 35, "num_key_value_heads": 2, "head_dim": 256, "sliding_window": 512,
    "num_kv_shared_layers": 15, "max_position_embeddings": 32768}})")
                       .shape,
                   gqa::preset("gemma-3n-e4b")));
  json small = json::parse(R"({"model_type": "gemma4", "text_config": {"hidden_size": 1536, "num_attention_heads": 8,
    "num_hidden_layers": 35, "num_key_value_heads": 1, "head_dim": 256, "global_head_dim": 512, "num_global_key_value_heads": null,
    "attention_k_eq_v": false, "sliding_window": 512, "num_kv_shared_layers": 20, "max_position_embeddings": 131072}})");
  json& types = small["text_config"]["layer_types"];
  for (int i = 0; i < 35; ++i) types.push_back((i + 1) % 5 == 0 ? "full_attention" : "sliding_attention");
  EXPECT_TRUE(same(read_json(small).shape, gqa::preset("gemma-4-e2b")));
  EXPECT_TRUE(same(
      read(R"({"model_type": "gemma4_text", "hidden_size": 5376, "num_attention_heads": 32, "num_hidden_layers": 60,
    "num_key_value_heads": 16, "head_dim": 256, "global_head_dim": 512, "num_global_key_value_heads": 4, "attention_k_eq_v": true,
    "sliding_window": 1024})")
          .shape,
      gqa::preset("gemma-4-31b")));
}

TEST(BudgetConfig, FalconOldAndNewAndAsFirstPublished) {
  const char* const fields =
      R"("hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32, "vocab_size": 65024,
    "multi_query": true, "bias": false)";
  EXPECT_TRUE(same(read(R"({"model_type": "falcon", "new_decoder_architecture": false, "num_kv_heads": 71, )" +
                        std::string(fields) + "}")
                       .shape,
                   [] {
                     auto p = gqa::preset("falcon-7b");
                     p.max_context = 0;
                     return p;
                   }()));
  EXPECT_EQ(
      read(R"({"model_type": "RefinedWebModel", "hidden_size": 4544, "n_head": 71, "n_layer": 32, "vocab_size": 65024,
    "multi_query": true})")
          .shape.kinds[0]
          .kv_heads,
      1);
  EXPECT_EQ(read(R"({"model_type": "falcon", "hidden_size": 4544, "n_head": 71, "n_layer": 32, "multi_query": false})")
                .shape.kinds[0]
                .kv_heads,
            71);
  gqa::ModelShape forty = gqa::preset("falcon-40b");
  forty.max_context = 0;
  EXPECT_TRUE(
      same(read(R"({"model_type": "falcon", "hidden_size": 8192, "num_attention_heads": 128, "num_hidden_layers": 60,
    "num_kv_heads": 8, "new_decoder_architecture": true, "vocab_size": 65024})")
               .shape,
           forty));
  EXPECT_TRUE(
      same(read(R"({"model_type": "RefinedWeb", "hidden_size": 8192, "n_head": 128, "n_layer": 60, "n_head_kv": 8,
    "vocab_size": 65024})")
               .shape,
           forty));
}

TEST(BudgetConfig, PhiGlmDeepSeekAndGpt2) {
  EXPECT_TRUE(same(
      read(R"({"model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "sliding_window": 2047, "vocab_size": 32064,
    "tie_word_embeddings": false, "attention_bias": false})")
          .shape,
      gqa::preset("phi-3-mini-4k")));
  EXPECT_TRUE(same(read(R"({"model_type": "phi3small", "hidden_size": 4096, "ff_intermediate_size": 14336,
    "max_position_embeddings": 8192, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "vocab_size": 100352})")
                       .shape,
                   gqa::preset("phi-3-small-8k")));
  EXPECT_TRUE(
      same(read(R"({"model_type": "glm", "hidden_size": 4096, "intermediate_size": 13696, "num_attention_heads": 32,
    "num_hidden_layers": 40, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 151552, "attention_bias": true,
    "max_position_embeddings": 131072})")
               .shape,
           gqa::preset("glm-4-9b")));
  EXPECT_TRUE(
      same(read(R"({"model_type": "chatglm", "hidden_size": 4096, "ffn_hidden_size": 13696, "num_attention_heads": 32,
    "num_layers": 40, "multi_query_attention": true, "multi_query_group_num": 2, "kv_channels": 128, "padded_vocab_size": 151552,
    "add_qkv_bias": true, "add_bias_linear": false, "seq_length": 131072})")
               .shape,
           gqa::preset("glm-4-9b")));
  EXPECT_TRUE(same(read(R"({"model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_attention_heads": 128, "num_hidden_layers": 61, "num_key_value_heads": 128,
    "first_k_dense_replace": 3, "moe_layer_freq": 1, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "vocab_size": 129280, "max_position_embeddings": 163840})")
                       .shape,
                   gqa::preset("deepseek-v3")));
  const gqa::ModelShape gpt2 =
      read(R"({"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
    "vocab_size": 50257})")
          .shape;
  EXPECT_EQ(gqa::count_parameters(gpt2)->total(), 124'439'808);  // as keras-hub has it
  EXPECT_EQ(gqa::kv_bytes_per_token(gpt2, gqa::KvPlan{}), 12 * 2 * 768 * 2);
}

TEST(BudgetConfig, LayerTypesDecide) {
  json config =
      json::parse(R"({"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_hidden_layers": 3, "vocab_size": 10, "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]})");
  const gqa::ModelShape shape = read_json(config).shape;
  ASSERT_EQ(shape.kind_count, 2);
  EXPECT_EQ(shape.kinds[0].count, 2);
  EXPECT_EQ(shape.kinds[0].window, 16);
  config.erase("layer_types");
  const NamedModel plain = read_json(config);  // and without them llama has no windows, which is said
  EXPECT_EQ(plain.shape.kinds[0].window, 0);
  ASSERT_EQ(plain.notes.size(), 1u);
  EXPECT_EQ(plain.notes[0], "sliding_window is 16, which llama does not use");
}

// --- complaints --------------------------------------------------------------------------------------------------------

json small_llama() {
  return json::parse(R"({"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_hidden_layers": 3, "num_key_value_heads": 2, "vocab_size": 10})");
}

TEST(BudgetConfigErrors, NameTheFieldItsValueAndWhatWasExpected) {
  const auto with = [](const char* field, const json& value) {
    json config = small_llama();
    config[field] = value;
    return complaint(config);
  };
  const auto without = [](const char* field) {
    json config = small_llama();
    config.erase(field);
    return complaint(config);
  };
  EXPECT_EQ(read_json(small_llama()).shape.kinds[0].kv_heads, 2);
  EXPECT_EQ(with("num_key_value_heads", 3),
            "config.json: num_key_value_heads is 3; expected a divisor of the 4 query heads");
  EXPECT_EQ(with("num_key_value_heads", 8),
            "config.json: num_key_value_heads is 8; expected a divisor of the 4 query heads");
  EXPECT_EQ(with("num_key_value_heads", 0),
            "config.json: num_key_value_heads is 0; expected a whole number from 1 to 1073741824");
  EXPECT_EQ(with("num_hidden_layers", "three"),
            "config.json: num_hidden_layers is \"three\"; expected a whole number from 1 to 1073741824");
  EXPECT_EQ(with("num_hidden_layers", 2.5),
            "config.json: num_hidden_layers is 2.5; expected a whole number from 1 to 1073741824");
  EXPECT_EQ(with("num_hidden_layers", 18446744073709551615u),
            "config.json: num_hidden_layers is 18446744073709551615; expected a whole number from 1 to 1073741824");
  EXPECT_EQ(with("num_hidden_layers", 200000), "config.json: num_hidden_layers is 200000; expected 100000 at most");
  EXPECT_EQ(with("hidden_size", -64), "config.json: hidden_size is -64; expected a whole number from 1 to 1073741824");
  EXPECT_EQ(with("hidden_size", 66),
            "config.json: hidden_size is 66; expected a multiple of the 4 query heads, or a head_dim");
  EXPECT_EQ(with("n_layer", 4), "config.json: n_layer is 4; expected the same as num_hidden_layers, 3");
  EXPECT_EQ(with("tie_word_embeddings", 1), "config.json: tie_word_embeddings is 1; expected true or false");
  EXPECT_EQ(without("num_attention_heads"),
            "config.json: num_attention_heads is missing; expected a whole number of 1 or more");
  EXPECT_EQ(without("intermediate_size"),
            "config.json: intermediate_size is missing; expected a whole number of 1 or more");
  EXPECT_EQ(without("vocab_size"), "config.json: vocab_size is missing; expected a whole number of 1 or more");
  EXPECT_NE(without("model_type").find("config.json: model_type is missing; expected one of llama, mistral,"),
            std::string::npos);
  EXPECT_NE(with("model_type", "mamba").find("config.json: model_type is \"mamba\"; expected one of llama,"),
            std::string::npos);
  EXPECT_EQ(with("layer_types", json::array({"full_attention"})),
            "config.json: layer_types is a list of 1; expected a list of the types of the 3 layers");
  EXPECT_EQ(
      with("layer_types", json::array({"full_attention", "linear_attention", "full_attention"})),
      "config.json: layer_types[1] is \"linear_attention\"; expected \"full_attention\" or \"sliding_attention\"");
  EXPECT_EQ(with("layer_types", json::array({"full_attention", "full_attention", "sliding_attention"})),
            "config.json: layer_types[2] is \"sliding_attention\"; expected \"full_attention\", because sliding_window "
            "is missing or null");
  EXPECT_EQ(with("text_config", 3), "config.json: text_config is 3; expected an object");
  EXPECT_EQ(complaint(json::array()), "config.json: is no JSON object; expected a model's config.json");
}

TEST(BudgetConfigErrors, ContradictionsOfOneModelTypeAreNamed) {
  json qwen = small_llama();
  qwen["model_type"] = "qwen2";
  qwen["sliding_window"] = 16;
  qwen["layer_types"] = {"sliding_attention", "full_attention", "full_attention"};
  EXPECT_EQ(complaint(qwen),
            "config.json: layer_types[0] is \"sliding_attention\"; expected \"full_attention\", because sliding_window "
            "is off or missing");
  json gemma = json::parse(
      R"({"model_type": "gemma3n_text", "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2,
    "num_hidden_layers": 10, "num_kv_shared_layers": 10})");
  EXPECT_EQ(complaint(gemma), "config.json: num_kv_shared_layers is 10; expected 0 to 9, fewer than there are layers");
  gemma["num_kv_shared_layers"] = 7;  // leaves three with windows and none without
  EXPECT_EQ(complaint(gemma),
            "config.json: num_kv_shared_layers is 7; expected fewer: no layer without a window is left that stores "
            "keys and values");
  json mixture = small_llama();
  mixture["model_type"] = "mixtral";
  mixture["num_local_experts"] = 4;
  mixture["num_experts_per_tok"] = 5;
  EXPECT_EQ(complaint(mixture), "config.json: num_experts_per_tok is 5; expected at most the 4 experts of a layer");
  json deepseek =
      json::parse(R"({"model_type": "deepseek_v3", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
    "num_key_value_heads": 2, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16})");
  EXPECT_EQ(complaint(deepseek), "config.json: kv_lora_rank is missing; expected a whole number of 1 or more");
  deepseek["kv_lora_rank"] = 32;
  EXPECT_EQ(complaint(deepseek),
            "config.json: num_key_value_heads is 2; expected the 4 query heads: a latent is expanded to all of them");
}

TEST(BudgetConfigErrors, FilesThatAreNoneAreNamed) {
  const std::string path = testing::TempDir() + "gqa_budget_config.json";
  std::ofstream(path) << "{\"model_type\": ";
  try {
    read_config(path);
    ADD_FAILURE();
  } catch (const ModelFileError& error) {
    EXPECT_NE(std::string(error.what()).find(path + ": is no JSON: "), std::string::npos);
  }
  EXPECT_THROW(read_config(testing::TempDir() + "gqa_no_such_file.json"), ModelFileError);
  std::ofstream(path) << small_llama();
  EXPECT_EQ(read_config(path).shape.kinds[0].count, 3);
}

}  // namespace
}  // namespace kv_budget
