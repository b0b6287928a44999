// SPDX-License-Identifier: Apache-2.0
/// @file
/// Scratch memory: carving it up, and keeping it between calls.
#pragma once

#include <cstring>
#include <new>

#include "gqa/detail/atomic.hpp"
#include "gqa/detail/checked.hpp"

namespace gqa::detail {

inline constexpr std::size_t kScratchAlignment = 64;

/// No call has more bytes where addresses are short: what its pieces add up to may be more than a size can say there.
inline constexpr Index kMostScratch = kMostBytes / 2 / Index{kScratchAlignment} * Index{kScratchAlignment};

/// Hands out aligned pieces of a buffer in order; with a null base it only adds up how much they take.
class Carver {
 public:
  GQA_ALWAYS_INLINE explicit Carver(std::byte* base) noexcept : base_(base) {}

  template <class T>
  GQA_ALWAYS_INLINE T* take(Index count) noexcept {
    const std::size_t at = used_;
    if (kShortAddresses && !(Checked(count) * Index{sizeof(T)} + static_cast<Index>(used_)).at_most(kMostScratch)) {
      used_ = static_cast<std::size_t>(kMostScratch) + kScratchAlignment;  // with_scratch refuses that
      return nullptr;
    }
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    used_ += (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
    return base_ == nullptr ? nullptr : static_cast<T*>(static_cast<void*>(base_ + at));
  }
  GQA_ALWAYS_INLINE std::size_t used() const noexcept { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

/// A number for the calling thread, from 0 on in the order in which threads ask.
GQA_ALWAYS_INLINE unsigned thread_number() noexcept {
  static Atomic<unsigned> threads{0};
  static thread_local unsigned number = 0;  // 1 more, so that it needs no initialisation
  if (number == 0) number = threads.fetch_add(1, __ATOMIC_RELAXED) + 1;
  return number - 1;
}

/// A functor's own scratch: buffers that finished calls put back for later ones, so that steady state allocates nothing, also
/// with several threads calling at once. A copy of the functor starts with none.
///
/// Threads have lists of their own, up to so many, made by the first call; a thread whose list is empty takes from other lists. A list is taken
/// out whole and put back, so that nobody waits for anybody: who finds nothing allocates.
class ScratchCache {
 public:
  ScratchCache() = default;
  GQA_ALWAYS_INLINE ScratchCache(const ScratchCache&) noexcept {}
  GQA_ALWAYS_INLINE ScratchCache& operator=(const ScratchCache&) noexcept { return *this; }
  GQA_ALWAYS_INLINE ~ScratchCache() {
    release();
    if (List* const lists = lists_.load(__ATOMIC_ACQUIRE)) free(lists);
  }

  struct Buffer {
    Buffer* next;
    std::size_t bytes;
    GQA_ALWAYS_INLINE std::byte* data() noexcept { return reinterpret_cast<std::byte*>(this) + kScratchAlignment; }
  };

  /// A buffer of at least `bytes`: a spare one, or a new one in the place of a spare that is too small.
  GQA_ALWAYS_INLINE Buffer* acquire(std::size_t bytes) {
    const unsigned own = thread_number();
    List* const lists = make_lists();
    Buffer* buffer = nullptr;
    for (unsigned i = 0; i < kLists && buffer == nullptr; ++i) {
      Atomic<Buffer*>& list = lists[(own + i) % kLists].first;
      if (list.load(__ATOMIC_RELAXED) == nullptr) continue;  // shared, not taken from another core
      buffer = list.exchange(nullptr, __ATOMIC_ACQUIRE);
      if (buffer != nullptr) put(list, buffer->next);
    }
    if (buffer != nullptr && buffer->bytes >= bytes) return buffer;
    if (buffer != nullptr) free(buffer);
    return ::new (allocate(bytes + kScratchAlignment)) Buffer{nullptr, bytes};
  }
  /// Of a buffer that was acquired.
  GQA_ALWAYS_INLINE void put_back(Buffer* buffer) noexcept {
    buffer->next = nullptr;
    put(lists_.load(__ATOMIC_ACQUIRE)[thread_number() % kLists].first, buffer);
  }
  /// Frees all spare buffers.
  GQA_ALWAYS_INLINE void release() noexcept {
    List* const lists = lists_.load(__ATOMIC_ACQUIRE);
    for (unsigned i = 0; i < kLists && lists != nullptr; ++i) {
      for (Buffer* rest = lists[i].first.exchange(nullptr, __ATOMIC_ACQUIRE); rest != nullptr;) {
        Buffer* const buffer = rest;
        rest = buffer->next;
        free(buffer);
      }
    }
  }

 private:
  static constexpr unsigned kLists = 16;
  struct alignas(kScratchAlignment) List {
    Atomic<Buffer*> first{nullptr};
  };

  GQA_ALWAYS_INLINE static void* allocate(std::size_t bytes) {
    return ::operator new (bytes, std::align_val_t{kScratchAlignment});
  }
  GQA_ALWAYS_INLINE static void free(void* memory) noexcept {
    ::operator delete (memory, std::align_val_t{kScratchAlignment});
  }
  GQA_ALWAYS_INLINE List* make_lists() {
    List* lists = lists_.load(__ATOMIC_ACQUIRE);
    if (lists != nullptr) return lists;
    List* const made = static_cast<List*>(allocate(kLists * sizeof(List)));
    for (unsigned i = 0; i < kLists; ++i) ::new (made + i) List;
    if (lists_.compare_exchange(lists, made, __ATOMIC_ACQ_REL)) return made;
    free(made);  // another thread was faster
    return lists;
  }
  /// Puts a chain of buffers, or none, before those of a list.
  GQA_ALWAYS_INLINE static void put(Atomic<Buffer*>& list, Buffer* chain) noexcept {
    if (chain == nullptr) return;
    Buffer* last = chain;
    while (last->next != nullptr) last = last->next;
    last->next = list.load(__ATOMIC_RELAXED);
    while (!list.compare_exchange(last->next, chain, __ATOMIC_RELEASE)) {
    }
  }

  Atomic<List*> lists_{nullptr};  // kLists of them
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
