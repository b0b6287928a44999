// SPDX-License-Identifier: Apache-2.0
// Values that are part of their keys' rows (MLA's latents: 512 of 576 elements), or all of them: the same bits as with values of their own.
#include <gtest/gtest.h>

#include "support/paths.hpp"
#include "support/problem.hpp"

namespace gqa::test {
namespace {

class ValuesInKeys : public PerPathAndType {};

TEST_P(ValuesInKeys, HaveTheBitsOfValuesOfTheirOwn) {
  struct Case {
    Shape shape;
    Index first;  // of a key's elements, a value's first
  };
  const Types types = cache_of(type());
  for (const Case& c :
       {Case{{16, 1, 576, 512, 1, 1100}, 0}, Case{{16, 1, 576, 512, 3, 200}, 0}, Case{{4, 1, 576, 512, 1, 700}, 0},
        Case{{8, 2, 48, 32, 40, 150}, 16}, Case{{4, 2, 64, 64, 1, 1300}, 0}, Case{{6, 2, 30, 7, 5, 90}, 21}}) {
    Problem p = make_problem(c.shape, 321);
    for (Index t = 0; t < c.shape.n_kv; ++t)
      for (Index h = 0; h < c.shape.kv_heads; ++h)
        for (Index d = 0; d < c.shape.value_dim; ++d) p.kv.v.at(t, h, d) = p.kv.k.at(t, h, d + c.first);
    const Tensor q(p.q, types.q);
    const StoredCaches apart = store_cache(p.kv, types.k, types.k, {});
    const Result expected = attend(q.const_view(), apart.view(), {path()}, Causal{});
    for (const Place& place :
         {contiguous_place(), contiguous_place(CacheLayout::head_major), contiguous_place(CacheLayout::padded),
          contiguous_place(CacheLayout::reversed), paged_place(7), paged_place(64, CacheLayout::head_major),
          ring_place(c.shape.n_kv + 30, CacheLayout::head_major)}) {
      const StoredCaches kv = store_cache(p.kv, types.k, types.k, place);
      KvCacheView view = kv.view();
      view.v = static_cast<const std::byte*>(view.k) + c.first * element_bytes(types.k);
      view.v_strides = view.k_strides;
      EXPECT_TRUE(same_bits(expected, attend(q.const_view(), view, {path()}, Causal{})))
          << describe(on(path()), types, c.shape, place.name());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryPath, ValuesInKeys, ValuesInKeys::cases(), ValuesInKeys::name);

}  // namespace
}  // namespace gqa::test
