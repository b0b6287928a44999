// SPDX-License-Identifier: Apache-2.0
// GQA reduces exactly to MHA and to MQA: a query head's rows are the same bits whoever shares its KV head.
//
// MHA and MQA are written here as what they are, one single-head call per head on that head's own packed arrays, not as other
// instances of the same template.
#include <gtest/gtest.h>

#include "support/problem.hpp"

namespace gqa::test {
namespace {

/// Head `head` of a tensor, alone.
Numbers one_head(const Numbers& all, Index head) {
  Numbers alone(all.tokens, 1, all.dim);
  for (Index t = 0; t < all.tokens; ++t)
    for (Index d = 0; d < all.dim; ++d) alone.at(t, 0, d) = all.at(t, head, d);
  return alone;
}

/// Single-head attention of query head `query_head` over KV head `kv_head`.
Result single_head(const Problem& p, Index query_head, Index kv_head, const Types& types, const How& how) {
  Problem alone{p.shape, one_head(p.q, query_head), {one_head(p.kv.k, kv_head), one_head(p.kv.v, kv_head)}};
  alone.shape.query_heads = 1;
  alone.shape.kv_heads = 1;
  return solve(alone, types, how);
}

Result join_heads(const std::vector<Result>& heads) {
  Result all{heads[0].tokens, static_cast<Index>(heads.size()), heads[0].dim, {}, {}};
  for (Index t = 0; t < all.tokens; ++t)
    for (const Result& head : heads) {
      for (Index d = 0; d < all.dim; ++d) all.out.push_back(head.at(t, 0, d));
      all.lse.push_back(head.lse_at(t, 0));
    }
  return all;
}

/// Multi-head attention: every head has its own keys and values.
Result multi_head(const Problem& p, const Types& types, const How& how) {
  std::vector<Result> heads;
  for (Index h = 0; h < p.shape.query_heads; ++h) heads.push_back(single_head(p, h, h, types, how));
  return join_heads(heads);
}

/// Multi-query attention: every head reads the only keys and values.
Result multi_query(const Problem& p, const Types& types, const How& how) {
  std::vector<Result> heads;
  for (Index h = 0; h < p.shape.query_heads; ++h) heads.push_back(single_head(p, h, 0, types, how));
  return join_heads(heads);
}

/// The KV heads repeated until every query head has its own copy.
Problem repeat_kv_heads(const Problem& p) {
  Problem repeated = p;
  repeated.shape.kv_heads = p.shape.query_heads;
  const Index group = p.shape.query_heads / p.shape.kv_heads;
  for (auto [to, from] : {std::pair{&repeated.kv.k, &p.kv.k}, std::pair{&repeated.kv.v, &p.kv.v}}) {
    *to = Numbers(from->tokens, p.shape.query_heads, from->dim);
    for (Index t = 0; t < from->tokens; ++t)
      for (Index h = 0; h < p.shape.query_heads; ++h)
        for (Index d = 0; d < from->dim; ++d) to->at(t, h, d) = from->at(t, h / group, d);
  }
  return repeated;
}

/// Calls that differ in kind: decode over several spans, a few tokens to verify, a prefill over a block boundary, and a chunk
/// that makes more rows than one tile holds.
std::vector<std::pair<Index, Index>> query_and_cache_lengths() {
  return {{1, 2 * detail::kSpan + 70}, {4, detail::kSpan + 66}, {70, 70}, {140, 200}};
}

class Grouping : public PerPathAndType {};

TEST_P(Grouping, AsManyKvHeadsAsQueryHeadsIsMultiHeadAttention) {
  for (const auto& [n_q, n_kv] : query_and_cache_lengths())
    for (const Types& types : {cache_of(type()), all_of(type())}) {
      const Problem p = make_problem({3, 3, 24, 40, n_q, n_kv}, 11);
      SCOPED_TRACE(describe(on(path()), types, p.shape));
      EXPECT_TRUE(same_bits(multi_head(p, types, {path()}), solve(p, types, {path()})));
    }
}

TEST_P(Grouping, OneKvHeadIsMultiQueryAttention) {
  for (const auto& [n_q, n_kv] : query_and_cache_lengths())
    for (const Types& types : {cache_of(type()), all_of(type())}) {
      const Problem p = make_problem({5, 1, 24, 40, n_q, n_kv}, 12);
      SCOPED_TRACE(describe(on(path()), types, p.shape));
      EXPECT_TRUE(same_bits(multi_query(p, types, {path()}), solve(p, types, {path()})));
    }
}

TEST_P(Grouping, EveryGroupSizeIsMultiHeadAttentionOverRepeatedKvHeads) {
  for (const Index group : {1, 2, 3, 4, 5, 6, 7, 8, 16, 29, 71, 128}) {
    const Index kv_heads = group > 8 ? 1 : 2;
    for (const auto& [n_q, n_kv] : {std::pair<Index, Index>{1, detail::kSpan + 130}, {5, 129}}) {
      const Problem p = make_problem({group * kv_heads, kv_heads, 16, 16, n_q, n_kv}, 13);
      const Types types = cache_of(type());
      SCOPED_TRACE(describe(on(path()), types, p.shape));
      EXPECT_TRUE(same_bits(solve(repeat_kv_heads(p), types, {path()}), solve(p, types, {path()})));
    }
  }
}

TEST_P(Grouping, APrefillOfManyTilesIsMultiHeadAttentionOverRepeatedKvHeads) {
  const Problem p = make_problem({14, 2, 16, 16, 40, detail::kSpan + 90}, 14, Distribution::sinks);
  ASSERT_GT(p.shape.n_q * 7, 2 * detail::kTileRows) << "rows of a group must fill several tiles";
  ASSERT_GT(p.shape.n_kv, detail::kSpan);
  for (const Types& types : {cache_of(type()), all_of(type())}) {
    SCOPED_TRACE(describe(on(path()), types, p.shape));
    EXPECT_TRUE(same_bits(solve(repeat_kv_heads(p), types, {path()}), solve(p, types, {path()})));
  }
}

// The same statements for functors whose head counts are compile-time constants.
TEST_P(Grouping, StaticFunctorsAgreeWithSeparatelyWrittenCallers) {
  const Types types = cache_of(type());
  const auto call = [&](const Problem& p, const auto& functor) {
    const Tensor q(p.q, types.q);
    const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
    return attend(q.const_view(), kv.view(), {path(), types.out}, Causal{}, {}, functor);
  };
  const Problem mha = make_problem({4, 4, 16, 24, 3, detail::kSpan + 9}, 15);
  const Problem mqa = make_problem({4, 1, 16, 24, 3, detail::kSpan + 9}, 16);
  const Problem grouped = make_problem({4, 2, 16, 24, 3, detail::kSpan + 9}, 17);
  SCOPED_TRACE(describe(on(path()), types));
  EXPECT_TRUE(same_bits(multi_head(mha, types, {path()}), call(mha, MultiHeadAttention<4, 16, 24>{})));
  EXPECT_TRUE(same_bits(multi_head(mha, types, {path()}), call(mha, GroupedQueryAttention<4, 4, 16, 24>{})));
  EXPECT_TRUE(same_bits(multi_query(mqa, types, {path()}), call(mqa, MultiQueryAttention<4, 16, 24>{})));
  EXPECT_TRUE(same_bits(multi_query(mqa, types, {path()}), call(mqa, GroupedQueryAttention<4, 1, 16, 24>{})));
  EXPECT_TRUE(same_bits(call(repeat_kv_heads(grouped), MultiHeadAttention<4, 16, 24>{}),
                        call(grouped, GroupedQueryAttention<4, 2, 16, 24>{})));
}

INSTANTIATE_TEST_SUITE_P(EveryPath, Grouping, Grouping::cases(), Grouping::name);

}  // namespace
}  // namespace gqa::test
