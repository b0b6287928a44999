// SPDX-License-Identifier: Apache-2.0
/// @file
/// Reads .safetensors: eight bytes with the length of a JSON header, the header, the tensors' bytes. The file is mapped, so that a
/// tensor is read from where it lies; every number in the header is checked before it is believed.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "gqa/convert/weight_view.hpp"

namespace checkpoint {

using gqa::Index;

[[noreturn]] inline void bad_file(const std::string& path, const std::string& what) {
  throw std::runtime_error(path + ": " + what);
}

/// A whole file, mapped for reading.
class MappedFile {
 public:
  /// @throws std::runtime_error that names the file and the system's reason
  explicit MappedFile(const std::string& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) bad_file(path, std::strerror(errno));
    struct stat status {};
    if (::fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
      ::close(file);
      bad_file(path, "is no regular file");
    }
    size_ = static_cast<std::size_t>(status.st_size);
    if (size_ > 0) data_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
    const int reason = errno;
    ::close(file);
    if (data_ == MAP_FAILED) bad_file(path, std::strerror(reason));
  }
  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile() {
    if (data_ != nullptr) ::munmap(data_, size_);
  }
  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Bytes of an element, 0 for a type that the format does not have.
inline std::size_t dtype_bytes(const std::string& dtype) {
  static const std::map<std::string, std::size_t> known = {
      {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},  {"I32", 4},     {"I16", 2},    {"I8", 1},
      {"U64", 8}, {"U32", 4}, {"U16", 2}, {"U8", 1},   {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
  const auto found = known.find(dtype);
  return found == known.end() ? 0 : found->second;
}

/// One tensor of a file.
struct Tensor {
  std::string dtype;
  std::vector<std::uint64_t> shape;
  std::span<const std::byte> bytes;
};

/// A tensor of one or two dims as a matrix of weights; a copy where it does not lie at an address fit for its elements.
class TensorWeights {
 public:
  /// @throws std::runtime_error if the tensor is not f32, bf16 or f16, or has other dims
  TensorWeights(const std::string& name, const Tensor& tensor) {
    const auto type = tensor.dtype == "F32"    ? gqa::ElementType::f32
                      : tensor.dtype == "BF16" ? gqa::ElementType::bf16
                                               : gqa::ElementType::f16;
    if (tensor.dtype != "F32" && tensor.dtype != "BF16" && tensor.dtype != "F16")
      throw std::runtime_error(name + ": is " + tensor.dtype + "; expected F32, BF16 or F16");
    if (tensor.shape.empty() || tensor.shape.size() > 2)
      throw std::runtime_error(name + ": has " + std::to_string(tensor.shape.size()) + " dims; expected 1 or 2");
    view_.type = type;
    view_.rows = static_cast<Index>(tensor.shape[0]);
    view_.columns = tensor.shape.size() == 2 ? static_cast<Index>(tensor.shape[1]) : 1;
    view_.row_stride = view_.columns;
    const auto address = reinterpret_cast<std::uintptr_t>(tensor.bytes.data());
    if (address % static_cast<std::uintptr_t>(gqa::element_bytes(type)) == 0) {
      view_.data = tensor.bytes.data();
    } else {
      copy_.assign(tensor.bytes.begin(), tensor.bytes.end());
      view_.data = copy_.data();
    }
  }
  TensorWeights(const TensorWeights&) = delete;
  TensorWeights& operator=(const TensorWeights&) = delete;
  const gqa::ConstWeightView& view() const { return view_; }

 private:
  gqa::ConstWeightView view_;
  std::vector<std::byte> copy_;
};

/// A file's tensors by name.
class SafetensorsFile {
 public:
  /// @throws std::runtime_error that names the file and what is wrong with it: cut off, no such format, or a header that lies
  explicit SafetensorsFile(const std::string& path) : file_(path) {
    const std::span<const std::byte> bytes = file_.bytes();
    if (bytes.size() < 8)
      bad_file(path, "is " + std::to_string(bytes.size()) + " bytes; a .safetensors file starts with a length of 8");
    std::uint64_t length = 0;
    for (std::size_t i = 0; i < 8; ++i) length |= static_cast<std::uint64_t>(bytes[i]) << (8 * i);
    constexpr std::uint64_t most = 100'000'000;  // the format's own limit
    if (length == 0 || (bytes.size() > 8 && bytes[8] != std::byte{'{'}))
      bad_file(path, "no .safetensors file: its header does not begin with {");
    if (length > most)
      bad_file(path, "no .safetensors file: its first eight bytes say that a header of " + std::to_string(length) +
                         " bytes follows; at most " + std::to_string(most) + " are allowed");
    if (length > bytes.size() - 8)
      bad_file(path, "is cut off: a header of " + std::to_string(length) + " bytes is announced, " +
                         std::to_string(bytes.size() - 8) + " bytes follow");
    const auto* text = reinterpret_cast<const char*>(bytes.data()) + 8;
    read_header(path, {text, static_cast<std::size_t>(length)}, bytes.subspan(8 + static_cast<std::size_t>(length)));
  }

  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  /// What the file says about itself, strings by name.
  const nlohmann::json& metadata() const { return metadata_; }

 private:
  using Json = nlohmann::json;

  void read_header(const std::string& path, std::string_view text, std::span<const std::byte> data) {
    std::set<std::string> names;
    std::string twice;
    constexpr int deepest = 8;  // the format has 3; a copy of JSON takes stack for every level
    bool deep = false;
    const auto see = [&](int depth, Json::parse_event_t event, Json& value) {
      deep = deep || depth > deepest;
      if (depth > deepest) return false;
      if (event == Json::parse_event_t::key && depth == 1 && !names.insert(value.get<std::string>()).second)
        twice = value.get<std::string>();
      return true;
    };
    const Json header = Json::parse(text.begin(), text.end(), see, false);
    if (header.is_discarded() || !header.is_object())
      bad_file(path, "no .safetensors file: its header is no JSON object");
    if (deep) bad_file(path, "header: is nested more than " + std::to_string(deepest) + " deep");
    if (!twice.empty()) bad_file(path, "header: " + twice + " is there twice");
    std::vector<std::pair<std::uint64_t, std::uint64_t>> places;
    for (const auto& [name, entry] : header.items()) {
      if (name == "__metadata__") metadata_ = entry;
      else places.push_back(read_tensor(path, name, entry, data));
    }
    std::sort(places.begin(), places.end());
    std::uint64_t end = 0;
    for (const auto& [first, last] : places) {
      if (first < end) bad_file(path, "header: tensors overlap at byte " + std::to_string(first) + " of the data");
      if (first > end)
        bad_file(path, "header: no tensor has bytes " + std::to_string(end) + " to " + std::to_string(first) +
                           " of the data");
      end = last;
    }
    if (end != data.size())
      bad_file(path, "has " + std::to_string(data.size()) + " bytes of data; its header's tensors are " +
                         std::to_string(end));
  }

  std::pair<std::uint64_t, std::uint64_t> read_tensor(const std::string& path, const std::string& name,
                                                      const Json& entry, std::span<const std::byte> data) {
    const auto bad = [&](const std::string& what) { bad_file(path, "header: " + name + " " + what); };
    const auto numbers = [&](const char* key) {
      std::vector<std::uint64_t> made;
      if (!entry.is_object() || !entry.contains(key) || !entry[key].is_array()) bad(std::string("has no array ") + key);
      for (const Json& number : entry[key]) {
        if (!number.is_number_unsigned())
          bad(std::string("has a ") + key + " with something else than whole numbers from 0");
        made.push_back(number.get<std::uint64_t>());
      }
      return made;
    };
    Tensor tensor;
    tensor.shape = numbers("shape");
    const std::vector<std::uint64_t> offsets = numbers("data_offsets");
    if (offsets.size() != 2) bad("has " + std::to_string(offsets.size()) + " data_offsets; expected 2");
    if (!entry.contains("dtype") || !entry["dtype"].is_string()) bad("has no dtype");
    tensor.dtype = entry["dtype"].get<std::string>();
    std::uint64_t bytes = dtype_bytes(tensor.dtype);
    if (bytes == 0) bad("has the unknown dtype " + tensor.dtype);
    for (const std::uint64_t extent : tensor.shape)
      if (__builtin_mul_overflow(bytes, extent, &bytes) || bytes > (std::uint64_t{1} << 60))
        bad("has a shape of too many elements");
    if (offsets[0] > offsets[1]) bad("ends before it begins");
    if (offsets[1] > data.size())
      bad("ends at byte " + std::to_string(offsets[1]) + " of the data, which are " + std::to_string(data.size()) +
          ": the file is cut off");
    if (offsets[1] - offsets[0] != bytes)
      bad("has " + std::to_string(offsets[1] - offsets[0]) + " bytes; its shape and dtype need " +
          std::to_string(bytes));
    tensor.bytes = data.subspan(static_cast<std::size_t>(offsets[0]), static_cast<std::size_t>(bytes));
    tensors_.emplace(name, std::move(tensor));
    return {offsets[0], offsets[1]};
  }

  MappedFile file_;
  std::map<std::string, Tensor> tensors_;
  Json metadata_;
};

}  // namespace checkpoint
