// SPDX-License-Identifier: Apache-2.0
/// @file
/// Text to tokens and back by SentencePiece's scheme, byte-pair encoding with a byte fallback.
#pragma once

#include <algorithm>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace llama {

using Token = int;

/// The tokenizer of a converted model: its JSON object `tokenizer`.
class Tokenizer {
 public:
  explicit Tokenizer(const nlohmann::json& from)
      : eos_(from.at("eos").get<std::vector<Token>>()),
        bos_(from.at("bos").is_null() ? -1 : from.at("bos").get<Token>()),
        add_bos_(from.at("add_bos").get<bool>()) {
    const nlohmann::json& tokens = from.at("tokens");
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      std::string text = tokens[i].get<std::string>();
      for (std::size_t at = 0; (at = text.find("\xe2\x96\x81", at)) != std::string::npos; ++at)
        text.replace(at, 3, " ");
      const int type = from.at("types")[i].get<int>();
      if (type == 6) {
        bytes_.emplace(static_cast<Token>(i), static_cast<char>(std::stoi(text.substr(3, 2), nullptr, 16)));
        byte_tokens_.push_back(static_cast<Token>(i));
      }
      ids_.emplace(text, static_cast<Token>(i));
      pieces_.push_back({std::move(text), from.contains("scores") ? from.at("scores")[i].get<float>() : 0.0f});
    }
  }

  Token vocabulary() const { return static_cast<Token>(pieces_.size()); }
  bool is_end(Token token) const { return std::find(eos_.begin(), eos_.end(), token) != eos_.end(); }

  std::vector<Token> encode(std::string_view text) const {
    std::vector<Token> tokens;
    if (add_bos_) tokens.push_back(bos_);
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

  std::string decode(Token previous, Token token) const {
    const std::string& piece = pieces_.at(static_cast<std::size_t>(token)).text;
    if (const auto byte = bytes_.find(token); byte != bytes_.end()) return std::string(1, byte->second);
    return previous == bos_ && piece.starts_with(' ') ? piece.substr(1) : piece;
  }

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
    for (const char byte : character) tokens.push_back(byte_tokens_.at(static_cast<unsigned char>(byte)));
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

  std::vector<Token> eos_;
  Token bos_;
  bool add_bos_;
  std::vector<Piece> pieces_;
  std::unordered_map<std::string, Token> ids_;
  std::unordered_map<Token, char> bytes_;
  std::vector<Token> byte_tokens_;
};

}  // namespace llama
