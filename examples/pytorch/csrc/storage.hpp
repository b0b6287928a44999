// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the caches of cache.cpp and window.hpp share: how tokens are stored, pools of pages, and attention over what is stored.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "call.hpp"
#include "gqa/kv_cache.hpp"

namespace gqa_torch {

/// Of what a cache may store: those that kernels.cpp compiles.
using StoredTypes = gqa::CacheOf<float, gqa::bf16, gqa::f16, gqa::Int8, gqa::Int4, gqa::Q8_0>;

inline gqa::KvEncoding encoding_of(const std::string& name, const char* argument) {
  if (name == "float32") return gqa::ElementType::f32;
  if (name == "bfloat16") return gqa::ElementType::bf16;
  if (name == "float16") return gqa::ElementType::f16;
  if (name == "int8") return gqa::Int8{};
  if (name == "int4") return gqa::Int4{};
  if (name == "q8_0") return gqa::Q8_0{};
  fail(argument, "'" + name + "'", "'float32', 'bfloat16', 'float16', 'int8', 'int4' or 'q8_0'");
}

struct CacheConfig {
  bool paged = true;
  std::string codec;        ///< of keys
  std::string value_codec;  ///< of values
  Index max_tokens = 0;     ///< of a sequence
  Index page_size = 64;
  Index rotation = 0;       ///< of keys and values, a power of two; 0: none
  Index first_tokens = 0;   ///< kept as bf16, too
  Index newest_tokens = 0;  ///< likewise

  /// @throws ArgumentError
  void check() const {
    encoding_of(codec, "codec");
    encoding_of(value_codec, "value_codec");
    expect_count(max_tokens, "max_tokens");
    expect_count(page_size, "page_size");
  }
  /// For sequences of keys (batch, KV heads, tokens, D) and values (batch, KV heads, tokens, Dv).
  gqa::KvCacheConfig one_piece(const at::Tensor& k, const at::Tensor& v, Index capacity) const {
    auto made = rows<gqa::KvCacheConfig>(k, v);
    made.capacity = capacity;
    return made;
  }
  /// Likewise, with room for max_tokens of each. One page more than a sequence fills: of sequences that share their last page each asks for a
  /// copy before it writes, the last one too.
  gqa::KvPoolConfig pool(const at::Tensor& k, const at::Tensor& v) const {
    auto made = rows<gqa::KvPoolConfig>(k, v);
    made.page_size = page_size;
    made.pages = k.size(0) * ((max_tokens + page_size - 1) / page_size + 1);
    return made;
  }
  /// @throws ArgumentError unless sequences may share pages, which is what these want
  void expect_paged(const char* these) const {
    if (!paged) fail("kind", "'contiguous'", std::string("'paged' for ") + these);
  }

 private:
  /// What there is to say about rows, of one piece or of a pool.
  template <class Config>
  Config rows(const at::Tensor& k, const at::Tensor& v) const {
    return {.kv_heads = k.size(1),
            .head_dim = k.size(3),
            .value_dim = v.size(3),
            .k_type = encoding_of(codec, "codec"),
            .v_type = encoding_of(value_codec, "value_codec"),
            .k_rotation = rotation,
            .v_rotation = rotation,
            .first_tokens = first_tokens,
            .newest_tokens = newest_tokens};
  }
  static void expect_count(Index value, const char* name) {
    constexpr Index most = std::numeric_limits<std::int32_t>::max();
    if (value < 1 || value > most) fail(name, std::to_string(value), "1 to " + std::to_string(most));
  }
};

/// A pool of pages, which copies of a cache share. Of the calls that change who has which page, only one may run at a time; one that
/// destroys sequences on its way locks twice.
struct Pages {
  gqa::PagedKvPool pool;
  Index room_for;  ///< sequences of max_tokens each
  std::recursive_mutex changing;

  Pages(const gqa::KvPoolConfig& config, Index sequences) : pool(config), room_for(sequences) {}

  Index bytes_used() {
    const std::lock_guard lock(changing);
    return pool.bytes() / pool.pages() * (pool.pages() - pool.free_pages());
  }
};

/// Locks `changing` of a cache's pages, if it has any.
inline std::unique_lock<std::recursive_mutex> lock_changing(const std::shared_ptr<Pages>& pages) {
  return pages ? std::unique_lock(pages->changing) : std::unique_lock<std::recursive_mutex>();
}

[[noreturn]] inline void exhausted(const std::string& what, Index tokens, Index held, Index sequences) {
  throw gqa::StorageExhausted("gqa: " + what + "; expected room for " + std::to_string(tokens) +
                              " tokens more than the " + std::to_string(held) + " held by each of " +
                              std::to_string(sequences) + " sequences");
}
/// @throws StorageExhausted unless so many pages are free for `tokens` tokens of each of the sequences
inline void expect_pages(const Pages& pages, Index needed, Index max_tokens, Index tokens, Index held,
                         Index sequences) {
  if (needed > pages.pool.free_pages())
    exhausted("the pool, of " + std::to_string(max_tokens) + " tokens for each of " + std::to_string(pages.room_for) +
                  " sequences, has " + std::to_string(pages.pool.free_pages()) + " pages free",
              tokens, held, sequences);
}

/// @throws unless these are keys and values that a cache with so many sequences (0: none yet) of `held` tokens may append
inline void check_append(const at::Tensor& k, const at::Tensor& v, Index max_tokens, Index held, Index sequences) {
  check_tensor(k, "k", 4);
  check_tensor(v, "v", 4);
  if (k.size(0) < 1) fail("k.size(0)", std::to_string(k.size(0)), "1 or more sequences");
  expect_size(v, "v", 0, k.size(0), "k.size(0)");
  expect_size(v, "v", 1, k.size(1), "k.size(1)");
  expect_size(v, "v", 2, k.size(2), "k.size(2)");
  element_type(k, "k");
  element_type(v, "v");
  if (k.size(2) > max_tokens - held)
    exhausted("max_tokens is " + std::to_string(max_tokens), k.size(2), held, std::max<Index>(sequences, k.size(0)));
  if (sequences > 0) expect_size(k, "k", 0, sequences, "the cache's sequences");
}

/// @throws ArgumentError unless each is the number of one of so many sequences
inline void check_indices(const std::vector<Index>& indices, Index sequences) {
  for (const Index i : indices)
    if (i < 0 || i >= sequences)
      fail("indices", std::to_string(i), "0 to " + std::to_string(sequences - 1) + ", a sequence of the cache");
}

/// Attention of the last n_q tokens of each view over it, read as it is stored: nothing is decoded into a tensor.
/// @param q (batch, query heads, n_q, D)
/// @param first_held  position before which nothing is looked at
/// @return (batch, query heads, n_q, Dv) of q's type, laid out (batch, n_q, query heads, Dv)
inline at::Tensor attend(const at::Tensor& q, const std::vector<gqa::KvCacheView>& views, Index value_dim,
                         const Settings& settings, Index first_held = 0) {
  static const gqa::GroupedQueryAttention<gqa::dynamic, gqa::dynamic, gqa::dynamic, gqa::dynamic, StoredTypes>
      attention;
  check_tensor(q, "q", 4);
  expect_size(q, "q", 0, static_cast<Index>(views.size()), "the cache's sequences");
  settings.check(q.size(0), q.size(1), q.size(2), views.empty() ? 0 : views.front().length);
  const at::Tensor out = at::empty({q.size(0), q.size(2), q.size(1), value_dim}, q.options()).transpose(1, 2);
  std::vector<gqa::Sequence> batch;
  for (int64_t b = 0; b < q.size(0); ++b)
    batch.push_back({view_of(q, "q", b), views[static_cast<std::size_t>(b)], view_of<gqa::TensorView>(out, "out", b)});
  const at::Tensor logits = settings.sinks ? settings.sinks->to(at::kFloat).contiguous() : at::Tensor();
  const Visible visible{settings.causal, settings.window, settings.sinks ? logits.data_ptr<float>() : nullptr,
                        settings.starts ? settings.starts->data_ptr<int64_t>() : nullptr, first_held};
  TorchExecutor executor;
  with_variant(settings, visible, [&](const auto& variant) { attention(batch, variant, settings.options(executor)); });
  return out;
}

}  // namespace gqa_torch
