// SPDX-License-Identifier: Apache-2.0
// Hooks: keys that are changed as they are appended have the bits of keys changed in f32 before, in every cache, layout and type; each is
// changed once, at its position; and a hook that refuses leaves everything as it was.
#include "gqa/key_hook.hpp"

#include <gtest/gtest.h>

#include <cfenv>
#include <string>
#include <tuple>
#include <vector>

#include "gqa/kv_cache.hpp"
#include "gqa/qk_norm.hpp"
#include "gqa/rope.hpp"
#include "support/owned_caches.hpp"
#include "support/rope_cases.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace gqa::test {
namespace {

constexpr Index kTokens = 60;

// Numbers a test begins with, rounded to a type and widened again: what a hook is given.
KvNumbers numbers_of(ElementType type, const KvDims& dims, std::uint64_t seed) {
  KvNumbers numbers(kTokens, dims, seed);
  for (float& x : numbers.k.values) x = rounded_to(type, x);
  return numbers;
}

// Appends all tokens in chunks of several sizes, with a hook or without.
template <class Cache, class... Hook>
void append_all(Cache& cache, const KvSource& source, const Hook&... hook) {
  Index done = 0;
  for (const Index count : {1, 4, 0, 1, 11, 20, 23}) {
    cache.append(source.k.const_view().slice(done, count), source.v.const_view().slice(done, count), hook...);
    done += count;
  }
  ASSERT_EQ(done, kTokens);
}

// What appending with `hook` leaves in every kind of cache is what appending `changed` leaves.
template <class Hook>
void expect_hooked(const KvNumbers& plain, const KvNumbers& changed, const KvDims& dims, ElementType from,
                   const Hook& hook) {
  const KvSource source(plain, from, ElementType::f32, TensorLayout::padded);
  const KvSource apart(plain, from, ElementType::f32, TensorLayout::dim_major);
  const KvSource expected(changed, ElementType::f32, ElementType::f32);
  for (const ElementType type : kTypes)
    for (const KvLayout layout : kLayouts) {
      SCOPED_TRACE(std::string("from ") + element_name(from) + ", " + types_and_layout(type, type, layout));
      const auto with = [&](Index capacity) { return config(capacity, type, type, layout, dims); };
      const auto compare = [&](auto& hooked, auto& again, auto& before) {
        append_all(hooked, source, hook);
        append_all(again, apart, hook);
        append_all(before, expected);
        EXPECT_TRUE(same_rows(hooked.view(), before.view()));
        EXPECT_TRUE(same_rows(again.view(), before.view()));
      };
      ContiguousKvCache a(with(kTokens)), b(with(kTokens)), c(with(kTokens));
      compare(a, b, c);
      for (const Index capacity : {7, 17, 64}) {  // 7: less than a chunk
        RingKvCache d(with(capacity)), e(with(capacity)), f(with(capacity));
        compare(d, e, f);
      }
      for (const Index page_size : {1, 7, 64}) {
        PagedKvPool pool(pool_config(page_size, 3 * kTokens, type, type, layout, dims));
        PagedSequence d = pool.sequence(), e = pool.sequence(), f = pool.sequence();
        compare(d, e, f);
      }
    }
}

TensorView rows_of(Numbers& numbers) {
  return TensorView(numbers.values.data(), numbers.tokens, numbers.heads, numbers.dim);
}

constexpr KvDims kWide{2, 22, 3};  // neither whole registers nor all dims turned

class KeyHooks : public testing::TestWithParam<RopeCase> {
 protected:
  RopePairs pairs() const { return std::get<0>(GetParam()); }
  ElementType from() const { return std::get<1>(GetParam()); }
};

TEST_P(KeyHooks, RopeTurnsKeysAsTheyAreAppended) {
  const Rope rope({.dims = 18, .pairs = pairs()}, kTokens);
  const KvNumbers plain = numbers_of(from(), kWide, 301);
  KvNumbers turned = plain;
  rope(rows_of(turned.k), 0);
  expect_hooked(plain, turned, kWide, from(), rope.keys());
}

TEST_P(KeyHooks, NormThenRope) {
  const Rope rope({.dims = 22, .pairs = pairs()}, 100);
  std::vector<float> weights(22);
  Random random(302);
  for (float& x : weights) x = random.normal();
  const RmsNormOptions norm{.weights = weights, .weight_offset = 1.0f};
  const KvNumbers plain = numbers_of(from(), kWide, 303);
  KvNumbers changed = plain;
  rms_norm(rows_of(changed.k), norm);
  expect_hooked(plain, changed, kWide, from(), RmsNormKeys{norm});
  rope(rows_of(changed.k), 0);
  expect_hooked(plain, changed, kWide, from(), compose_hooks(RmsNormKeys{norm}, rope.keys()));
}

TEST_P(KeyHooks, SectionsOfSeveralAxesTakeTheCachesPosition) {
  const Rope rope({.dims = 22, .pairs = pairs(), .sections = {4, 1, 6}}, kTokens);
  const KvNumbers plain = numbers_of(from(), kWide, 304);
  KvNumbers turned = plain;
  rope(rows_of(turned.k), 0);
  expect_hooked(plain, turned, kWide, from(), rope.keys());
}

INSTANTIATE_TEST_SUITE_P(All, KeyHooks, rope_cases(), rope_case_name);

TEST(KeyHook, RowsOfAnyWidth) {
  for (const Index dim : {2, 1024, 1026, 5000}) {
    const KvDims dims{1, dim, 1};
    const Rope rope({.dims = dim}, kTokens);
    const KvNumbers plain(kTokens, dims, 305);
    KvNumbers turned = plain;
    rope(rows_of(turned.k), 0);
    const KvSource source(plain), expected(turned);
    const KvCacheConfig with{
        .kv_heads = 1, .head_dim = dim, .value_dim = 1, .k_type = ElementType::f16, .capacity = kTokens};
    ContiguousKvCache hooked(with), before(with);
    append_all(hooked, source, rope.keys());
    append_all(before, expected);
    EXPECT_TRUE(same_rows(hooked.view(), before.view())) << dim;
  }
}

TEST(KeyHook, PositionsMayBeGiven) {
  const Rope plane({.dims = 22, .sections = {5, 6}}, 50), line({.dims = 22}, 50);
  const KvSource source(KvNumbers(6, kWide, 306));
  const std::vector<Index> depths{9, 0, 49, 3, 3, 1}, rows_and_columns{7, 7, 8, 8, 9, 9, 30, 31, 30, 31, 30, 31};
  const auto check = [&](const Rope& rope, const std::vector<Index>& positions) {
    Numbers turned(6, kWide.kv_heads, kWide.head_dim);
    for (Index t = 0; t < 6; ++t)
      for (Index h = 0; h < kWide.kv_heads; ++h)
        for (Index d = 0; d < kWide.head_dim; ++d) turned.at(t, h, d) = source.k.at(t, h, d);
    rope(rows_of(turned), positions);
    const KvCacheConfig with{.kv_heads = 2, .head_dim = 22, .value_dim = 3, .capacity = 4};
    RingKvCache hooked(with), before(with);  // keeps the last four
    hooked.append(source.k.const_view(), source.v.const_view(), rope.keys(positions));
    before.append(ConstTensorView(rows_of(turned)), source.v.const_view());
    EXPECT_TRUE(same_rows(hooked.view(), before.view()));
  };
  check(line, depths);
  check(plane, rows_and_columns);
}

TEST(KeyHook, IsGivenEachRowOnce) {
  std::vector<std::vector<Index>> calls;
  const Adder hook{100.0f, &calls};
  const KvSource source(KvNumbers(9, kDims, 307));
  const auto expect_calls = [&](Index first, Index begin, Index end) {  // of an append at position `first`
    std::vector<std::vector<Index>> expected;
    for (Index position = begin; position < end; ++position)
      for (Index head = 0; head < kDims.kv_heads; ++head)
        expected.push_back({position, position - first, head, kDims.head_dim});
    std::sort(calls.begin(), calls.end());
    EXPECT_EQ(calls, expected);
    calls.clear();
  };
  const auto append = [&](auto& cache, Index first, Index count) {
    cache.append(source.k.const_view().slice(first, count), source.v.const_view().slice(first, count), hook);
  };
  ContiguousKvCache contiguous(config(20));
  append(contiguous, 0, 2);
  expect_calls(0, 0, 2);
  append(contiguous, 2, 7);
  expect_calls(2, 2, 9);
  RingKvCache ring(config(5));
  append(ring, 0, 3);
  expect_calls(0, 0, 3);
  append(ring, 0, 9);  // the first four would be overwritten
  expect_calls(3, 7, 12);
  PagedKvPool pool(pool_config(4, 20));
  PagedSequence paged = pool.sequence();
  append(paged, 0, 7);
  expect_calls(0, 0, 7);
  PagedSequence fork = paged.fork();
  append(fork, 7, 2);  // its own copy of the last page, of which nothing is changed again
  expect_calls(7, 7, 9);
  for (Index position = 0; position < 9; ++position)
    EXPECT_EQ(stored(fork.view(), true, position, 0, 0), source.k.at(position, 0, 0) + 100.0f) << position;
}

TEST(KeyHook, PackedRowsTakeOneToo) {
  const Rope rope({.dims = 4}, 10);
  const std::vector<float> k(2 * 15, 1.0f), v(2 * 12, 2.0f);
  PagedKvPool pool(pool_config(4, 20));
  PagedSequence paged = pool.sequence();
  ContiguousKvCache contiguous(config(20));
  RingKvCache ring(config(20));
  paged.append(k, v, rope.keys());
  contiguous.append(k, v, rope.keys());
  ring.append(k, v, rope.keys());
  EXPECT_EQ(stored(contiguous.view(), true, 1, 2, 0), static_cast<float>(std::cos(1.0) - std::sin(1.0)));
  EXPECT_TRUE(same_rows(contiguous.view(), paged.view()));
  EXPECT_TRUE(same_rows(contiguous.view(), ring.view()));
}

TEST(KeyHook, TheCallersFloatingPointEnvironmentIsNothing) {
  const Rope rope({.dims = 22}, 100);
  const auto hook = compose_hooks(RmsNormKeys{}, rope.keys());
  const KvNumbers plain = [] {
    KvNumbers made(kTokens, kWide, 308);
    for (float& x : made.k.values) x *= 1e-41f;  // denormals
    return made;
  }();
  const KvSource source(plain);
  const KvCacheConfig with{.kv_heads = 2, .head_dim = 22, .value_dim = 3, .capacity = kTokens};
  ContiguousKvCache expected(with), turned(with);
  append_all(expected, source, hook);
  append_all(turned, source, rope.keys());
  Numbers rows = plain.k;
  rope(rows_of(rows), 0);
  const auto compare = [&](auto&& set) {
    ContiguousKvCache actual(with), actually_turned(with);
    Numbers again = plain.k;
    std::fenv_t saved;
    std::fegetenv(&saved);
    set();
    append_all(actual, source, hook);
    append_all(actually_turned, source, rope.keys());
    rope(rows_of(again), 0);
    std::fesetenv(&saved);
    EXPECT_TRUE(same_rows(actual.view(), expected.view()));
    EXPECT_TRUE(same_rows(actually_turned.view(), turned.view()));
    EXPECT_EQ(again.values, rows.values);
  };
  for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) compare([&] { std::fesetround(mode); });
#if defined(__x86_64__)
  compare([] { _mm_setcsr(_mm_getcsr() | 0x8040u); });  // denormals flushed
#endif
}

// --- what is refused -------------------------------------------------------------------------------------------------

template <class Cache>
void expect_refusals(Cache& cache) {
  const KvSource source(KvNumbers(9, kDims, 309));
  source.append_to(cache, 0, 5);
  const Rope short_table({.dims = 4}, 7), wide({.dims = 6}, 100), good({.dims = 4}, 100);
  const Rope axes({.dims = 4, .sections = {1, 1}}, 100);
  const std::vector<Index> two{0, 1}, far{0, 1, 100}, negative{0, -1, 2};
  const std::vector<float> weights(4);
  const auto error_of = [&](const auto& hook) {
    return message_of<ArgumentError>(
        [&] { cache.append(source.k.const_view().slice(5, 3), source.v.const_view().slice(5, 3), hook); });
  };
  EXPECT_EQ(error_of(short_table.keys()),
            "gqa: rope.positions() is 7; expected the positions that keys take, 8 or more");
  EXPECT_EQ(error_of(wide.keys()), "gqa: k.dim is 5; expected the rope's dims = 6 or more");
  EXPECT_EQ(error_of(good.keys(two)), "gqa: positions.size() is 2; expected axes * k.tokens = 3");
  EXPECT_EQ(error_of(axes.keys(far)), "gqa: positions.size() is 3; expected axes * k.tokens = 6");
  EXPECT_EQ(error_of(good.keys(far)), "gqa: positions[2] is 100; expected 0 to 99, the positions of the table");
  EXPECT_EQ(error_of(good.keys(negative)), "gqa: positions[1] is -1; expected 0 to 99, the positions of the table");
  EXPECT_EQ(error_of(RmsNormKeys{{.weights = weights}}),
            "gqa: options.weights.size() is 4; expected k.dim = 5, or none");
  EXPECT_EQ(error_of(RmsNormKeys{{.epsilon = -1.0}}), "gqa: options.epsilon is -1; expected a number, 0 or more");
  EXPECT_EQ(error_of(compose_hooks(RmsNormKeys{}, short_table.keys())),
            "gqa: rope.positions() is 7; expected the positions that keys take, 8 or more");
  EXPECT_TRUE(holds(cache.view(), source, 5));
  cache.append(source.k.const_view().slice(5, 2), source.v.const_view().slice(5, 2), short_table.keys());
}

TEST(KeyHook, ThatRefusesLeavesTheCacheAsItWas) {
  ContiguousKvCache contiguous(config(20));
  expect_refusals(contiguous);
  RingKvCache ring(config(5));
  expect_refusals(ring);
  PagedKvPool pool(pool_config(4, 20));
  PagedSequence paged = pool.sequence();
  expect_refusals(paged);
  EXPECT_EQ(pool.free_pages(), 18);
  PagedSequence fork = paged.fork();
  const Rope rope({.dims = 4}, 8);
  const KvSource source(KvNumbers(9, kDims, 310));
  EXPECT_THROW(fork.append(source.k.const_view(), source.v.const_view(), rope.keys()), ArgumentError);
  EXPECT_EQ(pool.free_pages(), 18) << "nothing was copied";
  EXPECT_EQ(pages_of(fork), pages_of(paged));
}

TEST(KeyHook, IsNotAskedWhereThereIsNoRoom) {
  std::vector<std::vector<Index>> calls;
  const KvSource source(KvNumbers(9, kDims, 311));
  ContiguousKvCache contiguous(config(8));
  EXPECT_THROW(contiguous.append(source.k.const_view(), source.v.const_view(), Adder{100.0f, &calls}),
               StorageExhausted);
  PagedKvPool pool(pool_config(4, 2));
  PagedSequence paged = pool.sequence();
  EXPECT_THROW(paged.append(source.k.const_view(), source.v.const_view(), Adder{100.0f, &calls}), StorageExhausted);
  EXPECT_TRUE(calls.empty());
}

}  // namespace
}  // namespace gqa::test
