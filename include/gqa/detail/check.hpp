// SPDX-License-Identifier: Apache-2.0
/// @file
/// Every argument of a call, looked at once before any work.
#pragma once

#include <cstdint>

#include "gqa/detail/call.hpp"

namespace gqa::detail::inline GQA_ABI {

/// Widths beyond this are taken for mistakes; products of extents below stay far from overflow.
inline constexpr Index kMaxWidth = 65536;
inline constexpr Index kMaxHeads = 1 << 20;

inline const char* extent_expectation() noexcept { return "a positive extent, or gqa::dynamic"; }

/// The constructor's shape laid over the template's static extents.
inline HeadShape merge_shapes(const HeadShape& fixed, const HeadShape& given) {
  HeadShape merged = fixed;
  const auto merge = [](const char* name, Index& extent, Index wish) {
    if (wish == dynamic) return;
    if (wish <= 0) fail(name, wish, extent_expectation());
    if (extent != dynamic && extent != wish) fail(name, wish, to_text(extent) + ", the template's static extent");
    extent = wish;
  };
  merge("shape.query_heads", merged.query_heads, given.query_heads);
  merge("shape.kv_heads", merged.kv_heads, given.kv_heads);
  merge("shape.head_dim", merged.head_dim, given.head_dim);
  merge("shape.value_dim", merged.value_dim, given.value_dim);
  if (merged.query_heads > 0 && merged.kv_heads > 0 && merged.query_heads % merged.kv_heads != 0)
    fail("shape.kv_heads", merged.kv_heads, "a divisor of query_heads = " + to_text(merged.query_heads));
  return merged;
}

/// Names an argument of one sequence: "q.heads", or "batch[3].q.heads" in a batch. Built only when something is wrong.
struct ArgumentName {
  Index sequence;
  bool in_batch;
  Text operator()(const char* member) const {
    return in_batch ? "batch[" + to_text(sequence) + "]." + member : Text(member);
  }
};

inline void check_extent(const ArgumentName& name, const char* member, Index given, Index expected, Index most) {
  if (expected != dynamic && given != expected) fail(name(member), given, to_text(expected));
  if (given <= 0 || given > most) fail(name(member), given, "1 to " + to_text(most));
}

inline void check_type(const ArgumentName& name, const char* member, ElementType type) {
  if (type > ElementType::f16) fail(name(member), static_cast<Index>(type), "ElementType::f32, bf16 or f16");
}

inline void check_pointer(const ArgumentName& name, const char* member, const void* data, ElementType type) {
  if (data == nullptr) fail(name(member), "null", "a pointer to " + Text(element_name(type)) + " elements");
  if (reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(element_bytes(type)) != 0)
    fail(name(member), "misaligned", "an address that is a multiple of " + to_text(element_bytes(type)));
}

/// (extent − 1) · |stride| elements added to `reach`; fails if that leaves 56 bits. A stride that is never stepped is bounded too,
/// so that turning any stride into bytes is safe.
inline void add_reach(const ArgumentName& name, const char* member, Index& reach, Index extent, Index stride) {
  constexpr Index most = Index{1} << 56;
  Index distance = 0;
  const Index steps = extent > 0 ? extent - 1 : 0;
  if (stride < -most || stride > most || __builtin_mul_overflow(steps, stride < 0 ? -stride : stride, &distance) ||
      __builtin_add_overflow(reach, distance, &reach) || reach > most)
    fail(name(member), stride, "a stride whose offsets fit in 56 bits");
}

inline void check_tensor(const ArgumentName& name, const char* member_type, const char* member_data,
                         const char* member_strides, const void* data, ElementType type, Index tokens, Index heads,
                         Index dim, const TensorStrides& strides) {
  check_type(name, member_type, type);
  if (tokens > 0) check_pointer(name, member_data, data, type);
  Index reach = 0;
  add_reach(name, member_strides, reach, tokens, strides.token);
  add_reach(name, member_strides, reach, heads, strides.head);
  add_reach(name, member_strides, reach, dim, strides.dim);
}

/// Two rows of an output must not share an element: sorted by size, each stride must step over what the smaller ones reach.
inline void check_no_overlap(const ArgumentName& name, const TensorView& out) {
  Index extent[3] = {out.tokens, out.heads, out.dim};
  Index stride[3] = {out.strides.token, out.strides.head, out.strides.dim};
  for (Index& s : stride) s = s < 0 ? -s : s;
  for (int pass = 0; pass < 2; ++pass)
    for (int i = 0; i < 2; ++i)
      if (stride[i] > stride[i + 1]) {
        const Index s = stride[i], e = extent[i];
        stride[i] = stride[i + 1], extent[i] = extent[i + 1];
        stride[i + 1] = s, extent[i + 1] = e;
      }
  Index reach = 0;
  for (int i = 0; i < 3; ++i) {
    if (extent[i] <= 1) continue;
    if (stride[i] <= reach)
      fail(name("out.strides"),
           "{" + to_text(out.strides.token) + ", " + to_text(out.strides.head) + ", " + to_text(out.strides.dim) + "}",
           "strides that give every (token, head, dim) an element of its own");
    reach += (extent[i] - 1) * stride[i];
  }
}

inline void check_kv_strides(const ArgumentName& name, const char* member, const KvStrides& strides, Index slots,
                             Index heads, Index pages) {
  Index reach = 0;
  add_reach(name, member, reach, slots, strides.token);
  add_reach(name, member, reach, heads, strides.head);
  add_reach(name, member, reach, pages, strides.page);
}

inline void check_cache(const ArgumentName& name, const KvCacheView& kv) {
  check_type(name, "kv.k_type", kv.k_type);
  check_type(name, "kv.v_type", kv.v_type);
  if (kv.length < 0 || kv.length > (Index{1} << 48)) fail(name("kv.length"), kv.length, "0 to 2^48");
  if (kv.length == 0) return;
  check_pointer(name, "kv.k", kv.k, kv.k_type);
  check_pointer(name, "kv.v", kv.v, kv.v_type);
  constexpr Index most = Index{1} << 48;
  Index slots = kv.length;
  Index pages = 1;
  switch (kv.storage) {
    case Storage::contiguous: break;
    case Storage::ring:
      if (kv.capacity <= 0 || kv.capacity > most) fail(name("kv.capacity"), kv.capacity, "1 or more slots");
      slots = kv.capacity;
      break;
    case Storage::paged:
      if (kv.page_size <= 0 || kv.page_size > most) fail(name("kv.page_size"), kv.page_size, "1 or more tokens");
      if (kv.pool_pages <= 0 || kv.pool_pages > (Index{1} << 31))
        fail(name("kv.pool_pages"), kv.pool_pages, "1 to 2^31 pages");
      if (kv.page_table == nullptr) fail(name("kv.page_table"), "null", "a pointer to page indices");
      if (kv.page_table_size < (kv.length - 1) / kv.page_size + 1)
        fail(name("kv.page_table_size"), kv.page_table_size,
             "at least ceil(length / page_size) = " + to_text((kv.length - 1) / kv.page_size + 1));
      slots = kv.page_size;
      pages = kv.pool_pages;
      break;
    default: fail(name("kv.storage"), static_cast<Index>(kv.storage), "Storage::contiguous, ring or paged");
  }
  check_kv_strides(name, "kv.k_strides", kv.k_strides, slots, kv.kv_heads, pages);
  check_kv_strides(name, "kv.v_strides", kv.v_strides, slots, kv.kv_heads, pages);
}

/// The position of query token i: given, or one of the last n_q of the cache.
inline Index query_position(const Sequence& sequence, Index token) noexcept {
  return sequence.positions.empty() ? sequence.kv.length - sequence.q.tokens + token
                                    : sequence.positions[static_cast<std::size_t>(token)];
}

/// What the variant lets a position see, within what the cache has. An empty range is {0, 0}.
inline PositionRange visible_range(const VariantRef& variant, Index position, Index length) {
  PositionRange range = variant.range(variant.variant, position, length);
  if (range.begin < 0) range.begin = 0;
  if (range.end > length) range.end = length;
  return range.begin < range.end ? range : PositionRange{};
}

/// The hull of what query tokens [first, last) see.
inline PositionRange visible_hull(const VariantRef& variant, const Sequence& sequence, Index first, Index last) {
  PositionRange hull;
  for (Index token = first; token < last; ++token) {
    const PositionRange range = visible_range(variant, query_position(sequence, token), sequence.kv.length);
    if (range.begin == range.end) continue;
    if (hull.begin == hull.end) hull = range;
    if (range.begin < hull.begin) hull.begin = range.begin;
    if (range.end > hull.end) hull.end = range.end;
  }
  return hull;
}

/// What queries look at must be there: not overwritten in a ring, and in pages that exist.
inline void check_visible(const ArgumentName& name, const VariantRef& variant, const Sequence& sequence) {
  const KvCacheView& kv = sequence.kv;
  if (kv.storage == Storage::contiguous || kv.length == 0) return;
  const PositionRange hull = visible_hull(variant, sequence, 0, sequence.q.tokens);
  if (hull.begin == hull.end) return;
  if (kv.storage == Storage::ring) {
    if (hull.begin >= kv.first_position()) return;
    if (kv.length - hull.begin <= kv.capacity)
      fail(name("kv.oldest"), kv.oldest, "position " + to_text(hull.begin) + ", which a query sees, or before");
    fail(name("kv.capacity"), kv.capacity,
         "room for position " + to_text(hull.begin) +
             ", which a query sees: at least length - position = " + to_text(kv.length - hull.begin));
  }
  const auto check_pages = [&](Index begin, Index end) {
    for (Index page = begin / kv.page_size; page * kv.page_size < end; ++page)
      if (kv.page_table[page] < 0 || kv.page_table[page] >= kv.pool_pages)
        fail(name(("kv.page_table[" + to_text(page) + "]").c_str()), kv.page_table[page],
             "a page in [0, " + to_text(kv.pool_pages) + ")");
  };
  PositionRange done;  // grows while ranges touch it, as those of successive positions do
  for (Index token = 0; token < sequence.q.tokens; ++token) {
    const PositionRange range = visible_range(variant, query_position(sequence, token), kv.length);
    if (range.begin >= range.end) continue;
    if (done.begin >= done.end || range.begin > done.end || range.end < done.begin) {
      check_pages(range.begin, range.end);
      done = range;
      continue;
    }
    if (range.begin < done.begin) check_pages(range.begin, done.begin), done.begin = range.begin;
    if (range.end > done.end) check_pages(done.end, range.end), done.end = range.end;
  }
}

/// One of the functor's cache types, as bits?
inline void check_compiled(const ArgumentName& name, const char* member, ElementType type, unsigned types) {
  if (is_among(types, type)) return;
  Text expected;
  constexpr ElementType every[] = {ElementType::f32, ElementType::bf16, ElementType::f16};
  for (const ElementType other : every)
    if (is_among(types, other)) expected += (expected.empty() ? "" : " or ") + Text(element_name(other));
  fail(name(member), element_name(type), expected + ", as the functor's CacheOf says");
}

inline void check_sequence(const ArgumentName& name, const HeadShape& shape, unsigned types, const VariantRef& variant,
                           const Sequence& sequence) {
  const ConstTensorView& q = sequence.q;
  const KvCacheView& kv = sequence.kv;
  const TensorView& out = sequence.out;
  if (q.tokens < 0 || q.tokens > (Index{1} << 40)) fail(name("q.tokens"), q.tokens, "0 to 2^40");
  check_extent(name, "q.heads", q.heads, shape.query_heads, kMaxHeads);
  check_extent(name, "q.dim", q.dim, shape.head_dim, kMaxWidth);
  check_extent(name, "kv.kv_heads", kv.kv_heads, shape.kv_heads, kMaxHeads);
  check_extent(name, "kv.head_dim", kv.head_dim, q.dim, kMaxWidth);
  check_extent(name, "kv.value_dim", kv.value_dim, shape.value_dim, kMaxWidth);
  if (q.heads % kv.kv_heads != 0) fail(name("kv.kv_heads"), kv.kv_heads, "a divisor of q.heads = " + to_text(q.heads));
  if (out.tokens != q.tokens) fail(name("out.tokens"), out.tokens, "q.tokens = " + to_text(q.tokens));
  check_extent(name, "out.heads", out.heads, q.heads, kMaxHeads);
  check_extent(name, "out.dim", out.dim, kv.value_dim, kMaxWidth);
  check_tensor(name, "q.type", "q.data", "q.strides", q.data, q.type, q.tokens, q.heads, q.dim, q.strides);
  check_tensor(name, "out.type", "out.data", "out.strides", out.data, out.type, out.tokens, out.heads, out.dim,
               out.strides);
  if (q.tokens > 0) check_no_overlap(name, out);
  const auto count = static_cast<std::size_t>(q.tokens);
  if (!sequence.positions.empty() && sequence.positions.size() != count)
    fail(name("positions.size()"), static_cast<Index>(sequence.positions.size()),
         "q.tokens = " + to_text(q.tokens) + ", or none");
  if (!sequence.lse.empty() && sequence.lse.size() != count * static_cast<std::size_t>(q.heads))
    fail(name("lse.size()"), static_cast<Index>(sequence.lse.size()),
         "q.tokens * q.heads = " + to_text(q.tokens * q.heads) + ", or none");
  check_cache(name, kv);
  check_compiled(name, "kv.k_type", kv.k_type, types);
  check_compiled(name, "kv.v_type", kv.v_type, types);
  check_visible(name, variant, sequence);
}

/// The shape of a call, all extents known: static and given ones, the rest from the first sequence.
inline HeadShape call_shape(const HeadShape& fixed, const Sequence& first) noexcept {
  HeadShape shape = fixed;
  if (shape.query_heads == dynamic) shape.query_heads = first.q.heads;
  if (shape.kv_heads == dynamic) shape.kv_heads = first.kv.kv_heads;
  if (shape.head_dim == dynamic) shape.head_dim = first.q.dim;
  if (shape.value_dim == dynamic) shape.value_dim = first.kv.value_dim;
  return shape;
}

inline Path check_path(const Options& options) {
  const Path active = active_path().path;
  if (!options.path.has_value()) return active;
  if (*options.path > Path::amx || !path_available(*options.path))
    fail("options.path", *options.path > Path::amx ? "unknown" : path_name(*options.path),
         "a path that this process can run, such as " + Text(path_name(active)));
  return *options.path;
}

/// Fails on the first wrong argument. Fills in what of the call is known before it is planned.
inline void check_call(std::span<const Sequence> batch, const FunctorRef& functor, const VariantRef& variant,
                       const Options& options, CallPlan& call) {
  call.batch = batch;
  call.shape = call_shape(functor.shape, batch.front());
  call.kernels_for = functor.kernels_for;
  call.variant = variant;
  if (options.scale.has_value() && !is_finite(*options.scale))
    fail("options.scale", to_text(*options.scale), "a finite number");
  if (variant.check != nullptr) variant.check(variant.variant);
  if (options.executor.concurrency() < 1)
    fail("options.executor.concurrency()", options.executor.concurrency(), "1 or more");
  for (std::size_t i = 0; i < batch.size(); ++i)
    check_sequence({static_cast<Index>(i), batch.size() > 1}, call.shape, functor.cache_types, variant, batch[i]);
  call.path = check_path(options);
  call.streaming = streaming_in_use().load(std::memory_order_relaxed);
  call.group = call.shape.query_heads / call.shape.kv_heads;
}

}  // namespace gqa::detail::inline GQA_ABI
