// SPDX-License-Identifier: Apache-2.0
/// @file
/// Hooks: what changes key rows as they go into an owning cache, such as rotary embeddings (gqa/rope.hpp) and norms (gqa/qk_norm.hpp).
///
///     cache.append(k, v, rope.keys());                                        // turned by their positions, then stored
///     cache.append(k, v, compose_hooks(RmsNormKeys{{.weights = w}}, rope.keys()));  // Qwen3, Gemma 3: normalised before
#pragma once

#include <concepts>

#include "gqa/detail/config.hpp"

namespace gqa {

/// The key row of one token and KV head, for a hook to change.
struct KeyRow {
  float* elements;  ///< `dim` of them, in f32; nobody else's while the hook has them
  Index dim;        ///< D
  Index head;       ///< KV head
  Index position;   ///< the token's in the cache
  Index token;      ///< the token's in the call: that of its first token is 0
};

/// What rows a call is about to give to a hook.
struct KeyRows {
  Index first_position;  ///< of its first token; the others follow
  Index tokens;
  Index heads;  ///< Hkv
  Index dim;    ///< D
};

/// Changes key rows as they are appended to an owning cache, or where they are (`change_keys`):
///
///     void change(const KeyRow& row) const noexcept    each row once, in any order; the row and nothing else; twice, if a cache
///                                                      stores it in two ways (KvCacheConfig::newest_tokens)
///     void check(const KeyRows& rows) const            if there is one: before anything is changed; throws if the rows cannot be
///
/// A row is widened to f32, changed, and converted to the stored type, so that it is rounded once: what is stored has the bits of rows that
/// were changed in f32 before they were appended. Where a cache rotates its keys (KvCacheConfig::k_rotation) that comes after the hook, and
/// keys that are changed where they are, are turned back before. Calls run in the default floating-point environment. A ring does not ask
/// for rows that it would overwrite in the same call; pages that are copied, because another sequence uses them too, are copied as they
/// are.
template <class H>
concept KeyHook = requires(const H& hook, const KeyRow& row) {
  { hook.change(row) }
  noexcept;
};

/// One hook, then another: what compose_hooks() makes.
template <KeyHook A, KeyHook B>
struct KeyHooks {
  A first;
  B second;

  GQA_ALWAYS_INLINE KeyHooks(const A& a, const B& b) : first(a), second(b) {}
  GQA_ALWAYS_INLINE KeyHooks(const KeyHooks& other) : first(other.first), second(other.second) {}
  KeyHooks& operator=(const KeyHooks&) = delete;
  GQA_ALWAYS_INLINE ~KeyHooks() {}

  GQA_ALWAYS_INLINE void change(const KeyRow& row) const noexcept {
    first.change(row);
    second.change(row);
  }
  GQA_ALWAYS_INLINE void check(const KeyRows& rows) const {
    if constexpr (requires { first.check(rows); }) first.check(rows);
    if constexpr (requires { second.check(rows); }) second.check(rows);
  }
};

/// Hooks in the order in which rows go through them. They are copied.
template <KeyHook A, KeyHook B>
GQA_ALWAYS_INLINE KeyHooks<A, B> compose_hooks(const A& first, const B& second) {
  return {first, second};
}
template <KeyHook A, KeyHook B, KeyHook... More>
GQA_ALWAYS_INLINE auto compose_hooks(const A& first, const B& second,
                                     const More&... more) requires(sizeof...(More) > 0) {
  return compose_hooks(compose_hooks(first, second), more...);
}

namespace detail {

/// Refers to a hook for the length of a call: caches are compiled once for all of them.
struct KeyHookRef {
  const void* hook;
  void (*change)(const void* hook, const KeyRow& row);
  void (*check)(const void* hook, const KeyRows& rows);
};
inline constexpr KeyHookRef kNoKeyHook{nullptr, nullptr, nullptr};

inline namespace GQA_ABI {

template <class H>
void change_key_row(const void* hook, const KeyRow& row) {
  static_cast<const H*>(hook)->change(row);
}
template <class H>
void check_key_rows(const void* hook, const KeyRows& rows) {
  if constexpr (requires(const H& of) { of.check(rows); }) static_cast<const H*>(hook)->check(rows);
}

template <KeyHook H>
GQA_ALWAYS_INLINE KeyHookRef key_hook_ref(const H& hook) noexcept {
  return {&hook, change_key_row<H>, check_key_rows<H>};
}

}  // namespace GQA_ABI
}  // namespace detail
}  // namespace gqa
