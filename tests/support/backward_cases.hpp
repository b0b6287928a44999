// SPDX-License-Identifier: Apache-2.0
// The arithmetics that gradients are held to: every path with every type that inputs are stored in, and the products that it may be asked for.
#pragma once

#include "gradient_bound.hpp"

namespace gqa::test {

class BackwardPerPathAndType : public PerPathAndType {
 protected:
  /// The ways to call that differ in what is rounded.
  std::vector<BackwardHow> hows() const {
    std::vector<BackwardHow> all{{.path = path()}};
    if (!has_f32_arithmetic_only(path()) && type() != ElementType::bf16)
      all.push_back({.path = path(), .products = Products::bf16});
    return all;
  }
  /// Forward and backward in each of them are right, by bounds that say something.
  template <class V = Causal>
  void hold(const BackwardInputs& in, const V& variant = {}, const ScoreErrors& errors = {}) const {
    for (const BackwardHow& how : hows()) {
      Output given = run_forward(in, how, variant);
      const Gradients actual = run_backward(in, given, how, variant);
      const GradientBound bound(in, in.kv, given, how, variant, errors);
      EXPECT_TRUE(bound.holds(actual)) << products_name(how.products);
      EXPECT_TRUE(bound.is_small()) << products_name(how.products);
    }
  }
  template <class V = Causal>
  void hold(const Shape& shape, std::uint64_t seed, const V& variant = {}, const Place& place = {}) const {
    SCOPED_TRACE(describe(shape, place.name()));
    const StoredProblem stored(shape, seed, type(), place);
    hold(stored.inputs(), variant);
  }
  bool slow() const { return path() == Path::portable; }
};

}  // namespace gqa::test
