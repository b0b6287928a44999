// SPDX-License-Identifier: Apache-2.0
/// @file
/// How many bytes a row of keys or values takes in each storage format: what the library stores today, and what other engines store.
///
/// A row is the D (or Dv) numbers of one token and one KV head. Everything that is kept with a row is counted: the scales of its
/// blocks, and one scale a token and head where a format has that. What is kept once a head or tensor (fp8's scale) is not.
#pragma once

#include <iterator>
#include <string>
#include <string_view>

#include "gqa/element.hpp"
#include "gqa/error.hpp"

namespace gqa {

/// How rows of keys or values are stored.
enum class KvFormat : std::uint8_t {
  f32,
  bf16,
  f16,
  i8,        ///< int8 and one f32 scale a token and head (as vLLM's per-token int8)
  i4,        ///< two to a byte and one f32 scale a token and head
  fp8_e4m3,  ///< one byte; the scale belongs to a head or tensor
  fp8_e5m2,  ///< likewise
  q8_kv,     ///< ik_llama.cpp: f32 scale and int32 sum a row, int8
  q8_0,      ///< ggml: blocks of 32 int8 with an f16 scale
  q5_1,      ///< ggml: blocks of 32 with an f16 scale and an f16 minimum, 4 bits and a fifth apart
  q5_0,      ///< ggml: the same without the minimum
  q4_1,      ///< ggml: blocks of 32 with an f16 scale and an f16 minimum, 4 bits
  q4_0,      ///< ggml: the same without the minimum
  iq4_nl,    ///< ggml: blocks of 32 with an f16 scale, 4-bit indices into a table of 16
  mxfp4,     ///< OCP Microscaling: blocks of 32 e2m1 with an e8m0 scale
  nvfp4      ///< blocks of 16 e2m1 with an e4m3 scale
};

/// One line of the table: rows consist of whole blocks, and of `row_bytes` once.
struct KvFormatInfo {
  KvFormat format;
  const char* name;
  Index block;        ///< numbers in a block
  Index block_bytes;  ///< bytes of a block, its scale included
  Index row_bytes;    ///< bytes a row takes besides: a scale a token and head
  bool whole_blocks;  ///< true: the engine that has this format refuses widths that are no multiple of `block`
  bool in_library;    ///< true: the owning caches store it today
};

/// All formats, in the order of KvFormat.
/// Sources: ggml's block structs (ggml-common.h), ik_llama.cpp's q8_KV, the OCP Microscaling specification 1.0, NVIDIA's NVFP4.
inline constexpr KvFormatInfo kKvFormats[] = {
    {KvFormat::f32, "f32", 1, 4, 0, true, true},
    {KvFormat::bf16, "bf16", 1, 2, 0, true, true},
    {KvFormat::f16, "f16", 1, 2, 0, true, true},
    {KvFormat::i8, "i8", 1, 1, 4, true, false},
    {KvFormat::i4, "i4", 2, 1, 4, false, false},
    {KvFormat::fp8_e4m3, "fp8_e4m3", 1, 1, 0, true, false},
    {KvFormat::fp8_e5m2, "fp8_e5m2", 1, 1, 0, true, false},
    {KvFormat::q8_kv, "q8_kv", 32, 32, 8, true, false},
    {KvFormat::q8_0, "q8_0", 32, 34, 0, true, false},
    {KvFormat::q5_1, "q5_1", 32, 24, 0, true, false},
    {KvFormat::q5_0, "q5_0", 32, 22, 0, true, false},
    {KvFormat::q4_1, "q4_1", 32, 20, 0, true, false},
    {KvFormat::q4_0, "q4_0", 32, 18, 0, true, false},
    {KvFormat::iq4_nl, "iq4_nl", 32, 18, 0, true, false},
    {KvFormat::mxfp4, "mxfp4", 32, 17, 0, true, false},
    {KvFormat::nvfp4, "nvfp4", 16, 9, 0, true, false},
};

namespace detail::inline GQA_ABI {

[[noreturn]] inline void fail_width(const KvFormatInfo& info, Index width) {
  fail("width", width, "a multiple of " + to_text(info.block) + ", " + info.name + "'s block");
}

constexpr const KvFormatInfo& format_info(KvFormat format) {
  const auto at = static_cast<Index>(format);
  if (at >= std::ssize(kKvFormats)) fail("format", at, "a member of KvFormat");
  return kKvFormats[at];
}

/// False if no row of this width exists in the format; what kv_row_bytes throws for.
constexpr bool has_width(const KvFormatInfo& info, Index width) {
  return width >= 1 && width <= (Index{1} << 31) && (!info.whole_blocks || width % info.block == 0);
}

constexpr Index row_bytes(KvFormat format, Index width) {
  const KvFormatInfo& info = format_info(format);
  if (width < 1 || width > (Index{1} << 31)) fail("width", width, "1 to 2^31");
  if (!has_width(info, width)) fail_width(info, width);
  return (width + info.block - 1) / info.block * info.block_bytes + info.row_bytes;
}

/// Says which names there are, however many.
[[noreturn]] inline void fail_name(const char* argument, std::string_view given, const std::string& names) {
  raise<ArgumentError>(
      (std::string("gqa: ") + argument + " is " + std::string(given) + "; expected one of " + names).c_str());
}

inline std::string format_names() {
  std::string names;
  for (const KvFormatInfo& info : kKvFormats) names += (names.empty() ? "" : ", ") + std::string(info.name);
  return names;
}

constexpr KvFormat format_named(std::string_view name) {
  for (const KvFormatInfo& info : kKvFormats)
    if (name == info.name) return info.format;
  fail_name("format", name, format_names());
}

}  // namespace detail::inline GQA_ABI

/// The table's line of a format. @throws ArgumentError if there is none
GQA_ALWAYS_INLINE constexpr const KvFormatInfo& kv_format_info(KvFormat format) { return detail::format_info(format); }
/// "bf16", "q8_0", …
GQA_ALWAYS_INLINE constexpr const char* kv_format_name(KvFormat format) { return detail::format_info(format).name; }
/// The format of that name. @throws ArgumentError naming all of them if there is none
GQA_ALWAYS_INLINE constexpr KvFormat kv_format_named(std::string_view name) { return detail::format_named(name); }
/// The format that an owning cache stores an element type in.
GQA_ALWAYS_INLINE constexpr KvFormat kv_format_of(ElementType type) noexcept {
  return type == ElementType::f32 ? KvFormat::f32 : type == ElementType::bf16 ? KvFormat::bf16 : KvFormat::f16;
}

/// Bytes of one row: `width` numbers of one token and KV head, with what is stored beside them.
/// @param width D or Dv, 1 to 2^31
/// @throws ArgumentError naming `width` if the format's blocks do not divide it
GQA_ALWAYS_INLINE constexpr Index kv_row_bytes(KvFormat format, Index width) {
  return detail::row_bytes(format, width);
}
/// True if rows of that width exist in the format.
GQA_ALWAYS_INLINE constexpr bool kv_format_has_width(KvFormat format, Index width) {
  return detail::has_width(detail::format_info(format), width);
}

}  // namespace gqa
