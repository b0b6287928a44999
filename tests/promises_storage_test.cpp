// SPDX-License-Identifier: Apache-2.0
// Contiguous = paged = ring = any strides, for caches, queries and outputs. Every storage here has NaN and infinities wherever
// no token is stored.
#include <gtest/gtest.h>

#include "support/problem.hpp"

namespace gqa::test {
namespace {

class StorageOf : public PerPathAndType {};

constexpr Index kLength = detail::kSpan + 139;
static_assert(kLength > detail::kSpan + 2 * detail::kBlock, "blocks and spans must be crossed");

TEST_P(StorageOf, ACacheInAnyStridesIsThePackedOne) {
  for (const Index n_q : {Index{1}, Index{9}}) {
    const Problem p = make_problem({6, 3, 24, 40, n_q, kLength}, 61);
    for (const Types& types : {cache_of(type()), all_of(type())}) {
      const Result expected = solve(p, types, {path()});
      const Tensor q(p.q, types.q);
      for (const CacheLayout layout : kCacheLayouts)
        for (const Index slots : {kLength, kLength + 50}) {
          const StoredCaches kv = store_cache(p.kv, types.k, types.v, contiguous_place(layout, slots));
          SCOPED_TRACE(describe(on(path()), types, p.shape, layout_name(layout), "slots " + std::to_string(slots)));
          EXPECT_TRUE(same_bits(expected, attend(q.const_view(), kv.view(), {path(), types.out})));
        }
    }
  }
}

TEST_P(StorageOf, HowMemoryIsReadChangesNoBit) {
  std::uint64_t seed = 70;
  for (const Index head_dim : {64, 80, 128, 256})
    for (const Index group : {1, 3, 4, 5, 7}) {
      const Problem p = make_problem({2 * group, 2, head_dim, head_dim == 80 ? 96 : head_dim, 1, kLength}, ++seed);
      const Types types = cache_of(type());
      const Tensor q(p.q, types.q);
      std::optional<Result> first;
      for (const Place& place :
           {contiguous_place(CacheLayout::head_major, kLength + 9), contiguous_place(CacheLayout::token_major),
            paged_place(64, CacheLayout::head_major), paged_place(128, CacheLayout::head_major),
            paged_place(48, CacheLayout::head_major), ring_place(kLength, CacheLayout::head_major)})
        for (const auto streaming : {detail::Streaming::prefetched, detail::Streaming::followed}) {
          const StoredCaches kv = store_cache(p.kv, types.k, types.v, place);
          const WithStreaming in_use(streaming);
          SCOPED_TRACE(describe(on(path()), types, p.shape, place.name(), detail::streaming_name(streaming)));
          const Result result = attend(q.const_view(), kv.view(), {path(), types.out});
          if (!first.has_value()) first = result;
          EXPECT_TRUE(same_bits(*first, result));
        }
    }
}

TEST_P(StorageOf, HeadsThatShareTheirRowsAreOneHead) {
  std::uint64_t seed = 90;
  for (const Index dim : {40, 64, 128})
    for (const Index group : {1, 3, 4, 7}) {
      const Problem p = make_problem({2 * group, 1, dim, dim, 1, kLength}, ++seed);
      const Types types = cache_of(type());
      const Tensor q(p.q, types.q);
      for (const Place& place : {contiguous_place(), paged_place(64)})
        for (const auto streaming : {detail::Streaming::prefetched, detail::Streaming::followed}) {
          const StoredCaches kv = store_cache(p.kv, types.k, types.v, place);
          const WithStreaming in_use(streaming);
          SCOPED_TRACE(describe(on(path()), types, p.shape, place.name(), detail::streaming_name(streaming)));
          KvCacheView view = kv.view();
          const Result one = attend(q.const_view(), view, {path(), types.out});
          view.kv_heads = 2;
          view.k_strides.head = view.v_strides.head = 0;
          EXPECT_TRUE(same_bits(one, attend(q.const_view(), view, {path(), types.out})));
        }
    }
}

TEST_P(StorageOf, APagedCacheIsTheContiguousOne) {
  for (const Index n_q : {Index{1}, Index{9}}) {
    const Problem p = make_problem({6, 3, 24, 16, n_q, kLength}, 62);
    const Types types = cache_of(type());
    const Result expected = solve(p, types, {path()});
    const Tensor q(p.q, types.q);
    for (const Index page_size : {1, 7, 16, 64, 1000})
      for (const CacheLayout layout : kCacheLayouts) {
        const Place place = paged_place(page_size, layout, static_cast<std::uint64_t>(page_size));
        const StoredCaches kv = store_cache(p.kv, types.k, types.v, place);
        SCOPED_TRACE(describe(on(path()), types, p.shape, place.name()));
        EXPECT_TRUE(same_bits(expected, attend(q.const_view(), kv.view(), {path(), types.out})));
      }
  }
}

TEST_P(StorageOf, ARingThatHasNotGoneRoundIsTheContiguousCache) {
  const Problem p = make_problem({6, 3, 24, 16, 5, kLength}, 63);
  const Types types = cache_of(type());
  const Result expected = solve(p, types, {path()});
  const Tensor q(p.q, types.q);
  for (const Index capacity : {kLength, kLength + 1, kLength + 100})
    for (const CacheLayout layout : kCacheLayouts) {
      const StoredCaches kv = store_cache(p.kv, types.k, types.v, ring_place(capacity, layout));
      SCOPED_TRACE(describe(on(path()), types, p.shape, ring_place(capacity, layout).name()));
      EXPECT_TRUE(same_bits(expected, attend(q.const_view(), kv.view(), {path(), types.out})));
    }
}

TEST_P(StorageOf, ARingUnderAWindowIsTheContiguousCache) {
  for (const auto& [window, n_q] : {std::pair<Index, Index>{1, 1}, {100, 1}, {100, 8}, {128, 1}, {300, 70}}) {
    const Problem p = make_problem({4, 2, 16, 24, n_q, kLength}, 64);
    const Types types = cache_of(type());
    const CausalWindow variant{window};
    const Result expected = solve(p, types, {path()}, variant);
    const Tensor q(p.q, types.q);
    // The least capacity that the queries allow, one that is not a multiple of anything, and one that is.
    for (const Index capacity : {window + n_q - 1, window + n_q + 36, Index{448}})
      for (const CacheLayout layout : {CacheLayout::token_major, CacheLayout::head_major, CacheLayout::reversed}) {
        ASSERT_LT(capacity, kLength) << "the ring must have gone round";
        const StoredCaches kv = store_cache(p.kv, types.k, types.v, ring_place(capacity, layout));
        SCOPED_TRACE(describe(on(path()), types, p.shape, "window", window, ring_place(capacity, layout).name()));
        EXPECT_TRUE(same_bits(expected, attend(q.const_view(), kv.view(), {path(), types.out}, variant)));
      }
  }
}

TEST_P(StorageOf, PagesBeforeTheWindowMayBeGone) {
  const Index window = 100;
  const Problem p = make_problem({4, 2, 16, 24, 3, kLength}, 65);
  const Types types = cache_of(type());
  const Result expected = solve(p, types, {path()}, CausalWindow{window});
  const Tensor q(p.q, types.q);
  for (const Index page_size : {1, 7, 16, 64, 1000}) {
    Place place = paged_place(page_size);
    place.keep_from = kLength - 3 - window + 1;
    const StoredCaches kv = store_cache(p.kv, types.k, types.v, place);
    if (page_size < place.keep_from) {
      ASSERT_EQ(kv.view().page_table[0], -1) << "pages before the window must be gone";
    }
    SCOPED_TRACE(describe(on(path()), types, p.shape, place.name()));
    EXPECT_TRUE(same_bits(expected, attend(q.const_view(), kv.view(), {path(), types.out}, CausalWindow{window})));
  }
}

TEST_P(StorageOf, KeysAndValuesMayLieInDifferentTypesAndStrides) {
  const Problem p = make_problem({4, 2, 24, 24, 4, kLength}, 66);
  for (const ElementType v_type : kEveryType) {
    const Types types{ElementType::f32, type(), v_type, ElementType::f32};
    const Result expected = solve(p, types, {path()});
    const Tensor q(p.q, types.q);
    const StoredCaches by_token = store_cache(p.kv, types.k, types.v, contiguous_place(CacheLayout::padded));
    const StoredCaches by_head = store_cache(p.kv, types.k, types.v, contiguous_place(CacheLayout::head_major));
    KvCacheView mixed = by_token.view();
    mixed.v = by_head.view().v;
    mixed.v_strides = by_head.view().v_strides;
    SCOPED_TRACE(describe(on(path()), types, p.shape));
    EXPECT_TRUE(same_bits(expected, attend(q.const_view(), by_token.view(), {path()})));
    EXPECT_TRUE(same_bits(expected, attend(q.const_view(), mixed, {path()})));
  }
}

TEST_P(StorageOf, QueriesAndOutputsInAnyStridesAreThePackedOnes) {
  for (const Shape& shape :
       {Shape{6, 3, 24, 40, 1, kLength}, Shape{6, 3, 20, 35, 9, 100}, Shape{2, 2, 16, 16, 70, 70}}) {
    const Problem p = make_problem(shape, 67);
    const Types types = all_of(type());
    const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
    const Tensor packed(p.q, types.q);
    const Result expected = attend(packed.const_view(), kv.view(), {path(), types.out});
    for (const TensorLayout q_layout : kTensorLayouts)
      for (const TensorLayout out_layout : kTensorLayouts) {
        if (q_layout != out_layout && q_layout != TensorLayout::packed && out_layout != TensorLayout::packed) continue;
        const Tensor q(p.q, types.q, q_layout);
        How how{path(), types.out};
        how.out_layout = out_layout;
        SCOPED_TRACE(describe(on(path()), types, shape, "q", layout_name(q_layout), "out", layout_name(out_layout)));
        EXPECT_TRUE(same_bits(expected, attend(q.const_view(), kv.view(), how)));
      }
  }
}

// Gaps between the rows of an output belong to somebody else.
TEST_P(StorageOf, NothingIsWrittenBetweenOutputRows) {
  const Problem p = make_problem({6, 3, 24, 35, 9, 100}, 68);
  const Types types = all_of(type());
  const Tensor q(p.q, types.q);
  const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
  for (const TensorLayout layout : {TensorLayout::padded, TensorLayout::reversed}) {
    SCOPED_TRACE(describe(on(path()), types, layout_name(layout)));
    Output output(types.out, 9, 6, 35, layout);
    DynamicAttention{}(q.const_view(), kv.view(), output.view(), How{path()}.options());
    std::vector<std::byte> bytes = output.tensor().bytes();
    for (Index t = 0; t < 9; ++t)
      for (Index h = 0; h < 6; ++h) {
        const auto row = static_cast<std::size_t>(output.tensor().address(t, h, 0) - output.tensor().bytes().data());
        const auto size = static_cast<std::size_t>(35 * element_bytes(types.out));
        for (std::size_t i = 0; i < size; ++i) bytes[row + i] = std::byte{0x5a};
      }
    for (const std::byte b : bytes) ASSERT_EQ(b, std::byte{0x5a});
  }
}

INSTANTIATE_TEST_SUITE_P(EveryPath, StorageOf, StorageOf::cases(), StorageOf::name);

}  // namespace
}  // namespace gqa::test
