// SPDX-License-Identifier: Apache-2.0
/// @file
/// Text to tokens and back, as llama2.c does it. The file: int32 bytes of the longest piece; then per token f32 score, int32
/// length, that many bytes.
#pragma once

#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace stories {

using Token = int;

/// A sequence starts with this one, and generation stops at it.
inline constexpr Token begin_of_sequence = 1;

/// The tokens of the 256 bytes, for text that is no piece, stand after <unk>, <s> and </s>.
inline constexpr Token first_byte = 3;

/// Byte-pair encoding with a byte fallback (SentencePiece's scheme).
class Tokenizer {
 public:
  /// Reads `vocabulary` tokens. @throws std::runtime_error that names the file and what is wrong with it.
  Tokenizer(const std::string& path, int vocabulary) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + ": cannot be opened");
    const auto read = [&](void* to, std::int32_t bytes, int token) {
      if (!file.read(static_cast<char*>(to), bytes))
        throw std::runtime_error(path + ": ends within token " + std::to_string(token) + "; the model has " +
                                 std::to_string(vocabulary));
    };
    std::int32_t longest = 0;
    read(&longest, sizeof(longest), 0);
    if (longest < 1 || longest > 4096)
      throw std::runtime_error(path + ": longest piece is " + std::to_string(longest) + " bytes; expected 1 … 4096");
    for (Token token = 0; token < vocabulary; ++token) {
      float score = 0;
      std::int32_t length = 0;
      read(&score, sizeof(score), token);
      read(&length, sizeof(length), token);
      if (length < 0 || length > longest)
        throw std::runtime_error(path + ": token " + std::to_string(token) + " is " + std::to_string(length) +
                                 " bytes; expected 0 … " + std::to_string(longest));
      std::string piece(static_cast<std::size_t>(length), '\0');
      read(piece.data(), length, token);
      ids_.emplace(piece, token);
      pieces_.push_back({std::move(piece), score});
    }
    if (vocabulary < first_byte + 256 || pieces_[first_byte].text != "<0x00>")
      throw std::runtime_error(path + ": token " + std::to_string(first_byte) +
                               " is not <0x00>, the first of 256 bytes");
    if (file.peek() != std::ifstream::traits_type::eof())
      throw std::runtime_error(path + ": goes on after the model's " + std::to_string(vocabulary) + " tokens");
  }

  /// The begin token and the pieces of `text`, which gets a space in front unless it is empty: a word's piece includes one.
  std::vector<Token> encode(std::string_view text) const {
    std::vector<Token> tokens{begin_of_sequence};
    if (text.empty()) return tokens;
    append_character(tokens, " ");
    for (std::size_t begin = 0; begin < text.size();) {
      std::size_t end = begin + 1;
      while (end < text.size() && end - begin < 4 && (static_cast<unsigned char>(text[end]) & 0xc0u) == 0x80u) ++end;
      append_character(tokens, text.substr(begin, end - begin));
      begin = end;
    }
    while (merge_best_pair(tokens)) {
    }
    return tokens;
  }

  /// What to print for `token` after `previous`. @throws std::out_of_range if there is no such token
  std::string decode(Token previous, Token token) const {
    const std::string& piece = pieces_.at(static_cast<std::size_t>(token)).text;
    if (token >= first_byte && token < first_byte + 256) return std::string(1, static_cast<char>(token - first_byte));
    return previous == begin_of_sequence && piece.starts_with(' ') ? piece.substr(1) : piece;
  }

  /// The text of a whole sequence, begin token first.
  std::string decode(const std::vector<Token>& tokens) const {
    std::string text;
    for (std::size_t i = 1; i < tokens.size(); ++i) text += decode(tokens[i - 1], tokens[i]);
    return text;
  }

 private:
  struct Piece {
    std::string text;
    float score;
  };

  void append_character(std::vector<Token>& tokens, std::string_view character) const {
    if (const auto found = ids_.find(std::string(character)); found != ids_.end()) {
      tokens.push_back(found->second);
      return;
    }
    for (const char byte : character) tokens.push_back(first_byte + static_cast<unsigned char>(byte));
  }

  bool merge_best_pair(std::vector<Token>& tokens) const {
    std::size_t best = 0;
    Token merged = -1;
    for (std::size_t i = 1; i + 1 < tokens.size(); ++i) {
      const auto found = ids_.find(pieces_.at(static_cast<std::size_t>(tokens[i])).text +
                                   pieces_.at(static_cast<std::size_t>(tokens[i + 1])).text);
      if (found != ids_.end() && (merged < 0 || score(found->second) > score(merged))) {
        best = i;
        merged = found->second;
      }
    }
    if (merged < 0) return false;
    tokens[best] = merged;
    tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    return true;
  }

  float score(Token token) const { return pieces_[static_cast<std::size_t>(token)].score; }

  std::vector<Piece> pieces_;
  std::unordered_map<std::string, Token> ids_;
};

}  // namespace stories
