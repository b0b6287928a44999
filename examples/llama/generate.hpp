// SPDX-License-Identifier: Apache-2.0
/// @file
/// Generation from a prompt, and how well a model predicts a text.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "model.hpp"
#include "sampling.hpp"

namespace llama {

/// What a generation is asked for, and what it tells while it runs.
struct GenerateOptions {
  Index steps = 0;           ///< tokens after the prompt, at most
  Index chunk = 256;         ///< tokens of the prompt that go through the model at once; changes no bit of the logits
  bool keep_logits = false;  ///< of every token that goes through the model
  std::function<Token(std::span<const float> logits)> pick = greedy;  ///< the next token
  std::function<bool(Token)> is_end = {};  ///< generation stops at such a token; none: it goes on
  std::function<void(Token previous, Token token)> on_token =
      {};  ///< called with each token after the prompt as soon as it is known
  std::function<void(Index done, Index all)> on_prefill = {};  ///< called after each chunk of the prompt
};

/// What a generation made.
struct Generation {
  std::vector<Token> tokens;  ///< the prompt, and what followed; an end token, too
  Columns logits;             ///< vocabulary × tokens that went through the model, if asked for
  Index prompt_tokens = 0;    ///< that went through the model
  Index decoded_tokens = 0;   ///< likewise, after them
  bool stopped = false;       ///< by the options' control of the model
  double prefill_seconds = 0;
  double decode_seconds = 0;
};

/// @throws std::runtime_error if one of `logits` is not finite: text of those would be the first token, over and over
inline void expect_finite(const Eigen::Ref<const Columns>& logits) {
  if (!logits.allFinite())
    throw std::runtime_error(
        "logits: there is one that is not finite; are the weights, or keys and values by that codec, damaged?");
}

/// Sends the prompt through the model, and then always the next token that is picked. The last token that is made does not go through the model.
/// @param cache  what the prompt follows; with room for it and steps − 1 tokens
/// @throws std::invalid_argument if the prompt is empty; std::runtime_error if a token follows from logits that are not finite
inline Generation generate(const Llama& model, ModelCache& cache, const std::vector<Token>& prompt,
                           const GenerateOptions& options) {
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  const auto prompt_tokens = static_cast<Index>(prompt.size());
  if (prompt_tokens == 0) throw std::invalid_argument("prompt: no tokens; expected 1 or more");
  Generation made;
  made.tokens = prompt;
  const Index begin = cache.length();
  if (options.keep_logits)
    made.logits.resize(model.config().vocabulary, prompt_tokens + std::max<Index>(options.steps - 1, 0));
  Columns logits;
  const auto forward = [&](std::span<const Token> tokens) {
    const Index first = cache.length() - begin;
    logits = model.forward(tokens, cache, options.keep_logits ? Logits::all : Logits::last);
    if (options.keep_logits) made.logits.middleCols(first, logits.cols()) = logits;
  };

  Clock::time_point start = Clock::now();
  double Generation::*seconds = &Generation::prefill_seconds;
  try {
    while (made.prompt_tokens < prompt_tokens) {
      const Index count = std::min(std::max<Index>(options.chunk, 1), prompt_tokens - made.prompt_tokens);
      forward(std::span(prompt).subspan(static_cast<std::size_t>(made.prompt_tokens), static_cast<std::size_t>(count)));
      made.prompt_tokens += count;
      if (options.on_prefill) options.on_prefill(made.prompt_tokens, prompt_tokens);
    }
    made.prefill_seconds = seconds_since(start);
    start = Clock::now();
    seconds = &Generation::decode_seconds;
    for (Index step = 0; step < options.steps; ++step) {
      if (step > 0) {
        forward({&made.tokens.back(), 1});
        ++made.decoded_tokens;
      }
      expect_finite(logits.rightCols(1));
      const auto last = logits.col(logits.cols() - 1);
      const Token next = options.pick({last.data(), static_cast<std::size_t>(last.size())});
      const Token previous = made.tokens.back();
      made.tokens.push_back(next);
      if (options.is_end && options.is_end(next)) break;
      if (options.on_token) options.on_token(previous, next);
    }
  } catch (const gqa::Stopped&) {
    made.stopped = true;
  }
  made.*seconds = seconds_since(start);
  if (options.keep_logits) made.logits.conservativeResize(Eigen::NoChange, cache.length() - begin);
  return made;
}

/// Negative log-likelihood of a token, in nats.
inline double negative_log_likelihood(const Eigen::Ref<const Vector>& logits, Token token) {
  const float most = logits.maxCoeff();
  const double all = (logits.array() - most).exp().cast<double>().sum();
  return static_cast<double>(most) + std::log(all) - static_cast<double>(logits[token]);
}

/// Negative log-likelihood of tokens[1], tokens[2], …, added up, in nats. @param cache  empty, with room for the tokens
inline double text_loss(const Llama& model, ModelCache& cache, std::span<const Token> tokens, std::size_t chunk = 64) {
  double sum = 0;
  for (std::size_t first = 0; first + 1 < tokens.size(); first += chunk) {
    const std::size_t count = std::min(chunk, tokens.size() - 1 - first);
    const Columns logits = model.forward(tokens.subspan(first, count), cache, Logits::all);
    for (std::size_t i = 0; i < count; ++i)
      sum += negative_log_likelihood(logits.col(static_cast<Index>(i)), tokens[first + i + 1]);
  }
  return sum;
}

/// exp of the mean negative log-likelihood of tokens[1], tokens[2], …: 1 where each was certain, the vocabulary's size where
/// each was a guess. `cache` is empty, with room for the tokens.
inline double perplexity(const Llama& model, ModelCache& cache, std::span<const Token> tokens) {
  return std::exp(text_loss(model, cache, tokens) / static_cast<double>(tokens.size() - 1));
}

}  // namespace llama
