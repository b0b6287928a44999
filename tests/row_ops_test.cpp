// SPDX-License-Identifier: Apache-2.0
// Rows converted and turned by every instruction set: the bits of the codecs' own loops, and of pairs turned one by one.
#include "gqa/detail/row_ops.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

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
