// SPDX-License-Identifier: Apache-2.0
/// @file
/// Writes files so that nothing is ever half written: into a new file beside the place, which is moved there when it is complete.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "safetensors.hpp"

namespace checkpoint {

/// A file that appears at `path` with commit(), whole, or not at all.
class NewFile {
 public:
  explicit NewFile(const std::string& path) : path_(path), part_(path + ".part-" + std::to_string(::getpid())) {
    file_ = ::open(part_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (file_ < 0) bad_file(part_, std::strerror(errno));
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile() {
    if (file_ >= 0) ::close(file_);
    if (!committed_) ::unlink(part_.c_str());
  }
  void write(std::span<const std::byte> bytes, std::uint64_t at) {
    while (!bytes.empty()) {
      const ssize_t written = ::pwrite(file_, bytes.data(), bytes.size(), static_cast<off_t>(at));
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) bad_file(part_, written < 0 ? std::strerror(errno) : "cannot be written");
      bytes = bytes.subspan(static_cast<std::size_t>(written));
      at += static_cast<std::uint64_t>(written);
    }
  }
  /// The bytes are on the disk, then the file is in its place.
  void commit() {
    if (::fsync(file_) != 0 || ::close(std::exchange(file_, -1)) != 0) bad_file(part_, std::strerror(errno));
    if (::rename(part_.c_str(), path_.c_str()) != 0) bad_file(path_, std::strerror(errno));
    committed_ = true;
  }

 private:
  std::string path_, part_;
  int file_ = -1;
  bool committed_ = false;
};

inline void write_text(const std::string& path, const std::string& text) {
  NewFile file(path);
  file.write(std::as_bytes(std::span(text)), 0);
  file.commit();
}

/// A .safetensors file whose tensors' shapes are known before their numbers are: the header first, then each tensor at its place,
/// in any order.
class SafetensorsWriter {
 public:
  struct Entry {
    std::string dtype;
    std::vector<std::uint64_t> shape;
  };

  SafetensorsWriter(const std::string& path, const std::map<std::string, Entry>& tensors,
                    const nlohmann::json& metadata)
      : path_(path), file_(path) {
    nlohmann::ordered_json header = nlohmann::ordered_json::object();
    if (!metadata.is_null()) header["__metadata__"] = metadata;
    std::uint64_t at = 0;
    for (const auto& [name, entry] : tensors) {
      std::uint64_t bytes = dtype_bytes(entry.dtype);
      for (const std::uint64_t extent : entry.shape) bytes *= extent;
      header[name] = {{"dtype", entry.dtype}, {"shape", entry.shape}, {"data_offsets", {at, at + bytes}}};
      places_[name] = {at, bytes};
      at += bytes;
    }
    data_bytes_ = at;
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data start at a multiple of eight bytes
    std::string length;
    for (int i = 0; i < 8; ++i) length += static_cast<char>(static_cast<std::uint64_t>(text.size()) >> (8 * i) & 0xff);
    text = length + text;
    file_.write(std::as_bytes(std::span(text)), 0);
    data_ = text.size();
  }

  /// Bytes of all tensors.
  std::uint64_t data_bytes() const { return data_bytes_; }

  void write(const std::string& name, std::span<const std::byte> bytes) {
    const auto place = places_.find(name);
    if (place == places_.end() || place->second.second != bytes.size() || !written_.insert(name).second)
      throw std::logic_error(path_ + ": " + name + " was not announced so, or was written before");
    file_.write(bytes, data_ + place->second.first);
  }

  /// @throws std::logic_error if a tensor is missing
  void commit() {
    if (written_.size() != places_.size()) throw std::logic_error(path_ + ": not every tensor was written");
    file_.commit();
  }

 private:
  std::string path_;
  NewFile file_;
  std::uint64_t data_ = 0, data_bytes_ = 0;  ///< where the tensors begin, and how much they are
  std::map<std::string, std::pair<std::uint64_t, std::uint64_t>> places_;
  std::set<std::string> written_;
};

}  // namespace checkpoint
