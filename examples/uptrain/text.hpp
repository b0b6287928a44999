// SPDX-License-Identifier: Apache-2.0
/// @file
/// The text that is learnt, byte by byte, and the part of it that no training step sees.
#pragma once

#include <zlib.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "random.hpp"

namespace uptrain {

/// Bytes of a file, plain or compressed by gzip. @throws std::runtime_error that names the file and what is wrong with it
inline std::vector<std::uint8_t> read_text(const std::string& path) {
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), &gzclose);
  if (file == nullptr) throw std::runtime_error("text " + path + ": " + std::strerror(errno));
  std::vector<std::uint8_t> bytes;
  std::vector<std::uint8_t> part(std::size_t{1} << 16);
  for (int got = 1; got > 0;) {
    got = gzread(file.get(), part.data(), static_cast<unsigned>(part.size()));
    if (got > 0) bytes.insert(bytes.end(), part.begin(), part.begin() + got);
  }
  int status = Z_OK;
  const char* const message = gzerror(file.get(), &status);
  if (status != Z_OK)
    throw std::runtime_error("text " + path + ": " + (status == Z_ERRNO ? std::strerror(errno) : message));
  return bytes;
}

/// Bytes [first, last) of a text.
struct Stretch {
  Index first = 0;
  Index last = 0;
  Index size() const { return last - first; }
};

/// A text in five parts of equal length; the last tenth of each is held out, so that what is held out comes from all over the text.
class Text {
 public:
  /// @param context tokens of a sequence; its window is one byte longer
  /// @throws std::invalid_argument if a held-out stretch would not hold a window
  Text(std::vector<std::uint8_t> bytes, Index context) : bytes_(std::move(bytes)), window_(context + 1) {
    constexpr Index parts = 5;
    const Index part = static_cast<Index>(bytes_.size()) / parts, held_out = part / 10;
    if (held_out < window_)
      throw std::invalid_argument("the text is " + std::to_string(bytes_.size()) + " bytes; expected at least " +
                                  std::to_string(parts * 10 * window_) + " for sequences of " +
                                  std::to_string(context));
    for (Index i = 0; i < parts; ++i) {
      const Index end = (i + 1) * part;
      training_.push_back({i * part, end - held_out});
      held_out_.push_back({end - held_out, end});
    }
  }

  Index size() const { return static_cast<Index>(bytes_.size()); }
  std::uint32_t checksum() const { return static_cast<std::uint32_t>(crc32_z(0, bytes_.data(), bytes_.size())); }
  const std::vector<Stretch>& training() const { return training_; }
  const std::vector<Stretch>& held_out() const { return held_out_; }

  /// Where sequence `index` of a training step begins: a function of the arguments alone.
  Index training_start(std::uint64_t seed, Index step, Index index) const {
    Index starts = 0;
    for (const Stretch& each : training_) starts += each.size() - window_ + 1;
    Index start = random_below(
        random_bits(seed, Purpose::batches, static_cast<std::uint64_t>(step), static_cast<std::uint64_t>(index)),
        starts);
    for (const Stretch& each : training_) {
      const Index here = each.size() - window_ + 1;
      if (start < here) return each.first + start;
      start -= here;
    }
    throw std::logic_error("training_start: beyond the last stretch");
  }

  /// Where up to `count` held-out windows begin, which do not overlap: evenly over all that there are.
  std::vector<Index> held_out_starts(Index count) const {
    std::vector<Index> all;
    for (const Stretch& each : held_out_)
      for (Index start = each.first; start + window_ <= each.last; start += window_) all.push_back(start);
    const auto found = static_cast<Index>(all.size());
    if (count >= found) return all;
    std::vector<Index> some;
    for (Index i = 0; i < count; ++i) some.push_back(all[static_cast<std::size_t>(i * found / count)]);
    return some;
  }

  /// The context + 1 bytes from `start` on.
  std::span<const std::uint8_t> window(Index start) const {
    return std::span(bytes_).subspan(static_cast<std::size_t>(start), static_cast<std::size_t>(window_));
  }
  Index window_bytes() const { return window_; }

 private:
  std::vector<std::uint8_t> bytes_;
  Index window_;
  std::vector<Stretch> training_, held_out_;
};

/// Windows side by side: what is fed, and what follows.
struct Batch {
  Index sequences = 0;
  Index length = 0;
  std::vector<std::uint8_t> inputs, targets;

  Batch(const Text& text, const std::vector<Index>& starts)
      : sequences(static_cast<Index>(starts.size())), length(text.window_bytes() - 1) {
    for (const Index start : starts) {
      const std::span<const std::uint8_t> window = text.window(start);
      inputs.insert(inputs.end(), window.begin(), window.end() - 1);
      targets.insert(targets.end(), window.begin() + 1, window.end());
    }
  }
};

/// The batch of a training step.
inline Batch training_batch(const Text& text, std::uint64_t seed, Index step, Index sequences) {
  std::vector<Index> starts;
  for (Index i = 0; i < sequences; ++i) starts.push_back(text.training_start(seed, step, i));
  return {text, starts};
}

}  // namespace uptrain
