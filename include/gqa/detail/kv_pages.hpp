// SPDX-License-Identifier: Apache-2.0
/// @file
/// The page pool and its sequences, with their bodies: taking and giving back pages, sharing, copy on write.
#pragma once

#include <cstring>
#include <limits>

#include "gqa/detail/kv_plain.hpp"

namespace gqa::detail {

/// Physical pages and who uses them. Lives on the heap, so that sequences find it wherever the pool's handle moves to,
/// and as long as the handle or a sequence needs it.
struct KvPool {
  Buffer k{};
  Buffer v{};
  Buffer free_pages{};  // std::int32_t: a stack of the pages that nobody uses
  Buffer references{};  // std::int32_t per page: sequences that use it
  KvCodecs codecs{};
  KvCacheView view{};  // of a sequence without tokens
  KvRowFormat format;
  bool plain = false;  // its sequences have plain rows besides
  Index free_count = 0;
  Index owners = 1;  // the handle and the sequences

  GQA_ALWAYS_INLINE explicit KvPool(const KvRowFormat& rows) noexcept : format(rows) {}
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;
  GQA_ALWAYS_INLINE ~KvPool() {}
};

/// A sequence's page table: which pages hold its tokens, in order. Uses ceil(length / page size) of them, no more.
struct KvPageTable {
  KvPool* pool = nullptr;
  Buffer entries{};  // std::int32_t: logical page → physical page
  KvCacheView view{};
  KvPlain plain{};

  GQA_ALWAYS_INLINE KvPageTable() noexcept {}
  KvPageTable(const KvPageTable&) = delete;
  KvPageTable& operator=(const KvPageTable&) = delete;
  GQA_ALWAYS_INLINE KvPageTable(KvPageTable&& other) noexcept
      : pool(other.pool),
        entries(static_cast<Buffer&&>(other.entries)),
        view(other.view),
        plain(static_cast<KvPlain&&>(other.plain)) {
    other.forget();
  }
  GQA_ALWAYS_INLINE KvPageTable& operator=(KvPageTable&& other) noexcept {
    if (this == &other) return *this;
    pool = other.pool;
    entries = static_cast<Buffer&&>(other.entries);
    view = other.view;
    plain = static_cast<KvPlain&&>(other.plain);
    other.forget();
    return *this;
  }
  GQA_ALWAYS_INLINE ~KvPageTable() {}

 private:
  GQA_ALWAYS_INLINE void forget() noexcept {
    pool = nullptr;
    view = KvCacheView{};
  }
};

inline namespace GQA_ABI {

inline Index pages_for(Index tokens, Index page_size) { return tokens / page_size + (tokens % page_size != 0 ? 1 : 0); }

inline KvPool* open_pool(const KvRowFormat& format, Index page_size, Index pages) {
  if (page_size < 1) fail("config.page_size", page_size, "1 or more");
  if (pages < 1 || pages > (std::numeric_limits<std::int32_t>::max)())
    fail("config.pages", pages, "1 to 2147483647, so that a page table entry can name each");
  const Checked slots = Checked(page_size) * pages;
  if (!slots.fits()) fail("config.pages", pages, "pages * page_size tokens that fit in 63 bits");
  const bool plain = wants_plain(format, slots.value());
  KvMemory memory = allocate_slots(format, "config.pages * page_size", slots.value(), page_size);
  const Index list_bytes = pages * static_cast<Index>(sizeof(std::int32_t));
  Buffer free_pages(list_bytes, "the list of free pages");
  Buffer references(list_bytes, "reference counts");
  for (Index i = 0; i < pages; ++i) {
    free_pages.as<std::int32_t>()[i] = static_cast<std::int32_t>(pages - 1 - i);  // page 0 is on top
    references.as<std::int32_t>()[i] = 0;
  }
  auto* pool = new KvPool(format);
  pool->plain = plain;
  pool->k = std::move(memory.k);
  pool->v = std::move(memory.v);
  pool->free_pages = std::move(free_pages);
  pool->references = std::move(references);
  pool->codecs = memory.codecs;
  pool->view = memory.view;
  pool->view.storage = Storage::paged;
  pool->view.page_size = page_size;
  pool->view.pool_pages = pages;
  pool->free_count = pages;
  return pool;
}

inline void drop_owner(KvPool* pool) noexcept {
  if (pool == nullptr || --pool->owners > 0) return;
#if !defined(__clang_analyzer__)  // it does not follow the count, and takes every later use for one after this
  delete pool;
#endif
}

inline void join_pool(KvPageTable& table, KvPool* pool) {
  if (pool == nullptr) fail("pool", "empty (moved from)", "a pool with pages");
  if (pool->plain) table.plain = open_plain(pool->format);
  table.pool = pool;
  table.view = pool->view;
  settle(table.plain, table.view);
  ++pool->owners;
}

inline KvPool& pool_of(const KvPageTable& table) {
  if (table.pool == nullptr)
    fail("sequence", "empty (default constructed, released or moved from)", "a sequence made by a pool");
  return *table.pool;
}

inline std::int32_t reference_count(const KvPool* pool, Index page) {
  if (pool == nullptr) fail("pool", "empty (moved from)", "a pool with pages");
  if (page < 0 || page >= pool->view.pool_pages) fail("page", page, "0 to " + to_text(pool->view.pool_pages - 1));
  return pool->references.as<std::int32_t>()[page];
}

/// The caller has made sure that there is one.
inline std::int32_t take_page(KvPool& pool) noexcept {
  const std::int32_t page = pool.free_pages.as<std::int32_t>()[--pool.free_count];
  pool.references.as<std::int32_t>()[page] = 1;
  return page;
}

inline void give_back_page(KvPool& pool, std::int32_t page) noexcept {
  if (--pool.references.as<std::int32_t>()[page] == 0) pool.free_pages.as<std::int32_t>()[pool.free_count++] = page;
}

/// Gives back the pages behind the first `pages`, the last one first: appending then takes them in the same order
/// again.
inline void give_back_behind(KvPageTable& table, Index pages) noexcept {
  while (table.view.page_table_size > pages)
    give_back_page(*table.pool, table.entries.as<std::int32_t>()[--table.view.page_table_size]);
}

inline void leave_pool(KvPageTable& table) noexcept {
  if (table.pool == nullptr) return;
  give_back_behind(table, 0);
  drop_owner(table.pool);
  table = KvPageTable{};
}

/// Makes room in the table for `pages` entries. Pages and contents stay as they are.
inline void reserve_entries(KvPageTable& table, Index pages) {
  const Index bytes = pages * static_cast<Index>(sizeof(std::int32_t));
  if (bytes <= table.entries.bytes()) return;
  Buffer entries(bytes, "a page table");
  if (table.view.page_table_size > 0)
    std::memcpy(entries.as<void>(), table.entries.as<void>(),
                static_cast<std::size_t>(table.view.page_table_size) * sizeof(std::int32_t));
  table.entries = std::move(entries);
  table.view.page_table = table.entries.as<std::int32_t>();
}

inline void reserve_tokens(KvPageTable& table, Index tokens) {
  const KvPool& pool = pool_of(table);
  const Index most = pool.view.pool_pages * pool.view.page_size;
  if (tokens < 0 || tokens > most) fail("tokens", tokens, "0 to the pool's " + to_text(most));
  reserve_entries(table, pages_for(tokens, pool.view.page_size));
  settle(table.plain, table.view);
}

/// True if other sequences use a page of the table's too: it is copied before it is written.
inline bool is_shared(const KvPageTable& table, Index page) noexcept {
  return table.pool->references.as<std::int32_t>()[table.view.page_table[page]] > 1;
}
/// True if the next token falls into such a page.
inline bool writes_shared_page(const KvPageTable& table) noexcept {
  const KvCacheView& view = table.view;
  return view.length % view.page_size != 0 && is_shared(table, view.page_table_size - 1);
}

/// Free pages that appending `tokens` takes.
inline Index pages_to_append(const KvPageTable& table, Index tokens) {
  const KvPool& pool = pool_of(table);
  if (tokens < 0) fail("tokens", tokens, "0 or more");
  if (tokens == 0) return 0;
  const Index page_size = pool.view.page_size;
  const Index rest = table.view.page_table_size * page_size - table.view.length;  // free slots of the last page
  return (tokens > rest ? pages_for(tokens - rest, page_size) : 0) + (writes_shared_page(table) ? 1 : 0);
}

/// Puts a page that has been taken in the place of one of the table's.
inline void replace_page(KvPageTable& table, Index page, std::int32_t taken) noexcept {
  std::int32_t& entry = table.entries.as<std::int32_t>()[page];
  give_back_page(*table.pool, entry);
  entry = taken;
}

/// Puts an own copy of a page's tokens in the place of the shared page.
inline void copy_page(KvPageTable& table, Index page) noexcept {
  KvPool& pool = *table.pool;
  const std::int32_t fresh = take_page(pool);
  const Index behind = table.view.length - page * table.view.page_size;
  const Index tokens = behind < table.view.page_size ? behind : table.view.page_size;
  for (const KvRoom& room : {key_room(pool), value_room(pool)})
    copy_slots(room, table.view.kv_heads, {table.view.page_table[page], 0}, {fresh, 0}, tokens);
  replace_page(table, page, fresh);
}

inline void append_paged(KvPageTable& table, const ConstTensorView& k, const ConstTensorView& v,
                         const KeyHookRef& hook = kNoKeyHook) {
  KvPool& pool = pool_of(table);
  check_append(table.view, k, v);
  const RowChange key_change(hook, {table.view.length, k.tokens, k.heads, k.dim}, table.view.k_rotation);
  const RowChange value_change(kNoKeyHook, {table.view.length, v.tokens, v.heads, v.dim}, table.view.v_rotation);
  if (k.tokens == 0) return;
  const Index needed = pages_to_append(table, k.tokens);
  if (needed > pool.free_count)
    raise<StorageExhausted>("gqa: the pool has " + to_text(pool.free_count) + " of " + to_text(pool.view.pool_pages) +
                            " pages free; appending " + to_text(k.tokens) + " tokens needs " + to_text(needed));
  const Index page_size = table.view.page_size;
  const Index pages = pages_for(table.view.length + k.tokens, page_size);
  const Index room = table.entries.bytes() / static_cast<Index>(sizeof(std::int32_t));
  if (pages > room) reserve_entries(table, pages > 2 * room ? pages : 2 * room);  // doubles: O(1) per token over time
  // Nothing fails from here on.
  if (writes_shared_page(table)) copy_page(table, table.view.page_table_size - 1);
  auto* entries = table.entries.as<std::int32_t>();
  while (table.view.page_table_size < pages) entries[table.view.page_table_size++] = take_page(pool);
  const KvRoom keys = key_room(pool);
  const KvRoom values = value_room(pool);
  for (Index done = 0; done < k.tokens;) {
    const Index position = table.view.length + done;
    const Index slot = position % page_size;
    const Index count = k.tokens - done < page_size - slot ? k.tokens - done : page_size - slot;
    const Index page = entries[position / page_size];
    write_rows(keys, page, slot, k.slice(done, count), key_change.if_any(), position);
    write_rows(values, page, slot, v.slice(done, count), value_change.if_any(), position);
    done += count;
  }
  append_plain(table.plain, table.view.length, k, v, key_change.if_any(), value_change.if_any());
  table.view.length += k.tokens;
  settle(table.plain, table.view);
}

inline void truncate_paged(KvPageTable& table, Index length) {
  const KvPool& pool = pool_of(table);
  check_truncate(length, 0, table.view.length);
  give_back_behind(table, pages_for(length, pool.view.page_size));
  truncate_plain(table.plain, length);
  table.view.length = length;
  settle(table.plain, table.view);
}

/// A sequence that begins with the first `tokens` of `table`, in the same pages.
inline void fork_pages(KvPageTable& fork, const KvPageTable& table, Index tokens) {
  KvPool& pool = pool_of(table);
  if (tokens < 0 || tokens > table.view.length)
    fail("tokens", tokens, "between 0 and the tokens held, " + to_text(table.view.length));
  KvPageTable made;
  const Index pages = pages_for(tokens, pool.view.page_size);
  if (pages > 0) made.entries = Buffer(pages * static_cast<Index>(sizeof(std::int32_t)), "a page table");
  join_pool(made, &pool);
  auto* entries = made.entries.as<std::int32_t>();
  for (Index i = 0; i < pages; ++i) {
    entries[i] = table.view.page_table[i];
    ++pool.references.as<std::int32_t>()[entries[i]];
  }
  made.view.page_table = entries;
  made.view.page_table_size = pages;
  made.view.length = tokens;
  copy_plain(table.plain, made.plain, tokens);
  settle(made.plain, made.view);
  fork = std::move(made);
}

}  // namespace GQA_ABI
}  // namespace gqa::detail
