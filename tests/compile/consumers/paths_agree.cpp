// SPDX-License-Identifier: Apache-2.0
// Random calls on every f32 path that there is here, held to the portable path bit for bit: for processors that have no tests of their own, by
// an emulator.
#include <cstdio>
#include <cstring>
#include <vector>

#include "gqa/backward.hpp"
#include "gqa/gqa.hpp"

namespace {

using gqa::Index;

std::uint64_t state = 1;
Index below(Index count) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<Index>((state >> 33) % static_cast<std::uint64_t>(count));
}
template <std::size_t N>
Index one_of(const Index (&of)[N]) {
  return of[below(static_cast<Index>(N))];
}

constexpr gqa::ElementType kTypes[] = {gqa::ElementType::f32, gqa::ElementType::bf16, gqa::ElementType::f16};

// Elements of a type, in [−2, 2).
std::vector<std::byte> elements(Index count, gqa::ElementType type) {
  const Index bytes = gqa::element_bytes(type);
  std::vector<std::byte> made(static_cast<std::size_t>(count * bytes));
  for (Index i = 0; i < count; ++i) {
    const float x = static_cast<float>(below(1 << 24) - (1 << 23)) * 0x1p-22f;
    std::byte* const to = made.data() + i * bytes;
    const gqa::bf16 upper(x);
    const gqa::f16 half(x);
    if (type == gqa::ElementType::f32) std::memcpy(to, &x, 4);
    else if (type == gqa::ElementType::bf16) std::memcpy(to, &upper, 2);
    else std::memcpy(to, &half, 2);
  }
  return made;
}

// A mask, a soft cap with linear biases, and a sink.
struct Mixed : gqa::Causal {
  auto score(auto s, const gqa::RowContext& row, auto k) const {
    return 3.0f * tanh(s / 3.0f) - 0.01f * static_cast<float>(row.query_head) * log(1.0f + (row.position - k));
  }
  auto visible(const gqa::RowContext& row, auto k) const {
    return k == row.position || exp(0.01f * k) < 2.0f || k > 90;
  }
  float sink(const gqa::RowContext& row) const { return 0.1f * static_cast<float>(row.query_head); }
};

struct Shape {
  Index query_heads, kv_heads, head_dim, value_dim, queries, length;
  gqa::ElementType q, k, v, out;
  Index page;  // or none
};

struct Inputs {
  std::vector<std::byte> q, k, v, d_out;
  std::vector<std::int32_t> pages;
};

// The output, the log-sum-exp and the gradients.
std::vector<std::byte> result(const Shape& s, const Inputs& in, gqa::Path path, Index variant) {
  const Index out_bytes = s.queries * s.query_heads * s.value_dim * gqa::element_bytes(s.out);
  std::vector<std::byte> out(static_cast<std::size_t>(out_bytes));
  std::vector<float> lse(static_cast<std::size_t>(s.queries * s.query_heads));
  gqa::KvCacheView kv = gqa::KvCacheView::contiguous(
      in.k.data(), s.k, in.v.data(), s.v,
      {.length = s.length, .kv_heads = s.kv_heads, .head_dim = s.head_dim, .value_dim = s.value_dim});
  if (s.page > 0) {
    kv.storage = gqa::Storage::paged;
    kv.page_size = s.page;
    kv.pool_pages = kv.page_table_size = static_cast<Index>(in.pages.size());
    kv.page_table = in.pages.data();
    kv.k_strides.page = s.page * kv.k_strides.token;
    kv.v_strides.page = s.page * kv.v_strides.token;
  }
  const gqa::Sequence sequence{.q = gqa::ConstTensorView(in.q.data(), s.q, s.queries, s.query_heads, s.head_dim),
                               .kv = kv,
                               .out = gqa::TensorView(out.data(), s.out, s.queries, s.query_heads, s.value_dim),
                               .lse = lse};
  std::vector<float> d_q(in.q.size() / static_cast<std::size_t>(gqa::element_bytes(s.q)));
  std::vector<float> d_k(static_cast<std::size_t>(s.length * s.kv_heads * s.head_dim));
  std::vector<float> d_v(static_cast<std::size_t>(s.length * s.kv_heads * s.value_dim));
  const gqa::SequenceGradients gradients{
      .d_out = gqa::ConstTensorView(in.d_out.data(), s.q, s.queries, s.query_heads, s.value_dim),
      .d_q = gqa::TensorView(d_q.data(), s.queries, s.query_heads, s.head_dim),
      .d_k = gqa::TensorView(d_k.data(), s.length, s.kv_heads, s.head_dim),
      .d_v = gqa::TensorView(d_v.data(), s.length, s.kv_heads, s.value_dim)};
  const gqa::DynamicAttention attention;
  const gqa::DynamicAttentionBackward backward;
  gqa::BackwardOptions options;
  options.path = path;
  const auto run = [&](const auto& v) {
    attention(sequence, v, options);
    backward(sequence, gradients, v, options);
  };
  if (variant == 0) run(gqa::Causal{});
  else if (variant == 1) run(gqa::CausalWindow{50});
  else run(Mixed{});
  for (const std::vector<float>* floats : {&lse, &d_q, &d_k, &d_v}) {
    const auto* const bytes = reinterpret_cast<const std::byte*>(floats->data());
    out.insert(out.end(), bytes, bytes + floats->size() * sizeof(float));
  }
  return out;
}

}  // namespace

int main() {
  constexpr Index calls = 150;
  Index compared = 0;
  for (Index call = 0; call < calls; ++call) {
    Shape s{};
    s.kv_heads = 1 + below(3);
    s.query_heads = s.kv_heads * one_of({1, 2, 3, 4, 5, 7, 8, 16, 29});
    s.head_dim = one_of({7, 8, 16, 33, 64, 96, 128, 256});
    s.value_dim = below(2) == 0 ? s.head_dim : one_of({8, 24, 33, 64, 128});
    s.queries = below(2) == 0 ? 1 : 1 + below(9);
    s.length = s.queries + below(call % 8 == 0 ? 700 : 150);
    s.q = kTypes[below(3)], s.k = kTypes[below(3)], s.v = kTypes[below(3)], s.out = kTypes[below(3)];
    s.page = below(2) == 0 ? 0 : one_of({1, 7, 16, 64});
    Inputs in;
    const Index slots = s.page == 0 ? s.length : (s.length + s.page - 1) / s.page * s.page;
    in.q = elements(s.queries * s.query_heads * s.head_dim, s.q);
    in.k = elements(slots * s.kv_heads * s.head_dim, s.k);
    in.v = elements(slots * s.kv_heads * s.value_dim, s.v);
    in.d_out = elements(s.queries * s.query_heads * s.value_dim, s.q);
    for (Index page = 0; s.page > 0 && page < slots / s.page; ++page)
      in.pages.push_back(static_cast<std::int32_t>(slots / s.page - 1 - page));
    const Index variant = below(3);
    const std::vector<std::byte> expected = result(s, in, gqa::Path::portable, variant);
    for (const gqa::Path path : gqa::detail::kEveryPath) {
      if (path == gqa::Path::portable || !gqa::path_available(path)) continue;
      if (gqa::detail::path_arithmetic(path) != gqa::detail::Arithmetic::f32) continue;
      ++compared;
      if (result(s, in, path, variant) == expected) continue;
      std::printf("%s differs from portable: call %lld\n", gqa::path_name(path), static_cast<long long>(call));
      return 1;
    }
  }
  std::printf("%lld comparisons; calls take %s: %s\n", static_cast<long long>(compared),
              gqa::path_name(gqa::active_path().path), gqa::active_path().reason);
  return 0;
}
