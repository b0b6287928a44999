// SPDX-License-Identifier: Apache-2.0
// Rotated keys and values: a call has the bits of one over the same rows whose queries have been rotated before it, and whose outputs are turned
// back after it; so it keeps every promise that calls without rotations keep. And it is right.
#include <gtest/gtest.h>

#include "gqa/rotation.hpp"
#include "gqa/variants.hpp"
#include "support/executors.hpp"
#include "support/reference_check.hpp"

namespace gqa::test {
namespace {

struct Rotations {
  Index k = 0;
  Index v = 0;
};
std::ostream& operator<<(std::ostream& out, const Rotations& r) { return out << "rotations " << r.k << " and " << r.v; }

KvCacheView rotated(KvCacheView view, const Rotations& rotations) {
  view.k_rotation = rotations.k;
  view.v_rotation = rotations.v;
  return view;
}

class RotationOf : public PerPathAndType {
 protected:
  Types types() const { return cache_of(type()); }
  /// Whether a call rounds queries to bf16.
  bool bf16_products(const KvCacheView& kv) const {
    const Tensor any(types().q, 1, 1, 1);
    return bf16_terms(any.const_view(), kv, {path()}) == 1;
  }
  /// What the view's rotations do, by the public function: queries before the call, outputs behind it.
  template <class V = Causal>
  Result by_hand(const Problem& p, const KvCacheView& kv, const Rotations& r, const V& variant = {}) const {
    Tensor q(p.q, types().q);
    if (r.k != 0) {
      Numbers widened(p.q.tokens, p.q.heads, p.q.dim);
      for (Index t = 0; t < p.q.tokens; ++t)
        for (Index h = 0; h < p.q.heads; ++h)
          for (Index d = 0; d < p.q.dim; ++d) widened.at(t, h, d) = q.at(t, h, d);
      Tensor turned(widened, bf16_products(kv) ? ElementType::bf16 : ElementType::f32);
      hadamard_rotate(turned.view(), r.k);
      return turned_back(attend(turned.const_view(), kv, {path()}, variant), r);
    }
    return turned_back(attend(q.const_view(), kv, {path()}, variant), r);
  }
  static Result turned_back(Result result, const Rotations& r) {
    if (r.v != 0) hadamard_rotate(TensorView(result.out.data(), result.tokens, result.heads, result.dim), r.v);
    return result;
  }
};

struct Case {
  Shape shape;
  Rotations rotations;
};
const Case kCases[] = {{{8, 2, 128, 128, 1, 700}, {128, 128}}, {{8, 2, 128, 128, 1, 150}, {64, 0}},
                       {{4, 2, 64, 128, 3, 150}, {0, 32}},     {{4, 1, 64, 64, 40, 97}, {64, 64}},
                       {{2, 2, 40, 24, 7, 70}, {8, 4}},        {{3, 1, 96, 80, 1, 131}, {32, 16}},
                       {{6, 3, 6, 10, 5, 66}, {2, 1}},         {{1, 1, 256, 512, 2, 80}, {256, 512}}};

TEST_P(RotationOf, IsTheCallOverRowsThatAreRotatedByHand) {
  std::uint64_t seed = 400;
  for (const auto& [shape, rotations] : kCases) {
    const Problem p = make_problem(shape, ++seed);
    const Tensor q(p.q, types().q, TensorLayout::dim_major);
    for (const Place& place : {contiguous_place(CacheLayout::head_major), paged_place(7, CacheLayout::token_major)}) {
      const StoredCaches kv = store_cache(p.kv, types().k, types().v, place);
      SCOPED_TRACE(describe(on(path()), types(), shape, rotations, place.name()));
      const Result expected = by_hand(p, kv.view(), rotations);
      EXPECT_TRUE(same_bits(expected, attend(q.const_view(), rotated(kv.view(), rotations), {path()})));
    }
  }
}

TEST_P(RotationOf, IsRight) {
  std::uint64_t seed = 420;
  for (const auto& [shape, rotations] : kCases) {
    if (shape.n_q == 40 || shape.n_kv == 700) continue;
    for (const Distribution distribution : {Distribution::normal, Distribution::sinks}) {
      const Problem p = make_problem(shape, ++seed, distribution);
      const StoredCaches kv = store_cache(p.kv, types().k, types().v, {});
      const Tensor q(p.q, types().q);
      const KvCacheView view = rotated(kv.view(), rotations);
      for (const ElementType out : {ElementType::f32, type()}) {
        SCOPED_TRACE(describe(on(path()), types(), shape, rotations, element_name(out)));
        const How how{.path = path(), .out = out};
        EXPECT_TRUE(within_bound(q.const_view(), view, how, Causal{}, attend(q.const_view(), view, how)));
      }
    }
  }
}

// Chunks, threads, a batch with a sequence that is not rotated; and outputs of the type and the layout that are asked for.
TEST_P(RotationOf, IsTheSameInAnyCompany) {
  const Shape shape{8, 2, 64, 32, 16, 600};
  const Rotations rotations{64, 32};
  const Problem p = make_problem(shape, 440);
  const StoredCaches kv = store_cache(p.kv, types().k, types().v, paged_place(64, CacheLayout::head_major));
  const Tensor q(p.q, types().q);
  const KvCacheView view = rotated(kv.view(), rotations);
  const Result expected = by_hand(p, kv.view(), rotations);
  Result chunked{};
  for (Index done = 0; done < shape.n_q;) {
    const Index count = done == 0 ? 13 : 1;
    chunked.append(
        attend(q.const_view().slice(done, count), first_tokens(view, shape.n_kv - shape.n_q + done + count), {path()}));
    done += count;
  }
  EXPECT_TRUE(same_bits(expected, chunked)) << "in chunks";
  ThreadsExecutor threads{3};
  How how{path()};
  how.executor = threads;
  EXPECT_TRUE(same_bits(expected, attend(q.const_view(), view, how))) << "on threads";

  Output plain(ElementType::f32, shape.n_q, shape.query_heads, shape.value_dim);
  Output turned(ElementType::f32, shape.n_q, shape.query_heads, shape.value_dim);
  const Sequence batch[] = {{q.const_view(), kv.view(), plain.view(), {}, plain.lse()},
                            {q.const_view(), view, turned.view(), {}, turned.lse()}};
  DynamicAttention()(batch, how.options());
  EXPECT_TRUE(same_bits(attend(q.const_view(), kv.view(), {path()}), plain.result()));
  EXPECT_TRUE(same_bits(expected, turned.result()));

  // As much scratch as the call says that it wants, and nothing behind it.
  turned = Output(ElementType::f32, shape.n_q, shape.query_heads, shape.value_dim);
  const Sequence alone{q.const_view(), view, turned.view(), {}, turned.lse()};
  Options options = How{path()}.options();
  const std::size_t bytes = DynamicAttention().scratch_bytes({&alone, 1}, options);
  std::vector<std::byte> scratch(bytes + 64, std::byte{0x77});
  options.scratch = std::span(scratch).first(bytes);
  DynamicAttention()(alone, Causal{}, options);
  EXPECT_TRUE(same_bits(expected, turned.result())) << "in the caller's scratch";
  EXPECT_EQ(std::vector<std::byte>(scratch.end() - 64, scratch.end()), std::vector<std::byte>(64, std::byte{0x77}));

  Result rounded = expected;
  for (float& x : rounded.out) x = rounded_to(type(), x);
  for (const TensorLayout layout : {TensorLayout::packed, TensorLayout::dim_major}) {
    How other{.path = path(), .out = type()};
    other.out_layout = layout;
    EXPECT_TRUE(same_bits(rounded, attend(q.const_view(), view, other))) << layout_name(layout);
  }
}

// A sink has no value to be rotated; factors and gates come after outputs are turned back.
TEST_P(RotationOf, OutputsAreChangedAfterTheyAreTurnedBack) {
  const Shape shape{4, 2, 32, 64, 3, 90};
  const Rotations rotations{32, 16};
  const Problem p = make_problem(shape, 450);
  const StoredCaches kv = store_cache(p.kv, types().k, types().v, {});
  const Tensor q(p.q, types().q);
  const std::vector<float> factors{0.75f, -3.0f};
  const std::vector<float> sinks{0.5f, -1.0f, 2.0f, 0.0f};
  const auto sinking = compose(Causal{}, LearnedSinks{sinks});
  Result expected = by_hand(p, kv.view(), rotations, sinking);
  for (Index t = 0; t < shape.n_q; ++t)
    for (Index h = 0; h < shape.query_heads; ++h)
      for (Index d = 0; d < shape.value_dim; ++d)
        expected.out[static_cast<std::size_t>((t * shape.query_heads + h) * shape.value_dim + d)] *=
            factors[static_cast<std::size_t>(h / 2)];
  const auto variant = compose(Causal{}, LearnedSinks{sinks}, ValueScale{factors, 2});
  EXPECT_TRUE(same_bits(expected, attend(q.const_view(), rotated(kv.view(), rotations), {path()}, variant)));
}

// What a NaN is rotated with shows it; what no query sees does not.
TEST_P(RotationOf, GarbageStaysOut) {
  const Shape shape{2, 1, 64, 64, 3, 70};
  const Problem p = make_problem(shape, 460);
  StoredCaches kv = store_cache(p.kv, types().k, types().v, {});
  const Tensor q(p.q, types().q);
  write_element(kv.v_address(68, 0, 7), types().v, std::numeric_limits<float>::quiet_NaN());
  const Result result = attend(q.const_view(), rotated(kv.view(), {64, 32}), {path()});
  for (Index token = 0; token < 3; ++token)
    for (Index head = 0; head < 2; ++head)
      for (Index d = 0; d < 64; ++d)
        EXPECT_EQ(std::isnan(result.at(token, head, d)), token >= 1 && d < 32) << token << ' ' << d;
  const Result none =
      attend(q.const_view(), rotated(kv.view(), {64, 32}), {path()}, Causal{}, std::vector<Index>{-1, -2, -3});
  for (const float x : none.out) EXPECT_EQ(x, 0.0f);
}

INSTANTIATE_TEST_SUITE_P(EveryPath, RotationOf, RotationOf::cases(), RotationOf::name);

TEST(Rotation, F32PathsAgree) {
  std::uint64_t seed = 470;
  for (const auto& [shape, rotations] : kCases) {
    const Problem p = make_problem(shape, ++seed);
    for (const ElementType type : kEveryType) {
      const Types types = cache_of(type);
      const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
      const Tensor q(p.q, types.q);
      const KvCacheView view = rotated(kv.view(), rotations);
      const Result expected = attend(q.const_view(), view, {Path::portable});
      for (const Path path : f32_paths())
        EXPECT_TRUE(same_bits(expected, attend(q.const_view(), view, {path})))
            << describe(on(path), types, shape, rotations);
    }
  }
}

}  // namespace
}  // namespace gqa::test
