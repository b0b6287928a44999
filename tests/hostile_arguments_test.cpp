// SPDX-License-Identifier: Apache-2.0
// Hostile arguments one by one: each is refused by name, the same by scratch_bytes, before anything is worked out from it; or it is
// harmless, and the result is right.
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>

#include "gqa/reference.hpp"
#include "support/executors.hpp"
#include "support/messages.hpp"
#include "support/one_call.hpp"

namespace gqa::test {
namespace {

constexpr Index kMin = std::numeric_limits<Index>::min();
constexpr Index kMax = std::numeric_limits<Index>::max();

struct Call : OneCall {
  Options options;

  explicit Call(Index n_kv = 20, const Place& place = {}, Index n_q = 3)
      : OneCall({4, 2, 16, 24, n_q, n_kv}, Types{}, place, 11) {}

  /// What the call says; scratch_bytes must say the same, and a call that says anything leaves the outputs alone.
  template <class V = Causal>
  std::string says(const V& variant = {}) {
    const std::string asked = message_of([&] {
      static_cast<void>(attention_.scratch_bytes({&sequence, 1}, variant, options));
    });
    const std::string said = message_of([&] { attention_(sequence, variant, options); });
    EXPECT_EQ(said, asked) << "scratch_bytes";
    EXPECT_TRUE(said == kNothingThrown || out.untouched());
    return said;
  }

 private:
  DynamicAttention attention_;
};

std::string stride_message(const char* stride, Index value) {
  return std::string("gqa: ") + stride + " is " + std::to_string(value) +
         "; expected a stride whose offsets fit in 48 bits";
}

TEST(HostileStrides, AreRefusedWhereTheyAreNeverStepped) {
  for (const Index stride : {Index{1} << 56, -(Index{1} << 56), (Index{1} << 48) + 1, kMax, kMin, kMin + 1})
    for (const Index length : {0, 1}) {
      SCOPED_TRACE(describe("stride ", stride, "length ", length));
      Call k(length, {}, 1), v(length, {}, 1), head(length, {}, 1), page(length, {}, 1), q(length, {}, 1),
          out(length, {}, 1);
      k.sequence.kv.k_strides.token = stride;
      EXPECT_EQ(k.says(), stride_message("kv.k_strides.token", stride));
      v.sequence.kv.v_strides.token = stride;
      EXPECT_EQ(v.says(), stride_message("kv.v_strides.token", stride));
      head.sequence.kv.k_strides.head = stride;
      EXPECT_EQ(head.says(), stride_message("kv.k_strides.head", stride));
      page.sequence.kv.v_strides.page = stride;
      EXPECT_EQ(page.says(), stride_message("kv.v_strides.page", stride));
      q.sequence.q.strides.token = stride;
      EXPECT_EQ(q.says(), stride_message("q.strides.token", stride));
      out.sequence.out.strides.token = stride;
      EXPECT_EQ(out.says(), stride_message("out.strides.token", stride));
    }
}

TEST(HostileStrides, ThatAreNeverSteppedAndInBoundsAreHarmless) {
  for (const Index stride : {Index{1} << 48, -(Index{1} << 48), Index{0}}) {
    Call plain(1, {}, 1), call(1, {}, 1);
    call.sequence.kv.k_strides.token = call.sequence.kv.v_strides.token = call.sequence.q.strides.token = stride;
    call.sequence.out.strides.token = stride;
    ASSERT_EQ(call.says(), "nothing was thrown");
    ASSERT_EQ(plain.says(), "nothing was thrown");
    EXPECT_TRUE(same_bits(plain.out.result(), call.out.result()));
    // One slot, far into a block of positions: no address is worked out from the block's beginning.
    for (const Place& place : {ring_place(1), paged_place(1)}) {
      Call last(50, place, 1), same(50, place, 1);
      last.sequence.kv.k_strides.token = last.sequence.kv.v_strides.token = stride;
      ASSERT_EQ(last.says(CausalWindow{1}), "nothing was thrown");
      ASSERT_EQ(same.says(CausalWindow{1}), "nothing was thrown");
      EXPECT_TRUE(same_bits(same.out.result(), last.out.result()));
    }
  }
}

TEST(HostileStrides, ThatLeaveTheAddressSpaceAreRefused) {
  Call call;
  call.sequence.kv.k_strides.token = -(Index{1} << 43);
  EXPECT_NE(call.says().find("strides that lead from kv.k to places within the address space"), std::string::npos);
}

TEST(ZeroStrides, AreForgottenOnesFromTokenToTokenAndPageToPage) {
  Call k, v, q, page(20, paged_place(8));
  k.sequence.kv.k_strides.token = 0;
  EXPECT_EQ(k.says(), "gqa: kv.k_strides.token is 0; expected the distance from a token's row to the next token's");
  v.sequence.kv.v_strides.token = 0;
  EXPECT_EQ(v.says(), "gqa: kv.v_strides.token is 0; expected the distance from a token's row to the next token's");
  q.sequence.q.strides.token = 0;
  EXPECT_EQ(q.says(), "gqa: q.strides.token is 0; expected the distance from a query token's rows to the next token's");
  page.sequence.kv.k_strides.page = 0;
  EXPECT_EQ(page.says(), "gqa: kv.k_strides.page is 0; expected the distance from a page to the next one");
}

TEST(ZeroStrides, OfHeadsAreOneHeadForAll) {
  Call call, one;
  for (Call* each : {&call, &one}) {
    each->sequence.kv.k_strides.head = each->sequence.kv.v_strides.head = 0;
    each->sequence.q.strides.head = 0;
  }
  one.sequence.kv = one.sequence.kv.slice_heads(0, 1);
  ASSERT_EQ(call.says(), "nothing was thrown");
  ASSERT_EQ(one.says(), "nothing was thrown");
  EXPECT_TRUE(same_bits(one.out.result(), call.out.result()));
}

TEST(HostileSpans, WithASizeAndNoMemoryOrMisalignedAreNamed) {
  Call null_lse, odd_lse, null_positions, odd_positions, null_scratch;
  null_lse.sequence.lse = {static_cast<float*>(nullptr), 12};
  EXPECT_EQ(null_lse.says(), "gqa: lse.data() is null; expected a pointer to 12 floats");
  odd_lse.sequence.lse = {reinterpret_cast<float*>(reinterpret_cast<std::byte*>(odd_lse.sequence.lse.data()) + 1), 12};
  EXPECT_EQ(odd_lse.says(), "gqa: lse.data() is misaligned; expected an address that is a multiple of 4");
  null_positions.sequence.positions = {static_cast<const Index*>(nullptr), 3};
  EXPECT_EQ(null_positions.says(), "gqa: positions.data() is null; expected a pointer to 3 positions");
  const std::vector<Index> positions(4);
  odd_positions.sequence.positions = {
      reinterpret_cast<const Index*>(reinterpret_cast<const std::byte*>(positions.data()) + 4), 3};
  EXPECT_EQ(odd_positions.says(), "gqa: positions.data() is misaligned; expected an address that is a multiple of 8");
  null_scratch.options.scratch = {static_cast<std::byte*>(nullptr), std::size_t{1} << 30};
  EXPECT_EQ(null_scratch.says(), "gqa: options.scratch.data() is null; expected a pointer to 1073741824 bytes");
  const std::span<const Sequence> batch(static_cast<const Sequence*>(nullptr), 2);
  const std::string named = "gqa: batch.data() is null; expected a pointer to 2 sequences";
  EXPECT_EQ(message_of([&] { DynamicAttention{}(batch); }), named);
  EXPECT_EQ(message_of([&] { static_cast<void>(DynamicAttention{}.scratch_bytes(batch)); }), named);
  const std::byte* const odd = reinterpret_cast<const std::byte*>(&null_lse.sequence) + 4;
  const std::span<const Sequence> odd_batch(reinterpret_cast<const Sequence*>(odd), 1);
  EXPECT_EQ(message_of([&] { DynamicAttention{}(odd_batch); }),
            "gqa: batch.data() is misaligned; expected an address that is a multiple of 8");
  Call table(20, paged_place(8));
  table.sequence.kv.page_table =
      reinterpret_cast<const std::int32_t*>(reinterpret_cast<const std::byte*>(table.sequence.kv.page_table) + 2);
  EXPECT_EQ(table.says(), "gqa: kv.page_table is misaligned; expected an address that is a multiple of 4");
}

TEST(HostileOptions, AreNamed) {
  Call products;
  products.options.products = static_cast<Products>(3);
  EXPECT_EQ(products.says(), "gqa: options.products is 3; expected Products::as_stored, bf16 or bf16_terms");
  EXPECT_STREQ(path_name(static_cast<Path>(200)), "unknown");
  for (const Index concurrency : {Index{0}, Index{-1}, kMin}) {
    Call call;
    CountingExecutor executor{.claimed_concurrency = concurrency};
    call.options.executor = executor;
    EXPECT_EQ(call.says(),
              "gqa: options.executor.concurrency() is " + std::to_string(concurrency) + "; expected 1 or more");
  }
  Call call, plain;
  CountingExecutor executor{.claimed_concurrency = kMax};
  call.options.executor = executor;
  ASSERT_EQ(call.says(), "nothing was thrown");
  ASSERT_EQ(plain.says(), "nothing was thrown");
  EXPECT_TRUE(same_bits(plain.out.result(), call.out.result()));
}

TEST(HostilePositions, AreAllowedInEveryShippedVariant) {
  constexpr Index far[] = {kMin, kMin + 1, -1, 0, 19, 20, Index{1} << 48, kMax - 1, kMax};
  for (const Index position : far)
    for (const Index length : {0, 20}) {
      SCOPED_TRACE(describe("position ", position, "length ", length));
      const auto compare = [&](const auto& variant, Index begin, Index end) {
        Call call(length, {}, 1), cut(length, {}, 1);
        call.sequence.positions = {&position, 1};
        ASSERT_EQ(call.says(variant), "nothing was thrown");
        struct Between {
          PositionRange range;
          PositionRange visible_range(Index, Index) const { return range; }
        };
        cut.says(Between{{begin, end}});
        EXPECT_TRUE(same_bits(cut.out.result(), call.out.result()));
      };
      compare(Full{}, 0, length);
      compare(Causal{}, 0, position < 0 ? 0 : std::min(position, length - 1) + 1);
      for (const Index window : {Index{1}, Index{5}, kMax}) {
        const Index end = position < 0 ? 0 : std::min(position, length - 1) + 1;
        compare(CausalWindow{window}, position >= window ? std::min(position - window + 1, end) : 0, end);
      }
    }
}

TEST(HostileSizes, WhoseTasksOrScratchAreTooManyAreRefusedBeforeAnyWork) {
  // Addresses far from each other, because no tensor is read.
  const auto at = [](int power) { return reinterpret_cast<float*>(std::uintptr_t{1} << power); };
  const auto bytes_of = [&](Index tokens, Index heads, Index width, Index length, Index concurrency,
                            const auto& variant) {
    CountingExecutor executor{.claimed_concurrency = concurrency};
    Options options;
    options.executor = executor;
    const ConstTensorView q(at(46), tokens, heads, width, TensorStrides{1, 0, 0});
    const KvCacheView kv =
        KvCacheView::contiguous(at(53), at(54), KvShape{length, heads, width}, KvStrides{1, 0}, KvStrides{1, 0});
    const TensorView out(at(51), tokens, heads, width);
    const Sequence sequence{q, kv, out};
    std::size_t bytes = 0;
    const std::string said = message_of([&] {
      bytes = DynamicAttention{}.scratch_bytes({&sequence, 1}, variant, options);
    });
    EXPECT_LE(bytes, std::size_t{1} << 42);
    return said;
  };
  const auto says = [](const std::string& said, const char* part) {
    return said.find(part) != std::string::npos ? testing::AssertionSuccess() : testing::AssertionFailure() << said;
  };
  EXPECT_TRUE(says(bytes_of(Index{1} << 40, 1 << 20, 1, 8, 1, Full{}), "gqa: out.strides.token is"));
  EXPECT_TRUE(
      says(bytes_of(1, 1 << 20, 1, Index{1} << 48, 1, Full{}), "one with which the call has at most 2^40 spans"));
  EXPECT_TRUE(says(bytes_of(1, 1, 128, Index{1} << 40, kMax, Full{}), "options.executor.concurrency()"));
  for (const Index tokens : {Index{0}, Index{1}, Index{1} << 12})
    for (const Index heads : {Index{1}, Index{1} << 10, Index{1} << 20})
      for (const Index width : {1, 128, 65536})
        for (const Index length : {Index{0}, Index{1}, Index{1} << 30, Index{1} << 48})
          for (const Index concurrency : {Index{1}, Index{64}, kMax}) {
            const std::string said = bytes_of(tokens, heads, width, length, concurrency, Full{});
            ASSERT_TRUE(said == kNothingThrown || said.rfind("gqa: ", 0) == 0) << said;
          }
}

TEST(EmptyCaches, AndEmptyQueriesAreFineWithAnything) {
  Call call(0, {}, 2);
  call.sequence.kv.k = call.sequence.kv.v = nullptr;
  ASSERT_EQ(call.says(), "nothing was thrown");
  for (const float x : call.out.result().out) EXPECT_EQ(x, 0.0f);
  for (const Storage storage : {Storage::ring, Storage::paged}) {
    Call empty(0, {}, 2);
    empty.sequence.kv.storage = storage;
    EXPECT_EQ(empty.says(), "nothing was thrown") << "without slots, pages and a table";
  }
  Call negative(0, {}, 2);
  negative.sequence.kv.storage = Storage::paged;
  negative.sequence.kv.page_size = kMax;
  EXPECT_EQ(negative.says(), "gqa: kv.page_size is 9223372036854775807; expected 1 or more tokens");
  Call none(20, {}, 0);
  none.sequence.q.data = nullptr;
  none.sequence.out.data = nullptr;
  EXPECT_EQ(none.says(), "nothing was thrown");
}

TEST(FirstPosition, IsSafeForAnyNumbers) {
  constexpr Index numbers[] = {kMin, kMin + 1, -1, 0, 1, 5, kMax - 1, kMax};
  for (const Index length : numbers)
    for (const Index capacity : numbers)
      for (const Index oldest : numbers) {
        KvCacheView view;
        view.storage = Storage::ring;
        view.length = length;
        view.capacity = capacity;
        view.oldest = oldest;
        EXPECT_GE(view.first_position(), oldest);
      }
  static_assert(KvCacheView{}.first_position() == 0);
}

TEST(Reference, ChecksItsArguments) {
  const Call good;
  const auto message = [&](const auto& spoil) {
    Call call(20, paged_place(8));
    std::vector<Index> positions;
    spoil(call, positions);
    return message_of([&] {
      static_cast<void>(reference_attention(call.sequence.q, call.sequence.kv, Causal{}, std::nullopt, positions));
    });
  };
  EXPECT_EQ(message([](Call&, auto&) {}), "nothing was thrown");
  EXPECT_EQ(message([](Call& c, auto&) { c.sequence.kv.kv_heads = 0; }),
            "gqa: kv.kv_heads is 0; expected 1 to 1048576");
  EXPECT_EQ(message([](Call& c, auto&) { c.sequence.q.tokens = -1; }), "gqa: q.tokens is -1; expected 0 to 2^40");
  EXPECT_EQ(message([](Call& c, auto&) { c.sequence.q.data = nullptr; }),
            "gqa: q.data is null; expected a pointer to f32 elements");
  EXPECT_EQ(message([](Call& c, auto&) { c.sequence.kv.head_dim = 8; }), "gqa: kv.head_dim is 8; expected q.dim = 16");
  EXPECT_EQ(message([](Call&, auto& p) { p = {1, 2}; }), "gqa: positions.size() is 2; expected q.tokens = 3, or none");
  EXPECT_EQ(message([](Call& c, auto&) { c.sequence.kv.v_strides.token = kMin; }),
            stride_message("kv.v_strides.token", kMin));
  EXPECT_NE(message([](Call& c, auto&) { c.sequence.kv.pool_pages = 1; }).find("a page in [0, 1)"), std::string::npos);
  EXPECT_EQ(message_of(
                [&] { static_cast<void>(reference_attention(good.sequence.q, good.sequence.kv, CausalWindow{kMin})); }),
            "gqa: variant.window is -9223372036854775808; expected 1 or more positions");
  Call ring(20, ring_place(10));
  EXPECT_NE(message_of([&] {
              static_cast<void>(reference_attention(ring.sequence.q, ring.sequence.kv));
            }).find("kv.first_position() = 10"),
            std::string::npos);
}

}  // namespace
}  // namespace gqa::test
