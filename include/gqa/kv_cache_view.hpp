// SPDX-License-Identifier: Apache-2.0
/// @file
/// The shared KV-cache view: contiguous, paged and ring storage behind one plain type.
#pragma once

#include <span>

#include "gqa/codec.hpp"
#include "gqa/detail/checked.hpp"
#include "gqa/error.hpp"
#include "gqa/tensor_view.hpp"

namespace gqa {

/// How a token's position becomes a place in memory.
enum class Storage : std::uint8_t {
  contiguous,  ///< slot = position, counted from `oldest`
  ring,        ///< slot = position mod capacity; the oldest tokens are overwritten
  paged        ///< slot = position mod page size, in page page_table[position / page size]
};

/// Distances between neighbours of K or of V, in elements; of codecs with blocks of several elements, whole blocks of them (a row of `dim`
/// elements is KvType::row_stride(dim) of them). Rows (the dim direction) are always packed. A head stride of 0 is one head
/// for all; a stride of 0 from token to token or from page to page is taken for one that was forgotten, and refused where there are
/// several.
struct KvStrides {
  Index token;     ///< from one slot to the next
  Index head;      ///< from one KV head to the next
  Index page = 0;  ///< from one physical page to the next (paged storage only)

  /// (token, head, dim): all heads of a token side by side. For pages: (page, token, head, dim).
  GQA_ALWAYS_INLINE static constexpr KvStrides token_major(Index kv_heads, Index dim, Index page_size = 0) noexcept {
    return {detail::product(kv_heads, dim), dim, detail::product(page_size, kv_heads, dim)};
  }
  /// (head, token, dim): all tokens of a head side by side; `slots` is the room per head (capacity, or the page size).
  /// For pages: (page, head, token, dim).
  GQA_ALWAYS_INLINE static constexpr KvStrides head_major(Index kv_heads, Index slots, Index dim) noexcept {
    return {dim, detail::product(slots, dim), detail::product(kv_heads, slots, dim)};
  }
};

/// The scales of keys or of values that lie outside of rows, of codecs that have them there (KvType::scale_bytes); null for all others.
/// That of dim d of the token in `slot` of `page`, and KV head h, is scale number
///     page * strides.page + slot * strides.token + h * strides.head + d * dim,
/// and any of these steps may be 0: one scale for all.
struct KvScales {
  const void* data;
  KvStrides strides;
  Index dim;

  /// None. No constant where there need not be one: GCC would make a view by clearing all of it first, in a way that takes as long as
  /// checking it does.
  GQA_ALWAYS_INLINE constexpr KvScales() noexcept : data(nullptr), strides{0, 0, 0}, dim(0) {
    if (!__builtin_is_constant_evaluated()) asm("");
  }
  GQA_ALWAYS_INLINE constexpr KvScales(const void* scales, KvStrides steps, Index dim_step = 0) noexcept
      : data(scales), strides(steps), dim(dim_step) {}
};

/// What a cache holds, for the makers below.
struct KvShape {
  Index length = 0;     ///< n_kv: tokens in the sequence so far; the next token's position
  Index kv_heads = 0;   ///< Hkv
  Index head_dim = 0;   ///< D
  Index value_dim = 0;  ///< Dv; 0 means the same as head_dim
};

namespace detail::inline GQA_ABI {

/// Fails unless a span of `given` elements holds packed keys or values. `rows` is "keys" or "values", `width` what names their dims.
inline void check_kv_span(const char* rows, std::size_t given, Index tokens, Index heads, const char* width,
                          Index dim) {
  if (tokens < 0) fail("kv.length", tokens, "0 or more");
  if (heads <= 0) fail("kv.kv_heads", heads, "1 or more");
  if (dim <= 0) fail(Text("kv.") + width, dim, "1 or more");
  const Text what = Text("length * kv_heads * ") + width;
  const Checked needed = Checked(tokens) * heads * dim;
  if (!needed.fits()) fail("kv.length", tokens, what + " that fits in 63 bits");
  if (given < static_cast<std::uint64_t>(needed.value()))
    fail(Text(rows) + ".size()", to_text(given), "at least " + what + " = " + to_text(needed.value()));
}

/// Fails unless two tensors are the keys and the values of the same tokens and heads, with packed rows.
inline void check_kv_tensors(const ConstTensorView& keys, const ConstTensorView& values) {
  const char* const packed = "1: the elements of a row lie side by side";
  if (keys.strides.dim != 1 && keys.dim != 1) fail("keys.strides.dim", keys.strides.dim, packed);
  if (values.strides.dim != 1 && values.dim != 1) fail("values.strides.dim", values.strides.dim, packed);
  if (values.tokens != keys.tokens) fail("values.tokens", values.tokens, "keys.tokens = " + to_text(keys.tokens));
  if (values.heads != keys.heads) fail("values.heads", values.heads, "keys.heads = " + to_text(keys.heads));
}

}  // namespace detail::inline GQA_ABI

/// One sequence's keys and values, wherever they lie: the only cache type that the functors take. Plain data, owns nothing,
/// free to copy; memory must outlive the call that uses it. Checked in the call.
///
/// Key row of position p and KV head h, with `slot` and `page` as Storage says:
///     k + (page * k_strides.page + slot * k_strides.token + h * k_strides.head) elements, head_dim of them; V alike. What an element is in
/// memory, k_type says.
///
/// Elements past `length`, in unused pages and in masked positions may hold anything.
///
/// Positions may be stored in several ways: the view is then the last part of the sequence, and those before it are listed in `earlier`, in
/// ascending order. Each ends where its `length` says, a multiple of 64, and the next one begins there; each has types, strides and storage of
/// its own, and the same heads and widths. So the first tokens and the newest may be kept in 16 bits while those between them are
/// quantised, and sequences may share a prefix that is not in pages. Results are those of one cache that holds the same numbers: in the
/// f32 arithmetic bit for bit. bf16 products are taken unasked only if the rows of all parts are bf16.
struct KvCacheView {
  const void* k = nullptr;
  const void* v = nullptr;
  KvType k_type = ElementType::f32;
  KvType v_type = ElementType::f32;
  Storage storage = Storage::contiguous;
  Index length = 0;     ///< n_kv
  Index kv_heads = 0;   ///< Hkv
  Index head_dim = 0;   ///< D
  Index value_dim = 0;  ///< Dv
  KvStrides k_strides{0, 0, 0};
  KvStrides v_strides{0, 0, 0};
  Index capacity = 0;  ///< ring: slots
  Index oldest =
      0;  ///< ring: positions before it are gone even if their slots are in range; contiguous: it is in slot 0
  Index page_size = 0;   ///< paged: tokens in a page, any positive number
  Index pool_pages = 0;  ///< paged: physical pages in the pool; table entries lie in [0, pool_pages)
  const std::int32_t* page_table = nullptr;  ///< paged: logical page → physical page
  Index page_table_size = 0;                 ///< paged: entries; at least ceil(length / page_size)
  KvScales k_scales{};                       ///< of codecs whose scales lie outside of rows
  KvScales v_scales{};                       ///< likewise
  /// Keys are rotated: a call rotates its queries likewise, so that scores are what they were before. Each row is its blocks of so many
  /// elements, a power of two that divides the width, times the Hadamard matrix over √block (gqa/rotation.hpp). 0: they are not.
  Index k_rotation = 0;
  /// Values are rotated, likewise: a call turns its outputs back.
  Index v_rotation = 0;
  const KvCacheView* earlier = nullptr;  ///< parts of the sequence before this one
  Index earlier_count = 0;

  /// The oldest position still stored: 0, or `oldest` if that is later and storage is not paged, or in a ring that has gone round length −
  /// capacity. Of a view with earlier parts, that of the first of them.
  GQA_ALWAYS_INLINE constexpr Index first_position() const noexcept {
    return earlier_count > 0 ? earlier->first_position_of_part() : first_position_of_part();
  }
  /// The same of this part alone.
  GQA_ALWAYS_INLINE constexpr Index first_position_of_part() const noexcept {
    if (storage == Storage::paged) return 0;
    if (storage == Storage::contiguous) return oldest;
    const Index slots = capacity > 0 ? capacity : 0;
    const Index overwritten = length > slots ? length - slots : 0;
    return oldest > overwritten ? oldest : overwritten;
  }
  /// Part number i of the sequence, in ascending order: number `earlier_count` is this one.
  GQA_ALWAYS_INLINE constexpr const KvCacheView& part(Index i) const noexcept {
    return i < earlier_count ? earlier[i] : *this;
  }
  /// The position that part number i begins at.
  GQA_ALWAYS_INLINE constexpr Index begin_of_part(Index i) const noexcept { return i > 0 ? earlier[i - 1].length : 0; }
  /// The number of the part that holds a position.
  GQA_ALWAYS_INLINE constexpr Index part_of(Index position) const noexcept {
    Index i = 0;
    while (i < earlier_count && earlier[i].length <= position) ++i;
    return i;
  }

  /// Positions 0 … length − 1 in slots 0 … length − 1.
  template <Element K, Element V>
  GQA_ALWAYS_INLINE static KvCacheView contiguous(const K* keys, const V* values, KvShape shape, KvStrides k_steps,
                                                  KvStrides v_steps) noexcept {
    return contiguous(keys, ElementTraits<K>::type, values, ElementTraits<V>::type, shape, k_steps, v_steps);
  }
  /// The same with types that are known at run time.
  GQA_ALWAYS_INLINE static KvCacheView contiguous(const void* keys, KvType key_type, const void* values,
                                                  KvType value_type, KvShape shape, KvStrides k_steps,
                                                  KvStrides v_steps) noexcept {
    KvCacheView view;
    view.k = keys;
    view.v = values;
    view.k_type = key_type;
    view.v_type = value_type;
    view.length = shape.length;
    view.kv_heads = shape.kv_heads;
    view.head_dim = shape.head_dim;
    view.value_dim = shape.value_dim == 0 ? shape.head_dim : shape.value_dim;
    view.k_strides = k_steps;
    view.v_strides = v_steps;
    return view;
  }

  /// Packed (token, head, dim) storage.
  template <Element K, Element V>
  GQA_ALWAYS_INLINE static KvCacheView contiguous(const K* keys, const V* values, KvShape shape) noexcept {
    return contiguous(keys, ElementTraits<K>::type, values, ElementTraits<V>::type, shape);
  }
  GQA_ALWAYS_INLINE static KvCacheView contiguous(const void* keys, KvType key_type, const void* values,
                                                  KvType value_type, KvShape shape) noexcept {
    const Index dv = shape.value_dim == 0 ? shape.head_dim : shape.value_dim;
    return contiguous(keys, key_type, values, value_type, shape,
                      KvStrides::token_major(shape.kv_heads, key_type.row_stride(shape.head_dim)),
                      KvStrides::token_major(shape.kv_heads, value_type.row_stride(dv)));
  }

  /// Packed (token, head, dim) storage in spans. @throws ArgumentError if a span is too short.
  template <Element K, std::size_t KExtent, Element V, std::size_t VExtent>
  GQA_ALWAYS_INLINE static KvCacheView contiguous(std::span<K, KExtent> keys, std::span<V, VExtent> values,
                                                  KvShape shape) {
    const Index dv = shape.value_dim == 0 ? shape.head_dim : shape.value_dim;
    detail::check_kv_span("keys", keys.size(), shape.length, shape.kv_heads, "head_dim", shape.head_dim);
    detail::check_kv_span("values", values.size(), shape.length, shape.kv_heads, "value_dim", dv);
    return contiguous(static_cast<const K*>(keys.data()), static_cast<const V*>(values.data()), shape);
  }

  /// The tokens of two tensors, each n_kv × Hkv × (D or Dv), with their types and strides.
  /// @throws ArgumentError unless both have the same tokens and heads, and a dim stride of 1
  GQA_ALWAYS_INLINE static KvCacheView contiguous(const ConstTensorView& keys, const ConstTensorView& values) {
    detail::check_kv_tensors(keys, values);
    KvCacheView view = contiguous(
        keys.data, keys.type, values.data, values.type, KvShape{keys.tokens, keys.heads, keys.dim, 0},
        KvStrides{keys.strides.token, keys.strides.head}, KvStrides{values.strides.token, values.strides.head});
    view.value_dim = values.dim;
    return view;
  }

  /// A sliding window: position p lies in slot p mod capacity. Queries may only look at positions that are still there, so a
  /// window variant with a window of at most `capacity` (less the chunk's other tokens) goes with it.
  template <Element K, Element V>
  GQA_ALWAYS_INLINE static KvCacheView ring(const K* keys, const V* values, KvShape shape, Index slots,
                                            KvStrides k_steps, KvStrides v_steps) noexcept {
    return ring(keys, ElementTraits<K>::type, values, ElementTraits<V>::type, shape, slots, k_steps, v_steps);
  }
  /// The same with types that are known at run time.
  GQA_ALWAYS_INLINE static KvCacheView ring(const void* keys, KvType key_type, const void* values, KvType value_type,
                                            KvShape shape, Index slots, KvStrides k_steps, KvStrides v_steps) noexcept {
    KvCacheView view = contiguous(keys, key_type, values, value_type, shape, k_steps, v_steps);
    view.storage = Storage::ring;
    view.capacity = slots;
    return view;
  }

  /// Pages of `tokens_per_page` tokens anywhere in a pool of `pages` physical pages, in the order of `table`.
  /// Table entries of pages that no query looks at are not read.
  template <Element K, Element V>
  GQA_ALWAYS_INLINE static KvCacheView paged(const K* key_pool, const V* value_pool, KvShape shape,
                                             std::span<const std::int32_t> table, Index tokens_per_page, Index pages,
                                             KvStrides k_steps, KvStrides v_steps) noexcept {
    return paged(key_pool, ElementTraits<K>::type, value_pool, ElementTraits<V>::type, shape, table, tokens_per_page,
                 pages, k_steps, v_steps);
  }
  /// The same with types that are known at run time.
  GQA_ALWAYS_INLINE static KvCacheView paged(const void* key_pool, KvType key_type, const void* value_pool,
                                             KvType value_type, KvShape shape, std::span<const std::int32_t> table,
                                             Index tokens_per_page, Index pages, KvStrides k_steps,
                                             KvStrides v_steps) noexcept {
    KvCacheView view = contiguous(key_pool, key_type, value_pool, value_type, shape, k_steps, v_steps);
    view.storage = Storage::paged;
    view.page_size = tokens_per_page;
    view.pool_pages = pages;
    view.page_table = table.data();
    view.page_table_size = static_cast<Index>(table.size());
    return view;
  }

  /// The view of KV heads [first, first + count), for callers that split heads themselves. Earlier parts are sliced one by one.
  /// @throws ArgumentError if there are no such heads, or earlier parts
  GQA_ALWAYS_INLINE KvCacheView slice_heads(Index first, Index count) const {
    if (earlier_count != 0)
      detail::fail("earlier_count", earlier_count, "0: each part is sliced, and the list made of the slices");
    KvCacheView part = *this;
    const auto offset = [&](const char* member, Index stride, Index bytes) __attribute__((always_inline)) {
      return detail::part_offset("kv_heads", kv_heads, first, count, member, stride, bytes);
    };
    const Index k_bytes = offset("k_strides.head", k_type.stride_blocks(k_strides.head), k_type.block_bytes());
    const Index v_bytes = offset("v_strides.head", v_type.stride_blocks(v_strides.head), v_type.block_bytes());
    part.k = detail::moved(k, k_bytes);
    part.v = detail::moved(v, v_bytes);
    part.k_scales.data =
        detail::moved(k_scales.data, offset("k_scales.strides.head", k_scales.strides.head, k_type.scale_bytes()));
    part.v_scales.data =
        detail::moved(v_scales.data, offset("v_scales.strides.head", v_scales.strides.head, v_type.scale_bytes()));
    part.kv_heads = count;
    return part;
  }
};

}  // namespace gqa
