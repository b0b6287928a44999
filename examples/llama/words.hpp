// SPDX-License-Identifier: Apache-2.0
/// @file
/// How byte-level encodings cut a text into words before they merge anything: regular expressions by the name of the model's scheme.
#pragma once

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <cstddef>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llama {

/// One regular expression over UTF-8, with Unicode's classes. Bytes that are no UTF-8 match nothing.
class Pattern {
 public:
  explicit Pattern(const char* expression) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression), PCRE2_ZERO_TERMINATED,
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF, &error, &offset, nullptr));
    if (!code_) throw std::logic_error("pattern " + std::string(expression) + ": " + message(error));
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // without, it is interpreted
  }

  /// Appends the matches in `text`, and what lies between them, to `pieces`.
  void split(std::string_view text, std::vector<std::string_view>& pieces) const {
    const std::unique_ptr<pcre2_match_data, Free> match(pcre2_match_data_create_from_pattern(code_.get(), nullptr));
    if (!match) throw std::bad_alloc();
    std::size_t done = 0;
    for (std::size_t at = 0; at < text.size();) {
      const int found =
          pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at, 0, match.get(), nullptr);
      if (found == PCRE2_ERROR_NOMATCH) break;
      if (found < 0)
        throw std::runtime_error("cutting the text into words, from byte " + std::to_string(at) + ": " +
                                 message(found));
      const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
      if (range[1] == range[0]) {  // an empty match says nothing
        at = range[1] + 1;
        continue;
      }
      if (range[0] > done) pieces.push_back(text.substr(done, range[0] - done));
      pieces.push_back(text.substr(range[0], range[1] - range[0]));
      done = at = range[1];
    }
    if (done < text.size()) pieces.push_back(text.substr(done));
  }

 private:
  static std::string message(int error) {
    std::array<PCRE2_UCHAR, 256> buffer{};
    pcre2_get_error_message(error, buffer.data(), buffer.size());
    return reinterpret_cast<const char*>(buffer.data());
  }

  struct Free {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
    void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
  };
  std::unique_ptr<pcre2_code, Free> code_;
};

/// A model's words: one expression after another, each on the pieces that the ones before it left.
class WordSplitter {
 public:
  /// @param scheme as GGUF's tokenizer.ggml.pre names it
  /// @throws std::runtime_error that lists the known schemes
  explicit WordSplitter(const std::string& scheme) {
    // The schemes of GPT-2 (Radford et al. 2019), of models that take digits one by one before it, of Qwen2 and of Llama 3.
    static constexpr const char* gpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
    static constexpr const char* qwen2 =
        R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
    static constexpr const char* llama3 =
        R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
    if (scheme == "gpt-2") {
      patterns_.emplace_back(gpt2);
    } else if (scheme == "smollm") {
      patterns_.emplace_back(R"(\p{N})");
      patterns_.emplace_back(gpt2);
    } else if (scheme == "qwen2") {
      patterns_.emplace_back(qwen2);
    } else if (scheme == "llama-bpe") {
      patterns_.emplace_back(llama3);
    } else {
      throw std::runtime_error("tokenizer: \"pre\" is \"" + scheme + "\"; expected gpt-2, smollm, qwen2 or llama-bpe");
    }
  }

  /// Pieces of `text`, in order and without gaps. Safe to call from several threads.
  std::vector<std::string_view> split(std::string_view text) const {
    std::vector<std::string_view> pieces{text};
    for (const Pattern& pattern : patterns_) {
      std::vector<std::string_view> finer;
      for (const std::string_view piece : pieces) pattern.split(piece, finer);
      pieces = std::move(finer);
    }
    return pieces;
  }

 private:
  std::vector<Pattern> patterns_;
};

}  // namespace llama
