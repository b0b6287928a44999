// SPDX-License-Identifier: Apache-2.0
// A real model, examples/stories: TinyStories 260K with 8 query heads over 4 KV heads prints its published text, with the same
// logits to the last bit on every path, in every cache, in one prefill or token by token, and with its KV heads repeated. The
// model's files are not part of the repository: the folder of stories260K.bin, tok512.bin and stories260K.expected.txt comes in
// the environment variable GQA_STORIES_DIR, or as a macro of that name; without them these tests say that they skipped.
#include "../examples/stories/generate.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "gqa/thread_pool.hpp"
#include "support/paths.hpp"

namespace stories {
namespace {

constexpr Index steps = 200;              // of the published text
constexpr std::size_t long_prompt = 101;  // tokens of it that are given, where a prefill is to have some length
constexpr CacheKind every_cache[] = {CacheKind::contiguous, CacheKind::paged, CacheKind::ring};

const char* cache_name(CacheKind kind) {
  return kind == CacheKind::contiguous ? "contiguous" : kind == CacheKind::paged ? "paged" : "ring";
}

std::string folder() {
  if (const char* set = std::getenv("GQA_STORIES_DIR"); set != nullptr && *set != '\0') return set;
#if defined(GQA_STORIES_DIR)
  return GQA_STORIES_DIR;
#else
  return {};
#endif
}

/// The files, read once.
struct Files {
  Weights weights = read_weights(folder() + "/stories260K.bin");
  Tokenizer tokenizer{folder() + "/tok512.bin", static_cast<int>(weights.shape.vocabulary)};
  std::string published = [] {
    std::ifstream file(folder() + "/stories260K.expected.txt", std::ios::binary);
    std::string text{std::istreambuf_iterator<char>(file), {}};
    while (text.ends_with('\n')) text.pop_back();
    return text;
  }();
};

const Files& files() {
  static const Files read;
  return read;
}

/// Skips where the files are absent.
#define SKIP_WITHOUT_FILES()                                                             \
  for (const char* name : {"stories260K.bin", "tok512.bin", "stories260K.expected.txt"}) \
    if (folder().empty() || !std::filesystem::exists(folder() + "/" + name))             \
  GTEST_SKIP() << "no " << name << " in GQA_STORIES_DIR = \"" << folder() << "\": the real model was not run"

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
    ModelCache cache(files().weights.shape, CacheKind::contiguous, type, steps);
    made[type] = generate(model, cache, {begin_of_sequence}, steps, Prefill::token_by_token, true);
  }
  return made[type];
}

using StoriesPerPathAndType = gqa::test::PerPathAndType;
INSTANTIATE_TEST_SUITE_P(Stories, StoriesPerPathAndType, gqa::test::PerPathAndType::cases(),
                         gqa::test::PerPathAndType::name);

TEST_P(StoriesPerPathAndType, SameTextAndSameLogitsInEveryCachePrefillAndGrouping) {
  SKIP_WITHOUT_FILES();
  const Generation& expected = baseline(type());
  ASSERT_EQ(expected.logits.cols(), steps);
  ASSERT_TRUE(expected.logits.allFinite());
  if (type() == gqa::ElementType::f32) {
    ASSERT_EQ(files().tokenizer.decode(expected.tokens), files().published);
  }
  const std::vector<Token> begin{begin_of_sequence};
  const std::vector<Token> half(expected.tokens.begin(), expected.tokens.begin() + long_prompt);

  for (const Index kv_heads : {4, 8}) {
    const Weights weights = with_kv_heads(files().weights, kv_heads);
    const Llama model(weights, on_path(path()));
    for (const CacheKind kind : every_cache) {
      for (const auto& [prompt, prefill] : {std::pair{&begin, Prefill::at_once}, std::pair{&half, Prefill::at_once},
                                            std::pair{&half, Prefill::token_by_token}}) {
        SCOPED_TRACE(std::string(cache_name(kind)) + ", " + std::to_string(kv_heads) + " KV heads, prompt of " +
                     std::to_string(prompt->size()) + (prefill == Prefill::at_once ? " at once" : " token by token"));
        ModelCache cache(weights.shape, kind, type(), steps);
        const Generation made = generate(model, cache, *prompt, steps, prefill, true);
        EXPECT_EQ(made.tokens, expected.tokens);
        EXPECT_TRUE(same(made.logits, expected.logits));
      }
    }
  }
}

TEST_P(StoriesPerPathAndType, Bf16ProductsGiveTheSameLogitsInEveryCachePrefillAndGrouping) {
  SKIP_WITHOUT_FILES();
  gqa::Options options = on_path(path());
  options.products = gqa::Products::bf16;  // f32 and f16 take them too; paths without them go on as they are
  const Llama original(files().weights, options);
  ModelCache first(files().weights.shape, CacheKind::contiguous, type(), steps);
  const Generation expected = generate(original, first, {begin_of_sequence}, steps, Prefill::token_by_token, true);
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
      for (const Prefill prefill : {Prefill::at_once, Prefill::token_by_token}) {
        SCOPED_TRACE(std::string(cache_name(kind)) + ", " + std::to_string(kv_heads) + " KV heads");
        ModelCache cache(weights.shape, kind, type(), steps);
        const Generation made = generate(model, cache, half, steps, prefill, true);
        EXPECT_EQ(made.tokens, expected.tokens);
        EXPECT_TRUE(same(made.logits, expected.logits));
      }
    }
  }
}

TEST_P(StoriesPerPathAndType, RingThatGoesRoundEqualsWindowOverEverything) {
  SKIP_WITHOUT_FILES();
  constexpr Index window = 32;
  const std::vector<Token> prompt(baseline(type()).tokens.begin(), baseline(type()).tokens.begin() + long_prompt);
  const Llama model(files().weights, on_path(path()), window);
  ModelCache whole(files().weights.shape, CacheKind::contiguous, type(), steps);
  const Generation expected = generate(model, whole, prompt, steps, Prefill::at_once, true);
  EXPECT_FALSE(same(expected.logits, baseline(type()).logits)) << "the window hides nothing";

  for (const Prefill prefill : {Prefill::at_once, Prefill::token_by_token}) {
    const Index chunk = prefill == Prefill::at_once ? static_cast<Index>(long_prompt) : 1;
    ModelCache ring(files().weights.shape, CacheKind::ring, type(), window + chunk - 1);
    const Generation made = generate(model, ring, prompt, steps, prefill, true);
    EXPECT_GT(ring.view(0).first_position(), 0) << "the ring did not go round";
    EXPECT_EQ(made.tokens, expected.tokens);
    EXPECT_TRUE(same(made.logits, expected.logits));
  }
}

TEST(Stories, AnyChunkingGivesTheSameLogits) {
  SKIP_WITHOUT_FILES();
  const Generation& expected = baseline(gqa::ElementType::f32);
  const std::span<const Token> tokens = std::span(expected.tokens).first(steps);
  const Llama model(files().weights);
  for (const std::size_t chunk : std::array<std::size_t, 6>{2, 7, 63, 64, 65, 200}) {
    ModelCache cache(files().weights.shape, CacheKind::paged, gqa::ElementType::f32, steps);
    for (std::size_t first = 0; first < tokens.size(); first += chunk) {
      const std::span<const Token> part = tokens.subspan(first, std::min(chunk, tokens.size() - first));
      const Columns logits = model.forward(part, cache, Logits::all);
      EXPECT_TRUE(same(logits, expected.logits.middleCols(static_cast<Index>(first), logits.cols())))
          << chunk << " at " << first;
    }
  }
}

TEST(Stories, AnyNumberOfThreadsGivesTheSameLogits) {
  SKIP_WITHOUT_FILES();
  const Generation& expected = baseline(gqa::ElementType::f32);
  const std::vector<Token> prompt(expected.tokens.begin(), expected.tokens.begin() + long_prompt);
  for (const int threads : {1, 2, 3, 7}) {
    const gqa::ThreadPoolExecutor executor(threads);
    gqa::Options options;
    options.executor = executor;
    const Llama model(files().weights, options);
    ModelCache cache(files().weights.shape, CacheKind::paged, gqa::ElementType::f32, steps);
    const Generation made = generate(model, cache, prompt, steps, Prefill::at_once, true);
    EXPECT_TRUE(same(made.logits, expected.logits)) << threads << " threads";
  }
}

TEST(Stories, PromptInWordsContinuesAsPublished) {
  SKIP_WITHOUT_FILES();
  const Llama model(files().weights);
  const std::vector<Token> prompt = files().tokenizer.encode("Once upon a time, there was a little girl");
  ASSERT_GT(prompt.size(), 5u);
  ModelCache cache(files().weights.shape, CacheKind::contiguous, gqa::ElementType::f32, steps);
  std::string printed;
  const Generation made =
      generate(model, cache, prompt, steps, Prefill::at_once, false,
               [&](Token previous, Token token) { printed += files().tokenizer.decode(previous, token); });
  EXPECT_EQ(printed, files().published);
  EXPECT_EQ(made.decoded_tokens, steps - static_cast<Index>(prompt.size()));
}

TEST(Stories, MeanPooledToOneHeadPredictsWorse) {
  SKIP_WITHOUT_FILES();
  const std::vector<Token> text = files().tokenizer.encode(files().published);
  EXPECT_EQ(text, baseline(gqa::ElementType::f32).tokens);
  std::map<Index, double> perplexities;
  for (const Index kv_heads : {8, 4, 1}) {
    const Weights weights = with_kv_heads(files().weights, kv_heads);
    const Llama model(weights);
    ModelCache cache(weights.shape, CacheKind::contiguous, gqa::ElementType::f32, steps);
    perplexities[kv_heads] = perplexity(model, cache, text);
    EXPECT_EQ(cache.bytes(), steps * kv_heads * 8 * 2 * 5 * 4);  // tokens × heads × head dim × (K, V) × layers × f32
  }
  EXPECT_EQ(perplexities[8], perplexities[4]);
  EXPECT_LT(perplexities[4], 2.0);
  EXPECT_GT(perplexities[1], 10.0);
  EXPECT_LT(perplexities[1], 512.0);
}

TEST(Stories, TokenizerBringsBackAnyBytes) {
  SKIP_WITHOUT_FILES();
  for (const std::string text :
       {"", "a", "Lily and Tom", "  two  spaces ", "line\nbreak", "h\xc3\xa9llo \xe2\x98\x83!", "\xff\x80\x01"}) {
    const std::vector<Token> tokens = files().tokenizer.encode(text);
    ASSERT_EQ(tokens.front(), begin_of_sequence);
    EXPECT_EQ(files().tokenizer.decode(tokens), text);
  }
}

/// A model's file with this header and `floats` zeros.
std::string write_model(const std::array<std::int32_t, 7>& header, std::size_t floats) {
  const std::string path =
      testing::TempDir() + "gqa_stories_test_" + testing::UnitTest::GetInstance()->current_test_info()->name() + ".bin";
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(header.data()), sizeof(header));
  const std::vector<float> zeros(floats);
  file.write(reinterpret_cast<const char*>(zeros.data()), static_cast<std::streamsize>(zeros.size() * sizeof(float)));
  return path;
}

/// The message of what read_weights throws.
std::string complaint(const std::string& path) {
  try {
    read_weights(path);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "nothing thrown";
}

// dim 8, hidden 6, 2 layers, 2:1 heads, vocabulary 3, 5 positions: 24 + 2·(16 + 128 + 64 + 144) + 8 + 20 floats
constexpr std::array<std::int32_t, 7> tiny{8, 6, 2, 2, 1, 3, 5};
constexpr std::size_t tiny_floats = 756;

TEST(StoriesFile, TheRightSizeIsRead) {
  const Weights weights = read_weights(write_model(tiny, tiny_floats));
  EXPECT_EQ(weights.shape.kv_dim(), 4);
  EXPECT_EQ(weights.layers.size(), 2u);
  EXPECT_EQ(weights.layers[1].w2.rows(), 8);
  EXPECT_EQ(&weights.classifier(), &weights.embedding);
}

TEST(StoriesFile, NegativeVocabularyMeansAClassifierOfItsOwn) {
  std::array<std::int32_t, 7> header = tiny;
  header[5] = -3;
  const Weights weights = read_weights(write_model(header, tiny_floats + 24));
  EXPECT_EQ(weights.shape.vocabulary, 3);
  EXPECT_NE(&weights.classifier(), &weights.embedding);
  EXPECT_EQ(weights.classifier().rows(), 3);
}

TEST(StoriesFile, WrongSizesAreNamed) {
  EXPECT_NE(complaint(write_model(tiny, tiny_floats - 1)).find("is 3048 bytes; its header asks for 3052"),
            std::string::npos);
  EXPECT_NE(complaint(write_model(tiny, tiny_floats + 1)).find("is 3056 bytes; its header asks for 3052"),
            std::string::npos);
  EXPECT_NE(complaint(testing::TempDir() + "gqa_no_such_file").find("gqa_no_such_file: "), std::string::npos);
}

TEST(StoriesFile, WrongHeadersAreNamed) {
  const auto with = [](std::size_t field, std::int32_t value) {
    std::array<std::int32_t, 7> header = tiny;
    header[field] = value;
    return complaint(write_model(header, tiny_floats));
  };
  EXPECT_NE(with(0, 0).find("header: dim is 0"), std::string::npos);
  EXPECT_NE(with(2, -1).find("header: layers is -1"), std::string::npos);
  EXPECT_NE(with(5, INT32_MIN).find("header: vocabulary is -2147483648"), std::string::npos);
  EXPECT_NE(with(6, 1 << 21).find("header: longest sequence is 2097152"), std::string::npos);
  EXPECT_NE(with(3, 3).find("not a multiple of twice the 3 query heads"), std::string::npos);
  EXPECT_NE(with(4, 3).find("3 KV heads do not divide 2 query heads"), std::string::npos);
}

TEST(StoriesFile, OtherNumbersOfKvHeadsAreRepeatedOrAveraged) {
  Weights two;
  two.shape = {8, 6, 1, 4, 2, 3, 5};
  two.layers.resize(1);
  two.layers[0].wk = Matrix::Random(4, 8);
  two.layers[0].wv = Matrix::Random(4, 8);
  const Matrix& k = two.layers[0].wk;

  const Matrix four = with_kv_heads(two, 4).layers[0].wk;
  ASSERT_EQ(four.rows(), 8);
  for (const Index head : {0, 1, 2, 3})
    EXPECT_TRUE(four.middleRows(head * 2, 2) == k.middleRows(head / 2 * 2, 2)) << head;

  const Weights one = with_kv_heads(two, 1);
  EXPECT_EQ(one.shape.kv_heads, 1);
  EXPECT_TRUE(one.layers[0].wk.isApprox((k.topRows(2) + k.bottomRows(2)) / 2));
  EXPECT_THROW(with_kv_heads(two, 3), std::invalid_argument);
  EXPECT_THROW(with_kv_heads(two, 0), std::invalid_argument);
  EXPECT_THROW(with_kv_heads(two, 8), std::invalid_argument);
}

}  // namespace
}  // namespace stories
