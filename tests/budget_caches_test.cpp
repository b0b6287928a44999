// SPDX-License-Identifier: Apache-2.0
// What the owning caches allocate is what the budget says: for every element type of keys and of values, layout, and page size.
#include <gtest/gtest.h>

#include <numeric>

#include "gqa/budget.hpp"
#include "support/owned_caches.hpp"

namespace gqa::test {
namespace {

/// One layer of the shape of support/owned_caches.hpp's caches.
LayerKind layer(Index window = 0) {
  return {.count = 1,
          .query_heads = kDims.kv_heads,
          .kv_heads = kDims.kv_heads,
          .head_dim = kDims.head_dim,
          .value_dim = kDims.value_dim,
          .window = window};
}
ModelShape model(Index window = 0) {
  ModelShape made;
  made.add_layers(layer(window));
  return made;
}

template <class Check>
void for_all_types_and_layouts(const Check& check) {
  for (const ElementType k : kTypes)
    for (const ElementType v : kTypes)
      for (const KvLayout layout : kLayouts) {
        SCOPED_TRACE(types_and_layout(k, v, layout));
        check(KvPlan{.k_format = kv_format_of(k), .v_format = kv_format_of(v)}, k, v, layout);
      }
}

TEST(BudgetOfCaches, ContiguousCachesTakeWhatIsBudgeted) {
  for_all_types_and_layouts([](KvPlan plan, ElementType k, ElementType v, KvLayout layout) {
    for (const Index capacity : {1, 2, 63, 64, 1000}) {
      const ContiguousKvCache cache(config(capacity, k, v, layout));
      EXPECT_EQ(cache.bytes(), kv_sequence_bytes(model(), plan, capacity));
      plan.windows_capped = false;  // a contiguous cache keeps what the window hides
      EXPECT_EQ(cache.bytes(), kv_sequence_bytes(model(10), plan, capacity));
    }
  });
}

TEST(BudgetOfCaches, RingCachesTakeTheWindowAndTheChunk) {
  for_all_types_and_layouts([](KvPlan plan, ElementType k, ElementType v, KvLayout layout) {
    for (const Index window : {1, 16, 100})
      for (const Index chunk : {1, 8}) {
        plan.chunk = chunk;
        RingKvCache cache(config(window + chunk - 1, k, v, layout));
        const Index before = cache.bytes();
        EXPECT_EQ(before, kv_sequence_bytes(model(window), plan, 100'000));
        const KvSource source(KvNumbers(chunk, kDims, 1));
        for (Index at = 0; at < 3 * window; at += chunk) source.append_to(cache, 0, chunk);
        EXPECT_EQ(cache.bytes(), before);
      }
  });
}

TEST(BudgetOfCaches, PoolsTakeTheirPagesAndSequencesTheNumberBudgeted) {
  for_all_types_and_layouts([](KvPlan plan, ElementType k, ElementType v, KvLayout layout) {
    for (const Index page_size : kPageSizes) {
      SCOPED_TRACE(page_size);
      plan.page_size = page_size;
      plan.windows_capped = false;
      for (const Index tokens : {1, 6, 7, 8, 64, 65}) {
        const Index pages = kv_slots(layer(), plan, tokens) / page_size;
        PagedKvPool pool(pool_config(page_size, pages, k, v, layout));
        EXPECT_EQ(pool.bytes(), kv_sequence_bytes(model(), plan, tokens));
        PagedSequence sequence = pool.sequence();
        KvSource(KvNumbers(tokens, kDims, 2)).append_to(sequence, 0, tokens);
        EXPECT_EQ(static_cast<Index>(sequence.pages().size()), pages);
        EXPECT_EQ(pool.free_pages(), 0);
        EXPECT_EQ(pool.bytes() - tokens * pool.bytes() / (pages * page_size), kv_waste_bytes(model(), plan, tokens));
      }
    }
  });
}

TEST(BudgetOfCaches, ABatchInOnePoolIsTheSumOfItsSequences) {
  const KvPlan plan{.page_size = 16};
  const std::vector<Index> lengths{1, 15, 16, 17, 40};
  const Index pages = std::accumulate(lengths.begin(), lengths.end(), Index{0}, [&](Index sum, Index tokens) {
    return sum + kv_slots(layer(), plan, tokens) / 16;
  });
  PagedKvPool pool(pool_config(16, pages, ElementType::bf16, ElementType::bf16));
  Index budgeted = 0;
  std::vector<PagedSequence> sequences;
  for (const Index tokens : lengths) {
    budgeted += kv_sequence_bytes(model(), plan, tokens);
    sequences.push_back(pool.sequence());
    KvSource(KvNumbers(tokens, kDims, 3)).append_to(sequences.back(), 0, tokens);
  }
  EXPECT_EQ(pool.bytes(), budgeted);
  EXPECT_EQ(pool.free_pages(), 0);
}

// Tokens that are kept as plain elements besides, in layers that keep all tokens.
TEST(BudgetOfCaches, PlainTokensAreCounted) {
  const KvPlan plain{.k_format = KvFormat::f32, .v_format = KvFormat::f32};
  for (const auto& [first, newest] : {std::pair<Index, Index>{64, 0}, {0, 1}, {128, 64}, {64, 65}, {0, 300}}) {
    KvPlan plan = plain;
    plan.first_tokens = first;
    plan.newest_tokens = newest;
    KvCacheConfig of_cache = config(1000);
    of_cache.first_tokens = first;
    of_cache.newest_tokens = newest;
    EXPECT_EQ(ContiguousKvCache(of_cache).bytes(), kv_sequence_bytes(model(), plan, 1000)) << first << " " << newest;
    EXPECT_EQ(kv_sequence_bytes(model(10), plan, 1000), kv_sequence_bytes(model(10), plain, 1000));
    EXPECT_EQ(kv_bytes_per_token(model(), plan), kv_bytes_per_token(model(), plain));
    EXPECT_EQ(kv_waste_bytes(model(), plan, 1000), 0);
  }
}

TEST(BudgetOfCaches, AMovedFromCacheHoldsNothing) {
  ContiguousKvCache cache(config(10));
  const ContiguousKvCache taken(std::move(cache));
  EXPECT_EQ(cache.bytes(), 0);  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(taken.bytes(),
            kv_sequence_bytes(model(), KvPlan{.k_format = KvFormat::f32, .v_format = KvFormat::f32}, 10));
}

}  // namespace
}  // namespace gqa::test
