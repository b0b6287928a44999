// SPDX-License-Identifier: Apache-2.0
// The attention of published models: a row for each kind of layer of a family, with its heads, widths and variant, through the public call and
// against the definition. Figures are those of the models' configurations; what a variant's range is shortened to fit a test says so.
#include <gtest/gtest.h>

#include <functional>

#include "gqa/variants.hpp"
#include "support/paths.hpp"
#include "support/problem.hpp"
#include "support/reference_check.hpp"

namespace gqa::test {
namespace {

/// A layer of a model: what it is computed with, and held to, is in `hold`.
struct Layer {
  const char* model;
  Index query_heads;
  Index kv_heads;
  Index head_dim;
  Index value_dim;
  std::function<void(const Layer&)> hold;
  Index queries = 3;
  Index length = 70;
};

template <class V>
void hold_variant(const Layer& layer, const V& variant, std::optional<float> scale = std::nullopt) {
  SCOPED_TRACE(layer.model);
  const Problem p = make_problem(
      {layer.query_heads, layer.kv_heads, layer.head_dim, layer.value_dim, layer.queries, layer.length}, 201);
  for (const ElementType type : {ElementType::bf16, ElementType::f32}) {
    const Types types = all_of(type);
    const Tensor q(p.q, types.q);
    const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
    How how{active_path().path, ElementType::f32};
    how.products = Products::as_stored;
    how.scale = scale;
    EXPECT_TRUE(within_bound(q.const_view(), kv.view(), how, variant, attend(q.const_view(), kv.view(), how, variant)))
        << element_name(type);
  }
}

/// A layer whose variant is plain data.
template <class V>
auto by(const V& variant, std::optional<float> scale = std::nullopt) {
  return [=](const Layer& layer) { hold_variant(layer, variant, scale); };
}
/// ALiBi with the published slopes.
void by_alibi(const Layer& layer) {
  std::vector<float> slopes(static_cast<std::size_t>(layer.query_heads));
  Alibi::fill_slopes(slopes);
  hold_variant(layer, compose(Causal{}, Alibi{slopes}));
}
void by_sinks(const Layer& layer, Index window) {
  std::vector<float> logits(static_cast<std::size_t>(layer.query_heads));
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = 0.1f * static_cast<float>(i) - 2.0f;
  hold_variant(layer, compose(CausalWindow{window}, LearnedSinks{logits}));
}
void by_t5(const Layer& layer, bool encoder) {
  const Index distances = layer.length + layer.queries;
  std::vector<float> table(static_cast<std::size_t>(32 * layer.query_heads));
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = 0.01f * static_cast<float>(i % 101) - 0.5f;
  std::vector<float> bias(static_cast<std::size_t>(layer.query_heads * distances));
  DistanceBias::fill_t5(table, layer.query_heads, encoder, 32, 128, 1 - layer.queries, distances, bias);
  const DistanceBias part{bias, distances, 1 - layer.queries};
  if (encoder) hold_variant(layer, compose(Full{}, part), 1.0f);  // T5 does not scale
  else hold_variant(layer, compose(Causal{}, part), 1.0f);
}

void by_gate(const Layer& layer) {
  const std::vector<float> logits =
      std::vector<float>(static_cast<std::size_t>(layer.queries * layer.query_heads * layer.value_dim), 0.3f);
  const ConstTensorView gate[] = {{logits.data(), layer.queries, layer.query_heads, layer.value_dim}};
  hold_variant(layer, compose(Causal{}, OutputGate{gate}));
}

const std::vector<Layer>& layers() {
  static const std::vector<Layer> table = {
      {"Llama 2 7B", 32, 32, 128, 128, by(Causal{})},
      {"Llama 2 70B", 64, 8, 128, 128, by(Causal{})},
      {"Llama 3.1 8B", 32, 8, 128, 128, by(Causal{})},
      {"Llama 3.2 1B", 32, 8, 64, 64, by(Causal{})},
      {"Llama 3.1 405B", 128, 8, 128, 128, by(Causal{})},
      {"Llama 4 Scout, chunked (8192; 32 here)", 40, 8, 128, 128, by(ChunkedLocal{32})},
      {"Llama 4 Scout, global (floor 8192; 16 here)", 40, 8, 128, 128,
       by(compose(Causal{}, PositionTemperature{16, 0.1f}))},
      {"Mistral 7B v0.1 (window 4096; 40 here)", 32, 8, 128, 128, by(CausalWindow{40})},
      {"Mixtral 8x22B", 48, 8, 128, 128, by(Causal{})},
      {"Qwen2 7B", 28, 4, 128, 128, by(Causal{})},
      {"Qwen2.5 0.5B", 14, 2, 64, 64, by(Causal{})},
      {"Qwen3 32B", 64, 8, 128, 128, by(Causal{})},
      {"Qwen3-Next 80B, full layers: gated", 16, 2, 256, 256, by_gate},
      {"Gemma 2 9B, local (4096; 40 here)", 16, 8, 256, 256, by(compose(CausalWindow{40}, SoftCap{50.0f}), 0.0625f)},
      {"Gemma 2 27B, global", 32, 16, 128, 128, by(compose(Causal{}, SoftCap{50.0f}), 0.083333336f)},
      {"Gemma 3 1B, local (512; 40 here)", 4, 1, 256, 256, by(CausalWindow{40})},
      {"Gemma 3 27B, global", 32, 16, 128, 128, by(Causal{}, 0.07715167f)},
      {"Gemma 3n E4B, local (512; 40 here)", 8, 2, 256, 256, by(CausalWindow{40}, 1.0f)},
      {"Gemma 4 31B, global: keys are values", 32, 4, 512, 512, by(Causal{}, 1.0f)},
      {"Phi-3 mini", 32, 32, 96, 96, by(CausalWindow{2047})},
      {"Falcon 7B", 71, 1, 64, 64, by(Causal{})},
      {"Falcon 40B", 128, 8, 64, 64, by(Causal{})},
      {"Falcon 180B", 232, 8, 64, 64, by(Causal{})},
      {"SmolLM2 135M", 9, 3, 64, 64, by(Causal{})},
      {"SmolLM3 3B", 16, 4, 128, 128, by(Causal{})},
      {"GLM-4 9B", 32, 2, 128, 128, by(Causal{})},
      {"Granite 3 8B", 32, 8, 128, 128, by(Causal{}, 0.0078125f)},
      {"MiniCPM 2B", 36, 36, 64, 64, by(Causal{})},
      {"gpt-oss 20B, window (128; 40 here)", 64, 8, 64, 64, [](const Layer& layer) { by_sinks(layer, 40); }},
      {"gpt-oss 120B, full", 64, 8, 64, 64, [](const Layer& layer) { by_sinks(layer, Index{1} << 40); }},
      {"DeepSeek-V3, latent", 128, 1, 576, 512, by(Causal{}, 0.13523378f)},
      {"Kimi K2, latent", 64, 1, 576, 512, by(Causal{}, 0.1308608f)},
      {"DeepSeek-V3, prefill by heads", 128, 128, 192, 128, by(Causal{}, 0.13523378f), 1, 40},
      {"Grok-2", 64, 8, 128, 128, by(compose(Causal{}, SoftCap{30.0f}))},
      {"Command R7B, window (4096; 40 here)", 32, 8, 128, 128, by(CausalWindow{40})},
      {"BERT base, encoder", 12, 12, 64, 64, by(Full{}), 20, 20},
      {"ModernBERT base, local (64 either way; 8 here)", 12, 12, 64, 64, by(TwoSidedWindow{8, 8}), 40, 40},
      {"Whisper large, cross-attention", 20, 20, 64, 64, by(Full{}), 5, 200},
      {"T5 base, encoder", 12, 12, 64, 64, [](const Layer& layer) { by_t5(layer, true); }, 30, 30},
      {"T5 base, decoder", 12, 12, 64, 64, [](const Layer& layer) { by_t5(layer, false); }},
      {"MPT 7B, ALiBi", 32, 32, 128, 128, by_alibi},
      {"BLOOM 176B, ALiBi", 112, 112, 128, 128, by_alibi, 1, 40},
  };
  return table;
}

class Models : public testing::TestWithParam<std::size_t> {};

TEST_P(Models, IsTheDefinition) {
  const Layer& layer = layers()[GetParam()];
  layer.hold(layer);
}

INSTANTIATE_TEST_SUITE_P(Families, Models, testing::Range<std::size_t>(0, 42), [](const auto& each) {
  std::string name;
  for (const char* c = layers()[each.param].model; *c != '\0'; ++c)
    if (std::isalnum(static_cast<unsigned char>(*c)) != 0) name += *c;
  return name;
});

TEST(Models, EveryRowIsTested) { EXPECT_EQ(layers().size(), 42u); }

}  // namespace
}  // namespace gqa::test
