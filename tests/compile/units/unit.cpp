// SPDX-License-Identifier: Apache-2.0
// The same attention calls, compiled once per set of compiler flags under a name of its own (GQA_UNIT). Whatever the flags, the
// bits must be the same, and units of all flags must link into one program.
#include <bit>

#include "gqa/gqa.hpp"

#include "digests.hpp"

// Only these names differ between the units; everything else here has internal linkage.
void GQA_UNIT(Digests& digests);

namespace {

constexpr int kQueryHeads = 6;
constexpr int kKvHeads = 2;
constexpr int kHeadDim = 40;  // not a multiple of 16, so that tails are computed too
constexpr int kTokens = 777;
constexpr int kPage = 7;
constexpr int kPages = (kTokens + kPage - 1) / kPage;
constexpr int kQueries = 5;
constexpr gqa::Index kRow = kKvHeads * kHeadDim;

// A user's variant that changes scores: its functions are compiled into every path, in every unit.
struct SlopedWindow {
  gqa::PositionRange visible_range(gqa::Index query, gqa::Index length) const {
    return {query < 600 ? 0 : query - 600, query < length ? query + 1 : length};
  }
  bool is_visible(gqa::Index query, gqa::Index key, gqa::Index) const { return (query + key) % 5 != 0 || query == key; }
  float score(float score, gqa::Index query, gqa::Index key, gqa::Index head) const {
    // A statement each: with -mfma Clang may fuse the product and the difference of one expression, also in a user's functor.
    const float penalty = static_cast<float>(query - key) * 0.01f * static_cast<float>(head + 1);
    return score - penalty;
  }
};

float uniform(std::uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
}

template <class T>
struct Inputs {
  T k[kPages * kPage * kRow];
  T v[kPages * kPage * kRow];
  float q[kQueries * kQueryHeads * kHeadDim];
  std::int32_t table[kPages];

  explicit Inputs(std::uint32_t seed) {
    for (T& x : k) x = T(2.0f * uniform(seed));
    for (T& x : v) x = T(uniform(seed));
    for (float& x : q) x = uniform(seed);
    for (int i = 0; i < kPages; ++i) table[i] = static_cast<std::int32_t>(i);
  }
};

// FNV-1a over the bits, with −0 counted as +0.
std::uint64_t digest(const float* values, int count, std::uint64_t hash = 0xcbf29ce484222325u) {
  for (int i = 0; i < count; ++i) {
    const auto bits = values[i] == 0.0f ? 0u : std::bit_cast<std::uint32_t>(values[i]);
    for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ ((bits >> shift) & 0xffu)) * 0x100000001b3u;
  }
  return hash;
}

template <class Attention, class V>
std::uint64_t run(const Attention& attention, const gqa::KvCacheView& kv, const float* q, const V& variant,
                  gqa::Path path, int queries) {
  static float out[kQueries * kQueryHeads * kHeadDim];
  static float lse[kQueries * kQueryHeads];
  const int count = queries * kQueryHeads * kHeadDim;
  gqa::Options options;
  options.path = path;
  attention(gqa::Sequence{{q, queries, kQueryHeads, kHeadDim},
                          kv,
                          {out, queries, kQueryHeads, kHeadDim},
                          {},
                          std::span<float>(lse, static_cast<std::size_t>(queries * kQueryHeads))},
            variant, options);
  return digest(lse, queries * kQueryHeads, digest(out, count));
}

// Two cases: a decode step over a contiguous cache, and a chunk over pages with a user's variant.
template <class T>
void run_type(Digests& digests, int first_case, gqa::Path path) {
  static const Inputs<T> in(static_cast<std::uint32_t>(first_case) + 1u);
  const gqa::KvShape shape{kTokens, kKvHeads, kHeadDim};
  const auto contiguous = gqa::KvCacheView::contiguous(in.k, in.v, shape);
  const auto steps = gqa::KvStrides::token_major(kKvHeads, kHeadDim, kPage);
  const auto paged =
      gqa::KvCacheView::paged(in.k, in.v, shape, std::span<const std::int32_t>(in.table), kPage, kPages, steps, steps);
  static const gqa::GroupedQueryAttention<kQueryHeads, kKvHeads, kHeadDim> attention;
  static const gqa::DynamicAttention dynamic_attention;
  std::uint64_t* const values = digests.value[static_cast<int>(path)];
  values[first_case] = run(attention, contiguous, in.q, gqa::Causal{}, path, 1);
  values[first_case + 1] = run(dynamic_attention, paged, in.q, SlopedWindow{}, path, kQueries);
}

// A wrong argument, refused in units with exceptions. Units without are tried in a program of their own.
std::uint64_t refused() {
#if defined(__cpp_exceptions)
  const float element = 0.0f;
  float out = 0.0f;
  try {
    gqa::DynamicAttention{}(gqa::ConstTensorView(&element, 1, 1, 1), gqa::KvCacheView{},
                            gqa::TensorView(&out, 1, 1, 1));
  } catch (const gqa::ArgumentError&) {
    return 1;
  }
  return 0;
#else
  return 1;
#endif
}

}  // namespace

void GQA_UNIT(Digests& digests) {
  for (int p = 0; p < kPaths; ++p) {
    const auto path = static_cast<gqa::Path>(p);
    digests.path_names[p] = gqa::path_name(path);
    for (std::uint64_t& value : digests.value[p]) value = 0;
    if (!gqa::path_available(path)) continue;
    run_type<float>(digests, 0, path);
    run_type<gqa::bf16>(digests, 2, path);
    run_type<gqa::f16>(digests, 4, path);
    digests.value[p][6] = refused();
  }
}
