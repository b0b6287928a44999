// SPDX-License-Identifier: Apache-2.0
/// @file
/// The metadata of a GGUF file, versions 2 and 3, little endian (ggml's docs/gguf.md). Nothing is read past the tensors'
/// descriptions, and nothing in the file is believed: every length is compared with what is left of the file before it is used.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <istream>
#include <map>
#include <string>
#include <vector>

#include "model_file.hpp"

namespace kv_budget {

/// One metadata value. Numbers of every type are kept as Index; of arrays, those of numbers or booleans up to kMostKept elements.
struct GgufValue {
  enum class Kind : std::uint8_t { number, real, boolean, text, list, skipped };
  Kind kind = Kind::skipped;
  Index number = 0;  ///< also a boolean's 0 or 1
  double real = 0;
  std::string text;
  std::vector<Index> list;
  bool list_of_booleans = false;
  Index length = 0;  ///< elements of an array, kept or not
};

/// What a file says about itself.
struct GgufFile {
  std::map<std::string, GgufValue> metadata;
  Index tensors = 0;
  Index parameters = 0;     ///< elements of all tensors
  bool has_output = false;  ///< the output layer has a matrix of its own
  Index file_bytes = 0;
};

/// Reads the beginning of a file, once.
class GgufReader {
 public:
  /// @param bytes in the stream, from where it stands
  /// @param path  named in complaints
  GgufReader(std::istream& stream, Index bytes, const std::string& path)
      : path_(path), stream_(stream), left_(static_cast<std::uint64_t>(bytes)) {
    file_.file_bytes = bytes;
  }

  GgufFile read() {
    std::array<char, 4> magic{};
    take(magic.data(), 4, "magic");
    if (std::memcmp(magic.data(), "GGUF", 4) != 0)
      throw ModelFileError(path_ + ": does not start with \"GGUF\"; expected a GGUF file");
    const auto version = number<std::uint32_t>("version");
    if (version == 0x02000000u || version == 0x03000000u)
      throw ModelFileError(path_ + ": is big endian; expected a little-endian GGUF file");
    if (version != 2 && version != 3) bad_field(path_, "version", static_cast<Index>(version), "2 or 3");
    const auto tensors = number<std::uint64_t>("tensor_count");
    const auto entries = number<std::uint64_t>("metadata_kv_count");
    // The smallest entries there can be: a tensor without dimensions has 24 bytes, a value of one byte 13.
    if (tensors > left_ / 24)
      bad_field(path_, "tensor_count", std::to_string(tensors), "as many as the file has room for");
    if (entries > left_ / 13)
      bad_field(path_, "metadata_kv_count", std::to_string(entries), "as many as the file has room for");
    for (std::uint64_t i = 0; i < entries; ++i) {
      const std::string key = text(kLongestKey, "the key of metadata entry " + std::to_string(i));
      const auto type = number<std::uint32_t>(key);
      if (!file_.metadata.emplace(key, value(type, key)).second)
        throw ModelFileError(path_ + ": " + key + " is there twice");
    }
    for (std::uint64_t i = 0; i < tensors; ++i) read_tensor(i);
    file_.tensors = static_cast<Index>(tensors);
    return std::move(file_);
  }

 private:
  static constexpr std::uint64_t kLongestKey = 65535;
  static constexpr std::uint64_t kLongestText = 1 << 20;  // kept; longer ones are skipped
  static constexpr std::uint64_t kMostKept = 1 << 16;
  static constexpr std::uint32_t kText = 8, kArray = 9;

  /// Bytes of a value of fixed size; 0 of others.
  static std::uint64_t bytes_of(std::uint32_t type) {
    constexpr std::array<std::uint64_t, 13> sizes{1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizes.size() ? sizes[type] : 0;
  }

  [[noreturn]] void truncated(const std::string& what, std::uint64_t needed) const {
    throw ModelFileError(path_ + ": ends within " + what + ": " + std::to_string(needed) + " bytes are needed, " +
                         std::to_string(left_) + " are left");
  }
  void need(std::uint64_t bytes, const std::string& what) const {
    if (bytes > left_) truncated(what, bytes);
  }
  void take(void* to, std::uint64_t bytes, const std::string& what) {
    need(bytes, what);
    if (!stream_.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes))) truncated(what, bytes);
    left_ -= bytes;
  }
  void skip(std::uint64_t bytes, const std::string& what) {
    need(bytes, what);
    stream_.ignore(static_cast<std::streamsize>(bytes));
    left_ -= bytes;
  }
  template <class T>
  T number(const std::string& what) {
    static_assert(std::endian::native == std::endian::little, "the file is read as it lies: little endian");
    T read{};
    take(&read, sizeof read, what);
    return read;
  }
  std::string text(std::uint64_t longest, const std::string& what) {
    const auto length = number<std::uint64_t>(what);
    need(length, what);
    if (length > longest)
      throw ModelFileError(path_ + ": " + what + " has " + std::to_string(length) + " bytes; expected " +
                           std::to_string(longest) + " at most");
    std::string read(static_cast<std::size_t>(length), '\0');
    take(read.data(), length, what);
    return read;
  }

  static Index clamped(std::uint64_t value) {
    return value > static_cast<std::uint64_t>(gqa::kUnlimited) ? gqa::kUnlimited : static_cast<Index>(value);
  }
  Index whole(std::uint32_t type, const std::string& key) {
    switch (type) {
      case 0: return number<std::uint8_t>(key);
      case 1: return number<std::int8_t>(key);
      case 2: return number<std::uint16_t>(key);
      case 3: return number<std::int16_t>(key);
      case 4: return number<std::uint32_t>(key);
      case 5: return number<std::int32_t>(key);
      case 7: {
        const auto byte = number<std::uint8_t>(key);
        if (byte > 1) bad_field(path_, key, Index{byte}, "a boolean, 0 or 1");
        return byte;
      }
      case 10: return clamped(number<std::uint64_t>(key));
      default: return number<std::int64_t>(key);
    }
  }
  static bool is_whole(std::uint32_t type) { return type <= 5 || type == 7 || type == 10 || type == 11; }

  GgufValue value(std::uint32_t type, const std::string& key) {
    GgufValue made;
    if (type == kArray) return array(key);
    if (type == kText) {
      made.kind = GgufValue::Kind::text;
      const auto length = number<std::uint64_t>(key);
      need(length, key);
      if (length > kLongestText) {
        skip(length, key);
        made.kind = GgufValue::Kind::skipped;
        return made;
      }
      made.text.resize(static_cast<std::size_t>(length));
      take(made.text.data(), length, key);
    } else if (is_whole(type)) {
      made.kind = type == 7 ? GgufValue::Kind::boolean : GgufValue::Kind::number;
      made.number = whole(type, key);
    } else if (type == 6 || type == 12) {
      made.kind = GgufValue::Kind::real;
      made.real = type == 6 ? static_cast<double>(number<float>(key)) : number<double>(key);
    } else {
      bad_field(path_, "the type of " + key, static_cast<Index>(type), "0 to 12");
    }
    return made;
  }

  GgufValue array(const std::string& key) {
    GgufValue made;
    const auto type = number<std::uint32_t>(key);
    const auto length = number<std::uint64_t>(key);
    made.length = clamped(length);
    if (const std::uint64_t each = bytes_of(type); each > 0) {
      if (length > left_ / each) truncated(key, length);
      if (!is_whole(type) || length > kMostKept) {
        skip(length * each, key);
        return made;
      }
      made.kind = GgufValue::Kind::list;
      made.list_of_booleans = type == 7;
      made.list.reserve(static_cast<std::size_t>(length));
      for (std::uint64_t i = 0; i < length; ++i) made.list.push_back(whole(type, key));
    } else if (type == kText) {
      if (length > left_ / 8) truncated(key, length);
      for (std::uint64_t i = 0; i < length; ++i) skip(number<std::uint64_t>(key), key);
    } else {  // of arrays: no model has them; nothing is gained by following them
      bad_field(path_, "the element type of " + key, static_cast<Index>(type), "numbers, booleans or strings");
    }
    return made;
  }

  void read_tensor(std::uint64_t which) {
    const std::string what = "the description of tensor " + std::to_string(which);
    const std::string name = text(kLongestKey, what);
    const auto dimensions = number<std::uint32_t>(what);
    if (dimensions > 8)
      bad_field(path_, "the number of dimensions of " + name, static_cast<Index>(dimensions), "8 at most");
    Index elements = 1;
    for (std::uint32_t d = 0; d < dimensions; ++d)
      elements = gqa::detail::times(elements, clamped(number<std::uint64_t>(what)));
    number<std::uint32_t>(what);  // its type
    number<std::uint64_t>(what);  // and where it lies
    file_.parameters = gqa::detail::plus(file_.parameters, elements);
    file_.has_output = file_.has_output || name == "output.weight";
  }

  std::string path_;
  std::istream& stream_;
  std::uint64_t left_;
  GgufFile file_;
};

}  // namespace kv_budget
