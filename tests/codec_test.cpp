// SPDX-License-Identifier: Apache-2.0
// Codecs: the list and what follows from it, how rows lie in memory, what owning caches do with rows, and what is refused.
#include "gqa/codec.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gqa/gqa.hpp"
#include "support/int8/int8.hpp"
#include "support/messages.hpp"
#include "support/paths.hpp"

namespace gqa::test {
namespace {

using ::test::Int8;

/// Blocks of 32 elements in 34 bytes, as ggml's q8_0 has them.
constexpr KvType kBlocks{{.id = 26, .block_shift = 5, .block_bytes = 34, .alignment = 2}};

TEST(CodecList, BeginsWithTheElementTypes) {
  static_assert(detail::CodecList::size >= 3);
  for (const ElementType type : kEveryType) {
    SCOPED_TRACE(element_name(type));
    const KvType stored = type;
    EXPECT_EQ(stored.id(), static_cast<Index>(type));
    EXPECT_STREQ(detail::codec_name(stored).c_str(), element_name(type));
    EXPECT_EQ(stored.block_bytes(), element_bytes(type));
    EXPECT_EQ(stored.alignment(), element_bytes(type));
    EXPECT_EQ(stored.block_elements(), 1);
    EXPECT_EQ(stored.scale_bytes(), 0);
    EXPECT_TRUE(stored.valid());
    EXPECT_TRUE(stored.is_element());
    for (const Index dim : {1, 20, 128}) {
      EXPECT_EQ(stored.row_bytes(dim), dim * element_bytes(type));
      EXPECT_EQ(stored.stride_bytes(dim), dim * element_bytes(type));
      EXPECT_EQ(stored.stride_bytes(-dim), -dim * element_bytes(type));
      EXPECT_EQ(stored.row_stride(dim), dim);
    }
  }
}

template <int Id>
void check_codec() {
  if constexpr (Id < detail::CodecList::size) {
    using C = typename CodecWithId<Id>::type;
    static_assert(Codec<C>);
    const KvType type = C::type;
    EXPECT_EQ(type.id(), Id);
    EXPECT_STREQ(detail::codec_name(type).c_str(), C::name);
    EXPECT_EQ(CacheOf<C>::types, 1u << Id);
    EXPECT_GE(type.stride_bytes(type.row_stride(96)), type.row_bytes(96));
    check_codec<Id + 1>();
  }
}

TEST(CodecList, IdsNamesAndSetsAgree) {
  check_codec<0>();
  EXPECT_EQ((CacheOf<float>::types), detail::codec_bit(ElementType::f32));
  EXPECT_EQ((CacheOf<f16, bf16>::types), detail::codec_bit(ElementType::f16) | detail::codec_bit(ElementType::bf16));
  EXPECT_EQ(AnyCache::types, 7u) << "other codecs are for those who name them";
  EXPECT_EQ((CacheOf<Int8, float>::types), 1u << 24 | 1u);
  EXPECT_STREQ(detail::codec_name(Int8::type).c_str(), "codec 24");
}

TEST(CodecList, EveryPathHasKernelsForTheElementTypesAlone) {
  for (const Path path : available_paths())
    for (const int terms : {0, 1, 2}) {
      const detail::Kernels& kernels = detail::kernels_for<AnyCache::types, dynamic, dynamic>(path, terms);
      SCOPED_TRACE(path_name(path));
      for (const ElementType k : kEveryType)
        for (const ElementType v : kEveryType) {
          EXPECT_TRUE(kernels.supports(k, v));
          EXPECT_FALSE(kernels.supports(k, Int8::type));
          EXPECT_FALSE(kernels.supports(Int8::type, v));
          EXPECT_NE(kernels.of(k).scores, nullptr);
          EXPECT_NE(kernels.of(v).accumulate, nullptr);
          EXPECT_NE(kernels.of(v).nonfinite, nullptr);
        }
    }
}

TEST(KvTypes, AreElementTypesWhereTheyArePlain) {
  KvType type;
  EXPECT_EQ(type, ElementType::f32);
  type = ElementType::bf16;
  EXPECT_EQ(type, ElementType::bf16);
  EXPECT_NE(type, KvType(ElementType::f16));
  const ElementType element = type;
  EXPECT_EQ(element, ElementType::bf16);
  EXPECT_EQ(static_cast<int>(type), 1);
  EXPECT_FALSE(KvType(static_cast<ElementType>(3)).valid());
  EXPECT_FALSE(KvType(static_cast<ElementType>(200)).valid());
  EXPECT_TRUE(Int8::type.valid());
  EXPECT_FALSE(Int8::type.is_element());
}

TEST(KvTypes, OfBlocksKnowTheirRows) {
  EXPECT_EQ(kBlocks.row_bytes(32), 34);
  EXPECT_EQ(kBlocks.row_bytes(64), 68);
  EXPECT_EQ(kBlocks.row_bytes(65), 102) << "the last block is padded";
  EXPECT_EQ(kBlocks.row_stride(65), 96);
  EXPECT_EQ(kBlocks.stride_bytes(64), 68);
  EXPECT_EQ(kBlocks.stride_bytes(-96), -102);
  EXPECT_EQ(kBlocks.alignment(), 2);
  // int8 with an f32 scale behind each row.
  constexpr KvType inside{{.id = 27, .block_bytes = 1, .row_extra = 4, .alignment = 4}};
  EXPECT_EQ(inside.row_bytes(128), 132);
  EXPECT_EQ(inside.row_stride(128), 132);
  EXPECT_EQ(Int8::type.row_bytes(128), 128);
  EXPECT_EQ(Int8::type.scale_bytes(), 4);
}

TEST(Views, AskTheCodecHowFarRowsAre) {
  const std::vector<std::byte> rows(4096);
  const KvCacheView kv = KvCacheView::contiguous(rows.data(), kBlocks, rows.data(), ElementType::f32, {5, 2, 40, 7});
  EXPECT_EQ(kv.k_strides.head, 64);
  EXPECT_EQ(kv.k_strides.token, 128);
  EXPECT_EQ(kv.v_strides.token, 14);
  EXPECT_EQ(static_cast<const std::byte*>(kv.slice_heads(1, 1).k) - rows.data(), 68);
  EXPECT_EQ(static_cast<const std::byte*>(kv.slice_heads(1, 1).v) - rows.data(), 28);
  KvCacheView scaled = KvCacheView::contiguous(rows.data(), Int8::type, rows.data(), Int8::type, {5, 2, 40});
  scaled.k_scales = {rows.data(), {2, 1}};
  scaled.v_scales = {rows.data() + 400, {1, 5}};
  const KvCacheView part = scaled.slice_heads(1, 1);
  EXPECT_EQ(static_cast<const std::byte*>(part.k_scales.data) - rows.data(), 4);
  EXPECT_EQ(static_cast<const std::byte*>(part.v_scales.data) - rows.data(), 420);
  EXPECT_EQ(static_cast<const std::byte*>(part.k) - rows.data(), 40);
}

TEST(Encoding, OfEveryCodecIsUndoneByDecoding) {
  const float numbers[] = {0.0f, 1.0f, -2.5f, 0.333f, 70000.0f, -1e-3f};
  const auto check = [&]<class C>(C, auto element) {
    std::byte row[64], scale[4];
    float back[3];
    const auto* const from = reinterpret_cast<const std::byte*>(numbers);
    C::template encode<float>(from, 2, 3, row, scale);
    C::decode(row, scale, 3, back);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(back[i], static_cast<float>(decltype(element)(numbers[2 * i]))) << C::name;
  };
  check(detail::F32{}, float{});
  check(detail::Bf16{}, bf16{});
  check(detail::F16{}, f16{});
}

/// Bits that change when they go by way of a float, or of a quiet NaN.
template <class T, class Bits>
void check_copies(ElementType type, Bits signalling) {
  for (const KvLayout layout : {KvLayout::head_major, KvLayout::token_major}) {
    PagedKvPool pool(
        {.kv_heads = 2, .head_dim = 3, .value_dim = 5, .k_type = type, .page_size = 8, .pages = 4, .layout = layout});
    std::vector<Bits> k(5 * 2 * 3), v(5 * 2 * 5);
    for (std::size_t i = 0; i < k.size(); ++i) k[i] = static_cast<Bits>(signalling + i);
    for (std::size_t i = 0; i < v.size(); ++i) v[i] = static_cast<Bits>(signalling + 64 + i);
    PagedSequence first = pool.sequence();
    first.append({k.data(), type, 5, 2, 3}, {v.data(), type, 5, 2, 5});
    PagedSequence second = first.fork();
    second.append({k.data(), type, 1, 2, 3}, {v.data(), type, 1, 2, 5});
    ASSERT_NE(first.pages()[0], second.pages()[0]) << "copied when it was written to";
    for (const PagedSequence* sequence : {&first, &second}) {
      const KvCacheView kv = sequence->view();
      const auto page = static_cast<Index>(kv.page_table[0]);
      for (Index t = 0; t < 5; ++t)
        for (Index head = 0; head < 2; ++head) {
          const auto* key = static_cast<const Bits*>(kv.k) + page * kv.k_strides.page + t * kv.k_strides.token +
                            head * kv.k_strides.head;
          const auto* value = static_cast<const Bits*>(kv.v) + page * kv.v_strides.page + t * kv.v_strides.token +
                              head * kv.v_strides.head;
          EXPECT_EQ(std::memcmp(key, k.data() + (t * 2 + head) * 3, 3 * sizeof(Bits)), 0);
          EXPECT_EQ(std::memcmp(value, v.data() + (t * 2 + head) * 5, 5 * sizeof(Bits)), 0);
        }
    }
  }
}

TEST(OwningCaches, CopyTheBytesOfAPageOnWrite) {
  check_copies<float>(ElementType::f32, std::uint32_t{0x7f800001});
  check_copies<bf16>(ElementType::bf16, std::uint16_t{0x7f81});
  check_copies<f16>(ElementType::f16, std::uint16_t{0x7c01});
}

// Rows of a codec that the pool could not encode: their bytes, and those of their scales.
TEST(OwningCaches, CopySlotsOfAnyCodec) {
  constexpr Index kHeads = 2, kSlots = 4, kDim = 3;
  std::vector<std::byte> rows(3 * kHeads * kSlots * kDim), scales(3 * kHeads * kSlots * 4);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::byte>(i);
  for (std::size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<std::byte>(255 - i);
  const auto before = rows, scales_before = scales;
  const detail::KvRoom room{rows.data(),   Int8::type,
                            kDim,          KvStrides::head_major(kHeads, kSlots, kDim),
                            scales.data(), KvStrides::head_major(kHeads, kSlots, 1),
                            nullptr};
  detail::copy_slots(room, kHeads, {0, 0}, {2, 0}, 3);
  for (Index head = 0; head < kHeads; ++head)
    for (Index slot = 0; slot < kSlots; ++slot) {
      const Index from = (head * kSlots + slot) * kDim, to = from + 2 * kHeads * kSlots * kDim;
      const auto& expected = slot < 3 ? before : rows;
      for (Index d = 0; d < kDim; ++d)
        EXPECT_EQ(rows[static_cast<std::size_t>(to + d)],
                  expected[static_cast<std::size_t>(slot < 3 ? from + d : to + d)]);
      const Index scale = (head * kSlots + slot) * 4;
      if (slot == 3) continue;
      EXPECT_EQ(std::memcmp(scales.data() + scale + 2 * kHeads * kSlots * 4, scales_before.data() + scale, 4), 0);
    }
  EXPECT_EQ(std::memcmp(rows.data(), before.data(), 2 * kHeads * kSlots * kDim), 0) << "other pages stay as they are";
  for (Index head = 0; head < kHeads; ++head) {
    const auto behind = static_cast<std::size_t>((2 * kHeads * kSlots + head * kSlots + 3) * kDim);
    EXPECT_EQ(std::memcmp(rows.data() + behind, before.data() + behind, kDim), 0) << "and so do later slots";
  }
}

TEST(OwningCaches, TakeCodecsThatTheyCanEncodeBy) {
  EXPECT_EQ(message_of([] { ContiguousKvCache({.kv_heads = 1, .head_dim = 8, .k_type = Int8::type, .capacity = 4}); }),
            "gqa: config.k_type is the type of codec 24; expected plain elements, or the codec itself, which rows are "
            "encoded by");
  EXPECT_EQ(message_of([] { PagedKvPool({.kv_heads = 1, .head_dim = 32, .v_type = Q8_0::type, .pages = 4}); }),
            "gqa: config.v_type is the type of q8_0; expected plain elements, or the codec itself, which rows are "
            "encoded by");
  // A program's own as well as the library's; keys and values each their own.
  ContiguousKvCache cache(
      {.kv_heads = 1, .head_dim = 3, .value_dim = 2, .k_type = Int8{}, .v_type = ElementType::f16, .capacity = 4});
  cache.append(std::vector<float>{1.0f, -127.0f, 0.4f}, std::vector<float>{3.0f, 4.0f});
  const KvCacheView kv = cache.view();
  float row[3];
  Int8::decode(static_cast<const std::byte*>(kv.k), static_cast<const std::byte*>(kv.k_scales.data), 3, row);
  EXPECT_EQ(std::vector<float>(row, row + 3), (std::vector<float>{1.0f, -127.0f, 0.0f}));
  EXPECT_EQ(kv.v_type, ElementType::f16);
  EXPECT_EQ(kv.v_scales.data, nullptr);
}

TEST(OwningCaches, RefuseWidthsThatCutBlocks) {
  EXPECT_EQ(message_of([] { ContiguousKvCache({.kv_heads = 1, .head_dim = 40, .k_type = Q8_0{}, .capacity = 4}); }),
            "gqa: config.head_dim is 40; expected a multiple of 32: q8_0 has whole blocks");
  EXPECT_EQ(message_of([] {
              RingKvCache({.kv_heads = 1,
                           .head_dim = 40,
                           .value_dim = 16,
                           .k_type = ElementType::f32,
                           .v_type = Q4_0{},
                           .capacity = 4});
            }),
            "gqa: config.value_dim is 16; expected a multiple of 32: q4_0 has whole blocks");
}

/// One query over a cache of int8 rows that is right, until a test changes it.
struct Call {
  std::vector<float> q = std::vector<float>(32), out = std::vector<float>(32, 7.0f);
  std::vector<std::byte> rows = std::vector<std::byte>(4 * 2 * 16);
  std::vector<float> scales = std::vector<float>(64, 1.0f);
  Sequence sequence{ConstTensorView(q.data(), 1, 2, 16), {}, TensorView(out.data(), 1, 2, 16)};

  Call() {
    KvCacheView& kv = sequence.kv;
    kv = KvCacheView::contiguous(rows.data(), Int8::type, rows.data(), Int8::type, {4, 2, 16});
    kv.k_scales = {scales.data(), {2, 1}};
    kv.v_scales = {scales.data() + 8, {2, 1}};
  }
  template <class Cache = CacheOf<Int8, float>>
  std::string error() const {
    const GroupedQueryAttention<dynamic, dynamic, dynamic, dynamic, Cache> attention;
    std::string message = message_of([&] { attention(sequence); });
    EXPECT_EQ(out, std::vector<float>(32, 7.0f)) << "touched";
    return message;
  }
};

// The kernels of these programs are compiled elsewhere, for element types alone: see tests/CMakeLists.txt.
/// What the programs' kernels are compiled for: every codec of the library.
std::string without_kernels(const std::string& refused) {
  std::string expected;
  for (int id = 0; id < detail::CodecList::size; ++id)
    expected += (id == 0 ? "" : " or ") +
                std::string(detail::codec_name(KvType({.id = static_cast<std::uint8_t>(id)})).c_str());
  return "gqa: " + refused + "; expected " + expected + ", for which the path has kernels";
}

TEST(Refused, IsACodecThatThePathHasNoKernelsFor) {
  Call call;
  EXPECT_EQ(call.error(), without_kernels("kv.k_type is codec 24"));
  const std::vector<float> keys(4 * 2 * 16);
  call.sequence.kv.k = keys.data();
  call.sequence.kv.k_type = ElementType::f32;
  call.sequence.kv.k_scales = {};
  EXPECT_EQ(call.error(), without_kernels("kv.v_type is codec 24"));
  const Sequence batch[] = {call.sequence, call.sequence};
  const GroupedQueryAttention<dynamic, dynamic, dynamic, dynamic, CacheOf<Int8, float>> attention;
  EXPECT_EQ(message_of([&] { static_cast<void>(attention.scratch_bytes(std::span(batch).first(1))); }),
            without_kernels("kv.v_type is codec 24"));
}

TEST(Refused, IsACodecThatTheFunctorIsNotCompiledFor) {
  EXPECT_EQ((Call().error<CacheOf<bf16, float>>()),
            "gqa: kv.k_type is codec 24; expected f32 or bf16, as the functor's CacheOf says");
}

TEST(Refused, AreScalesThatAreNotThere) {
  Call call;
  call.sequence.kv.k_scales = {};
  EXPECT_EQ(call.error(), "gqa: kv.k_scales.data is null; expected a pointer to the scales of rows of codec 24");
  call = Call();
  call.sequence.kv.v_scales = {};
  EXPECT_EQ(call.error(), "gqa: kv.v_scales.data is null; expected a pointer to the scales of rows of codec 24");
}

TEST(Refused, AreScalesOfRowsThatHaveNone) {
  Call call;
  call.sequence.kv.k_type = ElementType::f32;
  EXPECT_EQ(call.error(), "gqa: kv.k_scales.data is a pointer; expected null: such rows have no scales outside");
  call = Call();
  call.sequence.kv.v_type = ElementType::f32;
  EXPECT_EQ(call.error(), "gqa: kv.v_scales.data is a pointer; expected null: such rows have no scales outside");
}

TEST(Refused, AreScalesAtImpossiblePlaces) {
  Call call;
  call.sequence.kv.k_scales.data = reinterpret_cast<const std::byte*>(call.scales.data()) + 2;
  EXPECT_EQ(call.error(), "gqa: kv.k_scales.data is misaligned; expected an address that is a multiple of 4");
  call = Call();
  call.sequence.kv.v_scales.strides.token = (std::numeric_limits<Index>::max)();
  EXPECT_EQ(call.error(),
            "gqa: kv.v_scales.strides.token is 9223372036854775807; expected a stride whose offsets fit in 48 bits");
  call = Call();
  call.sequence.kv.k_scales.dim = Index{1} << 50;
  EXPECT_EQ(call.error(), "gqa: kv.k_scales.dim is 1125899906842624; expected a stride whose offsets fit in 48 bits");
  call = Call();
  call.sequence.kv.v_scales.data = call.out.data() + 4;
  EXPECT_EQ(call.error(),
            "gqa: out is in the memory of kv.v_scales.data; expected memory of its own, which no input and no other "
            "output lies in");
}

/// Of a program's own, in blocks; nothing loads it.
struct Blocks : Int8 {
  static constexpr KvType type = kBlocks;
};

}  // namespace
}  // namespace gqa::test

template <>
struct gqa::CodecWithId<26> {
  using type = gqa::test::Blocks;
};

namespace gqa::test {
namespace {

TEST(Refused, AreDistancesThatCutBlocks) {
  Call call;
  KvCacheView& kv = call.sequence.kv;
  kv = KvCacheView::contiguous(call.rows.data(), kBlocks, call.rows.data(), kBlocks, {1, 2, 16});
  EXPECT_EQ(call.error<CacheOf<Blocks>>(), without_kernels("kv.k_type is codec 26"));
  kv.k_strides.head = 48;
  EXPECT_EQ(call.error<CacheOf<Blocks>>(), "gqa: kv.k_strides.head is 48; expected whole blocks of 32 elements");
  kv.k_strides.head = 32;
  kv.v_strides.token = 33;
  EXPECT_EQ(call.error<CacheOf<Blocks>>(), "gqa: kv.v_strides.token is 33; expected whole blocks of 32 elements");
}

}  // namespace
}  // namespace gqa::test
