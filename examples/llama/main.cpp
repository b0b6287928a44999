// SPDX-License-Identifier: Apache-2.0
// Runs models of Llama's architecture, with their own tokenizer, from one file that convert.py wrote: attention, caches, rotary embeddings
// and norms of rows from this library, linear layers from Eigen.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../convert_checkpoint/writer.hpp"
#include "check_exact.hpp"
#include "conversation.hpp"
#include "perplexity.hpp"
#include "session.hpp"

namespace {

using namespace llama;

// What queries, which are f32 here, are multiplied as.
const char* products_on(gqa::Path path, gqa::Products products) {
  const bool amx = path == gqa::Path::amx;
  if (products == gqa::Products::bf16_terms && amx) return "bf16 terms'";
  if (products == gqa::Products::bf16 && (amx || path == gqa::Path::avx512bf16 || path == gqa::Path::neon_bf16))
    return "bf16";
  return "f32";
}

Index token_bytes(const ModelConfig& config, const Format& format) {
  return config.layers() * config.kv_heads * token_bytes(format, {1, 1, config.head_dim, config.head_dim});
}

void print_times(const Times& times, double seconds) {
  const auto share = [&](double part) { return 100 * part / seconds; };
  std::printf(
      "time: attention %.1f%%, linear layers %.1f%%, norms, rotary embeddings and appending %.1f%%, logits %.1f%%\n",
      share(times.attention), share(times.linear), share(times.rows), share(times.logits));
}

// @throws std::runtime_error if no file can be written there
void expect_writable(const std::string& path) {
  if (std::filesystem::is_directory(path)) throw std::runtime_error("--logits: " + path + ": is a folder");
  const checkpoint::NewFile never_committed(path);
}

void write_logits(const std::string& path, const Generation& made) {
  const auto tokens = static_cast<std::uint64_t>(made.tokens.size());
  const auto columns = static_cast<std::uint64_t>(made.logits.cols());
  checkpoint::SafetensorsWriter writer(
      path,
      {{"tokens", {"I32", {tokens}}}, {"logits", {"F32", {columns, static_cast<std::uint64_t>(made.logits.rows())}}}},
      nullptr);
  const std::vector<std::int32_t> ids(made.tokens.begin(), made.tokens.end());
  writer.write("tokens", std::as_bytes(std::span(ids)));
  writer.write("logits", std::as_bytes(std::span(made.logits.data(), static_cast<std::size_t>(made.logits.size()))));
  writer.commit();
}

// Whether the text is the one in --expected.
bool is_expected(const Session& session, const std::string& text) {
  std::string expected = read_text(session.settings.expected);
  while (expected.ends_with('\n')) expected.pop_back();
  const auto same = static_cast<std::size_t>(
      std::mismatch(text.begin(), text.end(), expected.begin(), expected.end()).first - text.begin());
  if (text == expected) {
    std::printf("text: as expected, %zu bytes\n", same);
  } else {
    std::printf("text: differs from the expected one after %zu of %zu bytes\n", same, expected.size());
  }
  return text == expected;
}

// What fewer KV heads cost this model when they are averaged and nothing is trained after: on a text that the model as trained goes on with.
void print_cost_of_pooling(const Session& session, const std::vector<Token>& prompt) {
  const Format format = format_named(session.settings.kv_type);
  const auto cache_for = [&](const Weights& weights, std::size_t tokens) {
    return ModelCache(weights.config, {.format = format, .capacity = static_cast<Index>(tokens)});
  };
  std::vector<Token> text;
  if (!session.settings.expected.empty()) {
    text = session.tokenizer.encode(read_text(session.settings.expected));
  } else {
    ModelCache cache = cache_for(session.trained, prompt.size() + static_cast<std::size_t>(session.settings.steps));
    text = generate(Llama(session.trained, session.options), cache, prompt, session.generate_options(256)).tokens;
  }
  text.resize(std::min(text.size(), static_cast<std::size_t>(session.trained.config.max_length)));
  std::printf("\nKV heads  KV bytes per token  perplexity on the reference text (%zu tokens)\n", text.size() - 1);
  for (const Weights* weights : {&session.trained, &session.weights}) {
    const Llama model(*weights, session.options);
    ModelCache cache = cache_for(*weights, text.size());
    std::printf("%8td  %18td  %.3f%s\n", weights->config.kv_heads, token_bytes(weights->config, format),
                perplexity(model, cache, text),
                weights == &session.trained ? "  as trained" : "  mean-pooled, not uptrained");
  }
}

int run_once(Session& session) {
  const Settings& settings = session.settings;
  const ModelConfig& config = session.weights.config;
  const std::vector<Token> prompt = session.prompt();
  const auto prompt_tokens = static_cast<Index>(prompt.size());
  const Index chunk = session.chunk(prompt_tokens);
  const Index all_tokens = prompt_tokens + settings.steps - 1;
  const CachePlan plan = session.plan(all_tokens, chunk, settings.logits.empty() ? 0 : all_tokens + chunk);
  if (!settings.expected.empty()) read_text(settings.expected);  // before the work, not after it
  if (!settings.logits.empty()) expect_writable(settings.logits);
  for (const Token token : prompt)
    if (token < 0 || token >= config.vocabulary)
      throw std::invalid_argument("--tokens has " + std::to_string(token) + "; expected 0 to " +
                                  std::to_string(config.vocabulary - 1));

  std::optional<StopOnInterrupt> interrupt(std::in_place);
  session.options.control = &StopOnInterrupt::control();
  Times times;
  const Llama model(session.weights, session.options, plan.capacity, &times);
  ModelCache cache(config, plan);
  GenerateOptions how = session.generate_options(chunk);
  how.pick = std::ref(session.sampler);
  how.keep_logits = !settings.logits.empty();
  how.on_token = [&](Token previous, Token token) { show(session.tokenizer.decode(previous, token)); };
  // A prompt of several chunks is shown after the lines about its progress.
  const auto show_prompt = [&] {
    if (!settings.chat) show(session.tokenizer.decode(prompt));
  };
  if (prompt_tokens <= chunk) show_prompt();
  const auto progress = how.on_prefill;
  how.on_prefill = [&](Index done, Index all) {
    progress(done, all);
    if (done == all && all > chunk) show_prompt();
  };
  const Generation made = generate(model, cache, prompt, how);
  std::printf("%s\n", made.stopped ? "\nstopped" : "");

  const gqa::Path path = session.options.path.value_or(gqa::active_path().path);
  std::printf("\n%td query heads over %td KV heads, path %s, %s products, %d threads\n", config.query_heads,
              config.kv_heads, gqa::path_name(path), products_on(path, session.options.products), settings.threads);
  std::printf("prefill: %td tokens in chunks of %td, %.1f tokens/s; decode: %td tokens, %.1f tokens/s\n",
              made.prompt_tokens, chunk, rate(made.prompt_tokens, made.prefill_seconds), made.decoded_tokens,
              rate(made.decoded_tokens, made.decode_seconds));
  std::printf("cache: %s, %s%s, %td bytes for %td tokens (%td a token)\n", settings.cache.c_str(),
              settings.kv_type.c_str(), settings.rotate ? " rotated" : "", cache.bytes(), plan.capacity,
              token_bytes(config, plan.format));
  print_times(times, made.prefill_seconds + made.decode_seconds);
  if (!settings.logits.empty()) write_logits(settings.logits, made);
  if (made.stopped) return 130;
  interrupt.reset();                                // from here on Ctrl-C ends the program
  if (StopOnInterrupt::control().stop) return 130;  // one that came after the last token
  session.options.control = nullptr;

  const bool pooled = config.kv_heads < session.trained.config.kv_heads;
  const bool as_expected = settings.expected.empty() || is_expected(session, session.tokenizer.decode(made.tokens));
  if (pooled) print_cost_of_pooling(session, prompt);
  return as_expected || pooled ? 0 : 1;  // a pooled model is another model: its text is not expected to be the same
}

int run_conversation(Session& session) {
  const Index tokens = session.settings.context > 0 ? session.settings.context
                                                    : std::min<Index>(4096, session.weights.config.max_length);
  const CachePlan plan = session.plan(tokens, session.chunk(tokens));
  const StopOnInterrupt interrupt;
  session.options.control = &StopOnInterrupt::control();
  return converse(session, Llama(session.weights, session.options, plan.capacity), plan) ? 130 : 0;
}

int run_check(const Session& session) {
  const std::vector<Token> prompt = session.prompt();
  const auto count = static_cast<Index>(prompt.size());
  // Is there memory for it? For two runs' logits, and those of a prompt that goes through at once.
  session.plan(count, count, 3 * count);
  Index different = 0;
  std::printf("%zu tokens, %s; logits that differ from token by token on one thread:\n", prompt.size(),
              session.settings.kv_type.c_str());
  check_exact(session.weights, session.options, format_named(session.settings.kv_type), session.settings.rotate, prompt,
              [&](const ExactRun& run) {
                std::printf("%-10s  chunks of %4td, %d threads: %td\n", cache_name(run.kind), run.chunk, run.threads,
                            run.different);
                std::fflush(stdout);
                different += run.different;
              });
  std::puts(different == 0 ? "the same bits" : "not the same bits");
  return different == 0 ? 0 : 1;
}

int run_text(const Session& session) {
  const Settings& settings = session.settings;
  const ModelConfig& config = session.weights.config;
  const Index length = settings.context > 0 ? settings.context : std::min<Index>(512, config.max_length);
  if (length < 2) throw std::invalid_argument("--context is " + std::to_string(length) + "; expected 2 or more tokens");
  std::vector<Token> tokens = session.tokenizer.encode(read_text(settings.text));
  tokens.resize(std::min(tokens.size(), static_cast<std::size_t>(settings.text_tokens)));
  if (tokens.size() < 2)
    throw std::invalid_argument(settings.text + ": has " + std::to_string(tokens.size()) +
                                " tokens; expected 2 or more");
  const auto text = sequences_of(tokens, length, session.begins);
  session.plan(length, 64);
  std::vector<PerplexityRun> runs = perplexity_runs(config, settings.codecs);
  run_perplexity(Llama(session.weights, session.options, length), text, runs, [&](const PerplexityRun& run) {
    std::fprintf(stderr, "%s%s …\n", run.format.name().c_str(), run.rotate ? ", rotated" : "");
  });
  std::printf("%zu sequences of %td tokens; %td query heads over %td KV heads of width %td\n\n%s", text.size(), length,
              config.query_heads, config.kv_heads, config.head_dim, perplexity_table(config, text, runs).c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  open_closed_streams();
  Settings settings;
  CLI::App app("Runs models of Llama's architecture");
  add_options(app, settings);
  CLI11_PARSE(app, argc, argv);
  try {
    Session session(settings);
    if (!settings.text.empty()) return run_text(session);
    if (settings.check_exact) return run_check(session);
    const bool prompted = app.count("--prompt") + app.count("--prompt-file") + app.count("--tokens") > 0;
    for (const char* option : {"--expected", "--logits"})
      if (!prompted && app.count(option) > 0)
        throw std::invalid_argument(std::string(option) +
                                    " is for one prompt; expected --prompt, --prompt-file or --tokens");
    const int status = prompted ? run_once(session) : run_conversation(session);
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) throw std::runtime_error("the output cannot be written");
    return status;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "llama: %s\n", error.what());
    return 2;
  }
}
