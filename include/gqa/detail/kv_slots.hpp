// SPDX-License-Identifier: Apache-2.0
/// @file
/// The contiguous and the ring cache, with their bodies: K and V in one piece each.
#pragma once

#include "gqa/detail/kv_plain.hpp"

namespace gqa::detail {

/// A cache without pages. Public caches hold one and forward to the functions below.
struct KvSlots {
  Buffer k{};
  Buffer v{};
  KvCodecs codecs{};
  KvCacheView view{};
  KvPlain plain{};
  Index slots = 0;  // tokens there is room for
  Index first = 0;  // ring: positions before it have been overwritten

  GQA_ALWAYS_INLINE KvSlots() noexcept {}
  GQA_ALWAYS_INLINE KvSlots(KvSlots&& other) noexcept
      : k(static_cast<Buffer&&>(other.k)),
        v(static_cast<Buffer&&>(other.v)),
        codecs(other.codecs),
        view(other.view),
        plain(static_cast<KvPlain&&>(other.plain)),
        slots(other.slots),
        first(other.first) {
    other.forget();
  }
  GQA_ALWAYS_INLINE KvSlots& operator=(KvSlots&& other) noexcept {
    if (this == &other) return *this;
    k = static_cast<Buffer&&>(other.k);
    v = static_cast<Buffer&&>(other.v);
    codecs = other.codecs;
    view = other.view;
    plain = static_cast<KvPlain&&>(other.plain);
    slots = other.slots;
    first = other.first;
    other.forget();
    return *this;
  }
  GQA_ALWAYS_INLINE ~KvSlots() {}

 private:
  GQA_ALWAYS_INLINE void forget() noexcept {
    view = KvCacheView{};
    slots = 0;
    first = 0;
  }
};

inline namespace GQA_ABI {

inline void open_slots(KvSlots& cache, const KvRowFormat& format, Index capacity, Storage storage) {
  if (capacity < 1) fail("config.capacity", capacity, "1 or more");
  const bool plain = wants_plain(format, capacity);
  if (plain && storage == Storage::ring)
    fail(format.plain.first_tokens > 0 ? "config.first_tokens" : "config.newest_tokens",
         format.plain.first_tokens > 0 ? format.plain.first_tokens : format.plain.newest_tokens,
         "0: a ring stores all its tokens the same way");
  KvMemory memory = allocate_slots(format, "config.capacity", capacity, capacity);
  if (plain) cache.plain = open_plain(format);
  cache.k = std::move(memory.k);
  cache.v = std::move(memory.v);
  cache.codecs = memory.codecs;
  cache.view = memory.view;
  cache.view.storage = storage;
  if (storage == Storage::ring) cache.view.capacity = capacity;
  cache.slots = capacity;
  settle(cache.plain, cache.view);
}

inline void append_contiguous(KvSlots& cache, const ConstTensorView& k, const ConstTensorView& v,
                              const KeyHookRef& hook = kNoKeyHook) {
  check_append(cache.view, k, v);
  const Index room = cache.slots - cache.view.length;
  if (k.tokens > room)
    raise<StorageExhausted>("gqa: the contiguous cache has room for " + to_text(room) + " of " + to_text(cache.slots) +
                            " tokens; appending needs " + to_text(k.tokens));
  const Index position = cache.view.length;
  const RowChange keys(hook, {position, k.tokens, k.heads, k.dim}, cache.view.k_rotation);
  const RowChange values(kNoKeyHook, {position, v.tokens, v.heads, v.dim}, cache.view.v_rotation);
  write_rows(key_room(cache), 0, position, k, keys.if_any(), position);
  write_rows(value_room(cache), 0, position, v, values.if_any(), position);
  append_plain(cache.plain, position, k, v, keys.if_any(), values.if_any());
  cache.view.length += k.tokens;
  settle(cache.plain, cache.view);
}

inline void append_ring(KvSlots& cache, const ConstTensorView& k, const ConstTensorView& v,
                        const KeyHookRef& hook = kNoKeyHook) {
  check_append(cache.view, k, v);
  const Checked sum = Checked(cache.view.length) + k.tokens;
  if (!sum.fits()) fail("k.tokens", k.tokens, "a length that fits in 63 bits");
  if (!sum.at_most(kMaxTokens)) fail("k.tokens", k.tokens, "a length of at most 2^48 tokens");
  const RowChange keys(hook, {cache.view.length, k.tokens, k.heads, k.dim}, cache.view.k_rotation);
  const RowChange values(kNoKeyHook, {cache.view.length, v.tokens, v.heads, v.dim}, cache.view.v_rotation);
  if (k.tokens == 0) return;
  const Index length = sum.value();
  // Of a chunk that is longer than the ring, the tokens at the front would be overwritten by those behind.
  const Index skipped = k.tokens > cache.slots ? k.tokens - cache.slots : 0;
  const Index position = cache.view.length + skipped;
  const Index tokens = k.tokens - skipped;
  write_around(key_room(cache), cache.slots, position, k.slice(skipped, tokens), keys.if_any());
  write_around(value_room(cache), cache.slots, position, v.slice(skipped, tokens), values.if_any());
  cache.view.length = length;
  if (length - cache.slots > cache.first) cache.first = length - cache.slots;
  cache.view.oldest = cache.first;
}

inline void shorten_contiguous(KvSlots& cache, Index length) noexcept {
  truncate_plain(cache.plain, length);
  cache.view.length = length;
  settle(cache.plain, cache.view);
}
inline void truncate_contiguous(KvSlots& cache, Index length) {
  check_truncate(length, 0, cache.view.length);
  shorten_contiguous(cache, length);
}

inline void truncate_ring(KvSlots& cache, Index length) {
  check_truncate(length, cache.first, cache.view.length);
  if (length == 0) cache.first = 0;
  cache.view.oldest = cache.first;  // what the dropped tokens had overwritten does not come back
  cache.view.length = length;
}

}  // namespace GQA_ABI
}  // namespace gqa::detail
