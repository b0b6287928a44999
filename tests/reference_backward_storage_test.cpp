// SPDX-License-Identifier: Apache-2.0
// The gradients by definition do not depend on how their arguments are stored; and what is wrong with these is named.
#include <gtest/gtest.h>

#include "gqa/codec/q8_0.hpp"
#include "gqa/reference_backward.hpp"
#include "gqa/variants.hpp"
#include "support/caches.hpp"
#include "support/messages.hpp"
#include "support/problem.hpp"

namespace gqa::test {
namespace {

constexpr Index kLength = 150;
constexpr Shape kShape{4, 2, 6, 3, 5, kLength};

/// Numbers that bf16 and f16 have too: multiples of 1/16 below 4.
Numbers coarse(Numbers numbers) {
  for (float& x : numbers.values) x = std::round(x * 16.0f) / 16.0f;
  return numbers;
}

class StoredGradients : public testing::Test {
 protected:
  StoredGradients() {
    const Problem p = make_problem(kShape, 451);
    q_ = coarse(p.q);
    cache_ = {coarse(p.kv.k), coarse(p.kv.v)};
    d_out_ = coarse(make_problem({4, 1, 3, 1, 5, 1}, 452).q);
  }
  StoredCaches stored(ElementType type, const Place& place) const { return store_cache(cache_, type, place); }

  /// Of queries and output gradients in types and layouts that differ.
  template <class V>
  ReferenceGradients gradients(const KvCacheView& kv, const V& variant, ElementType type = ElementType::f32,
                               TensorLayout layout = TensorLayout::packed) const {
    const Tensor q(q_, type, layout);
    const Tensor d_out(d_out_, type, layout);
    return reference_backward(q.const_view(), kv, d_out.const_view(), variant);
  }
  /// Those of `all`, of the positions from `first` on.
  static void expect_same(const ReferenceGradients& all, const ReferenceGradients& given, Index first) {
    EXPECT_EQ(all.d_q, given.d_q);
    EXPECT_EQ(all.d_k.bottomRows((kLength - first) * 2), given.d_k);
    EXPECT_EQ(all.d_v.bottomRows((kLength - first) * 2), given.d_v);
    EXPECT_EQ(all.d_k.topRows(first * 2).cwiseAbs().sum(), 0.0);
  }

  Numbers q_;
  LogicalCache cache_;
  Numbers d_out_;
};

TEST_F(StoredGradients, AreTheSameOfEveryStorageTypeAndLayout) {
  const StoredCaches plain = stored(ElementType::f32, {});
  const ReferenceGradients window = gradients(plain.view(), CausalWindow{40});
  EXPECT_GT(window.d_k.bottomRows(88).cwiseAbs().maxCoeff(), 0.01);
  for (const ElementType type : {ElementType::f32, ElementType::bf16, ElementType::f16})
    for (const Place& place : {contiguous_place(CacheLayout::padded), paged_place(7, CacheLayout::head_major),
                               ring_place(64, CacheLayout::reversed)}) {
      SCOPED_TRACE(describe(element_name(type), place.name()));
      const StoredCaches kv = stored(type, place);
      const Index first = kv.view().first_position();
      EXPECT_EQ(first, place.storage == Storage::ring ? kLength - 64 : 0);
      expect_same(window, gradients(kv.view(), CausalWindow{40}, type, TensorLayout::dim_major), first);
      expect_same(window, gradients(kv.view(), CausalWindow{40}, type, TensorLayout::reversed), first);
    }
}

TEST_F(StoredGradients, AreTheSameOfACacheInParts) {
  const StoredCaches plain = stored(ElementType::f32, {});
  const StoredCaches first = stored(ElementType::bf16, paged_place(16));
  const StoredCaches second = stored(ElementType::f16, contiguous_place(CacheLayout::head_major));
  const StoredCaches last = stored(ElementType::f32, ring_place(22));  // positions 128 … 149
  KvCacheView earlier[] = {first_tokens(first.view(), 64), first_tokens(second.view(), 128)};
  KvCacheView parts = last.view();
  parts.earlier = earlier;
  parts.earlier_count = 2;
  expect_same(gradients(plain.view(), Causal{}), gradients(parts, Causal{}), 0);

  earlier[0] = first_tokens(plain.view(), 64);  // without its first 10 tokens
  earlier[0].oldest = 10;
  earlier[0].k = plain.k_address(10, 0, 0);
  earlier[0].v = plain.v_address(10, 0, 0);
  expect_same(gradients(plain.view(), CausalWindow{130}), gradients(parts, CausalWindow{130}), 10);
}

TEST_F(StoredGradients, OfNoTokensAreEmpty) {
  const StoredCaches plain = stored(ElementType::f32, {});
  const ReferenceGradients none = gradients(first_tokens(plain.view(), 0), Full{});
  EXPECT_EQ(none.d_k.rows(), 0);
  EXPECT_EQ(none.d_v.rows(), 0);
  EXPECT_EQ(none.d_q, Eigen::MatrixXd::Zero(20, 6));
  ConstTensorView q(nullptr, ElementType::f32, 0, 4, 6);
  ConstTensorView d_out(nullptr, ElementType::f32, 0, 4, 3);
  const ReferenceGradients no_queries = reference_backward(q, plain.view(), d_out, Causal{});
  EXPECT_EQ(no_queries.d_q.rows(), 0);
  EXPECT_EQ(no_queries.d_k, Eigen::MatrixXd::Zero(kLength * 2, 6));
}

/// What is seen shows, as it does in outputs, and nothing else does.
TEST_F(StoredGradients, ANaNThatIsSeenShowsAndOneThatIsNotDoesNot) {
  StoredCaches kv = stored(ElementType::f32, {});
  const float nan = std::numeric_limits<float>::quiet_NaN();
  write_element(kv.v_address(148, 1, 0), ElementType::f32, nan);
  const ReferenceGradients g = gradients(kv.view(), Causal{});  // the queries are 145 … 149
  for (Index i = 0; i < 5; ++i)
    for (Index h = 0; h < 4; ++h) EXPECT_EQ(g.d_q.row(i * 4 + h).hasNaN(), i >= 3 && h >= 2) << i << ", " << h;
}

class Refusals : public StoredGradients {
 protected:
  struct Call {
    ConstTensorView q, d_out;
    KvCacheView kv;
    std::vector<Index> positions;
  };
  /// What is said of a call that `spoil` has changed.
  template <class Spoil, class V = Causal>
  std::string said(const Spoil& spoil, const V& variant = {}) const {
    const Tensor q(q_, ElementType::f32);
    const Tensor d_out(d_out_, ElementType::f32);
    const StoredCaches plain = stored(ElementType::f32, {});
    Call call{q.const_view(), d_out.const_view(), plain.view(), {}};
    spoil(call);
    return message_of([&] { reference_backward(call.q, call.kv, call.d_out, variant, {}, call.positions); });
  }
};

TEST_F(Refusals, NameTheGradientOfOutputs) {
  EXPECT_EQ(said([](Call&) {}), kNothingThrown);
  EXPECT_TRUE(says(said([](Call& c) { c.d_out.tokens = 4; }), "d_out.tokens", "4", "q.tokens = 5"));
  EXPECT_TRUE(says(said([](Call& c) { c.d_out.heads = 2; }), "d_out.heads", "2", "q.heads = 4"));
  EXPECT_TRUE(says(said([](Call& c) { c.d_out.dim = 6; }), "d_out.dim", "6", "kv.value_dim = 3"));
  EXPECT_TRUE(says(said([](Call& c) { c.d_out.data = nullptr; }), "d_out.data", "null", "f32"));
  EXPECT_TRUE(
      says(said([](Call& c) { c.d_out.type = static_cast<ElementType>(99); }), "d_out.type", "99", "ElementType"));
  EXPECT_TRUE(says(said([](Call& c) { c.d_out.strides.token = Index{1} << 50; }), "d_out.strides.token",
                   "1125899906842624", "48 bits"));
  EXPECT_TRUE(says(said([](Call& c) { c.d_out.data = static_cast<const std::byte*>(c.d_out.data) + 1; }), "d_out.data",
                   "misaligned", "multiple of 4"));
}

TEST_F(Refusals, NameWhatTheDefinitionRefusesToo) {
  EXPECT_TRUE(says(said([](Call& c) { c.q.dim = 5; }), "kv.head_dim", "6", "q.dim = 5"));
  EXPECT_TRUE(says(said([](Call& c) { c.positions = {1, 2}; }), "positions.size()", "2", "q.tokens = 5"));
  EXPECT_TRUE(says(said([](Call&) {}, CausalWindow{0}), "variant.window", "0", "1 or more"));
  const float slopes[] = {1.0f};
  EXPECT_TRUE(says(said([](Call&) {}, compose(Causal{}, Alibi{slopes})), "variant.slopes.size()", "1", "4"));
  EXPECT_TRUE(says(said([](Call& c) { c.kv.k_type = Q8_0::type; }), "kv.k_type", "q8_0", "plain elements"));
  EXPECT_TRUE(says(said([](Call& c) {
                     c.kv.storage = Storage::ring;
                     c.kv.capacity = 64;
                   }),
                   "position 0", "visible", "kv.first_position() = 86"));
}

TEST_F(Refusals, NameRotations) {
  EXPECT_TRUE(says(said([](Call& c) { c.kv.k_rotation = 2; }), "kv.k_rotation", "2", "0: "));
  const StoredCaches two = store_cache({coarse(make_problem(kShape, 453).kv.k), Numbers(kLength, 2, 4)},
                                       ElementType::f32, ElementType::f32, {});
  const Tensor q(q_, ElementType::f32);
  const Tensor d_out(Numbers(5, 4, 4), ElementType::f32);
  KvCacheView kv = two.view();
  kv.v_rotation = 4;
  EXPECT_TRUE(says(message_of([&] { reference_backward(q.const_view(), kv, d_out.const_view(), Causal{}); }),
                   "kv.v_rotation", "4", "0: "));
}

TEST_F(Refusals, NameALengthWithWhichGradientsAreTooLarge) {
  const float bias[1] = {};
  const auto variant =
      compose(CausalWindow{1}, AdditiveBias<float>{BroadcastView<float>(bias, 1, 1, 1, Index{1} << 40,
                                                                        BroadcastView<float>::Strides{0, 0, 0, 0})});
  const auto far = [](Call& c) {
    c.kv.storage = Storage::ring;
    c.kv.capacity = 64;
    c.kv.length = Index{1} << 40;
  };
  EXPECT_TRUE(says(said(far, variant), "kv.length", "1099511627776", "2^40 bytes"));
}

}  // namespace
}  // namespace gqa::test
