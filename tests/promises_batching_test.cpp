// SPDX-License-Identifier: Apache-2.0
// A batch in any order = its sequences alone.
#include <gtest/gtest.h>

#include "support/problem.hpp"

namespace gqa::test {
namespace {

/// Prefills, chunks, decode steps, tokens to verify, an idle sequence and an empty cache.
const std::vector<std::pair<Index, Index>> kQueryAndCacheLengths = {
    {70, 70}, {1, 2 * detail::kSpan + 200}, {40, 600}, {0, 33}, {1, 1}, {5, detail::kSpan}, {1, 0}, {66, 66}, {1, 64}};

class Batching : public PerPathAndType {
 protected:
  static std::vector<Problem> make_problems(Index query_heads, Index kv_heads) {
    std::vector<Problem> problems;
    for (const auto& [n_q, n_kv] : kQueryAndCacheLengths)
      problems.push_back(make_problem({query_heads, kv_heads, 16, 24, n_q, n_kv}, 30 + problems.size()));
    return problems;
  }
};

/// All sequences in one call, in the given order; results by sequence.
template <class V>
std::vector<Result> attend_batch(const std::vector<Tensor>& queries, const std::vector<KvCacheView>& caches,
                                 const std::vector<Index>& order, const How& how, const V& variant) {
  std::vector<Output> outputs;
  for (std::size_t i = 0; i < queries.size(); ++i)
    outputs.emplace_back(how.out, queries[i].view().tokens, queries[i].view().heads, caches[i].value_dim);
  std::vector<Sequence> batch;
  for (const Index i : order) {
    const auto at = static_cast<std::size_t>(i);
    batch.push_back({queries[at].const_view(), caches[at], outputs[at].view(), {}, outputs[at].lse()});
  }
  DynamicAttention{}(batch, variant, how.options());
  std::vector<Result> results;
  for (const Output& output : outputs) results.push_back(output.result());
  return results;
}

TEST_P(Batching, AnyOrderIsTheSequencesAlone) {
  for (const auto& [query_heads, kv_heads] : {std::pair<Index, Index>{4, 2}, {3, 3}, {7, 1}}) {
    const std::vector<Problem> problems = make_problems(query_heads, kv_heads);
    const Types types = all_of(type());
    SCOPED_TRACE(describe(on(path()), types, "Hq " + std::to_string(query_heads) + ", Hkv " + std::to_string(kv_heads)));
    std::vector<Tensor> queries;
    std::vector<StoredCaches> stored;
    std::vector<KvCacheView> caches;
    std::vector<Result> alone;
    for (const Problem& p : problems) {
      queries.emplace_back(p.q, types.q);
      stored.push_back(store_cache(p.kv, types.k, types.v, {}));
      caches.push_back(stored.back().view());
      alone.push_back(attend(queries.back().const_view(), caches.back(), {path(), types.out}));
    }
    const auto count = static_cast<Index>(problems.size());
    for (const std::uint64_t seed : {1u, 2u, 3u}) {
      const std::vector<Index> order = permutation(count, seed);
      const std::vector<Result> together = attend_batch(queries, caches, order, {path(), types.out}, Causal{});
      for (std::size_t i = 0; i < problems.size(); ++i)
        EXPECT_TRUE(same_bits(alone[i], together[i]))
            << problems[i].shape << ", batch order " << testing::PrintToString(order);
    }
  }
}

TEST_P(Batching, HoldsForPagesOfOnePoolAndForWindows) {
  const std::vector<Problem> problems = make_problems(4, 2);
  const Types types = cache_of(type());
  SCOPED_TRACE(describe(on(path()), types));
  std::vector<const LogicalCache*> logical;
  for (const Problem& p : problems) logical.push_back(&p.kv);
  const StoredCaches pool(logical, types.k, types.v, paged_place(16, CacheLayout::head_major, 5));
  std::vector<Tensor> queries;
  std::vector<KvCacheView> caches;
  for (std::size_t i = 0; i < problems.size(); ++i) {
    queries.emplace_back(problems[i].q, types.q);
    caches.push_back(pool.view(i));
  }
  const CausalWindow window{100};
  const std::vector<Result> together =
      attend_batch(queries, caches, permutation(static_cast<Index>(problems.size()), 9), {path()}, window);
  for (std::size_t i = 0; i < problems.size(); ++i)
    EXPECT_TRUE(same_bits(solve(problems[i], types, {path()}, window), together[i])) << problems[i].shape;
}

// Two sequences whose first tokens are the same pages: what one of them does is nothing to the other.
TEST_P(Batching, HoldsForSequencesThatShareAPrefix) {
  const Problem whole = make_problem({4, 2, 16, 16, 1, detail::kSpan + 100}, 45);
  const Types types = cache_of(type());
  SCOPED_TRACE(describe(on(path()), types, whole.shape));
  const StoredCaches pool = store_cache(whole.kv, types.k, types.v, paged_place(16, CacheLayout::token_major, 6));
  const Tensor q(whole.q, types.q);
  const std::vector<Index> lengths = {detail::kSpan + 100, detail::kSpan, 100};
  std::vector<Tensor> queries;
  std::vector<KvCacheView> caches;
  for (const Index length : lengths) {
    queries.emplace_back(whole.q, types.q);
    caches.push_back(first_tokens(pool.view(), length));
  }
  const std::vector<Result> together = attend_batch(queries, caches, {2, 0, 1}, {path()}, Causal{});
  for (std::size_t i = 0; i < lengths.size(); ++i)
    EXPECT_TRUE(same_bits(attend(q.const_view(), caches[i], {path()}), together[i])) << "length " << lengths[i];
}

class MixedBatch : public PerPath {};

// One batch may hold sequences of different types: each is as if alone.
TEST_P(MixedBatch, SequencesOfDifferentTypesAreAsIfAlone) {
  SCOPED_TRACE(on(path()));
  std::vector<Problem> problems;
  std::vector<Types> types;
  for (const ElementType cache : kEveryType)
    for (const ElementType other : kEveryType) {
      types.push_back({other, cache, cache, other});
      problems.push_back(make_problem({2, 1, 16, 16, 3, 90}, 50 + problems.size()));
    }
  std::vector<Tensor> queries;
  std::vector<StoredCaches> caches;
  std::vector<Output> outputs;
  std::vector<Sequence> batch;
  for (std::size_t i = 0; i < problems.size(); ++i) {
    queries.emplace_back(problems[i].q, types[i].q);
    caches.push_back(store_cache(problems[i].kv, types[i].k, types[i].v, {}));
    outputs.emplace_back(types[i].out, 3, 2, 16);
  }
  for (std::size_t i = 0; i < problems.size(); ++i)
    batch.push_back({queries[i].const_view(), caches[i].view(), outputs[i].view(), {}, outputs[i].lse()});
  DynamicAttention{}(batch, How{path()}.options());
  for (std::size_t i = 0; i < problems.size(); ++i)
    EXPECT_TRUE(same_bits(solve(problems[i], types[i], {path()}), outputs[i].result())) << describe(types[i]);
}

INSTANTIATE_TEST_SUITE_P(EveryPath, Batching, Batching::cases(), Batching::name);
INSTANTIATE_TEST_SUITE_P(EveryPath, MixedBatch, MixedBatch::cases(), MixedBatch::name);

}  // namespace
}  // namespace gqa::test
