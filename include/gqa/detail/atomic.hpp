// SPDX-License-Identifier: Apache-2.0
/// @file
/// Atomic numbers and pointers. In place of std::atomic, whose functions are shared by units with different compiler flags; these are part of
/// whoever calls them.
#pragma once

#include <atomic>
#include <type_traits>

#include "gqa/detail/config.hpp"

namespace gqa::detail {

/// A number, flag or pointer with the operations of std::atomic; sequentially consistent unless told otherwise. A flag takes a word: to change
/// a byte of memory, RISC-V's compilers may call a library that would have to be linked.
template <class T>
class Atomic {
 public:
  Atomic() = default;
  GQA_ALWAYS_INLINE constexpr explicit Atomic(T value) noexcept : value_(value) {}
  Atomic(const Atomic&) = delete;
  Atomic& operator=(const Atomic&) = delete;

  GQA_ALWAYS_INLINE T load(int order = __ATOMIC_SEQ_CST) const noexcept {
    return static_cast<T>(__atomic_load_n(&value_, order));
  }
  GQA_ALWAYS_INLINE void store(T value, int order = __ATOMIC_SEQ_CST) noexcept {
    __atomic_store_n(&value_, value, order);
  }
  GQA_ALWAYS_INLINE T exchange(T value, int order = __ATOMIC_SEQ_CST) noexcept {
    return static_cast<T>(__atomic_exchange_n(&value_, value, order));
  }
  GQA_ALWAYS_INLINE T fetch_add(T more, int order = __ATOMIC_SEQ_CST) noexcept {
    return __atomic_fetch_add(&value_, more, order);
  }
  GQA_ALWAYS_INLINE T fetch_or(T bits, int order = __ATOMIC_SEQ_CST) noexcept {
    return __atomic_fetch_or(&value_, bits, order);
  }
  GQA_ALWAYS_INLINE T fetch_and(T bits, int order = __ATOMIC_SEQ_CST) noexcept {
    return __atomic_fetch_and(&value_, bits, order);
  }
  /// `expected` ← what is there, if that is something else; read so that what it points to may be used.
  GQA_ALWAYS_INLINE bool compare_exchange(T& expected, T value, int order = __ATOMIC_SEQ_CST) noexcept {
    return __atomic_compare_exchange_n(&value_, &expected, value, false, order, __ATOMIC_ACQUIRE);
  }

 private:
  std::conditional_t<std::is_same_v<T, bool>, unsigned, T> value_{};
};

/// The same for what a user sees as a std::atomic, which is made of the same builtins. It need not be lock-free: GCC 12 says of a bool on RISC-V
/// that it is not, because it changes one by a call, and loads and stores it by instructions.
template <class T>
GQA_ALWAYS_INLINE T load_relaxed(const std::atomic<T>& from) noexcept {
  static_assert(sizeof(std::atomic<T>) == sizeof(T));
  return __atomic_load_n(reinterpret_cast<const T*>(&from), __ATOMIC_RELAXED);
}
template <class T>
GQA_ALWAYS_INLINE void store_relaxed(std::atomic<T>& to, T value) noexcept {
  static_assert(sizeof(std::atomic<T>) == sizeof(T));
  __atomic_store_n(reinterpret_cast<T*>(&to), value, __ATOMIC_RELAXED);
}
template <class T>
GQA_ALWAYS_INLINE void add_relaxed(std::atomic<T>& to, T more) noexcept {
  static_assert(sizeof(std::atomic<T>) == sizeof(T) && std::atomic<T>::is_always_lock_free);
  __atomic_fetch_add(reinterpret_cast<T*>(&to), more, __ATOMIC_RELAXED);
}

}  // namespace gqa::detail
