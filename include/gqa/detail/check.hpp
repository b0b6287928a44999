// SPDX-License-Identifier: Apache-2.0
/// @file
/// Every argument of a call, looked at once before any work.
#pragma once

#include <cstdint>

#include "gqa/detail/call.hpp"
#include "gqa/detail/check_overlap.hpp"

namespace gqa::detail::inline GQA_ABI {

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

/// Where the extents that a sequence is held against come from.
struct ExpectedShape {
  HeadShape shape;    ///< of the call
  HeadShape functor;  ///< what of it the functor says; the rest is the first sequence's
};

/// "4, the functor's query heads", or "batch[0].q.heads = 4".
inline Text expected_extent(Index extent, Index functor, const char* what, const char* member) {
  if (functor != dynamic) return to_text(extent) + ", the functor's " + what;
  return Text("batch[0].") + member + " = " + to_text(extent) + ": sequences of one call have one shape";
}

inline void check_extent(const ArgumentName& name, const char* member, Index given, Index most) {
  if (given <= 0 || given > most) fail(name(member), given, "1 to " + to_text(most));
}

/// Heads and widths.
inline void check_extents(const ArgumentName& name, const ExpectedShape& expected, const Sequence& sequence) {
  const ConstTensorView& q = sequence.q;
  const KvCacheView& kv = sequence.kv;
  const TensorView& out = sequence.out;
  const HeadShape& shape = expected.shape;
  const HeadShape& functor = expected.functor;
  const auto equals = [&](const char* member, Index given, Index extent, Index fixed, const char* what, Index most) {
    if (given != extent) fail(name(member), given, expected_extent(extent, fixed, what, member));
    check_extent(name, member, given, most);
  };
  const auto follows = [&](const char* member, Index given, const char* other, Index extent) {
    if (given != extent) fail(name(member), given, name(other) + " = " + to_text(extent));
  };
  if (q.tokens < 0 || q.tokens > kMaxQueries) fail(name("q.tokens"), q.tokens, "0 to 2^40");
  equals("q.heads", q.heads, shape.query_heads, functor.query_heads, "query heads", kMaxHeads);
  equals("q.dim", q.dim, shape.head_dim, functor.head_dim, "head dim", kMaxWidth);
  equals("kv.kv_heads", kv.kv_heads, shape.kv_heads, functor.kv_heads, "KV heads", kMaxHeads);
  follows("kv.head_dim", kv.head_dim, "q.dim", q.dim);
  equals("kv.value_dim", kv.value_dim, shape.value_dim, functor.value_dim, "value dim", kMaxWidth);
  if (q.heads % kv.kv_heads != 0)
    fail(name("kv.kv_heads"), kv.kv_heads, "a divisor of " + name("q.heads") + " = " + to_text(q.heads));
  follows("out.tokens", out.tokens, "q.tokens", q.tokens);
  follows("out.heads", out.heads, "q.heads", q.heads);
  follows("out.dim", out.dim, "kv.value_dim", kv.value_dim);
}

inline void check_strides_of(const ArgumentName& name, const Sequence& sequence) {
  const ConstTensorView& q = sequence.q;
  const TensorStrides& out = sequence.out.strides;
  if (q.tokens > 1 && q.strides.token == 0)
    fail(name("q.strides.token"), Index{0}, "the distance from a query token's rows to the next token's");
  if (q.tokens > 0 && !elements_are_distinct(sequence.out))
    fail(name("out.strides"), "{" + to_text(out.token) + ", " + to_text(out.head) + ", " + to_text(out.dim) + "}",
         "strides that give every (token, head, dim) an element of its own");
}

/// The position of query token i: given, or one of the last n_q of the cache.
inline Index query_position(const Sequence& sequence, Index token) noexcept {
  return sequence.positions.empty() ? sequence.kv.length - sequence.q.tokens + token
                                    : sequence.positions[static_cast<std::size_t>(token)];
}

/// What a variant is told of query token i of a sequence.
inline QueryContext query_context(const VariantRef& variant, const Sequence& sequence, Index token) noexcept {
  return {query_position(sequence, token), token, &sequence - variant.batch};
}

/// What the variant lets a query see, within what the cache has: VariantRef::ranges ranges, in any order. Empty ones are {0, 0}.
inline void visible_ranges(const VariantRef& variant, const QueryContext& query, Index length, PositionRange* ranges) {
  variant.range(variant.variant, query, length, ranges);
  for (Index i = 0; i < variant.ranges; ++i) {
    if (ranges[i].begin < 0) ranges[i].begin = 0;
    if (ranges[i].end > length) ranges[i].end = length;
    if (ranges[i].begin >= ranges[i].end) ranges[i] = {};
  }
}

/// Calls `visit(range, i)` for each range that query tokens [first, last) see, the i-th of a token's.
template <class Visit>
inline void for_each_range(const VariantRef& variant, const Sequence& sequence, Index first, Index last,
                           const Visit& visit) {
  PositionRange ranges[kMaxRanges];
  for (Index token = first; token < last; ++token) {
    visible_ranges(variant, query_context(variant, sequence, token), sequence.kv.length, ranges);
    for (Index i = 0; i < variant.ranges; ++i)
      if (ranges[i].begin < ranges[i].end) visit(ranges[i], i);
  }
}

/// The hull of what query tokens [first, last) see.
inline PositionRange visible_hull(const VariantRef& variant, const Sequence& sequence, Index first, Index last) {
  PositionRange hull;
  for_each_range(variant, sequence, first, last, [&](const PositionRange& range, Index) {
    if (hull.begin == hull.end) hull = range;
    if (range.begin < hull.begin) hull.begin = range.begin;
    if (range.end > hull.end) hull.end = range.end;
  });
  return hull;
}

/// What queries look at of part number `part` must be there: not gone, and in pages that exist.
inline void check_visible(const ArgumentName& name, const VariantRef& variant, const Sequence& sequence, Index part) {
  const KvCacheView& kv = sequence.kv.part(part);
  const Index first = sequence.kv.begin_of_part(part);
  if (kv.length <= first || (kv.storage == Storage::contiguous && kv.oldest <= first)) return;
  PositionRange hull = visible_hull(variant, sequence, 0, sequence.q.tokens);
  if (hull.begin < first) hull.begin = first;
  if (hull.end > kv.length) hull.end = kv.length;
  if (hull.begin >= hull.end) return;
  if (kv.storage != Storage::paged) {
    if (hull.begin >= kv.first_position_of_part()) return;
    if (kv.storage == Storage::contiguous || kv.length - hull.begin <= kv.capacity)
      fail(name("kv.oldest"), kv.oldest, "position " + to_text(hull.begin) + ", which a query sees, or before");
    fail(name("kv.capacity"), kv.capacity,
         "room for position " + to_text(hull.begin) +
             ", which a query sees: at least length - position = " + to_text(kv.length - hull.begin));
  }
  const auto check_pages = [&](Index begin, Index end) {
    for (Index page = begin / kv.page_size; page * kv.page_size < end; ++page)
      if (kv.page_table[page] < 0 || kv.page_table[page] >= kv.pool_pages)
        fail(name(("kv.page_table[" + to_text(page) + "]").c_str()), kv.page_table[page],
             "a page in [0, " + to_text(kv.pool_pages) + "), less than pool_pages");
  };
  PositionRange checked[kMaxRanges];  // each grows while ranges touch it, as those of successive positions do
  for_each_range(variant, sequence, 0, sequence.q.tokens, [&](PositionRange range, Index i) {
    if (range.begin < first) range.begin = first;
    if (range.end > kv.length) range.end = kv.length;
    if (range.begin >= range.end) return;
    PositionRange& done = checked[i];
    if (done.begin >= done.end || range.begin > done.end || range.end < done.begin) {
      check_pages(range.begin, range.end);
      done = range;
      return;
    }
    if (range.begin < done.begin) {
      check_pages(range.begin, done.begin);
      done.begin = range.begin;
    }
    if (range.end > done.end) {
      check_pages(done.end, range.end);
      done.end = range.end;
    }
  });
}

/// "f32 or bf16": the codecs of a set, given as bits.
inline Text codec_names(unsigned codecs) {
  Text names;
  for (int id = 0; id < bits_of(codecs); ++id)
    if (((codecs >> id) & 1u) != 0)
      names += (names.empty() ? "" : " or ") + codec_name(KvType(RowLayout{.id = static_cast<std::uint8_t>(id)}));
  return names;
}
[[noreturn, gnu::cold, gnu::noinline]] inline void fail_codec(const ArgumentName& name, const char* member, KvType type,
                                                              unsigned codecs, const char* why) {
  fail(name(member), codec_name(type), codec_names(codecs) + why);
}
/// One of the functor's cache types, as bits?
GQA_ALWAYS_INLINE void check_compiled(const ArgumentName& name, const char* member, KvType type, unsigned types) {
  if (!is_among(types, type)) fail_codec(name, member, type, types, ", as the functor's CacheOf says");
}

/// Whether the rows of all parts of a cache are bf16.
inline bool is_bf16(const KvCacheView& kv) noexcept {
  bool all = true;
  for (Index i = 0; i <= kv.earlier_count; ++i)
    all = all && kv.part(i).k_type == ElementType::bf16 && kv.part(i).v_type == ElementType::bf16;
  return all;
}
/// As how many bf16 numbers a call takes one of its inputs, see kernels_for.
inline int bf16_terms(ElementType q, const KvCacheView& kv, Products products) noexcept {
  if (q == ElementType::bf16 && is_bf16(kv)) return 1;
  return products == Products::bf16 ? 1 : products == Products::bf16_terms ? 2 : 0;
}

/// Fails for keys or values of a sequence's part that the path, which has kernels for the codecs `compiled`, has none for.
[[noreturn, gnu::cold, gnu::noinline]] inline void fail_unsupported(std::span<const Sequence> batch,
                                                                    const Sequence& sequence, Index part,
                                                                    unsigned compiled) {
  const KvCacheView& kv = sequence.kv.part(part);
  const ArgumentName name{&sequence - batch.data(), batch.size() > 1, part < sequence.kv.earlier_count ? part : -1};
  const bool keys = !is_among(compiled, kv.k_type);
  fail_codec(name, keys ? "kv.k_type" : "kv.v_type", keys ? kv.k_type : kv.v_type, compiled,
             ", for which the path has kernels");
}

/// The earlier parts of a sequence that is right otherwise, each as if it were the cache, and nothing of them where outputs go.
/// @param types  that the functor is compiled for
/// @param whole  where the rest of the sequence lies
[[gnu::cold, gnu::noinline]] inline void check_parts(ArgumentName name, const CallPlan& call, unsigned types,
                                                     std::span<const std::byte> scratch, const Sequence& sequence,
                                                     const SequenceRanges& whole) {
  Sequence of_part = sequence;  // which the variant is not told of
  SequenceRanges ranges = whole;
  const auto list = reinterpret_cast<std::uintptr_t>(sequence.kv.earlier);
  const ByteRange views{list, list + static_cast<std::size_t>(sequence.kv.earlier_count) * sizeof(KvCacheView)};
  if (has_element_in(sequence.out, views)) fail_overlap(name, "out", name("kv.earlier"));
  for (Index i = 0; i < sequence.kv.earlier_count; ++i) {
    const KvCacheView& kv = of_part.kv = sequence.kv.earlier[i];
    name.part = i;
    check_part_extents(name, kv, sequence.kv);
    ranges.kv = check_cache(name, kv);
    check_compiled(name, "kv.k_type", kv.k_type, types);
    check_compiled(name, "kv.v_type", kv.v_type, types);
    check_visible(name, call.variant, sequence, i);
    check_overlap(name, of_part, ranges, scratch, call.batch);
    if (!is_plain(kv)) call.coded->check(name, of_part);
  }
}

/// Fails on the first wrong argument of a sequence. Returns where the others lie.
inline SequenceRanges check_sequence(const ArgumentName& name, const ExpectedShape& expected, unsigned types,
                                     const VariantRef& variant, const Sequence& sequence) {
  const ConstTensorView& q = sequence.q;
  check_extents(name, expected, sequence);
  SequenceRanges ranges;
  ranges.q = check_tensor(name, kQueryNames, q);
  ranges.out = check_tensor(name, kOutNames, sequence.out);
  check_strides_of(name, sequence);
  const auto count = static_cast<std::size_t>(q.tokens);
  if (!sequence.positions.empty() && sequence.positions.size() != count)
    fail(name("positions.size()"), to_text(sequence.positions.size()),
         name("q.tokens") + " = " + to_text(q.tokens) + ", or none");
  if (!sequence.lse.empty() && sequence.lse.size() != count * static_cast<std::size_t>(q.heads))
    fail(name("lse.size()"), to_text(sequence.lse.size()),
         name("q.tokens") + " * q.heads = " + to_text(q.tokens * q.heads) + ", or none");
  ranges.positions = check_span(name, "positions.data()", sequence.positions, " positions");
  ranges.lse = check_span(name, "lse.data()", sequence.lse, " floats");
  ranges.kv = check_cache(name, sequence.kv);
  if (sequence.kv.earlier_count != 0) check_list(name, sequence.kv);
  check_compiled(name, "kv.k_type", sequence.kv.k_type, types);
  check_compiled(name, "kv.v_type", sequence.kv.v_type, types);
  if (variant.check_sequence != nullptr)
    variant.check_sequence(variant.variant,
                           sequence_context(&sequence - variant.batch, q.heads, sequence.kv.kv_heads, q.tokens,
                                            sequence.kv.length, sequence.kv.value_dim, sequence.positions));
  check_visible(name, variant, sequence, sequence.kv.earlier_count);
  return ranges;
}

/// Fails if an output surely lies in that of a sequence just before it.
inline void check_apart(const ArgumentName& name, std::span<const Sequence> batch, const SequenceRanges& ranges,
                        BatchOutputs& outs, BatchOutputs& lses) {
  const auto sequence = [&](Index i) -> const Sequence& { return batch[static_cast<std::size_t>(i)]; };
  for (Index i = outs.add(ranges.out); i >= 0; i = outs.next(i))
    if (overlap(sequence(name.sequence).out, sequence(i).out)) fail_overlap(name, "out", ArgumentName{i, true}("out"));
  const Index i = lses.add(ranges.lse);
  if (i >= 0) fail_overlap(name, "lse", ArgumentName{i, true}("lse"));
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
  if (static_cast<int>(*options.path) >= kPaths || !path_available(*options.path))
    fail("options.path", path_name(*options.path),
         "a path that this process can run, such as " + Text(path_name(active)));
  return *options.path;
}

inline void check_options(const Options& options) {
  if (options.scale.has_value() && !is_finite(*options.scale))
    fail("options.scale", to_text(static_cast<double>(*options.scale)), "a finite number");
  if (options.products > Products::bf16_terms)
    fail("options.products", static_cast<Index>(options.products), "Products::as_stored, bf16 or bf16_terms");
  if (!options.scratch.empty() && options.scratch.data() == nullptr)
    fail("options.scratch.data()", "null", "a pointer to " + to_text(options.scratch.size()) + " bytes");
  if (options.executor.concurrency() < 1)
    fail("options.executor.concurrency()", options.executor.concurrency(), "1 or more");
}

/// Fails on the first wrong argument. Fills in what of the call is known before it is planned.
inline void check_call(std::span<const Sequence> batch, const FunctorRef& functor, const VariantRef& variant,
                       const Options& options, CallPlan& call) {
  check_span({}, "batch.data()", batch, " sequences");
  call.batch = batch;
  call.shape = call_shape(functor.shape, batch.front());
  call.kernels_for = functor.kernels_for;
  call.coded = functor.coded;
  call.variant = variant;
  call.variant.batch = batch.data();
  check_options(options);
  call.path = check_path(options);
  if (variant.check != nullptr) variant.check(variant.variant);
  const ExpectedShape expected{call.shape, functor.shape};
  const auto check = [&](const ArgumentName& name, const Sequence& sequence) {
    const SequenceRanges ranges = check_sequence(name, expected, functor.cache_types, call.variant, sequence);
    check_overlap(name, sequence, ranges, options.scratch, batch);
    if (!is_plain(sequence.kv)) functor.coded->check(name, sequence);
    if (sequence.kv.earlier_count != 0) check_parts(name, call, functor.cache_types, options.scratch, sequence, ranges);
    return ranges;
  };
  if (batch.size() == 1) {
    check({}, batch.front());
  } else {
    BatchOutputs outs, lses;
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const ArgumentName name{static_cast<Index>(i), true};
      check_apart(name, batch, check(name, batch[i]), outs, lses);
    }
  }
  call.streaming = streaming_in_use().load(std::memory_order_relaxed);
  call.group = call.shape.query_heads / call.shape.kv_heads;
}

}  // namespace gqa::detail::inline GQA_ABI
