// SPDX-License-Identifier: Apache-2.0
/// @file
/// Sums and products of numbers that a caller chose: each knows whether it still fits in an Index.
#pragma once

#include <limits>

#include "gqa/detail/config.hpp"

namespace gqa::detail {

/// What stands for a sum or product that does not fit: no argument may be as large, so whatever is given it refuses it.
inline constexpr Index kTooLarge = (std::numeric_limits<Index>::max)();

/// No object, and no distance within one, has more bytes: less than an Index can say where addresses have 32 bits.
inline constexpr Index kMostBytes = PTRDIFF_MAX;
inline constexpr bool kShortAddresses = kMostBytes < kTooLarge;
/// Whether an address can lie so many bytes from another, in either direction.
GQA_ALWAYS_INLINE constexpr bool is_distance([[maybe_unused]] Index bytes) noexcept {
#if PTRDIFF_MAX < 0x7fffffffffffffff  // compilers say of the other case that it is always true
  return bytes <= kMostBytes && bytes >= -kMostBytes;
#else
  return true;
#endif
}

/// An Index, or the knowledge that it does not fit in one. The library's only arithmetic on numbers that have not been checked.
class Checked {
 public:
  GQA_ALWAYS_INLINE constexpr Checked(Index value) noexcept : value_(value) {}  // NOLINT(google-explicit-constructor)

  GQA_ALWAYS_INLINE friend constexpr Checked operator+(Checked a, Checked b) noexcept {
    a.fits_ = !__builtin_add_overflow(a.value_, b.value_, &a.value_) & a.fits_ & b.fits_;
    return a;
  }
  GQA_ALWAYS_INLINE friend constexpr Checked operator-(Checked a, Checked b) noexcept {
    a.fits_ = !__builtin_sub_overflow(a.value_, b.value_, &a.value_) & a.fits_ & b.fits_;
    return a;
  }
  GQA_ALWAYS_INLINE friend constexpr Checked operator*(Checked a, Checked b) noexcept {
    a.fits_ = !__builtin_mul_overflow(a.value_, b.value_, &a.value_) & a.fits_ & b.fits_;
    return a;
  }

  /// Whether it fits, and is no larger than that.
  GQA_ALWAYS_INLINE constexpr bool at_most(Index most) const noexcept { return fits_ && value_ <= most; }
  GQA_ALWAYS_INLINE constexpr bool fits() const noexcept { return fits_; }
  /// Only if it fits.
  GQA_ALWAYS_INLINE constexpr Index value() const noexcept { return value_; }
  GQA_ALWAYS_INLINE constexpr Index value_or(Index other) const noexcept { return fits_ ? value_ : other; }

 private:
  Index value_;
  bool fits_ = true;
};

/// a · b · c, or what every call refuses.
GQA_ALWAYS_INLINE constexpr Index product(Index a, Index b, Index c = 1) noexcept {
  return (Checked(a) * b * c).value_or(kTooLarge);
}

}  // namespace gqa::detail
