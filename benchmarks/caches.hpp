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
#include "gqa/kv_encoding.hpp"
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
  KvEncoding type = ElementType::bf16;  ///< of keys and of values
  Layout layout = Layout::head_major;

  KvType kv_type() const { return type; }
  /// "bf16", "int8".
  std::string type_name() const { return detail::codec_name(type).c_str(); }
  /// Of the queries that go with it: its own elements, or bf16.
  ElementType query_type() const { return kv_type().is_element() ? ElementType(kv_type()) : ElementType::bf16; }
  Index value_dim() const { return layout == Layout::latent ? head_dim / 9 * 8 : head_dim; }
  /// Bytes of K and V together, each once, with their scales.
  double bytes() const {
    const double planes = layout == Layout::latent ? 1.0 : 2.0;
    const Index row = kv_type().row_bytes(head_dim) + kv_type().scale_bytes();
    return planes * static_cast<double>(tokens) * static_cast<double>(kv_heads * row);
  }
  /// Bits that an element takes, scales included.
  double bits() const { return 4.0 * bytes() / static_cast<double>(tokens * kv_heads * head_dim); }
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

/// Rows in memory, one behind the other; and their scales, if they lie outside of them.
struct StoredRows {
  const std::byte* rows;
  const std::byte* scales;
};
/// Bytes from one row of `dim` elements to the next.
inline std::size_t stored_row_bytes(KvType type, Index dim) {
  return static_cast<std::size_t>(type.stride_bytes(type.row_stride(dim)));
}
/// The rows `count` rows further.
inline StoredRows rows_behind(const StoredRows& from, KvType type, Index dim, std::size_t count) {
  return {from.rows + count * stored_row_bytes(type, dim),
          from.scales == nullptr ? nullptr : from.scales + count * static_cast<std::size_t>(type.scale_bytes())};
}

/// Rows of standard normal values, kept from one entry to the next: entries of one type and width share them.
class NormalMemory {
 public:
  /// At least `count` rows. They repeat with a period that divides no number of tokens.
  /// Earlier rows go when others are asked for, or more.
  StoredRows rows(const KvEncoding& type, Index dim, std::size_t count) {
    const KvType stored = type;
    const auto scale_bytes = static_cast<std::size_t>(stored.scale_bytes());
    if (count * stored_row_bytes(stored, dim) > rows_.size() || count * scale_bytes > scales_.size()) {
      rows_ = HugeBuffer();  // given back before others are asked for
      scales_ = HugeBuffer();
      rows_ = HugeBuffer(count * stored_row_bytes(stored, dim));
      if (scale_bytes > 0) scales_ = HugeBuffer(count * scale_bytes);
      filled_ = 0;
    }
    if (!(stored == type_) || dim != dim_) filled_ = 0;
    if (filled_ < count) {
      type_ = stored;
      dim_ = dim;
      filled_ = count;
      fill(type);
    }
    return {rows_.data(), scales_.data()};
  }

 private:
  void fill(const KvEncoding& type) {
    constexpr std::size_t period = 4099;
    std::vector<std::byte> rows, scales(period * static_cast<std::size_t>(type_.scale_bytes()));
    if (type.codec() == nullptr) {
      rows = normal_elements(type_, period * static_cast<std::size_t>(dim_));
    } else {
      const std::vector<std::byte> plain = normal_elements(ElementType::f32, period * static_cast<std::size_t>(dim_));
      rows.resize(period * stored_row_bytes(type_, dim_));
      for (std::size_t row = 0; row < period; ++row)
        type.codec()->encoder(detail::row_ops().set, ElementType::f32)(
            &plain[row * static_cast<std::size_t>(dim_) * sizeof(float)], 1, dim_,
            &rows[row * stored_row_bytes(type_, dim_)],
            scales.data() + row * static_cast<std::size_t>(type_.scale_bytes()));
    }
    repeat(rows, rows_.data(), filled_ * stored_row_bytes(type_, dim_));
    repeat(scales, scales_.data(), filled_ * static_cast<std::size_t>(type_.scale_bytes()));
  }
  static void repeat(const std::vector<std::byte>& period, std::byte* to, std::size_t bytes) {
    for (std::size_t at = 0; at < bytes; at += period.size())
      std::memcpy(to + at, period.data(), std::min(period.size(), bytes - at));
  }
  HugeBuffer rows_, scales_;
  KvType type_;
  Index dim_ = 0;
  std::size_t filled_ = 0;
};

/// What calls that are measured read.
inline NormalMemory& normal_memory() {
  static NormalMemory memory;
  return memory;
}
/// What calls over caches of another type read, in turn with those.
inline NormalMemory& normal_memory_beside() {
  static NormalMemory memory;
  return memory;
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

/// Rows of K, or of V, as they lie in memory: whole pages where there are pages.
inline std::size_t stored_rows(const CacheShape& shape) {
  const Index unit = shape.layout == Layout::paged ? bench_page_size : 1;
  const Index slots = (shape.tokens + unit - 1) / unit * unit;
  return static_cast<std::size_t>(slots * shape.kv_heads);
}

/// Distances of rows that are `width` of something apart.
inline KvStrides strides_of(const CacheShape& shape, Index width) {
  if (shape.layout == Layout::token_major) return KvStrides::token_major(shape.kv_heads, width);
  return KvStrides::head_major(shape.kv_heads, shape.layout == Layout::paged ? bench_page_size : shape.tokens, width);
}

/// The view of a cache whose K lies at `memory` and whose V lies right behind. `table` must outlive it.
inline KvCacheView view_of(const CacheShape& shape, const StoredRows& memory, const std::vector<std::int32_t>& table) {
  const KvType type = shape.kv_type();
  const StoredRows values = rows_behind(memory, type, shape.head_dim, stored_rows(shape));
  KvCacheView view;
  view.k = memory.rows;
  view.v = shape.layout == Layout::latent ? memory.rows : values.rows;
  view.k_type = view.v_type = type;
  view.length = shape.tokens;
  view.kv_heads = shape.kv_heads;
  view.head_dim = shape.head_dim;
  view.value_dim = shape.value_dim();
  view.k_strides = view.v_strides = strides_of(shape, type.row_stride(shape.head_dim));
  if (type.scale_bytes() > 0) {
    view.k_scales = {memory.scales, strides_of(shape, 1)};
    view.v_scales = {values.scales, strides_of(shape, 1)};
  }
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
  }
  return view;
}

/// Caches of one shape, handed out in turn.
class CacheRotation {
 public:
  /// @param cold true: as many caches as it takes to be read from memory every time; false: one
  CacheRotation(const CacheShape& shape, bool cold, NormalMemory& from = normal_memory())
      : table_(random_pages(shape.tokens)) {
    const std::size_t row = stored_row_bytes(shape.type, shape.head_dim);
    const std::size_t unit = 4096 / std::gcd(row, std::size_t{4096});  // rows that fill whole pages of memory
    const std::size_t stride = (2 * stored_rows(shape) + unit - 1) / unit * unit;
    const std::size_t copies = cold ? (out_of_cache_bytes() + stride * row - 1) / (stride * row) : 1;
    const StoredRows memory = from.rows(shape.type, shape.head_dim, copies * stride);
    for (std::size_t i = 0; i < copies; ++i)
      views_.push_back(view_of(shape, rows_behind(memory, shape.type, shape.head_dim, i * stride), table_));
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
