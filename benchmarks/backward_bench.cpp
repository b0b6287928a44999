// SPDX-License-Identifier: Apache-2.0
/// @file
/// Gradients of a causal prefill, with the forward call beside them.
///
///   backward/<heads>/<type>/<tokens>/<path>/t<threads>           all of d_q, d_k and d_v
///   backward_head_dim_<D>                                        the same for other head dims
///
/// FLOP are counted as 2.5 times the forward pass's, five products for two; d_out has the queries' type. Bf16 on Path::amx is held against
/// vector products, which it takes.

#include "attention_call.hpp"
#include "gqa/backward.hpp"

namespace gqa::bench {
namespace {

/// A backward call ready to be made again and again; q, kv, out and lse are a forward call's.
class BackwardCall {
 public:
  explicit BackwardCall(const CallShape& shape)
      : caches_(shape.cache, false, normal_memory()), shape_(shape), kv_(caches_.next()) {
    const CacheShape& cache = shape.cache;
    const Index tokens = cache.tokens;
    const auto elements = static_cast<std::size_t>(tokens * cache.query_heads * cache.head_dim);
    const auto kv_elements = static_cast<std::size_t>(tokens * cache.kv_heads * cache.head_dim);
    query_ = normal_elements(shape.query_type, elements, 2);
    d_out_ = normal_elements(shape.query_type, elements, 3);
    out_.resize(elements * static_cast<std::size_t>(element_bytes(shape.query_type)));
    lse_.resize(static_cast<std::size_t>(tokens * cache.query_heads));
    d_q_.resize(elements);
    d_k_.resize(kv_elements);
    d_v_.resize(kv_elements);
    const auto view = [&](auto* data) {
      return BasicTensorView<std::remove_pointer_t<decltype(data)>>(data, shape.query_type, tokens, cache.query_heads,
                                                                    cache.head_dim);
    };
    sequence_.q = view(static_cast<const void*>(query_.data()));
    sequence_.kv = kv_;
    sequence_.out = view(static_cast<void*>(out_.data()));
    sequence_.lse = lse_;
    gradients_.d_out = view(static_cast<const void*>(d_out_.data()));
    gradients_.d_q = TensorView(d_q_.data(), tokens, cache.query_heads, cache.head_dim);
    gradients_.d_k = TensorView(d_k_.data(), tokens, cache.kv_heads, cache.head_dim);
    gradients_.d_v = TensorView(d_v_.data(), tokens, cache.kv_heads, cache.head_dim);
    options_.path = shape.path;
    options_.executor = team_of(shape.threads);
    forward();
  }
  void operator()() { backward_(sequence_, gradients_, options_); }
  void forward() { attention_(sequence_, options_); }

 private:
  CacheRotation caches_;
  CallShape shape_;
  KvCacheView kv_;
  std::vector<std::byte> query_, d_out_, out_;
  std::vector<float> lse_, d_q_, d_k_, d_v_;
  Sequence sequence_{};
  SequenceGradients gradients_{};
  BackwardOptions options_{};
  DynamicAttention attention_;
  DynamicAttentionBackward backward_;
};

void add_backward(const std::string& operation, const CacheShape& cache, int threads, Path path,
                  double target_percent = 0) {
  const CallShape shape{.cache = cache,
                        .query_tokens = cache.tokens,
                        .query_type = cache.query_type(),
                        .path = path,
                        .threads = threads,
                        .cold = false};
  add(operation + "/" + shape.arguments(), [=](benchmark::State& state) {
    BackwardCall call(shape);
    Work work = shape.work();
    work.flop *= 2.5;
    if (work.peak == Limit::bf16_tile) work.peak = Limit::bf16_dot;
    work.target_percent = target_percent;
    const TimedCall forward([&] { call.forward(); });
    const std::vector<double> beside =
        measure_call(state, shape.threads, work, [&] { call(); }, {[&] { return forward(); }});
    state.counters["forward_s"] = beside[0];
  });
}

}  // namespace

void register_benchmarks() {
  constexpr ElementType bf16 = ElementType::bf16, f32 = ElementType::f32;
  if (best_path() == Path::portable) {  // long prompts would take minutes
    add_backward("backward", {.tokens = 128, .type = f32}, 1, Path::portable);
    return;
  }
  const bool pairs = best_path() == Path::avx512bf16 || best_path() == Path::amx;
  for (const int threads : thread_counts()) {
    for (const Path path : {Path::avx512, Path::avx2})
      if (path_available(path) && path <= best_path())
        add_backward("backward", {.tokens = 2048, .type = f32}, threads, path, 60);
    if (pairs) add_backward("backward", {.tokens = 2048, .type = bf16}, threads, best_path(), 50);
  }
  for (const Index head_dim : {64, 96, 256})
    add_backward("backward_head_dim_" + std::to_string(head_dim), {.head_dim = head_dim, .tokens = 1024, .type = f32},
                 1, pairs ? Path::avx512 : best_path());
  add_backward("backward_MQA", {.kv_heads = 1, .tokens = 1024, .type = f32}, 1, pairs ? Path::avx512 : best_path());
}

}  // namespace gqa::bench
