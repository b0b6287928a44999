// SPDX-License-Identifier: Apache-2.0
// Extents that do not fit together: those of a call with the functor's own, of sequences with each other, of spans with the views over them.
#include <gtest/gtest.h>

#include <span>
#include <vector>

#include "support/messages.hpp"
#include "support/spoilt_call.hpp"

namespace gqa::test {
namespace {

TEST(StaticExtents, AreHeldAgainstTheCall) {
  SpoiltCall f;
  const auto message = [&](const auto& functor) { return message_of([&] { functor(f.sequence, f.options); }); };
  EXPECT_EQ(message(GroupedQueryAttention<4, 2, 16, 24>{}), kNothingThrown);
  SpoiltCall g;
  const auto spoilt = [&](const auto& functor) { return message_of([&] { functor(g.sequence, g.options); }); };
  EXPECT_TRUE(says(spoilt(GroupedQueryAttention<8, 2, 16, 24>{}), "q.heads", "4", "8, the functor's query heads"));
  EXPECT_TRUE(says(spoilt(GroupedQueryAttention<4, 1, 16, 24>{}), "kv.kv_heads", "2", "1, the functor's KV heads"));
  EXPECT_TRUE(says(spoilt(GroupedQueryAttention<4, 2, 64, 24>{}), "q.dim", "16", "64, the functor's head dim"));
  EXPECT_TRUE(says(spoilt(GroupedQueryAttention<4, 2, 16>{}), "kv.value_dim", "24", "16, the functor's value dim"));
  EXPECT_TRUE(says(spoilt(DynamicAttention({.kv_heads = 4})), "kv.kv_heads", "2", "4, the functor's KV heads"));
  EXPECT_TRUE(g.out.untouched());
}

TEST(StaticCacheTypes, AreHeldAgainstTheCall) {
  SpoiltCall f;
  const auto message = [&](const auto& functor) { return message_of([&] { functor(f.sequence, f.options); }); };
  EXPECT_TRUE(says(message(GroupedQueryAttention<4, 2, 16, 24, CacheOf<bf16>>{}), "kv.k_type", "f32",
                   "bf16, as the functor's CacheOf says"));
  f.sequence.kv.v_type = ElementType::bf16;
  EXPECT_TRUE(says(message(GroupedQueryAttention<4, 2, 16, 24, CacheOf<f16, float>>{}), "kv.v_type", "bf16",
                   "f32 or f16, as the functor's CacheOf says"));
  EXPECT_TRUE(f.out.untouched());
  EXPECT_EQ(message(GroupedQueryAttention<4, 2, 16, 24, CacheOf<bf16, float>>{}), kNothingThrown);
}

TEST(StaticExtents, AreHeldAgainstTheConstructor) {
  EXPECT_TRUE(
      says(message_of([] { GroupedQueryAttention<8, 2, 64> a({.query_heads = 4}); }), "shape.query_heads", "4", "8"));
  EXPECT_TRUE(
      says(message_of([] { GroupedQueryAttention<8, 2, 64> a({.value_dim = 32}); }), "shape.value_dim", "32", "64"));
  EXPECT_TRUE(says(message_of([] { DynamicAttention a({.query_heads = 8, .kv_heads = 3}); }), "shape.kv_heads", "3",
                   "divisor of query_heads = 8"));
  EXPECT_TRUE(says(message_of([] { GroupedQueryAttention<8, dynamic, 64> a({.kv_heads = 5}); }), "shape.kv_heads", "5",
                   "divisor"));
  EXPECT_TRUE(says(message_of([] { DynamicAttention a({.head_dim = 0}); }), "shape.head_dim", "0", "positive"));
  EXPECT_TRUE(says(message_of([] { DynamicAttention a({.head_dim = -7}); }), "shape.head_dim", "-7", "positive"));
  EXPECT_EQ(message_of([] { GroupedQueryAttention<8, 2, 64> a({.query_heads = 8, .kv_heads = 2, .head_dim = 64}); }),
            kNothingThrown);
}

TEST(Batches, SequencesOfOneCallHaveOneShape) {
  SpoiltCall f;
  SpoiltCall other;
  other.sequence.q = other.sequence.q.slice_heads(0, 2);
  other.sequence.out = other.sequence.out.slice_heads(0, 2);
  other.sequence.kv = other.sequence.kv.slice_heads(0, 1);
  other.sequence.lse = other.sequence.lse.first(6);
  const Sequence batch[] = {f.sequence, other.sequence};
  EXPECT_TRUE(
      says(message_of([&] { DynamicAttention{}(batch, f.options); }), "batch[1].q.heads", "2", "batch[0].q.heads = 4"));
  EXPECT_TRUE(f.out.untouched() && other.out.untouched());
}

TEST(Spans, ThatAreTooShortAreNamedAtOnce) {
  const std::vector<float> memory(95);
  std::vector<float> writable(95);
  const std::span<const float> keys(memory);
  const auto queries = [&](Index tokens) {
    return message_of([&] { static_cast<void>(ConstTensorView(keys, tokens, 4, 8)); });
  };
  EXPECT_EQ(queries(2), kNothingThrown);
  EXPECT_TRUE(says(queries(3), "elements.size()", "95", "tokens * heads * dim = 96, for a tensor of 3 * 4 * 8"));
  EXPECT_TRUE(says(queries(-1), "elements.tokens", "-1", "0"));
  EXPECT_TRUE(says(queries(kHuge), "elements.tokens", number(kHuge), "63 bits"));
  EXPECT_TRUE(says(message_of([&] { static_cast<void>(TensorView(std::span<float>(writable), 3, 4, 8)); }),
                   "out.size()", "95", "96"));
  const auto cache = [&](KvShape shape) {
    return message_of([&] { static_cast<void>(KvCacheView::contiguous(keys, keys, shape)); });
  };
  EXPECT_EQ(cache({5, 2, 9}), kNothingThrown);
  EXPECT_TRUE(says(cache({6, 2, 8}), "keys.size()", "95", "length * kv_heads * head_dim = 96"));
  EXPECT_TRUE(says(cache({5, 2, 8, 10}), "values.size()", "95", "length * kv_heads * value_dim = 100"));
  EXPECT_TRUE(says(cache({-1, 2, 8}), "kv.length", "-1", "0"));
  EXPECT_TRUE(says(cache({kHuge, 2, 8}), "kv.length", number(kHuge), "63 bits"));
  EXPECT_TRUE(says(cache({5, 0, 8}), "kv.kv_heads", "0", "1"));
  EXPECT_TRUE(says(cache({5, 2, 0}), "kv.head_dim", "0", "1"));
}

}  // namespace
}  // namespace gqa::test
