// SPDX-License-Identifier: Apache-2.0
/// @file
/// How rows of keys and values get into an owning cache: checked, changed by a hook, converted to the stored type, written to their slots.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>

#include "gqa/detail/check_views.hpp"
#include "gqa/detail/float_environment.hpp"
#include "gqa/detail/kv_buffer.hpp"
#include "gqa/detail/rotate_row.hpp"
#include "gqa/detail/row_codec.hpp"
#include "gqa/detail/row_ops.hpp"
#include "gqa/key_hook.hpp"
#include "gqa/kv_cache_view.hpp"
#include "gqa/tensor_view.hpp"

namespace gqa::detail {

/// Keys or values of a cache, as memory that may be written.
struct KvRoom {
  std::byte* data;
  KvType type;
  Index dim;
  KvStrides strides;
  std::byte* scales;  // outside of rows; or null
  KvStrides scale_strides;
  const RowCodec* codec;  // null for plain elements

  /// The row of a slot, and its scale.
  GQA_ALWAYS_INLINE std::byte* row(Index page, Index slot, Index head) const noexcept {
    return data + type.stride_bytes(page * strides.page + slot * strides.token + head * strides.head);
  }
  GQA_ALWAYS_INLINE std::byte* scale(Index page, Index slot, Index head) const noexcept {
    if (scales == nullptr) return nullptr;
    return scales +
           (page * scale_strides.page + slot * scale_strides.token + head * scale_strides.head) * type.scale_bytes();
  }
};

/// Anything that std::span takes (a vector, an array, a span) whose elements are float, bf16, f16 or a type with the
/// same bits.
template <class R>
concept ElementRange = Element<typename decltype(std::span(std::declval<const R&>()))::element_type>;

inline namespace GQA_ABI {

/// Of rows of plain elements, by the fastest instructions.
inline RowEncoder row_converter(const RowOps& ops, ElementType to, ElementType from) {
  RowEncoder fast = nullptr;
  if (from == ElementType::f32 && to == ElementType::bf16) fast = ops.f32_to_bf16;
  if (from == ElementType::f32 && to == ElementType::f16) fast = ops.f32_to_f16;
  if (from == ElementType::bf16 && to == ElementType::f32) fast = ops.bf16_to_f32;
  if (from == ElementType::f16 && to == ElementType::f32) fast = ops.f16_to_f32;
  return fast != nullptr ? fast : element_encoder(to, from);
}
inline RowEncoder row_encoder(const RowOps& ops, const KvRoom& room, ElementType from) {
  if (room.codec != nullptr) return room.codec->encoder(ops.set, from);
  return row_converter(ops, room.type, from);
}
inline RowDecoder row_decoder(const KvRoom& room) {
  return room.codec != nullptr ? room.codec->decode : element_decoder(room.type);
}

/// Room for one row of f32 elements.
class RowRoom {
 public:
  RowRoom() noexcept : row_(reinterpret_cast<std::byte*>(few_)) {}
  explicit RowRoom(Index dim) : RowRoom() { make(dim); }
  RowRoom(const RowRoom&) = delete;
  RowRoom& operator=(const RowRoom&) = delete;
  ~RowRoom() {}

  void make(Index dim) {
    if (dim <= kFew) return;
    many_ = Buffer(dim * static_cast<Index>(sizeof(float)), "a row");
    row_ = many_.as<std::byte>();
  }
  std::byte* row() const noexcept { return row_; }

 private:
  static constexpr Index kFew = 1024;

  std::byte* row_;
  Buffer many_{};
  alignas(kCacheLineBytes) float few_[kFew];
};

/// What the rows of one call go through in f32 before they are stored: a hook, if there is one, then the cache's rotation. Checked, with a row
/// to work on: from here on nothing fails. Without either it is nothing.
class RowChange {
 public:
  RowChange(const KeyHookRef& hook, const KeyRows& rows, Index rotation)
      : hook_(hook), rotation_(rotation), first_position_(rows.first_position) {
    if (hook.change != nullptr) hook.check(hook.hook, rows);
    if (rotates(rotation)) rotate_ = rotate_row_on(active_path().path);
    if (if_any() != nullptr) room_.make(rows.dim);
  }
  RowChange(const RowChange&) = delete;
  RowChange& operator=(const RowChange&) = delete;
  ~RowChange() {}

  /// For one row, which is not stored yet or no longer.
  std::byte* row() const noexcept { return room_.row(); }
  /// Changes `row`, f32 elements that have not been rotated.
  void operator()(std::byte* row, Index dim, Index head, Index position) const {
    if (hook_.change != nullptr)
      hook_.change(hook_.hook, {typed<float>(row), dim, head, position, position - first_position_});
    turn(row, dim);
  }
  /// Rotates `row`, or turns it back.
  void turn(std::byte* row, Index dim) const noexcept {
    if (rotate_ != nullptr) rotate_(typed<float>(row), dim, rotation_);
  }
  /// `this`, if it changes anything.
  const RowChange* if_any() const noexcept { return hook_.change != nullptr || rotate_ != nullptr ? this : nullptr; }

 private:
  KeyHookRef hook_;
  Index rotation_;
  RotateRow rotate_ = nullptr;
  Index first_position_;
  RowRoom room_{};
};

/// As write_rows, in the floating-point environment that there is.
inline void encode_rows(const KvRoom& room, Index page, Index slot, const ConstTensorView& rows,
                        const RowChange* change, Index position) {
  const RowOps& ops = row_ops();
  const RowEncoder widen = row_converter(ops, ElementType::f32, rows.type);
  const RowEncoder encode = row_encoder(ops, room, change == nullptr ? rows.type : ElementType::f32);
  const Index bytes = element_bytes(rows.type);
  const auto* from = static_cast<const std::byte*>(rows.data);
  // In the order in which they lie, which memory gives and takes twice as fast as any other.
  const bool by_token = magnitude(rows.strides.token) >= magnitude(rows.strides.head);
  const Index outer = by_token ? rows.tokens : rows.heads;
  const Index inner = by_token ? rows.heads : rows.tokens;
  for (Index i = 0; i < outer; ++i)
    for (Index j = 0; j < inner; ++j) {
      const Index token = by_token ? i : j;
      const Index head = by_token ? j : i;
      const std::byte* const row = from + (head * rows.strides.head + token * rows.strides.token) * bytes;
      std::byte* const to = room.row(page, slot + token, head);
      std::byte* const scale = room.scale(page, slot + token, head);
      if (change == nullptr) {
        encode(row, rows.strides.dim, room.dim, to, scale);
        continue;
      }
      std::byte* const changed = room.type == ElementType::f32 ? to : change->row();
      widen(row, rows.strides.dim, room.dim, changed, nullptr);
      (*change)(changed, room.dim, head, position + token);
      if (changed != to) encode(changed, 1, room.dim, to, scale);
    }
}
/// rows (tokens × heads × dim) → slots slot, slot + 1, … of physical page `page` (0 where there are no pages). With a change they are those of
/// positions position, position + 1, …
inline __attribute__((noinline)) void write_rows(const KvRoom& room, Index page, Index slot,
                                                 const ConstTensorView& rows, const RowChange* change, Index position) {
  if (room.codec == nullptr && change == nullptr) return encode_rows(room, page, slot, rows, change, position);
  const FloatEnvironment environment;  // what is stored is computed
  encode_rows(room, page, slot, rows, change, position);
}
/// Changes keys of positions position, position + 1, … where they are: those that are rotated are turned back before.
inline void change_slots(const KvRoom& room, Index heads, Index page, Index slot, Index tokens, Index position,
                         const RowChange& change) {
  const RowDecoder decode = row_decoder(room);
  const RowEncoder encode = row_encoder(row_ops(), room, ElementType::f32);
  for (Index head = 0; head < heads; ++head)
    for (Index token = 0; token < tokens; ++token) {
      std::byte* const row = room.row(page, slot + token, head);
      std::byte* const scale = room.scale(page, slot + token, head);
      decode(row, scale, room.dim, typed<float>(change.row()));
      change.turn(change.row(), room.dim);
      change(change.row(), room.dim, head, position + token);
      encode(change.row(), 1, room.dim, row, scale);
    }
}

/// Where a token is.
struct Slot {
  Index page;  ///< physical; 0 where there are no pages
  Index slot;
};
/// Slots from `from` on → those from `to` on, of memory with rows of the same kind, in ascending order: bytes, whatever they mean.
inline void copy_rows(const KvRoom& room, const KvRoom& into, Index heads, const Slot& from, const Slot& to,
                      Index tokens) noexcept {
  const auto row_bytes = static_cast<std::size_t>(room.type.row_bytes(room.dim));
  for (Index head = 0; head < heads; ++head)
    for (Index token = 0; token < tokens; ++token) {
      std::memcpy(into.row(to.page, to.slot + token, head), room.row(from.page, from.slot + token, head), row_bytes);
      if (room.scales != nullptr)
        std::memcpy(into.scale(to.page, to.slot + token, head), room.scale(from.page, from.slot + token, head),
                    static_cast<std::size_t>(room.type.scale_bytes()));
    }
}
inline void copy_slots(const KvRoom& room, Index heads, const Slot& from, const Slot& to, Index tokens) noexcept {
  copy_rows(room, room, heads, from, to, tokens);
}

inline void check_rows(const TensorNames& names, const char* tokens, const char* heads, const char* width,
                       const ConstTensorView& rows, Index kv_heads, const char* cache_width, Index dim) {
  if (rows.tokens < 0) fail(tokens, rows.tokens, "0 or more");
  if (rows.heads != kv_heads) fail(heads, rows.heads, "the cache's kv_heads = " + to_text(kv_heads));
  if (rows.dim != dim) fail(width, rows.dim, Text("the cache's ") + cache_width + " = " + to_text(dim));
  if (rows.tokens > 0 && rows.data == nullptr) fail(names.data, "null", "a pointer to the rows");
  check_tensor({}, names, rows);
}

inline void check_not_moved_from(Index kv_heads) {
  if (kv_heads == 0) fail("cache", "empty (moved from)", "a cache that has memory");
}

/// What append takes: k (tokens × Hkv × D) and v (tokens × Hkv × Dv), each in any element type and with any strides.
inline void check_append(const KvCacheView& cache, const ConstTensorView& k, const ConstTensorView& v) {
  check_not_moved_from(cache.kv_heads);
  row_ops();  // throws now if it ever does
  check_rows(kAppendedKeyNames, "k.tokens", "k.heads", "k.dim", k, cache.kv_heads, "head_dim", cache.head_dim);
  check_rows(kAppendedValueNames, "v.tokens", "v.heads", "v.dim", v, cache.kv_heads, "value_dim", cache.value_dim);
  if (v.tokens != k.tokens) fail("v.tokens", v.tokens, "k.tokens = " + to_text(k.tokens));
}

/// Packed (token, head, dim) elements as rows; as many tokens as there are elements for.
template <Element T, std::size_t Extent>
inline ConstTensorView packed_rows(const char* name, std::span<T, Extent> elements, Index kv_heads, Index dim) {
  check_not_moved_from(kv_heads);
  const auto size = static_cast<Index>(elements.size());
  const Index token = kv_heads * dim;
  if (size % token != 0) fail(Text(name) + ".size()", size, "a multiple of the elements of a token, " + to_text(token));
  return ConstTensorView(elements.data(), size / token, kv_heads, dim);
}

/// Appends them to an owning cache whose rows are as `like` says.
template <class Cache, class K, class V, class... Hook>
GQA_ALWAYS_INLINE void append_packed(Cache& cache, const KvCacheView& like, const K& k, const V& v,
                                     const Hook&... hook) {
  cache.append(packed_rows("k", std::span(k), like.kv_heads, like.head_dim),
               packed_rows("v", std::span(v), like.kv_heads, like.value_dim), hook...);
}

inline void check_truncate(Index length, Index first, Index current) {
  if (length < 0 || length > current || (length < first && length != 0))
    fail("length", length,
         first == 0
             ? "between 0 and the tokens held, " + to_text(current)
             : "0, or between the oldest position held, " + to_text(first) + ", and the next one, " + to_text(current));
}

}  // namespace GQA_ABI
}  // namespace gqa::detail
