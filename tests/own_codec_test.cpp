// SPDX-License-Identifier: Apache-2.0
// A codec that is not the library's, int8 with a scale a token and head outside of rows: its cache gives the bits of an f32 cache that
// holds what its rows stand for, on every path, and these are right.
#undef GQA_COMPILED_KERNELS  // which have no kernels for it
#include "support/int8/int8.hpp"
// The file with its loads, for every path.
#define GQA_OWN_CODECS "support/int8/int8.inl"
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "gqa/backward.hpp"
#include "gqa/gqa.hpp"
#include "gqa/reference.hpp"
#include "support/paths.hpp"
#include "support/random.hpp"

namespace gqa::test {
namespace {

using Attention = GroupedQueryAttention<dynamic, dynamic, dynamic, dynamic, CacheOf<::test::Int8, float>>;

struct Case {
  Index group, kv_heads, head_dim, value_dim, n_q, length;
  Index page_size;  // 0: contiguous
  bool token_major;
};

std::string name_of(const Case& c, Path path) {
  return std::string(path_name(path)) + ", group " + std::to_string(c.group) + ", " + std::to_string(c.kv_heads) +
         " KV heads, dims " + std::to_string(c.head_dim) + " and " + std::to_string(c.value_dim) + ", " +
         std::to_string(c.n_q) + " of " + std::to_string(c.length) + ", pages of " + std::to_string(c.page_size) +
         (c.token_major ? ", token-major" : "");
}

/// Keys or values as int8 rows and scales, and as the f32 rows they stand for; what no token is in, is NaN.
struct Plane {
  Index dim;
  KvStrides strides;
  KvStrides scale_strides;
  std::vector<std::byte> rows;
  std::vector<float> scales;
  std::vector<float> decoded;

  Plane(const Case& c, Index width, Index slots, Index pages) : dim(width) {
    const auto lay = [&](Index row) {
      return c.token_major ? KvStrides::token_major(c.kv_heads, row, slots)
                           : KvStrides::head_major(c.kv_heads, slots, row);
    };
    strides = lay(dim);
    scale_strides = lay(1);
    rows.resize(static_cast<std::size_t>(pages * strides.page), std::byte{0x80});
    scales.resize(static_cast<std::size_t>(pages * scale_strides.page), std::nanf(""));
    decoded.resize(rows.size(), std::nanf(""));
  }
  void put(Index page, Index slot, Index head, const std::vector<float>& row) {
    const Index at = page * strides.page + slot * strides.token + head * strides.head;
    const Index scale = page * scale_strides.page + slot * scale_strides.token + head * scale_strides.head;
    auto* const to = rows.data() + at;
    auto* const scale_bytes = reinterpret_cast<std::byte*>(scales.data() + scale);
    ::test::Int8::encode<float>(reinterpret_cast<const std::byte*>(row.data()), 1, dim, to, scale_bytes);
    ::test::Int8::decode(to, scale_bytes, dim, decoded.data() + at);
  }
};

struct Caches {
  Plane k, v;
  std::vector<std::int32_t> table;
  KvCacheView int8, f32;

  Caches(const Case& c, Random& random) : k(c, c.head_dim, slots(c), pages(c)), v(c, c.value_dim, slots(c), pages(c)) {
    for (const Index page : permutation(pages(c), random.bits())) table.push_back(static_cast<std::int32_t>(page));
    for (Index t = 0; t < c.length; ++t)
      for (Index head = 0; head < c.kv_heads; ++head)
        for (Plane* plane : {&k, &v}) {
          std::vector<float> row(static_cast<std::size_t>(plane->dim));
          for (float& x : row) x = random.normal();
          plane->put(c.page_size == 0 ? 0 : table[static_cast<std::size_t>(t / slots(c))], t % slots(c), head, row);
        }
    int8 = view(c, ::test::Int8::type, k.rows.data(), v.rows.data());
    int8.k_scales = {k.scales.data(), k.scale_strides};
    int8.v_scales = {v.scales.data(), v.scale_strides};
    f32 = view(c, ElementType::f32, k.decoded.data(), v.decoded.data());
  }
  static Index slots(const Case& c) { return c.page_size == 0 ? c.length : c.page_size; }
  static Index pages(const Case& c) { return c.page_size == 0 ? 1 : (c.length + c.page_size - 1) / c.page_size + 2; }
  KvCacheView view(const Case& c, KvType type, const void* keys, const void* values) const {
    const KvShape shape{c.length, c.kv_heads, c.head_dim, c.value_dim};
    if (c.page_size == 0) return KvCacheView::contiguous(keys, type, values, type, shape, k.strides, v.strides);
    return KvCacheView::paged(keys, type, values, type, shape, table, c.page_size, pages(c), k.strides, v.strides);
  }
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = [] {
    std::vector<Case> made;
    for (const Index page_size : {0, 16, 50, 64})
      for (const bool token_major : {false, true})
        for (const Index n_q : {1, 3, 40}) {
          made.push_back({4, 2, 128, 128, n_q, n_q == 1 ? 700 : 100, page_size, token_major});
          made.push_back({1, 3, 64, 80, n_q, 131, page_size, token_major});
          made.push_back({7, 1, 20, 33, n_q, 97, page_size, token_major});
        }
    return made;
  }();
  return all;
}

class OwnCodec : public testing::TestWithParam<Path> {};

TEST_P(OwnCodec, ItsCacheIsTheF32CacheOfWhatItsRowsStandFor) {
  Random random(11);
  for (const Case& c : cases()) {
    SCOPED_TRACE(name_of(c, GetParam()));
    const Caches caches(c, random);
    const Index heads = c.group * c.kv_heads;
    std::vector<float> q(static_cast<std::size_t>(c.n_q * heads * c.head_dim));
    for (float& x : q) x = random.normal();
    const ConstTensorView queries(q.data(), c.n_q, heads, c.head_dim);
    for (const Products products : {Products::as_stored, Products::bf16}) {
      std::vector<float> out(static_cast<std::size_t>(c.n_q * heads * c.value_dim)), expected(out.size());
      const Attention attention;
      const Options options{.path = GetParam(), .products = products};
      attention(queries, caches.int8, TensorView(out.data(), c.n_q, heads, c.value_dim), options);
      attention(queries, caches.f32, TensorView(expected.data(), c.n_q, heads, c.value_dim), options);
      ASSERT_EQ(out, expected) << products_name(products);
      if (products != Products::as_stored) continue;
      const ReferenceResult reference = reference_attention(queries, caches.f32);
      // Values are below 4, and f32 arithmetic over some hundred terms is within a few hundred units of 2⁻²⁴ of that.
      for (Index row = 0; row < c.n_q * heads; ++row)
        for (Index d = 0; d < c.value_dim; ++d)
          ASSERT_NEAR(static_cast<double>(out[static_cast<std::size_t>(row * c.value_dim + d)]), reference.out(row, d),
                      0x1p-15);
    }
  }
}

// Keys of one type, values of the other.
TEST_P(OwnCodec, GoesWithOtherTypes) {
  Random random(12);
  const Case c{4, 2, 72, 128, 5, 300, 16, false};
  const Caches caches(c, random);
  std::vector<float> q(static_cast<std::size_t>(c.n_q * 8 * c.head_dim));
  for (float& x : q) x = random.normal();
  const Attention attention;
  const auto attend = [&](const KvCacheView& kv) {
    std::vector<float> out(static_cast<std::size_t>(c.n_q * 8 * c.value_dim));
    attention(ConstTensorView(q.data(), c.n_q, 8, c.head_dim), kv, TensorView(out.data(), c.n_q, 8, c.value_dim),
              {.path = GetParam()});
    return out;
  };
  const std::vector<float> expected = attend(caches.f32);
  KvCacheView keys = caches.f32, values = caches.f32;
  keys.k = caches.int8.k;
  keys.k_type = caches.int8.k_type;
  keys.k_scales = caches.int8.k_scales;
  values.v = caches.int8.v;
  values.v_type = caches.int8.v_type;
  values.v_scales = caches.int8.v_scales;
  EXPECT_EQ(attend(keys), expected);
  EXPECT_EQ(attend(values), expected);
  EXPECT_EQ(attend(caches.int8.slice_heads(0, 2)), expected);
}

// A value that is not finite, in a token that some rows see and others do not.
TEST_P(OwnCodec, NonfiniteValuesReachThoseThatSeeThem) {
  Random random(13);
  const Case c{2, 1, 32, 32, 3, 70, 0, false};
  Caches caches(c, random);
  for (const Index bad : {Index{68}, Index{69}}) {
    std::vector<float> scales = caches.v.scales;
    scales[static_cast<std::size_t>(bad)] = std::nanf("");
    KvCacheView kv = caches.int8;
    kv.v_scales.data = scales.data();
    std::vector<float> q(static_cast<std::size_t>(3 * 2 * 32), 0.25f), out(q.size());
    Attention{}(ConstTensorView(q.data(), 3, 2, 32), kv, TensorView(out.data(), 3, 2, 32), {.path = GetParam()});
    for (Index token = 0; token < 3; ++token)
      for (Index d = 0; d < 64; ++d)
        EXPECT_EQ(std::isnan(out[static_cast<std::size_t>(token * 64 + d)]), 67 + token >= bad) << token;
  }
}

/// Of no path: nothing loads its rows.
struct NoLoads : ::test::Int8 {
  static constexpr KvType type{{.id = 25, .block_bytes = 1}};
  static constexpr const char* name = "nothing";
};

}  // namespace
}  // namespace gqa::test

template <>
struct gqa::CodecWithId<25> {
  using type = gqa::test::NoLoads;
};

namespace gqa::test {
namespace {

TEST_P(OwnCodec, WithoutLoadsIsRefusedBeforeAnyWork) {
  std::vector<float> q(16), out(16, 5.0f);
  const std::vector<std::byte> rows(16);
  KvCacheView kv = KvCacheView::contiguous(rows.data(), NoLoads::type, rows.data(), NoLoads::type, {1, 1, 16});
  const GroupedQueryAttention<dynamic, dynamic, dynamic, dynamic, CacheOf<NoLoads, float>> attention;
  try {
    attention(ConstTensorView(q.data(), 1, 1, 16), kv, TensorView(out.data(), 1, 1, 16), {.path = GetParam()});
    FAIL() << "nothing was thrown";
  } catch (const ArgumentError& error) {
    EXPECT_STREQ(error.what(), "gqa: kv.k_type is codec 25; expected f32, for which the path has kernels");
  }
  EXPECT_EQ(out, std::vector<float>(16, 5.0f));
  std::vector<float> lse(1), d_q(16, 5.0f);
  const Sequence sequence{
      .q = ConstTensorView(q.data(), 1, 1, 16), .kv = kv, .out = TensorView(out.data(), 1, 1, 16), .lse = lse};
  const SequenceGradients gradients{.d_out = sequence.q, .d_q = TensorView(d_q.data(), 1, 1, 16)};
  const GroupedQueryAttentionBackward<dynamic, dynamic, dynamic, dynamic, CacheOf<NoLoads, float>> backward;
  BackwardOptions options;
  options.path = GetParam();
  try {
    backward(sequence, gradients, options);
    FAIL() << "nothing was thrown";
  } catch (const ArgumentError& error) {
    EXPECT_STREQ(error.what(), "gqa: kv.k_type is codec 25; expected f32, for which the path has kernels");
  }
  EXPECT_EQ(d_q, std::vector<float>(16, 5.0f));
}

INSTANTIATE_TEST_SUITE_P(Paths, OwnCodec, testing::ValuesIn(available_paths()),
                         [](const auto& path) { return std::string(path_name(path.param)); });

}  // namespace
}  // namespace gqa::test
