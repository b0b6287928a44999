// SPDX-License-Identifier: Apache-2.0
// Rows rotated: the transform itself, rows in place, what owning caches store, what 4-bit codecs gain, and what is refused. Calls:
// promises_rotation_test.cpp.
#include "gqa/rotation.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gqa/kv_cache.hpp"
#include "gqa/rope.hpp"
#include "support/codecs.hpp"
#include "support/owned_caches.hpp"
#include "support/reference_check.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace gqa::test {
namespace {

std::vector<float> random_row(Index dim, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> row(static_cast<std::size_t>(dim));
  for (float& x : row) x = random.normal();
  return row;
}

// Step by step, each sum rounded.
std::vector<float> stepped(std::vector<float> row, Index block) {
  for (Index half = 1; half < block; half *= 2)
    for (Index i = 0; i < static_cast<Index>(row.size()); ++i) {
      if ((i & half) != 0) continue;
      float& a = row[static_cast<std::size_t>(i)];
      float& b = row[static_cast<std::size_t>(i + half)];
      const volatile float sum = a + b;
      const volatile float difference = a - b;
      a = sum;
      b = difference;
    }
  for (float& x : row) x *= detail::rotation_norm(block);
  return row;
}

// By the definition: H(i, j) is −1 where i & j has an odd number of bits.
double defined(const std::vector<float>& row, Index block, Index i) {
  const Index first = i / block * block;
  double sum = 0.0;
  for (Index j = 0; j < block; ++j) {
    const double x = static_cast<double>(row[static_cast<std::size_t>(first + j)]);
    sum += __builtin_parityll(static_cast<unsigned long long>(i % block & j)) != 0 ? -x : x;
  }
  return sum / std::sqrt(static_cast<double>(block));
}

// (log2(block) + 2) · 2⁻²⁴ times the block's magnitudes over √block; and what is of second order.
double bound(const std::vector<float>& row, Index block, Index i) {
  const Index first = i / block * block;
  double sum = 0.0;
  for (Index j = 0; j < block; ++j) sum += std::abs(static_cast<double>(row[static_cast<std::size_t>(first + j)]));
  const double roundings = (std::log2(static_cast<double>(block)) + 2.0) * 0x1p-24;
  return roundings * (1.0 + roundings) * sum / std::sqrt(static_cast<double>(block));
}

class RotateRowOn : public PerPath {};

TEST_P(RotateRowOn, IsTheTransformStepByStep) {
  for (Index block = 1; block <= 2048; block *= 2)
    for (Index blocks = 1; blocks <= 5; ++blocks) {
      const Index dim = block * blocks;
      const std::vector<float> row = random_row(dim, static_cast<std::uint64_t>(dim));
      const std::vector<float> expected = stepped(row, block);
      std::vector<float> rotated = row;
      rotated.push_back(77.0f);
      detail::rotate_row_on(GetParam())(rotated.data(), dim, block);
      EXPECT_EQ(rotated.back(), 77.0f) << "behind the row";
      rotated.pop_back();
      ASSERT_EQ(rotated, expected) << "blocks of " << block << ", dim " << dim;
      for (Index i = 0; i < dim && blocks < 3 && block <= 512; ++i)
        ASSERT_LE(std::abs(static_cast<double>(rotated[static_cast<std::size_t>(i)]) - defined(row, block, i)),
                  bound(row, block, i))
            << "blocks of " << block << ", element " << i << " of " << dim;
    }
}

INSTANTIATE_TEST_SUITE_P(EveryPath, RotateRowOn, RotateRowOn::cases(), RotateRowOn::name);

// Sums of small whole numbers are exact, and so is the norm of a block of 4ⁿ elements.
TEST(HadamardRotate, TwiceIsNothing) {
  std::vector<float> row(256);
  for (std::size_t i = 0; i < row.size(); ++i) row[i] = static_cast<float>(i * i % 37) - 18.0f;
  for (const Index block : {1, 4, 16, 64, 256}) {
    std::vector<float> twice = row;
    const TensorView view(twice.data(), 1, 1, 256);
    hadamard_rotate(view, block);
    EXPECT_EQ(twice == row, block == 1);
    hadamard_rotate(view, block);
    EXPECT_EQ(twice, row) << block;
  }
}

TEST(HadamardRotate, RowsOfAnyTypeAndStrides) {
  for (const ElementType type : kTypes)
    for (const TensorLayout layout : {TensorLayout::packed, TensorLayout::padded, TensorLayout::reversed}) {
      Numbers numbers(3, 2, 24);
      Random random(500);
      for (float& x : numbers.values) x = random.normal();
      Tensor tensor(numbers, type, layout);
      hadamard_rotate(tensor.view(), 8);
      for (Index t = 0; t < 3; ++t)
        for (Index h = 0; h < 2; ++h) {
          std::vector<float> row;
          for (Index d = 0; d < 24; ++d) row.push_back(rounded_to(type, numbers.at(t, h, d)));
          const std::vector<float> expected = stepped(row, 8);
          for (Index d = 0; d < 24; ++d)
            ASSERT_EQ(tensor.at(t, h, d), rounded_to(type, expected[static_cast<std::size_t>(d)]));
        }
    }
  for (const Index dim : {1024, 1088}) {  // wider than what needs no memory
    std::vector<float> row = random_row(dim, 501);
    const std::vector<float> expected = stepped(row, 64);
    hadamard_rotate(TensorView(row.data(), 1, 1, dim), 64);
    EXPECT_EQ(row, expected);
  }
}

TEST(HadamardRotate, RefusesByName) {
  std::vector<float> row(48, 1.0f);
  const TensorView view(row.data(), 1, 1, 48);
  const auto said = [](const TensorView& rows, Index block) {
    return message_of<ArgumentError>([&] { hadamard_rotate(rows, block); });
  };
  for (const Index block : {Index{0}, Index{-1}, Index{3}, Index{32}, Index{48}, Index{64},
                            std::numeric_limits<Index>::min(), std::numeric_limits<Index>::max()})
    EXPECT_EQ(said(view, block),
              "gqa: block is " + std::to_string(block) + "; expected a power of two that divides rows.dim = 48");
  TensorView apart = view;
  apart.strides.dim = 2;
  EXPECT_EQ(said(apart, 16), "gqa: rows.strides.dim is 2; expected 1");
  TensorView none = view;
  none.data = nullptr;
  EXPECT_EQ(said(none, 16), "gqa: rows.data is null; expected a pointer to f32 elements");
  EXPECT_EQ(row, std::vector<float>(48, 1.0f));
}

// --- owning caches ---------------------------------------------------------------------------------------------------

constexpr KvDims kWide{2, 24, 32};
constexpr Index kTokens = 50;
constexpr Index kKeyBlock = 8, kValueBlock = 32;

template <class Config>
Config rotating(Config config) {
  config.k_rotation = kKeyBlock;
  config.v_rotation = kValueBlock;
  return config;
}
template <class Cache, class... Hook>
void append_in_chunks(Cache& cache, const KvSource& source, const Hook&... hook) {
  Index done = 0;
  for (const Index count : {1, 4, 0, 20, 25}) {
    cache.append(source.k.const_view().slice(done, count), source.v.const_view().slice(done, count), hook...);
    done += count;
  }
  ASSERT_EQ(done, kTokens);
}
TensorView rows_of(Numbers& numbers) {
  return TensorView(numbers.values.data(), numbers.tokens, numbers.heads, numbers.dim);
}
KvNumbers rotated(KvNumbers numbers) {
  hadamard_rotate(rows_of(numbers.k), kKeyBlock);
  hadamard_rotate(rows_of(numbers.v), kValueBlock);
  return numbers;
}

/// Calls `compare(make)` for every kind of cache, where make(f) makes one of f(config).
template <class Compare>
void for_each_cache(ElementType type, KvLayout layout, const Compare& compare) {
  const KvCacheConfig slots = config(kTokens, type, type, layout, kWide);
  compare([&](const auto& change) { return ContiguousKvCache(change(slots)); });
  for (const Index capacity : {7, 64}) {
    KvCacheConfig ring = slots;
    ring.capacity = capacity;
    compare([&](const auto& change) { return RingKvCache(change(ring)); });
  }
  const KvPoolConfig pages = pool_config(7, 20, type, type, layout, kWide);
  compare([&](const auto& change) { return PagedKvPool(change(pages)).sequence(); });
}
const auto as_it_is = [](const auto& config) { return config; };
const auto to_rotate = [](const auto& config) { return rotating(config); };

// What a cache that rotates stores is what another stores of rows that were rotated before, in f32.
TEST(RotatingCache, StoresRowsThatWereRotatedBefore) {
  const Rope rope({.dims = 24}, kTokens);
  for (const ElementType from : kTypes) {
    KvNumbers plain(kTokens, kWide, 510);
    for (float& x : plain.k.values) x = rounded_to(from, x);
    for (float& x : plain.v.values) x = rounded_to(from, x);
    KvNumbers turned = plain;
    rope(rows_of(turned.k), 0);
    const KvSource source(plain, from, from, TensorLayout::dim_major);
    const KvSource before(rotated(plain)), turned_before(rotated(turned));
    for (const KvLayout layout : kLayouts)
      for (const ElementType type : kTypes)
        for_each_cache(type, layout, [&](const auto& make) {
          auto a = make(to_rotate);
          auto b = make(as_it_is);
          append_in_chunks(a, source);
          append_in_chunks(b, before);
          EXPECT_TRUE(same_rows(a.view(), b.view()));
          EXPECT_EQ(a.view().k_rotation, kKeyBlock);
          EXPECT_EQ(a.view().v_rotation, kValueBlock);
          EXPECT_EQ(a.view().slice_heads(1, 1).v_rotation, kValueBlock);
          auto c = make(to_rotate);
          auto d = make(as_it_is);
          append_in_chunks(c, source, rope.keys());  // the hook comes first
          append_in_chunks(d, turned_before);
          EXPECT_TRUE(same_rows(c.view(), d.view()));
        });
  }
}

// Keys are turned back, changed, and rotated again.
TEST(RotatingCache, ChangesKeysAsTheyWere) {
  const Rope rope({.dims = 24}, 2 * kTokens);
  const KvNumbers plain(kTokens, kWide, 511);
  const KvSource source(plain), before(rotated(plain));
  for (const ElementType type : kTypes)
    for_each_cache(type, KvLayout::head_major, [&](const auto& make) {
      auto cache = make(to_rotate);
      auto other = make(as_it_is);
      append_in_chunks(cache, source);
      append_in_chunks(other, before);
      const Index first = cache.view().first_position();
      cache.change_keys(first + 2, kTokens, rope.shift(5));
      for (Index t = first; t < kTokens; ++t)
        for (Index head = 0; head < kWide.kv_heads; ++head) {
          std::vector<float> row;
          for (Index d = 0; d < kWide.head_dim; ++d) row.push_back(stored(other.view(), true, t, head, d));
          if (t >= first + 2) {
            const TensorView view(row.data(), 1, 1, kWide.head_dim);
            hadamard_rotate(view, kKeyBlock);
            rope.shift(5).change({row.data(), kWide.head_dim, head, t, 0});
            hadamard_rotate(view, kKeyBlock);
          }
          for (Index d = 0; d < kWide.head_dim; ++d)
            ASSERT_EQ(stored(cache.view(), true, t, head, d), rounded_to(type, row[static_cast<std::size_t>(d)]));
        }
    });
}

// Rows that move, and pages that are copied, are copied as they are stored.
TEST(RotatingCache, CopiesAreCopiesOfBytes) {
  const KvNumbers plain(kTokens, kWide, 512);
  const KvSource source(plain), before(rotated(plain));
  PagedKvPool pool(rotating(pool_config(7, 40, ElementType::f32, ElementType::f32, KvLayout::head_major, kWide)));
  PagedSequence sequence = pool.sequence();
  source.append_to(sequence, 0, 40);
  PagedSequence fork = sequence.fork(38);
  source.append_to(fork, 38, 12);
  EXPECT_TRUE(holds(fork.view(), before, kTokens));
  EXPECT_TRUE(holds(sequence.view(), before, 40));
  fork.truncate(20);
  source.append_to(fork, 20, 30);
  EXPECT_TRUE(holds(fork.view(), before, kTokens));
  const Index kept[] = {0, 3, 4};
  sequence.keep(10, kept);
  EXPECT_EQ(sequence.length(), 13);
  for (Index d = 0; d < kWide.head_dim; ++d) EXPECT_EQ(stored(sequence.view(), true, 11, 1, d), before.k.at(13, 1, d));
}

#if defined(__x86_64__)
// A program may flush denormals; what is stored does not depend on it.
TEST(RotatingCache, RotatesInTheUsualEnvironment) {
  KvNumbers small(kTokens, kWide, 513);
  for (float& x : small.k.values) x *= 0x1p-127f;
  const KvSource source(small);
  ContiguousKvCache expected(
      rotating(config(kTokens, ElementType::f32, ElementType::f32, KvLayout::head_major, kWide)));
  ContiguousKvCache flushed(rotating(config(kTokens, ElementType::f32, ElementType::f32, KvLayout::head_major, kWide)));
  append_in_chunks(expected, source);
  const unsigned usual = _mm_getcsr();
  _mm_setcsr(usual | 0x8040u);
  append_in_chunks(flushed, source);
  const unsigned after = _mm_getcsr();
  _mm_setcsr(usual);
  EXPECT_EQ(after, usual | 0x8040u);
  EXPECT_TRUE(same_rows(expected.view(), flushed.view()));
}
#endif

TEST(RotatingCache, RefusesByName) {
  const auto said = [](Index k, Index v, Index value_dim) {
    return message_of<ArgumentError>([&] {
      ContiguousKvCache(
          {.kv_heads = 1, .head_dim = 48, .value_dim = value_dim, .k_rotation = k, .v_rotation = v, .capacity = 4});
    });
  };
  for (const Index block : {-2, 3, 32, 96})
    EXPECT_EQ(said(block, 0, 0), "gqa: config.k_rotation is " + std::to_string(block) +
                                     "; expected 0, or a power of two that divides config.head_dim = 48");
  EXPECT_EQ(said(16, 32, 0),
            "gqa: config.v_rotation is 32; expected 0, or a power of two that divides config.head_dim = 48");
  EXPECT_EQ(said(16, 16, 24),
            "gqa: config.v_rotation is 16; expected 0, or a power of two that divides config.value_dim = 24");
}

// --- views -----------------------------------------------------------------------------------------------------------

class RotatedViews : public testing::Test {
 protected:
  std::string said(KvCacheView kv) {
    return message_of<ArgumentError>([&] {
      std::vector<float> q(static_cast<std::size_t>(kv.head_dim));
      std::vector<float> out(static_cast<std::size_t>(kv.value_dim));
      DynamicAttention()(ConstTensorView(q.data(), 1, 1, kv.head_dim), kv, TensorView(out.data(), 1, 1, kv.value_dim));
    });
  }
  std::vector<float> memory_ = random_row(4096, 520);
};

TEST_F(RotatedViews, AreRefusedByName) {
  KvCacheView kv = KvCacheView::contiguous(memory_.data(), memory_.data() + 2048, {8, 1, 48, 40});
  for (const Index block : {-1, 5, 32, 64}) {
    kv.k_rotation = block;
    EXPECT_EQ(said(kv), "gqa: kv.k_rotation is " + std::to_string(block) +
                            "; expected 0, or a power of two that divides kv.head_dim = 48");
  }
  kv.k_rotation = 16;
  kv.v_rotation = 16;
  EXPECT_EQ(said(kv), "gqa: kv.v_rotation is 16; expected 0, or a power of two that divides kv.value_dim = 40");
  kv.v_rotation = 3;
  EXPECT_THROW(static_cast<void>(reference_attention(ConstTensorView(memory_.data(), 1, 1, 48), kv)), ArgumentError);
}

// Values in the rows of keys are rotated with these, and begin where a block does.
TEST_F(RotatedViews, ValuesInKeysAreRotatedAsTheseAre) {
  KvCacheView kv = KvCacheView::contiguous(memory_.data(), memory_.data() + 16, {8, 1, 64, 32});
  kv.v_strides = kv.k_strides;
  kv.k_rotation = 16;
  EXPECT_EQ(said(kv), "gqa: kv.v_rotation is 0; expected kv.k_rotation = 16: values lie in the rows of keys");
  kv.v_rotation = 8;
  EXPECT_EQ(said(kv), "gqa: kv.v_rotation is 8; expected kv.k_rotation = 16: values lie in the rows of keys");
  kv.k_rotation = 0;
  EXPECT_EQ(said(kv), "gqa: kv.v_rotation is 8; expected kv.k_rotation = 0: values lie in the rows of keys");
  kv.k_rotation = kv.v_rotation = 32;
  EXPECT_EQ(said(kv), "gqa: kv.v is element 16 of the keys' rows; expected a multiple of kv.k_rotation = 32");
  kv.k_rotation = kv.v_rotation = 16;
  KvCacheView apart = kv;
  std::vector<float> values;
  for (Index t = 0; t < 8; ++t)
    values.insert(values.end(), memory_.begin() + t * 64 + 16, memory_.begin() + t * 64 + 48);
  apart.v = values.data();
  apart.v_strides = KvStrides::token_major(1, 32);
  const ConstTensorView q(memory_.data() + 1024, 3, 4, 64);
  EXPECT_TRUE(same_bits(attend(q, apart, {best_f32_path()}), attend(q, kv, {best_f32_path()})));
}

// An f32 cache that rotates gives what one gives that does not, within what both calls and the rounding of rows are off by.
TEST(RotatedCalls, AreTheUnrotatedOnes) {
  const Shape shape{4, 2, 128, 64, 3, 300};
  const Problem p = make_problem(shape, 530);
  const ConstTensorView k(p.kv.k.values.data(), shape.n_kv, 2, 128), v(p.kv.v.values.data(), shape.n_kv, 2, 64);
  const KvCacheConfig plain{.kv_heads = 2, .head_dim = 128, .value_dim = 64, .capacity = shape.n_kv};
  KvCacheConfig turned = plain;
  turned.k_rotation = 128;
  turned.v_rotation = 64;
  ContiguousKvCache a(plain), b(turned);
  a.append(k, v);
  b.append(k, v);
  const Tensor q(p.q, ElementType::f32);
  const How how{best_f32_path()};
  const Result expected = attend(q.const_view(), a.view(), how);
  const Result actual = attend(q.const_view(), b.view(), how);
  // Of rows: |δk| ≤ 9·u·√D·|k| (Cauchy and Schwarz, twice), so that a score is off by at most E = |q||δk|/√D, a weight by a factor of
  // e^±2E, and an output by (e^2E − 1) times the largest distance of two values, and by 8·u·√Dv·|v|.
  double longest_q = 0.0, longest_k = 0.0, longest_v = 0.0, largest_v = 0.0;
  const auto norm = [](const Numbers& rows, Index t, Index h) {
    double sum = 0.0;
    for (Index d = 0; d < rows.dim; ++d)
      sum += static_cast<double>(rows.at(t, h, d)) * static_cast<double>(rows.at(t, h, d));
    return std::sqrt(sum);
  };
  for (Index t = 0; t < shape.n_q; ++t)
    for (Index h = 0; h < 4; ++h) longest_q = std::max(longest_q, norm(p.q, t, h));
  for (Index t = 0; t < shape.n_kv; ++t)
    for (Index h = 0; h < 2; ++h) {
      longest_k = std::max(longest_k, norm(p.kv.k, t, h));
      longest_v = std::max(longest_v, norm(p.kv.v, t, h));
    }
  for (const float x : p.kv.v.values) largest_v = std::max(largest_v, std::abs(static_cast<double>(x)));
  const double score = longest_q * 9.0 * 0x1p-24 * longest_k;
  const double of_rows = std::expm1(2.0 * score) * 2.0 * largest_v + 8.0 * 0x1p-24 * std::sqrt(64.0) * longest_v;
  const double of_calls = compare_with_reference(q.const_view(), a.view(), how, Causal{}, expected).largest_bound +
                          compare_with_reference(q.const_view(), b.view(), how, Causal{}, actual).largest_bound;
  EXPECT_LT(of_rows + of_calls, 0.01) << "the bound is to say something";
  bool differ = false;
  for (std::size_t i = 0; i < expected.out.size(); ++i) {
    differ = differ || expected.out[i] != actual.out[i];
    ASSERT_LE(std::abs(static_cast<double>(expected.out[i]) - static_cast<double>(actual.out[i])), of_rows + of_calls);
  }
  EXPECT_TRUE(differ) << "rows are not rotated at all";
}

// Keys of which a few dims are large everywhere, as models' are; what 4 bits make of them, with rotations and without.
TEST(RotatedCodecs, FourBitsKeepMoreOfRowsWithOutliers) {
  constexpr Index kDim = 128, kLength = 200, kQueries = 4;
  Random random(540);
  std::vector<float> k(kDim * kLength), v(kDim * kLength), q(kDim * kQueries);
  for (float& x : k) x = random.normal();
  for (float& x : v) x = random.normal();
  for (float& x : q) x = random.normal();
  for (Index t = 0; t < kLength; ++t) {
    for (const Index d : {5, 37, 70, 99}) k[static_cast<std::size_t>(t * kDim + d)] *= 20.0f;
    for (const Index d : {11, 64}) v[static_cast<std::size_t>(t * kDim + d)] *= 20.0f;
  }
  const ConstTensorView queries(q.data(), kQueries, 1, kDim);
  const ReferenceResult exact =
      reference_attention(queries, KvCacheView::contiguous(k.data(), v.data(), {kLength, 1, kDim}));
  for (const TestedCodec& codec : tested_codecs()) {
    if (codec.type().row_bytes(kDim) * 8 > 5 * kDim) continue;
    const auto error = [&](Index block) {
      ContiguousKvCache cache({.kv_heads = 1,
                               .head_dim = kDim,
                               .k_type = codec.format,
                               .k_rotation = block,
                               .v_rotation = block,
                               .capacity = kLength});
      cache.append(k, v);
      // The reference takes plain elements: the decoded rows, which the view says are rotated.
      std::vector<float> keys(k.size()), values(v.size());
      const KvCacheView stored = cache.view();
      for (const bool of_keys : {true, false})
        for (Index t = 0; t < kLength; ++t) {
          const KvStrides& strides = of_keys ? stored.k_strides : stored.v_strides;
          const KvScales& scales = of_keys ? stored.k_scales : stored.v_scales;
          const auto* const row = static_cast<const std::byte*>(of_keys ? stored.k : stored.v);
          const auto* const scale = static_cast<const std::byte*>(scales.data);
          codec.rows().decode(
              row + codec.type().stride_bytes(t * strides.token),
              scale == nullptr ? nullptr : scale + t * scales.strides.token * codec.type().scale_bytes(), kDim,
              (of_keys ? keys : values).data() + t * kDim);
        }
      KvCacheView decoded = KvCacheView::contiguous(keys.data(), values.data(), {kLength, 1, kDim});
      decoded.k_rotation = stored.k_rotation;
      decoded.v_rotation = stored.v_rotation;
      return (reference_attention(queries, decoded).out - exact.out).norm() / exact.out.norm();
    };
    const double plain = error(0), turned = error(kDim);
    std::printf("%-8s relative error of outputs %.4f, rotated %.4f\n", codec.name, plain, turned);
    EXPECT_LT(turned, 0.9 * plain) << codec.name;
  }
}

}  // namespace
}  // namespace gqa::test
