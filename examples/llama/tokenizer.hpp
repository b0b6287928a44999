// SPDX-License-Identifier: Apache-2.0
/// @file
/// Text to tokens and back, as a model's own tokenizer does it: SentencePiece's pairs by score, or byte-level pairs by rank.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "byte_alphabet.hpp"
#include "pair_merging.hpp"
#include "words.hpp"

namespace llama {

using Token = int;

/// Before the first token of a text.
inline constexpr Token no_token = -1;

/// What a converted file's tokenizer says, see convert.py. Immutable; safe to use from several threads.
class Tokenizer {
 public:
  /// @param json `kind` ("spm" or "bpe"), `pre` (bpe: the scheme of words), `tokens`, `types` (as GGUF numbers them), `scores` (spm), `merges`
  ///             (bpe: "left right", best first), `bos` (or null), `eos` (where generation ends), `add_bos`, `add_space_prefix`
  /// @throws std::runtime_error that names the member and what is expected
  explicit Tokenizer(const nlohmann::json& json) {
    const auto member = [&](const char* name) -> const nlohmann::json& {
      if (!json.is_object() || !json.contains(name)) bad(name, "is missing");
      return json.at(name);
    };
    const auto read = [&]<class T>(const char* name, T& to) {
      try {
        member(name).get_to(to);
      } catch (const nlohmann::json::exception& error) {
        bad(name, error.what());
      }
    };
    // nlohmann's conversions to int cut 1.5 to 1 and 2³² to 0.
    const auto whole = [](const char* name, const nlohmann::json& value) {
      constexpr double most = std::numeric_limits<int>::max();
      if (!value.is_number_integer() || std::abs(value.get<double>()) > most)
        bad(name, std::string("contains ") + (value.is_number() ? value.dump() : value.type_name()) +
                      "; expected whole numbers of 32 bits");
      return value.get<int>();
    };
    const auto read_whole = [&](const char* name, std::vector<int>& to) {
      if (!member(name).is_array())
        bad(name, std::string("is of type ") + member(name).type_name() + "; expected an array");
      for (const nlohmann::json& value : member(name)) to.push_back(whole(name, value));
    };
    std::string kind;
    read("kind", kind);
    if (kind != "spm" && kind != "bpe") bad("kind", "is \"" + kind + "\"; expected spm or bpe");
    read("tokens", texts_);
    std::vector<int> types;
    read_whole("types", types);
    expect_one_per_token("types", types.size());
    read("add_bos", add_bos_);
    if (!member("bos").is_null()) bos_ = whole("bos", member("bos"));
    if (add_bos_ || bos_ != no_token) expect_token("bos", bos_);
    read_whole("eos", ends_);
    for (const Token end : ends_) expect_token("eos", end);

    for (std::size_t i = 0; i < texts_.size(); ++i) {
      const auto type = static_cast<Type>(types[i]);
      if (type == Type::byte) add_byte(texts_[i], static_cast<Token>(i));
      // Of two tokens with one text the first is found, unless it is another kind of token.
      if (type == Type::control || type == Type::user_defined) {
        if (!texts_[i].empty()) special_.push_back(static_cast<Token>(i));
      } else {
        ids_.emplace(texts_[i], static_cast<Token>(i));
      }
    }
    std::stable_sort(special_.begin(), special_.end(),
                     [&](Token a, Token b) { return text(a).size() > text(b).size(); });
    if (kind == "spm") {
      read("scores", scores_);
      expect_one_per_token("scores", scores_.size());
      read("add_space_prefix", add_space_prefix_);
      for (const Token special : special_) ids_.emplace(text(special), special);  // a piece may merge to one
    } else {
      std::string scheme;
      read("pre", scheme);
      words_.emplace(scheme);
      whole_words_ = scheme == "llama-bpe";
      std::vector<std::string> merges;
      read("merges", merges);
      for (std::size_t rank = 0; rank < merges.size(); ++rank)
        ranks_.emplace(std::move(merges[rank]), static_cast<float>(rank));
    }
    make_output(types);
  }

  /// The tokens of `text`, after the begin token where the model wants one. Special tokens that are written out in it are recognised.
  std::vector<Token> encode(std::string_view text) const {
    std::vector<Token> tokens;
    if (add_bos_) tokens.push_back(bos_);
    bool first = true;  // of the text, or after a special token
    for (const Fragment& fragment : fragments(text)) {
      if (fragment.special != no_token) {
        tokens.push_back(fragment.special);
      } else if (words_) {
        encode_bytes(fragment.text, tokens);
      } else {
        std::string piece(add_space_prefix_ && first ? 1 : 0, ' ');
        encode_pieces(piece.append(fragment.text), tokens);
      }
      first = fragment.special != no_token;
    }
    return tokens;
  }

  /// The bytes to print for `token` after `previous` (`no_token` at the beginning); a character may take several tokens.
  /// @throws std::out_of_range if there is no such token
  std::string decode(Token previous, Token token) const {
    if (token < 0 || token >= vocabulary())
      throw std::out_of_range("token " + std::to_string(token) + " is none of the tokenizer's " +
                              std::to_string(vocabulary()));
    const std::string& output = outputs_[static_cast<std::size_t>(token)];
    const bool begins = previous == no_token || previous == bos_;
    return add_space_prefix_ && begins && output.starts_with(' ') ? output.substr(1) : output;
  }

  /// The text of a whole sequence.
  std::string decode(const std::vector<Token>& tokens) const {
    std::string text;
    Token previous = no_token;
    for (const Token token : tokens) text += decode(std::exchange(previous, token), token);
    return text;
  }

  /// Whether generation stops at `token`.
  bool is_end(Token token) const { return std::find(ends_.begin(), ends_.end(), token) != ends_.end(); }

  /// The begin token, `no_token` if the model has none.
  Token begin() const { return bos_; }

  /// Tokens that there are.
  Token vocabulary() const { return static_cast<Token>(texts_.size()); }

 private:
  /// As GGUF numbers them (tokenizer.ggml.token_type).
  enum class Type { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

  /// A part of a text: a special token, or what is between them.
  struct Fragment {
    std::string_view text;
    Token special = no_token;
  };

  static constexpr std::string_view space = "\u2581";  // how SentencePiece writes it

  [[noreturn]] static void bad(const std::string& name, const std::string& what) {
    throw std::runtime_error("tokenizer: \"" + name + "\" " + what);
  }

  void expect_one_per_token(const char* name, std::size_t size) const {
    if (size != texts_.size())
      bad(name, "has " + std::to_string(size) + " entries; expected one for each of the " +
                    std::to_string(texts_.size()) + " tokens");
  }

  void expect_token(const char* name, Token token) const {
    if (token < 0 || token >= vocabulary())
      bad(name, "is " + std::to_string(token) + "; expected a token below " + std::to_string(vocabulary()));
  }

  const std::string& text(Token token) const { return texts_[static_cast<std::size_t>(token)]; }

  /// `<0x0A>`: the token of a byte.
  void add_byte(const std::string& name, Token token) {
    constexpr std::string_view digits = "0123456789ABCDEF";
    const std::size_t high = name.size() == 6 ? digits.find(name[3]) : std::string_view::npos;
    const std::size_t low = name.size() == 6 ? digits.find(name[4]) : std::string_view::npos;
    if (!name.starts_with("<0x") || !name.ends_with('>') || high == std::string_view::npos ||
        low == std::string_view::npos)
      bad("tokens", "has a byte \"" + name + "\" at " + std::to_string(token) + "; expected <0x00> to <0xFF>");
    byte_of_[token] = static_cast<char>(16 * high + low);
    byte_tokens_[static_cast<char>(16 * high + low)] = token;
  }

  /// What each token prints as.
  void make_output(const std::vector<int>& types) {
    outputs_.reserve(texts_.size());
    for (std::size_t i = 0; i < texts_.size(); ++i) {
      const auto type = static_cast<Type>(types[i]);
      std::string output = texts_[i];
      if (type == Type::control || type == Type::unknown) {
        output.clear();
      } else if (type == Type::byte) {
        output = byte_of_.at(static_cast<Token>(i));
      } else if (type == Type::normal && words_) {
        output = alphabet_.to_bytes(output).value_or(output);
      } else if (!words_) {
        output = replaced(std::move(output), space, " ");
      }
      outputs_.push_back(std::move(output));
    }
  }

  static std::string replaced(std::string text, std::string_view from, std::string_view to) {
    for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
      text.replace(at, from.size(), to);
    return text;
  }

  /// Cuts `text` at special tokens: at all of the longest first, then of the next in what is left.
  std::vector<Fragment> fragments(std::string_view text) const {
    std::vector<Fragment> result;
    if (!text.empty()) result.push_back({text});
    for (const Token special : special_) {
      const std::string& name = this->text(special);
      if (text.find(name) == std::string_view::npos) continue;
      std::vector<Fragment> finer;
      for (const Fragment& fragment : result) {
        if (fragment.special != no_token) {
          finer.push_back(fragment);
          continue;
        }
        std::size_t done = 0;
        for (std::size_t at; (at = fragment.text.find(name, done)) != std::string_view::npos; done = at + name.size()) {
          if (at > done) finer.push_back({fragment.text.substr(done, at - done)});
          finer.push_back({fragment.text.substr(at, name.size()), special});
        }
        if (done < fragment.text.size()) finer.push_back({fragment.text.substr(done)});
      }
      result = std::move(finer);
    }
    return result;
  }

  Token find(std::string_view piece) const {
    const auto found = ids_.find(std::string(piece));
    return found == ids_.end() ? no_token : found->second;
  }

  /// SentencePiece: characters that merge to the piece with the best score; what is no piece becomes its bytes.
  void encode_pieces(std::string text, std::vector<Token>& tokens) const {
    const std::string written = replaced(std::move(text), " ", space);
    const auto priority = [&](std::string_view left, std::string_view right) -> std::optional<float> {
      const Token token = find({left.data(), left.size() + right.size()});
      return token == no_token ? std::nullopt : std::optional(scores_[static_cast<std::size_t>(token)]);
    };
    for (const std::string_view piece : merge_pairs(characters(written), priority)) {
      if (const Token token = find(piece); token != no_token) {
        tokens.push_back(token);
        continue;
      }
      for (const char byte : piece) {
        const auto found = byte_tokens_.find(byte);
        if (found == byte_tokens_.end())
          throw std::runtime_error("tokenizer: no token for \"" + std::string(piece) + "\", and none for its bytes");
        tokens.push_back(found->second);
      }
    }
  }

  /// Byte-level pairs: within a word, by rank. A byte that has no token is left out. Llama 3 has words that no merges lead to.
  void encode_bytes(std::string_view text, std::vector<Token>& tokens) const {
    const auto priority = [&](std::string_view left, std::string_view right) -> std::optional<float> {
      const auto found = ranks_.find(std::string(left) + ' ' + std::string(right));
      return found == ranks_.end() ? std::nullopt : std::optional(-found->second);
    };
    for (const std::string_view word : words_->split(text)) {
      const std::string written = alphabet_.from_bytes(word);
      if (const Token whole = whole_words_ ? find(written) : no_token; whole != no_token) {
        tokens.push_back(whole);
        continue;
      }
      for (const std::string_view piece : merge_pairs(characters(written), priority)) {
        const Token token = find(piece);
        if (token != no_token) tokens.push_back(token);  // some vocabularies lack bytes that their text never had
      }
    }
  }

  std::vector<std::string> texts_;
  std::vector<std::string> outputs_;  // what each prints as
  std::vector<float> scores_;         // spm
  std::unordered_map<std::string, Token> ids_;
  std::unordered_map<std::string, float> ranks_;  // bpe: of "left right"
  std::unordered_map<char, Token> byte_tokens_;
  std::unordered_map<Token, char> byte_of_;
  std::vector<Token> special_;  // longest first
  std::vector<Token> ends_;
  std::optional<WordSplitter> words_;  // bpe
  bool whole_words_ = false;           // bpe: a word that is a token is that token
  ByteAlphabet alphabet_;
  Token bos_ = no_token;
  bool add_bos_ = false;
  bool add_space_prefix_ = false;
};

}  // namespace llama
