// SPDX-License-Identifier: Apache-2.0
// A user's unit that instantiates what the headers have, so that a strict compiler sees all of it: functors with static and dynamic
// extents over every type of cache, variants that mask, score and check, every storage, every executor. It is compiled with many sets
// of flags; what it computes is looked at as well, in the builds that run.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "gqa/gqa.hpp"
#include "gqa/qk_norm.hpp"
#include "gqa/rope.hpp"
#include "gqa/rotation.hpp"

#if defined(GQA_TEST_EIGEN)
#include "gqa/eigen.hpp"
#include "gqa/reference.hpp"
#include "gqa/reference_backward.hpp"
#include "gqa/thread_pool.hpp"
#endif

namespace {

constexpr int kQueryHeads = 4;
constexpr int kKvHeads = 2;
constexpr int kHeadDim = 24;
constexpr gqa::Index kTokens = 70;
constexpr gqa::Index kRow = kKvHeads * kHeadDim;

// A user's variant with every optional part.
struct SlopedTree {
  float slope = 0.125f;
  static gqa::PositionRange visible_range(gqa::Index query_position, gqa::Index kv_length) noexcept {
    return {0, query_position < kv_length ? query_position + 1 : kv_length};
  }
  static bool is_visible(gqa::Index query_position, gqa::Index key_position, gqa::Index) noexcept {
    return (query_position + key_position) % 3 != 1 || query_position == key_position;
  }
  float score(float score, gqa::Index query_position, gqa::Index key_position, gqa::Index) const noexcept {
    const float distance = static_cast<float>(query_position - key_position) * slope;
    return score - distance;
  }
  static void check() noexcept {}
};

// A program's own threads: here none.
struct OwnExecutor {
  static void parallel_for(gqa::Index count, const gqa::TaskRef& work) noexcept {
    for (gqa::Index task = count - 1; task >= 0; --task) work(task);
  }
  static gqa::Index concurrency() noexcept { return 2; }
};

std::vector<float> numbers(gqa::Index count, std::uint32_t state) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 9) * 0x1p-22f - 1.0f;
  }
  return values;
}

// The queries of the last tokens of `kv`, attended to by a functor; what differs from `expected` is counted.
template <class Attention, class V>
int differing(const Attention& attention, const gqa::KvCacheView& kv, const V& variant, const gqa::Options& options,
              std::vector<float>& expected) {
  constexpr gqa::Index queries = 3;
  const std::vector<float> q = numbers(queries * kQueryHeads * kHeadDim, 7);
  std::vector<float> out(q.size());
  std::vector<float> lse(static_cast<std::size_t>(queries * kQueryHeads));
  gqa::Sequence sequence{
      {q.data(), queries, kQueryHeads, kHeadDim}, kv, {out.data(), queries, kQueryHeads, kHeadDim}, {}, lse};
  std::vector<std::byte> scratch(attention.scratch_bytes({&sequence, 1}, variant, options));
  gqa::Options with_scratch = options;
  with_scratch.scratch = scratch;
  attention(sequence, variant, with_scratch);
  if (expected.empty()) {
    expected = out;
    return 0;
  }
  int count = 0;
  for (std::size_t i = 0; i < out.size(); ++i) count += out[i] < expected[i] || out[i] > expected[i] ? 1 : 0;
  return count;
}

template <class Cache>
void fill(Cache& cache) {
  const std::vector<float> keys = numbers(kTokens * kRow, 1);
  const std::vector<float> values = numbers(kTokens * kRow, 2);
  cache.append(gqa::ConstTensorView(keys.data(), kTokens, kKvHeads, kHeadDim),
               gqa::ConstTensorView(values.data(), kTokens, kKvHeads, kHeadDim));
}

// Every storage and executor under one variant and type: the same bits.
template <class Element, class V>
int run(const V& variant) {
  constexpr gqa::ElementType type = gqa::ElementTraits<Element>::type;
  gqa::ContiguousKvCache contiguous({.kv_heads = kKvHeads, .head_dim = kHeadDim, .k_type = type, .capacity = 128});
  gqa::RingKvCache ring({.kv_heads = kKvHeads, .head_dim = kHeadDim, .k_type = type, .capacity = 96});
  gqa::PagedKvPool pool({.kv_heads = kKvHeads, .head_dim = kHeadDim, .k_type = type, .page_size = 5, .pages = 64});
  gqa::PagedSequence sequence = pool.sequence();
  fill(contiguous);
  fill(ring);
  fill(sequence);
  const gqa::PagedSequence forked = sequence.fork(kTokens - 1);
  const gqa::GroupedQueryAttention<kQueryHeads, kKvHeads, kHeadDim, kHeadDim, gqa::CacheOf<Element>> attention;
  const gqa::DynamicAttention dynamic_attention;
  std::vector<float> expected;
  gqa::Options options;
  int count = differing(attention, contiguous.view(), variant, options, expected);
  count += differing(dynamic_attention, contiguous.view(), variant, options, expected);
  count += differing(attention, ring.view(), variant, options, expected);
  OwnExecutor own;
  options.executor = gqa::ExecutorRef(own);
  count += differing(attention, sequence.view(), variant, options, expected);
#if defined(_OPENMP)
  gqa::OpenMpExecutor team{2};
  options.executor = gqa::ExecutorRef(team);
  count += differing(attention, sequence.view(), variant, options, expected);
#endif
#if defined(GQA_TEST_EIGEN)
  gqa::ThreadPoolExecutor threads(2);
  options.executor = gqa::ExecutorRef(threads);
  count += differing(attention, sequence.view(), variant, options, expected);
#endif
  return count + (forked.length() == kTokens - 1 && forked.pages().size() == 14 ? 0 : 1);
}

// A hook with nothing but what it must have.
struct Doubles {
  void change(const gqa::KeyRow& row) const noexcept {
    for (gqa::Index d = 0; d < row.dim; ++d) row.elements[d] *= 2.0f;
  }
};

// Keys through hooks, in each cache.
template <class Element>
int hooked() {
  const gqa::KvCacheConfig config{.kv_heads = kKvHeads,
                                  .head_dim = kHeadDim,
                                  .k_type = gqa::ElementTraits<Element>::type,
                                  .k_rotation = 8,
                                  .v_rotation = 4,
                                  .capacity = kTokens};
  gqa::ContiguousKvCache contiguous(config);
  gqa::RingKvCache ring(config);
  gqa::PagedKvPool pool({.kv_heads = kKvHeads, .head_dim = kHeadDim, .page_size = 5, .pages = 40});
  gqa::PagedSequence paged = pool.sequence();
  const gqa::Rope rope({.dims = kHeadDim}, kTokens);
  const gqa::Index positions[] = {3, 9};
  const gqa::Index kept[] = {1};
  std::vector<float> rows(2 * kRow, 0.5f);
  gqa::hadamard_rotate(gqa::TensorView(rows.data(), 2, kKvHeads, kHeadDim), 2);
  const auto use = [&](auto& cache) {
    cache.append(rows, rows, gqa::compose_hooks(gqa::RmsNormKeys{}, Doubles{}, rope.keys()));
    cache.append(rows, rows, rope.keys(positions));
    cache.keep(2, kept);
    cache.erase(0, 1);
    cache.change_keys(0, 2, rope.shift(-1));
    return cache.length() == 2 ? 0 : 1;
  };
  return use(contiguous) + use(ring) + use(paged);
}

#if defined(GQA_TEST_EIGEN)
// Largest distance from the definition in double precision.
double largest_error() {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Matrix k = Matrix::Constant(kTokens, kRow, 0.5f);
  const Matrix v = Matrix::Constant(kTokens, kRow, -2.0f);
  const Matrix q = Matrix::Constant(3, kQueryHeads * kHeadDim, 0.25f);
  Matrix out(3, kQueryHeads * kHeadDim);
  const gqa::KvCacheView kv = gqa::kv_cache_view(k, v, kKvHeads);
  const gqa::ConstTensorView queries = gqa::tensor_view(q, kQueryHeads);
  const gqa::TensorView outputs = gqa::tensor_view(out, kQueryHeads);
  gqa::MultiQueryAttention<kQueryHeads, kHeadDim>{}.shape();
  gqa::GroupedQueryAttention<kQueryHeads, kKvHeads, gqa::dynamic>{}(queries, kv, outputs, gqa::CausalWindow{9});
  const gqa::ReferenceResult reference = gqa::reference_attention(queries, kv, gqa::CausalWindow{9});
  double error = 0.0;
  for (gqa::Index token = 0; token < 3; ++token)
    for (gqa::Index head = 0; head < kQueryHeads; ++head) {
      const auto map = gqa::head_map<float>(outputs, head);
      error = std::fmax(
          error, (map.row(token).cast<double>() - reference.out.row(token * kQueryHeads + head)).cwiseAbs().maxCoeff());
    }
  // Values are all the same: outputs do not depend on scores.
  const gqa::ReferenceGradients gradients = gqa::reference_backward(queries, kv, outputs, gqa::CausalWindow{9});
  return std::fmax(error, std::fmax(gradients.d_q.cwiseAbs().maxCoeff(), gradients.d_k.cwiseAbs().maxCoeff()));
}
#endif

}  // namespace

int main() {
  int count = hooked<float>() + hooked<gqa::bf16>() + hooked<gqa::f16>();
  count += run<float>(gqa::Causal{}) + run<gqa::bf16>(SlopedTree{}) + run<gqa::f16>(gqa::CausalWindow{31}) +
           run<gqa::f16>(gqa::Full{});
#if defined(GQA_TEST_EIGEN)
  count += largest_error() < 1e-6 ? 0 : 1;
#endif
  std::printf("%d results differ, path %s\n", count, gqa::path_name(gqa::active_path().path));
  return count == 0 ? 0 : 1;
}
