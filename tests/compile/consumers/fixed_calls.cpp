// SPDX-License-Identifier: Apache-2.0
// Fixed calls on the portable path and on the best f32 one, a line each: name and FNV-1a of the output's bytes. Whatever the system, the
// processor and the compiler, they are what stands here.
#include <cstdio>
#include <vector>

#include "gqa/codec/int8.hpp"
#include "gqa/codec/q8_0.hpp"
#include "gqa/gqa.hpp"
#include "gqa/kv_cache.hpp"

namespace {

using gqa::Index;

std::uint64_t state = 7;
float uniform() {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<float>(static_cast<std::int32_t>(state >> 40) - (1 << 23)) * 0x1p-23f;
}
template <class T>
std::vector<T> elements(Index count) {
  std::vector<T> made(static_cast<std::size_t>(count));
  for (T& x : made) x = T(uniform());
  return made;
}

template <class T>
std::uint64_t digest(const std::vector<T>& of) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  const auto* const bytes = reinterpret_cast<const unsigned char*>(of.data());
  for (std::size_t i = 0; i < of.size() * sizeof(T); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  return hash;
}

gqa::Path best_f32_path() {
  gqa::Path best = gqa::Path::portable;
  for (const gqa::Path path : gqa::detail::kEveryPath)
    if (gqa::path_available(path) && gqa::detail::path_arithmetic(path) == gqa::detail::Arithmetic::f32) best = path;
  return best;
}

constexpr Index kQueryHeads = 6, kKvHeads = 2, kHeadDim = 64, kTokens = 700;

// One call on both paths. Whether both have the bytes that are expected.
template <class Out, class Attention, class V>
bool is_as_expected(const char* name, std::uint64_t expected, const gqa::KvCacheView& kv, Index queries,
                    const Attention& attention, const V& variant) {
  const std::vector<float> q = elements<float>(queries * kQueryHeads * kHeadDim);
  bool right = true;
  for (const gqa::Path path : {gqa::Path::portable, best_f32_path()}) {
    std::vector<Out> out(static_cast<std::size_t>(queries * kQueryHeads * kHeadDim));
    gqa::Options options;
    options.path = path;
    attention(gqa::Sequence{.q = gqa::ConstTensorView(q.data(), queries, kQueryHeads, kHeadDim),
                            .kv = kv,
                            .out = gqa::TensorView(out.data(), queries, kQueryHeads, kHeadDim)},
              variant, options);
    const std::uint64_t found = digest(out);
    std::printf("%s, %s: %016llx\n", name, gqa::path_name(path), static_cast<unsigned long long>(found));
    right = right && found == expected;
  }
  return right;
}

// An owning cache of a type, filled with elements that are drawn.
template <class Type>
gqa::ContiguousKvCache filled(Type type) {
  gqa::ContiguousKvCache cache({.kv_heads = kKvHeads, .head_dim = kHeadDim, .k_type = type, .capacity = kTokens});
  const std::vector<float> k = elements<float>(kTokens * kKvHeads * kHeadDim);
  const std::vector<float> v = elements<float>(kTokens * kKvHeads * kHeadDim);
  cache.append(gqa::ConstTensorView(k.data(), kTokens, kKvHeads, kHeadDim),
               gqa::ConstTensorView(v.data(), kTokens, kKvHeads, kHeadDim));
  return cache;
}

}  // namespace

int main() {
  const gqa::DynamicAttention attention;
  const gqa::GroupedQueryAttention<gqa::dynamic, gqa::dynamic, gqa::dynamic, gqa::dynamic,
                                   gqa::CacheOf<gqa::Int8, gqa::Q8_0>>
      of_codecs;
  const auto f32 = filled(gqa::ElementType::f32), bf16 = filled(gqa::ElementType::bf16),
             f16 = filled(gqa::ElementType::f16), int8 = filled(gqa::Int8{}), q8_0 = filled(gqa::Q8_0{});
  const gqa::Causal causal;
  unsigned right = 1;
  right &= is_as_expected<float>("f32, decode", 0x9d310b0d6c81bc70u, f32.view(), 1, attention, causal);
  right &= is_as_expected<float>("f32, prefill of 70", 0xb29a20eabd6b3ad0u, f32.view(), 70, attention, causal);
  right &= is_as_expected<float>("f32, window", 0xdfdbee9e85d72336u, f32.view(), 9, attention, gqa::CausalWindow{100});
  right &= is_as_expected<gqa::bf16>("bf16, prefill of 20", 0xe72f37d21091abbbu, bf16.view(), 20, attention, causal);
  right &= is_as_expected<gqa::f16>("f16, verify", 0x32cc80a299aeeaaeu, f16.view(), 5, attention, gqa::Full{});
  right &= is_as_expected<float>("Int8, decode", 0xabff1f033d167091u, int8.view(), 1, of_codecs, causal);
  right &= is_as_expected<float>("Q8_0, prefill of 20", 0xe002e06ac2c5f98fu, q8_0.view(), 20, of_codecs, causal);
  if (right == 0) std::printf("not the bits that stand in the source\n");
  return right == 1 ? 0 : 1;
}
