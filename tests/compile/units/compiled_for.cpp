// SPDX-License-Identifier: Apache-2.0
// A functor that is compiled for some types of caches and some extents gives the bits of the one that takes all, on every path that
// runs here. The other test programs cannot say so: they share one set of kernels, for everything.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "gqa/gqa.hpp"

namespace {

using gqa::Index;

constexpr Index kKvHeads = 2;
constexpr Index kTokens = 700;  // more than a span, no whole number of blocks

float uniform(std::uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
}

template <class T>
std::vector<T> numbers(Index count, std::uint32_t seed) {
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = T(uniform(seed));
  return values;
}

/// Query tokens, and query heads a KV head: strips of one row to four, of five, of more, and rows in groups of 16.
struct Rows {
  Index tokens;
  Index group;
};
constexpr Rows kRows[] = {{1, 1}, {1, 2}, {1, 3}, {1, 4}, {1, 5}, {1, 7}, {1, 11}, {2, 4}, {4, 5}, {9, 5}};

template <int HeadDim, int ValueDim, class Query, class K, class V>
struct Problem {
  std::vector<K> k = numbers<K>(kTokens * kKvHeads * HeadDim, 1);
  std::vector<V> v = numbers<V>(kTokens * kKvHeads * ValueDim, 2);
  std::vector<Query> q = numbers<Query>(9 * 11 * kKvHeads * HeadDim, 3);

  /// The numbers as they are, read as a cache of either order.
  gqa::KvCacheView cache(bool head_major) const {
    const auto strides = [&](Index dim) {
      return head_major ? gqa::KvStrides::head_major(kKvHeads, kTokens, dim)
                        : gqa::KvStrides::token_major(kKvHeads, dim);
    };
    return gqa::KvCacheView::contiguous(k.data(), v.data(), {kTokens, kKvHeads, HeadDim, ValueDim}, strides(HeadDim),
                                        strides(ValueDim));
  }
  template <class Functor>
  std::vector<float> attend(const Functor& functor, Rows rows, bool head_major, const gqa::Options& options) const {
    const Index heads = rows.group * kKvHeads;
    std::vector<float> out(static_cast<std::size_t>(rows.tokens * heads * ValueDim));
    functor({q.data(), rows.tokens, heads, HeadDim}, cache(head_major), {out.data(), rows.tokens, heads, ValueDim},
            options);
    return out;
  }
};

template <class Cache, int HeadDim, int ValueDim, class Query, class K, class V>
bool same(const char* what) {
  const Problem<HeadDim, ValueDim, Query, K, V> problem;
  const gqa::GroupedQueryAttention<gqa::dynamic, gqa::dynamic, HeadDim, ValueDim, Cache> narrow;
  const gqa::DynamicAttention every;
  bool good = true;
  for (int p = 0; p <= static_cast<int>(gqa::Path::amx); ++p) {
    gqa::Options options;
    options.path = static_cast<gqa::Path>(p);
    if (!gqa::path_available(*options.path)) {
      std::printf("%s, D %d, Dv %d: no path %s here\n", what, HeadDim, ValueDim, gqa::path_name(*options.path));
      continue;
    }
    for (const bool head_major : {false, true})
      for (const Rows rows : kRows) {
        const auto some = problem.attend(narrow, rows, head_major, options);
        const auto all = problem.attend(every, rows, head_major, options);
        if (std::memcmp(some.data(), all.data(), some.size() * sizeof(float)) == 0) continue;
        std::printf("%s, D %d, Dv %d: other bits on path %s, %d tokens, groups of %d, %s\n", what, HeadDim, ValueDim,
                    gqa::path_name(*options.path), static_cast<int>(rows.tokens), static_cast<int>(rows.group),
                    head_major ? "head-major" : "token-major");
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
  bool good = same<CacheOf<bf16>, 72, 72, bf16, bf16, bf16>("bf16");
  good = same<CacheOf<bf16>, 64, 64, bf16, bf16, bf16>("bf16") && good;
  good = same<CacheOf<bf16>, 128, 128, bf16, bf16, bf16>("bf16") && good;
  good = same<CacheOf<bf16>, 128, 128, float, bf16, bf16>("bf16, f32 queries") && good;
  good = same<CacheOf<bf16>, 256, 256, bf16, bf16, bf16>("bf16") && good;
  good = same<CacheOf<f16>, 192, 128, f16, f16, f16>("f16") && good;
  good = same<CacheOf<f16>, 64, 256, f16, f16, f16>("f16") && good;
  good = same<CacheOf<float>, 256, 128, float, float, float>("f32") && good;
  good = same<CacheOf<float>, 128, 256, float, float, float>("f32") && good;
  good = same<CacheOf<f16, bf16>, 256, 72, f16, bf16, f16>("bf16 keys, f16 values") && good;
  return good ? 0 : 1;
}
