// SPDX-License-Identifier: Apache-2.0
// What the owning caches share: conversion to the stored type, memory, and errors.
#include "gqa/kv_cache.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "support/owned_caches.hpp"
#include "support/sanitizers.hpp"

namespace gqa::test {
namespace {

// --- conversion ------------------------------------------------------------------------------------------------------

std::uint16_t half_stored(ElementType type, float value) {
  ContiguousKvCache cache({.kv_heads = 1, .head_dim = 1, .k_type = type, .capacity = 1});
  cache.append(std::array{value}, std::array{value});
  std::uint16_t k = 0, v = 0;
  std::memcpy(&k, cache.view().k, 2);
  std::memcpy(&v, cache.view().v, 2);
  EXPECT_EQ(k, v);
  return k;
}

TEST(KvCacheConversion, RoundsToNearestTiesToEven) {
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(half_stored(ElementType::bf16, 1.0f), 0x3f80);
  EXPECT_EQ(half_stored(ElementType::bf16, 1.00390625f), 0x3f80);       // halfway, even below
  EXPECT_EQ(half_stored(ElementType::bf16, 1.01171875f), 0x3f82);       // halfway, even above
  EXPECT_EQ(half_stored(ElementType::bf16, 0x1.010002p+0f), 0x3f81);    // just over halfway
  EXPECT_EQ(half_stored(ElementType::bf16, 0x1.fffffep+127f), 0x7f80);  // rounds up to infinity
  EXPECT_EQ(half_stored(ElementType::bf16, -0.0f), 0x8000);
  EXPECT_EQ(half_stored(ElementType::bf16, -inf), 0xff80);
  EXPECT_EQ(half_stored(ElementType::f16, 1.0f), 0x3c00);
  EXPECT_EQ(half_stored(ElementType::f16, 0x1.002p+0f), 0x3c00);     // halfway, even below
  EXPECT_EQ(half_stored(ElementType::f16, 0x1.006p+0f), 0x3c02);     // halfway, even above
  EXPECT_EQ(half_stored(ElementType::f16, 0x1.002002p+0f), 0x3c01);  // just over halfway
  EXPECT_EQ(half_stored(ElementType::f16, 65519.0f), 0x7bff);
  EXPECT_EQ(half_stored(ElementType::f16, 65520.0f), 0x7c00);  // rounds up to infinity
  EXPECT_EQ(half_stored(ElementType::f16, 0x1p-24f), 0x0001);  // the least denormal
  EXPECT_EQ(half_stored(ElementType::f16, 0x1p-25f), 0x0000);  // half of it, to even
  EXPECT_EQ(half_stored(ElementType::f16, 0x1.8p-25f), 0x0001);
  EXPECT_EQ(half_stored(ElementType::f16, -0x1p-30f), 0x8000);
}

TEST(KvCacheConversion, NanStaysNanAndSameTypeKeepsEveryBit) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_GT(half_stored(ElementType::bf16, nan) & 0x7fff, 0x7f80);
  EXPECT_GT(half_stored(ElementType::f16, nan) & 0x7fff, 0x7c00);
  for (const ElementType type : {ElementType::bf16, ElementType::f16}) {
    SCOPED_TRACE(element_name(type));
    // Every 16-bit pattern, signalling NaNs included, packed and with a step between elements.
    std::vector<std::uint16_t> bits(65536);
    for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
    for (const Index step : {1, 2}) {
      const Index dim = 65536 / step;
      ConstTensorView rows(reinterpret_cast<const bf16*>(bits.data()), 1, 1, dim, TensorStrides{0, 0, step});
      rows.type = type;
      ContiguousKvCache cache({.kv_heads = 1, .head_dim = dim, .k_type = type, .capacity = 1});
      cache.append(rows, rows);
      const auto* kept = static_cast<const std::uint16_t*>(cache.view().k);
      Index same = 0;
      for (Index i = 0; i < dim; ++i) same += kept[i] == bits[static_cast<std::size_t>(i * step)] ? 1 : 0;
      EXPECT_EQ(same, dim);
    }
  }
}

TEST(KvCacheConversion, BetweenSixteenBitTypesRoundsOnce) {
  ContiguousKvCache cache(
      {.kv_heads = 1, .head_dim = 1, .k_type = ElementType::bf16, .v_type = ElementType::f16, .capacity = 2});
  const std::array k{f16(0x1.014p+0f), f16(-65504.0f)};
  const std::array v{bf16(0x1.fep-20f), bf16(1e30f)};
  cache.append(k, v);
  EXPECT_EQ(stored(cache.view(), true, 0, 0, 0), 0x1.02p+0f);
  EXPECT_EQ(stored(cache.view(), true, 1, 0, 0), -65536.0f);
  EXPECT_EQ(stored(cache.view(), false, 0, 0, 0), 0x1p-19f);  // 0x1.fep-20 lies between denormals 2^-24 apart
  EXPECT_EQ(stored(cache.view(), false, 1, 0, 0), std::numeric_limits<float>::infinity());
}

// --- memory ----------------------------------------------------------------------------------------------------------

#if defined(__linux__)
// The kernel's flags of the mapping that holds `address`; "hg" among them: huge pages were asked for.
std::string mapping_flags(const void* address) {
  std::ifstream maps("/proc/self/smaps");
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    std::uintptr_t begin = 0, end = 0;
    char dash = 0;
    std::istringstream range(line);
    if (range >> std::hex >> begin >> dash >> end && dash == '-') inside = wanted >= begin && wanted < end;
    if (inside && line.starts_with("VmFlags:")) return line;
  }
  return "";
}
#endif

TEST(KvCacheMemory, LargeBuffersAskForHugePages) {
  constexpr std::uintptr_t huge = std::uintptr_t{2} << 20;
  const ContiguousKvCache large({.kv_heads = 4, .head_dim = 128, .k_type = ElementType::bf16, .capacity = 4097});
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(large.view().k) % huge, 0u);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(large.view().v) % huge, 0u);
  const ContiguousKvCache small({.kv_heads = 1, .head_dim = 4, .capacity = 3});
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(small.view().k) % 64, 0u);
#if defined(__linux__)
  if (!std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled").good())
    GTEST_SKIP() << "this system has no transparent huge pages; alignment was checked";
  const std::string flags = mapping_flags(large.view().k);
  if (flags.empty()) GTEST_SKIP() << "this system does not tell the flags of mappings; alignment was checked";
  EXPECT_NE(flags.find(" hg"), std::string::npos) << flags;
#endif
}

TEST(KvCacheMemory, MemoryThatTheSystemDoesNotHaveIsStorageExhausted) {
#if GQA_TEST_IS_SANITIZED
  GTEST_SKIP() << "sanitizers end the program on an allocation of this size";
#else
  // More than a processor can address: 2^56 bytes of keys.
  EXPECT_EQ(message_of<StorageExhausted>(
                [] { ContiguousKvCache({.kv_heads = 1, .head_dim = 1 << 10, .capacity = Index{1} << 44}); }),
            "gqa: no memory for 72057594037927936 bytes of keys");
#endif
}

// --- errors ----------------------------------------------------------------------------------------------------------

template <class Cache>
class KvCacheErrors : public testing::Test {};
using SlotCaches = testing::Types<ContiguousKvCache, RingKvCache>;
TYPED_TEST_SUITE(KvCacheErrors, SlotCaches);

TYPED_TEST(KvCacheErrors, WrongConfigurationIsNamed) {
  const auto error_of = [](auto&& change) {
    KvCacheConfig wrong = config(4);
    change(wrong);
    return message_of<ArgumentError>([&] { TypeParam cache(wrong); });
  };
  EXPECT_EQ(error_of([](auto& c) { c.kv_heads = 0; }), "gqa: config.kv_heads is 0; expected 1 or more");
  EXPECT_EQ(error_of([](auto& c) { c.head_dim = -3; }), "gqa: config.head_dim is -3; expected 1 or more");
  EXPECT_EQ(error_of([](auto& c) { c.value_dim = -1; }),
            "gqa: config.value_dim is -1; expected 1 or more, or 0 for head_dim");
  EXPECT_EQ(error_of([](auto& c) { c.capacity = 0; }), "gqa: config.capacity is 0; expected 1 or more");
  EXPECT_EQ(error_of([](auto& c) { c.k_type = static_cast<ElementType>(7); }),
            "gqa: config.k_type is 7; expected ElementType::f32, bf16 or f16");
  EXPECT_EQ(error_of([](auto& c) { c.v_type = static_cast<ElementType>(3); }),
            "gqa: config.v_type is 3; expected ElementType::f32, bf16 or f16");
  EXPECT_EQ(error_of([](auto& c) { c.layout = static_cast<KvLayout>(2); }),
            "gqa: config.layout is 2; expected KvLayout::head_major or KvLayout::token_major");
  const std::string overflow = "tokens * kv_heads * width elements that fit in the address space";
  EXPECT_EQ(error_of([](auto& c) { c.capacity = Index{1} << 59; }),
            "gqa: config.capacity is 576460752303423488; expected " + overflow);
  EXPECT_NE(error_of([](auto& c) { c.kv_heads = c.head_dim = Index{1} << 40; }).find(overflow), std::string::npos);
}

TYPED_TEST(KvCacheErrors, WrongRowsAreNamedAndNothingChanges) {
  const KvSource source(KvNumbers(4, kDims, 12));
  TypeParam cache(config(8));
  source.append_to(cache, 0, 2);
  const auto error_of = [&](auto&& change) {
    ConstTensorView k = source.k.const_view(), v = source.v.const_view();
    change(k, v);
    return message_of<ArgumentError>([&] { cache.append(k, v); });
  };
  EXPECT_EQ(error_of([](auto& k, auto&) { k.tokens = -1; }), "gqa: k.tokens is -1; expected 0 or more");
  EXPECT_EQ(error_of([](auto&, auto& v) { v.tokens = 3; }), "gqa: v.tokens is 3; expected k.tokens = 4");
  EXPECT_EQ(error_of([](auto& k, auto&) { k.heads = 2; }), "gqa: k.heads is 2; expected the cache's kv_heads = 3");
  EXPECT_EQ(error_of([](auto&, auto& v) { v.heads = 4; }), "gqa: v.heads is 4; expected the cache's kv_heads = 3");
  EXPECT_EQ(error_of([](auto& k, auto&) { k.dim = 4; }), "gqa: k.dim is 4; expected the cache's head_dim = 5");
  EXPECT_EQ(error_of([](auto&, auto& v) { v.dim = 5; }), "gqa: v.dim is 5; expected the cache's value_dim = 4");
  EXPECT_EQ(error_of([](auto& k, auto&) { k.data = nullptr; }), "gqa: k.data is null; expected a pointer to the rows");
  EXPECT_EQ(error_of([](auto&, auto& v) { v.data = nullptr; }), "gqa: v.data is null; expected a pointer to the rows");
  EXPECT_EQ(error_of([](auto& k, auto&) { k.data = static_cast<const std::byte*>(k.data) + 2; }),
            "gqa: k.data is misaligned; expected an address that is a multiple of 4");
  EXPECT_EQ(error_of([](auto&, auto& v) { v.type = static_cast<ElementType>(9); }),
            "gqa: v.type is 9; expected ElementType::f32, bf16 or f16");
  const std::vector<float> k(15), v(12), long_k(16), short_v(24);
  EXPECT_EQ(message_of<ArgumentError>([&] { cache.append(long_k, v); }),
            "gqa: k.size() is 16; expected a multiple of the elements of a token, 15");
  EXPECT_EQ(message_of<ArgumentError>([&] { cache.append(k, k); }),
            "gqa: v.size() is 15; expected a multiple of the elements of a token, 12");
  EXPECT_EQ(message_of<ArgumentError>([&] { cache.append(k, short_v); }), "gqa: v.tokens is 2; expected k.tokens = 1");
  EXPECT_EQ(message_of<ArgumentError>([&] { cache.truncate(3); }),
            "gqa: length is 3; expected between 0 and the tokens held, 2");
  EXPECT_THROW(cache.truncate(-1), ArgumentError);
  EXPECT_TRUE(holds(cache.view(), source, 2));
}

}  // namespace
}  // namespace gqa::test
