// SPDX-License-Identifier: Apache-2.0
/// @file
/// Files that are never half written, and a folder that one process uses at a time.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace uptrain {

[[noreturn]] inline void bad_file(const std::string& path, const std::string& what) {
  throw std::runtime_error(path + ": " + what);
}

/// A file descriptor that is closed.
class OpenFile {
 public:
  OpenFile(const std::string& path, int flags) : file_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {
    if (file_ < 0) bad_file(path, std::strerror(errno));
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  ~OpenFile() { ::close(file_); }
  int number() const { return file_; }

 private:
  int file_;
};

/// Puts `bytes` at `path`: into a new file beside it, to the disk, then into its place. Killed at any moment, there is the file that was
/// there before, or the new one. @throws std::runtime_error that names the file
inline void replace_file(const std::string& path, std::span<const std::byte> bytes) {
  const std::string part = path + ".part";  // of a process that was killed, it is overwritten
  {
    const OpenFile file(part, O_WRONLY | O_CREAT | O_TRUNC);
    while (!bytes.empty()) {
      const ssize_t written = ::write(file.number(), bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) bad_file(part, written < 0 ? std::strerror(errno) : "cannot be written");
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
    if (::fsync(file.number()) != 0) bad_file(part, std::strerror(errno));
  }
  if (::rename(part.c_str(), path.c_str()) != 0) bad_file(path, std::strerror(errno));
  const std::string folder = std::filesystem::path(path).parent_path().string();
  const OpenFile directory(folder.empty() ? "." : folder, O_RDONLY | O_DIRECTORY);
  if (::fsync(directory.number()) != 0) bad_file(folder, std::strerror(errno));
}

/// All bytes of a file. @throws std::runtime_error that names the file
inline std::vector<char> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) bad_file(path, "cannot be opened");
  std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  if (file.bad()) bad_file(path, "cannot be read");
  return bytes;
}

/// Makes a folder, and keeps other processes that do the same away from it. Let go when the process ends, however it does.
class FolderLock {
 public:
  /// @throws std::runtime_error if the folder cannot be made, or another process has it
  explicit FolderLock(const std::string& folder) : file_(made(folder) + "/lock", O_RDWR | O_CREAT) {
    if (::flock(file_.number(), LOCK_EX | LOCK_NB) != 0) bad_file(folder, "is in use by another process");
  }

 private:
  static const std::string& made(const std::string& folder) {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) bad_file(folder, error.message());
    return folder;
  }
  OpenFile file_;
};

}  // namespace uptrain
