// SPDX-License-Identifier: Apache-2.0
// Static = dynamic extents, and every head dim, value dim and group size is right against the definition.
#include <gtest/gtest.h>

#include "support/problem.hpp"
#include "support/reference_check.hpp"

namespace gqa::test {
namespace {

class Shapes : public PerPathAndType {};

template <int QueryHeads, int KvHeads, int HeadDim, int ValueDim>
void static_is_dynamic(Path path, ElementType type) {
  for (const auto& [n_q, n_kv] : {std::pair<Index, Index>{1, detail::kSpan + 70}, {7, 100}}) {
    const Problem p = make_problem({QueryHeads, KvHeads, HeadDim, ValueDim, n_q, n_kv}, 101);
    const Types types = cache_of(type);
    SCOPED_TRACE(describe(on(path), types, p.shape));
    const Tensor q(p.q, types.q);
    const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
    const auto call = [&](const auto& functor) {
      return attend(q.const_view(), kv.view(), {path, types.out}, Causal{}, {}, functor);
    };
    const Result all_dynamic = call(DynamicAttention{});
    EXPECT_TRUE(same_bits(all_dynamic, call(GroupedQueryAttention<QueryHeads, KvHeads, HeadDim, ValueDim>{})))
        << "all static";
    EXPECT_TRUE(same_bits(all_dynamic, call(GroupedQueryAttention<dynamic, dynamic, HeadDim, ValueDim>{})))
        << "static dims";
    EXPECT_TRUE(same_bits(all_dynamic, call(GroupedQueryAttention<QueryHeads, KvHeads, dynamic, dynamic>{})))
        << "static heads";
    EXPECT_TRUE(same_bits(all_dynamic, call(DynamicAttention({QueryHeads, KvHeads, HeadDim, ValueDim}))))
        << "extents from the constructor";
    EXPECT_TRUE(same_bits(all_dynamic, call(GroupedQueryAttention<QueryHeads, dynamic, HeadDim, dynamic>(
                                           {.kv_heads = KvHeads, .value_dim = ValueDim}))))
        << "some static, some from the constructor";
  }
}

TEST_P(Shapes, StaticIsDynamic) {
  static_is_dynamic<4, 2, 16, 16>(path(), type());
  static_is_dynamic<3, 3, 64, 64>(path(), type());
  static_is_dynamic<7, 1, 33, 20>(path(), type());
  static_is_dynamic<2, 1, 192, 128>(path(), type());
}

/// Pairs of head dim and value dim: multiples of 8 up to 576, values with tails, and different widths of K and V.
std::vector<std::pair<Index, Index>> widths() {
  std::vector<std::pair<Index, Index>> all;
  for (const Index d : {8, 16, 24, 40, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128, 136, 192, 200, 256, 320, 512, 568, 576})
    all.push_back({d, d});
  for (const Index d : {1, 3, 7, 15, 17, 31, 33, 100}) all.push_back({d, d});
  for (const auto& d : {std::pair<Index, Index>{192, 128}, {576, 512}, {8, 1}, {1, 8}, {33, 100}, {16, 72}, {40, 15}})
    all.push_back(d);
  return all;
}

TEST_P(Shapes, EveryWidthIsRightAndTheSameDecodedAlone) {
  for (const auto& [d, dv] : widths()) {
    const Problem p = make_problem({4, 2, d, dv, 5, 140}, 102);
    const Types types = cache_of(type());
    SCOPED_TRACE(describe(on(path()), types, p.shape));
    const Tensor q(p.q, types.q);
    const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
    const Result whole = attend(q.const_view(), kv.view(), {path()});
    EXPECT_TRUE(within_bound(q.const_view(), kv.view(), {path()}, Causal{}, whole));
    for (Index token = 0; token < 5; ++token)
      EXPECT_TRUE(same_bits(whole.slice(token, 1),
                            attend(q.const_view().slice(token, 1), first_tokens(kv.view(), 136 + token), {path()})))
          << "token " << token << " decoded alone";
  }
}

TEST_P(Shapes, EveryGroupSizeIsRight) {
  for (const Index group : {1, 2, 3, 4, 5, 6, 7, 8, 16, 29, 71, 128}) {
    const Problem p = make_problem({group * 2, 2, 16, 16, 2, 100}, 103);
    const Types types = cache_of(type());
    SCOPED_TRACE(describe(on(path()), types, p.shape));
    const Tensor q(p.q, types.q);
    const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
    EXPECT_TRUE(within_bound(q.const_view(), kv.view(), {path()}, Causal{}, attend(q.const_view(), kv.view(), {path()})));
  }
}

// Queries and outputs are f32, bf16 or f16, each independent of the cache. A query in a wider type that holds the same numbers is
// the same query on a path of f32 arithmetic, and an output in a narrower type is the f32 output, rounded.
TEST_P(Shapes, QueryAndOutputTypesAreIndependentOfTheCache) {
  Problem p = make_problem({4, 2, 40, 24, 3, detail::kSpan + 66}, 104);
  for (float& x : p.q.values) x = rounded_to(ElementType::bf16, rounded_to(ElementType::f16, x));
  for (float& x : p.q.values) ASSERT_EQ(x, rounded_to(ElementType::f16, x));
  std::vector<Result> with_f32_arithmetic;
  for (const ElementType q_type : kEveryType)
    for (const ElementType out_type : kEveryType) {
      const Types types{q_type, type(), type(), out_type};
      SCOPED_TRACE(describe(on(path()), types, p.shape));
      const Result exact = solve(p, {q_type, type(), type(), ElementType::f32}, {path()});
      Result rounded = exact;
      for (float& x : rounded.out) x = rounded_to(out_type, x);
      EXPECT_TRUE(same_bits(rounded, solve(p, types, {path()})));
      if (has_f32_arithmetic_only(path()) || type() != ElementType::bf16 || q_type != ElementType::bf16)
        with_f32_arithmetic.push_back(exact);
    }
  for (const Result& result : with_f32_arithmetic) EXPECT_TRUE(same_bits(with_f32_arithmetic.front(), result));
}

INSTANTIATE_TEST_SUITE_P(EveryPath, Shapes, Shapes::cases(), Shapes::name);

}  // namespace
}  // namespace gqa::test
