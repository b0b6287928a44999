// SPDX-License-Identifier: Apache-2.0
/// @file
/// An attention call ready to be made again and again: decode, verify, chunk or prefill by its number of query tokens.
#pragma once

#include <string>
#include <vector>

#include "bench_main.hpp"
#include "peak_of_call.hpp"

namespace gqa::bench {

/// What is called. The queries are the last `query_tokens` of the cache's tokens.
struct CallShape {
  CacheShape cache;
  Index query_tokens = 1;
  ElementType query_type = ElementType::bf16;  ///< set by the makers to the cache's query_type()
  Index window = 0;                            ///< sliding window; 0: plain causal
  Path path = best_path();
  int threads = 1;
  bool cold = true;  ///< the cache comes from memory at every call

  /// Visible (query, key) pairs per query head.
  double pairs() const {
    if (window == 0 || window >= cache.tokens) return causal_pairs(query_tokens, cache.tokens);
    double sum = 0;
    for (Index i = 0; i < query_tokens; ++i)
      sum += static_cast<double>(std::min(window, cache.tokens - query_tokens + i + 1));
    return sum;
  }
  /// "heads/type/tokens/path/threads".
  std::string arguments() const {
    return cache.heads_name() + "/" + cache.type_name() + "/" + std::to_string(cache.tokens) + "/" + path_name(path) +
           "/t" + std::to_string(threads);
  }
  Work work() const {
    Work work;
    work.bytes = cache.bytes();
    work.flop = attention_flop(pairs(), cache);
    work.peak = peak_of_call(path, query_type, cache.type);
    return work;
  }
};

/// Makes the call, with a functor of a type. Results go to f32 outputs that nobody reads.
template <class Functor>
class CallOf {
 public:
  explicit CallOf(const CallShape& shape, NormalMemory& memory = normal_memory())
      : shape_(shape),
        caches_(shape.cache, shape.cold, memory),
        query_(normal_elements(shape.query_type, elements(), 2)),
        out_(elements() / static_cast<std::size_t>(shape.cache.head_dim) *
             static_cast<std::size_t>(shape.cache.value_dim())) {
    q_.data = query_.data();
    q_.type = shape.query_type;
    q_.tokens = shape.query_tokens;
    q_.heads = shape.cache.query_heads;
    q_.dim = shape.cache.head_dim;
    q_.strides = {q_.heads * q_.dim, q_.dim, 1};
    options_.path = shape.path;
    options_.executor = team_of(shape.threads);
  }
  void operator()() {
    const TensorView out(out_.data(), q_.tokens, q_.heads, shape_.cache.value_dim());
    if (shape_.cache.layout == Layout::ring)
      attention_(q_, caches_.next(), out, CausalWindow{shape_.cache.tokens}, options_);
    else if (shape_.window > 0) attention_(q_, caches_.next(), out, CausalWindow{shape_.window}, options_);
    else attention_(q_, caches_.next(), out, options_);
  }
  /// The same call with a variant.
  template <class V>
  void with(const V& variant) {
    attention_(q_, caches_.next(), TensorView(out_.data(), q_.tokens, q_.heads, shape_.cache.value_dim()), variant,
               options_);
  }

 private:
  std::size_t elements() const {
    return static_cast<std::size_t>(shape_.query_tokens * shape_.cache.query_heads * shape_.cache.head_dim);
  }
  CallShape shape_;
  CacheRotation caches_;
  std::vector<std::byte> query_;
  std::vector<float> out_;
  ConstTensorView q_;
  Options options_;
  Functor attention_;
};

using AttentionCall = CallOf<DynamicAttention>;

}  // namespace gqa::bench
