// SPDX-License-Identifier: Apache-2.0
/// @file
/// The alphabet of byte-level encodings (GPT-2): each of the 256 bytes is one printable character, so that a vocabulary is text.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "pair_merging.hpp"

namespace llama {

/// Bytes to characters and back. Printable bytes of Latin-1 stand for themselves, the others, in order, for U+0100 and on.
class ByteAlphabet {
 public:
  ByteAlphabet() {
    unsigned next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
      const unsigned code = printable ? byte : next++;
      std::string& character = characters_[byte];
      if (code < 0x80) {
        character = static_cast<char>(code);
      } else {  // all are below U+0800: two bytes of UTF-8
        character = {static_cast<char>(0xc0u | (code >> 6)), static_cast<char>(0x80u | (code & 0x3fu))};
      }
      bytes_[code] = static_cast<unsigned char>(byte);
      known_[code] = true;
    }
  }

  std::string from_bytes(std::string_view bytes) const {
    std::string text;
    for (const char byte : bytes) text += characters_[static_cast<unsigned char>(byte)];
    return text;
  }

  /// Empty if a character of `text` is not of this alphabet.
  std::optional<std::string> to_bytes(std::string_view text) const {
    std::string bytes;
    for (const std::string_view character : characters(text)) {
      std::size_t code = static_cast<unsigned char>(character[0]);
      if (character.size() == 2) code = (code & 0x1fu) << 6 | (static_cast<unsigned char>(character[1]) & 0x3fu);
      if (character.size() > 2 || code >= known_.size() || !known_[code]) return std::nullopt;
      bytes += static_cast<char>(bytes_[code]);
    }
    return bytes;
  }

 private:
  std::array<std::string, 256> characters_;
  std::array<unsigned char, 0x100 + 68> bytes_{};  // by code: 68 bytes are not printable
  std::array<bool, 0x100 + 68> known_{};
};

}  // namespace llama
