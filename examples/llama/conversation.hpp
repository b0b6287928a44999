// SPDX-License-Identifier: Apache-2.0
/// @file
/// Prompts from the terminal, line by line; each follows all that was said before.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "session.hpp"
#include "terminal.hpp"

namespace llama {

/// Tokens a second; 0 of no tokens, whose time may be 0, too.
inline double rate(Index tokens, double seconds) { return tokens == 0 ? 0 : static_cast<double>(tokens) / seconds; }

/// Until the input ends, or Ctrl-C while no answer is being made. Answers are printed as their tokens come; Ctrl-C stops one, and what there is of
/// it is a part of the conversation.
/// @return whether it was Ctrl-C
inline bool converse(Session& session, const Llama& model, const CachePlan& plan) {
  const bool chat = session.settings.chat;
  const ChatForm form = model.config().chat;
  if (chat) chat_turn(form, "");  // says so now, if the model has no such form
  ModelCache cache(model.config(), plan);
  std::vector<Token> pending;  // made, and not in the cache yet
  bool ended = true;           // by a token that says so
  const auto tokens_of = [&](const std::string& message, bool first) {
    std::string text = chat ? chat_turn(form, message) : message;
    if (chat && !first) text.insert(0, between_turns(form, ended));
    std::vector<Token> tokens = session.tokenizer.encode(text);
    if (first) return tokens;
    if (session.begins) tokens.erase(tokens.begin());
    tokens.insert(tokens.begin(), pending.begin(), pending.end());
    return tokens;
  };
  /// Tokens that go through the model for a line, which leave room for one of an answer, at least; the conversation begins anew if they must.
  const auto take = [&](const std::string& line) {
    const bool first = cache.length() == 0 && pending.empty();
    std::vector<Token> tokens = tokens_of(line, first);
    if (cache.length() + static_cast<Index>(tokens.size()) < plan.capacity && !tokens.empty()) return tokens;
    if (!first) tokens = tokens_of(line, true);
    if (static_cast<Index>(tokens.size()) >= plan.capacity || tokens.empty())
      throw std::invalid_argument("the line has " + std::to_string(tokens.size()) + " tokens; expected 1 to " +
                                  std::to_string(plan.capacity - 1) + ", in a context of " +
                                  std::to_string(plan.capacity));
    std::fprintf(stderr, "the context of %td tokens is full; a new conversation begins\n", plan.capacity);
    cache.truncate(0);
    pending.clear();
    return tokens;
  };

  LineReader lines(STDIN_FILENO);
  std::string line;
  for (;;) {
    std::fputs("> ", stderr);
    const LineReader::Result read = lines.next(line);
    if (read == LineReader::Result::interrupted || read == LineReader::Result::end) {
      std::fputs("\n", stderr);  // what comes next, such as a shell's prompt, does not go on after ours
      return read == LineReader::Result::interrupted;
    }
    if (read == LineReader::Result::cut) {
      std::fprintf(stderr,
                   "the terminal cut the line after %zu bytes, and it was not taken; --prompt-file has no limit\n",
                   line.size());
      continue;
    }
    if (line.empty()) continue;
    std::vector<Token> tokens;
    try {
      tokens = take(line);
    } catch (const std::exception& error) {  // the conversation is as it was
      std::fprintf(stderr, "%s\n", error.what());
      continue;
    }
    GenerateOptions options = session.generate_options(plan.chunk);
    options.steps = std::min(options.steps, plan.capacity - cache.length() - static_cast<Index>(tokens.size()));
    options.pick = std::ref(session.sampler);
    options.on_token = [&](Token previous, Token token) { show(session.tokenizer.decode(previous, token)); };
    const Index before = cache.length();
    const Generation made = generate(model, cache, tokens, options);
    show("\n");
    if (made.stopped) std::fputs("stopped\n", stderr);
    StopOnInterrupt::reset();
    pending.assign(made.tokens.begin() + static_cast<std::ptrdiff_t>(cache.length() - before), made.tokens.end());
    ended = made.tokens.size() > tokens.size() && session.tokenizer.is_end(made.tokens.back());
    // What is said next goes on where the text ended.
    if (!chat && ended && !session.settings.ignore_end) pending.pop_back();
    std::fprintf(stderr, "%td of %td tokens; %.0f and %.0f tokens/s\n", cache.length(), plan.capacity,
                 rate(made.prompt_tokens, made.prefill_seconds), rate(made.decoded_tokens, made.decode_seconds));
  }
}

}  // namespace llama
