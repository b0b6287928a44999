// SPDX-License-Identifier: Apache-2.0
// Outputs that lie where something else does are refused where that is certain, and never where tensors only lie between each other's rows.
#include <gtest/gtest.h>

#include <cstdint>

#include "support/messages.hpp"
#include "support/problem.hpp"

namespace gqa::test {
namespace {

constexpr Index kTokens = 5;
constexpr Index kHeads = 4;
constexpr Index kKvHeads = 2;
constexpr Index kDim = 8;

std::string in_memory_of(const char* output, const char* other) {
  return std::string("gqa: ") + output + " is in the memory of " + other +
         "; expected memory of its own, which no input and no other output lies in";
}

/// Floats that everything lies in.
struct Arena {
  std::vector<float> floats = std::vector<float>(20'000, 0.25f);
  std::vector<Index> positions = std::vector<Index>(kTokens, kTokens - 1);
  DynamicAttention attention;

  float* at(Index first) { return floats.data() + first; }
  Sequence sequence(Index q, Index k, Index v, Index out) {
    const KvShape shape{kTokens, kKvHeads, kDim};
    return {ConstTensorView(at(q), kTokens, kHeads, kDim), KvCacheView::contiguous(at(k), at(v), shape),
            TensorView(at(out), kTokens, kHeads, kDim)};
  }
  std::string says(const Sequence& sequence, const Options& options = {}) {
    return message_of([&] { attention(sequence, options); });
  }
  std::string says(std::span<const Sequence> batch) {
    return message_of([&] { attention(batch); });
  }
};

constexpr Index kRows = kTokens * kHeads * kDim;      // 160 floats of queries, and of outputs
constexpr Index kCached = kTokens * kKvHeads * kDim;  // 80 of keys, and of values

TEST(Overlap, OfAnOutputAndAnInputIsNamed) {
  Arena a;
  EXPECT_EQ(a.says(a.sequence(0, 1000, 2000, 3000)), "nothing was thrown");
  EXPECT_EQ(a.says(a.sequence(0, 160, 240, 320)), "nothing was thrown") << "one behind the other";
  for (const Index at : {0, 1, 159, -1, -159})
    EXPECT_EQ(a.says(a.sequence(500, 1000, 2000, 500 + at)), in_memory_of("out", "q")) << at;
  for (const Index at : {160, -160})
    EXPECT_EQ(a.says(a.sequence(500, 1000, 2000, 500 + at)), "nothing was thrown") << at;
  for (const Index at : {0, 79, -159}) {
    EXPECT_EQ(a.says(a.sequence(500, 1000, 2000, 1000 + at)), in_memory_of("out", "kv.k")) << at;
    EXPECT_EQ(a.says(a.sequence(500, 1000, 2000, 2000 + at)), in_memory_of("out", "kv.v")) << at;
  }
  EXPECT_EQ(a.says(a.sequence(500, 1000, 2000, 1000 + kCached)), "nothing was thrown");
  static_assert(kRows == 160 && kCached == 80);
}

TEST(Overlap, OfKeysAndValuesIsFine) {
  Arena a;
  EXPECT_EQ(a.says(a.sequence(0, 1000, 1000, 3000)), "nothing was thrown");
}

TEST(Overlap, OfLseIsNamed) {
  Arena a;
  const auto with_lse = [&](Index first) {
    Sequence sequence = a.sequence(0, 1000, 2000, 3000);
    sequence.lse = {a.at(first), kTokens * kHeads};
    return a.says(sequence);
  };
  EXPECT_EQ(with_lse(5000), "nothing was thrown");
  EXPECT_EQ(with_lse(3160), "nothing was thrown");
  EXPECT_EQ(with_lse(2980), "nothing was thrown");
  EXPECT_EQ(with_lse(3000), in_memory_of("lse", "out"));
  EXPECT_EQ(with_lse(3159), in_memory_of("lse", "out"));
  EXPECT_EQ(with_lse(2981), in_memory_of("lse", "out"));
  EXPECT_EQ(with_lse(10), in_memory_of("lse", "q"));
  EXPECT_EQ(with_lse(1079), in_memory_of("lse", "kv.k"));
  EXPECT_EQ(with_lse(1999), in_memory_of("lse", "kv.v"));
}

TEST(Overlap, OfAnOutputAndWhatTheCallReadsMeanwhileIsNamed) {
  Arena a;
  Sequence sequence = a.sequence(0, 1000, 2000, 3000);
  sequence.positions = {reinterpret_cast<const Index*>(a.at(3100)), kTokens};
  EXPECT_EQ(a.says(sequence), in_memory_of("out", "positions"));
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(a.floats));
  const Sequence plain = a.sequence(0, 1000, 2000, 3000);
  Options options;
  options.scratch = bytes.subspan(3100 * 4, 64);
  EXPECT_EQ(a.says(plain, options), in_memory_of("out", "options.scratch"));
  options.scratch = bytes.subspan(1000 * 4 + 4, 64);
  EXPECT_EQ(a.says(plain, options),
            "gqa: options.scratch is in the memory of kv.k; expected memory that the call uses for nothing else");
}

// A packed (token, q | k | v | out): each tensor lies between the others' rows.
TEST(Overlap, BetweenRowsIsNone) {
  Arena a;
  constexpr Index row = 2 * kHeads * kDim + 2 * kKvHeads * kDim;
  const auto packed = [&](Index q, Index k, Index v, Index out) {
    Sequence s = a.sequence(q, k, v, out);
    s.q.strides = s.out.strides = {row, kDim, 1};
    s.kv.k_strides = s.kv.v_strides = {row, kDim};
    return s;
  };
  EXPECT_EQ(a.says(packed(0, 32, 48, 64)), "nothing was thrown");
  EXPECT_EQ(a.says(packed(64, 48, 32, 0)), "nothing was thrown");
  EXPECT_EQ(a.says(packed(0, 32, 48, 0)), in_memory_of("out", "q")) << "in place";
  Sequence lse = packed(0, 32, 48, 64);
  std::vector<float> floats(kTokens * kHeads);
  lse.lse = floats;
  EXPECT_EQ(a.says(lse), "nothing was thrown");
  lse.lse = {a.at(32), kTokens * kHeads};  // over keys and values of the first token
  EXPECT_EQ(a.says(lse), in_memory_of("lse", "kv.k"));
  lse.lse = {a.at(96 + 90), kTokens * kHeads};  // the end of the second token's outputs, and what follows
  EXPECT_EQ(a.says(lse), in_memory_of("lse", "q"));
  // One token: rows that fill their memory, among the rows of the cache.
  Sequence decode = packed(4 * row, 32, 48, 4 * row + 64);
  decode.q.tokens = decode.out.tokens = 1;
  EXPECT_EQ(a.says(decode), "nothing was thrown");
  decode.out = TensorView(a.at(4 * row + 40), 1, kHeads, kDim);
  EXPECT_EQ(a.says(decode), in_memory_of("out", "kv.k"));
}

TEST(Overlap, OfTwoOutputsOfABatchIsNamed) {
  Arena a;
  std::vector<Sequence> batch;
  for (Index i = 0; i < 40; ++i) batch.push_back(a.sequence(0, 1000, 2000, 3000 + i * kRows));
  EXPECT_EQ(a.says(batch), "nothing was thrown");
  std::vector<Sequence> backwards(batch.rbegin(), batch.rend());
  EXPECT_EQ(a.says(backwards), "nothing was thrown");
  std::vector<Sequence> shuffled = batch;
  Random(3).shuffle(shuffled);
  EXPECT_EQ(a.says(shuffled), "nothing was thrown");
  for (const Index other : {4, 0, 8}) {
    std::vector<Sequence> twice = batch;
    twice[5].out = batch[static_cast<std::size_t>(other)].out;
    const Index first = std::min<Index>(other, 5), second = std::max<Index>(other, 5);
    EXPECT_EQ(a.says(twice), in_memory_of(("batch[" + std::to_string(second) + "].out").c_str(),
                                          ("batch[" + std::to_string(first) + "].out").c_str()));
  }
  std::vector<Sequence> shifted = batch;
  shifted[7].out.data = a.at(3000 + 7 * kRows - 1);
  EXPECT_EQ(a.says(shifted), in_memory_of("batch[7].out", "batch[6].out"));
  std::vector<float> lse(2 * kTokens * kHeads);
  batch[1].lse = std::span(lse).first(kTokens * kHeads);
  batch[3].lse = std::span(lse).last(kTokens * kHeads);
  EXPECT_EQ(a.says(batch), "nothing was thrown");
  batch[3].lse = batch[1].lse;
  EXPECT_EQ(a.says(batch), in_memory_of("batch[3].lse", "batch[1].lse"));
}

// Sequences side by side in (token, sequence, head, dim).
TEST(Overlap, OfInterleavedOutputsOfABatchIsNone) {
  Arena a;
  std::vector<Sequence> batch;
  for (Index i = 0; i < 3; ++i) {
    batch.push_back(a.sequence(0, 1000, 2000, 3000 + i * kHeads * kDim));
    batch.back().out.strides = {3 * kHeads * kDim, kDim, 1};
  }
  EXPECT_EQ(a.says(batch), "nothing was thrown");
  batch[2].out = batch[0].out;
  EXPECT_EQ(a.says(batch), in_memory_of("batch[2].out", "batch[0].out"));
}

// Whether a tensor has an element in a range: against counting.
TEST(Overlap, ElementsInARangeAreCounted) {
  Random random(17);
  std::vector<float> floats(4000);
  for (int draw = 0; draw < 3000; ++draw) {
    const auto stride = [&] { return random.below(25) - 12; };
    const ConstTensorView t(floats.data() + 2000, 1 + random.below(6), 1 + random.below(4), 1 + random.below(5),
                            TensorStrides{stride() * 3, stride(), random.below(2) == 0 ? 1 : stride()});
    const Index first = 1800 + random.below(400);
    const auto begin =
        reinterpret_cast<std::uintptr_t>(floats.data() + first) + static_cast<std::uintptr_t>(random.below(4));
    const detail::ByteRange range{begin, begin + 1 + static_cast<std::uintptr_t>(random.below(40))};
    bool found = false;
    for (Index token = 0; token < t.tokens; ++token)
      for (Index head = 0; head < t.heads; ++head)
        for (Index d = 0; d < t.dim; ++d) {
          const auto at = reinterpret_cast<std::uintptr_t>(floats.data() + 2000 + token * t.strides.token +
                                                           head * t.strides.head + d * t.strides.dim);
          found = found || (at < range.end && range.begin < at + 4);
        }
    ASSERT_EQ(detail::has_element_in(t, range), found) << "draw " << draw;
  }
}

}  // namespace
}  // namespace gqa::test
