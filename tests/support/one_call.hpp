// SPDX-License-Identifier: Apache-2.0
// One call's arguments, and the memory that they lie in.
#pragma once

#include "problem.hpp"

namespace gqa::test {

struct OneCall {
  Problem problem;
  Tensor q;
  StoredCaches kv;
  Output out;
  Sequence sequence;

  OneCall(const Shape& shape, const Types& types, const Place& place, std::uint64_t seed,
          TensorLayout layout = TensorLayout::packed)
      : problem(make_problem(shape, seed)),
        q(problem.q, types.q, layout),
        kv(store_cache(problem.kv, types.k, types.v, place)),
        out(types.out, shape.n_q, shape.query_heads, shape.value_dim, layout),
        sequence{q.const_view(), kv.view(), out.view(), {}, out.lse()} {}
};

}  // namespace gqa::test
