// SPDX-License-Identifier: Apache-2.0
/// @file
/// What owning caches do with tokens that they have: some are kept and move together, and keys are changed where they are.
#pragma once

#include <span>

#include "gqa/detail/kv_pages.hpp"
#include "gqa/detail/kv_slots.hpp"

namespace gqa::detail {

/// The tokens that are kept from some position on, counted from there, in ascending order.
struct KeptTokens {
  const Index* listed;  ///< or null: all behind the first `skipped`
  Index skipped;
  Index count;

  GQA_ALWAYS_INLINE Index operator[](Index i) const noexcept { return listed != nullptr ? listed[i] : skipped + i; }
  /// How many stay where they are, at the front.
  GQA_ALWAYS_INLINE Index unmoved() const noexcept {
    Index i = 0;
    if (listed == nullptr) return skipped == 0 ? count : 0;
    while (i < count && listed[i] == i) ++i;
    return i;
  }
};

inline namespace GQA_ABI {

inline void check_held(const char* argument, Index given, Index from, const char* from_name, Index length) {
  if (given < from || given > length)
    fail(argument, given,
         Text("between ") + from_name + ", " + to_text(from) + ", and the next position, " + to_text(length));
}
inline void check_first(Index first, Index oldest, Index length) {
  check_held("first", first, oldest, "the oldest position held", length);
}
inline void check_range(Index first, Index last, Index oldest, Index length) {
  check_first(first, oldest, length);
  check_held("last", last, first, "first", length);
}

inline KeptTokens listed_tokens(Index first, std::span<const Index> tokens, Index oldest, Index length) {
  check_first(first, oldest, length);
  check_span({}, "tokens.data()", tokens, " tokens");
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const Index least = i == 0 ? 0 : tokens[i - 1] + 1;
    if (tokens[i] < least || tokens[i] >= length - first)
      fail("tokens[" + to_text(i) + "]", tokens[i],
           Text(i == 0 ? "0 or more" : "more than the one before it") +
               ", and less than length - first = " + to_text(length - first));
  }
  return {tokens.data(), 0, static_cast<Index>(tokens.size())};
}
inline KeptTokens tokens_but(Index first, Index last, Index oldest, Index length) {
  check_range(first, last, oldest, length);
  return {nullptr, last - first, length - last};
}

/// A cache's rows: keys, then values.
struct KvRooms {
  KvRoom keys;
  KvRoom values;
  void copy(Index heads, const Slot& from, const Slot& to, Index tokens) const noexcept {
    copy_slots(keys, heads, from, to, tokens);
    copy_slots(values, heads, from, to, tokens);
  }
};

/// The plain rows of tokens of which those from position `first` on are kept. Of the first tokens none are left that move; of the newest those
/// that take positions of newest tokens.
inline void keep_plain(const KvPlain& plain, Index first, const KeptTokens& kept) noexcept {
  if (plain.get() == nullptr) return;
  KvPlainRows& rows = *plain.get();
  const Index length = first + kept.count;
  const Index moved = first + kept.unmoved();
  rows.first.view.length = smaller(rows.first.view.length, moved);
  if (rows.newest_tokens > 0) {
    const KvRooms rooms{key_room(rows.newest), value_room(rows.newest)};
    const KvCacheView& newest = rows.newest.view;
    for (Index position = larger(moved, newest.oldest); position < length; ++position)
      rooms.copy(newest.kv_heads, {0, (first + kept[position - first]) % newest.capacity},
                 {0, position % newest.capacity}, 1);
  }
  truncate_plain(plain, length);
}

// --- contiguous and ring ---------------------------------------------------------------------------------------------

/// Of the tokens from position `first` on, those that are kept take the positions first, first + 1, …; the others go.
inline void keep_slots(KvSlots& cache, Index first, const KeptTokens& kept) noexcept {
  const KvRooms rooms{key_room(cache), value_room(cache)};
  for (Index i = kept.unmoved(); i < kept.count; ++i)
    rooms.copy(cache.view.kv_heads, {0, (first + kept[i]) % cache.slots}, {0, (first + i) % cache.slots}, 1);
  keep_plain(cache.plain, first, kept);
  cache.view.length = first + kept.count;
  settle(cache.plain, cache.view);
}

inline void keep_tokens(KvSlots& cache, Index first, std::span<const Index> tokens) {
  keep_slots(cache, first, listed_tokens(first, tokens, cache.first, cache.view.length));
}
inline void erase_tokens(KvSlots& cache, Index first, Index last) {
  keep_slots(cache, first, tokens_but(first, last, cache.first, cache.view.length));
}

inline void change_keys(KvSlots& cache, Index first, Index last, const KeyHookRef& hook) {
  check_not_moved_from(cache.view.kv_heads);
  check_range(first, last, cache.first, cache.view.length);
  const RowChange change(hook, {first, last - first, cache.view.kv_heads, cache.view.head_dim}, cache.view.k_rotation);
  const KvRoom keys = key_room(cache);
  change_plain(cache.plain, first, last, change);
  while (first < last) {  // a ring's end once at most
    const Index slot = first % cache.slots;
    const Index count = last - first < cache.slots - slot ? last - first : cache.slots - slot;
    change_slots(keys, cache.view.kv_heads, 0, slot, count, first, change);
    first += count;
  }
}

// --- pages -----------------------------------------------------------------------------------------------------------

/// Fails if the pool has no pages for copies of those of positions [first, last) that other sequences use too.
inline void check_shared(const KvPageTable& table, Index first, Index last, const char* doing) {
  const KvPool& pool = *table.pool;
  Index needed = 0;
  for (Index page = first / table.view.page_size; page * table.view.page_size < last; ++page)
    if (is_shared(table, page)) ++needed;
  if (first < last && needed > pool.free_count)
    raise<StorageExhausted>("gqa: the pool has " + to_text(pool.free_count) + " of " + to_text(pool.view.pool_pages) +
                            " pages free; " + doing + " needs " + to_text(needed) +
                            ", for copies of pages that other sequences use too");
}

inline void keep_paged(KvPageTable& table, Index first, const KeptTokens& kept) {
  KvPool& pool = *table.pool;
  const Index heads = table.view.kv_heads;
  const Index page_size = table.view.page_size;
  const Index length = first + kept.count;
  Index position = first + kept.unmoved();
  check_shared(table, position, length, "keeping tokens");
  // Nothing fails from here on.
  const KvRooms rooms{key_room(pool), value_room(pool)};
  auto* const entries = table.entries.as<std::int32_t>();
  while (position < length) {
    const Index page = position / page_size;
    const std::int32_t before = entries[page];
    const std::int32_t after = is_shared(table, page) ? take_page(pool) : before;
    if (after != before) rooms.copy(heads, {before, 0}, {after, 0}, position % page_size);
    for (; position < length && position / page_size == page; ++position) {
      const Index from = first + kept[position - first];  // in this page or behind it, in one that is as it was
      rooms.copy(heads, {entries[from / page_size], from % page_size}, {after, position % page_size}, 1);
    }
    if (after != before) replace_page(table, page, after);
  }
  give_back_behind(table, pages_for(length, page_size));
  keep_plain(table.plain, first, kept);
  table.view.length = length;
  settle(table.plain, table.view);
}

inline void keep_tokens(KvPageTable& table, Index first, std::span<const Index> tokens) {
  pool_of(table);
  keep_paged(table, first, listed_tokens(first, tokens, 0, table.view.length));
}
inline void erase_tokens(KvPageTable& table, Index first, Index last) {
  pool_of(table);
  keep_paged(table, first, tokens_but(first, last, 0, table.view.length));
}

inline void change_keys(KvPageTable& table, Index first, Index last, const KeyHookRef& hook) {
  KvPool& pool = pool_of(table);
  check_range(first, last, 0, table.view.length);
  const RowChange change(hook, {first, last - first, table.view.kv_heads, table.view.head_dim}, table.view.k_rotation);
  check_shared(table, first, last, "changing keys");
  // Nothing fails from here on.
  const KvRoom keys = key_room(pool);
  const Index page_size = table.view.page_size;
  change_plain(table.plain, first, last, change);
  while (first < last) {
    const Index page = first / page_size;
    const Index slot = first % page_size;
    const Index count = last - first < page_size - slot ? last - first : page_size - slot;
    if (is_shared(table, page)) copy_page(table, page);
    change_slots(keys, table.view.kv_heads, table.view.page_table[page], slot, count, first, change);
    first += count;
  }
}

}  // namespace GQA_ABI
}  // namespace gqa::detail
