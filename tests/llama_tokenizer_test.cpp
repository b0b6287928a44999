// SPDX-License-Identifier: Apache-2.0
// Tokenizers of examples/llama: merging against the definition by loops, words by each scheme, round trips of any bytes, special tokens,
// fallbacks, and errors that name what is wrong. (examples/llama/compare.py holds whole vocabularies to llama.cpp's tokens.)
#include "../examples/llama/tokenizer.hpp"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace llama {
namespace {

using Words = std::vector<std::string>;

Words strings(const std::vector<std::string_view>& views) { return {views.begin(), views.end()}; }

std::string random_text(std::mt19937& random, const std::string& alphabet, std::size_t length) {
  std::string text;
  for (std::size_t i = 0; i < length; ++i) text += alphabet[random() % alphabet.size()];
  return text;
}

TEST(PairMerging, IsTheDefinition) {
  std::mt19937 random(1);
  for (int round = 0; round < 500; ++round) {
    std::map<std::pair<std::string, std::string>, float> table;  // few priorities, so that many are equal
    for (int i = 0; i < 40; ++i)
      table[{random_text(random, "ab", 1 + random() % 3), random_text(random, "ab", 1 + random() % 3)}] =
          static_cast<float>(random() % 8);
    const std::string text = random_text(random, "ab", random() % 60);
    const auto priority = [&](std::string_view left, std::string_view right) -> std::optional<float> {
      const auto found = table.find({std::string(left), std::string(right)});
      return found == table.end() ? std::nullopt : std::optional(found->second);
    };
    Words expected;
    for (const char character : text) expected.emplace_back(1, character);
    while (true) {
      std::size_t best = 0;
      std::optional<float> highest;
      for (std::size_t i = 1; i < expected.size(); ++i)
        if (const auto value = priority(expected[i - 1], expected[i]); value && (!highest || *value > *highest)) {
          best = i;
          highest = value;
        }
      if (!highest) break;
      expected[best - 1] += expected[best];
      expected.erase(expected.begin() + static_cast<std::ptrdiff_t>(best));
    }
    ASSERT_EQ(strings(merge_pairs(characters(text), priority)), expected) << text;
  }
}

TEST(Characters, AreUtf8AndSingleBytesElsewhere) {
  EXPECT_EQ(strings(characters("aé漢🙂")), (Words{"a", "é", "漢", "🙂"}));
  EXPECT_EQ(strings(characters("\xe6\xbc")), (Words{"\xe6\xbc"}));            // cut off
  EXPECT_EQ(strings(characters("\x80\xc3z")), (Words{"\x80", "\xc3", "z"}));  // no lead; no continuation
  EXPECT_EQ(strings(characters(std::string("\0a", 2))), (Words{std::string(1, '\0'), "a"}));
  EXPECT_TRUE(characters("").empty());
}

TEST(ByteAlphabet, HasEveryByteOnce) {
  const ByteAlphabet alphabet;
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  const std::string written = alphabet.from_bytes(all);
  EXPECT_EQ(characters(written).size(), 256u);
  EXPECT_EQ(alphabet.to_bytes(written), all);
  EXPECT_EQ(alphabet.from_bytes(" \n"), "ĠĊ");
  EXPECT_FALSE(alphabet.to_bytes("漢"));
  EXPECT_FALSE(alphabet.to_bytes(" "));
  EXPECT_FALSE(alphabet.to_bytes("Ņ"));  // U+0145, the first after the alphabet's
}

TEST(Words, FollowTheScheme) {
  const std::string text = "I'll DON'T  buy\n\n 123 déjà-vu!!\n ";
  EXPECT_EQ(strings(WordSplitter("gpt-2").split(text)),
            (Words{"I", "'ll", " DON", "'", "T", " ", " buy", "\n\n", " 123", " déjà", "-", "vu", "!!", "\n "}));
  EXPECT_EQ(strings(WordSplitter("smollm").split(text)), (Words{"I", "'ll", " DON", "'", "T", " ", " buy", "\n\n ", "1",
                                                                "2", "3", " déjà", "-", "vu", "!!", "\n "}));
  EXPECT_EQ(strings(WordSplitter("qwen2").split(text)),
            (Words{"I", "'ll", " DON", "'T", " ", " buy", "\n\n", " ", "1", "2", "3", " déjà", "-vu", "!!\n", " "}));
  EXPECT_EQ(strings(WordSplitter("llama-bpe").split("x 1234567")), (Words{"x", " ", "123", "456", "7"}));
  EXPECT_EQ(strings(WordSplitter("gpt-2").split("a\u3000b\u00a0")),
            (Words{"a", "\u3000", "b", "\u00a0"}));  // Unicode's spaces
}

TEST(Words, LoseNoByte) {
  std::mt19937 random(2);
  for (const char* scheme : {"gpt-2", "smollm", "qwen2", "llama-bpe"}) {
    const WordSplitter words(scheme);
    for (int round = 0; round < 300; ++round) {
      std::string text;
      for (std::size_t i = 0; i < 30; ++i) text += static_cast<char>(random() % (round % 2 == 0 ? 256u : 128u));
      std::string joined;
      for (const std::string_view word : words.split(text)) joined += word;
      ASSERT_EQ(joined, text);
    }
  }
}

/// Every byte, then what the merges make, then a special and a user's token.
nlohmann::json byte_level() {
  const ByteAlphabet alphabet;
  nlohmann::json json{
      {"kind", "bpe"}, {"pre", "gpt-2"}, {"add_bos", false}, {"add_space_prefix", false}, {"bos", nullptr}};
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(alphabet.from_bytes(std::string(1, static_cast<char>(byte))));
  const std::vector<std::string> merges{"h e", "l l", "he ll", "hell o", "Ġ hello", "l o"};
  for (const char* token : {"he", "ll", "hell", "hello", "Ġhello", "lo"}) tokens.emplace_back(token);
  std::vector<int> types(tokens.size(), 1);
  tokens.emplace_back("<|end|>");
  types.push_back(3);
  tokens.emplace_back("<|end|> now");
  types.push_back(4);
  json["tokens"] = tokens;
  json["types"] = types;
  json["merges"] = merges;
  json["eos"] = {262};
  return json;
}

TEST(ByteLevel, MergesWithinWords) {
  const Tokenizer tokenizer(byte_level());
  EXPECT_EQ(tokenizer.vocabulary(), 264);
  EXPECT_EQ(tokenizer.encode("hello hello"), (std::vector<Token>{259, 260}));
  EXPECT_EQ(tokenizer.encode("hellohello"), (std::vector<Token>{259, 259}));
  EXPECT_EQ(tokenizer.encode("lo"), (std::vector<Token>{261}));
  EXPECT_EQ(tokenizer.encode("llo"), (std::vector<Token>{257, 'o'}));  // "l l" has the better rank
  EXPECT_EQ(tokenizer.encode("<|end|>hello<|end|> now"), (std::vector<Token>{262, 259, 263}));  // longest first
  EXPECT_TRUE(tokenizer.encode("").empty());
  EXPECT_TRUE(tokenizer.is_end(262));
  EXPECT_FALSE(tokenizer.is_end(259));
  EXPECT_EQ(tokenizer.decode(no_token, 262), "");
  EXPECT_EQ(tokenizer.decode(262, 263), "<|end|> now");
}

TEST(ByteLevel, LlamaThreesWordsThatAreTokensAreNotMerged) {
  nlohmann::json json = byte_level();
  json["pre"] = "llama-bpe";
  json["tokens"][260] = "world";  // in the place of " hello"; no merges lead to it
  const Tokenizer tokenizer(json);
  EXPECT_EQ(tokenizer.encode("world"), (std::vector<Token>{260}));
  EXPECT_EQ(tokenizer.encode("llo"), (std::vector<Token>{257, 'o'}));
  EXPECT_EQ(tokenizer.encode("worlds"), (std::vector<Token>{'w', 'o', 'r', 'l', 'd', 's'}));
  json["pre"] = "qwen2";
  EXPECT_EQ(Tokenizer(json).encode("world"), (std::vector<Token>{'w', 'o', 'r', 'l', 'd'}));
}

TEST(ByteLevel, GivesBackAnyBytes) {
  const Tokenizer tokenizer(byte_level());
  std::mt19937 random(3);
  for (int round = 0; round < 500; ++round) {
    std::string text;
    for (std::size_t i = 0; i < 40; ++i) text += static_cast<char>(random() % 256);
    text += random_text(random, "helo ", 20);
    ASSERT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
}

TEST(ByteLevel, LeavesOutBytesWithoutToken) {
  nlohmann::json json = byte_level();
  json["types"][7] = 3;  // no longer found as a piece
  EXPECT_EQ(Tokenizer(json).encode("lo\alo"), (std::vector<Token>{261, 261}));
}

/// Unknown, begin, end, every byte, then pieces with scores.
nlohmann::json pieces() {
  nlohmann::json json{{"kind", "spm"}, {"pre", "default"}, {"add_bos", true}, {"add_space_prefix", true}, {"bos", 1}};
  std::vector<std::string> tokens{"<unk>", "<s>", "</s>"};
  std::vector<int> types{2, 3, 3};
  std::vector<float> scores(3, 0.0f);
  for (int byte = 0; byte < 256; ++byte) {
    const char digits[] = "0123456789ABCDEF";
    tokens.push_back({'<', '0', 'x', digits[byte / 16], digits[byte % 16], '>'});
    types.push_back(6);
    scores.push_back(0);
  }
  const std::vector<std::pair<std::string, float>> scored{{"▁", -9},  {"a", -9},  {"b", -9},
                                                          {"ab", -2}, {"▁a", -1}, {"bab", -3}};
  for (const auto& [text, score] : scored) {
    tokens.push_back(text);
    types.push_back(1);
    scores.push_back(score);
  }
  tokens.emplace_back("\n\n");
  types.push_back(4);
  scores.push_back(0);
  json["tokens"] = tokens;
  json["types"] = types;
  json["scores"] = scores;
  json["eos"] = {2};
  return json;
}

TEST(Pieces, MergeByScore) {
  const Tokenizer tokenizer(pieces());
  EXPECT_EQ(tokenizer.encode("ab"), (std::vector<Token>{1, 263, 261}));   // "▁a" before "ab"
  EXPECT_EQ(tokenizer.encode("bab"), (std::vector<Token>{1, 259, 264}));  // "ab", then "bab"
  EXPECT_EQ(tokenizer.encode("\n\nab"), (std::vector<Token>{1, 265, 263, 261}));
  EXPECT_EQ(tokenizer.encode("é"), (std::vector<Token>{1, 259, 3 + 0xc3, 3 + 0xa9}));
  EXPECT_EQ(tokenizer.encode(""), (std::vector<Token>{1}));
  for (const std::string text : {"ab a b", " a", "é\n\n", "漢"})
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
}

TEST(Pieces, GetNoSpaceWhereTheModelHasNone) {
  nlohmann::json json = pieces();
  json["add_space_prefix"] = false;
  json["add_bos"] = false;
  const Tokenizer tokenizer(json);
  EXPECT_EQ(tokenizer.encode("ab"), (std::vector<Token>{262}));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(" ab")), " ab");
}

template <class Change>
std::string error_of(nlohmann::json json, const Change& change) {
  change(json);
  try {
    const Tokenizer tokenizer(json);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Tokenizer, NamesWhatIsWrong) {
  using nlohmann::json;
  EXPECT_EQ(error_of(pieces(), [](json& j) { j.erase("scores"); }), "tokenizer: \"scores\" is missing");
  EXPECT_EQ(error_of(pieces(), [](json& j) { j["kind"] = "wpm"; }),
            "tokenizer: \"kind\" is \"wpm\"; expected spm or bpe");
  EXPECT_EQ(error_of(pieces(), [](json& j) { j["types"].erase(0); }),
            "tokenizer: \"types\" has 265 entries; expected one for each of the 266 tokens");
  EXPECT_EQ(error_of(pieces(), [](json& j) { j["bos"] = 266; }),
            "tokenizer: \"bos\" is 266; expected a token below 266");
  EXPECT_EQ(error_of(pieces(), [](json& j) { j["bos"] = nullptr; }),
            "tokenizer: \"bos\" is -1; expected a token below 266");
  EXPECT_EQ(error_of(pieces(), [](json& j) { j["eos"] = {-2}; }),
            "tokenizer: \"eos\" is -2; expected a token below 266");
  EXPECT_EQ(error_of(pieces(), [](json& j) { j["tokens"][4] = "<0x1>"; }),
            "tokenizer: \"tokens\" has a byte \"<0x1>\" at 4; expected <0x00> to <0xFF>");
  EXPECT_EQ(error_of(pieces(), [](json& j) { j["bos"] = 4294967296; }),
            "tokenizer: \"bos\" contains 4294967296; expected whole numbers of 32 bits");
  EXPECT_EQ(error_of(pieces(), [](json& j) { j["eos"] = {18446744073709551615u}; }),
            "tokenizer: \"eos\" contains 18446744073709551615; expected whole numbers of 32 bits");
  EXPECT_EQ(error_of(pieces(), [](json& j) { j["types"][3] = 1.5; }),
            "tokenizer: \"types\" contains 1.5; expected whole numbers of 32 bits");
  EXPECT_EQ(error_of(pieces(), [](json& j) { j["types"][3] = nullptr; }),
            "tokenizer: \"types\" contains null; expected whole numbers of 32 bits");
  EXPECT_EQ(error_of(pieces(), [](json& j) { j["types"] = 1; }),
            "tokenizer: \"types\" is of type number; expected an array");
  EXPECT_EQ(error_of(byte_level(), [](json& j) { j["pre"] = "tekken"; }),
            "tokenizer: \"pre\" is \"tekken\"; expected gpt-2, smollm, qwen2 or llama-bpe");
  EXPECT_TRUE(error_of(pieces(), [](json& j) { j["tokens"] = 3; }).starts_with("tokenizer: \"tokens\" "));
  EXPECT_TRUE(error_of(json::array(), [](json&) {}).starts_with("tokenizer: \"kind\" is missing"));
  const Tokenizer tokenizer(pieces());
  for (const Token token : {266, -5}) {
    try {
      tokenizer.decode(1, token);
      ADD_FAILURE() << token;
    } catch (const std::out_of_range& error) {
      EXPECT_EQ(error.what(), "token " + std::to_string(token) + " is none of the tokenizer's 266");
    }
  }
}

}  // namespace
}  // namespace llama
