// SPDX-License-Identifier: Apache-2.0
// Owning caches of codecs that keep their first and newest tokens as plain elements besides: which rows a view shows at which length, and
// what they hold, after every way of changing a cache. Attention over such views: parts_test.cpp.
#include "gqa/rotation.hpp"
#include "support/messages.hpp"
#include "support/parts.hpp"

namespace gqa::test {
namespace {

constexpr Case kCase{1, 2, kPartDim, 32, 1, 900};
constexpr Index kFirst = 64;
constexpr Index kNewest = 70;

/// Where the parts of a cache of `length` tokens end, none of whose plain rows are missing, by its definition.
struct Ends {
  Index first;  ///< of plain rows
  Index coded;  ///< where the newest begin
  Index length;
};
Ends ends_at(Index length, Index first_tokens = kFirst, Index newest_tokens = kNewest) {
  Ends ends{std::min(first_tokens, length), length, length};
  if (newest_tokens > 0) ends.coded = std::max<Index>(length - newest_tokens, 0) / 64 * 64;
  ends.coded = std::max(ends.coded, ends.first);
  return ends;
}

/// A key row is multiplied by one more than its position, where a hook has been at it.
struct Growing {
  void change(const KeyRow& row) const noexcept {
    for (Index d = 0; d < row.dim; ++d) row.elements[d] *= 1.0f + static_cast<float>(row.position);
  }
};

class PlainTokens : public testing::TestWithParam<int> {
 protected:
  /// A cache of int4, q8_0 or fp8 rows.
  KvEncoding format() const {
    return GetParam() == 0 ? KvEncoding(Int4{}) : GetParam() == 1 ? KvEncoding(Q8_0{}) : KvEncoding(Fp8E4M3{});
  }
  ContiguousKvCache contiguous(Index first = kFirst, Index newest = kNewest) const {
    KvCacheConfig config = config_of(kCase, format(), format(), KvLayout::token_major, kCase.length);
    config.first_tokens = first;
    config.newest_tokens = newest;
    return ContiguousKvCache(config);
  }
  PagedKvPool pool(Index first = kFirst, Index newest = kNewest) const {
    KvPoolConfig config = pool_of(kCase, format(), format(), KvLayout::head_major, 48);
    config.first_tokens = first;
    config.newest_tokens = newest;
    config.pages = 60;
    return PagedKvPool(config);
  }
  /// Calls `check` with an empty cache of each storage.
  template <class Check>
  void each(const Check& check, Index first = kFirst, Index newest = kNewest) const {
    {
      SCOPED_TRACE("contiguous");
      ContiguousKvCache cache = contiguous(first, newest);
      check(cache);
    }
    SCOPED_TRACE("paged");
    PagedKvPool pages = pool(first, newest);
    PagedSequence sequence = pages.sequence();
    check(sequence);
  }

  template <class Cache, class... Hook>
  void append(Cache& cache, Index first, Index last, const Hook&... hook) const {
    const ConstTensorView k(rows_.k.data(), kCase.length, kCase.kv_heads, kCase.head_dim);
    const ConstTensorView v(rows_.v.data(), kCase.length, kCase.kv_heads, kCase.value_dim);
    cache.append(k.slice(first, last - first), v.slice(first, last - first), hook...);
  }
  std::vector<float> row_of(bool keys, Index token, Index head) const {
    const Index dim = keys ? kCase.head_dim : kCase.value_dim;
    const auto begin = (keys ? rows_.k : rows_.v).begin() + (token * kCase.kv_heads + head) * dim;
    return {begin, begin + dim};
  }
  static StoredRow stored(const KvCacheView& part, bool keys, Index position, Index head) {
    const KvType type = keys ? part.k_type : part.v_type;
    const At at = row_at(part, keys, position, head);
    StoredRow row{std::vector<std::byte>(at.row, at.row + type.row_bytes(keys ? part.head_dim : part.value_dim))};
    if (at.scale != nullptr) std::memcpy(row.scale.data(), at.scale, static_cast<std::size_t>(type.scale_bytes()));
    return row;
  }
  /// Parts end where they should, and position p holds what `expected(format, keys, p, head)` says.
  template <class Expected>
  testing::AssertionResult shows(const KvCacheView& kv, const Ends& ends, const Expected& expected) const {
    if (kv.length != ends.length) return testing::AssertionFailure() << "length " << kv.length;
    for (Index p = 0; p < kv.length; ++p) {
      const KvCacheView& part = kv.part(kv.part_of(p));
      const bool plain = p < ends.first || p >= ends.coded;
      const KvEncoding stored_as = plain ? KvEncoding(ElementType::bf16) : format();
      if (!(part.k_type == KvType(stored_as)) || !(part.v_type == KvType(stored_as)))
        return testing::AssertionFailure() << "position " << p << " is read as " << part.k_type.id();
      if (p < part.first_position_of_part()) return testing::AssertionFailure() << "position " << p << " is gone";
      for (const bool keys : {true, false})
        for (Index head = 0; head < kCase.kv_heads; ++head)
          if (!(stored(part, keys, p, head) == expected(stored_as, keys, p, head)))
            return testing::AssertionFailure() << (keys ? "key" : "value") << " of position " << p << ", head " << head;
    }
    for (Index i = 0; i < kv.earlier_count; ++i)
      if (kv.part(i).length % 64 != 0) return testing::AssertionFailure() << "a part ends at " << kv.part(i).length;
    return testing::AssertionSuccess();
  }
  /// Position p holds token number token_of(p).
  template <class TokenOf>
  testing::AssertionResult holds(const KvCacheView& kv, const Ends& ends, const TokenOf& token_of) const {
    return shows(kv, ends, [&](const KvEncoding& as, bool keys, Index p, Index head) {
      return encode_any(as, row_of(keys, token_of(p), head));
    });
  }
  testing::AssertionResult holds(const KvCacheView& kv, const Ends& ends) const {
    return holds(kv, ends, [](Index p) { return p; });
  }

 private:
  Random random_{51};
  Rows rows_{kCase, random_};
};

TEST_P(PlainTokens, AreReadByLengthAlone) {
  for (const auto& [first_tokens, newest_tokens] :
       {std::pair<Index, Index>{kFirst, kNewest}, {0, 1}, {128, 0}, {0, 64}, {192, 300}}) {
    const Index first = first_tokens, newest = newest_tokens;  // Clang has lambdas capture no bindings
    SCOPED_TRACE(describe(first, newest));
    each(
        [&](auto& one_by_one) {
          for (Index t = 0; t < 500; ++t) {
            append(one_by_one, t, t + 1);
            if (t % 31 != 0 && t % 64 > 1 && t < 490) continue;
            ASSERT_TRUE(holds(one_by_one.view(), ends_at(t + 1, first, newest))) << t;
          }
        },
        first, newest);
    each(
        [&](auto& in_chunks) {
          Random random(52);
          for (Index at = 0, next; at < 900; at = next) {
            next = std::min(at + random.below(random.below(3) == 0 ? 500 : 40), Index{900});
            append(in_chunks, at, next);
            ASSERT_TRUE(holds(in_chunks.view(), ends_at(next, first, newest))) << at << " to " << next;
          }
        },
        first, newest);
  }
}

TEST_P(PlainTokens, UpToABlockMayBeDroppedAndNothingIsMissing) {
  each([&](auto& cache) {
    append(cache, 0, 645);
    for (const Index length : {Index{644}, Index{600}, Index{581}}) {  // of 581, those from 581 - 70 - 63 on
      cache.truncate(length);
      ASSERT_TRUE(holds(cache.view(), ends_at(length))) << length;
    }
    append(cache, 581, 700);
    ASSERT_TRUE(holds(cache.view(), ends_at(700)));
  });
}

// What is not there any more is read as it is encoded, in whole blocks, until new tokens have come.
TEST_P(PlainTokens, OfManyThatAreDroppedTheEncodedRowsAreRead) {
  each([&](auto& cache) {
    append(cache, 0, 600);  // the ring has 256 slots: positions from 344 on
    cache.truncate(450);
    EXPECT_TRUE(holds(cache.view(), {64, 384, 450})) << "those that are still in the ring";
    cache.truncate(350);
    EXPECT_TRUE(holds(cache.view(), {64, 350, 350})) << "the rest of its block is encoded";
    append(cache, 350, 390);
    EXPECT_TRUE(holds(cache.view(), {64, 384, 390}));
    cache.truncate(200);
    EXPECT_TRUE(holds(cache.view(), {64, 200, 200}));
    append(cache, 200, 300);
    EXPECT_TRUE(holds(cache.view(), {64, 256, 300}));
    append(cache, 300, 400);
    EXPECT_TRUE(holds(cache.view(), ends_at(400)));
    cache.truncate(30);
    EXPECT_TRUE(holds(cache.view(), {30, 30, 30}));
    append(cache, 30, 500);
    EXPECT_TRUE(holds(cache.view(), ends_at(500)));
    cache.clear();
    EXPECT_EQ(cache.view().earlier_count, 0);
    append(cache, 0, 900);
    EXPECT_TRUE(holds(cache.view(), ends_at(900)));
  });
}

TEST_P(PlainTokens, ThatMoveAreFound) {
  each([&](auto& cache) {
    append(cache, 0, 600);
    const Index kept[] = {0, 1, 4, 9, 10};
    cache.keep(580, kept);  // draft tokens: their plain rows go with them
    const auto token_of = [&](Index p) { return p < 580 ? p : 580 + kept[p - 580]; };
    ASSERT_TRUE(holds(cache.view(), ends_at(585), token_of));
    cache.erase(100, 130);  // those that move away from the newest positions are read as encoded
    const auto after = [&](Index p) { return token_of(p < 100 ? p : p + 30); };
    ASSERT_TRUE(holds(cache.view(), {64, 448, 555}, after));
    cache.erase(20, 30);  // of the first tokens too
    const auto at_last = [&](Index p) { return after(p < 20 ? p : p + 10); };
    ASSERT_TRUE(holds(cache.view(), {0, 448, 545}, at_last));
    cache.erase(300, 545);
    ASSERT_TRUE(holds(cache.view(), {0, 300, 300}, at_last));
    append(cache, 600, 750);
    const auto more = [&](Index p) { return p < 300 ? at_last(p) : p + 300; };
    ASSERT_TRUE(holds(cache.view(), {0, 320, 450}, more));
  });
}

TEST_P(PlainTokens, HooksChangeBothRows) {
  const auto decode = [](const KvEncoding& as, const StoredRow& stored, Index dim) {
    std::vector<float> row(static_cast<std::size_t>(dim));
    StoredRow copy = stored;
    test::decode(as, {copy.row.data(), copy.scale.data()}, dim, row.data());
    return row;
  };
  const auto grown = [](std::vector<float> row, Index position) {
    for (float& x : row) x *= 1.0f + static_cast<float>(position);
    return row;
  };
  each([&](auto& cache) {
    append(cache, 0, 300, Growing{});
    append(cache, 300, 600, Growing{});
    const auto appended = [&](const KvEncoding& as, bool keys, Index p, Index head) {
      return encode_any(as, keys ? grown(row_of(keys, p, head), p) : row_of(keys, p, head));
    };
    ASSERT_TRUE(shows(cache.view(), ends_at(600), appended));
    cache.change_keys(50, 590, Growing{});
    ASSERT_TRUE(shows(cache.view(), ends_at(600), [&](const KvEncoding& as, bool keys, Index p, Index head) {
      const StoredRow before = appended(as, keys, p, head);
      return !keys || p < 50 || p >= 590 ? before : encode_any(as, grown(decode(as, before, kCase.head_dim), p));
    }));
  });
}

TEST_P(PlainTokens, OfARotatedCacheAreRotatedToo) {
  KvCacheConfig config = config_of(kCase, format(), format(), KvLayout::head_major, kCase.length);
  config.first_tokens = kFirst;
  config.newest_tokens = kNewest;
  config.k_rotation = kPartDim;
  config.v_rotation = 16;
  ContiguousKvCache cache(config);
  append(cache, 0, 170);
  append(cache, 170, 400);
  const KvCacheView kv = cache.view();
  for (Index i = 0; i <= kv.earlier_count; ++i) {
    EXPECT_EQ(kv.part(i).k_rotation, kPartDim);
    EXPECT_EQ(kv.part(i).v_rotation, 16);
  }
  EXPECT_TRUE(shows(kv, ends_at(400), [&](const KvEncoding& as, bool keys, Index p, Index head) {
    std::vector<float> row = row_of(keys, p, head);
    hadamard_rotate(TensorView(row.data(), 1, 1, static_cast<Index>(row.size())), keys ? kPartDim : 16);
    return encode_any(as, row);
  }));
}

TEST_P(PlainTokens, OfAForkAreItsOwn) {
  PagedKvPool pages = pool();
  PagedSequence sequence = pages.sequence();
  append(sequence, 0, 400);
  PagedSequence fork = sequence.fork();
  PagedSequence prefix = sequence.fork(50);
  append(fork, 500, 700);
  append(sequence, 400, 420);
  append(prefix, 700, 800);
  EXPECT_TRUE(holds(sequence.view(), ends_at(420)));
  EXPECT_TRUE(holds(fork.view(), ends_at(600), [](Index p) { return p < 400 ? p : p + 100; }));
  EXPECT_TRUE(holds(prefix.view(), ends_at(150), [](Index p) { return p < 50 ? p : p + 650; }));
  fork = std::move(sequence);
  EXPECT_TRUE(holds(fork.view(), ends_at(420)));
  EXPECT_EQ(sequence.view().length, 0);  // NOLINT(bugprone-use-after-move)
  fork.reserve(2000);
  EXPECT_EQ(fork.view().earlier[1].page_table, fork.pages().data());
  EXPECT_TRUE(holds(fork.view(), ends_at(420)));
  append(fork, 420, 900);
  EXPECT_TRUE(holds(fork.view(), ends_at(900)));
  fork.clear();
  fork.append(std::vector<float>(2 * kCase.head_dim), std::vector<float>(2 * kCase.value_dim));
  EXPECT_EQ(fork.view().earlier_count, 0);
  EXPECT_EQ(fork.view().k_type, ElementType::bf16);
}

TEST_P(PlainTokens, GoWithACacheThatIsMoved) {
  ContiguousKvCache cache = contiguous();
  append(cache, 0, 400);
  const KvCacheView before = cache.view();
  ContiguousKvCache moved(std::move(cache));
  EXPECT_TRUE(holds(moved.view(), ends_at(400)));
  EXPECT_TRUE(holds(before, ends_at(400))) << "memory does not move";
  EXPECT_EQ(cache.view().earlier_count, 0);  // NOLINT(bugprone-use-after-move)
  cache = std::move(moved);
  append(cache, 400, 500);
  EXPECT_TRUE(holds(cache.view(), ends_at(500)));
}

INSTANTIATE_TEST_SUITE_P(Codecs, PlainTokens, testing::Range(0, 3), [](const auto& of) {
  return std::string(of.param == 0 ? "int4" : of.param == 1 ? "q8_0" : "fp8_e4m3");
});

TEST(PlainTokensBytes, AreCounted) {
  KvCacheConfig config = config_of(kCase, Q8_0{}, Q8_0{}, KvLayout::head_major, 900);
  const Index without = ContiguousKvCache(config).bytes();
  config.first_tokens = 64;
  config.newest_tokens = 1;
  const Index slots = 128;  // a block that is not complete, and as much again to be dropped
  EXPECT_EQ(ContiguousKvCache(config).bytes() - without, (64 + slots) * 2 * (kPartDim + 32) * 2);
}

TEST(PlainTokensErrors, NameTheMember) {
  const auto says = [](Index first, Index newest, ElementType type = ElementType::bf16) {
    return message_of([&] {
      KvCacheConfig config = config_of(kCase, Q8_0{}, Q8_0{}, KvLayout::head_major, 900);
      config.first_tokens = first, config.newest_tokens = newest, config.plain_type = type;
      const ContiguousKvCache cache(config);
    });
  };
  EXPECT_EQ(says(64, 900), kNothingThrown);
  const std::string room = "0 to the tokens that there is room for, 900";
  for (const Index first : {Index{-64}, Index{63}, Index{960}})
    EXPECT_EQ(says(first, 0),
              "gqa: config.first_tokens is " + std::to_string(first) + "; expected a multiple of 64, " + room);
  for (const Index newest : {Index{-1}, Index{901}})
    EXPECT_EQ(says(0, newest), "gqa: config.newest_tokens is " + std::to_string(newest) + "; expected " + room);
  EXPECT_EQ(says(64, 0, static_cast<ElementType>(9)),
            "gqa: config.plain_type is 9; expected ElementType::f32, bf16 or f16");
  EXPECT_EQ(message_of([] {
              KvPoolConfig config = pool_of(kCase, Q8_0{}, Q8_0{}, KvLayout::head_major, 10);
              config.pages = 3, config.newest_tokens = 31;
              const PagedKvPool pool(config);
            }),
            "gqa: config.newest_tokens is 31; expected 0 to the tokens that there is room for, 30");
  KvCacheConfig ring = config_of(kCase, Q8_0{}, Q8_0{}, KvLayout::head_major, 900);
  ring.newest_tokens = 5;
  EXPECT_EQ(message_of([&] { const RingKvCache cache(ring); }),
            "gqa: config.newest_tokens is 5; expected 0: a ring stores all its tokens the same way");
}

}  // namespace
}  // namespace gqa::test
