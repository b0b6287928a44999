// SPDX-License-Identifier: Apache-2.0
/// @file
/// Scratch memory: carving it up, and keeping it between calls.
#pragma once

#include <cstring>
#include <new>

#include "gqa/detail/config.hpp"

namespace gqa::detail {

inline constexpr std::size_t kScratchAlignment = 64;

/// Hands out aligned pieces of a buffer in order; with a null base it only adds up how much they take.
class Carver {
 public:
  GQA_ALWAYS_INLINE explicit Carver(std::byte* base) noexcept : base_(base) {}

  template <class T>
  GQA_ALWAYS_INLINE T* take(Index count) noexcept {
    const std::size_t at = used_;
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    used_ += (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  GQA_ALWAYS_INLINE std::size_t used() const noexcept { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

/// A functor's own scratch: buffers that finished calls put back for later ones, so that steady state allocates nothing, also
/// with several threads calling at once. A copy of the functor starts with none.
class ScratchCache {
 public:
  GQA_ALWAYS_INLINE constexpr ScratchCache() noexcept = default;
  GQA_ALWAYS_INLINE constexpr ScratchCache(const ScratchCache&) noexcept {}
  GQA_ALWAYS_INLINE ScratchCache& operator=(const ScratchCache&) noexcept { return *this; }
  GQA_ALWAYS_INLINE ~ScratchCache() {
    while (spare_ != nullptr) {
      Buffer* const next = spare_->next;
      release(spare_);
      spare_ = next;
    }
  }

  struct Buffer {
    Buffer* next;
    std::size_t bytes;
    GQA_ALWAYS_INLINE std::byte* data() noexcept { return reinterpret_cast<std::byte*>(this) + kScratchAlignment; }
  };

  /// A buffer of at least `bytes`: a spare one, or a new one in the place of a spare that is too small.
  GQA_ALWAYS_INLINE Buffer* acquire(std::size_t bytes) {
    lock();
    Buffer* buffer = spare_;
    if (buffer != nullptr) spare_ = buffer->next;
    unlock();
    if (buffer != nullptr && buffer->bytes >= bytes) return buffer;
    if (buffer != nullptr) release(buffer);
    void* const memory = ::operator new (bytes + kScratchAlignment, std::align_val_t{kScratchAlignment});
    return ::new (memory) Buffer{nullptr, bytes};
  }
  GQA_ALWAYS_INLINE void put_back(Buffer* buffer) noexcept {
    lock();
    buffer->next = spare_;
    spare_ = buffer;
    unlock();
  }

 private:
  GQA_ALWAYS_INLINE static void release(Buffer* buffer) noexcept {
    ::operator delete (static_cast<void*>(buffer), std::align_val_t{kScratchAlignment});
  }
  // Held for a few instructions only.
  GQA_ALWAYS_INLINE void lock() noexcept {
    while (__atomic_test_and_set(&busy_, __ATOMIC_ACQUIRE)) {
    }
  }
  GQA_ALWAYS_INLINE void unlock() noexcept { __atomic_clear(&busy_, __ATOMIC_RELEASE); }

  bool busy_ = false;  // by builtins: std::atomic's functions are shared by units of other flags
  Buffer* spare_ = nullptr;
};

/// A ScratchCache's buffer for the length of a call.
class ScratchLease {
 public:
  GQA_ALWAYS_INLINE ScratchLease(ScratchCache& cache, std::size_t bytes)
      : cache_(cache), buffer_(cache.acquire(bytes)) {}
  GQA_ALWAYS_INLINE ~ScratchLease() { cache_.put_back(buffer_); }
  ScratchLease(const ScratchLease&) = delete;
  ScratchLease& operator=(const ScratchLease&) = delete;
  GQA_ALWAYS_INLINE std::byte* data() noexcept { return buffer_->data(); }

 private:
  ScratchCache& cache_;
  ScratchCache::Buffer* buffer_;
};

}  // namespace gqa::detail
