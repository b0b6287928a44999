// SPDX-License-Identifier: Apache-2.0
// Rows converted, quantised and turned by every instruction set: the bits of the codecs' own loops, and of pairs turned one by one.
#include "gqa/detail/row_ops.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "support/codecs.hpp"
#include "support/paths.hpp"
#include "support/random.hpp"

namespace gqa::test {
namespace {

using detail::RowOps;

class RowOpsOf : public testing::TestWithParam<Path> {
 protected:
  const RowOps& ops() const { return detail::row_ops_of(GetParam()); }
};

// Floats of every kind: each exponent, mantissas around what a shorter type rounds at, infinities, NaNs of many bits.
std::vector<float> all_kinds() {
  std::vector<float> all;
  for (std::uint32_t upper = 0; upper < 0x10000u; upper += 3)
    for (const std::uint32_t lower :
         {0u, 1u, 0x0fffu, 0x1000u, 0x1001u, 0x2fffu, 0x3000u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
      all.push_back(__builtin_bit_cast(float, upper << 16 | lower));
  return all;
}
std::vector<std::uint16_t> all_halves() {
  std::vector<std::uint16_t> all(0x10000);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  return all;
}

// `from` as one row, and as many short ones with elements apart: what the codec makes of them, and nothing behind.
template <class Codec, class From, class T>
void expect_encoded(detail::RowEncoder encode, const std::vector<T>& from) {
  if (encode == nullptr) return;  // the codec's own is taken
  const auto* const bytes = reinterpret_cast<const std::byte*>(from.data());
  const auto compare = [&](Index first, Index step, Index dim) {
    constexpr std::byte untouched{0xa5};
    const auto size = static_cast<std::size_t>(dim * Codec::bytes);
    std::vector<std::byte> actual(size + 64, untouched), expected(size + 64, untouched);
    encode(bytes + first * static_cast<Index>(sizeof(T)), step, dim, actual.data(), nullptr);
    Codec::template encode<From>(bytes + first * static_cast<Index>(sizeof(T)), step, dim, expected.data(), nullptr);
    ASSERT_EQ(std::memcmp(actual.data(), expected.data(), actual.size()), 0)
        << "elements " << first << ", " << first + step << ", …, " << dim << " of them";
  };
  const auto count = static_cast<Index>(from.size());
  compare(0, 1, count);
  for (Index dim = 0; dim < 70; ++dim)
    for (const Index step : {1, 2, 5}) compare(count / 2 + dim, step, dim);
  compare(70, -1, 70);
}

TEST_P(RowOpsOf, ConversionsAreTheCodecs) {
  expect_encoded<detail::Bf16, float>(ops().f32_to_bf16, all_kinds());
  expect_encoded<detail::F16, float>(ops().f32_to_f16, all_kinds());
  expect_encoded<detail::F32, bf16>(ops().bf16_to_f32, all_halves());
  expect_encoded<detail::F32, f16>(ops().f16_to_f32, all_halves());
}

// What is hard to quantise, 256 elements of it: a kind, drawn with `random`.
constexpr int kKinds = 15;
std::vector<float> hard_row(int kind, Random& random) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> row(256);
  const auto fill = [&](const auto& draw) {
    for (float& x : row) x = draw();
  };
  const auto one_of = [&](std::initializer_list<float> values) {
    return values.begin()[random.below(static_cast<Index>(values.size()))];
  };
  const auto any = [&] { return __builtin_bit_cast(float, static_cast<std::uint32_t>(random.bits())); };
  const auto scaled = [&](float scale) { fill([&] { return random.normal() * scale; }); };
  // Halves and quarters of a scale that a block or a row may get: ties of every rounding, and what is beside them.
  const auto ties = [&](float most, float scale) {
    fill([&] {
      const float x = static_cast<float>(random.below(static_cast<Index>(8 * most)) - static_cast<Index>(4 * most));
      const float beside = random.below(4) == 0 ? one_of({1.0f + 0x1p-23f, 1.0f - 0x1p-24f}) : 1.0f;
      return x / 4.0f * scale * beside;
    });
    for (std::size_t i = 0; i < row.size(); i += 32) row[i + random.bits() % 32] = one_of({most, -most}) * scale;
  };
  switch (kind) {
    case 0: scaled(1.0f); break;
    case 1: ties(127.0f, 1.0f); break;
    case 2: ties(7.0f, 0x1p-9f); break;
    case 3: ties(8.0f, 3.0f); break;
    case 4: ties(31.0f, 0x1p-130f); break;
    case 5: ties(448.0f, 1.0f); break;
    case 6: ties(6.0f, 0x1p+100f); break;
    case 7: fill([&] { return one_of({0.0f, -0.0f}); }); break;
    case 8: fill([&] { return one_of({-0.0f, 0.0f, 1.0f, 3.0f}); }); break;      // none below zero
    case 9: scaled(one_of({0x1p-147f, 0x1p-127f, 0x1p-111f, 0x1p-60f})); break;  // 1/d is no number; d is next to none
    case 10: scaled(1e38f); break;                                               // and beyond an f16's largest scale
    case 11: fill([&] { return one_of({2.0f, -2.0f, 1.0f}); }); break;           // which of the largest is first
    case 12:                                                                     // one NaN or infinity somewhere
      scaled(1.0f);
      row[random.bits() % row.size()] = one_of({infinity, -infinity, std::numeric_limits<float>::quiet_NaN()});
      break;
    case 13: fill(any); break;  // of every exponent, NaNs of many bits
    default:                    // a wide range, all finite
      fill([&] {
        const float x = any();
        return detail::is_finite(x) ? x : 1.0f;
      });
  }
  return row;
}

template <Element From>
void expect_quantised(const TestedCodec& codec, detail::RowSet set, const std::vector<From>& from, Index step,
                      Index dim) {
  constexpr std::byte untouched{0xa5};
  const auto* const first = reinterpret_cast<const std::byte*>(from.data() + (step < 0 ? from.size() - 1 : 0));
  const auto row_bytes = static_cast<std::size_t>(codec.type().row_bytes(dim));
  const auto rows = [&](detail::RowEncoder encode) {
    std::vector<std::byte> stored(4 + row_bytes + 64, untouched);  // scale, row, and what is behind
    encode(first, step, dim, stored.data() + 4, stored.data());
    return stored;
  };
  constexpr ElementType type = ElementTraits<From>::type;
  ASSERT_EQ(rows(codec.rows().encoder(set, type)), rows(codec.encode[static_cast<int>(type)]))
      << codec.name << " of " << element_name(type) << ", " << dim << " elements, " << step << " apart";
}
template <Element From>
std::vector<From> rounded_to(const std::vector<float>& from) {
  std::vector<From> to;
  for (const float x : from) to.push_back(static_cast<From>(x));
  return to;
}

TEST_P(RowOpsOf, QuantisedRowsAreTheCodecs) {
  const detail::RowSet set = ops().set;
  Random random(342);
  for (int kind = 0; kind < kKinds; ++kind)
    for (int repeat = 0; repeat < 16; ++repeat) {
      SCOPED_TRACE("kind " + std::to_string(kind) + ", repeat " + std::to_string(repeat));
      std::vector<float> row = hard_row(kind, random);
      for (int i = 0; i < 4; ++i) {  // wider than what is made floats of in one piece
        const std::vector<float> more = hard_row(kind, random);
        row.insert(row.end(), more.begin(), more.end());
      }
      const Index width = random.below(static_cast<Index>(row.size())) + 1;
      for (const TestedCodec& codec : tested_codecs()) {
        const auto check = [&](Index step, Index dim) {
          if (codec.type().whole_blocks()) dim &= ~Index{31};
          expect_quantised(codec, set, row, step, dim);
          expect_quantised(codec, set, rounded_to<bf16>(row), step, dim);
          expect_quantised(codec, set, rounded_to<f16>(row), step, dim);
        };
        check(1, 128);
        check(1, width);
        check(3, width / 3);
        check(-2, width / 2);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
}

// Rounded, whatever flags this file is compiled with.
float product(float a, float b) {
  const volatile float rounded = a * b;
  return rounded;
}

TEST_P(RowOpsOf, TurnsAreThoseOfPairsOneByOne) {
  Random random(341);
  for (const bool split : {true, false})
    for (const Index dims : {2, 4, 6, 30, 32, 64, 66, 70, 128, 200})
      for (const Index first : {Index{0}, Index{1}, dims / 4})
        for (const Index last : {dims / 2, dims / 2 - 1}) {
          if (first > last) continue;
          std::vector<float> row(static_cast<std::size_t>(dims) + 16), turns(static_cast<std::size_t>(dims));
          for (float& x : row) x = random.normal();
          for (float& x : turns) x = random.normal();
          row[0] = 0x1p-140f;  // products are denormals
          row[1] = dims > 100 ? 3e38f : -0.0f;
          std::vector<float> expected = row;
          ops().turn(row.data(), turns.data(), dims, split, first, last);
          for (Index i = first; i < last; ++i) {
            float& a = expected[static_cast<std::size_t>(split ? i : 2 * i)];
            float& b = expected[static_cast<std::size_t>(split ? i + dims / 2 : 2 * i + 1)];
            const float cosine = turns[static_cast<std::size_t>(i)];
            const float sine = turns[static_cast<std::size_t>(i + dims / 2)];
            const float turned[] = {product(a, cosine) - product(b, sine), product(b, cosine) + product(a, sine)};
            a = turned[0];
            b = turned[1];
          }
          ASSERT_EQ(std::memcmp(row.data(), expected.data(), row.size() * 4), 0)
              << (split ? "half-split" : "interleaved") << ", dims " << dims << ", pairs " << first << " to " << last;
        }
}

// Every product is rounded, and so are sums: nothing is fused.
TEST_P(RowOpsOf, NothingIsFused) {
  constexpr Index dims = 64;
  for (const bool split : {true, false}) {
    std::vector<float> row(dims, 1.0f + 0x1p-12f), turns(dims, 1.0f + 0x1p-12f);
    ops().turn(row.data(), turns.data(), dims, split, 0, dims / 2);
    for (Index i = 0; i < dims / 2; ++i) {
      EXPECT_EQ(row[static_cast<std::size_t>(split ? i : 2 * i)], 0.0f);
      EXPECT_EQ(row[static_cast<std::size_t>(split ? i + 32 : 2 * i + 1)], 2.0f + 0x1p-10f);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryPath, RowOpsOf, testing::ValuesIn(available_paths()),
                         [](const auto& each) { return std::string(path_name(each.param)); });

}  // namespace
}  // namespace gqa::test
