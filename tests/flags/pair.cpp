// SPDX-License-Identifier: Apache-2.0
// One unit of a pair with different flags: calls of the whole core, under a name of its own (GQA_UNIT). It uses nothing of the standard
// library's itself, so that what it shares with other units comes from the library.
#include "gqa/gqa.hpp"
#include "gqa/qk_norm.hpp"
#include "gqa/rope.hpp"
#include "gqa/rotation.hpp"

// A digest of the bits of every result. Plain data only.
extern "C" std::uint64_t GQA_UNIT();

// Public types of a program, with external names: what the library makes of them is shared if its names are.
struct PairVariant {
  GQA_ALWAYS_INLINE gqa::PositionRange visible_range(gqa::Index query, gqa::Index length) const {
    return {query / 8, length};
  }
  GQA_ALWAYS_INLINE bool is_visible(gqa::Index query, gqa::Index key, gqa::Index) const { return (query ^ key) != 12; }
  GQA_ALWAYS_INLINE float score(float score, gqa::Index, gqa::Index, gqa::Index) const { return score * 0.5f; }
};
struct PairExecutor {
  GQA_ALWAYS_INLINE gqa::Index concurrency() const { return 3; }
  GQA_ALWAYS_INLINE void parallel_for(gqa::Index count, const gqa::TaskRef& work) const {
    for (gqa::Index task = count; task-- > 0;) work(task);
  }
};

namespace {

constexpr int kQueryHeads = 4;
constexpr int kKvHeads = 2;
constexpr int kHeadDim = 24;
constexpr int kTokens = 600;
constexpr int kQueries = 20;

float q[kQueries * kQueryHeads * kHeadDim];
float k[kTokens * kKvHeads * kHeadDim];
float v[kTokens * kKvHeads * kHeadDim];
float out[kQueries * kQueryHeads * kHeadDim];
float lse[kQueries * kQueryHeads];

void fill(float* values, int count, std::uint32_t seed) {
  for (int i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    values[i] = static_cast<float>(static_cast<std::int32_t>(seed >> 8) - (1 << 23)) * 0x1p-23f;
  }
}

std::uint64_t digest(const float* values, int count, std::uint64_t hash) {
  for (int i = 0; i < count; ++i) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, values + i, sizeof bits);
    if ((bits & 0x7fffffffu) == 0) bits = 0;
    for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ ((bits >> shift) & 0xffu)) * 0x100000001b3u;
  }
  return hash;
}

using Attention = gqa::GroupedQueryAttention<kQueryHeads, kKvHeads, kHeadDim, kHeadDim, gqa::CacheOf<float>>;

std::uint64_t refused() {
#if defined(__cpp_exceptions)
  try {
    const Attention attention;
    attention({q, 1, kQueryHeads + 1, kHeadDim}, gqa::KvCacheView{}, {out, 1, kQueryHeads, kHeadDim});
  } catch (const gqa::ArgumentError& error) {
    return static_cast<std::uint64_t>(__builtin_strlen(error.what()));
  }
  return 0;
#else
  return __builtin_strlen("gqa: q.heads is 5; expected 4");
#endif
}

template <class V>
std::uint64_t run(const gqa::KvCacheView& kv, int queries, const V& variant, std::uint64_t hash) {
  const Attention attention;
  PairExecutor executor;
  gqa::Sequence sequence{{q, queries, kQueryHeads, kHeadDim}, kv, {out, queries, kQueryHeads, kHeadDim}};
  sequence.lse = std::span<float>(lse, static_cast<std::size_t>(queries * kQueryHeads));
  attention(sequence, variant, gqa::Options{.executor = gqa::ExecutorRef(executor)});
  return digest(lse, queries * kQueryHeads, digest(out, queries * kQueryHeads * kHeadDim, hash));
}

}  // namespace

extern "C" std::uint64_t GQA_UNIT() {
  fill(q, kQueries * kQueryHeads * kHeadDim, 1);
  fill(k, kTokens * kKvHeads * kHeadDim, 2);
  fill(v, kTokens * kKvHeads * kHeadDim, 3);
  const gqa::ConstTensorView k_rows(k, kTokens, kKvHeads, kHeadDim);
  const gqa::ConstTensorView v_rows(v, kTokens, kKvHeads, kHeadDim);
  std::uint64_t hash = refused();

  hash = run(gqa::KvCacheView::contiguous(k, v, {kTokens, kKvHeads, kHeadDim}), 1, gqa::Causal{}, hash);
  gqa::ContiguousKvCache contiguous({.kv_heads = kKvHeads, .head_dim = kHeadDim, .capacity = kTokens});
  contiguous.append(k_rows, v_rows);
  hash = run(contiguous.view(), kQueries, gqa::Full{}, hash);
  gqa::RingKvCache ring(
      {.kv_heads = kKvHeads, .head_dim = kHeadDim, .k_rotation = 8, .v_rotation = 4, .capacity = 200});
  ring.append(k_rows, v_rows);
  hash = run(ring.view(), 3, gqa::CausalWindow{150}, hash);
  float turned[kHeadDim];
  for (float& x : turned) x = 1.0f;
  gqa::hadamard_rotate(gqa::TensorView(turned, 1, 1, kHeadDim), 8);
  hash += turned[0] > 2.8f ? 1 : 0;
  gqa::PagedKvPool pool({.kv_heads = kKvHeads, .head_dim = kHeadDim, .page_size = 7, .pages = 200});
  gqa::PagedSequence pages = pool.sequence();
  pages.append(k_rows, v_rows);
  gqa::PagedSequence fork = pages.fork();
  const gqa::Rope rope({.dims = kHeadDim}, 2 * kTokens);
  fork.append(k_rows.slice(0, 5), v_rows.slice(0, 5), gqa::compose_hooks(gqa::RmsNormKeys{}, rope.keys()));
  fork.erase(3, 6);
  fork.change_keys(3, fork.length(), rope.shift(-3));
  return run(fork.view(), 5, PairVariant{}, hash);
}
