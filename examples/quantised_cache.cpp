// SPDX-License-Identifier: Apache-2.0
// Keys and values in 8 and in 4 bits: the same functor and the same call, for a cache of f32 rows and for one in which each of keys and values
// has a codec of its own. And a cache that another program has stored, in ggml's q8_0, read where it lies.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "gqa/gqa.hpp"
#include "gqa/rope.hpp"

namespace {

using gqa::Index;

constexpr Index kQueryHeads = 8, kKvHeads = 2, kDim = 64, kTokens = 1000;

// Compiled for the types that these caches have, and for no others.
using Attention = gqa::GroupedQueryAttention<kQueryHeads, kKvHeads, kDim, kDim,
                                             gqa::CacheOf<float, gqa::bf16, gqa::Int8, gqa::Q8_0, gqa::Q4_0>>;

std::vector<float> drawn(Index count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> made(static_cast<std::size_t>(count));
  for (float& x : made) x = normal(engine);
  return made;
}

struct Format {
  const char* name;
  gqa::KvEncoding k, v;
  double below;  // outputs' relative error, for these rows: normal, without outliers
};

// A block of ggml's q8_0, as other programs store it: 32 elements are d · q.
struct Q8Block {
  gqa::f16 d;
  std::array<std::int8_t, 32> q;
};
static_assert(sizeof(Q8Block) == 34);

std::vector<Q8Block> stored_by_another_program(const std::vector<float>& rows) {
  std::vector<Q8Block> blocks(rows.size() / 32);
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const float* const x = rows.data() + 32 * i;
    float largest = 0;
    for (int j = 0; j < 32; ++j) largest = std::max(largest, std::fabs(x[j]));
    const float d = largest / 127.0f, inverse = d == 0.0f ? 0.0f : 1.0f / d;
    blocks[i].d = gqa::f16(d);
    for (std::size_t j = 0; j < 32; ++j) blocks[i].q[j] = static_cast<std::int8_t>(std::round(x[j] * inverse));
  }
  return blocks;
}

}  // namespace

int main() {
  const std::vector<float> k = drawn(kTokens * kKvHeads * kDim, 1), v = drawn(kTokens * kKvHeads * kDim, 2);
  std::vector<float> q = drawn(kQueryHeads * kDim, 3);
  const gqa::Rope rope({.dims = kDim}, kTokens);
  rope(gqa::TensorView(q.data(), 1, kQueryHeads, kDim), kTokens - 1);

  const Attention attention;
  const auto attend = [&](const gqa::KvCacheView& cache) {
    std::vector<float> out(q.size());
    attention(gqa::ConstTensorView(q.data(), 1, kQueryHeads, kDim), cache,
              gqa::TensorView(out.data(), 1, kQueryHeads, kDim));
    return out;
  };
  // Appended rows are f32, bf16 or f16; the cache stores them as its codecs do, keys after they have been turned.
  const auto filled = [&](const gqa::KvEncoding& k_type, const gqa::KvEncoding& v_type) {
    gqa::ContiguousKvCache cache(
        {.kv_heads = kKvHeads, .head_dim = kDim, .k_type = k_type, .v_type = v_type, .capacity = kTokens});
    cache.append(k, v, rope.keys());
    return cache;
  };

  const gqa::ContiguousKvCache exact = filled(gqa::ElementType::f32, gqa::ElementType::f32);
  const std::vector<float> expected = attend(exact.view());
  const Format formats[] = {{"bf16", gqa::ElementType::bf16, gqa::ElementType::bf16, 0.01},
                            {"Int8", gqa::Int8{}, gqa::Int8{}, 0.03},
                            {"Q8_0", gqa::Q8_0{}, gqa::Q8_0{}, 0.03},
                            {"Q8_0 keys, Q4_0 values", gqa::Q8_0{}, gqa::Q4_0{}, 0.15},
                            {"Q4_0", gqa::Q4_0{}, gqa::Q4_0{}, 0.3}};
  bool good = true;
  std::printf("%-24s %9s %15s\n", "keys and values", "bytes", "error of output");
  std::printf("%-24s %9td %15s\n", "f32", exact.bytes(), "0");
  for (const Format& format : formats) {
    const gqa::ContiguousKvCache cache = filled(format.k, format.v);
    const std::vector<float> out = attend(cache.view());
    double difference = 0, whole = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      difference += std::pow(static_cast<double>(out[i] - expected[i]), 2);
      whole += std::pow(static_cast<double>(expected[i]), 2);
    }
    const double error = std::sqrt(difference / whole);
    good = good && error > 0 && error < format.below && cache.bytes() < exact.bytes();
    std::printf("%-24s %9td %14.2f%%\n", format.name, cache.bytes(), 100 * error);
  }

  // Another program's cache is viewed by a pointer, a codec's type and strides, which are counted in elements. (token, head, dim) here.
  std::vector<float> turned = k;
  rope(gqa::TensorView(turned.data(), kTokens, kKvHeads, kDim), 0);
  const std::vector<Q8Block> foreign_k = stored_by_another_program(turned), foreign_v = stored_by_another_program(v);
  const gqa::KvStrides strides{.token = kKvHeads * kDim, .head = kDim};
  const std::vector<float> from_foreign =
      attend(gqa::KvCacheView::contiguous(foreign_k.data(), gqa::Q8_0::type, foreign_v.data(), gqa::Q8_0::type,
                                          {kTokens, kKvHeads, kDim}, strides, strides));
  const bool same = from_foreign == attend(filled(gqa::Q8_0{}, gqa::Q8_0{}).view());
  std::printf("another program's q8_0 %s the library's own, bit for bit\n", same ? "equals" : "DIFFERS FROM");
  return good && same ? 0 : 1;
}
