// SPDX-License-Identifier: Apache-2.0
// The same bits of every gradient, whatever the company: threads, executors, batches, storages, strides, paths and what else is wanted.
#include <gtest/gtest.h>

#include "gqa/thread_pool.hpp"
#include "gqa/variants.hpp"
#include "support/backward_call.hpp"
#include "support/executors.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

class BackwardPromises : public PerPathAndType {
 protected:
  /// Several tiles of rows and columns of tokens; fewer of them where a fused multiply-add is a function call.
  Shape shape() const { return path() == Path::portable ? Shape{4, 2, 9, 6, 40, 300} : Shape{4, 2, 24, 20, 70, 600}; }
  BackwardHow how() const { return {.path = path()}; }
};

TEST_P(BackwardPromises, AnyNumberOfThreads) {
  const StoredProblem p(shape(), 801, type());
  const float logits[] = {0.5f, 3.0f, -2.0f, 0.0f};
  const auto variant = compose(CausalWindow{290}, LearnedSinks{logits});
  const Gradients expected = differentiate(p.inputs(), how(), variant);
  for (int threads = 1; threads <= 5; ++threads) {
    ThreadPoolExecutor pool(threads);
    ThreadsExecutor fresh{threads};
    for (const ExecutorRef& executor : {ExecutorRef(pool), ExecutorRef(fresh)})
      for (int repeat = 0; repeat < 3; ++repeat) {
        BackwardHow with = how();
        with.executor = executor;
        ASSERT_TRUE(same_gradients(expected, differentiate(p.inputs(), with, variant))) << threads << " threads";
      }
  }
}

TEST_P(BackwardPromises, AnyOrderOfTasks) {
  const StoredProblem p(shape(), 802, type());
  const Gradients expected = differentiate(p.inputs(), how());
  BackwardHow with = how();
  BackwardExecutor reversed;
  with.executor = reversed;
  EXPECT_TRUE(same_gradients(expected, differentiate(p.inputs(), with)));
  ShuffledExecutor shuffled{7, 6};
  with.executor = shuffled;
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(same_gradients(expected, differentiate(p.inputs(), with)));
}

TEST_P(BackwardPromises, AloneOrInABatchOfOtherTypes) {
  // Also a sequence without queries, one without tokens and one without both among them.
  const Shape shapes[] = {{4, 2, 16, 12, 7, 290}, {4, 2, 16, 12, 0, 300}, {4, 2, 16, 12, 3, 0},
                          {4, 2, 16, 12, 0, 0},   {4, 2, 16, 12, 1, 70},  {4, 2, 16, 12, 40, 40}};
  std::vector<StoredProblem> all;
  for (std::size_t i = 0; i < std::size(shapes); ++i)
    all.emplace_back(shapes[i], 810 + i, kEveryType[(static_cast<std::size_t>(type()) + i) % 3],
                     i == 0 ? paged_place(16) : Place{});
  std::vector<Output> outputs;
  std::vector<GradientTensors> memory;
  for (const StoredProblem& p : all) {
    outputs.push_back(run_forward(p.inputs(), how(), Sinks{}));
    memory.push_back(GradientTensors::of<Sinks>(p.inputs()));
  }
  for (const int threads : {1, 4}) {
    std::vector<Sequence> batch;
    std::vector<SequenceGradients> gradients;
    for (std::size_t i = 0; i < all.size(); ++i) {
      const BackwardInputs in = all[i].inputs();
      batch.push_back({in.q, in.kv, outputs[i].view(), {}, outputs[i].lse()});
      memory[i] = GradientTensors::of<Sinks>(in);
      gradients.push_back(memory[i].gradients(in.d_out));
    }
    ThreadsExecutor executor{threads};
    BackwardHow with = how();
    with.executor = executor;
    DynamicAttentionBackward{}(batch, gradients, Sinks{}, with.options());
    for (std::size_t i = 0; i < all.size(); ++i)
      EXPECT_TRUE(same_gradients(run_backward(all[i].inputs(), outputs[i], how(), Sinks{}), memory[i].result()))
          << "sequence " << i << ", " << threads << " threads";
  }
}

TEST_P(BackwardPromises, EveryStorageAndStride) {
  const Shape shape{4, 2, 18, 10, 30, 310};
  const CausalWindow variant{200};
  const StoredProblem plain(shape, 821, type());
  const Gradients expected = differentiate(plain.inputs(), how(), variant);
  for (const CacheLayout layout : kCacheLayouts)
    for (const Place& place : {contiguous_place(layout, 333), ring_place(310, layout), ring_place(400, layout),
                               paged_place(64, layout, 3), paged_place(1, layout, 4), paged_place(23, layout, 5)}) {
      const StoredProblem other(shape, 821, type(), place);
      EXPECT_TRUE(same_gradients(expected, differentiate(other.inputs(), how(), variant))) << place.name();
    }
  for (const TensorLayout layout : kTensorLayouts) {
    const StoredProblem other(shape, 821, type(), {}, layout);
    BackwardHow with = how();
    if (layout != TensorLayout::dim_major) with.layout = layout;
    EXPECT_TRUE(same_gradients(expected, differentiate(other.inputs(), with, variant))) << layout_name(layout);
  }
  // A ring that has lost its first positions: gradients of those that it has.
  const StoredProblem ring(shape, 821, type(), ring_place(240));
  const Gradients of_ring = differentiate(ring.inputs(), how(), variant);
  EXPECT_TRUE(same_numbers(expected.d_q, of_ring.d_q, "d_q"));
  for (Index t = 70; t < 310; ++t)
    for (Index h = 0; h < 2; ++h) {
      for (Index d = 0; d < 18; ++d) ASSERT_EQ(expected.d_k.at(t, h, d), of_ring.d_k.at(t - 70, h, d)) << t;
      for (Index d = 0; d < 10; ++d) ASSERT_EQ(expected.d_v.at(t, h, d), of_ring.d_v.at(t - 70, h, d)) << t;
    }
}

TEST_P(BackwardPromises, PartsOfACache) {
  const Shape shape{4, 2, 18, 10, 30, 310};
  const StoredProblem whole(shape, 822, type());
  const StoredProblem pages(shape, 822, type(), paged_place(16));
  const StoredProblem ring(shape, 822, type(), ring_place(310 - 128));
  KvCacheView earlier[] = {first_tokens(whole.inputs().kv, 64), first_tokens(pages.inputs().kv, 128)};
  BackwardInputs in = ring.inputs();
  in.kv.earlier = earlier;
  in.kv.earlier_count = 2;
  EXPECT_TRUE(same_gradients(differentiate(whole.inputs(), how()), differentiate(in, how())));
}

TEST_P(BackwardPromises, HeadCountsOfTheTypeOrTheCall) {
  const Shape shape{6, 2, 24, 16, 20, 270};
  const StoredProblem p(shape, 823, type());
  Output forward = run_forward(p.inputs(), how(), Causal{});
  const Gradients expected = run_backward(p.inputs(), forward, how(), Causal{});
  const GroupedQueryAttentionBackward<6, 2, 24, 16> fixed;
  EXPECT_TRUE(same_gradients(expected, run_backward(p.inputs(), forward, how(), Causal{}, {}, fixed)));
  const DynamicAttentionBackward constructed(HeadShape{6, 2, 24, 16});
  EXPECT_TRUE(same_gradients(expected, run_backward(p.inputs(), forward, how(), Causal{}, {}, constructed)));
}

TEST_P(BackwardPromises, WhatElseIsWanted) {
  const StoredProblem p(shape(), 824, type());
  Output forward = run_forward(p.inputs(), how(), Sinks{});
  const Gradients all = run_backward(p.inputs(), forward, how(), Sinks{});
  for (int which = 0; which < 7; ++which) {
    const Wanted wanted{(which & 1) != 0, (which & 2) != 0, (which & 4) != 0};
    const Gradients some = run_backward(p.inputs(), forward, how(), Sinks{}, wanted);
    if (wanted.d_q) {
      EXPECT_TRUE(same_numbers(all.d_q, some.d_q, "d_q"));
    }
    if (wanted.d_k) {
      EXPECT_TRUE(same_numbers(all.d_k, some.d_k, "d_k"));
    }
    if (wanted.d_v) {
      EXPECT_TRUE(same_numbers(all.d_v, some.d_v, "d_v"));
    }
    EXPECT_TRUE(same_floats(all.d_sink, some.d_sink, "d_sink"));
  }
  // No sinks' gradients.
  const BackwardInputs in = p.inputs();
  auto memory = GradientTensors::of<Sinks>(in);
  SequenceGradients gradients = memory.gradients(in.d_out);
  gradients.d_sink = {};
  DynamicAttentionBackward{}(Sequence{in.q, in.kv, forward.view(), {}, forward.lse()}, gradients, Sinks{},
                             how().options());
  EXPECT_TRUE(same_numbers(all.d_q, memory.result().d_q, "d_q"));
  EXPECT_TRUE(same_numbers(all.d_k, memory.result().d_k, "d_k"));
}

INSTANTIATE_TEST_SUITE_P(EveryPath, BackwardPromises, BackwardPromises::cases(), BackwardPromises::name);

/// Numbers that every type has.
StoredProblem in_type(ElementType type) {
  const Shape shape{4, 2, 21, 34, 50, 290};
  Problem p = make_problem(shape, 831);
  Numbers d_out = StoredProblem::draw_d_out(shape, 831);
  for (Numbers* numbers : {&p.q, &p.kv.k, &p.kv.v, &d_out})
    for (float& x : numbers->values) x = std::round(x * 16.0f) / 16.0f;
  return {p, d_out, type};
}

TEST(BackwardPaths, OfF32ArithmeticAndTypesOfTheSameNumbersAgree) {
  report_paths_not_run();
  const float slopes[] = {0.5f, 0.25f, 0.125f, 1.0f};
  const float logits[] = {0.5f, 3.0f, -2.0f, 0.0f};
  const auto variant = compose(Causal{}, gqa::SoftCap{3.0f}, gqa::Alibi{slopes}, LearnedSinks{logits, false});
  const StoredProblem f32 = in_type(ElementType::f32);
  // One forward call for all: its own paths are not what this is about.
  Output forward = run_forward(f32.inputs(), {.path = Path::portable}, variant);
  const Gradients expected = run_backward(f32.inputs(), forward, {.path = Path::portable}, variant);
  for (const Path path : available_paths()) {
    EXPECT_TRUE(same_gradients(expected, run_backward(f32.inputs(), forward, {.path = path}, variant))) << on(path);
    for (const ElementType type : {ElementType::bf16, ElementType::f16}) {
      if (type == ElementType::bf16 && !has_f32_arithmetic_only(path)) continue;
      EXPECT_TRUE(same_gradients(expected, run_backward(in_type(type).inputs(), forward, {.path = path}, variant)))
          << on(path) << ", " << element_name(type);
    }
    if (has_f32_arithmetic_only(path)) {
      EXPECT_TRUE(same_gradients(
          expected, run_backward(f32.inputs(), forward, {.path = path, .products = Products::bf16}, variant)))
          << on(path);
    }
  }
}

// GQA's own rows are MHA's over repeated heads.
TEST(BackwardPaths, QueriesOfGroupsAreThoseOfRepeatedHeads) {
  const Shape shape{6, 2, 20, 12, 30, 300};
  const Problem p = make_problem(shape, 841);
  Problem repeated = make_problem({6, 6, 20, 12, 30, 300}, 841);
  repeated.q = p.q;
  for (Index t = 0; t < 300; ++t)
    for (Index h = 0; h < 6; ++h) {
      for (Index d = 0; d < 20; ++d) repeated.kv.k.at(t, h, d) = p.kv.k.at(t, h / 3, d);
      for (Index d = 0; d < 12; ++d) repeated.kv.v.at(t, h, d) = p.kv.v.at(t, h / 3, d);
    }
  const Numbers d_out = StoredProblem::draw_d_out(shape, 841);
  for (const Path path : available_paths())
    for (const ElementType type : kEveryType) {
      const StoredProblem gqa(p, d_out, type), mha(repeated, d_out, type);
      const Gradients of_gqa = differentiate(gqa.inputs(), {.path = path}, Sinks{});
      const Gradients of_mha = differentiate(mha.inputs(), {.path = path}, Sinks{});
      EXPECT_TRUE(same_numbers(of_gqa.d_q, of_mha.d_q, "d_q")) << on(path) << ", " << element_name(type);
      EXPECT_TRUE(same_floats(of_gqa.d_sink, of_mha.d_sink, "d_sink")) << on(path) << ", " << element_name(type);
    }
}

}  // namespace
}  // namespace gqa::test
