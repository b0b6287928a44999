// SPDX-License-Identifier: Apache-2.0
/// @file
/// Prompts from the terminal, line by line; each follows all that was said before.
#pragma once

#include <iostream>
#include <string>

#include "session.hpp"

namespace llama {

/// Tokens a second; 0 of no tokens, whose time may be 0, too.
inline double rate(Index tokens, double seconds) { return tokens == 0 ? 0 : static_cast<double>(tokens) / seconds; }

/// Until the input ends. Answers are printed as their tokens come; Ctrl-C stops an answer.
inline void converse(const Session& session, const Llama& model, const CachePlan& plan) {
  const bool chat = session.settings.chat;
  const ChatForm form = model.config().chat;
  if (chat) chat_turn(form, "");  // says so now, if the model has no such form
  ModelCache cache(model.config(), plan);
  std::vector<Token> pending;  // made, and not in the cache yet
  bool ended = true;
  std::string line;
  gqa::CallControl& control = StopOnInterrupt::control();
  const auto tokens_of = [&](const std::string& message) {  // after what is in the cache
    const bool first = cache.length() == 0 && pending.empty();
    std::string text = chat ? chat_turn(form, message) : message;
    if (chat && !first) text.insert(0, between_turns(form, ended));
    std::vector<Token> tokens = session.tokenizer.encode(text);
    if (!first && session.begins) tokens.erase(tokens.begin());
    tokens.insert(tokens.begin(), pending.begin(), pending.end());
    return tokens;
  };
  while (std::fputs("> ", stderr), std::getline(std::cin, line)) {
    if (line.empty()) continue;
    std::vector<Token> tokens = tokens_of(line);
    const auto left_after = [&] { return plan.capacity - cache.length() - static_cast<Index>(tokens.size()); };
    if (left_after() < 1 && (cache.length() > 0 || !pending.empty())) {
      std::fprintf(stderr, "the context of %td tokens is full; a new conversation begins\n", plan.capacity);
      cache.truncate(0);
      pending.clear();
      tokens = tokens_of(line);
    }
    const Index left = left_after();
    if (left < 1 || tokens.empty()) {
      std::fprintf(stderr, "the line has %zu tokens; expected 1 to %td\n", tokens.size(), plan.capacity - 1);
      continue;
    }
    GenerateOptions options = session.generate_options(plan.chunk);
    options.steps = std::min(options.steps, left);
    options.on_token = [&](Token previous, Token token) {
      std::fputs(session.tokenizer.decode(previous, token).c_str(), stdout);
      std::fflush(stdout);
    };
    const Index before = cache.length();
    const Generation made = generate(model, cache, tokens, options);
    std::puts("");
    std::fflush(stdout);
    if (made.stopped) std::fputs("stopped\n", stderr);
    control.stop = false;
    pending.assign(made.tokens.begin() + static_cast<std::ptrdiff_t>(cache.length() - before), made.tokens.end());
    ended = made.tokens.size() > tokens.size() && session.tokenizer.is_end(made.tokens.back());
    if (!chat && ended) pending.pop_back();  // what is said next goes on where the text ended
    std::fprintf(stderr, "%td of %td tokens; %.0f and %.0f tokens/s\n", cache.length(), plan.capacity,
                 rate(made.prompt_tokens, made.prefill_seconds), rate(made.decoded_tokens, made.decode_seconds));
  }
  std::fputs("\n", stderr);  // what comes next, such as a shell's prompt, does not go on after ours
}

}  // namespace llama
