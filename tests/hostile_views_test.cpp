// SPDX-License-Identifier: Apache-2.0
// Hostile arguments of what makes views and of owning caches: refused by name with everything as it was, or harmless.
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <limits>

#include "gqa/eigen.hpp"
#include "gqa/kv_cache.hpp"
#include "support/owned_caches.hpp"

// Memory of any size may be asked for; what cannot be had is StorageExhausted, under a sanitizer too.
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }

namespace gqa::test {
namespace {

constexpr Index kMin = std::numeric_limits<Index>::min();
constexpr Index kMax = std::numeric_limits<Index>::max();
constexpr Index kHostile[] = {
    kMin,           kMin + 1,       -(Index{1} << 56), -65,      -2,  -1, 0, 1, 2, 3, 63, 64, 65,
    Index{1} << 31, Index{1} << 40, Index{1} << 62,    kMax - 1, kMax};

/// "" if nothing was thrown.
std::string said(const std::function<void()>& call) {
  try {
    call();
  } catch (const ArgumentError& error) {
    return error.what();
  } catch (const StorageExhausted& error) {
    return error.what();
  }
  return "";
}

TEST(HostileMakers, MultiplyWhatever) {
  const std::vector<float> memory(64);
  const std::span<const float> span(memory);
  for (const Index a : kHostile)
    for (const Index b : kHostile)
      for (const Index c : kHostile) {
        const ConstTensorView view(memory.data(), a, b, c);
        EXPECT_EQ(view.tokens, a);
        const std::string tensor = said([&] { static_cast<void>(ConstTensorView(span, a, b, c)); });
        const std::string cache = said([&] { static_cast<void>(KvCacheView::contiguous(span, span, {a, b, c})); });
        const bool fits = a >= 0 && b >= 0 && c >= 0 &&
                          (a == 0 || b == 0 || c == 0 || (a <= 64 && b <= 64 && c <= 64 && a * b * c <= 64));
        const detail::Checked product = detail::Checked(a) * b * c;
        EXPECT_EQ(tensor.empty(), fits && product.fits()) << tensor;
        EXPECT_EQ(cache.empty(), fits && product.fits() && b > 0 && c > 0) << cache;
        static_cast<void>(KvStrides::token_major(a, b, c));
        static_cast<void>(KvStrides::head_major(a, b, c));
        static_cast<void>(TensorStrides::token_major(a, b));
        static_cast<void>(TensorStrides::head_major(a, b, c));
        static_cast<void>(KvCacheView::ring(memory.data(), memory.data(), {a, b, c}, a, {a, b}, {b, c}));
      }
  EXPECT_EQ(said([&] { static_cast<void>(ConstTensorView(span, 1, kMax, 2)); }),
            "gqa: elements.tokens is 1; expected tokens * heads * dim that fits in 63 bits");
  EXPECT_EQ(said([&] { static_cast<void>(ConstTensorView(span, 3, 4, 8, "keys")); }),
            "gqa: keys.size() is 64; expected at least tokens * heads * dim = 96, for a tensor of 3 * 4 * 8");
}

TEST(HostileMakers, SlicesAreOfWhatIsThere) {
  std::vector<float> memory(120);
  const TensorView view(memory.data(), 5, 4, 6);
  const KvCacheView kv = KvCacheView::contiguous(memory.data(), memory.data(), {5, 4, 6});
  for (const Index first : kHostile)
    for (const Index count : kHostile) {
      const bool tokens = first >= 0 && first <= 5 && count >= 0 && count <= 5 - first;
      const bool heads = first >= 0 && first <= 4 && count >= 0 && count <= 4 - first;
      EXPECT_EQ(said([&] { static_cast<void>(view.slice(first, count)); }).empty(), tokens);
      EXPECT_EQ(said([&] { static_cast<void>(view.slice_heads(first, count)); }).empty(), heads);
      EXPECT_EQ(said([&] { static_cast<void>(kv.slice_heads(first, count)); }).empty(), heads);
      TensorView odd = view;
      odd.tokens = odd.heads = kMax;
      odd.strides = {count, first, 1};
      static_cast<void>(said([&] { static_cast<void>(odd.slice(first, 1)); }));
      static_cast<void>(said([&] { static_cast<void>(odd.slice_heads(first, 1)); }));
    }
  EXPECT_EQ(view.slice(2, 3).data, memory.data() + 2 * 24);
  EXPECT_EQ(view.slice_heads(1, 2).data, memory.data() + 6);
  EXPECT_EQ(said([&] { static_cast<void>(view.slice(6, 0)); }), "gqa: first is 6; expected 0 to tokens = 5");
  EXPECT_EQ(said([&] { static_cast<void>(kv.slice_heads(3, 2)); }),
            "gqa: count is 2; expected 0 to kv_heads - first = 1, those that are left");
}

// Views whose element type is known at run time are those that know it at compile time.
TEST(Makers, TakeTheElementTypeAtRunTime) {
  std::vector<bf16> k(48);
  std::vector<float> v(48), q(48);
  const TensorStrides steps{24, 6, 1};
  const ConstTensorView typed(k.data(), 2, 4, 6, steps), untyped(k.data(), ElementType::bf16, 2, 4, 6, steps);
  EXPECT_EQ(untyped.data, typed.data);
  EXPECT_EQ(untyped.type, ElementType::bf16);
  const ConstTensorView packed(static_cast<const void*>(k.data()), ElementType::bf16, 2, 4, 6);
  EXPECT_EQ(packed.strides.token, 24);
  EXPECT_EQ(packed.strides.head, 6);
  const TensorView out(static_cast<void*>(v.data()), ElementType::f32, 2, 4, 6, TensorStrides::head_major(4, 2, 6));
  EXPECT_EQ(out.strides.token, 6);
  EXPECT_EQ(out.strides.head, 12);
  EXPECT_EQ(out.strides.dim, 1);
  const std::int32_t table[] = {0, 1};
  const KvShape shape{6, 2, 4};
  const KvStrides k_steps = KvStrides::head_major(2, 3, 4), v_steps = KvStrides::token_major(2, 4, 3);
  const auto same = [](const KvCacheView& a, const KvCacheView& b) {
    EXPECT_EQ(a.k, b.k);
    EXPECT_EQ(a.v, b.v);
    EXPECT_EQ(a.k_type, b.k_type);
    EXPECT_EQ(a.v_type, b.v_type);
    EXPECT_EQ(a.storage, b.storage);
    EXPECT_EQ(a.length, b.length);
    EXPECT_EQ(a.kv_heads, b.kv_heads);
    EXPECT_EQ(a.head_dim, b.head_dim);
    EXPECT_EQ(a.value_dim, b.value_dim);
    EXPECT_EQ(a.k_strides.token, b.k_strides.token);
    EXPECT_EQ(a.k_strides.head, b.k_strides.head);
    EXPECT_EQ(a.v_strides.token, b.v_strides.token);
    EXPECT_EQ(a.v_strides.head, b.v_strides.head);
    EXPECT_EQ(a.v_strides.page, b.v_strides.page);
    EXPECT_EQ(a.capacity, b.capacity);
    EXPECT_EQ(a.page_size, b.page_size);
    EXPECT_EQ(a.pool_pages, b.pool_pages);
    EXPECT_EQ(a.page_table, b.page_table);
    EXPECT_EQ(a.page_table_size, b.page_table_size);
  };
  const void *kp = k.data(), *vp = v.data();
  const ElementType kt = ElementType::bf16, vt = ElementType::f32;
  same(KvCacheView::contiguous(kp, kt, vp, vt, shape), KvCacheView::contiguous(k.data(), v.data(), shape));
  same(KvCacheView::contiguous(kp, kt, vp, vt, shape, k_steps, v_steps),
       KvCacheView::contiguous(k.data(), v.data(), shape, k_steps, v_steps));
  same(KvCacheView::ring(kp, kt, vp, vt, shape, 6, k_steps, v_steps),
       KvCacheView::ring(k.data(), v.data(), shape, 6, k_steps, v_steps));
  same(KvCacheView::paged(kp, kt, vp, vt, shape, table, 3, 2, k_steps, v_steps),
       KvCacheView::paged(k.data(), v.data(), shape, table, 3, 2, k_steps, v_steps));
  same(KvCacheView::contiguous({k.data(), 6, 2, 4, TensorStrides{4, 24}}, {v.data(), 6, 2, 3, TensorStrides{6, 3}}),
       KvCacheView::contiguous(k.data(), v.data(), {6, 2, 4, 3}, {4, 24}, {6, 3}));
}

TEST(Makers, ACacheOfTwoTensorsHasOneShape) {
  const std::vector<float> memory(200);
  const ConstTensorView keys(memory.data(), 5, 2, 4), values(memory.data(), 5, 2, 6);
  EXPECT_EQ(KvCacheView::contiguous(keys, values).value_dim, 6);
  const auto message = [&](const auto& spoil) {
    ConstTensorView k = keys, v = values;
    spoil(k, v);
    return said([&] { static_cast<void>(KvCacheView::contiguous(k, v)); });
  };
  EXPECT_EQ(message([](auto&, auto& v) { v.tokens = 4; }), "gqa: values.tokens is 4; expected keys.tokens = 5");
  EXPECT_EQ(message([](auto&, auto& v) { v.heads = 3; }), "gqa: values.heads is 3; expected keys.heads = 2");
  EXPECT_EQ(message([](auto& k, auto&) { k.strides.dim = 2; }),
            "gqa: keys.strides.dim is 2; expected 1: the elements of a row lie side by side");
  EXPECT_EQ(message([](auto&, auto& v) { v.strides.dim = -1; }),
            "gqa: values.strides.dim is -1; expected 1: the elements of a row lie side by side");
  EXPECT_EQ(message([](auto& k, auto&) { k.dim = 1, k.strides.dim = 7; }), "") << "one element has no neighbour";
}

// --- owning caches -----------------------------------------------------------------------------------------------------------

TEST(HostileCaches, ConfigurationsAreRefusedOrHaveNoMemory) {
  for (const Index a : kHostile)
    for (const Index b : kHostile) {
      const bool none = a < 1 || b < 1;
      const bool small = !none && a <= 65 && b <= 65;
      // Whether there is memory for what lies between is the system's to say: it is neither asked for here, nor written.
      const bool may_be_had = !none && !small && (detail::Checked(a) * b).at_most(Index{1} << 44);
      if (may_be_had) continue;
      const auto try_slots = [&](KvCacheConfig c) {
        EXPECT_EQ(said([&] { ContiguousKvCache cache(c); }).empty(), small);
        EXPECT_EQ(said([&] { RingKvCache cache(c); }).empty(), small);
      };
      try_slots({.kv_heads = a, .head_dim = b, .capacity = 1});
      try_slots({.kv_heads = a, .head_dim = 1, .capacity = b});
      try_slots({.kv_heads = 1, .head_dim = a, .capacity = b});
      const KvPoolConfig c{.kv_heads = 1, .head_dim = 1, .page_size = a, .pages = b};
      EXPECT_EQ(said([&] { PagedKvPool pool(c); }).empty(), small);
    }
}

TEST(HostileCaches, RowsAreAppendedOrRefusedAndNothingChanges) {
  const std::vector<float> memory(4096, 0.5f);
  ContiguousKvCache contiguous(config(8));
  RingKvCache ring(config(8));
  PagedKvPool pool(pool_config(4, 4));
  PagedSequence paged = pool.sequence();
  Random random(5);
  const auto draw = [&](ConstTensorView& rows) {
    Index* const fields[] = {&rows.tokens,        &rows.heads,        &rows.dim,
                             &rows.strides.token, &rows.strides.head, &rows.strides.dim};
    const Index hostile = kHostile[random.below(std::size(kHostile))];
    switch (random.below(4)) {
      case 0:
        rows.data = random.below(2) == 0 ? nullptr : static_cast<const std::byte*>(rows.data) + random.below(5);
        break;
      case 1: rows.type = static_cast<ElementType>(random.below(6)); break;
      default: *fields[random.below(6)] = hostile;
    }
  };
  const auto reaches = [&](const ConstTensorView& rows) {  // beyond the memory, or so many rows that it takes long
    __extension__ using Wide = __int128;
    Wide low = 0, high = 0;
    const auto add = [&](Index extent, Index stride) { (stride < 0 ? low : high) += Wide{extent - 1} * stride; };
    if (rows.tokens <= 0 || rows.heads <= 0 || rows.dim <= 0) return false;
    add(rows.tokens, rows.strides.token), add(rows.heads, rows.strides.head), add(rows.dim, rows.strides.dim);
    const auto before =
        (reinterpret_cast<std::uintptr_t>(rows.data) - reinterpret_cast<std::uintptr_t>(memory.data())) / 4;
    return low + static_cast<Wide>(before) < 0 || high + static_cast<Wide>(before) >= 4096 - 1;
  };
  Index appended = 0, refused = 0;
  const auto append = [&](auto& cache, const ConstTensorView& k, const ConstTensorView& v) {
    const Index length = cache.length();
    const std::string message = said([&] { cache.append(k, v); });
    EXPECT_EQ(cache.length(), message.empty() ? length + k.tokens : length) << message;
    ++(message.empty() ? appended : refused);
    if (cache.length() > 6) cache.clear();
  };
  for (int i = 0; i < 20'000; ++i) {
    ConstTensorView k(memory.data() + 2048, 1 + random.below(3), kDims.kv_heads, kDims.head_dim);
    ConstTensorView v(memory.data() + 2048, k.tokens, kDims.kv_heads, kDims.value_dim);
    draw(random.below(2) == 0 ? k : v);
    if (reaches(k) || reaches(v)) continue;
    append(contiguous, k, v);
    if (k.tokens < Index{1} << 20) append(ring, k, v);
    append(paged, k, v);
  }
  EXPECT_GT(appended, 1000);
  EXPECT_GT(refused, 1000);
  const float one = 1.0f;
  const ConstTensorView far(&one, 2, kDims.kv_heads, kDims.head_dim, TensorStrides{kMax, 0, 0});
  const ConstTensorView near(&one, 2, kDims.kv_heads, kDims.value_dim, TensorStrides{0, 0, 0});
  EXPECT_EQ(said([&] { contiguous.append(far, near); }),
            "gqa: k.strides.token is 9223372036854775807; expected a stride whose offsets fit in 48 bits");
}

TEST(HostileCaches, RowsMayComeFromWhereTheyGo) {
  ContiguousKvCache cache(config(4));
  KvSource(KvNumbers(4, kDims, 3)).append_to(cache, 0, 4);
  const KvCacheView view = cache.view();
  cache.truncate(2);
  const ConstTensorView k(view.k, view.k_type, 2, view.kv_heads, view.head_dim,
                          {view.k_strides.token, view.k_strides.head, 1});
  const ConstTensorView v(view.v, view.v_type, 2, view.kv_heads, view.value_dim,
                          {view.v_strides.token, view.v_strides.head, 1});
  cache.append(k, v);  // the first two again
  for (Index token = 0; token < 2; ++token)
    EXPECT_EQ(stored(cache.view(), true, token + 2, 1, 2), stored(view, true, token, 1, 2));
  cache.truncate(0);
  cache.append(k, v);  // onto themselves
  EXPECT_EQ(cache.length(), 2);
}

TEST(HostileCaches, CountsOfTokensAreCheckedAndNothingChanges) {
  PagedKvPool pool(pool_config(4, 4));
  PagedSequence sequence = pool.sequence();
  ContiguousKvCache contiguous(config(8));
  RingKvCache ring(config(8));
  const KvSource source(KvNumbers(6, kDims, 3));
  source.append_to(sequence, 0, 6);
  source.append_to(contiguous, 0, 6);
  source.append_to(ring, 0, 6);
  for (const Index count : kHostile) {
    if (count >= 0 && count <= 6) continue;
    SCOPED_TRACE(count);
    EXPECT_NE(said([&] { sequence.truncate(count); }), "");
    EXPECT_NE(said([&] { contiguous.truncate(count); }), "");
    EXPECT_NE(said([&] { ring.truncate(count); }), "");
    EXPECT_NE(said([&] { static_cast<void>(sequence.fork(count)); }), "");
    EXPECT_NE(said([&] { sequence.reserve(count); }), "");
    EXPECT_NE(said([&] { static_cast<void>(pool.reference_count(count)); }), "");
    EXPECT_EQ(said([&] { static_cast<void>(sequence.pages_to_append(count)); }).empty(), count >= 0);
  }
  EXPECT_TRUE(holds(sequence.view(), source, 6) && holds(contiguous.view(), source, 6) &&
              holds(ring.view(), source, 6));
  const PagedKvPool taken = std::move(pool);
  EXPECT_EQ(pool.pages() + pool.free_pages() + pool.page_size() + pool.bytes(), 0);  // NOLINT: moved from
  EXPECT_NE(said([&] { static_cast<void>(pool.reference_count(0)); }), "");
  EXPECT_NE(said([&] { static_cast<void>(pool.sequence()); }), "");
}

// --- Eigen ---------------------------------------------------------------------------------------------------------------------

TEST(HostileEigen, ViewsAndMaps) {
  Eigen::MatrixXf matrix = Eigen::MatrixXf::Random(4, 12);
  const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rows = matrix;
  for (const Index number : kHostile) {
    const bool divides = number > 0 && number <= 12 && 12 % number == 0;
    EXPECT_EQ(said([&] { static_cast<void>(tensor_view(matrix, number)); }).empty(), divides);
    EXPECT_EQ(said([&] { static_cast<void>(kv_cache_view(rows, rows, number)); }).empty(), divides);
    EXPECT_EQ(said([&] { static_cast<void>(kv_cache_view(rows, rows, 2, number)); }).empty(),
              number >= -1 && number <= 4);
    const ConstTensorView good = tensor_view(rows, 3);
    EXPECT_EQ(said([&] { static_cast<void>(head_map<float>(good, number)); }).empty(), number >= 0 && number < 3);
    for (int field = 0; field < 6; ++field) {
      ConstTensorView view = good;
      Index* const fields[] = {&view.tokens,        &view.heads,        &view.dim,
                               &view.strides.token, &view.strides.head, &view.strides.dim};
      *fields[field] = number;
      static_cast<void>(said([&] { static_cast<void>(head_map<float>(view, 0)); }));
    }
  }
  ConstTensorView null = tensor_view(rows, 3);
  null.data = nullptr;
  EXPECT_EQ(said([&] { static_cast<void>(head_map<float>(null, 0)); }),
            "gqa: view.data is null; expected a pointer to f32 elements");
}

}  // namespace
}  // namespace gqa::test
