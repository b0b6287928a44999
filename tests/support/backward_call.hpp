// SPDX-License-Identifier: Apache-2.0
// Backward calls of one sequence behind their forward calls, and comparing what comes out.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "gqa/backward.hpp"
#include "problem.hpp"

namespace gqa::test {

/// What a forward and a backward call have in common, and the gradient of outputs.
struct BackwardInputs {
  ConstTensorView q;
  KvCacheView kv;
  ConstTensorView d_out;
  std::span<const Index> positions = {};
};

/// A problem that lies in memory with the gradient of its outputs.
struct StoredProblem {
  Problem problem;
  Numbers d_out_numbers;
  Tensor q;
  StoredCaches cache;
  Tensor d_out;

  StoredProblem(Problem numbers, Numbers d_out_values, ElementType type, const Place& place = {},
                TensorLayout layout = TensorLayout::packed)
      : problem(std::move(numbers)),
        d_out_numbers(std::move(d_out_values)),
        q(problem.q, type, layout),
        cache(store_cache(problem.kv, type, place)),
        d_out(d_out_numbers, type, layout) {}
  StoredProblem(const Shape& shape, std::uint64_t seed, ElementType type, const Place& place = {},
                TensorLayout layout = TensorLayout::packed)
      : StoredProblem(make_problem(shape, seed), draw_d_out(shape, seed), type, place, layout) {}

  static Numbers draw_d_out(const Shape& shape, std::uint64_t seed) {
    return make_problem({shape.query_heads, 1, shape.value_dim, 1, shape.n_q, 0}, seed + 1000).q;
  }
  BackwardInputs inputs() const { return {q.const_view(), cache.view(), d_out.const_view()}; }
};

/// How a forward and a backward call are made.
struct BackwardHow {
  Path path = Path::portable;
  Products products = Products::as_stored;
  ExecutorRef executor = {};
  std::optional<float> scale = std::nullopt;
  TensorLayout layout = TensorLayout::packed;  ///< of outputs and gradients: any whose dim stride is 1
  ElementType out = ElementType::f32;
  std::span<const LookupGradient> lookups = {};
  std::span<std::byte> scratch = {};  ///< of the backward call
  CallControl* control = nullptr;     ///< likewise

  Options forward_options() const {
    Options options;
    options.path = path;
    options.products = products;
    options.scale = scale;
    return options;
  }
  BackwardOptions options() const {
    BackwardOptions options;
    static_cast<Options&>(options) = forward_options();
    options.executor = executor;
    options.scratch = scratch;
    options.control = control;
    options.lookups = lookups;
    return options;
  }
};

/// Which gradients are wanted.
struct Wanted {
  bool d_q = true, d_k = true, d_v = true;
};

/// Gradients, in (token, head, dim) and (token, head) order.
struct Gradients {
  Numbers d_q, d_k, d_v;
  std::vector<float> d_sink;
};

/// Memory for gradients, whose bytes all start as 0x5a; see Output.
class GradientTensors {
 public:
  template <class V>
  static GradientTensors of(const BackwardInputs& in, TensorLayout layout = TensorLayout::packed) {
    return {in, layout, detail::HasSink<V>};
  }
  GradientTensors(const BackwardInputs& in, TensorLayout layout, bool sink)
      : d_q_(ElementType::f32, in.q.tokens, in.q.heads, in.q.dim, layout),
        d_k_(ElementType::f32, cached(in.kv), in.kv.kv_heads, in.kv.head_dim, layout),
        d_v_(ElementType::f32, cached(in.kv), in.kv.kv_heads, in.kv.value_dim, layout),
        d_sink_(sink ? static_cast<std::size_t>(in.q.tokens * in.q.heads) : 0, std::bit_cast<float>(0x5a5a5a5au)) {
    for (Tensor* tensor : {&d_q_, &d_k_, &d_v_})
      std::fill(tensor->bytes().begin(), tensor->bytes().end(), std::byte{0x5a});
  }
  static Index cached(const KvCacheView& kv) { return std::max<Index>(0, kv.length - kv.first_position()); }

  SequenceGradients gradients(const ConstTensorView& d_out, const Wanted& wanted = {}) {
    SequenceGradients all;
    all.d_out = d_out;
    if (wanted.d_q) all.d_q = d_q_.view();
    if (wanted.d_k) all.d_k = d_k_.view();
    if (wanted.d_v) all.d_v = d_v_.view();
    all.d_sink = d_sink_;
    return all;
  }
  Gradients result(const Wanted& wanted = {}) const {
    return {numbers(d_q_, wanted.d_q), numbers(d_k_, wanted.d_k), numbers(d_v_, wanted.d_v), d_sink_};
  }
  bool untouched() const {
    for (const Tensor* tensor : {&d_q_, &d_k_, &d_v_})
      for (const std::byte b : tensor->bytes())
        if (b != std::byte{0x5a}) return false;
    for (const float x : d_sink_)
      if (std::bit_cast<std::uint32_t>(x) != 0x5a5a5a5au) return false;
    return true;
  }

 private:
  static Numbers numbers(const Tensor& tensor, bool wanted) {
    const TensorView& view = tensor.view();
    Numbers all(view.tokens, view.heads, view.dim);
    bool written = true;
    for (Index t = 0; t < view.tokens; ++t)
      for (Index h = 0; h < view.heads; ++h)
        for (Index d = 0; d < view.dim; ++d) {
          const float x = all.at(t, h, d) = tensor.at(t, h, d);
          written = written && std::bit_cast<std::uint32_t>(x) != 0x5a5a5a5au;
        }
    EXPECT_EQ(written, wanted || all.values.empty()) << "of gradients that are wanted every element is written";
    return all;
  }

  Tensor d_q_, d_k_, d_v_;
  std::vector<float> d_sink_;
};

/// What the forward call leaves.
template <class V, class Functor = DynamicAttention>
Output run_forward(const BackwardInputs& in, const BackwardHow& how, const V& variant, const Functor& functor = {}) {
  Output output(how.out, in.q.tokens, in.q.heads, in.kv.value_dim, how.layout);
  functor(Sequence{in.q, in.kv, output.view(), in.positions, output.lse()}, variant, how.forward_options());
  return output;
}

/// The backward call behind it.
template <class V, class Functor = DynamicAttentionBackward>
Gradients run_backward(const BackwardInputs& in, Output& forward, const BackwardHow& how, const V& variant,
                       const Wanted& wanted = {}, const Functor& functor = {}) {
  auto memory = GradientTensors::of<V>(in, how.layout);
  functor(Sequence{in.q, in.kv, forward.view(), in.positions, forward.lse()}, memory.gradients(in.d_out, wanted),
          variant, how.options());
  return memory.result(wanted);
}

/// Both.
template <class V = Causal>
Gradients differentiate(const BackwardInputs& in, const BackwardHow& how, const V& variant = {}) {
  Output forward = run_forward(in, how, variant);
  return run_backward(in, forward, how, variant);
}

inline testing::AssertionResult same_numbers(const Numbers& expected, const Numbers& actual, const char* what) {
  if (expected.tokens != actual.tokens || expected.heads != actual.heads || expected.dim != actual.dim)
    return testing::AssertionFailure() << what << " has another shape";
  std::size_t differences = 0;
  std::ostringstream first;
  first.precision(9);
  for (Index t = 0; t < expected.tokens; ++t)
    for (Index h = 0; h < expected.heads; ++h)
      for (Index d = 0; d < expected.dim; ++d) {
        const float a = expected.at(t, h, d), b = actual.at(t, h, d);
        if (same_value(a, b)) continue;
        if (differences++ == 0)
          first << what << " of token " << t << ", head " << h << ", dim " << d << ": " << a << " and " << b;
      }
  if (differences == 0) return testing::AssertionSuccess();
  return testing::AssertionFailure() << differences << " of " << expected.values.size()
                                     << " values differ; first: " << first.str();
}

inline testing::AssertionResult same_floats(const std::vector<float>& expected, const std::vector<float>& actual,
                                            const char* what) {
  if (expected.size() != actual.size())
    return testing::AssertionFailure() << what << ": " << expected.size() << " and " << actual.size();
  for (std::size_t i = 0; i < expected.size(); ++i)
    if (!same_value(expected[i], actual[i]))
      return testing::AssertionFailure() << what << "[" << i << "]: " << expected[i] << " and " << actual[i];
  return testing::AssertionSuccess();
}

/// Every element ==, where −0 equals +0 and NaN equals NaN.
inline testing::AssertionResult same_gradients(const Gradients& expected, const Gradients& actual) {
  for (const auto& result :
       {same_numbers(expected.d_q, actual.d_q, "d_q"), same_numbers(expected.d_k, actual.d_k, "d_k"),
        same_numbers(expected.d_v, actual.d_v, "d_v"), same_floats(expected.d_sink, actual.d_sink, "d_sink")})
    if (!result) return result;
  return testing::AssertionSuccess();
}

}  // namespace gqa::test
