// SPDX-License-Identifier: Apache-2.0
/// @file
/// Views, looked at before anything is worked out from them: types, pointers, strides and what of a cache is stored where.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "gqa/detail/plain_tokens.hpp"
#include "gqa/detail/rotation.hpp"
#include "gqa/expression.hpp"
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
inline constexpr TensorNames kGradientOutNames{"d_out.type",          "d_out.data",         "d_out.strides",
                                               "d_out.strides.token", "d_out.strides.head", "d_out.strides.dim"};
inline constexpr TensorNames kKeyNames{
    "kv.k_type", "kv.k", "kv.k_strides", "kv.k_strides.token", "kv.k_strides.head", "kv.k_strides.page"};
inline constexpr TensorNames kValueNames{
    "kv.v_type", "kv.v", "kv.v_strides", "kv.v_strides.token", "kv.v_strides.head", "kv.v_strides.page"};
inline constexpr TensorNames kRowsNames{"rows.type",          "rows.data",         "rows.strides",
                                        "rows.strides.token", "rows.strides.head", "rows.strides.dim"};
inline constexpr TensorNames kAppendedKeyNames{"k.type",          "k.data",         "k.strides",
                                               "k.strides.token", "k.strides.head", "k.strides.dim"};
inline constexpr TensorNames kAppendedValueNames{"v.type",          "v.data",         "v.strides",
                                                 "v.strides.token", "v.strides.head", "v.strides.dim"};
inline constexpr TensorNames kViewNames{"view.type",          "view.data",         "view.strides",
                                        "view.strides.token", "view.strides.head", "view.strides.dim"};

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

/// Positions that a cache still has: none in a ring whose `oldest` lies beyond its length.
inline Index stored_positions(const KvCacheView& kv) noexcept {
  const Index oldest = kv.first_position();
  return kv.length > oldest ? kv.length - oldest : 0;
}

/// Names an argument of one sequence: "q.heads", or "batch[3].q.heads" in a batch; of an earlier part of its cache, "kv.earlier[0].length".
/// Built only when something is wrong.
struct ArgumentName {
  Index sequence = 0;
  bool in_batch = false;
  Index part = -1;              ///< an earlier one, which what is called "kv." belongs to
  const char* batch = "batch";  ///< the argument that has one for each sequence
  Text operator()(const char* member) const {
    Text name = in_batch ? Text(batch) + "[" + to_text(sequence) + "]." : Text();
    if (part < 0 || std::strncmp(member, "kv.", 3) != 0) return name + member;
    return name + "kv.earlier[" + to_text(part) + "]" + (member + 2);
  }
};

[[noreturn, gnu::cold, gnu::noinline]] inline void fail_type(const ArgumentName& name, const char* member, Index type) {
  fail(name(member), type, "ElementType::f32, bf16 or f16");
}
GQA_ALWAYS_INLINE void check_type(const ArgumentName& name, const char* member, ElementType type) {
  if (!is_element_type(type)) fail_type(name, member, static_cast<Index>(type));
}
GQA_ALWAYS_INLINE void check_type(const ArgumentName& name, const char* member, KvType type) {
  if (!type.valid()) fail_type(name, member, type.id());
}

/// Rows of `width` elements of a format that has nothing but whole blocks.
inline void check_width(const ArgumentName& name, const char* member, Index width, KvType type) {
  if (!type.whole_blocks() || width % type.block_elements() == 0) return;
  fail(name(member), width,
       "a multiple of " + to_text(type.block_elements()) + ": " + codec_name(type) + " has whole blocks");
}

// What is said is put together in functions of its own, so that looking is short.
[[noreturn, gnu::cold, gnu::noinline]] inline void fail_null(const ArgumentName& name, const char* member,
                                                             const Text& what) {
  fail(name(member), "null", "a pointer to " + what);
}
[[noreturn, gnu::cold, gnu::noinline]] inline void fail_null(const ArgumentName& name, const char* member,
                                                             KvType type) {
  fail_null(name, member, codec_name(type) + (type.is_element() ? " elements" : " rows"));
}
[[noreturn, gnu::cold, gnu::noinline]] inline void fail_misaligned(const ArgumentName& name, const char* member,
                                                                   Index bytes) {
  fail(name(member), "misaligned", "an address that is a multiple of " + to_text(bytes));
}
[[noreturn, gnu::cold, gnu::noinline]] inline void fail_stride(const ArgumentName& name, const char* member,
                                                               Index stride) {
  fail(name(member), stride, "a stride whose offsets fit in 48 bits");
}
[[noreturn, gnu::cold, gnu::noinline]] inline void fail_range(const ArgumentName& name, const TensorNames& names,
                                                              const TensorStrides& strides) {
  fail(name(names.strides),
       "{" + to_text(strides.token) + ", " + to_text(strides.head) + ", " + to_text(strides.dim) + "}",
       "strides that lead from " + name(names.data) + " to places within the address space");
}

GQA_ALWAYS_INLINE bool is_aligned(const void* data, Index bytes) noexcept {
  return (reinterpret_cast<std::uintptr_t>(data) & static_cast<std::uintptr_t>(bytes - 1)) == 0;
}

/// To elements, or to rows, of a type.
GQA_ALWAYS_INLINE void check_pointer(const ArgumentName& name, const char* member, const void* data, KvType type) {
  if (data == nullptr) fail_null(name, member, type);
  if (!is_aligned(data, type.alignment())) fail_misaligned(name, member, type.alignment());
}

/// Fails for what std::span allows: no memory, or misaligned memory, and a size. Returns the bytes.
template <class T>
GQA_ALWAYS_INLINE ByteRange check_span(const ArgumentName& name, const char* member, std::span<T> given,
                                       const char* what) {
  if (given.empty()) return {};
  constexpr auto alignment = static_cast<Index>(alignof(T));
  if (given.data() == nullptr) fail_null(name, member, to_text(given.size()) + what);
  if (!is_aligned(given.data(), alignment)) fail_misaligned(name, member, alignment);
  const auto begin = reinterpret_cast<std::uintptr_t>(given.data());
  return {begin, begin + given.size_bytes()};
}

/// A rotation of rows of `width` elements.
inline void check_rotation(const ArgumentName& name, const char* member, Index block, const char* width_name,
                           Index width) {
  if (is_rotation(block, width)) return;
  fail(name(member), block, "0, or a power of two that divides " + name(width_name) + " = " + to_text(width));
}

/// How far elements lie before and behind the first one, in elements.
struct Reach {
  Index before = 0;  ///< 0 or less
  Index behind = 0;

  /// Adds (extent − 1) steps. Fails if they, or the stride itself, even where it is never stepped, are more than kMaxOffset.
  GQA_ALWAYS_INLINE void add(const ArgumentName& name, const char* member, Index extent, Index stride) {
    const bool stepped = extent > 1;
    const Checked steps = Checked(stepped ? extent - 1 : 1) * stride;
    if (!steps.fits() || steps.value() < -kMaxOffset || steps.value() > kMaxOffset) fail_stride(name, member, stride);
    const Index distance = stepped ? steps.value() : 0;
    const Index back = distance < 0 ? distance : 0;
    before += back;
    behind += distance - back;
  }
  /// The bytes of these elements, or of rows of `width` elements that begin there, around `data`. Fails if they are not all in the address
  /// space.
  GQA_ALWAYS_INLINE ByteRange around(const ArgumentName& name, const TensorNames& names, const void* data, KvType type,
                                     Index width, const TensorStrides& strides) const {
    const auto at = reinterpret_cast<std::uintptr_t>(data);
    const Index back = type.stride_bytes(before), on = type.stride_bytes(behind) + type.row_bytes(width);
    const ByteRange range{at + static_cast<std::uintptr_t>(back), at + static_cast<std::uintptr_t>(on)};
    if (range.begin > at || range.end < at || !is_distance(on - back)) fail_range(name, names, strides);
    return range;
  }
};

/// Type, pointer and strides of a tensor whose extents have been checked. Returns the bytes that it lies in.
template <class View>
inline ByteRange check_tensor(const ArgumentName& name, const TensorNames& names, const View& tensor) {
  check_type(name, names.type, tensor.type);
  if (tensor.tokens > 0) check_pointer(name, names.data, tensor.data, tensor.type);
  Reach reach;
  reach.add(name, names.token, tensor.tokens, tensor.strides.token);
  reach.add(name, names.head, tensor.heads, tensor.strides.head);
  reach.add(name, names.last, tensor.dim, tensor.strides.dim);
  if (tensor.tokens <= 0) return {};
  return reach.around(name, names, tensor.data, tensor.type, 1, tensor.strides);
}

/// Keys or values: `slots` tokens in each of `pages` pages (1 where there are none).
struct Plane {
  const void* data;
  KvType type;
  const KvStrides& strides;
  Index dim;
};

/// How many rows of a plane there are.
struct PlaneExtents {
  Index length;
  Index slots;
  Index heads;
  Index pages;
};

/// Where they lie. Several tokens, or pages, at one place are a stride that somebody forgot.
inline ByteRange check_plane(const ArgumentName& name, const TensorNames& names, const Plane& plane,
                             const PlaneExtents& extents) {
  const KvStrides& strides = plane.strides;
  if (extents.length > 0) check_pointer(name, names.data, plane.data, plane.type);
  Reach reach;
  reach.add(name, names.token, extents.slots, strides.token);
  reach.add(name, names.head, extents.heads, strides.head);
  reach.add(name, names.last, extents.pages, strides.page);
  if (extents.length <= 0) return {};
  if (strides.token == 0 && extents.length > 1 && extents.slots > 1)
    fail(name(names.token), Index{0}, "the distance from a token's row to the next token's");
  if (strides.page == 0 && extents.pages > 1)
    fail(name(names.last), Index{0}, "the distance from a page to the next one");
  return reach.around(name, names, plane.data, plane.type, plane.dim, {strides.token, strides.head, 1});
}

/// Where a cache lies; nothing for a pool's pages, of which the sequence has only some.
struct CacheRanges {
  ByteRange k{};
  ByteRange v{};
  Index slots = 0;  ///< that tokens are in
};

/// The rotations of a cache whose widths and types have been checked. Where values lie in the rows of keys they are rotated with these.
[[gnu::noinline]] inline void check_rotations(const ArgumentName& name, const KvCacheView& kv) {
  check_rotation(name, "kv.k_rotation", kv.k_rotation, "kv.head_dim", kv.head_dim);
  check_rotation(name, "kv.v_rotation", kv.v_rotation, "kv.value_dim", kv.value_dim);
  const std::uintptr_t behind = reinterpret_cast<std::uintptr_t>(kv.v) - reinterpret_cast<std::uintptr_t>(kv.k);
  if (kv.length == 0 || behind >= static_cast<std::uintptr_t>(kv.k_type.row_bytes(kv.head_dim))) return;
  const Index first = static_cast<Index>(behind) / kv.k_type.block_bytes() * kv.k_type.block_elements();
  if (kv.v_rotation != kv.k_rotation)
    fail(name("kv.v_rotation"), kv.v_rotation,
         name("kv.k_rotation") + " = " + to_text(kv.k_rotation) + ": values lie in the rows of keys");
  if (first % kv.k_rotation != 0)
    fail(name("kv.v"), "element " + to_text(first) + " of the keys' rows",
         "a multiple of " + name("kv.k_rotation") + " = " + to_text(kv.k_rotation));
}

/// Types, pointers, strides, lengths and sizes of a cache whose heads and widths have been checked. What of it is seen is not looked at.
inline CacheRanges check_cache(const ArgumentName& name, const KvCacheView& kv) {
  check_type(name, kKeyNames.type, kv.k_type);
  check_type(name, kValueNames.type, kv.v_type);
  if (kv.length < 0 || kv.length > kMaxTokens) fail(name("kv.length"), kv.length, "0 to 2^48");
  Index slots = kv.length;
  Index pages = 1;
  const Index least = kv.length > 0 ? 1 : 0;  // an empty cache may be without slots and pages
  switch (kv.storage) {
    case Storage::contiguous:
      if (kv.oldest < 0 || kv.oldest > kv.length)
        fail(name("kv.oldest"), kv.oldest, "0 to kv.length, " + to_text(kv.length));
      slots -= kv.oldest;
      break;
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
      if (!is_aligned(kv.page_table, alignof(std::int32_t)))
        fail_misaligned(name, "kv.page_table", alignof(std::int32_t));
      if (kv.page_table_size < (kv.length - 1) / kv.page_size + 1)
        fail(name("kv.page_table_size"), kv.page_table_size,
             "at least ceil(length / page_size) = " + to_text((kv.length - 1) / kv.page_size + 1));
      if (kShortAddresses && kv.page_table_size > kMostBytes / Index{sizeof(std::int32_t)})
        fail(name("kv.page_table_size"), kv.page_table_size, "a table within the address space");
      break;
    default: fail(name("kv.storage"), static_cast<Index>(kv.storage), "Storage::contiguous, ring or paged");
  }
  CacheRanges ranges;
  const Plane keys{kv.k, kv.k_type, kv.k_strides, kv.head_dim};
  const Plane values{kv.v, kv.v_type, kv.v_strides, kv.value_dim};
  const PlaneExtents extents{kv.length, slots, kv.kv_heads, pages};
  ranges.k = check_plane(name, kKeyNames, keys, extents);
  ranges.v = check_plane(name, kValueNames, values, extents);
  for (const bool of_keys : {true, false})  // scales outside of rows belong to codecs that have them there
    if ((of_keys ? kv.k_scales : kv.v_scales).data != nullptr && (of_keys ? kv.k_type : kv.v_type).scale_bytes() == 0)
      fail(name(of_keys ? "kv.k_scales.data" : "kv.v_scales.data"), "a pointer",
           "null: such rows have no scales outside");
  if (kv.k_rotation != 0 || kv.v_rotation != 0) check_rotations(name, kv);
  ranges.slots = slots;
  if (kv.storage == Storage::paged) return {};
  return ranges;
}

/// A sequence has no more parts than that.
inline constexpr Index kMaxParts = 64;

/// The list of a cache's earlier parts, whose own length has been checked: where it is, and where each of them ends.
[[gnu::cold, gnu::noinline]] inline void check_list(ArgumentName name, const KvCacheView& kv) {
  if (kv.earlier_count < 0 || kv.earlier_count >= kMaxParts)
    fail(name("kv.earlier_count"), kv.earlier_count, "0 to " + to_text(kMaxParts - 1));
  if (kv.earlier == nullptr) fail_null(name, "kv.earlier", to_text(kv.earlier_count) + " views");
  if (!is_aligned(kv.earlier, alignof(KvCacheView))) fail_misaligned(name, "kv.earlier", alignof(KvCacheView));
  Index before = 0;
  for (Index i = 0; i < kv.earlier_count; ++i) {
    const KvCacheView& part = kv.earlier[i];
    name.part = i;
    if (part.earlier_count != 0) fail(name("kv.earlier_count"), part.earlier_count, "0: one list has all parts");
    if (part.length <= before || part.length >= kv.length || part.length % kPartTokens != 0)
      fail(name("kv.length"), part.length,
           "where the part ends: a multiple of 64, more than the part before and less than kv.length");
    before = part.length;
  }
}

/// An earlier part's heads, widths and rotations are those of the whole.
[[gnu::cold, gnu::noinline]] inline void check_part_extents(const ArgumentName& name, const KvCacheView& part,
                                                            const KvCacheView& whole) {
  const auto follows = [&](const char* member, Index given, Index extent) {
    if (given != extent)
      fail(name(member), given, ArgumentName{name.sequence, name.in_batch}(member) + " = " + to_text(extent));
  };
  follows("kv.kv_heads", part.kv_heads, whole.kv_heads);
  follows("kv.head_dim", part.head_dim, whole.head_dim);
  follows("kv.value_dim", part.value_dim, whole.value_dim);
  follows("kv.k_rotation", part.k_rotation, whole.k_rotation);
  follows("kv.v_rotation", part.v_rotation, whole.v_rotation);
}

/// What a variant's check is told: extents that have been checked, and positions, which may be empty.
inline SequenceContext sequence_context(Index sequence, Index query_heads, Index kv_heads, Index queries,
                                        Index kv_length, Index value_dim, std::span<const Index> positions) noexcept {
  SequenceContext context{sequence,  query_heads,         kv_heads,      queries,
                          kv_length, kv_length - queries, kv_length - 1, value_dim};
  if (!positions.empty()) context.first_position = context.last_position = positions.front();
  for (const Index position : positions) {
    if (position < context.first_position) context.first_position = position;
    if (position > context.last_position) context.last_position = position;
  }
  return context;
}

}  // namespace gqa::detail::inline GQA_ABI
