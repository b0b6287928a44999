// SPDX-License-Identifier: Apache-2.0
// The forward pass of examples/llama on small random models of each architecture: against the definition in double precision, the same bits
// for every chunking, cache and number of threads, and files and contexts that are refused.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "../examples/llama/change_model.hpp"
#include "../examples/llama/check_exact.hpp"
#include "../examples/llama/memory.hpp"
#include "../examples/llama/perplexity.hpp"
#include "support/tiny_llama.hpp"

namespace llama {
namespace {

using gqa::test::tiny_llama;
using gqa::test::TinyLlama;
using gqa::test::TinyReference;
using gqa::test::write_llama;

/// Removed when the test ends; what is mapped stays readable.
struct File {
  std::string path;
  explicit File(const TinyLlama& model, gqa::ElementType type = gqa::ElementType::f32)
      : path(write_llama(model, model.config.at("architecture"), type)) {}
  ~File() { std::remove(path.c_str()); }
};

std::vector<Token> some_tokens(std::size_t count) {
  std::vector<Token> made;
  for (std::size_t i = 0; i < count; ++i) made.push_back(static_cast<Token>((i * i * 7 + i * 3 + 5) % 37));
  return made;
}

/// A bound for the error of f32 logits. A sum of n products in f32 is the exact sum for numbers of which each is off by at most n roundings,
/// so the logits are the exact ones of weights that are off by so much, but for what goes element by element, which is put to the same weights
/// as 16 roundings more. What that does to the logits is found by changing the weights so, with random signs: the largest of 8 draws, and, as
/// draws need not meet the worst signs, 8 times that.
double bound(const TinyLlama& model, const std::vector<Token>& tokens, const Eigen::MatrixXd& expected) {
  double largest = 0;
  std::mt19937 bits(11);
  for (int draw = 0; draw < 8; ++draw) {
    // In f32 the changes themselves would be rounded: 1024 times as large, which stays far within where logits are linear in them.
    TinyLlama changed = model;
    for (auto& [name, tensor] : changed.tensors) {
      const float roundings = static_cast<float>(tensor.cols() + 16) * 0x1p-24f * 1024;
      for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] *= bits() % 2 == 0 ? 1 + roundings : 1 - roundings;
    }
    largest = std::max(largest, (TinyReference(changed).logits(tokens) - expected).cwiseAbs().maxCoeff() / 1024);
  }
  return 8 * largest;
}

class LlamaModel : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Architectures, LlamaModel, testing::Values("llama", "llama3", "qwen2", "gemma3"),
                         [](const auto& of) { return of.param; });

TEST_P(LlamaModel, LogitsAreThoseOfTheDefinition) {
  const TinyLlama tiny = tiny_llama(GetParam());
  const File file(tiny);
  const Weights weights = read_weights(file.path);
  const std::vector<Token> tokens = some_tokens(40);
  const Llama model(weights, {}, 40);
  ModelCache cache(weights.config, {.capacity = 40});
  const Columns logits = model.forward(tokens, cache, Logits::all);
  const Eigen::MatrixXd expected = TinyReference(tiny).logits(tokens);
  ASSERT_EQ(logits.rows(), expected.rows());
  ASSERT_EQ(logits.cols(), expected.cols());
  const double allowed = bound(tiny, tokens, expected);
  const double off = (logits.cast<double>() - expected).cwiseAbs().maxCoeff();
  EXPECT_LT(allowed, 1e-3 * expected.cwiseAbs().maxCoeff()) << "the bound says nothing";
  EXPECT_LE(off, allowed);
  RecordProperty("error", std::to_string(off));
  RecordProperty("allowed", std::to_string(allowed));
}

TEST_P(LlamaModel, EveryPartOfTheModelShowsInTheLogits) {
  const TinyLlama tiny = tiny_llama(GetParam());
  const std::vector<Token> tokens = some_tokens(12);
  const Eigen::MatrixXd expected = TinyReference(tiny).logits(tokens);
  const double allowed = bound(tiny, tokens, expected);
  for (const auto& [name, tensor] : tiny.tensors) {
    TinyLlama without = tiny;
    without.tensors.at(name).setConstant(0.25f);
    const File file(without);
    const Weights weights = read_weights(file.path);
    ModelCache cache(weights.config, {.capacity = 12});
    const Columns logits = Llama(weights, {}, 12).forward(tokens, cache, Logits::all);
    EXPECT_GT((logits.cast<double>() - expected).cwiseAbs().maxCoeff(), allowed) << name << " is not used";
  }
}

TEST_P(LlamaModel, WeightsOfSixteenBitsAreTheNumbersThatTheyRoundTo) {
  for (const gqa::ElementType type : {gqa::ElementType::bf16, gqa::ElementType::f16}) {
    TinyLlama tiny = tiny_llama(GetParam());
    const File file(tiny, type);
    for (auto& [name, tensor] : tiny.tensors)
      if (tensor.cols() > 1)
        tensor = tensor.unaryExpr([&](float x) {
          return type == gqa::ElementType::bf16 ? static_cast<float>(gqa::bf16(x)) : static_cast<float>(gqa::f16(x));
        });
    const CachePlan plan{.capacity = 40, .chunk = 40};
    const Columns logits = prompt_logits(read_weights(file.path), {}, plan, some_tokens(40), 1);
    const File rounded(tiny);  // in the place of the other one, which stays mapped
    EXPECT_TRUE(logits == prompt_logits(read_weights(rounded.path), {}, plan, some_tokens(40), 1));
  }
}

TEST_P(LlamaModel, TheSameBitsInEveryChunkingCacheAndNumberOfThreads) {
  const File file(tiny_llama(GetParam()));
  const Weights weights = read_weights(file.path);
  for (const char* format : {"f32", "bf16", "int8"})
    for (const bool rotate : {false, true})
      for (const ExactRun& run : check_exact(weights, {}, format_named(format), rotate, some_tokens(70)))
        EXPECT_EQ(run.different, 0) << format << (rotate ? " rotated, " : ", ") << cache_name(run.kind)
                                    << ", chunks of " << run.chunk << ", " << run.threads << " threads";
}

TEST_P(LlamaModel, ASeedGivesTheSameTextInEveryChunkingCacheAndNumberOfThreads) {
  const File file(tiny_llama(GetParam()));
  const Weights weights = read_weights(file.path);
  const std::vector<Token> prompt = some_tokens(30);
  const auto text = [&](CacheKind kind, Index chunk, int threads, std::uint64_t seed) {
    const gqa::ThreadPoolExecutor pool(threads);
    gqa::Options options;
    options.executor = pool;
    ModelCache cache(weights.config, {.kind = kind, .capacity = 80, .chunk = chunk});
    Sampler sampler({.temperature = 1.5, .top_k = 20, .top_p = 0.95, .min_p = 0.01, .seed = seed});
    return generate(Llama(weights, options, 80), cache, prompt,
                    {.steps = 50, .chunk = chunk, .pick = std::ref(sampler)})
        .tokens;
  };
  const std::vector<Token> expected = text(CacheKind::contiguous, 1, 1, 1);
  EXPECT_NE(text(CacheKind::contiguous, 1, 1, 2), expected);
  int threads = 1;
  for (const CacheKind kind : {CacheKind::contiguous, CacheKind::paged, CacheKind::ring})
    for (const Index chunk : {1, 7, 30}) {
      threads = threads % 3 + 1;
      EXPECT_EQ(text(kind, chunk, threads, 1), expected)
          << cache_name(kind) << ", chunks of " << chunk << ", " << threads << " threads";
    }
}

TEST_P(LlamaModel, RepeatedKvHeadsGiveTheSameBits) {
  const File file(tiny_llama(GetParam()));
  const Weights weights = read_weights(file.path);
  const Weights repeated = with_kv_heads(weights, weights.config.query_heads);
  const CachePlan plan{.capacity = 40, .chunk = 40};
  EXPECT_TRUE(prompt_logits(weights, {}, plan, some_tokens(40), 1) ==
              prompt_logits(repeated, {}, plan, some_tokens(40), 1));
}

TEST_P(LlamaModel, AStoppedPassLeavesTheCacheAsItWas) {
  const File file(tiny_llama(GetParam()));
  const Weights weights = read_weights(file.path);
  gqa::CallControl control;
  gqa::Options options;
  options.control = &control;
  const Llama model(weights, options, 40);
  const std::vector<Token> tokens = some_tokens(40);
  for (const CacheKind kind : {CacheKind::contiguous, CacheKind::paged, CacheKind::ring}) {
    ModelCache cache(weights.config, {.kind = kind, .capacity = 40, .chunk = 20});
    model.forward(std::span(tokens).first(20), cache);
    control.stop = true;
    EXPECT_THROW(model.forward(std::span(tokens).subspan(20), cache), gqa::Stopped);
    EXPECT_EQ(cache.length(), 20);
    const Generation stopped = generate(model, cache, {tokens[20]}, {.steps = 3});
    EXPECT_TRUE(stopped.stopped);
    EXPECT_EQ(stopped.prompt_tokens, 0);
    control.stop = false;
    const Columns after = model.forward(std::span(tokens).subspan(20), cache);
    EXPECT_TRUE(after == prompt_logits(weights, {}, {.capacity = 40, .chunk = 40}, tokens, 1).rightCols(1));
  }
}

TEST(LlamaCaches, ARingHasMemoryForWindowsAlone) {
  const File file(tiny_llama("gemma3"));
  const ModelConfig config = read_weights(file.path).config;
  for (const CacheKind kind : {CacheKind::contiguous, CacheKind::paged, CacheKind::ring}) {
    const CachePlan plan{.kind = kind, .capacity = 1000, .chunk = 8};
    EXPECT_EQ(ModelCache(config, plan).bytes(), ModelCache::bytes(config, plan));
  }
  const Index token = 16 * 2 * 4;  // one KV head of width 16, keys and values, f32
  EXPECT_EQ(ModelCache::bytes(config, {.kind = CacheKind::ring, .capacity = 1000, .chunk = 8}),
            token * (1000 + 2 * (5 + 7)));
  EXPECT_EQ(ModelCache::bytes(config, {.capacity = 1000}), token * 3 * 1000);
}

TEST(LlamaCaches, AContextBeyondMemoryOrTheModelIsRefusedWithNumbers) {
  const File file(tiny_llama("llama"));
  const Weights weights = read_weights(file.path);
  const auto complaint = [&](Index tokens, std::optional<Index> available) -> std::string {
    try {
      check_context(weights, {.capacity = tokens}, available);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "nothing thrown";
  };
  const Index weight_bytes = 4 * (37 * 24 + 3 * (2 * 24 * 24 + 2 * 8 * 24 + 3 * 40 * 24));
  const Index each = 3 * 2 * 2 * 4 * 4 + 2 * 4 * 4;  // cache and rotary embeddings, a token
  EXPECT_EQ(complaint(1000, weight_bytes + 1000 * each), "nothing thrown");
  EXPECT_EQ(complaint(1000, weight_bytes + 1000 * each - 1),
            "context: 1000 tokens need " + std::to_string(weight_bytes + 1000 * each) + " bytes (weights " +
                std::to_string(weight_bytes) + ", cache 192000, rotary embeddings 32000); " +
                std::to_string(weight_bytes + 1000 * each - 1) + " are available");
  EXPECT_EQ(complaint(1000, std::nullopt), "nothing thrown");
  EXPECT_EQ(memory_needed(weights, {.capacity = 1000}, 10).all(), weight_bytes + 1000 * each + 10 * 37 * 4);
  EXPECT_NO_THROW(check_context(weights, {.capacity = 1000}, weight_bytes + 1000 * each + 10 * 37 * 4, 10));
  EXPECT_THROW(check_context(weights, {.capacity = 1000}, weight_bytes + 1000 * each + 10 * 37 * 4 - 1, 10),
               std::runtime_error);
  EXPECT_EQ(complaint(1000000001, std::nullopt), "context: 1000000001 tokens; the model was trained for 1000000000");
}

TEST(LlamaCaches, AvailableMemoryIsReadFromTheSystemsFile) {
  const std::string path = testing::TempDir() + "gqa_llama_meminfo";
  std::ofstream(path) << "MemTotal:       24000000 kB\nMemFree:  1 kB\nMemAvailable:   1234 kB\n";
  EXPECT_EQ(available_memory(path.c_str()), 1234 * 1024);
  std::ofstream(path) << "MemTotal:       24000000 kB\n";
  EXPECT_EQ(available_memory(path.c_str()), std::nullopt);
  std::remove(path.c_str());
  EXPECT_EQ(available_memory(path.c_str()), std::nullopt);
}

TEST(LlamaFile, WhatIsWrongIsNamed) {
  const auto complaint = [](const TinyLlama& model) -> std::string {
    const File file(model);
    try {
      read_weights(file.path);
    } catch (const std::runtime_error& error) {
      const std::string what = error.what();
      return what.starts_with(file.path + ": ") ? what.substr(file.path.size() + 2)
                                                : "without the file's name: " + what;
    }
    return "nothing thrown";
  };
  const auto with = [&](const char* member, nlohmann::json value) {
    TinyLlama model = tiny_llama("gemma3");
    model.config[member] = std::move(value);
    return complaint(model);
  };
  TinyLlama model = tiny_llama("qwen2");
  model.tensors.erase("blk.1.attn_k.bias");
  EXPECT_EQ(complaint(model), "has no tensor blk.1.attn_k.bias");
  model = tiny_llama("qwen2");
  model.tensors.at("blk.2.ffn_down.weight").conservativeResize(42, 39);
  EXPECT_EQ(complaint(model), "blk.2.ffn_down.weight is 42 x 39; config says 42 x 40");
  model = tiny_llama("llama");
  model.tensors["blk.0.attn_q_norm.weight"] = Eigen::MatrixXf::Ones(4, 1);
  EXPECT_EQ(complaint(model), "blk.0.attn_q_norm.weight is no tensor of such a model, as config has it");
  EXPECT_EQ(with("dim", 0), "config: dim is 0; expected a whole number, 1 to 16777216");
  EXPECT_EQ(with("kv_heads", 3), "config: kv_heads is 3; expected a divisor of the 4 query heads");
  EXPECT_EQ(with("activation", "relu"), "config: activation is \"relu\"; expected one of silu, gelu_tanh");
  EXPECT_EQ(with("rope_dims", 32), "config: rope_dims is 32; expected a whole number, 1 to 16");
  EXPECT_EQ(with("rope_dims", 7), "config: rope_dims is 7; expected an even number");
  EXPECT_EQ(with("windows", {1, 2}), "config: windows is [1,2]; expected 3 numbers of 0 or more");
  EXPECT_EQ(with("rope_bases", {1, 2, -3}), "config: rope_bases is [1,2,-3]; expected 3 numbers above 0");
  EXPECT_EQ(with("rope_divisors", {1, 2}), "config: rope_divisors is [1,2]; expected 8 numbers above 0");
  EXPECT_EQ(with("rope_divisors", {1, 2, 3, 4, 5, 6, 7, 0}),
            "config: rope_divisors is [1,2,3,4,5,6,7,0]; expected 8 numbers above 0");
  EXPECT_EQ(with("tied", "yes"), "config: tied is \"yes\"; expected true or false");
  model = tiny_llama("llama");
  model.config.erase("norm_epsilon");
  EXPECT_EQ(complaint(model), "config has no norm_epsilon");
}

TEST(LlamaFile, JsonThatIsNestedDeepIsRefused) {
  // Copies of such a value and messages with it would take the whole stack.
  const auto complaint = [](const std::string& header) -> std::string {
    const std::string path = testing::TempDir() + "gqa_llama_deep.safetensors";
    std::string length(8, '\0');
    for (std::size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
    std::ofstream(path, std::ios::binary) << length << header;
    std::string what = "nothing thrown";
    try {
      read_weights(path);
    } catch (const std::runtime_error& error) {
      what = std::string(error.what()).substr(path.size() + 2);
    }
    std::remove(path.c_str());
    return what;
  };
  const std::string deep = std::string(1000000, '[') + std::string(1000000, ']');
  EXPECT_EQ(complaint(R"({"__metadata__":{"config":"{\"dim\":)" + deep + R"(}"}})"),
            "config is nested more than 8 deep");
  EXPECT_EQ(complaint(R"({"__metadata__":)" + deep + "}"), "header: is nested more than 8 deep");
}

TEST(LlamaGeneration, LogitsThatAreNotFiniteAreAnError) {
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    TinyLlama tiny = tiny_llama("llama");
    tiny.tensors.at("blk.1.attn_v.weight").setConstant(value);
    const File file(tiny);
    const Weights weights = read_weights(file.path);
    ModelCache cache(weights.config, {.capacity = 10});
    EXPECT_THROW(generate(Llama(weights, {}, 10), cache, some_tokens(4), {.steps = 3}), std::runtime_error);
    EXPECT_THROW(check_exact(weights, {}, format_named("f32"), false, some_tokens(4)), std::runtime_error);
  }
}

TEST(LlamaPerplexity, LossesAreThoseOfTheLogits) {
  const TinyLlama tiny = tiny_llama("llama");
  const File file(tiny);
  const Weights weights = read_weights(file.path);
  const std::vector<Token> tokens = some_tokens(90);
  const auto text = sequences_of(tokens, 30, false);
  ASSERT_EQ(text.size(), 3u);
  std::vector<PerplexityRun> runs = perplexity_runs(weights.config, {"f32", "bf16"});
  run_perplexity(Llama(weights, {}, 30), text, runs, [](const PerplexityRun&) {});
  ASSERT_EQ(runs.size(), 2u);
  for (std::size_t i = 0; i < 3; ++i) {
    const Eigen::MatrixXd logits = TinyReference(tiny).logits(text[i]);
    double loss = 0;
    for (Index t = 0; t + 1 < 30; ++t)
      loss += std::log(logits.col(t).array().exp().sum()) - logits(text[i][static_cast<std::size_t>(t) + 1], t);
    EXPECT_NEAR(runs[0].losses[i], loss, 29 * bound(tiny, text[i], logits) * 2);
    EXPECT_NE(runs[1].losses[i], runs[0].losses[i]) << "keys and values were not rounded";
  }
  EXPECT_THROW(perplexity_runs(weights.config, {"q8_0"}),
               std::invalid_argument);  // heads of width 4 are no whole blocks
  EXPECT_THROW(perplexity_runs(weights.config, {"q9"}), std::invalid_argument);
}

}  // namespace
}  // namespace llama
