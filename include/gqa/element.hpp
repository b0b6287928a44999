// SPDX-License-Identifier: Apache-2.0
/// @file
/// Element types of queries, outputs and plain caches: f32 and the two 16-bit storage types.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "gqa/detail/config.hpp"

namespace gqa {

/// How an element is stored.
enum class ElementType : std::uint8_t { f32, bf16, f16 };

namespace detail {

inline constexpr std::uint8_t kLastElementType = static_cast<std::uint8_t>(ElementType::f16);
/// False for a number that somebody has cast.
GQA_ALWAYS_INLINE constexpr bool is_element_type(ElementType type) noexcept {
  return static_cast<std::uint8_t>(type) <= kLastElementType;
}

}  // namespace detail

namespace detail::inline GQA_ABI {

// By its bits, where it lies: a compiler may have been told that every number is finite, and every argument a number.
GQA_ALWAYS_INLINE constexpr bool is_finite(const float& value) noexcept {
  return (__builtin_bit_cast(std::uint32_t, value) & 0x7f800000u) != 0x7f800000u;
}

// Round to nearest, ties to even; NaN stays NaN (quiet).
GQA_ALWAYS_INLINE constexpr std::uint16_t bf16_from_float(float value) noexcept {
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

GQA_ALWAYS_INLINE constexpr float float_from_bf16(std::uint16_t bits) noexcept {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
}

GQA_ALWAYS_INLINE constexpr std::uint16_t f16_from_float(float value) noexcept {
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
  if (magnitude < 0x33000000u) return sign;                                         // below half of the least denormal
  if (magnitude < 0x38800000u) {  // a denormal half: shift the mantissa into place, rounding what falls out
    const std::uint32_t shift = 126u - (magnitude >> 23);
    const std::uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    const std::uint32_t kept = mantissa >> shift;
    const std::uint32_t rest = mantissa & ((1u << shift) - 1u);
    const std::uint32_t half = 1u << (shift - 1u);
    const std::uint32_t up = (rest > half || (rest == half && (kept & 1u))) ? 1u : 0u;
    return static_cast<std::uint16_t>(sign | (kept + up));
  }
  const std::uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | (rounded >> 13));
}

GQA_ALWAYS_INLINE constexpr float float_from_f16(std::uint16_t bits) noexcept {
  const std::uint32_t sign = (static_cast<std::uint32_t>(bits) & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fu;
  const std::uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0x1fu)
    return __builtin_bit_cast(float, sign | 0x7f800000u | (mantissa << 13) | (mantissa ? 0x400000u : 0u));
  if (exponent != 0) return __builtin_bit_cast(float, sign | ((exponent + 112u) << 23) | (mantissa << 13));
  if (mantissa == 0) return __builtin_bit_cast(float, sign);
  const auto lead =
      static_cast<std::uint32_t>(__builtin_clz(mantissa)) - 21u;  // 1 … 10: steps to a leading one at bit 10
  return __builtin_bit_cast(float, sign | ((113u - lead) << 23) | (((mantissa << lead) & 0x3ffu) << 13));
}

}  // namespace detail::inline GQA_ABI

/// bfloat16 storage: the upper half of an f32. Bit-compatible with Eigen::bfloat16. Holds bits; does no arithmetic.
struct bf16 {
  std::uint16_t bits = 0;
  bf16() = default;
  /// Rounds to nearest, ties to even.
  GQA_ALWAYS_INLINE explicit constexpr bf16(float value) noexcept : bits(detail::bf16_from_float(value)) {}
  GQA_ALWAYS_INLINE explicit constexpr operator float() const noexcept { return detail::float_from_bf16(bits); }
};

/// IEEE binary16 storage. Bit-compatible with Eigen::half. Holds bits; does no arithmetic.
struct f16 {
  std::uint16_t bits = 0;
  f16() = default;
  /// Rounds to nearest, ties to even; overflows to infinity.
  GQA_ALWAYS_INLINE explicit constexpr f16(float value) noexcept : bits(detail::f16_from_float(value)) {}
  GQA_ALWAYS_INLINE explicit constexpr operator float() const noexcept { return detail::float_from_f16(bits); }
};

/// Maps a C++ type to its ElementType. Specialise it for a 16-bit type of your own that has the same bits.
template <class T>
struct ElementTraits {};
template <>
struct ElementTraits<float> {
  static constexpr ElementType type = ElementType::f32;
};
template <>
struct ElementTraits<bf16> {
  static constexpr ElementType type = ElementType::bf16;
};
template <>
struct ElementTraits<f16> {
  static constexpr ElementType type = ElementType::f16;
};

/// A type that a tensor or a cache can hold: float, gqa::bf16, gqa::f16 (and Eigen's, with gqa/eigen.hpp).
template <class T>
concept Element = requires {
  { ElementTraits<std::remove_cv_t<T>>::type } -> std::convertible_to<ElementType>;
};

/// Bytes of one element.
GQA_ALWAYS_INLINE constexpr Index element_bytes(ElementType type) noexcept { return type == ElementType::f32 ? 4 : 2; }

namespace detail {

/// Memory as T. By way of void, because compilers warn of alignment where bytes are cast to it.
template <class T>
GQA_ALWAYS_INLINE T* typed(std::conditional_t<std::is_const_v<T>, const void, void>* memory) noexcept {
  return static_cast<T*>(memory);
}

}  // namespace detail

/// "f32", "bf16" or "f16".
GQA_ALWAYS_INLINE constexpr const char* element_name(ElementType type) noexcept {
  return type == ElementType::f32 ? "f32" : type == ElementType::bf16 ? "bf16" : "f16";
}

}  // namespace gqa
