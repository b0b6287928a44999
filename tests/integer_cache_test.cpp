// SPDX-License-Identifier: Apache-2.0
// Caches of integers with one scale a row: the bits of the plain model on every path, at the edges of what integers and scales can be. Other
// storages, and their error: quantised_cache_test.cpp.
#undef GQA_COMPILED_KERNELS  // which have no kernels for them
#include <gtest/gtest.h>

#include <vector>

#include "gqa/gqa.hpp"
#include "support/integer_model.hpp"

namespace gqa::test {
namespace {

using Attention = GroupedQueryAttention<dynamic, dynamic, dynamic, dynamic, CacheOf<Int8, Int4>>;

/// A cache whose bytes and scales are given, keys and values of different codecs, and queries.
struct Bytes {
  Index tokens, heads, head_dim, value_dim;
  std::vector<std::byte> k, v;
  std::vector<float> k_scales, v_scales, q;

  Bytes(Index n, Index kv_heads, Index d, Index dv, KvType k_type, KvType v_type, Index query_rows, Random& random)
      : tokens(n),
        heads(kv_heads),
        head_dim(d),
        value_dim(dv),
        k(static_cast<std::size_t>(n * kv_heads * k_type.row_bytes(d))),
        v(static_cast<std::size_t>(n * kv_heads * v_type.row_bytes(dv))),
        k_scales(static_cast<std::size_t>(n * kv_heads)),
        v_scales(k_scales),
        q(static_cast<std::size_t>(query_rows * d)),
        k_type_(k_type),
        v_type_(v_type) {
    for (std::vector<std::byte>* bytes : {&k, &v})
      for (std::byte& b : *bytes) b = static_cast<std::byte>(random.uniform() * 256.0);
    for (std::vector<float>* scales : {&k_scales, &v_scales})
      for (float& s : *scales) s = 0.02f * random.normal();
    for (float& x : q) x = random.normal();
  }
  KvCacheView view() const {
    KvCacheView kv;
    kv.k = k.data();
    kv.v = v.data();
    kv.k_type = k_type_;
    kv.v_type = v_type_;
    kv.kv_heads = heads;
    kv.head_dim = head_dim;
    kv.value_dim = value_dim;
    kv.length = tokens;
    kv.k_strides = {.token = k_type_.row_stride(head_dim) * heads, .head = k_type_.row_stride(head_dim)};
    kv.v_strides = {.token = v_type_.row_stride(value_dim), .head = v_type_.row_stride(value_dim) * tokens};
    kv.k_scales = {k_scales.data(), {.token = heads, .head = 1}};
    kv.v_scales = {v_scales.data(), {.token = 1, .head = tokens}};
    return kv;
  }

 private:
  KvType k_type_, v_type_;
};

class IntegerCache : public testing::TestWithParam<Path> {
 protected:
  void SetUp() override {
    report_paths_not_run();
    if (!path_available(GetParam())) GTEST_SKIP() << kNoTiles;
  }
  /// n_q tokens of `group` heads for each KV head.
  void expect_model(const Bytes& bytes, Index n_q) const {
    const KvCacheView kv = bytes.view();
    const Index rows = static_cast<Index>(bytes.q.size()) / bytes.head_dim;
    const ConstTensorView q(bytes.q.data(), n_q, rows / n_q, bytes.head_dim);
    const How how{.path = GetParam(), .products = Products::as_stored};
    for (const Index window : {bytes.tokens, Index{37}}) {
      const CausalWindow variant{window};
      EXPECT_TRUE(
          same_bits(IntegerModel(kv, kv).attend(q, variant), test::attend(q, kv, how, variant, {}, Attention())))
          << bytes.head_dim << ", " << bytes.value_dim << ", " << n_q << " tokens, window " << window;
    }
  }
  void expect_model(Index d, Index dv, KvType k, KvType v, const auto& change) const {
    Random random(static_cast<std::uint64_t>(d));
    for (const Index n_q : {Index{1}, Index{7}}) {
      Bytes bytes(n_q == 1 ? 577 : 150, 2, d, dv, k, v, n_q * 6, random);
      change(bytes);
      expect_model(bytes, n_q);
    }
  }
};

TEST_P(IntegerCache, IsThePlainModel) {
  const auto nothing = [](Bytes&) {};
  expect_model(128, 128, Int8::type, Int8::type, nothing);
  expect_model(128, 128, Int4::type, Int4::type, nothing);
  expect_model(1, 3, Int8::type, Int4::type, nothing);
  expect_model(40, 100, Int4::type, Int8::type, nothing);
  expect_model(65, 64, Int8::type, Int8::type, nothing);
  expect_model(576, 512, Int8::type, Int4::type, nothing);
}

// Every product as large as it can be, and of one sign.
TEST_P(IntegerCache, SumsDoNotOverflow) {
  const auto extreme = [](Bytes& bytes) {
    const auto least = [](KvType type) { return type == Int8::type ? std::byte{0x80} : std::byte{0}; };
    std::fill(bytes.k.begin(), bytes.k.end(), least(bytes.view().k_type));
    std::fill(bytes.v.begin(), bytes.v.end(), least(bytes.view().v_type));
    for (std::size_t i = 0; i < bytes.q.size(); ++i)
      bytes.q[i] = i / static_cast<std::size_t>(bytes.head_dim) % 2 == 0 ? 3.0f : -3.0f;
    for (float& s : bytes.v_scales) s = 0.5f;
    for (float& s : bytes.k_scales) s = 0x1p-9f;
  };
  for (const KvType type : {KvType(Int8::type), KvType(Int4::type)})
    for (const Index d : {Index{512}, Index{576}, Index{1024}}) expect_model(d, 16, type, type, extreme);
}

TEST_P(IntegerCache, ScalesMayBeAnything) {
  const auto model = [&](const auto& change) { expect_model(40, 24, Int8::type, Int4::type, change); };
  model([](Bytes& bytes) {  // huge and tiny ones
    for (std::size_t i = 0; i < bytes.v_scales.size(); ++i) bytes.v_scales[i] *= i % 3 == 0 ? 0x1p120f : 0x1p-140f;
    for (float& s : bytes.k_scales) s *= 0x1p-130f;
  });
  model([](Bytes& bytes) { std::fill(bytes.v_scales.begin(), bytes.v_scales.end(), 0x1p-149f); });
  model([](Bytes& bytes) { std::fill(bytes.v_scales.begin(), bytes.v_scales.end(), 0.0f); });
  model([](Bytes& bytes) {  // those who see the token have it in their outputs, nobody else
    bytes.v_scales[static_cast<std::size_t>(bytes.tokens - 3)] = std::nanf("");
    bytes.v_scales[static_cast<std::size_t>(2 * bytes.tokens - 40)] = std::numeric_limits<float>::infinity();
  });
  model([](Bytes& bytes) { bytes.k_scales[static_cast<std::size_t>(2 * bytes.tokens - 5)] = std::nanf(""); });
}

TEST_P(IntegerCache, QueriesMayBeAnything) {
  const auto model = [&](const auto& change) { expect_model(40, 24, Int4::type, Int8::type, change); };
  model([](Bytes& bytes) { std::fill(bytes.q.begin(), bytes.q.end(), 0.0f); });
  model([](Bytes& bytes) {
    for (float& x : bytes.q) x *= 0x1p-110f;
  });
  model([](Bytes& bytes) { bytes.q[45] = std::nanf(""); });
  model([](Bytes& bytes) { bytes.q[85] = std::numeric_limits<float>::infinity(); });
}

// A row does not see what is computed beside it.
TEST_P(IntegerCache, RowsAreTheirOwn) {
  Random random(5);
  Bytes bytes(90, 1, 40, 24, Int8::type, Int8::type, 40, random);
  for (std::size_t i = 0; i < bytes.q.size(); ++i) bytes.q[i] *= std::exp2(static_cast<float>(i / 40));
  expect_model(bytes, 40);
  expect_model(bytes, 2);
}

INSTANTIATE_TEST_SUITE_P(Paths, IntegerCache, testing::ValuesIn(tested_paths()),
                         [](const auto& each) { return std::string(path_name(each.param)); });

}  // namespace
}  // namespace gqa::test
