// SPDX-License-Identifier: Apache-2.0
/// @file
/// The program's command line.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "caches.hpp"
#include "sampling.hpp"
#include "tokenizer.hpp"

namespace llama {

struct Settings {
  std::string model, prompt, prompt_file, expected, logits, text;
  std::vector<Token> tokens;
  std::vector<std::string> codecs{"all"};
  std::string path, products = "as-stored";
  std::string cache = "contiguous", kv_type = "f32", prefill;
  Index steps = 200, chunk = 256, context = 0, kv_heads = 0, window = 0;
  Index text_tokens = 4096;
  int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  bool rotate = false, chat = false, ignore_end = false, check_exact = false;
  Sampling sampling;
};

/// @throws std::invalid_argument if there is no such path
inline std::optional<gqa::Path> path_named(const std::string& name) {
  using enum gqa::Path;
  if (name.empty()) return std::nullopt;
  std::string names;
  for (const gqa::Path path : {portable, avx2, avx512, avx512bf16, amx, neon, neon_bf16}) {
    if (name == gqa::path_name(path)) return path;
    names += (names.empty() ? "" : ", ") + std::string(gqa::path_name(path));
  }
  throw std::invalid_argument("--path is " + name + "; expected one of " + names);
}

/// @throws what CLI11 throws for --help and for wrong options
inline void add_options(CLI::App& app, Settings& settings) {
  app.option_defaults()->always_capture_default();
  app.add_option("--model", settings.model, "model that convert.py wrote (.safetensors)")->required();
  auto* const prompt =
      app.add_option("--prompt", settings.prompt, "text to go on with; without one: a conversation, line by line");
  auto* const file = app.add_option("--prompt-file", settings.prompt_file, "file with that text")->excludes(prompt);
  app.add_option("--tokens", settings.tokens, "token ids to go on with, instead of text")
      ->delimiter(',')
      ->excludes(prompt)
      ->excludes(file);
  app.add_flag("--chat", settings.chat, "the prompt is a message, written as the model was trained for");
  app.add_option("--steps", settings.steps, "tokens after the prompt, at most")->check(CLI::Range(1, 1 << 30));
  app.add_flag("--ignore-end", settings.ignore_end, "go on after the model says that a text has ended");
  app.add_option("--context", settings.context,
                 "tokens that there is room for in the cache; 0: what is needed, 4096 for a conversation. Refused if "
                 "it is more than the "
                 "model was trained for, or than memory holds")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--path", settings.path, "instruction set; default: the best that the machine has");
  app.add_option("--cache", settings.cache,
                 "storage of keys and values; in a ring, layers with a window have memory for that alone")
      ->check(CLI::IsMember({"contiguous", "paged", "ring"}));
  app.add_option("--kv-type", settings.kv_type, "codec of keys and values")->check(CLI::IsMember(format_names()));
  app.add_flag("--rotate", settings.rotate, "turn keys and values by a Hadamard transform before they are stored");
  app.add_option("--chunk", settings.chunk,
                 "tokens of a prompt that go through the model at once; changes no bit of the logits")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--prefill", settings.prefill, "the same, in words")
      ->check(CLI::IsMember({"at-once", "token-by-token"}));
  app.add_option("--kv-heads", settings.kv_heads,
                 "KV heads: 0 for the model's own; more: repeated (as many as query heads is multi-head attention); "
                 "fewer: mean-pooled "
                 "(1 is multi-query attention), and what that costs is printed")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--window", settings.window,
                 "tokens that a query sees in every layer, itself included; 0: as the model has it")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--threads", settings.threads, "threads")->check(CLI::Range(1, 1024));
  app.add_option(
         "--products", settings.products,
         "what paths with bf16 products multiply f32 and f16 as: as they are stored, rounded to bf16, or (amx) as "
         "sums of two bf16 terms")
      ->check(CLI::IsMember({"as-stored", "bf16", "bf16-terms"}));
  app.add_option("--expected", settings.expected,
                 "file with the text that must come out; otherwise the exit status is 1");
  app.add_option("--logits", settings.logits, "write tokens and logits of every token there (.safetensors)");
  auto* const exact = app.add_flag(
      "--check-exact", settings.check_exact,
      "run the prompt in several chunkings, caches and numbers of threads; the exit status is 1 if any bit of "
      "any logit differs");
  auto* const perplexity =
      app.add_option("--perplexity", settings.text, "file with a text: how well it is predicted, by codec")
          ->excludes(exact);
  app.add_option("--codecs", settings.codecs, "for --perplexity: all, or names of codecs")->delimiter(',');
  app.add_option("--text-tokens", settings.text_tokens,
                 "for --perplexity: tokens of the text, at most, cut into sequences of --context (0: 512)")
      ->check(CLI::PositiveNumber);

  // Their values are checked by Sampler. These modes draw no tokens.
  auto* const temperature =
      app.add_option(
             "--temperature", settings.sampling.temperature,
             "draw tokens, with logits divided by this; 0: take the likeliest. The same seed gives the same text")
          ->excludes(exact)
          ->excludes(perplexity);
  const auto seed = [](const std::string& text) {  // CLI11 takes −1 for the largest number, and 010 for 8
    std::uint64_t value = 0;
    const char* const end = text.data() + text.size();
    const auto [stopped, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc{} || stopped != end)
      throw CLI::ValidationError("is " + text + "; expected a whole number, 0 to 2^64 - 1");
    return std::to_string(value);
  };
  const auto add_cut = [&](const char* name, auto& value, const char* what) {
    return app.add_option(name, value, what)->needs(temperature);
  };
  add_cut("--top-k", settings.sampling.top_k, "of so many of the likeliest tokens; 0: all");
  add_cut("--top-p", settings.sampling.top_p, "then of the likeliest of these with this share of their probability");
  add_cut("--min-p", settings.sampling.min_p, "then of those that are at least so likely as the likeliest, times this");
  add_cut("--seed", settings.sampling.seed, "of the generator")->transform(seed);
}

inline CacheKind cache_kind(const std::string& name) {
  return name == "paged" ? CacheKind::paged : name == "ring" ? CacheKind::ring : CacheKind::contiguous;
}

inline gqa::Products products_named(const std::string& name) {
  return name == "bf16"         ? gqa::Products::bf16
         : name == "bf16-terms" ? gqa::Products::bf16_terms
                                : gqa::Products::as_stored;
}

}  // namespace llama
