// SPDX-License-Identifier: Apache-2.0
// Gradients over caches of every codec: by the numbers that rows stand for, the bits of those over an f32 cache that holds them.
#include <gtest/gtest.h>

#include "gqa/backward.hpp"
#include "support/backward_cases.hpp"
#include "support/quantised.hpp"

namespace gqa::test {
namespace {

using Forward = GroupedQueryAttention<dynamic, dynamic, dynamic, dynamic, CodedCache>;
using Backward = GroupedQueryAttentionBackward<dynamic, dynamic, dynamic, dynamic, CodedCache>;

class BackwardCodecs : public PerCodecAndPath {
 protected:
  /// `f32` has what the rows of `kv` stand for.
  void compare(const Case& c, const KvCacheView& kv, const KvCacheView& f32, Random& random) const {
    const Shape shape{c.group * c.kv_heads, c.kv_heads, c.head_dim, c.value_dim, c.n_q, 1};
    const auto seed = static_cast<std::uint64_t>(random.below(1000));
    for (const ElementType type : {ElementType::f32, ElementType::bf16}) {
      const Tensor q(make_problem(shape, seed).q, type);
      const Tensor d_out(StoredProblem::draw_d_out(shape, seed), type);
      const BackwardInputs in{q.const_view(), kv, d_out.const_view()};
      const BackwardInputs plain{q.const_view(), f32, d_out.const_view()};
      const CausalWindow variant{kv.storage == Storage::ring ? kv.capacity - c.n_q + 1 : c.length};
      for (const Products products : {Products::as_stored, Products::bf16}) {
        if (products == Products::bf16 && has_f32_arithmetic_only(path())) continue;
        const BackwardHow how{.path = path(), .products = products};
        Output given = run_forward(in, how, variant, Forward{});
        const Gradients actual = run_backward(in, given, how, variant, {}, Backward{});
        EXPECT_TRUE(same_gradients(run_backward(plain, given, how, variant), actual)) << products_name(products);
        EXPECT_TRUE(GradientBound(plain, f32, given, how, variant).holds(actual)) << products_name(products);
      }
    }
  }
  /// Keys of one codec and values of another.
  void compare(const Case& c, const KvEncoding& k, const KvEncoding& v, Random& random) const {
    const Rows rows(c, random);
    const KvEncoding plain = ElementType::f32;
    const auto over = [&](auto&& coded, auto&& f32) {
      coded.append(rows.k, rows.v);
      f32.append(rows.k, rows.v);
      dequantise(coded.view(), k, v, f32.view());
      compare(c, coded.view(), f32.view(), random);
    };
    over(ContiguousKvCache(config_of(c, k, v, KvLayout::head_major, c.length + 3)),
         ContiguousKvCache(config_of(c, plain, plain, KvLayout::head_major, c.length)));
    over(RingKvCache(config_of(c, k, v, KvLayout::token_major, 60)),
         RingKvCache(config_of(c, plain, plain, KvLayout::token_major, 60)));
    PagedKvPool pool(pool_of(c, k, v, KvLayout::token_major, 24));
    PagedKvPool f32_pool(pool_of(c, plain, plain, KvLayout::token_major, 24));
    over(pool.sequence(), f32_pool.sequence());
  }
};

TEST_P(BackwardCodecs, AreByWhatRowsStandFor) {
  Random random(1401);
  const Case c = path() == Path::portable ? Case{2, 1, 32, 64, 3, 70} : Case{2, 2, 64, 96, 9, 140};
  compare(c, codec().format, codec().format, random);
  compare(c, codec().format, other().format, random);
}

INSTANTIATE_TEST_SUITE_P(EveryCodec, BackwardCodecs, BackwardCodecs::cases(), BackwardCodecs::name);

}  // namespace
}  // namespace gqa::test
