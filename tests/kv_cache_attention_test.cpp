// SPDX-License-Identifier: Apache-2.0
// Attention over the owning caches: the same bits from each.
#include "gqa/kv_cache.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "gqa/attention.hpp"
#include "support/owned_caches.hpp"
#include "support/paths.hpp"
#include "support/problem.hpp"

namespace gqa::test {
namespace {

TEST(KvCacheAttention, AllThreeCachesGiveTheSameBits) {
  constexpr Index kWindow = 300;
  const Shape shape{.query_heads = 6, .kv_heads = 2, .head_dim = 40, .value_dim = 24, .n_q = 5, .n_kv = 1500};
  const Problem problem = make_problem(shape, 13);
  const Tensor q(problem.q, ElementType::f32);
  const Tensor k(problem.kv.k, ElementType::f32), v(problem.kv.v, ElementType::f32);
  for (const Path path : available_paths())
    for (const ElementType type : kTypes)
      for (const KvLayout layout : kLayouts) {
        SCOPED_TRACE(on(path) + ", " + types_and_layout(type, type, layout));
        KvCacheConfig config{
            .kv_heads = 2, .head_dim = 40, .value_dim = 24, .k_type = type, .capacity = 1500, .layout = layout};
        ContiguousKvCache contiguous(config);
        config.capacity = kWindow + shape.n_q - 1;
        RingKvCache ring(config);
        PagedKvPool pool({.kv_heads = 2,
                          .head_dim = 40,
                          .value_dim = 24,
                          .k_type = type,
                          .page_size = 37,
                          .pages = 100,
                          .layout = layout});
        PagedSequence gap = pool.sequence(), paged = pool.sequence();
        Index position = 0;
        for (const Index chunk : {700, 1, 499, 290, 5, 5}) {
          const ConstTensorView new_k = k.const_view().slice(position, chunk);
          const ConstTensorView new_v = v.const_view().slice(position, chunk);
          contiguous.append(new_k, new_v);
          ring.append(new_k, new_v);
          paged.append(new_k, new_v);
          gap.append(new_k.slice(0, 1), new_v.slice(0, 1));  // so that the pages do not lie in order
          position += chunk;
        }
        ASSERT_EQ(position, shape.n_kv);
        How how;
        how.path = path;
        how.products = has_f32_arithmetic_only(path) ? Products::as_stored : Products::bf16;
        const CausalWindow window{kWindow};
        const Result expected = attend(q.const_view(), contiguous.view(), how, window);
        EXPECT_TRUE(same_bits(expected, attend(q.const_view(), paged.view(), how, window)));
        EXPECT_TRUE(same_bits(expected, attend(q.const_view(), ring.view(), how, window)));

        // And as a sequence that shares its prefix, over everything.
        PagedSequence fork = paged.fork(1234);
        fork.append(k.const_view().slice(1234, 266), v.const_view().slice(1234, 266));
        const Result all = attend(q.const_view(), contiguous.view(), how);
        EXPECT_TRUE(same_bits(all, attend(q.const_view(), paged.view(), how)));
        EXPECT_TRUE(same_bits(all, attend(q.const_view(), fork.view(), how)));

        // The oldest window that the ring can no longer serve is refused.
        EXPECT_THROW(attend(q.const_view(), ring.view(), how, CausalWindow{kWindow + 1}), ArgumentError);
      }
}

TEST(KvCacheAttention, WindowThatReachesWhatATruncatedRingLostIsRefused) {
  const KvDims dims{.kv_heads = 1, .head_dim = 8, .value_dim = 8};
  const KvSource source(KvNumbers(40, dims, 14));
  RingKvCache ring({.kv_heads = 1, .head_dim = 8, .capacity = 16});
  source.append_to(ring, 0, 36);
  ring.truncate(33);  // holds 20 … 32
  const KvNumbers query(1, dims, 15);
  const Tensor q(query.k, ElementType::f32);
  How how;
  how.path = best_f32_path();
  const Result inside = attend(q.const_view(), ring.view(), how, CausalWindow{13});
  for (Index d = 0; d < 8; ++d) EXPECT_TRUE(std::isfinite(inside.at(0, 0, d)));
  try {
    attend(q.const_view(), ring.view(), how, CausalWindow{14});
    FAIL() << "a position that is gone was read";
  } catch (const ArgumentError& error) {
    EXPECT_STREQ(error.what(), "gqa: kv.oldest is 20; expected position 19, which a query sees, or before");
  }
}

}  // namespace
}  // namespace gqa::test
