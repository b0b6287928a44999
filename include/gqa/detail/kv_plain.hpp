// SPDX-License-Identifier: Apache-2.0
/// @file
/// The first and the newest tokens of a cache as rows of plain elements, besides the rows that the cache has of all its tokens. Every token is
/// encoded when it is appended; which of its rows is read, the view says: nothing is encoded, or decoded, later.
#pragma once

#include <utility>

#include "gqa/detail/kv_layout.hpp"
#include "gqa/detail/plain_tokens.hpp"

namespace gqa::detail {

/// Rows of plain elements, and the view of a sequence that has some. What they hold may be less than what was asked for, where tokens have
/// been dropped or moved: those that are missing are read as the cache stores them.
struct KvPlainRows {
  KvMemory first;       // positions [0, first.view.length), a slot each
  KvMemory newest;      // a ring: positions [newest.view.oldest, newest.view.length)
  Index first_tokens;   // asked for
  Index newest_tokens;  // likewise
  KvCacheView earlier[2]{};
  KvCacheView view{};

  GQA_ALWAYS_INLINE KvPlainRows(KvMemory&& first_rows, Index first_count, KvMemory&& newest_rows,
                                Index newest_count) noexcept
      : first(std::move(first_rows)),
        newest(std::move(newest_rows)),
        first_tokens(first_count),
        newest_tokens(newest_count) {}
  KvPlainRows(const KvPlainRows&) = delete;
  KvPlainRows& operator=(const KvPlainRows&) = delete;
  GQA_ALWAYS_INLINE ~KvPlainRows() {}
};

inline namespace GQA_ABI {

inline void drop_plain(KvPlainRows* rows) noexcept { delete rows; }

}  // namespace GQA_ABI

/// Owns them; or nothing, of a cache that has none.
class KvPlain {
 public:
  GQA_ALWAYS_INLINE KvPlain() noexcept {}
  GQA_ALWAYS_INLINE explicit KvPlain(KvPlainRows* rows) noexcept : rows_(rows) {}
  KvPlain(const KvPlain&) = delete;
  KvPlain& operator=(const KvPlain&) = delete;
  GQA_ALWAYS_INLINE KvPlain(KvPlain&& other) noexcept : rows_(other.rows_) { other.rows_ = nullptr; }
  GQA_ALWAYS_INLINE KvPlain& operator=(KvPlain&& other) noexcept {
    KvPlainRows* const rows = other.rows_;
    other.rows_ = nullptr;
    if (rows_ != nullptr) drop_plain(rows_);
    rows_ = rows;
    return *this;
  }
  GQA_ALWAYS_INLINE ~KvPlain() {
    if (rows_ != nullptr) drop_plain(rows_);
  }
  GQA_ALWAYS_INLINE KvPlainRows* get() const noexcept { return rows_; }

 private:
  KvPlainRows* rows_ = nullptr;
};

inline namespace GQA_ABI {

inline Index smaller(Index a, Index b) noexcept { return a < b ? a : b; }
inline Index larger(Index a, Index b) noexcept { return a > b ? a : b; }

/// Whether a cache of so many tokens is to have plain rows besides, checked.
inline bool wants_plain(const KvRowFormat& format, Index tokens) {
  const KvPlainFormat& plain = format.plain;
  const auto expected = [&](const char* what) {
    return Text(what) + "0 to the tokens that there is room for, " + to_text(tokens);
  };
  if (plain.first_tokens < 0 || plain.first_tokens > tokens || plain.first_tokens % kPartTokens != 0)
    fail("config.first_tokens", plain.first_tokens, expected("a multiple of 64, "));
  if (plain.newest_tokens < 0 || plain.newest_tokens > tokens)
    fail("config.newest_tokens", plain.newest_tokens, expected(""));
  check_type({}, "config.plain_type", plain.type);
  return plain.first_tokens > 0 || plain.newest_tokens > 0;
}

/// Of a sequence without tokens. `format` is the cache's.
inline KvPlain open_plain(KvRowFormat format) {
  format.k_type = format.plain.type;
  format.v_type = std::nullopt;
  const auto memory = [&](const char* argument, Index tokens) {
    return tokens > 0 ? allocate_slots(format, argument, tokens, tokens) : KvMemory{};
  };
  const Index newest = format.plain.newest_tokens;
  const Index slots = newest_slots(newest);
  KvPlain made(new KvPlainRows(memory("config.first_tokens", format.plain.first_tokens), format.plain.first_tokens,
                               memory("config.newest_tokens", slots), newest));
  made.get()->newest.view.storage = Storage::ring;
  made.get()->newest.view.capacity = slots;
  return made;
}

/// `whole` is the view of a cache that stores all tokens its own way. The view of its sequence reads plain rows where there are some.
inline void settle(const KvPlain& plain, const KvCacheView& whole) noexcept {
  if (plain.get() == nullptr) return;
  KvPlainRows& rows = *plain.get();
  const Index length = whole.length;
  const auto down = [](Index tokens) { return tokens / kPartTokens * kPartTokens; };
  Index first = rows.first.view.length;
  if (first < length) first = down(first);
  Index newest = newest_begin(length, rows.newest_tokens);
  if (rows.newest_tokens > 0) newest = larger(newest, down(rows.newest.view.oldest + kPartTokens - 1));
  newest = smaller(larger(newest, first), length);
  const KvCacheView* const parts[] = {&rows.first.view, &whole, &rows.newest.view};
  const Index ends[] = {first, newest, length};
  Index count = 0, begin = 0;
  rows.view = whole;
  for (int i = 0; i < 3; begin = ends[i++]) {
    if (ends[i] == begin) continue;
    if (begin > 0) rows.earlier[count++] = rows.view;
    rows.view = *parts[i];
    rows.view.length = ends[i];
  }
  rows.view.earlier = rows.earlier;
  rows.view.earlier_count = count;
}

/// The view of a KvSlots or a KvPageTable.
template <class Cache>
GQA_ALWAYS_INLINE KvCacheView view_of(const Cache& cache) noexcept {
  return cache.plain.get() == nullptr ? cache.view : cache.plain.get()->view;
}

/// Rows that take positions position, position + 1, … of a ring; at most as many as it has slots.
inline void write_around(const KvRoom& room, Index slots, Index position, const ConstTensorView& rows,
                         const RowChange* change) {
  const Index slot = position % slots;
  const Index before_end = smaller(rows.tokens, slots - slot);
  write_rows(room, 0, slot, rows.slice(0, before_end), change, position);
  write_rows(room, 0, 0, rows.slice(before_end, rows.tokens - before_end), change, position + before_end);
}

/// Tokens from `position` on, as append_contiguous and append_paged have them.
inline void append_plain(const KvPlain& plain, Index position, const ConstTensorView& k, const ConstTensorView& v,
                         const RowChange* key_change, const RowChange* value_change) {
  if (plain.get() == nullptr) return;
  KvPlainRows& rows = *plain.get();
  KvCacheView& first = rows.first.view;
  if (first.length == position && position < rows.first_tokens) {
    const Index tokens = smaller(k.tokens, rows.first_tokens - position);
    write_rows(key_room(rows.first), 0, position, k.slice(0, tokens), key_change, position);
    write_rows(value_room(rows.first), 0, position, v.slice(0, tokens), value_change, position);
    first.length += tokens;
  }
  if (rows.newest_tokens == 0) return;
  KvCacheView& newest = rows.newest.view;
  const Index skipped = larger(k.tokens - newest.capacity, 0);
  const Index tokens = k.tokens - skipped;
  write_around(key_room(rows.newest), newest.capacity, position + skipped, k.slice(skipped, tokens), key_change);
  write_around(value_room(rows.newest), newest.capacity, position + skipped, v.slice(skipped, tokens), value_change);
  newest.length = position + k.tokens;
  newest.oldest = newest.first_position_of_part();
}

/// The first `length` tokens are left.
inline void truncate_plain(const KvPlain& plain, Index length) noexcept {
  if (plain.get() == nullptr) return;
  KvPlainRows& rows = *plain.get();
  rows.first.view.length = smaller(rows.first.view.length, length);
  rows.newest.view.length = length;
  rows.newest.view.oldest = smaller(rows.newest.view.oldest, length);
}

/// Calls `visit(memory, slot, tokens, position)` for the runs of positions [first, last) that have plain rows; for some of them twice, where
/// both memories have one.
template <class Visit>
inline void for_plain_runs(const KvPlainRows& rows, Index first, Index last, const Visit& visit) {
  const Index of_first = smaller(last, rows.first.view.length);
  if (first < of_first) visit(rows.first, first, of_first - first, first);
  if (rows.newest_tokens == 0) return;
  const KvCacheView& newest = rows.newest.view;
  for (Index position = larger(first, newest.oldest); position < last;) {
    const Index slot = position % newest.capacity;
    const Index tokens = smaller(last - position, newest.capacity - slot);
    visit(rows.newest, slot, tokens, position);
    position += tokens;
  }
}

/// Has a hook change the keys of positions [first, last).
inline void change_plain(const KvPlain& plain, Index first, Index last, const RowChange& change) {
  if (plain.get() == nullptr) return;
  for_plain_runs(*plain.get(), first, last, [&](const KvMemory& memory, Index slot, Index tokens, Index position) {
    change_slots(key_room(memory), memory.view.kv_heads, 0, slot, tokens, position, change);
  });
}

/// The same rows for a sequence that has the first `tokens` tokens of another one of the same format.
inline void copy_plain(const KvPlain& from, const KvPlain& to, Index tokens) noexcept {
  if (from.get() == nullptr) return;
  KvPlainRows& copy = *to.get();
  for_plain_runs(*from.get(), 0, tokens, [&](const KvMemory& memory, Index slot, Index count, Index) {
    const KvMemory& into = &memory == &from.get()->first ? copy.first : copy.newest;
    const Index heads = memory.view.kv_heads;
    copy_rows(key_room(memory), key_room(into), heads, {0, slot}, {0, slot}, count);
    copy_rows(value_room(memory), value_room(into), heads, {0, slot}, {0, slot}, count);
  });
  copy.first.view.length = from.get()->first.view.length;
  copy.newest.view.oldest = from.get()->newest.view.oldest;
  truncate_plain(to, tokens);
}

inline Index plain_bytes(const KvPlain& plain) noexcept {
  if (plain.get() == nullptr) return 0;
  const KvPlainRows& rows = *plain.get();
  return rows.first.k.bytes() + rows.first.v.bytes() + rows.newest.k.bytes() + rows.newest.v.bytes();
}

}  // namespace GQA_ABI
}  // namespace gqa::detail
