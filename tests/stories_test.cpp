// SPDX-License-Identifier: Apache-2.0
// A real model, run by examples/llama: TinyStories 260K with 8 query heads over 4 KV heads prints its published text, with the same
// logits to the last bit on every path, in every cache, in one prefill or token by token, and with its KV heads repeated. Without the
// model's files these tests say that they skipped.
#include "../examples/llama/change_model.hpp"
#include "../examples/llama/generate.hpp"

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <string>
#include <vector>

#include "gqa/thread_pool.hpp"
#include "support/paths.hpp"
#include "support/stories_files.hpp"

namespace llama {
namespace {

constexpr Index steps = 200;              // of the published text
constexpr std::size_t long_prompt = 101;  // tokens of it that are given, where a prefill is to have some length
constexpr CacheKind every_cache[] = {CacheKind::contiguous, CacheKind::paged, CacheKind::ring};

const char* cache_name(CacheKind kind) {
  return kind == CacheKind::contiguous ? "contiguous" : kind == CacheKind::paged ? "paged" : "ring";
}

/// The files, read once.
struct Files {
  Weights weights = read_weights(gqa::test::converted_stories());
  std::string published = gqa::test::published_story();
};

const Files& files() {
  static const Files read;
  return read;
}

constexpr Token begin_of_sequence = 1;

/// The text of what follows the begin token.
std::string text_of(const std::vector<Token>& tokens) {
  std::string text;
  for (std::size_t i = 1; i < tokens.size(); ++i) {
    const auto piece =
        files().weights.tokenizer.at("tokens").at(static_cast<std::size_t>(tokens[i])).get<std::string>();
    text += piece.starts_with("<0x") ? std::string(1, static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16)))
                                     : piece;
  }
  const std::string space = "\u2581";
  for (std::size_t at = 0; (at = text.find(space, at)) != std::string::npos;) text.replace(at, space.size(), " ");
  return text.starts_with(' ') ? text.substr(1) : text;
}

/// A cache for the text, in chunks of up to `chunk` tokens.
CachePlan plan(CacheKind kind, gqa::ElementType type, Index chunk = steps) {
  return {kind, {"", "", type, type}, steps, chunk};
}

/// Generation up to `steps` tokens that go through the model.
GenerateOptions up_to_steps(std::size_t prompt, Index chunk, bool keep_logits = true) {
  GenerateOptions made;
  made.steps = steps - static_cast<Index>(prompt) + 1;
  made.chunk = chunk;
  made.keep_logits = keep_logits;
  made.is_end = [](Token token) { return token == begin_of_sequence; };
  return made;
}

gqa::Options on_path(gqa::Path path) {
  gqa::Options options;
  options.path = path;
  return options;
}

/// The same numbers, element by element (−0 equals +0).
bool same(const Columns& a, const Columns& b) { return a.rows() == b.rows() && a.cols() == b.cols() && a == b; }

/// What everything is held against: the portable path, a contiguous cache, token by token from the begin token on.
const Generation& baseline(gqa::ElementType type) {
  static std::map<gqa::ElementType, Generation> made;
  if (!made.contains(type)) {
    const Llama model(files().weights, on_path(gqa::Path::portable));
    ModelCache cache(files().weights.config, plan(CacheKind::contiguous, type));
    made[type] = generate(model, cache, {begin_of_sequence}, up_to_steps(1, 1));
  }
  return made[type];
}

using StoriesPerPathAndType = gqa::test::PerPathAndType;
INSTANTIATE_TEST_SUITE_P(Stories, StoriesPerPathAndType, gqa::test::PerPathAndType::cases(),
                         gqa::test::PerPathAndType::name);

TEST_P(StoriesPerPathAndType, SameTextAndSameLogitsInEveryCachePrefillAndGrouping) {
  SKIP_WITHOUT_STORIES();
  const Generation& expected = baseline(type());
  ASSERT_EQ(expected.logits.cols(), steps);
  ASSERT_TRUE(expected.logits.allFinite());
  if (type() == gqa::ElementType::f32) {
    ASSERT_EQ(text_of(expected.tokens), files().published);
  }
  const std::vector<Token> begin{begin_of_sequence};
  const std::vector<Token> half(expected.tokens.begin(), expected.tokens.begin() + long_prompt);

  for (const Index kv_heads : {4, 8}) {
    const Weights weights = with_kv_heads(files().weights, kv_heads);
    const Llama model(weights, on_path(path()));
    for (const CacheKind kind : every_cache) {
      for (const auto& [prompt, chunk] :
           {std::pair{&begin, Index{1}}, std::pair{&half, Index{long_prompt}}, std::pair{&half, Index{1}}}) {
        SCOPED_TRACE(std::string(cache_name(kind)) + ", " + std::to_string(kv_heads) + " KV heads, prompt of " +
                     std::to_string(prompt->size()) + " in chunks of " + std::to_string(chunk));
        ModelCache cache(weights.config, plan(kind, type()));
        const Generation made = generate(model, cache, *prompt, up_to_steps(prompt->size(), chunk));
        EXPECT_EQ(made.tokens, expected.tokens);
        EXPECT_TRUE(same(made.logits, expected.logits));
      }
    }
  }
}

TEST_P(StoriesPerPathAndType, Bf16ProductsGiveTheSameLogitsInEveryCachePrefillAndGrouping) {
  SKIP_WITHOUT_STORIES();
  gqa::Options options = on_path(path());
  options.products = gqa::Products::bf16;  // f32 and f16 take them too; paths without them go on as they are
  const Llama original(files().weights, options);
  ModelCache first(files().weights.config, plan(CacheKind::contiguous, type()));
  const Generation expected = generate(original, first, {begin_of_sequence}, up_to_steps(1, 1));
  if (gqa::test::has_f32_arithmetic_only(path())) {
    EXPECT_TRUE(same(expected.logits, baseline(type()).logits));
    return;  // and the test above says the rest
  }
  EXPECT_FALSE(same(expected.logits, baseline(type()).logits)) << "products were not bf16";
  const std::vector<Token> half(expected.tokens.begin(), expected.tokens.begin() + long_prompt);

  for (const Index kv_heads : {4, 8}) {
    const Weights weights = with_kv_heads(files().weights, kv_heads);
    const Llama model(weights, options);
    for (const CacheKind kind : every_cache) {
      for (const Index chunk : {Index{long_prompt}, Index{1}}) {
        SCOPED_TRACE(std::string(cache_name(kind)) + ", " + std::to_string(kv_heads) + " KV heads");
        ModelCache cache(weights.config, plan(kind, type()));
        const Generation made = generate(model, cache, half, up_to_steps(long_prompt, chunk));
        EXPECT_EQ(made.tokens, expected.tokens);
        EXPECT_TRUE(same(made.logits, expected.logits));
      }
    }
  }
}

TEST_P(StoriesPerPathAndType, RingThatGoesRoundEqualsWindowOverEverything) {
  SKIP_WITHOUT_STORIES();
  constexpr Index window = 32;
  const std::vector<Token> prompt(baseline(type()).tokens.begin(), baseline(type()).tokens.begin() + long_prompt);
  const Weights weights = with_window(files().weights, window);
  const Llama model(weights, on_path(path()));
  ModelCache whole(weights.config, plan(CacheKind::contiguous, type()));
  const Generation expected = generate(model, whole, prompt, up_to_steps(long_prompt, long_prompt));
  EXPECT_FALSE(same(expected.logits, baseline(type()).logits)) << "the window hides nothing";

  for (const Index chunk : {Index{long_prompt}, Index{16}, Index{1}}) {
    ModelCache ring(weights.config, plan(CacheKind::ring, type(), chunk));
    const Generation made = generate(model, ring, prompt, up_to_steps(long_prompt, chunk));
    EXPECT_EQ(ring.bytes(), ModelCache::bytes(weights.config, plan(CacheKind::ring, type(), chunk)));
    EXPECT_LT(ring.bytes(), whole.bytes());
    EXPECT_GT(ring.view(0).first_position(), 0) << "the ring did not go round";
    EXPECT_EQ(made.tokens, expected.tokens);
    EXPECT_TRUE(same(made.logits, expected.logits));
  }
}

TEST(Stories, AnyChunkingGivesTheSameLogits) {
  SKIP_WITHOUT_STORIES();
  const Generation& expected = baseline(gqa::ElementType::f32);
  const std::span<const Token> tokens = std::span(expected.tokens).first(steps);
  const Llama model(files().weights);
  for (const std::size_t chunk : std::array<std::size_t, 6>{2, 7, 63, 64, 65, 200}) {
    ModelCache cache(files().weights.config, plan(CacheKind::paged, gqa::ElementType::f32));
    for (std::size_t first = 0; first < tokens.size(); first += chunk) {
      const std::span<const Token> part = tokens.subspan(first, std::min(chunk, tokens.size() - first));
      const Columns logits = model.forward(part, cache, Logits::all);
      EXPECT_TRUE(same(logits, expected.logits.middleCols(static_cast<Index>(first), logits.cols())))
          << chunk << " at " << first;
    }
  }
}

TEST(Stories, AnyNumberOfThreadsGivesTheSameLogits) {
  SKIP_WITHOUT_STORIES();
  const Generation& expected = baseline(gqa::ElementType::f32);
  const std::vector<Token> prompt(expected.tokens.begin(), expected.tokens.begin() + long_prompt);
  for (const int threads : {1, 2, 3, 7}) {
    const gqa::ThreadPoolExecutor executor(threads);
    gqa::Options options;
    options.executor = executor;
    const Llama model(files().weights, options);
    ModelCache cache(files().weights.config, plan(CacheKind::paged, gqa::ElementType::f32));
    const Generation made = generate(model, cache, prompt, up_to_steps(long_prompt, long_prompt));
    EXPECT_TRUE(same(made.logits, expected.logits)) << threads << " threads";
  }
}

TEST(Stories, MeanPooledToOneHeadPredictsWorse) {
  SKIP_WITHOUT_STORIES();
  const std::vector<Token>& text = baseline(gqa::ElementType::f32).tokens;
  std::map<Index, double> perplexities;
  for (const Index kv_heads : {8, 4, 1}) {
    const Weights weights = with_kv_heads(files().weights, kv_heads);
    const Llama model(weights);
    ModelCache cache(weights.config, plan(CacheKind::contiguous, gqa::ElementType::f32));
    perplexities[kv_heads] = perplexity(model, cache, text);
    EXPECT_EQ(cache.bytes(), steps * kv_heads * 8 * 2 * 5 * 4);  // tokens × heads × head dim × (K, V) × layers × f32
  }
  EXPECT_EQ(perplexities[8], perplexities[4]);
  EXPECT_LT(perplexities[4], 2.0);
  EXPECT_GT(perplexities[1], 10.0);
  EXPECT_LT(perplexities[1], 512.0);
}

TEST(StoriesFile, OtherNumbersOfKvHeadsAreRepeatedOrAveraged) {
  Weights two;
  two.config.dim = 8;
  two.config.query_heads = 4;
  two.config.kv_heads = 2;
  two.config.head_dim = 2;
  two.config.qkv_bias = true;
  two.layers.resize(1);
  const Matrix k = Matrix::Random(4, 8);
  two.layers[0].wk = Weight(k);
  two.layers[0].wv = Weight(Matrix(Matrix::Random(4, 8)));
  two.layers[0].k_bias = Vector::Random(4);
  two.layers[0].v_bias = Vector::Random(4);

  const Weights repeated = with_kv_heads(two, 4);
  const Matrix four = repeated.layers[0].wk.matrix();
  ASSERT_EQ(four.rows(), 8);
  for (const Index head : {0, 1, 2, 3}) {
    EXPECT_TRUE(four.middleRows(head * 2, 2) == k.middleRows(head / 2 * 2, 2)) << head;
    EXPECT_TRUE(repeated.layers[0].k_bias.segment(head * 2, 2) == two.layers[0].k_bias.segment(head / 2 * 2, 2))
        << head;
  }
  const Weights one = with_kv_heads(two, 1);
  EXPECT_EQ(one.config.kv_heads, 1);
  EXPECT_TRUE(one.layers[0].wk.matrix().isApprox((k.topRows(2) + k.bottomRows(2)) / 2));
  EXPECT_THROW(with_kv_heads(two, 3), std::invalid_argument);
  EXPECT_THROW(with_kv_heads(two, 0), std::invalid_argument);
  EXPECT_THROW(with_kv_heads(two, 8), std::invalid_argument);
}

}  // namespace
}  // namespace llama
