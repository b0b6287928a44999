// SPDX-License-Identifier: Apache-2.0
// Gradients by the keys and values of a group are those by its repeated heads, added up.
#include <gtest/gtest.h>

#include "gqa/variants.hpp"
#include "support/backward_cases.hpp"

namespace gqa::test {
namespace {

class BackwardGrouping : public BackwardPerPathAndType {};

TEST_P(BackwardGrouping, OfKeysAndValuesIsTheSumOverRepeatedHeads) {
  for (const Index kv_heads : {1, 2, 3}) {
    const Index heads = 6, group = heads / kv_heads;
    const Shape shape = slow() ? Shape{heads, kv_heads, 9, 6, 12, 70} : Shape{heads, kv_heads, 33, 20, 30, 290};
    SCOPED_TRACE(describe(shape));
    const Problem p = make_problem(shape, 1501);
    Shape all = shape;
    all.kv_heads = heads;
    Problem repeated = make_problem(all, 1501);
    repeated.q = p.q;
    for (Index t = 0; t < shape.n_kv; ++t)
      for (Index h = 0; h < heads; ++h) {
        for (Index d = 0; d < shape.head_dim; ++d) repeated.kv.k.at(t, h, d) = p.kv.k.at(t, h / group, d);
        for (Index d = 0; d < shape.value_dim; ++d) repeated.kv.v.at(t, h, d) = p.kv.v.at(t, h / group, d);
      }
    const Numbers d_out = StoredProblem::draw_d_out(shape, 1501);
    const StoredProblem gqa(p, d_out, type()), mha(repeated, d_out, type());
    const float logits[] = {0.5f, 3.0f, -2.0f, 0.0f, 1.0f, -1.0f};
    const auto variant = compose(Causal{}, LearnedSinks{logits});
    for (const BackwardHow& how : hows()) {
      Output given = run_forward(gqa.inputs(), how, variant), of_heads = run_forward(mha.inputs(), how, variant);
      const Gradients grouped = run_backward(gqa.inputs(), given, how, variant);
      const Gradients apart = run_backward(mha.inputs(), of_heads, how, variant);
      const GradientBound bound(gqa.inputs(), gqa.inputs().kv, given, how, variant);
      const GradientBound of_apart(mha.inputs(), mha.inputs().kv, of_heads, how, variant);
      // Each is within its bound of the exact sum: so they are within the sum of their bounds of each other, and of the sum of heads, in double.
      const auto compare = [&](const Numbers& sum, const Numbers& parts, const Eigen::MatrixXd& b,
                               const Eigen::MatrixXd& of_parts, const char* what) {
        for (Index t = 0; t < sum.tokens; ++t)
          for (Index g = 0; g < kv_heads; ++g)
            for (Index d = 0; d < sum.dim; ++d) {
              double total = 0.0, within = b(t * kv_heads + g, d);
              for (Index h = g * group; h < (g + 1) * group; ++h) {
                total += static_cast<double>(parts.at(t, h, d));
                within += of_parts(t * heads + h, d);
              }
              ASSERT_LE(std::abs(static_cast<double>(sum.at(t, g, d)) - total), within) << what << t << ", " << g;
            }
      };
      compare(grouped.d_k, apart.d_k, bound.bound().d_k, of_apart.bound().d_k, "d_k of ");
      compare(grouped.d_v, apart.d_v, bound.bound().d_v, of_apart.bound().d_v, "d_v of ");
      EXPECT_TRUE(bound.is_small() && of_apart.is_small());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryPath, BackwardGrouping, BackwardGrouping::cases(), BackwardGrouping::name);

}  // namespace
}  // namespace gqa::test
