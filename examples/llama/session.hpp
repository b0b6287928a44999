// SPDX-License-Identifier: Apache-2.0
/// @file
/// A model with all that the command line says about how it runs.
#pragma once

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "change_model.hpp"
#include "chat.hpp"
#include "generate.hpp"
#include "gqa/thread_pool.hpp"
#include "memory.hpp"
#include "settings.hpp"

namespace llama {

inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path)) throw std::runtime_error(path + ": cannot be opened");
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Prints any bytes at once.
inline void show(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

class Session {
 public:
  explicit Session(const Settings& given)
      : settings(given),
        sampler(given.sampling),
        trained(read_weights(given.model)),
        weights(changed(trained, given)),
        tokenizer(trained.tokenizer),
        begins(trained.tokenizer.value("add_bos", false)),
        executor(given.threads) {
    options.executor = executor;
    options.path = path_named(given.path);
    options.products = products_named(given.products);
    if (tokenizer.vocabulary() > weights.config.vocabulary)
      throw std::runtime_error(given.model + ": the tokenizer has " + std::to_string(tokenizer.vocabulary()) +
                               " tokens; the model has " + std::to_string(weights.config.vocabulary));
  }

  /// The prompt's tokens.
  std::vector<Token> prompt() const {
    if (!settings.tokens.empty()) return settings.tokens;
    std::string text = settings.prompt_file.empty() ? settings.prompt : read_text(settings.prompt_file);
    if (settings.chat) text = chat_turn(weights.config.chat, text);
    std::vector<Token> tokens = tokenizer.encode(text);
    if (tokens.empty()) throw std::invalid_argument("--prompt: has no tokens, and the model has none to begin with");
    return tokens;
  }
  /// How the prompt goes through the model.
  Index chunk(Index prompt_tokens) const {
    return settings.prefill == "at-once"          ? prompt_tokens
           : settings.prefill == "token-by-token" ? 1
                                                  : std::min(settings.chunk, prompt_tokens);
  }
  /// A cache for so many tokens, or for as many as --context says.
  /// @param logits  tokens whose logits are kept at one time
  /// @throws std::runtime_error if there is no room for it
  CachePlan plan(Index tokens, Index chunk_tokens, Index logits = 0) const {
    if (settings.context > 0 && settings.context < tokens)
      throw std::runtime_error("--context is " + std::to_string(settings.context) + "; prompt and --steps are " +
                               std::to_string(tokens) + " tokens");
    const CachePlan made{cache_kind(settings.cache), format_named(settings.kv_type), std::max(tokens, settings.context),
                         chunk_tokens, settings.rotate};
    check_context(weights, made, available_memory(), logits);
    return made;
  }
  /// For generate(): ends where the model says so, and shows how far a long prompt is.
  GenerateOptions generate_options(Index chunk_tokens) const {
    GenerateOptions made{.steps = settings.steps, .chunk = chunk_tokens};
    if (!settings.ignore_end) made.is_end = [this](Token token) { return tokenizer.is_end(token); };
    made.on_prefill = [chunk_tokens](Index done, Index all) {
      if (all > chunk_tokens) std::fprintf(stderr, "\rprompt: %td of %td tokens%s", done, all, done < all ? "" : "\n");
    };
    return made;
  }

  const Settings& settings;
  Sampler sampler;
  const Weights trained;
  const Weights weights;  ///< with the KV heads and the window that were asked for
  const Tokenizer tokenizer;
  const bool begins;  ///< the tokenizer puts a begin token in front of a text
  const gqa::ThreadPoolExecutor executor;
  gqa::Options options;

 private:
  static Weights changed(const Weights& from, const Settings& settings) {
    Weights made = settings.kv_heads == 0 ? from : with_kv_heads(from, settings.kv_heads);
    return settings.window == 0 ? made : with_window(made, settings.window);
  }
};

}  // namespace llama
