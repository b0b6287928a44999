// SPDX-License-Identifier: Apache-2.0
// A real model with its tokenizer, TinyStories 260K run by examples/llama. Without the model's files these tests say that they skipped.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "../examples/llama/generate.hpp"
#include "../examples/llama/tokenizer.hpp"
#include "support/stories_files.hpp"

namespace llama {
namespace {

struct Files {
  Weights weights = read_weights(gqa::test::converted_stories());
  Tokenizer tokenizer{weights.tokenizer};
  std::string published = gqa::test::published_story();
};

const Files& files() {
  static const Files read;
  return read;
}

TEST(LlamaStories, PromptInWordsContinuesAsPublished) {
  SKIP_WITHOUT_STORIES();
  constexpr Index steps = 200;  // tokens that go through the model for the published text
  const Llama model(files().weights);
  const std::vector<Token> prompt = files().tokenizer.encode("Once upon a time, there was a little girl");
  ASSERT_GT(prompt.size(), 5u);
  ModelCache cache(files().weights.config, {.capacity = steps});
  std::string printed = files().tokenizer.decode(prompt);
  GenerateOptions how;
  how.steps = steps - static_cast<Index>(prompt.size()) + 1;
  how.on_token = [&](Token previous, Token token) { printed += files().tokenizer.decode(previous, token); };
  const Generation made = generate(model, cache, prompt, how);
  EXPECT_EQ(printed, files().published);
  EXPECT_EQ(made.decoded_tokens, steps - static_cast<Index>(prompt.size()));
  EXPECT_EQ(made.tokens, files().tokenizer.encode(files().published));
}

TEST(LlamaStories, TokenizerBringsBackAnyBytes) {
  SKIP_WITHOUT_STORIES();
  for (const std::string text :
       {"", "a", "Lily and Tom", "  two  spaces ", "line\nbreak", "h\xc3\xa9llo \xe2\x98\x83!", "\xff\x80\x01"}) {
    const std::vector<Token> tokens = files().tokenizer.encode(text);
    ASSERT_EQ(tokens.front(), files().tokenizer.begin());
    EXPECT_EQ(files().tokenizer.decode(tokens), text);
  }
}

}  // namespace
}  // namespace llama
