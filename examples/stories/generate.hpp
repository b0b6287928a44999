// SPDX-License-Identifier: Apache-2.0
/// @file
/// Greedy generation from a prompt, and how well a model predicts a text.
#pragma once

#include <chrono>
#include <cmath>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "model.hpp"

namespace stories {

/// How the prompt goes through the model.
enum class Prefill { at_once, token_by_token };

/// What a generation made.
struct Generation {
  std::vector<Token> tokens;  ///< begin token, prompt, and what followed
  Columns logits;             ///< vocabulary × tokens that went through the model, if asked for
  Index prompt_tokens = 0;
  Index decoded_tokens = 0;
  double prefill_seconds = 0;
  double decode_seconds = 0;
};

/// Sends `steps` tokens through the model, the prompt's first and then always the likeliest next one, as llama2.c does at
/// temperature 0; fewer if the model begins a new sequence.
/// @param cache    empty, with room for `steps` tokens
/// @param on_token is called with each token and the one before it, as soon as it is known
/// @throws std::invalid_argument if there are fewer steps than prompt tokens, or more than the model takes
inline Generation generate(const Llama& model, ModelCache& cache, const std::vector<Token>& prompt, Index steps,
                           Prefill prefill, bool keep_logits = false,
                           const std::function<void(Token previous, Token token)>& on_token = {}) {
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  const auto prompt_tokens = static_cast<Index>(prompt.size());
  if (steps < prompt_tokens || steps > model.shape().max_length)
    throw std::invalid_argument("steps: " + std::to_string(steps) + "; expected at least the prompt's " +
                                std::to_string(prompt_tokens) + " tokens and at most the model's " +
                                std::to_string(model.shape().max_length));
  Generation made;
  made.tokens = prompt;
  made.prompt_tokens = prompt_tokens;
  if (keep_logits) made.logits.resize(model.shape().vocabulary, steps);
  Columns logits;
  const auto forward = [&](std::span<const Token> tokens) {
    const Index first = cache.length();
    logits = model.forward(tokens, cache, keep_logits ? Logits::all : Logits::last);
    if (keep_logits) made.logits.middleCols(first, logits.cols()) = logits;
  };

  if (on_token)
    for (std::size_t i = 1; i < prompt.size(); ++i) on_token(prompt[i - 1], prompt[i]);
  const auto prefill_start = Clock::now();
  if (prefill == Prefill::at_once) {
    forward(prompt);
  } else {
    for (const Token& token : prompt) forward({&token, 1});
  }
  made.prefill_seconds = seconds_since(prefill_start);

  const auto decode_start = Clock::now();
  while (true) {
    const Token next = greedy(logits.col(logits.cols() - 1));
    if (next == begin_of_sequence) break;
    if (on_token) on_token(made.tokens.back(), next);
    made.tokens.push_back(next);
    if (cache.length() == steps) break;
    forward({&next, 1});
    ++made.decoded_tokens;
  }
  made.decode_seconds = seconds_since(decode_start);
  if (keep_logits) made.logits.conservativeResize(Eigen::NoChange, cache.length());
  return made;
}

/// exp of the mean negative log-likelihood of tokens[1], tokens[2], …: 1 where each was certain, the vocabulary's size where
/// each was a guess. `cache` is empty, with room for the tokens.
inline double perplexity(const Llama& model, ModelCache& cache, std::span<const Token> tokens) {
  const std::span<const Token> seen = tokens.first(tokens.size() - 1);
  const Eigen::MatrixXd logits = model.forward(seen, cache, Logits::all).cast<double>();
  double sum = 0;
  for (Index t = 0; t < logits.cols(); ++t) {
    const double max = logits.col(t).maxCoeff();
    const double log_sum = max + std::log((logits.col(t).array() - max).exp().sum());
    sum += log_sum - logits(tokens[static_cast<std::size_t>(t) + 1], t);
  }
  return std::exp(sum / static_cast<double>(logits.cols()));
}

}  // namespace stories
