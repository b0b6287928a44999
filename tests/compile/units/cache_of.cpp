// SPDX-License-Identifier: Apache-2.0
// A functor that is compiled for some types of caches gives the bits of the one that takes every type, on every path that runs here.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>
#include <vector>

#include "gqa/gqa.hpp"

namespace {

constexpr int kQueryHeads = 10;
constexpr int kKvHeads = 2;
constexpr int kHeadDim = 72;  // not a multiple of 16
constexpr gqa::Index kTokens = 1100;

float uniform(std::uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
}

template <class T>
std::vector<T> numbers(gqa::Index count, std::uint32_t seed) {
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = T(uniform(seed));
  return values;
}

template <class Cache, class Query, class K, class V>
std::vector<float> attend(const std::vector<Query>& q, const std::vector<K>& k, const std::vector<V>& v, int tokens,
                          const gqa::Options& options) {
  std::vector<float> out(static_cast<std::size_t>(tokens) * kQueryHeads * kHeadDim);
  const gqa::GroupedQueryAttention<kQueryHeads, kKvHeads, kHeadDim, kHeadDim, Cache> attention;
  attention({q.data(), tokens, kQueryHeads, kHeadDim},
            gqa::KvCacheView::contiguous(k.data(), v.data(), {kTokens, kKvHeads, kHeadDim}),
            {out.data(), tokens, kQueryHeads, kHeadDim}, options);
  return out;
}

// Rows that are few, that fill groups of 16, and that do neither.
template <class Cache, class Query, class K, class V>
bool same(const char* what) {
  const auto k = numbers<K>(kTokens * kKvHeads * kHeadDim, 1);
  const auto v = numbers<V>(kTokens * kKvHeads * kHeadDim, 2);
  const auto q = numbers<Query>(9 * kQueryHeads * kHeadDim, 3);
  bool good = true;
  for (int p = 0; p <= static_cast<int>(gqa::Path::amx); ++p) {
    gqa::Options options;
    options.path = static_cast<gqa::Path>(p);
    if (!gqa::path_available(*options.path)) {
      std::printf("%s: no path %s here\n", what, gqa::path_name(*options.path));
      continue;
    }
    for (const int tokens : {1, 4, 9}) {
      const auto narrow = attend<Cache>(q, k, v, tokens, options);
      const auto every = attend<gqa::AnyCache>(q, k, v, tokens, options);
      if (std::memcmp(narrow.data(), every.data(), narrow.size() * sizeof(float)) == 0) continue;
      std::printf("%s: other bits on path %s, %d tokens\n", what, gqa::path_name(*options.path), tokens);
      good = false;
    }
  }
  return good;
}

}  // namespace

int main() {
  using gqa::bf16;
  using gqa::CacheOf;
  using gqa::f16;
  bool good = same<CacheOf<bf16>, bf16, bf16, bf16>("bf16");
  good = same<CacheOf<bf16>, float, bf16, bf16>("bf16, f32 queries") && good;
  good = same<CacheOf<f16>, f16, f16, f16>("f16") && good;
  good = same<CacheOf<float>, float, float, float>("f32") && good;
  good = same<CacheOf<f16, bf16>, f16, bf16, f16>("bf16 keys, f16 values") && good;
  return good ? 0 : 1;
}
