// SPDX-License-Identifier: Apache-2.0
// Owning caches of the library's codecs: what is appended is what the codec encodes, in whatever pieces; it is copied as bytes; keys that are
// changed where they are, are decoded, changed and encoded again. And what is refused before any work.
#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "gqa/rotation.hpp"
#include "support/messages.hpp"
#include "support/quantised.hpp"

namespace gqa::test {
namespace {

constexpr Case kCase{1, 2, 64, 96, 1, 60};

class QuantisedStorage : public testing::TestWithParam<std::size_t> {
 protected:
  const TestedCodec& codec() const { return tested_codecs()[GetParam()]; }

  ContiguousKvCache contiguous() const {
    return ContiguousKvCache(config_of(kCase, codec().format, codec().format, KvLayout::head_major, 80));
  }
  RingKvCache ring() const {
    return RingKvCache(config_of(kCase, codec().format, codec().format, KvLayout::token_major, 37));
  }
  PagedKvPool pool() const {
    return PagedKvPool(pool_of(kCase, codec().format, codec().format, KvLayout::head_major, 7));
  }
};

/// Row and scale of a position and head, as bytes.
StoredRow stored(const KvCacheView& kv, bool keys, Index position, Index head) {
  const KvType type = keys ? kv.k_type : kv.v_type;
  const At at = row_at(kv, keys, position, head);
  StoredRow row{std::vector<std::byte>(at.row, at.row + type.row_bytes(keys ? kv.head_dim : kv.value_dim))};
  if (at.scale != nullptr) row.scale.assign(at.scale, at.scale + type.scale_bytes());
  return row;
}
std::vector<float> row_of(const Rows& rows, bool keys, Index token, Index head) {
  const Index dim = keys ? kCase.head_dim : kCase.value_dim;
  const auto begin = (keys ? rows.k : rows.v).begin() + (token * kCase.kv_heads + head) * dim;
  return {begin, begin + dim};
}
/// Positions from the oldest on hold these rows: position p that of token token_of(p).
template <class TokenOf>
testing::AssertionResult holds(const KvCacheView& kv, const TestedCodec& codec, const Rows& rows, Index length,
                               const TokenOf& token_of) {
  if (kv.length != length) return testing::AssertionFailure() << "length is " << kv.length;
  for (const bool keys : {true, false})
    for (Index t = kv.first_position(); t < length; ++t)
      for (Index head = 0; head < kv.kv_heads; ++head)
        if (!(stored(kv, keys, t, head) == encoded(codec, row_of(rows, keys, token_of(t), head))))
          return testing::AssertionFailure() << (keys ? "key" : "value") << " of position " << t << ", head " << head;
  return testing::AssertionSuccess();
}
testing::AssertionResult holds(const KvCacheView& kv, const TestedCodec& codec, const Rows& rows, Index length) {
  return holds(kv, codec, rows, length, [](Index t) { return t; });
}
/// Appends tokens [first, last) of the rows.
template <class Cache>
void append(Cache& cache, const Rows& rows, Index first, Index last) {
  const ConstTensorView k(rows.k.data(), kCase.length, kCase.kv_heads, kCase.head_dim);
  const ConstTensorView v(rows.v.data(), kCase.length, kCase.kv_heads, kCase.value_dim);
  cache.append(k.slice(first, last - first), v.slice(first, last - first));
}

TEST_P(QuantisedStorage, AChunkIsItsTokensOneByOne) {
  Random random(31);
  const Rows rows(kCase, random);
  const auto check = [&](auto&& at_once, auto&& one_by_one) {
    append(at_once, rows, 0, 60);
    for (Index t = 0; t < 60; ++t) append(one_by_one, rows, t, t + 1);
    EXPECT_TRUE(holds(at_once.view(), codec(), rows, 60));
    EXPECT_TRUE(holds(one_by_one.view(), codec(), rows, 60));
  };
  check(contiguous(), contiguous());
  check(ring(), ring());
  PagedKvPool first = pool(), second = pool();
  check(first.sequence(), second.sequence());
}

TEST_P(QuantisedStorage, CopiesAreCopiesOfBytes) {
  Random random(32);
  const Rows rows(kCase, random);
  PagedKvPool pages = pool();
  PagedSequence sequence = pages.sequence();
  append(sequence, rows, 0, 25);
  PagedSequence fork = sequence.fork();
  append(fork, rows, 40, 50);
  append(sequence, rows, 25, 30);
  EXPECT_TRUE(holds(sequence.view(), codec(), rows, 30));
  EXPECT_TRUE(holds(fork.view(), codec(), rows, 35, [](Index t) { return t < 25 ? t : t + 15; }));
  ASSERT_NE(sequence.pages()[3], fork.pages()[3]) << "copied when it was written to";
  fork.truncate(23);
  append(fork, rows, 50, 52);
  EXPECT_TRUE(holds(fork.view(), codec(), rows, 25, [](Index t) { return t < 23 ? t : t + 27; }));
  EXPECT_TRUE(holds(sequence.view(), codec(), rows, 30));
}

TEST_P(QuantisedStorage, TokensThatAreKeptMoveAsBytes) {
  Random random(33);
  const Rows rows(kCase, random);
  const auto check = [&](auto&& cache) {
    append(cache, rows, 0, 60);
    const Index kept[] = {0, 2, 3, 9};
    cache.keep(40, kept);
    EXPECT_TRUE(holds(cache.view(), codec(), rows, 44, [&](Index t) { return t < 40 ? t : 40 + kept[t - 40]; }));
    cache.erase(30, 35);
    EXPECT_TRUE(holds(cache.view(), codec(), rows, 39, [&](Index t) {
      const Index before = t < 30 ? t : t + 5;
      return before < 40 ? before : 40 + kept[before - 40];
    }));
  };
  check(contiguous());
  check(ring());
  PagedKvPool pages = pool();
  check(pages.sequence());
}

/// Keys times a number that is 1 for position 0, and so on.
struct Growing {
  void change(const KeyRow& row) const noexcept {
    for (Index d = 0; d < row.dim; ++d) row.elements[d] *= 1.0f + static_cast<float>(row.position);
  }
};

TEST_P(QuantisedStorage, HooksChangeKeysBeforeTheyAreEncoded) {
  Random random(34);
  const Rows rows(kCase, random);
  const auto grown = [&](std::vector<float> row, Index position) {
    for (float& x : row) x *= 1.0f + static_cast<float>(position);
    return row;
  };
  const auto check = [&](auto&& cache) {
    cache.append(rows.k, rows.v, Growing{});
    const KvCacheView kv = cache.view();
    for (Index t = kv.first_position(); t < 60; ++t)
      for (Index head = 0; head < kv.kv_heads; ++head) {
        ASSERT_EQ(stored(kv, true, t, head), encoded(codec(), grown(row_of(rows, true, t, head), t))) << t;
        ASSERT_EQ(stored(kv, false, t, head), encoded(codec(), row_of(rows, false, t, head))) << t;
      }
    std::vector<StoredRow> before;
    for (Index t = 50; t < 60; ++t) before.push_back(stored(kv, true, t, 1));
    cache.change_keys(50, 60, Growing{});
    for (Index t = 50; t < 60; ++t) {
      const std::vector<float> row = decoded(codec(), before[static_cast<std::size_t>(t - 50)], kCase.head_dim);
      ASSERT_EQ(stored(cache.view(), true, t, 1), encoded(codec(), grown(row, t))) << t;
    }
  };
  check(contiguous());
  check(ring());
  PagedKvPool pages = pool();
  check(pages.sequence());
}

TEST_P(QuantisedStorage, RotatesRowsBeforeTheyAreEncoded) {
  Random random(36);
  const Rows rows(kCase, random);
  constexpr Index kKeyBlock = 64, kValueBlock = 32;
  const auto turned = [](std::vector<float> row, Index block) {
    hadamard_rotate(TensorView(row.data(), 1, 1, static_cast<Index>(row.size())), block);
    return row;
  };
  const auto grown = [](std::vector<float> row, Index position) {
    for (Index d = 0; d < kCase.head_dim; ++d) Growing{}.change({row.data() + d, 1, 0, position, 0});
    return row;
  };
  Rows rotated = rows;
  hadamard_rotate(TensorView(rotated.k.data(), 60, kCase.kv_heads, kCase.head_dim), kKeyBlock);
  hadamard_rotate(TensorView(rotated.v.data(), 60, kCase.kv_heads, kCase.value_dim), kValueBlock);
  const auto check = [&](auto&& cache) {
    append(cache, rows, 0, 17);
    append(cache, rows, 17, 60);
    EXPECT_TRUE(holds(cache.view(), codec(), rotated, 60));
    const StoredRow before = stored(cache.view(), true, 50, 1);
    cache.change_keys(50, 51, Growing{});
    const std::vector<float> row = turned(decoded(codec(), before, kCase.head_dim), kKeyBlock);
    EXPECT_EQ(stored(cache.view(), true, 50, 1), encoded(codec(), turned(grown(row, 50), kKeyBlock)));
  };
  const auto rotating = [](auto config) {
    config.k_rotation = kKeyBlock;
    config.v_rotation = kValueBlock;
    return config;
  };
  const KvEncoding& format = codec().format;
  check(ContiguousKvCache(rotating(config_of(kCase, format, format, KvLayout::token_major, 60))));
  check(RingKvCache(rotating(config_of(kCase, format, format, KvLayout::head_major, 37))));
  PagedKvPool pages(rotating(pool_of(kCase, format, format, KvLayout::head_major, 7)));
  check(pages.sequence());
}

#if defined(__x86_64__)
TEST_P(QuantisedStorage, WhatIsStoredDependsOnNoThreadsFloatingPointState) {
  Random random(35);
  Rows rows(kCase, random);
  for (std::size_t i = 0; i < rows.k.size(); i += 3) rows.k[i] *= 1e-38f;
  ContiguousKvCache expected = contiguous(), cache = contiguous();
  append(expected, rows, 0, 60);
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040u | 0x6000u);  // denormals flushed, rounding towards zero
  append(cache, rows, 0, 60);
  _mm_setcsr(before);
  for (Index t = 0; t < 60; ++t) ASSERT_EQ(stored(cache.view(), true, t, 0), stored(expected.view(), true, t, 0)) << t;
}
#endif

INSTANTIATE_TEST_SUITE_P(Codecs, QuantisedStorage, testing::Range(std::size_t{0}, tested_codecs().size()),
                         [](const auto& test) { return std::string(tested_codecs()[test.param].name); });

// --- views of rows that other programs have encoded ------------------------------------------------------------------

/// What a functor for all codecs says of a view of one head's rows. What is refused leaves outputs alone.
std::string refusal(const KvCacheView& kv) {
  std::vector<float> q(static_cast<std::size_t>(kv.head_dim)), out(static_cast<std::size_t>(kv.value_dim), 7.0f);
  const GroupedQueryAttention<dynamic, dynamic, dynamic, dynamic, CodedCache> attention;
  const std::string error = message_of(
      [&] { attention(ConstTensorView(q.data(), 1, 1, kv.head_dim), kv, TensorView(out.data(), 1, 1, kv.value_dim)); });
  EXPECT_EQ(out == std::vector<float>(out.size(), 7.0f), error != kNothingThrown) << error;
  return error;
}
TEST(QuantisedViews, NeedNothingButAPointerAndStrides) {
  alignas(4) std::byte rows[4096]{};
  const auto view = [&](KvType type, Index dim) {
    return KvCacheView::contiguous(rows, type, rows, type, {3, 1, dim});
  };
  EXPECT_EQ(refusal(view(Q8_0::type, 64)), kNothingThrown);
  EXPECT_EQ(refusal(view(Mxfp4::type, 64)), kNothingThrown);
  EXPECT_EQ(refusal(view(Q8Kv::type, 33)), kNothingThrown);
  EXPECT_EQ(view(Q8_0::type, 128).k_type.row_bytes(128), 136);
  EXPECT_EQ(Q4_0::type.row_bytes(128), 72);
  EXPECT_EQ(Q5_0::type.row_bytes(128), 88);
  EXPECT_EQ(Q5_1::type.row_bytes(128), 96);
  EXPECT_EQ(Iq4Nl::type.row_bytes(128), 72);
  EXPECT_EQ(Q8Kv::type.row_bytes(128), 136);
  EXPECT_EQ(Mxfp4::type.row_bytes(128), 68);
  EXPECT_EQ(Int8::type.row_bytes(128), 128);
  EXPECT_EQ(Int4::type.row_bytes(100), 64);
  EXPECT_EQ(Fp8E4M3::type.row_bytes(128), 128);
}

TEST(QuantisedViews, AreRefusedWhereTheyCannotBe) {
  alignas(4) std::byte rows[4096]{};
  alignas(4) std::byte scales[64]{};
  const auto view = [&](KvType type, Index dim) {
    return KvCacheView::contiguous(rows, type, rows, type, {3, 1, dim});
  };
  EXPECT_EQ(refusal(view(Q8_0::type, 40)), "gqa: kv.head_dim is 40; expected a multiple of 32: q8_0 has whole blocks");
  KvCacheView kv = view(Q4_0::type, 64);
  kv.value_dim = 48;
  EXPECT_EQ(refusal(kv), "gqa: kv.value_dim is 48; expected a multiple of 32: q4_0 has whole blocks");
  kv = view(Q5_0::type, 64);
  kv.k_strides.token = 80;
  EXPECT_EQ(refusal(kv), "gqa: kv.k_strides.token is 80; expected whole blocks of 32 elements");
  kv = view(Q5_1::type, 64);
  kv.v = rows + 1;
  EXPECT_EQ(refusal(kv), "gqa: kv.v is misaligned; expected an address that is a multiple of 2");
  kv = view(Int8::type, 64);
  EXPECT_EQ(refusal(kv), "gqa: kv.k_scales.data is null; expected a pointer to the scales of rows of int8");
  kv.k_scales = {scales + 1, {1, 0}};
  EXPECT_EQ(refusal(kv), "gqa: kv.k_scales.data is misaligned; expected an address that is a multiple of 4");
  kv.k_scales = {scales, {0, 0}};  // one for all
  EXPECT_EQ(refusal(kv), "gqa: kv.v_scales.data is null; expected a pointer to the scales of rows of int8");
  kv.v_scales = {scales, {1, 0}};
  EXPECT_EQ(refusal(kv), kNothingThrown);
  kv = view(Iq4Nl::type, 64);
  kv.v_scales = {scales, {1, 0}};
  EXPECT_EQ(refusal(kv), "gqa: kv.v_scales.data is a pointer; expected null: such rows have no scales outside");
}

}  // namespace
}  // namespace gqa::test
