// SPDX-License-Identifier: Apache-2.0
/// @file
/// Owning KV caches that hand out views: contiguous, ring (sliding window), and a pool of pages that sequences share.
///
///     using gqa::ElementType;
///     gqa::ContiguousKvCache cache({.kv_heads = 8, .head_dim = 128, .k_type = ElementType::bf16, .capacity = 8192});
///     cache.append(k, v);                  // one token or many; f32 rows are rounded to bf16 on the way in
///     attention(q, cache.view(), out);
///
/// One object holds one layer's cache (a model has a std::vector of them).
///
/// Common to all:
/// - Memory is allocated once, by the constructor, without being written: the system provides it as tokens come. From
///   4 MiB on it asks for huge pages. It never moves, not even when the object is moved.
/// - view() costs nothing and shows the tokens held at that moment; it never reaches past them. It stays good while
///   tokens are appended, until one of them is dropped (truncate, keep, erase, clear, and in a ring also append), and until the
///   cache is destroyed; for a paged sequence, see also PagedSequence::reserve.
/// - Move-only: a copy of gigabytes should not happen by accident. A moved-from object holds nothing.
/// - A call that throws changes nothing.
/// - Appended rows may come from anywhere, another cache included, and with any strides (a token stride of 0 repeats a row).
///   Those that lie in slots that they overwrite may be overwritten before they are read.
/// - Thread safety: as for standard containers. Any number of threads may read (view() and attention) at the same
///   time; a call that changes a cache needs it alone. For a pool and its sequences, see PagedKvPool.
///
/// Tokens that are not quantised: a cache of a codec may keep the first tokens, which attention often leans on, and the newest ones as plain
/// elements besides:
///
///     gqa::ContiguousKvCache cache({.kv_heads = 8, .head_dim = 128, .k_type = gqa::Int4{}, .capacity = 8192,
///                                   .first_tokens = 64, .newest_tokens = 64});
///
/// Every token is encoded when it is appended, and those have a plain row of the same numbers, too. Which one is read depends on the length
/// alone: positions below first_tokens, and those from the last multiple of 64 on that has newest_tokens tokens behind it, are read as plain
/// elements, so that a block of 64 is of one kind; what lies between is read as the codec stores it. The view has up to three parts then, see
/// KvCacheView::earlier. So appending in one chunk is the same as token by token, also here; but what a query sees of a token may be its
/// plain row at one length and its encoded one at another.
/// - Dropping up to 64 tokens (truncate) leaves what a cache of that length has. Of more, and of tokens that move (keep, erase), plain rows may
///   be missing: the encoded ones are read in their place, until so many new tokens have come. Of the first tokens, those that move are read as
///   encoded from then on.
/// - A key hook is asked once for each of a token's two rows.
/// - A view stays good until the next call that changes the cache.
/// - Memory: newest_tokens + 190 tokens at most, besides first_tokens.
#pragma once

#include <optional>
#include <span>

#include "gqa/detail/float_environment.hpp"
#include "gqa/detail/kv_layout.hpp"
#include "gqa/detail/kv_moves.hpp"
#include "gqa/detail/kv_pages.hpp"
#include "gqa/detail/kv_slots.hpp"
#include "gqa/key_hook.hpp"
#include "gqa/kv_cache_view.hpp"
#include "gqa/tensor_view.hpp"

namespace gqa {

/// What a ContiguousKvCache or RingKvCache is made of.
struct KvCacheConfig {
  Index kv_heads = 0;                               ///< Hkv, 1 or more
  Index head_dim = 0;                               ///< D, 1 or more
  Index value_dim = 0;                              ///< Dv; 0 means the same as head_dim
  KvEncoding k_type = ElementType::f32;             ///< how keys are stored
  std::optional<KvEncoding> v_type = std::nullopt;  ///< how values are stored; the same as k_type unless given
  /// Keys are rotated, after a hook has changed them, before they are stored: blocks of so many elements, a power of two that divides
  /// head_dim; 0: they are not. See gqa/rotation.hpp.
  Index k_rotation = 0;
  Index v_rotation = 0;  ///< values, likewise; outputs are turned back
  Index capacity = 0;    ///< tokens that there is room for, 1 or more
  /// Head-major unless given: attention walks one KV head at a time, and so reads one long stream, at the speed that
  /// memory allows; appending a token writes kv_heads separate rows, which is little beside reading all tokens for the
  /// next one.
  KvLayout layout = KvLayout::head_major;
  /// The first tokens, a multiple of 64 of them, and at least so many of the newest ones are kept as plain elements of `plain_type`, too, and
  /// read as those: see "Tokens that are not quantised" at the top of gqa/kv_cache.hpp. Not in a ring.
  Index first_tokens = 0;
  Index newest_tokens = 0;
  ElementType plain_type = ElementType::bf16;
};

/// What a PagedKvPool is made of.
struct KvPoolConfig {
  Index kv_heads = 0;                               ///< Hkv, 1 or more
  Index head_dim = 0;                               ///< D, 1 or more
  Index value_dim = 0;                              ///< Dv; 0 means the same as head_dim
  KvEncoding k_type = ElementType::f32;             ///< how keys are stored
  std::optional<KvEncoding> v_type = std::nullopt;  ///< how values are stored; the same as k_type unless given
  Index k_rotation = 0;                             ///< as KvCacheConfig::k_rotation
  Index v_rotation = 0;                             ///< as KvCacheConfig::v_rotation
  /// Tokens in a page, any positive number. A sequence leaves half a page unused on average; shared prefixes are shared
  /// in whole pages; and larger pages make longer streams to read.
  Index page_size = 64;
  Index pages = 0;                         ///< physical pages, 1 to 2^31 − 1
  KvLayout layout = KvLayout::head_major;  ///< inside each page; why head-major, see KvCacheConfig::layout
  /// As KvCacheConfig has them, for each sequence: in memory of its own, which sequence() and fork() allocate and bytes() does not count.
  Index first_tokens = 0;
  Index newest_tokens = 0;
  ElementType plain_type = ElementType::bf16;
};

/// One sequence in one piece of memory, from position 0 on, up to a capacity. See the top of this file for what all
/// caches share.
class ContiguousKvCache {
 public:
  /// @throws ArgumentError naming the wrong member of `config`; StorageExhausted if the system has no memory to give
  GQA_ALWAYS_INLINE explicit ContiguousKvCache(const KvCacheConfig& config) {
    detail::open_slots(slots_, detail::row_format(config), config.capacity, Storage::contiguous);
  }
  GQA_ALWAYS_INLINE ContiguousKvCache(ContiguousKvCache&& other) noexcept
      : slots_(static_cast<detail::KvSlots&&>(other.slots_)) {}
  GQA_ALWAYS_INLINE ContiguousKvCache& operator=(ContiguousKvCache&& other) noexcept {
    slots_ = static_cast<detail::KvSlots&&>(other.slots_);
    return *this;
  }
  GQA_ALWAYS_INLINE ~ContiguousKvCache() {}

  /// Appends k.tokens tokens: one, or a chunk (the same as its tokens one by one).
  /// @param k tokens × Hkv × D,  any element type and strides; converted to the stored type, to nearest, ties to even
  /// @param v tokens × Hkv × Dv, likewise; its type may differ from k's
  /// @throws ArgumentError naming what is wrong; StorageExhausted if the capacity does not hold them all
  GQA_ALWAYS_INLINE void append(const ConstTensorView& k, const ConstTensorView& v) {
    detail::append_contiguous(slots_, k, v);
  }
  /// Appends tokens whose keys a hook changes on their way: see gqa::KeyHook.
  /// @throws what else append throws, and what the hook's check does
  template <KeyHook H>
  GQA_ALWAYS_INLINE void append(const ConstTensorView& k, const ConstTensorView& v, const H& hook) {
    const detail::FloatEnvironment environment;
    detail::append_contiguous(slots_, k, v, detail::key_hook_ref(hook));
  }
  /// Appends packed (token, head, dim) rows from vectors, arrays or spans; as many tokens as there are rows for. With a hook, if one is given.
  template <detail::ElementRange K, detail::ElementRange V, KeyHook... Hook>
  GQA_ALWAYS_INLINE void append(const K& k, const V& v, const Hook&... hook) requires(sizeof...(Hook) <= 1) {
    detail::append_packed(*this, slots_.view, k, v, hook...);
  }

  /// Keeps the first `length` tokens and drops the others (draft tokens that were rejected).
  /// @throws ArgumentError if fewer are held
  GQA_ALWAYS_INLINE void truncate(Index length) { detail::truncate_contiguous(slots_, length); }
  /// Of the tokens from position `first` on keeps those listed and drops the others (the accepted path of a draft tree). Those kept take the
  /// positions first, first + 1, …: rows that move are copied as they are stored, the others are not touched.
  /// @param tokens  counted from `first`, in ascending order
  /// @throws ArgumentError if `first` is not held, nor the next position, or the list is not in order or goes beyond the last token
  GQA_ALWAYS_INLINE void keep(Index first, std::span<const Index> tokens) {
    detail::keep_tokens(slots_, first, tokens);
  }
  /// Drops the tokens of positions [first, last); those behind them take their positions, as keep says. Keys that have been turned by their
  /// positions are moved with change_keys then, see gqa/rope.hpp.
  /// @throws ArgumentError if those are not positions held
  GQA_ALWAYS_INLINE void erase(Index first, Index last) { detail::erase_tokens(slots_, first, last); }
  /// Has a hook change the keys of positions [first, last) where they are: each row is decoded to f32 (and turned back, where keys are
  /// rotated), changed, and stored again.
  /// @throws ArgumentError if those are not positions held; what the hook's check throws
  template <KeyHook H>
  GQA_ALWAYS_INLINE void change_keys(Index first, Index last, const H& hook) {
    const detail::FloatEnvironment environment;
    detail::change_keys(slots_, first, last, detail::key_hook_ref(hook));
  }
  /// Drops all tokens; the memory is kept.
  GQA_ALWAYS_INLINE void clear() noexcept { detail::shorten_contiguous(slots_, 0); }

  /// The tokens held, for the functors. O(1), allocates nothing.
  GQA_ALWAYS_INLINE KvCacheView view() const noexcept { return detail::view_of(slots_); }
  /// Tokens held; the next token's position.
  GQA_ALWAYS_INLINE Index length() const noexcept { return slots_.view.length; }
  /// Tokens that there is room for in all.
  GQA_ALWAYS_INLINE Index capacity() const noexcept { return slots_.slots; }
  /// Bytes of key and value memory, used or not.
  GQA_ALWAYS_INLINE Index bytes() const noexcept {
    return slots_.k.bytes() + slots_.v.bytes() + detail::plain_bytes(slots_.plain);
  }

 private:
  detail::KvSlots slots_{};
};

/// The last `capacity` tokens of one sequence; older ones are overwritten. Positions stay absolute: length() counts
/// every token ever appended, and the view says which are still there. See the top of this file for what all caches
/// share.
///
/// How large: with CausalWindow{w} and chunks of up to c tokens, w + c − 1 slots; the first query of a chunk still
/// needs the tokens that its last ones would push out of w slots. The same holds for c draft tokens that may be
/// truncated again.
class RingKvCache {
 public:
  /// @throws ArgumentError naming the wrong member of `config`; StorageExhausted if the system has no memory to give
  GQA_ALWAYS_INLINE explicit RingKvCache(const KvCacheConfig& config) {
    detail::open_slots(slots_, detail::row_format(config), config.capacity, Storage::ring);
  }
  GQA_ALWAYS_INLINE RingKvCache(RingKvCache&& other) noexcept : slots_(static_cast<detail::KvSlots&&>(other.slots_)) {}
  GQA_ALWAYS_INLINE RingKvCache& operator=(RingKvCache&& other) noexcept {
    slots_ = static_cast<detail::KvSlots&&>(other.slots_);
    return *this;
  }
  GQA_ALWAYS_INLINE ~RingKvCache() {}

  /// Appends k.tokens tokens: one, or a chunk (the same as its tokens one by one; it may be longer than the ring).
  /// There is always room.
  /// @param k tokens × Hkv × D,  any element type and strides; converted to the stored type, to nearest, ties to even
  /// @param v tokens × Hkv × Dv, likewise; its type may differ from k's
  /// @throws ArgumentError naming what is wrong
  GQA_ALWAYS_INLINE void append(const ConstTensorView& k, const ConstTensorView& v) {
    detail::append_ring(slots_, k, v);
  }
  /// Appends tokens whose keys a hook changes on their way: see gqa::KeyHook.
  /// @throws what else append throws, and what the hook's check does
  template <KeyHook H>
  GQA_ALWAYS_INLINE void append(const ConstTensorView& k, const ConstTensorView& v, const H& hook) {
    const detail::FloatEnvironment environment;
    detail::append_ring(slots_, k, v, detail::key_hook_ref(hook));
  }
  /// Appends packed (token, head, dim) rows from vectors, arrays or spans; as many tokens as there are rows for. With a hook, if one is given.
  template <detail::ElementRange K, detail::ElementRange V, KeyHook... Hook>
  GQA_ALWAYS_INLINE void append(const K& k, const V& v, const Hook&... hook) requires(sizeof...(Hook) <= 1) {
    detail::append_packed(*this, slots_.view, k, v, hook...);
  }

  /// Makes position `length` the next one and drops the tokens from there on. What they had overwritten does not come
  /// back: first_position() stays, and a call whose queries reach further back throws ArgumentError.
  /// @throws ArgumentError unless length is 0 or between first_position() and length()
  GQA_ALWAYS_INLINE void truncate(Index length) { detail::truncate_ring(slots_, length); }
  /// As ContiguousKvCache::keep; first_position() stays.
  GQA_ALWAYS_INLINE void keep(Index first, std::span<const Index> tokens) {
    detail::keep_tokens(slots_, first, tokens);
  }
  /// As ContiguousKvCache::erase; first_position() stays.
  GQA_ALWAYS_INLINE void erase(Index first, Index last) { detail::erase_tokens(slots_, first, last); }
  /// As ContiguousKvCache::change_keys.
  template <KeyHook H>
  GQA_ALWAYS_INLINE void change_keys(Index first, Index last, const H& hook) {
    const detail::FloatEnvironment environment;
    detail::change_keys(slots_, first, last, detail::key_hook_ref(hook));
  }
  /// Drops all tokens; the next position is 0 again. The memory is kept.
  GQA_ALWAYS_INLINE void clear() noexcept {
    slots_.view.length = 0;
    slots_.view.oldest = 0;
    slots_.first = 0;
  }

  /// The tokens held, for the functors. O(1), allocates nothing.
  GQA_ALWAYS_INLINE KvCacheView view() const noexcept { return slots_.view; }
  /// Tokens appended so far; the next token's position.
  GQA_ALWAYS_INLINE Index length() const noexcept { return slots_.view.length; }
  /// The oldest position held.
  GQA_ALWAYS_INLINE Index first_position() const noexcept { return slots_.first; }
  /// Slots: the most tokens held at a time.
  GQA_ALWAYS_INLINE Index capacity() const noexcept { return slots_.slots; }
  /// Bytes of key and value memory, used or not.
  GQA_ALWAYS_INLINE Index bytes() const noexcept { return slots_.k.bytes() + slots_.v.bytes(); }

 private:
  detail::KvSlots slots_{};
};

/// One sequence whose tokens lie in pages of a PagedKvPool. Made by PagedKvPool::sequence() and fork(); gives its pages
/// back when it is destroyed. May outlive the pool's handle: the memory stays until the last sequence is gone. See the
/// top of this file for what all caches share, and PagedKvPool for threads.
class PagedSequence {
 public:
  /// Belongs to no pool: a place to move a sequence into. Holds nothing; appending, forking or reserving throws
  /// ArgumentError.
  GQA_ALWAYS_INLINE PagedSequence() noexcept {}
  GQA_ALWAYS_INLINE PagedSequence(PagedSequence&& other) noexcept
      : table_(static_cast<detail::KvPageTable&&>(other.table_)) {}
  GQA_ALWAYS_INLINE PagedSequence& operator=(PagedSequence&& other) noexcept {
    if (this == &other) return *this;
    detail::leave_pool(table_);
    table_ = static_cast<detail::KvPageTable&&>(other.table_);
    return *this;
  }
  GQA_ALWAYS_INLINE ~PagedSequence() { detail::leave_pool(table_); }

  /// Appends k.tokens tokens: one, or a chunk (the same as its tokens one by one). Takes pages from the pool as needed.
  /// If the last page is not full and shared with another sequence, this one gets its own copy of that page first (copy
  /// on write); full pages stay shared.
  /// @param k tokens × Hkv × D,  any element type and strides; converted to the stored type, to nearest, ties to even
  /// @param v tokens × Hkv × Dv, likewise; its type may differ from k's
  /// @throws ArgumentError naming what is wrong; StorageExhausted if the pool has fewer than pages_to_append(k.tokens)
  /// pages free
  GQA_ALWAYS_INLINE void append(const ConstTensorView& k, const ConstTensorView& v) {
    detail::append_paged(table_, k, v);
  }
  /// Appends tokens whose keys a hook changes on their way: see gqa::KeyHook.
  /// @throws what else append throws, and what the hook's check does
  template <KeyHook H>
  GQA_ALWAYS_INLINE void append(const ConstTensorView& k, const ConstTensorView& v, const H& hook) {
    const detail::FloatEnvironment environment;
    detail::append_paged(table_, k, v, detail::key_hook_ref(hook));
  }
  /// Appends packed (token, head, dim) rows from vectors, arrays or spans; as many tokens as there are rows for. With a hook, if one is given.
  template <detail::ElementRange K, detail::ElementRange V, KeyHook... Hook>
  GQA_ALWAYS_INLINE void append(const K& k, const V& v, const Hook&... hook) requires(sizeof...(Hook) <= 1) {
    detail::append_packed(*this, detail::pool_of(table_).view, k, v, hook...);
  }

  /// Keeps the first `length` tokens, drops the others and gives back the pages that only they used.
  /// @throws ArgumentError if fewer are held
  GQA_ALWAYS_INLINE void truncate(Index length) { detail::truncate_paged(table_, length); }
  /// As ContiguousKvCache::keep. Pages that rows move into, and that other sequences use too, are replaced by copies first; those behind the
  /// last token are given back.
  /// @throws what that throws; StorageExhausted if the pool has no pages for the copies
  GQA_ALWAYS_INLINE void keep(Index first, std::span<const Index> tokens) {
    detail::keep_tokens(table_, first, tokens);
  }
  /// As ContiguousKvCache::erase, with pages as keep has them. @throws what keep throws
  GQA_ALWAYS_INLINE void erase(Index first, Index last) { detail::erase_tokens(table_, first, last); }
  /// As ContiguousKvCache::change_keys. Pages that other sequences use too are replaced by copies first.
  /// @throws what that throws; StorageExhausted if the pool has no pages for the copies
  template <KeyHook H>
  GQA_ALWAYS_INLINE void change_keys(Index first, Index last, const H& hook) {
    const detail::FloatEnvironment environment;
    detail::change_keys(table_, first, last, detail::key_hook_ref(hook));
  }
  /// Drops all tokens and gives back their pages. The sequence still belongs to its pool.
  GQA_ALWAYS_INLINE void clear() noexcept {
    detail::give_back_behind(table_, 0);
    table_.view.length = 0;
    detail::truncate_plain(table_.plain, 0);
    detail::settle(table_.plain, table_.view);
  }
  /// Gives everything back and leaves the pool; what remains is as default constructed.
  GQA_ALWAYS_INLINE void release() noexcept { detail::leave_pool(table_); }

  /// A sequence with the same tokens, in the same pages: nothing is copied until one of the two writes into a page that
  /// both use.
  GQA_ALWAYS_INLINE PagedSequence fork() const { return fork(length()); }
  /// A sequence that begins with the first `tokens` tokens of this one: a shared prefix. A multiple of the page size is
  /// never copied later.
  /// @throws ArgumentError if fewer are held
  GQA_ALWAYS_INLINE PagedSequence fork(Index tokens) const {
    PagedSequence made;
    detail::fork_pages(made.table_, table_, tokens);
    return made;
  }

  /// Makes room in the page table for `tokens` tokens in all, without taking pages. Until there are more, appending
  /// allocates nothing, and views that were handed out stay good; otherwise an append that takes a page may move the
  /// table (never the pages), and views from before it must not be used.
  /// @throws ArgumentError if the pool is smaller than that
  GQA_ALWAYS_INLINE void reserve(Index tokens) { detail::reserve_tokens(table_, tokens); }

  /// Pages that append would take for `tokens` more tokens, a copy on write included: what a scheduler compares with
  /// PagedKvPool::free_pages() before it admits work.
  GQA_ALWAYS_INLINE Index pages_to_append(Index tokens) const { return detail::pages_to_append(table_, tokens); }

  /// The tokens held, for the functors. O(1), allocates nothing.
  GQA_ALWAYS_INLINE KvCacheView view() const noexcept { return detail::view_of(table_); }
  /// Tokens held; the next token's position.
  GQA_ALWAYS_INLINE Index length() const noexcept { return table_.view.length; }
  /// Physical pages of the tokens held, in order. As long-lived as a view.
  GQA_ALWAYS_INLINE std::span<const std::int32_t> pages() const noexcept {
    return {table_.view.page_table, static_cast<std::size_t>(table_.view.page_table_size)};
  }
  /// True if it belongs to a pool.
  GQA_ALWAYS_INLINE explicit operator bool() const noexcept { return table_.pool != nullptr; }

 private:
  friend class PagedKvPool;
  detail::KvPageTable table_{};
};

/// A fixed number of pages of a fixed number of tokens, from which any number of sequences of any length are served:
///
///     gqa::PagedKvPool pool({.kv_heads = 8, .head_dim = 128, .page_size = 64, .pages = 4096});
///     gqa::PagedSequence prompt = pool.sequence();
///     prompt.append(k, v);
///     gqa::PagedSequence answer = prompt.fork();  // shares the prompt's pages
///     answer.append(k_next, v_next);              // and writes to its own
///
/// Pages are taken and given back in constant time and never move. A page that several sequences use is counted once
/// per sequence and is free when the last lets go of it. A moved-from pool has no pages.
///
/// Threads: the pool and its sequences share the page accounts, so that of all calls that change any of them (append,
/// truncate, keep, erase, change_keys, clear, release, fork, reserve, sequence(), assignment, destruction) only one may run at a time. Attention
/// over views of sequences that this one call does not change may go on meanwhile, also where they share pages with one
/// that it does.
class PagedKvPool {
 public:
  /// @throws ArgumentError naming the wrong member of `config`; StorageExhausted if the system has no memory to give
  GQA_ALWAYS_INLINE explicit PagedKvPool(const KvPoolConfig& config)
      : pool_(detail::open_pool(detail::row_format(config), config.page_size, config.pages)) {}
  PagedKvPool(const PagedKvPool&) = delete;
  PagedKvPool& operator=(const PagedKvPool&) = delete;
  GQA_ALWAYS_INLINE PagedKvPool(PagedKvPool&& other) noexcept : pool_(other.pool_) { other.pool_ = nullptr; }
  GQA_ALWAYS_INLINE PagedKvPool& operator=(PagedKvPool&& other) noexcept {
    if (this == &other) return *this;
    detail::drop_owner(pool_);
    pool_ = other.pool_;
    other.pool_ = nullptr;
    return *this;
  }
  GQA_ALWAYS_INLINE ~PagedKvPool() { detail::drop_owner(pool_); }

  /// A sequence without tokens and pages.
  GQA_ALWAYS_INLINE PagedSequence sequence() {
    PagedSequence made;
    detail::join_pool(made.table_, pool_);
    return made;
  }

  /// Pages in all.
  GQA_ALWAYS_INLINE Index pages() const noexcept { return pool_ == nullptr ? 0 : pool_->view.pool_pages; }
  /// Pages that no sequence uses.
  GQA_ALWAYS_INLINE Index free_pages() const noexcept { return pool_ == nullptr ? 0 : pool_->free_count; }
  /// Tokens in a page.
  GQA_ALWAYS_INLINE Index page_size() const noexcept { return pool_ == nullptr ? 0 : pool_->view.page_size; }
  /// Sequences that use physical page `page`; 0 if it is free. @throws ArgumentError if there is no such page
  GQA_ALWAYS_INLINE Index reference_count(Index page) const { return detail::reference_count(pool_, page); }
  /// Bytes of key and value memory, used or not.
  GQA_ALWAYS_INLINE Index bytes() const noexcept { return pool_ == nullptr ? 0 : pool_->k.bytes() + pool_->v.bytes(); }

 private:
  detail::KvPool* pool_;
};

}  // namespace gqa
