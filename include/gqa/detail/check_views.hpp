// SPDX-License-Identifier: Apache-2.0
/// @file
/// Views, looked at before anything is worked out from them: types, pointers, strides and what of a cache is stored where.
#pragma once

#include <cstdint>
#include <string>

#include "gqa/kv_cache_view.hpp"
#include "gqa/tensor_view.hpp"

namespace gqa::detail {

/// Widths beyond this are taken for mistakes.
inline constexpr Index kMaxWidth = 65536;
inline constexpr Index kMaxHeads = 1 << 20;
inline constexpr Index kMaxQueries = Index{1} << 40;
inline constexpr Index kMaxTokens = Index{1} << 48;
inline constexpr Index kMaxPages = Index{1} << 31;
/// No stride, and no sum of steps of one, is larger, in elements: a block of steps, in bytes, is then far from overflow, also where they
/// are never taken.
inline constexpr Index kMaxOffset = Index{1} << 48;

/// Bytes [begin, end).
struct ByteRange {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
};

/// What the members of a view are called in errors.
struct TensorNames {
  const char* type;
  const char* data;
  const char* strides;
  const char* token;
  const char* head;
  const char* last;  ///< stride of dims, or of pages
};
inline constexpr TensorNames kQueryNames{"q.type",          "q.data",         "q.strides",
                                         "q.strides.token", "q.strides.head", "q.strides.dim"};
inline constexpr TensorNames kOutNames{"out.type",          "out.data",         "out.strides",
                                       "out.strides.token", "out.strides.head", "out.strides.dim"};
inline constexpr TensorNames kKeyNames{
    "kv.k_type", "kv.k", "kv.k_strides", "kv.k_strides.token", "kv.k_strides.head", "kv.k_strides.page"};
inline constexpr TensorNames kValueNames{
    "kv.v_type", "kv.v", "kv.v_strides", "kv.v_strides.token", "kv.v_strides.head", "kv.v_strides.page"};
inline constexpr TensorNames kAppendedKeyNames{"k.type",          "k.data",         "k.strides",
                                               "k.strides.token", "k.strides.head", "k.strides.dim"};
inline constexpr TensorNames kAppendedValueNames{"v.type",          "v.data",         "v.strides",
                                                 "v.strides.token", "v.strides.head", "v.strides.dim"};
inline constexpr TensorNames kViewNames{"view.type",          "view.data",         "view.strides",
                                        "view.strides.token", "view.strides.head", "view.strides.dim"};

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

/// Names an argument of one sequence: "q.heads", or "batch[3].q.heads" in a batch. Built only when something is wrong.
struct ArgumentName {
  Index sequence = 0;
  bool in_batch = false;
  std::string operator()(const char* member) const {
    return in_batch ? "batch[" + std::to_string(sequence) + "]." + member : std::string(member);
  }
};

inline void check_type(const ArgumentName& name, const char* member, ElementType type) {
  if (type > ElementType::f16) fail(name(member), static_cast<Index>(type), "ElementType::f32, bf16 or f16");
}

inline void check_alignment(const ArgumentName& name, const char* member, const void* data, Index bytes) {
  if ((reinterpret_cast<std::uintptr_t>(data) & static_cast<std::uintptr_t>(bytes - 1)) != 0)
    fail(name(member), "misaligned", "an address that is a multiple of " + std::to_string(bytes));
}

inline void check_pointer(const ArgumentName& name, const char* member, const void* data, ElementType type) {
  if (data == nullptr) fail(name(member), "null", "a pointer to " + std::string(element_name(type)) + " elements");
  check_alignment(name, member, data, element_bytes(type));
}

/// Fails for what std::span allows: no memory, or misaligned memory, and a size. Returns the bytes.
template <class T>
inline ByteRange check_span(const ArgumentName& name, const char* member, std::span<T> given, const char* what) {
  if (given.empty()) return {};
  if (given.data() == nullptr) fail(name(member), "null", "a pointer to " + std::to_string(given.size()) + what);
  check_alignment(name, member, given.data(), static_cast<Index>(alignof(T)));
  const auto begin = reinterpret_cast<std::uintptr_t>(given.data());
  return {begin, begin + given.size_bytes()};
}

/// How far elements lie before and behind the first one, in elements.
struct Reach {
  Index before = 0;
  Index behind = 0;
};

/// Adds (extent − 1) steps. Fails if they, or the stride itself, even where it is never stepped, are more than kMaxOffset.
inline void add_reach(const ArgumentName& name, const char* member, Reach& reach, Index extent, Index stride) {
  const Checked distance = Checked(extent > 1 ? extent - 1 : 0) * stride;
  if (stride < -kMaxOffset || stride > kMaxOffset || !distance.at_most(kMaxOffset) || distance.value() < -kMaxOffset)
    fail(name(member), stride, "a stride whose offsets fit in 48 bits");
  if (stride < 0) reach.before -= distance.value();
  else reach.behind += distance.value();
}

/// The bytes from the first to the last of the elements around `data`. Fails if they are not all in the address space.
inline ByteRange bytes_of(const ArgumentName& name, const TensorNames& names, const void* data, ElementType type,
                          const Reach& reach, const TensorStrides& strides) {
  const auto at = reinterpret_cast<std::uintptr_t>(data);
  const auto bytes = static_cast<std::uintptr_t>(element_bytes(type));
  const ByteRange range{at - static_cast<std::uintptr_t>(reach.before) * bytes,
                        at + static_cast<std::uintptr_t>(reach.behind + 1) * bytes};
  if (range.begin > at || range.end < at)
    fail(name(names.strides),
         "{" + std::to_string(strides.token) + ", " + std::to_string(strides.head) + ", " +
             std::to_string(strides.dim) + "}",
         "strides that lead from " + name(names.data) + " to places within the address space");
  return range;
}

/// Type, pointer and strides of a tensor whose extents have been checked. Returns the bytes that it lies in.
inline ByteRange check_tensor(const ArgumentName& name, const TensorNames& names, const ConstTensorView& tensor) {
  const TensorStrides& strides = tensor.strides;
  check_type(name, names.type, tensor.type);
  if (tensor.tokens > 0) check_pointer(name, names.data, tensor.data, tensor.type);
  Reach reach;
  add_reach(name, names.token, reach, tensor.tokens, strides.token);
  add_reach(name, names.head, reach, tensor.heads, strides.head);
  add_reach(name, names.last, reach, tensor.dim, strides.dim);
  if (tensor.tokens <= 0) return {};
  return bytes_of(name, names, tensor.data, tensor.type, reach, strides);
}

/// Keys or values of a cache, as rows of `slots` tokens.
inline ConstTensorView key_rows(const KvCacheView& kv, Index slots) noexcept {
  ConstTensorView rows(kv.k, kv.k_type, slots, kv.kv_heads, kv.head_dim);
  rows.strides = {kv.k_strides.token, kv.k_strides.head, 1};
  return rows;
}
inline ConstTensorView value_rows(const KvCacheView& kv, Index slots) noexcept {
  ConstTensorView rows(kv.v, kv.v_type, slots, kv.kv_heads, kv.value_dim);
  rows.strides = {kv.v_strides.token, kv.v_strides.head, 1};
  return rows;
}

/// Where keys or values of `pages` pages (1 where there are none) of `rows` lie. Tokens, and pages, at one place are one stride that
/// somebody forgot.
inline ByteRange check_plane(const ArgumentName& name, const TensorNames& names, const ConstTensorView& rows,
                             Index length, Index pages, Index page_stride) {
  if (length > 0) check_pointer(name, names.data, rows.data, rows.type);
  Reach reach;
  add_reach(name, names.token, reach, rows.tokens, rows.strides.token);
  add_reach(name, names.head, reach, rows.heads, rows.strides.head);
  add_reach(name, names.last, reach, pages, page_stride);
  if (length <= 0) return {};
  if (rows.strides.token == 0 && length > 1 && rows.tokens > 1)
    fail(name(names.token), Index{0}, "the distance from a token's row to the next token's");
  if (page_stride == 0 && pages > 1) fail(name(names.last), Index{0}, "the distance from a page to the next one");
  reach.behind += rows.dim - 1;
  return bytes_of(name, names, rows.data, rows.type, reach, rows.strides);
}

/// Where a cache lies; nothing for a pool's pages, of which the sequence has only some.
struct CacheRanges {
  ByteRange k;
  ByteRange v;
  Index slots = 0;  ///< that tokens are in
};

/// Types, pointers, strides, lengths and sizes of a cache whose heads and widths have been checked. What of it is seen is not looked at.
inline CacheRanges check_cache(const ArgumentName& name, const KvCacheView& kv) {
  check_type(name, kKeyNames.type, kv.k_type);
  check_type(name, kValueNames.type, kv.v_type);
  if (kv.length < 0 || kv.length > kMaxTokens) fail(name("kv.length"), kv.length, "0 to 2^48");
  Index slots = kv.length;
  Index pages = 1;
  const Index least = kv.length > 0 ? 1 : 0;  // an empty cache may be without slots and pages
  switch (kv.storage) {
    case Storage::contiguous: break;
    case Storage::ring:
      if (kv.capacity < least || kv.capacity > kMaxTokens) fail(name("kv.capacity"), kv.capacity, "1 or more slots");
      slots = kv.capacity;
      break;
    case Storage::paged:
      if (kv.page_size < least || kv.page_size > kMaxTokens)
        fail(name("kv.page_size"), kv.page_size, "1 or more tokens");
      if (kv.pool_pages < least || kv.pool_pages > kMaxPages)
        fail(name("kv.pool_pages"), kv.pool_pages, "1 to 2^31 pages");
      slots = kv.page_size;
      pages = kv.pool_pages;
      if (kv.length == 0) break;
      if (kv.page_table == nullptr) fail(name("kv.page_table"), "null", "a pointer to page indices");
      check_alignment(name, "kv.page_table", kv.page_table, Index{alignof(std::int32_t)});
      if (kv.page_table_size < (kv.length - 1) / kv.page_size + 1)
        fail(name("kv.page_table_size"), kv.page_table_size,
             "at least ceil(length / page_size) = " + std::to_string((kv.length - 1) / kv.page_size + 1));
      break;
    default: fail(name("kv.storage"), static_cast<Index>(kv.storage), "Storage::contiguous, ring or paged");
  }
  CacheRanges ranges;
  ranges.k = check_plane(name, kKeyNames, key_rows(kv, slots), kv.length, pages, kv.k_strides.page);
  ranges.v = check_plane(name, kValueNames, value_rows(kv, slots), kv.length, pages, kv.v_strides.page);
  ranges.slots = slots;
  if (kv.storage == Storage::paged) return {};
  return ranges;
}

}  // namespace gqa::detail::inline GQA_ABI
