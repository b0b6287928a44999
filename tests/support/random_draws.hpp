// SPDX-License-Identifier: Apache-2.0
// Where the numbers of a drawn case come from: a seeded engine, a fuzzer's bytes, or a list. What is drawn is kept, with names, so that a
// case can be printed, made again, and made smaller.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "random.hpp"

namespace gqa::test {

/// One number of a case, in [lo, hi].
struct Draw {
  const char* name;  ///< a literal
  Index lo;
  Index hi;
  Index value;
  std::uint64_t offset() const { return static_cast<std::uint64_t>(value) - static_cast<std::uint64_t>(lo); }
  std::uint64_t range() const { return static_cast<std::uint64_t>(hi) - static_cast<std::uint64_t>(lo); }
};

/// A source of numbers. Whoever draws arranges it so that `lo` is the simplest.
class Draws {
 public:
  Draws() = default;
  Draws(const Draws&) = delete;
  Draws& operator=(const Draws&) = delete;
  virtual ~Draws() = default;

  Index draw(const char* name, Index lo, Index hi) {
    const std::uint64_t range = static_cast<std::uint64_t>(hi) - static_cast<std::uint64_t>(lo);
    const std::uint64_t offset = range == 0 ? 0 : next(range);
    const auto value = static_cast<Index>(static_cast<std::uint64_t>(lo) + offset);
    made_.push_back({name, lo, hi, value});
    return value;
  }
  bool flag(const char* name) { return draw(name, 0, 1) != 0; }
  /// True once in `count` draws of a seeded engine.
  bool seldom(const char* name, Index count) { return draw(name, 0, count - 1) == count - 1; }
  /// In [0, count), one of hostile_fields.hpp's choices.
  Index below(Index count) { return draw("choice", 0, count - 1); }
  template <class T, std::size_t N>
  const T& pick(const char* name, const T (&items)[N]) {
    return items[draw(name, 0, static_cast<Index>(N) - 1)];
  }

  const std::vector<Draw>& made() const { return made_; }

 private:
  /// In [0, range], range > 0.
  virtual std::uint64_t next(std::uint64_t range) = 0;
  std::vector<Draw> made_;
};

class SeededDraws : public Draws {
 public:
  explicit SeededDraws(std::uint64_t seed) : random_(seed) {}

 private:
  std::uint64_t next(std::uint64_t range) override {
    return range == ~std::uint64_t{0} ? random_.bits() : random_.bits() % (range + 1);
  }
  Random random_;
};

/// Distances of the numbers from their least, as a list; what it lacks is 0, what is too large is the largest.
class ListedDraws : public Draws {
 public:
  explicit ListedDraws(std::vector<std::uint64_t> offsets) : offsets_(std::move(offsets)) {}

 private:
  std::uint64_t next(std::uint64_t range) override {
    if (at_ == offsets_.size()) return 0;
    const std::uint64_t offset = offsets_[at_++];
    return offset < range ? offset : range;
  }
  std::vector<std::uint64_t> offsets_;
  std::size_t at_ = 0;
};

/// Bytes that a number in [0, range] takes of a fuzzer's input.
inline std::size_t bytes_of_range(std::uint64_t range) { return range < 0x100 ? 1 : range < 0x10000 ? 2 : 8; }

/// A fuzzer's input, little end first; zeros behind it.
class ByteDraws : public Draws {
 public:
  explicit ByteDraws(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

 private:
  std::uint64_t next(std::uint64_t range) override {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < bytes_of_range(range) && at_ < bytes_.size(); ++i)
      value |= std::uint64_t{bytes_[at_++]} << (8 * i);
    return range == ~std::uint64_t{0} ? value : value % (range + 1);
  }
  std::span<const std::uint8_t> bytes_;
  std::size_t at_ = 0;
};

/// The list that makes the same draws again.
inline std::vector<std::uint64_t> offsets_of(std::span<const Draw> draws) {
  std::vector<std::uint64_t> offsets;
  for (const Draw& d : draws)
    if (d.range() != 0) offsets.push_back(d.offset());
  return offsets;
}

/// The fuzzer's input that does.
inline std::vector<std::uint8_t> bytes_of(std::span<const Draw> draws) {
  std::vector<std::uint8_t> bytes;
  for (const Draw& d : draws) {
    if (d.range() == 0) continue;
    for (std::size_t i = 0; i < bytes_of_range(d.range()); ++i)
      bytes.push_back(static_cast<std::uint8_t>(d.offset() >> (8 * i)));
  }
  return bytes;
}

/// A case for a reader: `name = value` of what is not the simplest, and the list to run it again from.
inline std::string to_text(std::span<const Draw> draws) {
  std::string text;
  for (const Draw& d : draws)
    if (d.value != d.lo) text += "  " + std::string(d.name) + " = " + std::to_string(d.value) + "\n";
  text += "  as a list:";
  for (const std::uint64_t offset : offsets_of(draws)) text += " " + std::to_string(offset);
  return text + "\n";
}

}  // namespace gqa::test
