// SPDX-License-Identifier: Apache-2.0
// One attention problem: its shape, its types, its numbers; running it; and comparing what comes out.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "caches.hpp"
#include "gqa/attention.hpp"
#include "paths.hpp"
#include "random.hpp"
#include "tensors.hpp"

namespace gqa::test {

/// Tests make small calls; they are to be spread over as many workers as an executor says that it has.
inline const bool small_calls_have_many_workers = [] {
  detail::time_worth_a_worker().store(0);
  return true;
}();

struct Shape {
  Index query_heads = 4;
  Index kv_heads = 2;
  Index head_dim = 16;
  Index value_dim = 16;
  Index n_q = 1;
  Index n_kv = 1;
};

inline std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << "Hq " << s.query_heads << ", Hkv " << s.kv_heads << ", D " << s.head_dim << ", Dv " << s.value_dim
             << ", n_q " << s.n_q << ", n_kv " << s.n_kv;
}

struct Types {
  ElementType q = ElementType::f32;
  ElementType k = ElementType::f32;
  ElementType v = ElementType::f32;
  ElementType out = ElementType::f32;
};

/// All four the same: for bf16, what takes bf16 products where a path has them.
inline Types all_of(ElementType type) { return {type, type, type, type}; }
/// Queries of the cache's type, outputs in f32, so that no difference is rounded away.
inline Types cache_of(ElementType type) { return {type, type, type, ElementType::f32}; }

inline std::ostream& operator<<(std::ostream& out, const Types& t) {
  return out << "q " << element_name(t.q) << ", k " << element_name(t.k) << ", v " << element_name(t.v) << ", out "
             << element_name(t.out);
}

/// Queries, keys and values.
struct Problem {
  Shape shape;
  Numbers q;
  LogicalCache kv;
};

inline Problem make_problem(const Shape& shape, std::uint64_t seed, Distribution distribution = Distribution::normal) {
  Problem problem{
      shape,
      Numbers(shape.n_q, shape.query_heads, shape.head_dim),
      {Numbers(shape.n_kv, shape.kv_heads, shape.head_dim), Numbers(shape.n_kv, shape.kv_heads, shape.value_dim)}};
  Random random(seed);
  for (float& x : problem.q.values) x = random.normal();
  for (float& x : problem.kv.k.values) x = random.normal();
  for (float& x : problem.kv.v.values) x = random.normal();
  const auto dim = static_cast<float>(shape.head_dim);
  switch (distribution) {
    case Distribution::normal: break;
    case Distribution::sinks:
      for (Index t = 0; t < shape.n_kv; ++t)
        for (Index h = 0; h < shape.kv_heads; ++h) {
          problem.kv.k.at(t, h, 0) += 6.0f;
          if (t < 4) problem.kv.k.at(t, h, shape.head_dim / 2) += 12.0f;
        }
      for (Index t = 0; t < shape.n_q; ++t)
        for (Index h = 0; h < shape.query_heads; ++h) {
          problem.q.at(t, h, 0) += 3.0f;
          problem.q.at(t, h, shape.head_dim / 2) += 3.0f;
        }
      break;
    case Distribution::large_scores:
      // q·k/√D has deviation 1 before: 100 on either side makes it 10,000.
      for (float& x : problem.q.values) x *= 100.0f;
      for (float& x : problem.kv.k.values) x *= 100.0f;
      break;
    case Distribution::dominant_key:
      // Every query has a part along (1, 1, …)/√D; one key in the middle points there.
      for (float& x : problem.q.values) x = 0.2f * x + 1.0f;
      for (Index h = 0; h < shape.kv_heads && shape.n_kv > 0; ++h)
        for (Index d = 0; d < shape.head_dim; ++d) problem.kv.k.at(shape.n_kv / 2, h, d) = 40.0f / std::sqrt(dim);
      break;
    case Distribution::equal_keys:
      for (Index t = 1; t < shape.n_kv; ++t)
        for (Index h = 0; h < shape.kv_heads; ++h)
          for (Index d = 0; d < shape.head_dim; ++d) problem.kv.k.at(t, h, d) = problem.kv.k.at(0, h, d);
      break;
    case Distribution::far_values:
      for (float& x : problem.kv.v.values) x += 64.0f;
      break;
    case Distribution::denormal:
      // Denormal as f32 and as bf16, and in f16 zero or its least denormals.
      for (float& x : problem.kv.k.values) x *= 0x1p-130f;
      for (float& x : problem.kv.v.values) x *= 0x1p-130f;
      break;
  }
  return problem;
}

/// How one call is made.
struct How {
  Path path = Path::portable;
  ElementType out = ElementType::f32;
  ExecutorRef executor = {};
  std::optional<float> scale = std::nullopt;
  Products products = usual_products();
  TensorLayout out_layout = TensorLayout::packed;
  const KvCacheView* integers =
      nullptr;  ///< what is computed with, where the reference has the f32 rows that it stands for

  Options options() const {
    Options options;
    options.scale = scale;
    options.executor = executor;
    options.path = path;
    options.products = products;
    return options;
  }
};

/// What came out, widened to f32 (exactly), in (token, head, dim) and (token, head) order.
struct Result {
  Index tokens = 0;
  Index heads = 0;
  Index dim = 0;
  std::vector<float> out;
  std::vector<float> lse;

  const float& at(Index token, Index head, Index d) const {
    return out[static_cast<std::size_t>((token * heads + head) * dim + d)];
  }
  const float& lse_at(Index token, Index head) const { return lse[static_cast<std::size_t>(token * heads + head)]; }

  /// Tokens [first, first + count).
  Result slice(Index first, Index count) const {
    const Index row = heads * dim;
    return {count,
            heads,
            dim,
            {out.begin() + first * row, out.begin() + (first + count) * row},
            {lse.begin() + first * heads, lse.begin() + (first + count) * heads}};
  }
  void append(const Result& more) {
    tokens += more.tokens;
    heads = more.heads;
    dim = more.dim;
    out.insert(out.end(), more.out.begin(), more.out.end());
    lse.insert(lse.end(), more.lse.begin(), more.lse.end());
  }
};

/// Output storage whose bytes all start as 0x5a, so that a row that is never written is found: no result in these tests comes
/// near 1.5e16, which that is in f32 and bf16, or is exactly 203.25, which it is in f16.
class Output {
 public:
  Output(ElementType type, Index tokens, Index heads, Index dim, TensorLayout layout = TensorLayout::packed)
      : tensor_(type, tokens, heads, dim, layout),
        lse_(static_cast<std::size_t>(tokens * heads), std::bit_cast<float>(0x5a5a5a5au)) {
    std::fill(tensor_.bytes().begin(), tensor_.bytes().end(), std::byte{0x5a});
  }
  const TensorView& view() const { return tensor_.view(); }
  std::span<float> lse() { return lse_; }
  Tensor& tensor() { return tensor_; }

  bool untouched() const {
    for (const std::byte b : tensor_.bytes())
      if (b != std::byte{0x5a}) return false;
    for (const float x : lse_)
      if (std::bit_cast<std::uint32_t>(x) != 0x5a5a5a5au) return false;
    return true;
  }

  Result result() const {
    const TensorView& v = tensor_.view();
    Result result{v.tokens, v.heads, v.dim, {}, lse_};
    result.out.reserve(static_cast<std::size_t>(v.tokens * v.heads * v.dim));
    const float never = rounded_never(v.type);
    bool written = true;
    for (Index t = 0; t < v.tokens; ++t)
      for (Index h = 0; h < v.heads; ++h)
        for (Index d = 0; d < v.dim; ++d) {
          result.out.push_back(tensor_.at(t, h, d));
          written = written && result.out.back() != never;
        }
    for (const float x : lse_) written = written && std::bit_cast<std::uint32_t>(x) != 0x5a5a5a5au;
    EXPECT_TRUE(written) << "an output element was never written";
    return result;
  }

 private:
  static float rounded_never(ElementType type) {
    const std::byte raw[4] = {std::byte{0x5a}, std::byte{0x5a}, std::byte{0x5a}, std::byte{0x5a}};
    return read_element(raw, type);
  }
  Tensor tensor_;
  std::vector<float> lse_;
};

/// One call for one sequence.
template <class Functor = DynamicAttention, class V = Causal>
Result attend(const ConstTensorView& q, const KvCacheView& kv, const How& how, const V& variant = {},
              std::span<const Index> positions = {}, const Functor& functor = {}) {
  Output output(how.out, q.tokens, q.heads, kv.value_dim, how.out_layout);
  functor(Sequence{q, kv, output.view(), positions, output.lse()}, variant, how.options());
  return output.result();
}

/// The problem in the plainest storage.
template <class V = Causal>
Result solve(const Problem& problem, const Types& types, How how, const V& variant = {}) {
  const Tensor q(problem.q, types.q);
  const StoredCaches kv = store_cache(problem.kv, types.k, types.v, {});
  how.out = types.out;
  return attend(q.const_view(), kv.view(), how, variant);
}

/// The cache cut to its first `length` tokens: what it was when the last of them had just been appended.
inline KvCacheView first_tokens(KvCacheView view, Index length) {
  view.length = length;
  return view;
}

inline bool same_value(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

/// Every output element and every lse ==, where −0 equals +0 and NaN equals NaN.
inline testing::AssertionResult same_bits(const Result& expected, const Result& actual) {
  if (expected.tokens != actual.tokens || expected.heads != actual.heads || expected.dim != actual.dim)
    return testing::AssertionFailure() << "shapes differ: " << expected.tokens << " × " << expected.heads << " × "
                                       << expected.dim << " and " << actual.tokens << " × " << actual.heads << " × "
                                       << actual.dim;
  std::size_t differences = 0;
  std::ostringstream first;
  first.precision(9);
  const auto compare = [&](float a, float b, const char* what, Index token, Index head, Index d) {
    if (same_value(a, b)) return;
    if (differences++ == 0) {
      first << "first: " << what << " of token " << token << ", head " << head;
      if (d >= 0) first << ", dim " << d;
      first << ": " << a << " (0x" << std::hex << std::bit_cast<std::uint32_t>(a) << ") and " << b << " (0x"
            << std::bit_cast<std::uint32_t>(b) << ")";
    }
  };
  for (Index t = 0; t < expected.tokens; ++t)
    for (Index h = 0; h < expected.heads; ++h) {
      for (Index d = 0; d < expected.dim; ++d) compare(expected.at(t, h, d), actual.at(t, h, d), "out", t, h, d);
      compare(expected.lse_at(t, h), actual.lse_at(t, h), "lse", t, h, -1);
    }
  if (differences == 0) return testing::AssertionSuccess();
  return testing::AssertionFailure() << differences << " of " << expected.out.size() + expected.lse.size()
                                     << " values differ; " << first.str();
}

/// For SCOPED_TRACE.
template <class... Parts>
std::string describe(const Parts&... parts) {
  std::ostringstream text;
  const char* separator = "";
  ((text << separator << parts, separator = ", "), ...);
  return text.str();
}
inline std::string on(Path path) { return std::string("path ") + path_name(path); }

}  // namespace gqa::test
