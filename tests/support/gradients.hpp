// SPDX-License-Identifier: Apache-2.0
// Gradients held to central differences of the definition in double precision, by each stored number of a small problem.
//
// Where the bound comes from. f is the sum of d_out ∘ out. Stored numbers are f32, and so are x ± h: all of them are multiples of h/4, below 8
// or so. With D(h) = (f(x + h) − f(x − h)) / 2h = f′ + a h² + b h⁴ + c h⁶ + …, extrapolated twice (Richardson),
//       R(h) = (4 D(h/2) − D(h)) / 3 = f′ − b h⁴/4 − …,     E = (16 R(h/2) − R(h)) / 15 = f′ + c h⁶/64 + …
//   E − R(h/2) is b h⁴/64 and less: what E's own truncation is far below, as h² is. Roundings of f, at most `noise` each, count in D(h) by
//   noise / h, and so in E by (64·4 + 20·2 + 1) / 45 < 7 of that.
// Noise, u = 2⁻⁵³. A scaled product is off by (D + 2) u Σ|q·k| scale, at most X of these; the variants of these tests change it by fewer than 32
//   operations on numbers below 16, with slopes below 4. An error e of scores moves weights by factors of 1 ± 2e, and sums of n weights and
//   values are off by n + 8 roundings of Σ p|v|, which is at most the largest |v|. So an output is off by
//       u (2 (4 (D + 2) X + 32·16) + n + 8) max|v|
//   times what the output is multiplied by, and the sum of d_out ∘ out by as many roundings more as there are outputs.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "gqa/reference.hpp"
#include "gqa/reference_backward.hpp"
#include "problem.hpp"

namespace gqa::test {

inline constexpr float kStep = 0x1p-6f;

/// Numbers that are multiples of kStep / 4, so that steps from them are exact.
inline Numbers on_grid(Numbers numbers) {
  for (float& x : numbers.values) x = std::round(x * 256.0f) / 256.0f;
  return numbers;
}

/// A problem with the gradient of its outputs, in f32.
class GradientProblem {
 public:
  explicit GradientProblem(const Shape& shape, std::uint64_t seed, const Place& place = {})
      : problem_(make_problem(shape, seed)),
        cache_{on_grid(problem_.kv.k), on_grid(problem_.kv.v)},
        kv_(store_cache(cache_, ElementType::f32, place)),
        q_(on_grid(problem_.q), ElementType::f32, TensorLayout::padded),
        d_out_(make_problem({shape.query_heads, 1, shape.value_dim, 1, shape.n_q, 1}, seed + 1).q, ElementType::f32,
               TensorLayout::reversed) {}

  std::vector<Index> positions{};
  std::optional<double> scale{};
  /// The largest number that the variant's factor and gate multiply an output by.
  double largest_output_factor = 1.0;

  const Shape& shape() const { return problem_.shape; }
  ConstTensorView q() const { return q_.const_view(); }
  ConstTensorView d_out() const { return d_out_.const_view(); }
  const KvCacheView& kv() const { return kv_.view(); }
  float* q_at(Index token, Index head, Index d) const { return number(q_.address(token, head, d)); }
  float* k_at(Index position, Index head, Index d) const { return number(kv_.k_address(position, head, d)); }
  float* v_at(Index position, Index head, Index d) const { return number(kv_.v_address(position, head, d)); }

  template <class V>
  ReferenceGradients gradients(const V& variant) const {
    return reference_backward(q(), kv(), d_out(), variant, scale, positions);
  }
  /// Σ d_out ∘ out
  template <class V>
  double objective(const V& variant) const {
    const ReferenceResult result = reference_attention(q(), kv(), variant, scale, positions);
    double sum = 0.0;
    for (Index i = 0; i < shape().n_q; ++i)
      for (Index h = 0; h < shape().query_heads; ++h)
        for (Index d = 0; d < shape().value_dim; ++d)
          sum += static_cast<double>(d_out_.at(i, h, d)) * result.out(i * shape().query_heads + h, d);
    return sum;
  }
  /// What objective() is off by at most.
  double noise() const {
    const auto largest = [](const Numbers& of) {
      float most = 0.0f;
      for (const float x : of.values) most = std::max(most, std::abs(x) + kStep);
      return static_cast<double>(most);
    };
    double d_out_sum = 0.0;
    for (Index i = 0; i < shape().n_q; ++i)
      for (Index h = 0; h < shape().query_heads; ++h)
        for (Index d = 0; d < shape().value_dim; ++d) d_out_sum += std::abs(static_cast<double>(d_out_.at(i, h, d)));
    const auto dim = static_cast<double>(shape().head_dim);
    const double products =
        std::abs(scale.value_or(1.0 / std::sqrt(dim))) * dim * largest(problem_.q) * largest(cache_.k);
    const double outputs = static_cast<double>(shape().n_q * shape().query_heads * shape().value_dim);
    const double roundings =
        2.0 * (4.0 * (dim + 2.0) * products + 32.0 * 16.0) + static_cast<double>(shape().n_kv) + 8.0 + outputs;
    return 0x1p-53 * roundings * largest(cache_.v) * largest_output_factor * d_out_sum;
  }
  /// Scaled products of every query row with every key, sorted.
  std::vector<double> products() const {
    std::vector<double> all;
    const double factor = scale.value_or(1.0 / std::sqrt(static_cast<double>(shape().head_dim)));
    for (Index i = 0; i < shape().n_q; ++i)
      for (Index h = 0; h < shape().query_heads; ++h)
        for (Index t = kv().first_position(); t < shape().n_kv; ++t) {
          double sum = 0.0;
          for (Index d = 0; d < shape().head_dim; ++d)
            sum += static_cast<double>(*q_at(i, h, d)) *
                   static_cast<double>(*k_at(t, h * shape().kv_heads / shape().query_heads, d));
          all.push_back(factor * sum);
        }
    std::sort(all.begin(), all.end());
    return all;
  }

 private:
  static float* number(std::byte* at) { return reinterpret_cast<float*>(at); }

  Problem problem_;
  LogicalCache cache_;
  StoredCaches kv_;
  Tensor q_;
  Tensor d_out_;
};

/// A place near `wanted` that no product reaches when one number is moved by kStep, for a kink in a change of scores.
inline float quiet_place(const GradientProblem& problem, double wanted) {
  const std::vector<double> products = problem.products();
  double place = 0.0;
  double width = 0.0;
  for (std::size_t i = 1; i < products.size(); ++i) {
    const double middle = (products[i - 1] + products[i]) / 2.0;
    if (std::abs(middle - wanted) > 0.5 || products[i] - products[i - 1] <= width) continue;
    place = middle;
    width = products[i] - products[i - 1];
  }
  float largest = 0.0f;
  const Shape& shape = problem.shape();
  for (Index d = 0; d < shape.head_dim; ++d) {
    for (Index i = 0; i < shape.n_q; ++i)
      for (Index h = 0; h < shape.query_heads; ++h) largest = std::max(largest, std::abs(*problem.q_at(i, h, d)));
    for (Index t = 0; t < shape.n_kv; ++t)
      for (Index h = 0; h < shape.kv_heads; ++h) largest = std::max(largest, std::abs(*problem.k_at(t, h, d)));
  }
  const double move = static_cast<double>(kStep * largest) / std::sqrt(static_cast<double>(shape.head_dim));
  EXPECT_GT(width / 2.0, move) << "no quiet place near " << wanted;
  return static_cast<float>(place);
}

/// Compares derivatives of a problem's objective with what is said to be them, and keeps what was seen.
class DifferenceCheck {
 public:
  explicit DifferenceCheck(const GradientProblem& problem) : rounding_(7.0 * problem.noise() / double{kStep}) {}
  DifferenceCheck(const DifferenceCheck&) = delete;
  DifferenceCheck& operator=(const DifferenceCheck&) = delete;
  /// A bound that is not small says nothing, and neither do gradients that are all zero.
  ~DifferenceCheck() {
    EXPECT_LT(largest_bound_, 1e-6);
    EXPECT_GT(largest_slope_, 0.05);
  }

  /// `slope` is the derivative of f() by the number at `at`.
  template <class F>
  void compare(float* at, double slope, const F& f, const std::string& what) {
    const float x = *at;
    double central[3];
    for (int i = 0; i < 3; ++i) {
      const float h = std::ldexp(kStep, -i);
      *at = x + h;
      ASSERT_EQ(*at - x, h) << what << " is no multiple of the step";
      const double above = f();
      *at = x - h;
      ASSERT_EQ(x - *at, h) << what << " is no multiple of the step";
      central[i] = (above - f()) / (2.0 * static_cast<double>(h));
    }
    *at = x;
    const double coarse = (4.0 * central[1] - central[0]) / 3.0;
    const double fine = (4.0 * central[2] - central[1]) / 3.0;
    const double extrapolated = (16.0 * fine - coarse) / 15.0;
    const double bound = std::abs(extrapolated - fine) + rounding_;
    EXPECT_NEAR(slope, extrapolated, bound) << what;
    largest_bound_ = std::max(largest_bound_, bound);
    largest_slope_ = std::max(largest_slope_, std::abs(slope));
  }

 private:
  double rounding_;
  double largest_bound_ = 0.0;
  double largest_slope_ = 0.0;
};

/// d_q, d_k and d_v of every stored number.
template <class V>
ReferenceGradients expect_gradients(const GradientProblem& problem, const V& variant) {
  const Shape& shape = problem.shape();
  const ReferenceGradients gradients = problem.gradients(variant);
  const auto f = [&] { return problem.objective(variant); };
  const auto compare = [&](const char* what, Index tokens, Index first, Index heads, const Eigen::MatrixXd& d,
                           const auto& at) {
    ASSERT_EQ(d.rows(), (tokens - first) * heads) << what;
    DifferenceCheck check(problem);
    for (Index t = first; t < tokens; ++t)
      for (Index h = 0; h < heads; ++h)
        for (Index j = 0; j < d.cols(); ++j)
          check.compare(at(t, h, j), d((t - first) * heads + h, j), f,
                        describe(std::string("by ") + what, t, "head", h, "dim", j));
  };
  const Index first = problem.kv().first_position();
  compare("q of token", shape.n_q, 0, shape.query_heads, gradients.d_q,
          [&](Index t, Index h, Index d) { return problem.q_at(t, h, d); });
  compare("k of position", shape.n_kv, first, shape.kv_heads, gradients.d_k,
          [&](Index t, Index h, Index d) { return problem.k_at(t, h, d); });
  compare("v of position", shape.n_kv, first, shape.kv_heads, gradients.d_v,
          [&](Index t, Index h, Index d) { return problem.v_at(t, h, d); });
  return gradients;
}

}  // namespace gqa::test
