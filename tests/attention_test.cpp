// SPDX-License-Identifier: Apache-2.0
// The functors' interface: how they are made, how they are called, and that every way to call them is the same call.
#include "gqa/attention.hpp"

#include <gtest/gtest.h>

#include <type_traits>

#include "support/problem.hpp"
#include "support/reference_check.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

static_assert(std::is_same_v<MultiHeadAttention<8, 64>, GroupedQueryAttention<8, 8, 64, 64>>);
static_assert(std::is_same_v<MultiHeadAttention<8, 64, 32>, GroupedQueryAttention<8, 8, 64, 32>>);
static_assert(std::is_same_v<MultiQueryAttention<8, 64>, GroupedQueryAttention<8, 1, 64, 64>>);
static_assert(std::is_same_v<DynamicAttention, GroupedQueryAttention<dynamic, dynamic, dynamic, dynamic>>);
static_assert(std::is_same_v<GroupedQueryAttention<8, 2, 64>, GroupedQueryAttention<8, 2, 64, 64>>);
static_assert(std::is_nothrow_default_constructible_v<GroupedQueryAttention<8, 2, 64>> ||
              std::is_default_constructible_v<GroupedQueryAttention<8, 2, 64>>);
static_assert(std::is_copy_constructible_v<DynamicAttention> && std::is_copy_assignable_v<DynamicAttention>);
static_assert(sizeof(DynamicAttention) <= 64, "cheap to construct and to copy");

TEST(Functor, KnowsItsShape) {
  const HeadShape fixed = GroupedQueryAttention<8, 2, 64, 32>{}.shape();
  EXPECT_EQ(fixed.query_heads, 8);
  EXPECT_EQ(fixed.kv_heads, 2);
  EXPECT_EQ(fixed.head_dim, 64);
  EXPECT_EQ(fixed.value_dim, 32);
  const HeadShape open = DynamicAttention{}.shape();
  EXPECT_EQ(open.query_heads, dynamic);
  EXPECT_EQ(open.value_dim, dynamic);
  const HeadShape mixed = GroupedQueryAttention<8, dynamic, 64, dynamic>({.kv_heads = 4}).shape();
  EXPECT_EQ(mixed.query_heads, 8);
  EXPECT_EQ(mixed.kv_heads, 4);
  EXPECT_EQ(mixed.head_dim, 64);
  EXPECT_EQ(mixed.value_dim, dynamic);
}

class Calls : public testing::Test {
 protected:
  Problem problem_ = make_problem({4, 2, 16, 24, 6, 80}, 211);
  Tensor q_{problem_.q, ElementType::f32};
  StoredCaches kv_ = store_cache(problem_.kv, ElementType::f32);
  Options options_ = How{best_f32_path()}.options();
  DynamicAttention attention_;

  template <class V = Causal>
  Result expected(const V& variant = {}) const {
    return solve(problem_, {}, {best_f32_path()}, variant);
  }
  Output output() const { return {ElementType::f32, 6, 4, 24}; }
  /// The outputs alone: some calls have no place for lse.
  static void expect_same_outputs(const Result& a, const Output& b) {
    Result actual = b.result();
    actual.lse = a.lse;
    EXPECT_TRUE(same_bits(a, actual));
  }
};

TEST_F(Calls, EveryOverloadIsTheSameCall) {
  const auto q = q_.const_view();
  const KvCacheView& kv = kv_.view();
  const auto check = [&](const Result& result, const auto& call) {
    Output out = output();
    call(out.view(), out.lse());
    if (std::bit_cast<std::uint32_t>(out.lse()[0]) == 0x5a5a5a5au) std::fill(out.lse().begin(), out.lse().end(), 0.0f);
    expect_same_outputs(result, out);
  };
  check(expected(), [&](const TensorView& out, std::span<float>) { attention_(q, kv, out, options_); });
  check(expected(), [&](const TensorView& out, std::span<float>) { attention_(q, kv, out, Causal{}, options_); });
  check(expected(), [&](const TensorView& out, std::span<float> lse) { attention_(Sequence{q, kv, out, {}, lse}, options_); });
  check(expected(Full{}), [&](const TensorView& out, std::span<float>) { attention_(q, kv, out, Full{}, options_); });
  check(expected(Full{}),
        [&](const TensorView& out, std::span<float> lse) { attention_(Sequence{q, kv, out, {}, lse}, Full{}, options_); });
  check(expected(), [&](const TensorView& out, std::span<float> lse) {
    const Sequence batch[] = {{q, kv, out, {}, lse}};
    attention_(batch, options_);
  });
  check(expected(CausalWindow{9}), [&](const TensorView& out, std::span<float> lse) {
    const std::vector<Sequence> batch = {{q, kv, out, {}, lse}};
    attention_(batch, CausalWindow{9}, options_);
  });
}

TEST_F(Calls, TheDefaultsAreTheActivePathAndSerial) {
  Output explicit_out = output();
  Output default_out = output();
  Options explicit_options;
  explicit_options.path = active_path().path;
  explicit_options.scale = 1.0f / std::sqrt(16.0f);
  attention_(Sequence{q_.const_view(), kv_.view(), explicit_out.view(), {}, explicit_out.lse()}, explicit_options);
  attention_(Sequence{q_.const_view(), kv_.view(), default_out.view(), {}, default_out.lse()});
  EXPECT_TRUE(same_bits(explicit_out.result(), default_out.result()));
  Output quick = output();
  attention_(q_.const_view(), kv_.view(), quick.view());
  std::fill(quick.lse().begin(), quick.lse().end(), 0.0f);
  expect_same_outputs(default_out.result(), quick);
}

TEST_F(Calls, LseChangesNothingAndComesInTokenThenHeadOrder) {
  Output with = output();
  attention_(Sequence{q_.const_view(), kv_.view(), with.view(), {}, with.lse()}, options_);
  const ReferenceResult reference = reference_attention(q_.const_view(), kv_.view());
  for (Index row = 0; row < 24; ++row)
    EXPECT_NEAR(static_cast<double>(with.lse()[static_cast<std::size_t>(row)]), reference.lse[row], 1e-5) << "row " << row;
  EXPECT_TRUE(same_bits(expected(), with.result()));
}

// The default positions are the last n_q of the cache; given ones may stand anywhere, in any order, more than once, and past the
// cache's end.
TEST_F(Calls, PositionsAreTheLastOfTheCacheOrAsGiven) {
  const How how{best_f32_path()};
  const std::vector<Index> usual = {74, 75, 76, 77, 78, 79};
  EXPECT_TRUE(same_bits(expected(), attend(q_.const_view(), kv_.view(), how, Causal{}, usual)));
  const std::vector<Index> scattered = {40, 3, 79, 3, 0, 500};
  const Result result = attend(q_.const_view(), kv_.view(), how, Causal{}, scattered);
  EXPECT_TRUE(within_bound(q_.const_view(), kv_.view(), how, Causal{}, result, scattered));
  for (std::size_t i = 0; i < scattered.size(); ++i) {
    const auto token = static_cast<Index>(i);
    const std::vector<Index> alone = {scattered[i]};
    EXPECT_TRUE(same_bits(result.slice(token, 1),
                          attend(q_.const_view().slice(token, 1), kv_.view(), how, Causal{}, alone)));
  }
}

TEST_F(Calls, AnEmptyBatchAndAnIdleSequenceDoNothing) {
  attention_(std::span<const Sequence>{}, options_);
  EXPECT_EQ(attention_.scratch_bytes(std::span<const Sequence>{}, options_), 0u);
  // No queries: neither their memory nor the output's is looked at.
  const ConstTensorView no_queries(static_cast<const float*>(nullptr), 0, 4, 16);
  const TensorView no_outputs(static_cast<float*>(nullptr), 0, 4, 24);
  attention_(no_queries, kv_.view(), no_outputs, options_);
  // No tokens: the cache's memory is not looked at.
  Output out = output();
  const KvCacheView empty =
      KvCacheView::contiguous(static_cast<const float*>(nullptr), static_cast<const float*>(nullptr), {0, 2, 16, 24});
  attention_(Sequence{q_.const_view(), empty, out.view(), {}, out.lse()}, options_);
  for (const float x : out.result().out) EXPECT_EQ(x, 0.0f);
}

TEST_F(Calls, SlicesOfTokensAndHeadsAreTheirPartOfTheWhole) {
  const Result whole = expected();
  Output out = output();
  const TensorView& all = out.view();
  for (Index kv_head = 0; kv_head < 2; ++kv_head)
    for (const auto& [first, count] : {std::pair<Index, Index>{0, 2}, {2, 4}})
      attention_(q_.const_view().slice(first, count).slice_heads(2 * kv_head, 2),
                 first_tokens(kv_.view(), 74 + first + count).slice_heads(kv_head, 1),
                 all.slice(first, count).slice_heads(2 * kv_head, 2), options_);
  std::fill(out.lse().begin(), out.lse().end(), 0.0f);
  expect_same_outputs(whole, out);
}

TEST_F(Calls, ViewsComeFromSpansToo) {
  Output out = output();
  const std::span<const float> q(problem_.q.values);
  const std::span<const float> k(problem_.kv.k.values);
  const std::span<const float> v(problem_.kv.v.values);
  std::vector<float> result(6 * 4 * 24);
  attention_(ConstTensorView(q, 6, 4, 16), KvCacheView::contiguous(k, v, {80, 2, 16, 24}),
             TensorView(std::span<float>(result), 6, 4, 24), options_);
  EXPECT_EQ(result, expected().out);
  std::vector<bf16> narrow(result.size());
  attention_(ConstTensorView(q, 6, 4, 16), KvCacheView::contiguous(k, v, {80, 2, 16, 24}),
             TensorView(std::span<bf16>(narrow), 6, 4, 24), options_);
  for (std::size_t i = 0; i < narrow.size(); ++i) EXPECT_EQ(narrow[i].bits, bf16(result[i]).bits);
}

TEST_F(Calls, ScratchBytesIsEnoughAndNotWasteful) {
  Output out = output();
  const Sequence sequence{q_.const_view(), kv_.view(), out.view(), {}, out.lse()};
  Options options = options_;
  const std::size_t bytes = attention_.scratch_bytes({&sequence, 1}, options);
  std::vector<std::byte> scratch(bytes);
  options.scratch = scratch;
  attention_(sequence, options);
  EXPECT_TRUE(same_bits(expected(), out.result()));
  const std::size_t larger = bytes + 1000;
  scratch.resize(larger);
  options.scratch = scratch;
  attention_(sequence, Full{}, options);
  EXPECT_TRUE(same_bits(expected(Full{}), out.result()));
}

}  // namespace
}  // namespace gqa::test
