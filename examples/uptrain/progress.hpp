// SPDX-License-Identifier: Apache-2.0
/// @file
/// How far the program is: a bar on a terminal, a line now and then elsewhere. On stderr, so that stdout has results alone.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>

namespace uptrain {

/// Counts work, in tokens of training, and tells how long what is left will take at the speed so far.
class Progress {
 public:
  /// @param total all work; what is found done is said by skip
  explicit Progress(double total) : total_(total) {}
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { clear(); }

  /// Work that an earlier process has done.
  void skip(double work) {
    done_ += work;
    skipped_ += work;
  }

  /// Work done now. @param what run and loss
  void advance(double work, const std::string& what) {
    done_ += work;
    const double now = seconds();
    if (now - shown_ < (terminal_ ? 0.1 : 10.0) && done_ < total_) return;
    shown_ = now;
    const double rate = (done_ - skipped_) / std::max(now, 1e-9), left = (total_ - done_) / std::max(rate, 1e-9);
    const double share = std::clamp(done_ / total_, 0.0, 1.0);
    const auto whole = static_cast<long>(left + 0.5);
    char numbers[96];
    std::snprintf(numbers, sizeof numbers, "%3.0f%%  %.0f tokens/s  %ld:%02ld left", 100 * share, rate, whole / 60,
                  whole % 60);
    if (!terminal_) {
      std::fprintf(stderr, "%s  %s\n", numbers, what.c_str());
      return;
    }
    constexpr int width = 24;
    const auto full = static_cast<int>(share * width);
    std::string bar(static_cast<std::size_t>(full), '#');
    bar.append(static_cast<std::size_t>(width - full), '.');
    std::fprintf(stderr, "\r\033[K[%s] %s  %s", bar.c_str(), numbers, what.c_str());
    std::fflush(stderr);
  }

  /// Makes room for other output.
  void clear() const {
    if (terminal_) std::fprintf(stderr, "\r\033[K");
  }

 private:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

  double total_, done_ = 0, skipped_ = 0, shown_ = -1e9;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  bool terminal_ = isatty(STDERR_FILENO) != 0;
};

}  // namespace uptrain
