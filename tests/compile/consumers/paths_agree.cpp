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

// Caches of integers with one scale a row, in any storage; a NaN in every eighth.
struct IntegerCall {
  Index query_heads, kv_heads, head_dim, value_dim, queries, length;
  gqa::KvType k_type, v_type;
  gqa::Storage storage;
  Index slots, page, window;
  std::vector<float> q, k_scales, v_scales;
  std::vector<std::byte> k, v;
  std::vector<std::int32_t> pages;
};
std::vector<float> floats(Index count) {
  std::vector<float> made(static_cast<std::size_t>(count));
  for (float& x : made) x = static_cast<float>(below(1 << 24) - (1 << 23)) * 0x1p-22f;
  return made;
}
std::vector<std::byte> bytes(Index count) {
  std::vector<std::byte> made(static_cast<std::size_t>(count));
  for (std::byte& x : made) x = static_cast<std::byte>(below(256));
  return made;
}
IntegerCall integer_call(Index call) {
  constexpr gqa::KvType types[] = {gqa::Int8::type, gqa::Int4::type};
  IntegerCall c{};
  c.kv_heads = 1 + below(3);
  c.query_heads = c.kv_heads * one_of({1, 2, 3, 4, 5, 7, 8, 16, 29});
  c.head_dim = one_of({1, 3, 8, 33, 40, 64, 80, 100, 128, 256, 576});
  c.value_dim = below(2) == 0 ? c.head_dim : one_of({1, 3, 24, 33, 64, 128, 512});
  c.queries = below(2) == 0 ? 1 : 1 + below(9);
  c.length = c.queries + below(call % 8 == 0 ? 700 : 150);
  c.k_type = types[below(2)], c.v_type = types[below(2)];
  c.storage = gqa::Storage{static_cast<unsigned char>(below(3))};
  c.window = c.length;
  c.slots = c.length;
  if (c.storage == gqa::Storage::ring) {
    c.slots = c.queries + below(c.length - c.queries + 1);
    c.window = c.slots - c.queries + 1;
  } else if (c.storage == gqa::Storage::paged) {
    c.page = one_of({1, 7, 16, 64});
    c.slots = (c.length + c.page - 1) / c.page * c.page;
    for (Index page = 0; page < c.slots / c.page; ++page)
      c.pages.push_back(static_cast<std::int32_t>(c.slots / c.page - 1 - page));
  }
  c.q = floats(c.queries * c.query_heads * c.head_dim);
  c.k = bytes(c.slots * c.kv_heads * c.k_type.row_bytes(c.head_dim));
  c.v = bytes(c.slots * c.kv_heads * c.v_type.row_bytes(c.value_dim));
  c.k_scales = floats(c.slots * c.kv_heads);
  c.v_scales = floats(c.slots * c.kv_heads);
  for (float& scale : c.k_scales) scale *= 0x1p-7f;
  if (call % 8 == 3) {
    std::vector<float>& spoilt = below(3) == 0 ? c.q : below(2) == 0 ? c.k_scales : c.v_scales;
    spoilt[static_cast<std::size_t>(below(static_cast<Index>(spoilt.size())))] = __builtin_nanf("");
  }
  return c;
}
// The output, then the log-sum-exp.
std::vector<float> result(const IntegerCall& c, gqa::Path path) {
  const Index outputs = c.queries * c.query_heads * c.value_dim;
  const Index rows = c.queries * c.query_heads;
  std::vector<float> out(static_cast<std::size_t>(outputs + rows));
  gqa::KvCacheView kv = gqa::KvCacheView::contiguous(
      c.k.data(), c.k_type, c.v.data(), c.v_type,
      {.length = c.length, .kv_heads = c.kv_heads, .head_dim = c.head_dim, .value_dim = c.value_dim});
  const gqa::KvStrides scale_strides{.token = c.kv_heads, .head = 1, .page = c.page * c.kv_heads};
  kv.storage = c.storage;
  if (c.storage == gqa::Storage::ring) kv.capacity = c.slots;
  if (c.storage == gqa::Storage::paged) {
    kv.page_size = c.page;
    kv.pool_pages = kv.page_table_size = static_cast<Index>(c.pages.size());
    kv.page_table = c.pages.data();
    kv.k_strides.page = c.page * kv.k_strides.token;
    kv.v_strides.page = c.page * kv.v_strides.token;
  }
  kv.k_scales = {c.k_scales.data(), scale_strides};
  kv.v_scales = {c.v_scales.data(), scale_strides};
  const gqa::GroupedQueryAttention<gqa::dynamic, gqa::dynamic, gqa::dynamic, gqa::dynamic,
                                   gqa::CacheOf<gqa::Int8, gqa::Int4>>
      attention;
  gqa::Options options;
  options.path = path;
  const gqa::Sequence sequence{
      .q = gqa::ConstTensorView(c.q.data(), c.queries, c.query_heads, c.head_dim),
      .kv = kv,
      .out = gqa::TensorView(out.data(), c.queries, c.query_heads, c.value_dim),
      .lse = std::span(out).subspan(static_cast<std::size_t>(outputs), static_cast<std::size_t>(rows))};
  attention(sequence, gqa::CausalWindow{c.window}, options);
  return out;
}
bool same(const std::vector<float>& a, const std::vector<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!(a[i] == b[i]) && !(a[i] != a[i] && b[i] != b[i])) return false;
  return true;
}

// Path by path: whether `differs`(path) is to be told.
template <class Differs>
bool every_path_agrees(const char* what, Index call, Index& compared, const Differs& differs) {
  for (const gqa::Path path : gqa::detail::kEveryPath) {
    if (path == gqa::Path::portable || !gqa::path_available(path)) continue;
    if (gqa::detail::path_arithmetic(path) != gqa::detail::Arithmetic::f32) continue;
    ++compared;
    if (!differs(path)) continue;
    std::printf("%s differs from portable: %s %lld\n", gqa::path_name(path), what, static_cast<long long>(call));
    return false;
  }
  return true;
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
    if (!every_path_agrees("call", call, compared,
                           [&](gqa::Path path) { return result(s, in, path, variant) != expected; }))
      return 1;
  }
  for (Index call = 0; call < 2 * calls; ++call) {
    const IntegerCall c = integer_call(call);
    const std::vector<float> expected = result(c, gqa::Path::portable);
    if (!every_path_agrees("call over integers", call, compared,
                           [&](gqa::Path path) { return !same(result(c, path), expected); }))
      return 1;
  }
  std::printf("%lld comparisons; calls take %s: %s\n", static_cast<long long>(compared),
              gqa::path_name(gqa::active_path().path), gqa::active_path().reason);
  return 0;
}
