// SPDX-License-Identifier: Apache-2.0
// Gradients are those by definition, up to what rounding explains: shapes, masks, positions, storages and distributions.
#include "gqa/backward.hpp"

#include <gtest/gtest.h>

#include "gqa/variants.hpp"
#include "support/backward_cases.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

class Backward : public BackwardPerPathAndType {};

TEST_P(Backward, EveryGroupingAndWidth) {
  // MHA, GQA, MQA; odd and even widths around vectors of 16 and panels of 32; tiles of 64 rows, blocks of 64 and columns of 256 tokens.
  std::vector<Shape> shapes{{4, 4, 16, 16, 5, 5}, {4, 2, 1, 1, 7, 9},    {6, 2, 64, 64, 20, 64}, {4, 1, 3, 5, 17, 70},
                            {2, 1, 31, 33, 3, 3}, {1, 1, 15, 47, 1, 65}, {2, 2, 34, 18, 1, 1}};
  if (!slow())
    shapes.insert(shapes.end(), {{8, 2, 17, 33, 40, 300},
                                 {5, 5, 80, 48, 3, 257},
                                 {2, 1, 260, 259, 4, 66},
                                 {7, 1, 31, 260, 10, 64},
                                 {2, 2, 129, 2, 65, 129},
                                 {3, 1, 128, 128, 1, 513},
                                 {16, 2, 96, 112, 9, 256},
                                 {71, 1, 8, 8, 2, 100}});
  std::uint64_t seed = 501;
  for (const Shape& shape : shapes) hold(shape, seed++);
}

TEST_P(Backward, RangesAndMasks) {
  const Shape shape = slow() ? Shape{4, 2, 9, 6, 12, 80} : Shape{4, 2, 20, 24, 50, 330};
  hold(shape, 521, Full{});
  for (const Index window : {1, 20, 64}) hold(shape, 522, CausalWindow{window});
  hold(shape, 523, FirstTokensAndWindow{3, 40});
  hold(shape, 524, SinksAndWindowRanges{70, 5});
  hold(shape, 525, TwoSidedWindow{7, 3});
  hold(shape, 526, PackedDocuments{23});
  hold(shape, 527, Sieve{});
  hold(shape, 528, SieveOfRows{});
  hold(shape, 529, SieveOfWords{});
  hold(shape, 530, StrictlyBeforeOdd{});
}

TEST_P(Backward, ATreeOfDraftTokens) {
  constexpr std::int32_t parents[] = {-1, 0, 0, 1, 2, 2, 5};
  std::uint64_t ancestors[7];
  DraftTree::fill_ancestors(parents, ancestors);
  hold({4, 2, 16, 12, 7, 77}, 531, DraftTree{70, parents, ancestors});
}

TEST_P(Backward, Positions) {
  const StoredProblem few({4, 2, 12, 8, 5, 70}, 541, type());
  const Index positions[] = {69, 0, 33, 64, 1000000};
  BackwardInputs in = few.inputs();
  in.positions = positions;
  hold(in);
  hold(in, CausalWindow{30});  // of which the last sees nothing

  const StoredProblem many({4, 2, 12, 8, 20, 7}, 542, type());
  std::vector<Index> more(20);
  for (Index i = 0; i < 20; ++i) more[static_cast<std::size_t>(i)] = i % 9 - 1;  // and one before the cache
  in = many.inputs();
  in.positions = more;
  hold(in);
  hold(in, Full{});
}

TEST_P(Backward, ChunksOfQueriesAndOneToken) {
  hold({4, 2, 16, 16, 1, 130}, 551);
  hold({6, 3, 16, 16, 33, 100}, 552);
  hold({2, 1, 16, 16, 70, 70}, 553);
}

TEST_P(Backward, NothingCachedAndNothingAsked) {
  for (const Shape& shape : {Shape{4, 2, 5, 3, 3, 0}, Shape{4, 2, 5, 3, 0, 9}, Shape{4, 2, 5, 3, 0, 0}}) {
    SCOPED_TRACE(describe(shape));
    const StoredProblem stored(shape, 561, type());
    for (const BackwardHow& how : hows()) {
      const Gradients all = differentiate(stored.inputs(), how, Sinks{});
      EXPECT_EQ(all.d_k.tokens, shape.n_kv);
      for (const Numbers* numbers : {&all.d_q, &all.d_k, &all.d_v})
        for (const float x : numbers->values) EXPECT_EQ(x, 0.0f);
      for (const float x : all.d_sink) EXPECT_EQ(x, 0.0f);
    }
  }
}

TEST_P(Backward, ARingWithoutPositions) {
  // Its oldest position lies beyond its length: nothing is there, and nothing is seen.
  StoredProblem p({4, 2, 5, 3, 3, 9}, 565, type(), ring_place(20));
  BackwardInputs in = p.inputs();
  in.kv.oldest = 15;
  const Index positions[] = {-1, -2, -3};
  in.positions = positions;
  for (const BackwardHow& how : hows()) {
    const Gradients all = differentiate(in, how, Sinks{});
    EXPECT_EQ(all.d_k.tokens, 0);
    for (const float x : all.d_q.values) EXPECT_EQ(x, 0.0f);
    for (const float x : all.d_sink) EXPECT_EQ(x, 0.0f);
  }
}

TEST_P(Backward, EveryStorage) {
  const Shape shape = slow() ? Shape{4, 2, 9, 6, 5, 90} : Shape{4, 2, 24, 20, 30, 300};
  const Index capacity = shape.n_q + 50;
  for (const CacheLayout layout : kCacheLayouts) {
    hold(shape, 571, Causal{}, contiguous_place(layout, shape.n_kv + 9));
    hold(shape, 572, CausalWindow{40}, ring_place(capacity, layout));
    hold(shape, 573, Causal{}, paged_place(7, layout));
  }
}

TEST_P(Backward, ACacheInParts) {
  const Shape shape{4, 2, 16, 12, 9, 150};
  const Problem p = make_problem(shape, 581);
  const StoredProblem whole(shape, 581, type());
  const StoredCaches first = store_cache(p.kv, ElementType::bf16, paged_place(16));
  const StoredCaches second = store_cache(p.kv, ElementType::f16, contiguous_place(CacheLayout::head_major));
  KvCacheView earlier[] = {first_tokens(first.view(), 64), first_tokens(second.view(), 128)};
  BackwardInputs in = whole.inputs();
  in.kv.earlier = earlier;
  in.kv.earlier_count = 2;
  hold(in);
  hold(in, CausalWindow{70});
}

TEST_P(Backward, EveryDistribution) {
  for (const Distribution distribution : {Distribution::sinks, Distribution::large_scores, Distribution::dominant_key,
                                          Distribution::equal_keys, Distribution::far_values, Distribution::denormal}) {
    // Scores of 10,000 have errors that leave nothing of weights where operands are rounded.
    if (distribution == Distribution::large_scores && type() == ElementType::f16) continue;
    const Shape shape{4, 2, 16, 16, 9, 90};
    const StoredProblem stored(make_problem(shape, 591, distribution), StoredProblem::draw_d_out(shape, 591), type());
    for (const BackwardHow& how : hows()) {
      if (distribution == Distribution::large_scores && how.products == Products::bf16) continue;
      EXPECT_TRUE(gradients_are_right(stored.inputs(), how)) << distribution_name(distribution);
    }
  }
}

TEST_P(Backward, TheScaleAndOutputsOfEveryType) {
  const StoredProblem stored({4, 2, 16, 16, 9, 90}, 601, type());
  for (const float scale : {0.0f, -0.125f, 0.5f})
    for (const ElementType out : kEveryType)
      for (BackwardHow how : hows()) {
        how.scale = scale;
        how.out = out;
        EXPECT_TRUE(gradients_are_right(stored.inputs(), how)) << scale << ", " << element_name(out);
      }
}

INSTANTIATE_TEST_SUITE_P(EveryPath, Backward, Backward::cases(), Backward::name);

}  // namespace
}  // namespace gqa::test
