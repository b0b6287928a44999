// SPDX-License-Identifier: Apache-2.0
/// @file
/// Lines that a user types, and Ctrl-C.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

#include "gqa/gqa.hpp"

namespace llama {

/// Opens those of standard input, output and error that are closed, so that nothing else gets their numbers, which would be read as the user's lines
/// or printed into: input is at its end then, and what is printed is an error.
inline void open_closed_streams() {
  for (int stream = STDIN_FILENO; stream <= STDERR_FILENO; ++stream)
    if (::fcntl(stream, F_GETFD) < 0) ::open("/dev/null", O_RDONLY);  // gets the lowest number, which is this one
}

/// While there is one, and there may be one, Ctrl-C stops the calls that have control() in their options, and wakes LineReader, instead of ending
/// the program.
class StopOnInterrupt {
 public:
  /// @throws std::runtime_error if the system has no more files to give
  StopOnInterrupt() {
    if (::pipe(wake_) != 0) throw std::runtime_error("no pipe for Ctrl-C: too many open files");
    for (const int end : wake_) {
      ::fcntl(end, F_SETFL, O_NONBLOCK);
      ::fcntl(end, F_SETFD, FD_CLOEXEC);
    }
    struct sigaction action {};
    action.sa_handler = [](int) {
      const int saved = errno;
      control_.stop = true;
      [[maybe_unused]] const ssize_t written = ::write(wake_[1], "", 1);
      errno = saved;
    };
    action.sa_flags = SA_RESTART;  // what is being printed is printed
    ::sigaction(SIGINT, &action, &before_);
  }
  ~StopOnInterrupt() {
    ::sigaction(SIGINT, &before_, nullptr);
    for (const int end : wake_) ::close(end);
  }
  StopOnInterrupt(const StopOnInterrupt&) = delete;
  StopOnInterrupt& operator=(const StopOnInterrupt&) = delete;

  static gqa::CallControl& control() { return control_; }
  /// Readable from Ctrl-C to reset(): a flag alone would leave a wait asleep that begins just after it has been looked at.
  static int wake() { return wake_[0]; }
  /// As if there had been no Ctrl-C.
  static void reset() {
    std::array<char, 64> bytes;
    while (::read(wake_[0], bytes.data(), bytes.size()) > 0) continue;
    control_.stop = false;
  }

 private:
  struct sigaction before_ {};
  static inline gqa::CallControl control_;
  static inline int wake_[2] = {-1, -1};
};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal's handler sets it");

/// Lines of an open file, which may be a terminal.
class LineReader {
 public:
  enum class Result { line, end, interrupted, cut };

  explicit LineReader(int file) : file_(file), terminal_(::isatty(file) == 1) {}

  /// Waits for a line.
  /// @param line  without its newline; the last one needs none
  /// @return cut: Linux's terminals keep the first 4095 bytes of a line and drop the others
  Result next(std::string& line) {
    for (;;) {
      if (const std::size_t newline = read_.find('\n', looked_at_); newline != std::string::npos) {
        line = read_.substr(0, newline);
        read_.erase(0, newline + 1);
        looked_at_ = 0;
        return std::exchange(cut_, false) ? Result::cut : Result::line;
      }
      looked_at_ = read_.size();
      if (ended_) {
        line = std::exchange(read_, {});
        looked_at_ = 0;
        return line.empty() ? Result::end : Result::line;
      }
      pollfd waiting[] = {{file_, POLLIN, 0}, {StopOnInterrupt::wake(), POLLIN, 0}};
      if (::poll(waiting, 2, -1) < 0) continue;  // a signal
      if (waiting[1].revents != 0) return Result::interrupted;
      if (waiting[0].revents != 0) read();
    }
  }

 private:
  static constexpr std::size_t line_of_terminal = 4095;

  void read() {
    std::array<char, 16384> bytes;
    const ssize_t count = ::read(file_, bytes.data(), bytes.size());
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (count <= 0) {  // also a terminal that has gone
      ended_ = true;
      return;
    }
    read_.append(bytes.data(), static_cast<std::size_t>(count));
    cut_ = cut_ || (terminal_ && static_cast<std::size_t>(count) > line_of_terminal);
  }

  int file_;
  bool terminal_, ended_ = false, cut_ = false;
  std::string read_;           // and not yet given out
  std::size_t looked_at_ = 0;  // bytes of it without a newline
};

}  // namespace llama
