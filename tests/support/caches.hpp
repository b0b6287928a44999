// SPDX-License-Identifier: Apache-2.0
// One logical cache laid out in every storage that the view knows. What is not in use holds NaN and infinities.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "gqa/kv_cache_view.hpp"
#include "row_address.hpp"
#include "tensors.hpp"

namespace gqa::test {

/// Keys and values of one sequence, without a storage.
struct LogicalCache {
  Numbers k;  ///< n_kv × Hkv × D
  Numbers v;  ///< n_kv × Hkv × Dv
  Index length() const { return k.tokens; }
};

enum class CacheLayout : std::uint8_t {
  token_major,  ///< token, head, dim
  head_major,   ///< head, token, dim
  interleaved,  ///< token, head, (key row, value row): K and V in one piece of memory
  padded,       ///< token-major with odd gaps
  reversed      ///< tokens and heads run backwards
};
inline constexpr CacheLayout kCacheLayouts[] = {CacheLayout::token_major, CacheLayout::head_major,
                                                CacheLayout::interleaved, CacheLayout::padded, CacheLayout::reversed};

inline const char* layout_name(CacheLayout layout) {
  constexpr const char* names[] = {"token_major", "head_major", "interleaved", "padded", "reversed"};
  return names[static_cast<int>(layout)];
}

/// Where a cache lies.
struct Place {
  Storage storage = Storage::contiguous;
  CacheLayout layout = CacheLayout::token_major;
  Index slots = 0;  ///< contiguous: room for so many tokens, at least the length; ring: capacity; 0: just the length
  Index page_size = 0;  ///< paged
  Index keep_from = 0;  ///< positions before this hold garbage, and so do table entries of whole pages before it
  std::uint64_t seed = 1;

  std::string name() const {
    std::string text = storage == Storage::paged  ? "paged(" + std::to_string(page_size) + ")"
                       : storage == Storage::ring ? "ring(" + std::to_string(slots) + ")"
                                                  : "contiguous";
    return text + " " + layout_name(layout);
  }
};

inline Place contiguous_place(CacheLayout layout = CacheLayout::token_major, Index slots = 0) {
  return {Storage::contiguous, layout, slots, 0, 0, 1};
}
inline Place paged_place(Index page_size, CacheLayout layout = CacheLayout::token_major, std::uint64_t seed = 1) {
  return {Storage::paged, layout, 0, page_size, 0, seed};
}
inline Place ring_place(Index capacity, CacheLayout layout = CacheLayout::token_major) {
  return {Storage::ring, layout, capacity, 0, 0, 1};
}

/// Caches of a batch in one storage: each sequence's own memory, or pages of one pool in shuffled physical order. Rows of codecs other than
/// plain elements are laid out, and written by others.
class StoredCaches {
 public:
  StoredCaches(const std::vector<const LogicalCache*>& sequences, KvType k_type, KvType v_type, const Place& place) {
    planes_.reserve(sequences.size());
    if (place.storage == Storage::paged) {
      store_in_pool(sequences, k_type, v_type, place);
      return;
    }
    for (const LogicalCache* sequence : sequences) store_alone(*sequence, k_type, v_type, place);
  }
  StoredCaches(StoredCaches&&) = default;
  StoredCaches& operator=(StoredCaches&&) = delete;
  StoredCaches(const StoredCaches&) = delete;

  const KvCacheView& view(std::size_t sequence = 0) const { return views_[sequence]; }
  KvCacheView& mutable_view(std::size_t sequence = 0) { return views_[sequence]; }

  std::byte* k_address(Index position, Index head, Index d, std::size_t sequence = 0) const {
    const KvCacheView& view = views_[sequence];
    return address(view, view.k, view.k_type, view.k_strides, position, head) + d * element_bytes(view.k_type);
  }
  std::byte* v_address(Index position, Index head, Index d, std::size_t sequence = 0) const {
    const KvCacheView& view = views_[sequence];
    return address(view, view.v, view.v_type, view.v_strides, position, head) + d * element_bytes(view.v_type);
  }

  /// Memory of K and V: two pieces, or one where they are interleaved.
  struct Planes {
    std::vector<std::byte> k;
    std::vector<std::byte> v;
  };
  /// Of a sequence, or of the pool.
  const Planes& planes(std::size_t sequence = 0) const { return planes_[sequence]; }

 private:
  static std::byte* address(const KvCacheView& view, const void* base, ElementType type, const KvStrides& strides,
                            Index position, Index head) {
    return const_cast<std::byte*>(row_address(view, base, type, strides, position, head));
  }

  struct Piece {
    KvStrides strides{0, 0, 0};
    Index first = 0;  // element offset of page 0, slot 0, head 0
    Index last = 0;   // of the row that lies farthest
  };

  // Layout of `pages` runs of `slots` tokens of `heads` rows, which take `dim` elements, whole blocks of `block`; `gap` elements of the other
  // tensor behind each row.
  static Piece lay_out(CacheLayout layout, Index pages, Index slots, Index heads, Index dim, Index gap, Index block) {
    Piece piece;
    switch (layout) {
      case CacheLayout::token_major: piece.strides = KvStrides::token_major(heads, dim, slots); break;
      case CacheLayout::head_major: piece.strides = KvStrides::head_major(heads, slots, dim); break;
      case CacheLayout::interleaved:
        piece.strides = {heads * (dim + gap), dim + gap, slots * heads * (dim + gap)};
        break;
      case CacheLayout::padded: {
        const Index row = dim + 3 * block;
        const Index token = heads * row + 5 * block;
        piece.strides = {token, row, slots * token + 7 * block};
        break;
      }
      case CacheLayout::reversed:
        piece.strides = {-heads * dim, -dim, slots * heads * dim};
        piece.first = slots > 0 ? (slots - 1) * heads * dim + (heads - 1) * dim : 0;
        break;
    }
    const Index farthest = (pages - 1) * piece.strides.page + std::max<Index>(0, (slots - 1) * piece.strides.token) +
                           std::max<Index>(0, (heads - 1) * piece.strides.head);
    if (pages > 0 && slots > 0) piece.last = piece.first + farthest;
    return piece;
  }

  static void fill(std::vector<std::byte>& bytes, Index size, KvType type) {
    bytes.assign(static_cast<std::size_t>(size), std::byte{0xff});
    if (type.is_element()) fill_with_garbage(bytes, type);
  }

  KvCacheView make_planes(Index pages, Index slots, Index heads, Index dim, Index value_dim, KvType k_type,
                          KvType v_type, CacheLayout layout) {
    if (layout == CacheLayout::interleaved && k_type != v_type) layout = CacheLayout::token_major;
    const bool together = layout == CacheLayout::interleaved;
    const Index k_row = k_type.row_stride(dim), v_row = v_type.row_stride(value_dim);
    const Piece k = lay_out(layout, pages, slots, heads, k_row, together ? v_row : 0, k_type.block_elements());
    const Piece v = lay_out(layout, pages, slots, heads, v_row, together ? k_row : 0, v_type.block_elements());
    Planes& planes = planes_.emplace_back();
    const Index v_bytes = v_type.stride_bytes(v.last) + v_type.row_bytes(value_dim);
    fill(planes.k,
         together ? k_type.stride_bytes(k_row) + v_bytes : k_type.stride_bytes(k.last) + k_type.row_bytes(dim), k_type);
    if (!together) fill(planes.v, v_bytes, v_type);
    KvCacheView view;
    view.k = planes.k.data() + k_type.stride_bytes(k.first);
    view.v = together ? planes.k.data() + k_type.stride_bytes(k_row) : planes.v.data() + v_type.stride_bytes(v.first);
    view.k_type = k_type;
    view.v_type = v_type;
    view.kv_heads = heads;
    view.head_dim = dim;
    view.value_dim = value_dim;
    view.k_strides = k.strides;
    view.v_strides = v.strides;
    return view;
  }

  void write(const LogicalCache& cache, std::size_t sequence, Index first) {
    const KvCacheView& view = views_[sequence];
    for (Index t = first; t < cache.length(); ++t)
      for (Index h = 0; h < view.kv_heads; ++h) {
        for (Index d = 0; d < view.head_dim && view.k_type.is_element(); ++d)
          write_element(k_address(t, h, d, sequence), view.k_type, cache.k.at(t, h, d));
        for (Index d = 0; d < view.value_dim && view.v_type.is_element(); ++d)
          write_element(v_address(t, h, d, sequence), view.v_type, cache.v.at(t, h, d));
      }
  }

  void store_alone(const LogicalCache& cache, KvType k_type, KvType v_type, const Place& place) {
    const Index slots =
        place.storage == Storage::ring && place.slots > 0 ? place.slots : std::max(place.slots, cache.length());
    KvCacheView view = make_planes(1, slots, cache.k.heads, cache.k.dim, cache.v.dim, k_type, v_type, place.layout);
    view.storage = place.storage;
    view.length = cache.length();
    view.capacity = place.storage == Storage::ring ? slots : 0;
    views_.push_back(view);
    write(cache, views_.size() - 1, std::max(place.keep_from, view.first_position()));
  }

  void store_in_pool(const std::vector<const LogicalCache*>& sequences, KvType k_type, KvType v_type,
                     const Place& place) {
    const Index size = place.page_size;
    Index used = 0;
    for (const LogicalCache* sequence : sequences) used += (sequence->length() + size - 1) / size;
    const Index pages = used + 3;  // three that nobody uses
    const LogicalCache& any = *sequences.front();
    const KvCacheView pool = make_planes(pages, size, any.k.heads, any.k.dim, any.v.dim, k_type, v_type, place.layout);
    const std::vector<Index> physical = permutation(pages, place.seed);
    std::size_t next = 0;
    tables_.resize(sequences.size());
    for (std::size_t s = 0; s < sequences.size(); ++s) {
      std::vector<std::int32_t>& table = tables_[s];
      const Index logical_pages = (sequences[s]->length() + size - 1) / size;
      for (Index page = 0; page < logical_pages; ++page) table.push_back(static_cast<std::int32_t>(physical[next++]));
      KvCacheView view = pool;
      view.storage = Storage::paged;
      view.length = sequences[s]->length();
      view.page_size = size;
      view.pool_pages = pages;
      view.page_table_size = static_cast<Index>(table.size()) + 2;
      // Entries that nothing looks at hold garbage: two behind the last page, and those of pages before keep_from.
      table.push_back(std::numeric_limits<std::int32_t>::min());
      table.push_back(std::numeric_limits<std::int32_t>::max());
      view.page_table = table.data();
      views_.push_back(view);
      write(*sequences[s], s, place.keep_from);
      for (Index page = 0; (page + 1) * size <= place.keep_from && page < logical_pages; ++page)
        table[static_cast<std::size_t>(page)] = -1;
    }
  }

  std::vector<Planes> planes_;
  std::vector<std::vector<std::int32_t>> tables_;
  std::vector<KvCacheView> views_;
};

/// One sequence.
inline StoredCaches store_cache(const LogicalCache& cache, ElementType type, const Place& place = {}) {
  return StoredCaches({&cache}, type, type, place);
}
inline StoredCaches store_cache(const LogicalCache& cache, ElementType k_type, ElementType v_type, const Place& place) {
  return StoredCaches({&cache}, k_type, v_type, place);
}

}  // namespace gqa::test
