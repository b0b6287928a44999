// SPDX-License-Identifier: Apache-2.0
/// @file
/// The memory of an owning cache: aligned, on huge pages where that pays, never moved.
#pragma once

#include <cstdlib>

#include "gqa/detail/checked.hpp"
#include "gqa/error.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#elif defined(_WIN32)
#include <malloc.h>
#endif

namespace gqa::detail {

inline constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;
/// From here on a buffer starts on a huge page's boundary and asks for huge pages.
inline constexpr std::size_t kHugePageThreshold = std::size_t{4} << 20;
/// Smaller buffers start on a cache line.
inline constexpr std::size_t kCacheLineBytes = 64;

inline namespace GQA_ABI {

/// Uninitialised memory: the first write to a page decides where it lies (NUMA) and that it exists at all.
inline void* allocate_bytes(Index bytes, const char* what) {
  const auto wanted = static_cast<std::size_t>(bytes);
  const std::size_t alignment = wanted >= kHugePageThreshold ? kHugePageBytes : kCacheLineBytes;
  const std::size_t rounded = (wanted + alignment - 1) / alignment * alignment;
  const bool possible = !kShortAddresses || bytes <= kMostBytes / 2;
#if defined(_WIN32)  // there free() cannot take back what was aligned
  void* const memory = possible ? ::_aligned_malloc(rounded, alignment) : nullptr;
#else
  void* const memory = possible ? std::aligned_alloc(alignment, rounded) : nullptr;
#endif
  if (memory == nullptr) raise<StorageExhausted>("gqa: no memory for " + to_text(bytes) + " bytes of " + what);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // A wish: where the system has no huge pages to give, ordinary ones do.
  if (alignment == kHugePageBytes) static_cast<void>(::madvise(memory, rounded, MADV_HUGEPAGE));
#endif
  return memory;
}

}  // namespace GQA_ABI

/// Gives back what allocate_bytes gave.
GQA_ALWAYS_INLINE void free_bytes(void* memory) noexcept {
#if defined(_WIN32)
  ::_aligned_free(memory);
#else
  std::free(memory);
#endif
}

/// Owns uninitialised memory. Moving a Buffer moves the ownership; the memory stays where it is.
class Buffer {
 public:
  GQA_ALWAYS_INLINE Buffer() noexcept : data_(nullptr), bytes_(0) {}
  /// @param what named in the message of StorageExhausted, which is thrown when the system has no memory to give
  GQA_ALWAYS_INLINE Buffer(Index bytes, const char* what) : data_(allocate_bytes(bytes, what)), bytes_(bytes) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  GQA_ALWAYS_INLINE Buffer(Buffer&& other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.forget(); }
  GQA_ALWAYS_INLINE Buffer& operator=(Buffer&& other) noexcept {
    if (this == &other) return *this;
    free_bytes(data_);
    data_ = other.data_;
    bytes_ = other.bytes_;
    other.forget();
    return *this;
  }
  GQA_ALWAYS_INLINE ~Buffer() { free_bytes(data_); }

  template <class T>
  GQA_ALWAYS_INLINE T* as() const noexcept {
    return static_cast<T*>(data_);
  }
  /// Bytes asked for.
  GQA_ALWAYS_INLINE Index bytes() const noexcept { return bytes_; }

 private:
  GQA_ALWAYS_INLINE void forget() noexcept {
    data_ = nullptr;
    bytes_ = 0;
  }

  void* data_;
  Index bytes_;
};

/// A Buffer that is copied with its owner; of 0 bytes there is none.
class CopiedBuffer {
 public:
  GQA_ALWAYS_INLINE CopiedBuffer() noexcept {}
  GQA_ALWAYS_INLINE CopiedBuffer(Index bytes, const char* what) : what_(what) {
    if (bytes > 0) buffer_ = Buffer(bytes, what);
  }
  GQA_ALWAYS_INLINE CopiedBuffer(const CopiedBuffer& other) : CopiedBuffer(other.bytes(), other.what_) {
    if (bytes() > 0) __builtin_memcpy(as<void>(), other.as<void>(), static_cast<std::size_t>(bytes()));
  }
  GQA_ALWAYS_INLINE CopiedBuffer(CopiedBuffer&& other) noexcept
      : buffer_(static_cast<Buffer&&>(other.buffer_)), what_(other.what_) {}
  GQA_ALWAYS_INLINE CopiedBuffer& operator=(const CopiedBuffer& other) {
    if (this != &other) *this = CopiedBuffer(other);
    return *this;
  }
  GQA_ALWAYS_INLINE CopiedBuffer& operator=(CopiedBuffer&& other) noexcept {
    buffer_ = static_cast<Buffer&&>(other.buffer_);
    what_ = other.what_;
    return *this;
  }
  GQA_ALWAYS_INLINE ~CopiedBuffer() {}

  template <class T>
  GQA_ALWAYS_INLINE T* as() const noexcept {
    return buffer_.as<T>();
  }
  GQA_ALWAYS_INLINE Index bytes() const noexcept { return buffer_.bytes(); }

 private:
  Buffer buffer_{};
  const char* what_ = "";
};

}  // namespace gqa::detail
