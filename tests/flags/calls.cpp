// SPDX-License-Identifier: Apache-2.0
// Attention calls whose results any compiler flag that changes floating-point arithmetic would show in. Prints a digest of the bits for
// each path and case; built with other flags it must print the same, and so it must for another processor, where paths of f32 arithmetic are
// counted as one. GQA_FLAGS_TYPES says which types of caches; with GQA_FLAGS_MORE caches of codecs and gradients are among the calls.
//
// Path::amx is tried by emulated tiles too: amx_emulator.cpp is linked.
//
// Inputs are exact whatever the flags, and so is what the variant does: a user's functor is compiled with the user's flags.
#define GQA_DETAIL_EMULATED_AMX 1

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <vector>

#include "gqa/gqa.hpp"
#if defined(GQA_FLAGS_MORE)
#include "gqa/backward.hpp"
#endif
#include "gqa/qk_norm.hpp"
#include "gqa/rope.hpp"
#include "gqa/rotation.hpp"

#if !defined(GQA_FLAGS_TYPES)
#define GQA_FLAGS_TYPES float, gqa::bf16, gqa::f16
#endif

namespace {

using gqa::Index;

constexpr Index kQueryHeads = 6;
constexpr Index kKvHeads = 2;
constexpr Index kHeadDim =
    40;  // no power of two: the default scale is rounded; not a multiple of 16: tails are computed too
constexpr Index kTokens = 777;

using Attention = gqa::GroupedQueryAttention<kQueryHeads, kKvHeads, kHeadDim, kHeadDim, gqa::CacheOf<GQA_FLAGS_TYPES>>;

// FNV-1a over the bits; a zero has no sign in the promises, and a NaN no payload.
std::uint64_t digest(const std::vector<float>& values, std::uint64_t hash = 0xcbf29ce484222325u) {
  for (const float value : values) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) == 0) bits = 0;
    if ((bits & 0x7fffffffu) > 0x7f800000u) bits = 0x7fc00000u;
    for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ ((bits >> shift) & 0xffu)) * 0x100000001b3u;
  }
  return hash;
}

// Multiples of 2^-23 in [−1, 1).
std::vector<float> uniform(Index count, std::uint32_t seed) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<float>(static_cast<std::int32_t>(seed >> 8) - (1 << 23)) * 0x1p-23f;
  }
  return values;
}
template <class T>
std::vector<T> stored(const std::vector<float>& values, float factor) {
  std::vector<T> made(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) made[i] = T(values[i] * factor);  // by a power of two
  return made;
}

// Some rows see nothing, and those that do not see all see every third token; scores become half as large.
struct Holes {
  gqa::PositionRange visible_range(Index query, Index length) const {
    return query % 4 == 0 ? gqa::PositionRange{} : gqa::PositionRange{query % 2 * 100, length};
  }
  bool is_visible(Index query, Index key, Index) const { return query % 4 == 1 || key % 3 == 0; }
  float score(float score, Index, Index, Index) const { return score * 0.5f; }
};

// A mask, scores and sinks of expressions, whose bits are those of the path, not of the flags.
struct Expressions : gqa::Causal {
  auto score(auto s, const gqa::RowContext& row, auto k) const {
    return 2.0f * tanh(s / 2.0f) - 0.25f * log(1.0f + (row.position - k)) * exp(-0.001f * k);
  }
  auto visible(const gqa::RowContext& row, auto k) const { return k == row.position || row.position - k > 3; }
  float sink(const gqa::RowContext& row) const { return static_cast<float>(row.query_head); }
};

float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class V>
void run(const char* name, gqa::Path path, const gqa::KvCacheView& kv, const std::vector<float>& q, Index queries,
         const V& variant, const gqa::Options& given) {
  static const Attention attention;
  std::vector<float> out(static_cast<std::size_t>(queries * kQueryHeads * kHeadDim));
  std::vector<float> lse(static_cast<std::size_t>(queries * kQueryHeads));
  gqa::Options options = given;
  options.path = path;
  gqa::Sequence sequence{{q.data(), queries, kQueryHeads, kHeadDim}, kv, {out.data(), queries, kQueryHeads, kHeadDim}};
  sequence.lse = lse;
  attention(sequence, variant, options);
  std::printf("%s %s %016" PRIx64 "\n", gqa::path_name(path), name, digest(lse, digest(out)));
}

template <class T>
void run_type(gqa::Path path) {
  const char* const type = gqa::element_name(gqa::ElementTraits<T>::type);
  std::vector<T> k = stored<T>(uniform(kTokens * kKvHeads * kHeadDim, 1), 2.0f);
  std::vector<T> v = stored<T>(uniform(kTokens * kKvHeads * kHeadDim, 2), 1.0f);
  const std::vector<float> q = uniform(50 * kQueryHeads * kHeadDim, 3);
  const auto kv = [&](Index length) {
    return gqa::KvCacheView::contiguous(k.data(), v.data(), {length, kKvHeads, kHeadDim});
  };
  std::printf("%s: ", type), run("decode", path, kv(kTokens), q, 1, gqa::Causal{}, {});
  std::printf("%s: ", type), run("prefill", path, kv(50), q, 50, gqa::Causal{}, {});
  std::printf("%s: ", type), run("a variant", path, kv(kTokens), q, 9, Holes{}, {});
  std::printf("%s: ", type), run("expressions", path, kv(kTokens), q, 5, Expressions{}, {});
  for (const gqa::Products products : {gqa::Products::bf16, gqa::Products::bf16_terms}) {
    const char* const name = products == gqa::Products::bf16 ? "bf16 products" : "bf16 terms";
    std::printf("%s: ", type), run(name, path, kv(kTokens), q, 7, gqa::CausalWindow{500}, {.products = products});
  }
  gqa::KvCacheView rotated = kv(kTokens);
  rotated.k_rotation = rotated.v_rotation = 8;
  std::printf("%s: ", type), run("rotated", path, rotated, q, 5, gqa::Causal{}, {});
  // Large scores, so that weights are 0; then what is no finite number, seen by some rows and hidden from others.
  std::printf("%s: ", type), run("large scores", path, kv(kTokens), q, 3, gqa::Full{}, {.scale = 64.0f});
  k[static_cast<std::size_t>(701 * kKvHeads * kHeadDim + 5)] = T(from_bits(0x7fc00000u));
  v[static_cast<std::size_t>(702 * kKvHeads * kHeadDim + kHeadDim + 7)] = T(from_bits(0xff800000u));
  std::printf("%s: ", type), run("not finite", path, kv(710), q, 20, gqa::Causal{}, {});
}

// Keys normalised and turned as they are appended, then shifted: what is stored.
template <class T>
void run_appended(const gqa::RopeOptions& options, const char* name) {
  const gqa::Rope rope(options, 500);
  const std::vector<float> rows = uniform(100 * kKvHeads * kHeadDim, 4);
  const std::vector<float> weights = uniform(kHeadDim, 5);
  const gqa::ElementType type = gqa::ElementTraits<T>::type;
  gqa::ContiguousKvCache cache({.kv_heads = kKvHeads, .head_dim = kHeadDim, .k_type = type, .capacity = 100});
  const gqa::RmsNormKeys norm{{.weights = weights, .weight_offset = 1.0f}};
  cache.append(rows, rows, gqa::compose_hooks(norm, rope.keys()));
  cache.change_keys(50, 100, rope.shift(-17));
  const T* const keys = static_cast<const T*>(cache.view().k);
  std::vector<float> held(rows.size());
  for (std::size_t i = 0; i < held.size(); ++i) held[i] = static_cast<float>(keys[i]);
  std::printf("%s appended, %s: %016" PRIx64 "\n", gqa::element_name(type), name, digest(held));
}
template <class T>
void run_hooks() {
  run_appended<T>({.dims = 40}, "half split");
  run_appended<T>({.dims = 36, .pairs = gqa::RopePairs::interleaved}, "interleaved");
  run_appended<T>({.dims = 40, .scaling = gqa::RopeScaling::yarn, .factor = 8.0, .original_positions = 64}, "YaRN");
  run_appended<T>({.dims = 40, .scaling = gqa::RopeScaling::llama3, .factor = 8.0, .original_positions = 64},
                  "Llama 3");
}

// Rows rotated as they are appended, in short and in long blocks, and some of them turned back in place.
template <class T>
void run_rotated() {
  constexpr Index dim = 256;
  std::vector<float> rows = uniform(40 * dim, 7);
  const gqa::ElementType type = gqa::ElementTraits<T>::type;
  gqa::ContiguousKvCache cache(
      {.kv_heads = 1, .head_dim = dim, .k_type = type, .k_rotation = 2, .v_rotation = dim, .capacity = 40});
  cache.append(rows, rows);
  std::vector<float> held;
  for (const void* of : {cache.view().k, cache.view().v})
    for (std::size_t i = 0; i < rows.size(); ++i) held.push_back(static_cast<float>(static_cast<const T*>(of)[i]));
  gqa::hadamard_rotate(gqa::TensorView(held.data(), 20, 1, dim), 64);
  std::printf("%s rotated: %016" PRIx64 "\n", gqa::element_name(type), digest(held));
}

// What codecs store of rows, some of which are large, small, or not finite; and of those rows decoded and stored again.
struct AsTheyAre {
  void change(const gqa::KeyRow&) const noexcept {}
};
template <int Id = gqa::detail::kLastElementType + 1>
void run_codecs() {
  if constexpr (Id < gqa::detail::CodecList::size) {
    using Codec = typename gqa::CodecWithId<Id>::type;
    constexpr Index dim = 64;
    std::vector<float> rows = uniform(100 * kKvHeads * dim, 6);
    for (std::size_t i = 0; i < rows.size(); i += 7) rows[i] *= 0x1p-12f;
    for (std::size_t i = 0; i < rows.size() / 4; ++i) rows[i] *= i / 256 % 2 == 0 ? 0x1p-80f : 0x1p30f;
    rows[5] = from_bits(0x7fc00000u);
    rows[600] = from_bits(0xff800000u);
    gqa::ContiguousKvCache cache({.kv_heads = kKvHeads, .head_dim = dim, .k_type = Codec{}, .capacity = 100});
    const auto print = [&](const char* what) {
      const gqa::KvCacheView kv = cache.view();
      std::vector<float> bytes;
      const auto* const keys = static_cast<const std::uint8_t*>(kv.k);
      const auto* const scales = static_cast<const std::uint8_t*>(kv.k_scales.data);
      for (Index i = 0; i < 100 * kv.k_type.stride_bytes(kv.k_strides.token) * kKvHeads; ++i) bytes.push_back(keys[i]);
      for (Index i = 0; i < 100 * kKvHeads * kv.k_type.scale_bytes(); ++i) bytes.push_back(scales[i]);
      std::printf("%s %s: %016" PRIx64 "\n", Codec::name, what, digest(bytes));
    };
    cache.append(rows, rows);
    print("appended");
    cache.change_keys(0, 100, AsTheyAre{});
    print("decoded and appended again");
    run_codecs<Id + 1>();
  }
}

template <class... T>
void run_types(gqa::Path path, gqa::CacheOf<T...>) {
  (run_type<T>(path), ...);
}

#if defined(GQA_FLAGS_MORE)
// A cache of a codec, by itself and with another one's values.
template <class K, class V>
void run_codec(gqa::Path path) {
  constexpr Index dim = 64;  // blocks of 32
  static const gqa::GroupedQueryAttention<kQueryHeads, kKvHeads, dim, dim, gqa::CacheOf<K, V>> attention;
  gqa::ContiguousKvCache cache(
      {.kv_heads = kKvHeads, .head_dim = dim, .k_type = K{}, .v_type = V{}, .capacity = kTokens});
  cache.append(uniform(kTokens * kKvHeads * dim, 8), uniform(kTokens * kKvHeads * dim, 9));
  for (const Index queries : {Index{1}, Index{30}}) {
    const std::vector<float> q = uniform(queries * kQueryHeads * dim, 10);
    std::vector<float> out(q.size());
    attention({q.data(), queries, kQueryHeads, dim}, cache.view(), {out.data(), queries, kQueryHeads, dim},
              gqa::Causal{}, {.path = path});
    std::printf("%s %s and %s, %d queries: %016" PRIx64 "\n", gqa::path_name(path), K::name, V::name,
                static_cast<int>(queries), digest(out));
  }
}
void run_gradients(gqa::Path path) {
  constexpr Index queries = 70;
  const std::vector<float> q = uniform(queries * kQueryHeads * kHeadDim, 11);
  const std::vector<float> d_out = uniform(queries * kQueryHeads * kHeadDim, 12);
  const std::vector<float> k = uniform(queries * kKvHeads * kHeadDim, 13);
  const std::vector<float> v = uniform(queries * kKvHeads * kHeadDim, 14);
  std::vector<float> out(q.size()), lse(static_cast<std::size_t>(queries * kQueryHeads));
  std::vector<float> d_q(q.size()), d_k(k.size()), d_v(v.size());
  gqa::Options options;
  options.path = path;
  const gqa::Sequence sequence{.q = {q.data(), queries, kQueryHeads, kHeadDim},
                               .kv = gqa::KvCacheView::contiguous(k.data(), v.data(), {queries, kKvHeads, kHeadDim}),
                               .out = {out.data(), queries, kQueryHeads, kHeadDim},
                               .lse = lse};
  gqa::GroupedQueryAttention<kQueryHeads, kKvHeads, kHeadDim>{}(sequence, Expressions{}, options);
  gqa::BackwardOptions backward;
  backward.path = path;
  gqa::GroupedQueryAttentionBackward<kQueryHeads, kKvHeads, kHeadDim>{}(
      sequence,
      {.d_out = {d_out.data(), queries, kQueryHeads, kHeadDim},
       .d_q = {d_q.data(), queries, kQueryHeads, kHeadDim},
       .d_k = {d_k.data(), queries, kKvHeads, kHeadDim},
       .d_v = {d_v.data(), queries, kKvHeads, kHeadDim}},
      Expressions{}, backward);
  std::printf("%s gradients: %016" PRIx64 "\n", gqa::path_name(path), digest(d_v, digest(d_k, digest(d_q))));
}
#endif

}  // namespace

int main() {
  for (const gqa::Path path : gqa::detail::kEveryPath) {
    if (!gqa::path_available(path)) continue;
    run_types(path, gqa::CacheOf<GQA_FLAGS_TYPES>{});
#if defined(GQA_FLAGS_MORE)
    run_codec<gqa::Int8, gqa::Int8>(path);
    run_codec<gqa::Int4, gqa::Int4>(path);
    run_codec<gqa::Q8_0, gqa::Q4_0>(path);
    run_gradients(path);
#endif
  }
  run_hooks<float>();
  run_hooks<gqa::bf16>();
  run_hooks<gqa::f16>();
  run_rotated<float>();
  run_rotated<gqa::bf16>();
  run_codecs();
  [[maybe_unused]] float element = 0.0f;
  // A scale that is no finite number is refused; a compiler that takes all numbers for finite would let it pass.
  for (const std::uint32_t bits : {0x7f800000u, 0xff800000u, 0x7fc00000u}) {
#if defined(__cpp_exceptions)
    try {
      const auto kv = gqa::KvCacheView::contiguous(&element, &element, {1, 1, 1});
      gqa::GroupedQueryAttention<1, 1, 1, 1, gqa::CacheOf<float>>{}({&element, 1, 1, 1}, kv, {&element, 1, 1, 1},
                                                                    gqa::Options{.scale = from_bits(bits)});
      std::printf("accepted\n");
    } catch (const gqa::ArgumentError&) {
      std::printf("refused\n");
    }
#else  // a refusal ends the program
    std::printf(gqa::detail::is_finite(from_bits(bits)) ? "accepted\n" : "refused\n");
#endif
  }
}
