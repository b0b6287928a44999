// SPDX-License-Identifier: Apache-2.0
/// @file
/// KV caches to measure on: as many copies as it takes for the next one never to be in the processor's caches.
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gqa/kv_cache_view.hpp"
#include "machine.hpp"

namespace gqa::bench {

/// How a cache lies in memory.
enum class Layout {
  head_major,   ///< (head, token, dim)
  token_major,  ///< (token, head, dim)
  paged,        ///< pages of 64 tokens, (page, head, token, dim), in random order
  ring,         ///< head-major, gone round one and a half times
  latent        ///< head-major rows of keys, of which values are the first eight ninths (MLA: 512 of 576)
};

/// An attention layer's shape and how its cache is stored.
struct CacheShape {
  Index query_heads = 32;
  Index kv_heads = 8;
  Index head_dim = 128;
  Index tokens = 8192;
  ElementType type = ElementType::bf16;
  Layout layout = Layout::head_major;

  Index value_dim() const { return layout == Layout::latent ? head_dim / 9 * 8 : head_dim; }
  /// Bytes of K and V together, each once.
  double bytes() const {
    const double planes = layout == Layout::latent ? 1.0 : 2.0;
    return planes * static_cast<double>(tokens) * static_cast<double>(kv_heads * head_dim * element_bytes(type));
  }
  /// "mha_32_32", "gqa_32_8", "mqa_32_1"; with "_d64" behind it where the head dim is not 128.
  std::string heads_name() const {
    const char* const family = kv_heads == query_heads ? "mha_" : kv_heads == 1 ? "mqa_" : "gqa_";
    return family + std::to_string(query_heads) + "_" + std::to_string(kv_heads) +
           (head_dim == 128 ? "" : "_d" + std::to_string(head_dim));
  }
};

/// FLOP of attention over `pairs` visible (query, key) pairs per query head: two products, of D and Dv multiply-adds.
inline double attention_flop(double pairs, const CacheShape& shape) {
  return 2.0 * pairs * static_cast<double>(shape.query_heads * (shape.head_dim + shape.value_dim()));
}
/// Visible pairs of the last n_q of n_kv tokens under a causal mask.
inline double causal_pairs(Index n_q, Index n_kv) {
  return static_cast<double>(n_q) * static_cast<double>(n_kv) -
         0.5 * static_cast<double>(n_q) * static_cast<double>(n_q - 1);
}

/// `count` standard normal values of a type, one after the other; the same at every call.
inline std::vector<std::byte> normal_elements(ElementType type, std::size_t count, unsigned seed = 1) {
  std::mt19937 bits(seed);
  std::normal_distribution<float> normal;
  std::vector<std::byte> elements(count * static_cast<std::size_t>(element_bytes(type)));
  for (std::size_t i = 0; i < count; ++i) {
    const float value = normal(bits);
    const bf16 as_bf16(value);
    const f16 as_f16(value);
    if (type == ElementType::f32) std::memcpy(&elements[i * sizeof value], &value, sizeof value);
    if (type == ElementType::bf16) std::memcpy(&elements[i * sizeof as_bf16], &as_bf16, sizeof as_bf16);
    if (type == ElementType::f16) std::memcpy(&elements[i * sizeof as_f16], &as_f16, sizeof as_f16);
  }
  return elements;
}

/// At least `bytes` bytes of standard normal elements, kept from one call to the next: benchmarks of one type share them.
/// Values repeat with a period that divides no row length.
inline const std::byte* normal_memory(ElementType type, std::size_t bytes) {
  static HugeBuffer buffer;
  static ElementType filled_type = ElementType::f32;
  static std::size_t filled = 0;
  if (bytes > buffer.size()) {
    buffer = HugeBuffer();
    buffer = HugeBuffer(bytes);
    filled = 0;
  }
  if (type != filled_type) filled = 0;
  if (filled < bytes) {
    const std::vector<std::byte> period = normal_elements(type, (std::size_t{1} << 19) + 4093);
    for (std::size_t at = 0; at < bytes; at += period.size())
      std::memcpy(buffer.data() + at, period.data(), std::min(period.size(), bytes - at));
    filled = bytes;
    filled_type = type;
  }
  return buffer.data();
}

/// Tokens in a page of Layout::paged.
inline constexpr Index bench_page_size = 64;

/// A page table that visits the pages [0, n) of a cache of `tokens` tokens in random order.
inline std::vector<std::int32_t> random_pages(Index tokens) {
  std::vector<std::int32_t> table(static_cast<std::size_t>((tokens + bench_page_size - 1) / bench_page_size));
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(7));
  return table;
}

/// Bytes of K, or of V, as they lie in memory: whole pages where there are pages.
inline std::size_t stored_bytes(const CacheShape& shape) {
  const Index unit = shape.layout == Layout::paged ? bench_page_size : 1;
  const Index slots = (shape.tokens + unit - 1) / unit * unit;
  return static_cast<std::size_t>(slots * shape.kv_heads * shape.head_dim * element_bytes(shape.type));
}

/// The view of a cache whose K lies at `memory` and whose V lies right behind. `table` must outlive it.
inline KvCacheView view_of(const CacheShape& shape, const std::byte* memory, const std::vector<std::int32_t>& table) {
  KvCacheView view;
  view.k = memory;
  view.v = shape.layout == Layout::latent ? memory : memory + stored_bytes(shape);
  view.k_type = view.v_type = shape.type;
  view.length = shape.tokens;
  view.kv_heads = shape.kv_heads;
  view.head_dim = shape.head_dim;
  view.value_dim = shape.value_dim();
  view.k_strides = KvStrides::head_major(shape.kv_heads, shape.tokens, shape.head_dim);
  if (shape.layout == Layout::token_major) view.k_strides = KvStrides::token_major(shape.kv_heads, shape.head_dim);
  if (shape.layout == Layout::ring) {
    view.storage = Storage::ring;
    view.capacity = shape.tokens;
    view.length = shape.tokens + shape.tokens / 2;
  }
  if (shape.layout == Layout::paged) {
    view.storage = Storage::paged;
    view.page_size = bench_page_size;
    view.pool_pages = view.page_table_size = static_cast<Index>(table.size());
    view.page_table = table.data();
    view.k_strides = KvStrides::head_major(shape.kv_heads, bench_page_size, shape.head_dim);
  }
  view.v_strides = view.k_strides;
  return view;
}

/// Caches of one shape, handed out in turn.
class CacheRotation {
 public:
  /// @param cold true: as many caches as it takes to be read from memory every time; false: one
  CacheRotation(const CacheShape& shape, bool cold) : table_(random_pages(shape.tokens)) {
    const std::size_t stride = (2 * stored_bytes(shape) + 4095) / 4096 * 4096;
    const std::size_t copies = cold ? (out_of_cache_bytes() + stride - 1) / stride : 1;
    const std::byte* const memory = normal_memory(shape.type, copies * stride);
    for (std::size_t i = 0; i < copies; ++i) views_.push_back(view_of(shape, memory + i * stride, table_));
  }

  const KvCacheView& next() {
    const KvCacheView& view = views_[at_];
    at_ = (at_ + 1) % views_.size();
    return view;
  }

 private:
  std::vector<std::int32_t> table_;
  std::vector<KvCacheView> views_;
  std::size_t at_ = 0;
};

}  // namespace gqa::bench
