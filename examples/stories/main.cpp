// SPDX-License-Identifier: Apache-2.0
// Runs a real grouped-query model, TinyStories 260K of llama2.c (8 query heads over 4 KV heads), end to end: attention and
// caches from this library, linear layers from Eigen.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "generate.hpp"
#include "gqa/thread_pool.hpp"

namespace {

using namespace stories;

struct Settings {
  std::string model;
  std::string tokenizer;
  std::string prompt;
  std::string expected;
  std::string path;
  std::string cache = "contiguous";
  std::string kv_type = "f32";
  std::string prefill = "at-once";
  Index steps = 200;
  Index kv_heads = 0;
  Index window = 0;
  int threads = 1;
  std::string products = "as-stored";
};

CacheKind cache_kind(const std::string& name) {
  return name == "paged" ? CacheKind::paged : name == "ring" ? CacheKind::ring : CacheKind::contiguous;
}

gqa::ElementType element_type(const std::string& name) {
  return name == "bf16" ? gqa::ElementType::bf16 : name == "f16" ? gqa::ElementType::f16 : gqa::ElementType::f32;
}

std::optional<gqa::Path> path_named(const std::string& name) {
  for (const gqa::Path path :
       {gqa::Path::portable, gqa::Path::avx2, gqa::Path::avx512, gqa::Path::avx512bf16, gqa::Path::amx})
    if (name == gqa::path_name(path)) return path;
  return std::nullopt;
}

gqa::Products products_named(const std::string& name) {
  return name == "bf16"         ? gqa::Products::bf16
         : name == "bf16-terms" ? gqa::Products::bf16_terms
                                : gqa::Products::as_stored;
}

// What queries, which are f32 here, are multiplied as.
const char* products_on(gqa::Path path, gqa::Products products) {
  const bool amx = path == gqa::Path::amx;
  if (products == gqa::Products::bf16_terms && amx) return "bf16 terms'";
  if (products == gqa::Products::bf16 && (amx || path == gqa::Path::avx512bf16)) return "bf16";
  return "f32";
}

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be opened");
  std::string text{std::istreambuf_iterator<char>(file), {}};
  while (text.ends_with('\n')) text.pop_back();
  return text;
}

// Bytes that `tokens` tokens' keys and values take in all layers.
Index kv_bytes(const ModelShape& shape, gqa::ElementType type, Index tokens) {
  return 2 * shape.layers * shape.kv_dim() * gqa::element_bytes(type) * tokens;
}

// What fewer KV heads cost this model when they are averaged and nothing is trained after.
void print_cost_of_pooling(const Weights& trained, const Weights& pooled, const std::vector<Token>& text,
                           const Settings& settings, const gqa::Options& options) {
  const gqa::ElementType type = element_type(settings.kv_type);
  std::printf("\nKV heads  KV bytes per token  perplexity on the reference text (%zu tokens)\n", text.size() - 1);
  for (const Weights* weights : {&trained, &pooled}) {
    const Llama model(*weights, options, settings.window);
    ModelCache cache(weights->shape, CacheKind::contiguous, type, static_cast<Index>(text.size()));
    std::printf("%8td  %18td  %.3f%s\n", weights->shape.kv_heads, kv_bytes(weights->shape, type, 1),
                perplexity(model, cache, text), weights == &trained ? "  as trained" : "  mean-pooled, not uptrained");
  }
}

int run(const Settings& settings) {
  const Weights trained = read_weights(settings.model);
  const Weights weights = settings.kv_heads == 0 ? trained : with_kv_heads(trained, settings.kv_heads);
  const Tokenizer tokenizer(settings.tokenizer, static_cast<int>(weights.shape.vocabulary));
  const std::optional<std::string> expected =
      settings.expected.empty() ? std::nullopt : std::optional(read_text(settings.expected));
  const std::vector<Token> prompt = tokenizer.encode(settings.prompt);

  const gqa::ThreadPoolExecutor executor(settings.threads);
  gqa::Options options;
  options.executor = executor;
  options.path = path_named(settings.path);
  options.products = products_named(settings.products);
  const Llama model(weights, options, settings.window);

  const CacheKind kind = cache_kind(settings.cache);
  const gqa::ElementType type = element_type(settings.kv_type);
  const Index chunk = settings.prefill == "at-once" ? static_cast<Index>(prompt.size()) : 1;
  const bool goes_round = kind == CacheKind::ring && settings.window > 0;
  ModelCache cache(weights.shape, kind, type,
                   goes_round ? std::min(settings.steps, settings.window + chunk - 1) : settings.steps);

  const Generation made =
      generate(model, cache, prompt, settings.steps, chunk > 1 ? Prefill::at_once : Prefill::token_by_token, false,
               [&](Token previous, Token token) {
                 std::fputs(tokenizer.decode(previous, token).c_str(), stdout);
                 std::fflush(stdout);
               });

  const gqa::Path path = options.path.value_or(gqa::active_path().path);
  std::printf("\n\n%td query heads over %td KV heads, path %s, %s products\n", weights.shape.query_heads,
              weights.shape.kv_heads, gqa::path_name(path), products_on(path, options.products));
  std::printf("prefill: %td tokens %s, %.0f tokens/s; decode: %td tokens, %.0f tokens/s\n", made.prompt_tokens,
              settings.prefill.c_str(), static_cast<double>(made.prompt_tokens) / made.prefill_seconds,
              made.decoded_tokens, static_cast<double>(made.decoded_tokens) / made.decode_seconds);
  std::printf("cache: %s, %s, %td bytes (%td a token)\n", settings.cache.c_str(), settings.kv_type.c_str(),
              cache.bytes(), kv_bytes(weights.shape, type, 1));

  const bool pooled = weights.shape.kv_heads < trained.shape.kv_heads;
  bool as_expected = true;
  if (expected) {
    const std::string text = tokenizer.decode(made.tokens);
    const auto same = static_cast<std::size_t>(
        std::mismatch(text.begin(), text.end(), expected->begin(), expected->end()).first - text.begin());
    as_expected = text == *expected;
    if (as_expected) {
      std::printf("text: as expected, %zu bytes\n", same);
    } else {
      std::printf("text: differs from the expected one after %zu of %zu bytes\n", same, expected->size());
    }
  }
  if (pooled) {
    std::vector<Token> text;
    if (expected) {
      text = tokenizer.encode(*expected);
    } else {  // then the model as trained says what is to be predicted
      const Llama as_trained(trained, options);
      ModelCache scratch(trained.shape, CacheKind::contiguous, gqa::ElementType::f32, settings.steps);
      text = generate(as_trained, scratch, prompt, settings.steps, Prefill::at_once).tokens;
    }
    text.resize(std::min(text.size(), static_cast<std::size_t>(trained.shape.max_length)));
    print_cost_of_pooling(trained, weights, text, settings, options);
  }
  return as_expected || pooled ? 0 : 1;  // a pooled model is another model: its text is not expected to be the same
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  CLI::App app("A small Llama tells a story: greedy decoding with gqa's attention and KV caches");
  app.option_defaults()->always_capture_default();
  app.add_option("--model", settings.model, "weights, llama2.c's legacy layout (stories260K.bin)")->required();
  app.add_option("--tokenizer", settings.tokenizer, "the model's tokenizer (tok512.bin)")->required();
  app.add_option("--prompt", settings.prompt, "how the story begins");
  app.add_option("--steps", settings.steps, "tokens through the model, the prompt's included")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--path", settings.path, "instruction set; default: the best that the machine has")
      ->check(CLI::IsMember({"portable", "avx2", "avx512", "avx512bf16", "amx"}));
  app.add_option("--cache", settings.cache, "storage of keys and values")
      ->check(CLI::IsMember({"contiguous", "paged", "ring"}));
  app.add_option("--kv-type", settings.kv_type, "element type of keys and values")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}));
  app.add_option("--prefill", settings.prefill, "how the prompt goes through the model; changes no bit of the logits")
      ->check(CLI::IsMember({"at-once", "token-by-token"}));
  app.add_option(
         "--kv-heads", settings.kv_heads,
         "KV heads: 0 for the model's own; more: repeated (8 is multi-head attention); fewer: mean-pooled (1 is "
         "multi-query attention), and what that costs is printed")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--window", settings.window,
                 "tokens that a query sees, itself included; 0: all. A ring then has so many slots")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--threads", settings.threads, "threads for attention")->check(CLI::Range(1, 1024));
  app.add_option(
         "--products", settings.products,
         "what paths with bf16 products multiply f32 and f16 as: as they are stored, rounded to bf16, or (amx) as "
         "sums of two bf16 terms")
      ->check(CLI::IsMember({"as-stored", "bf16", "bf16-terms"}));
  app.add_option("--expected", settings.expected,
                 "file with the text that must come out; otherwise the exit status is 1");
  CLI11_PARSE(app, argc, argv);
  try {
    return run(settings);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "stories: %s\n", error.what());
    return 2;
  }
}
