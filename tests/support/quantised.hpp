// SPDX-License-Identifier: Apache-2.0
// Caches of the library's codecs, f32 caches that hold what their rows stand for, and calls over both.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "codecs.hpp"
#include "gqa/gqa.hpp"
#include "gqa/rotation.hpp"
#include "integer_model.hpp"
#include "problem.hpp"
#include "reference_check.hpp"

namespace gqa::test {

struct Case {
  Index group, kv_heads, head_dim, value_dim, n_q, length;
};
inline std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "group " << c.group << ", " << c.kv_heads << " KV heads, dims " << c.head_dim << " and " << c.value_dim
             << ", " << c.n_q << " of " << c.length;
}

/// Keys and values of a sequence, packed (token, head, dim).
struct Rows {
  std::vector<float> k, v;
  Rows(const Case& c, Random& random)
      : k(static_cast<std::size_t>(c.length * c.kv_heads * c.head_dim)),
        v(static_cast<std::size_t>(c.length * c.kv_heads * c.value_dim)) {
    for (float& x : k) x = random.normal();
    for (float& x : v) x = random.normal();
  }
};

inline KvCacheConfig config_of(const Case& c, const KvEncoding& k, const KvEncoding& v, KvLayout layout,
                               Index capacity) {
  return {.kv_heads = c.kv_heads,
          .head_dim = c.head_dim,
          .value_dim = c.value_dim,
          .k_type = k,
          .v_type = v,
          .capacity = capacity,
          .layout = layout};
}
inline KvPoolConfig pool_of(const Case& c, const KvEncoding& k, const KvEncoding& v, KvLayout layout, Index page_size) {
  return {.kv_heads = c.kv_heads,
          .head_dim = c.head_dim,
          .value_dim = c.value_dim,
          .k_type = k,
          .v_type = v,
          .page_size = page_size,
          .pages = c.length / page_size + 4,
          .layout = layout};
}

/// What a row stands for.
inline void decode(const KvEncoding& format, const At& at, Index dim, float* to) {
  const detail::RowDecoder decoder =
      format.codec() != nullptr ? format.codec()->decode : detail::element_decoder(KvType(format));
  decoder(at.row, at.scale, dim, to);
}

/// What a cache's rows stand for, in the same storage: `dequantised` holds as many tokens, and its rows are written over.
inline void dequantise(const KvCacheView& kv, const KvEncoding& k, const KvEncoding& v,
                       const KvCacheView& dequantised) {
  for (const bool keys : {true, false})
    for (Index t = kv.first_position(); t < kv.length; ++t)
      for (Index head = 0; head < kv.kv_heads; ++head)
        decode(keys ? k : v, row_at(kv, keys, t, head), keys ? kv.head_dim : kv.value_dim,
               detail::typed<float>(row_at(dequantised, keys, t, head).row));
}

/// float, and every codec that is not of plain elements.
template <class Ids>
struct CodedTypes;
template <int... Id>
struct CodedTypes<std::integer_sequence<int, Id...>> {
  using Cache = CacheOf<float, typename CodecWithId<Id + detail::kLastElementType + 1>::type...>;
};
using CodedCache =
    CodedTypes<std::make_integer_sequence<int, detail::CodecList::size - detail::kLastElementType - 1>>::Cache;

/// Widths that kernels are compiled for.
template <int HeadDim, int ValueDim>
struct Widths {
  using Attention = GroupedQueryAttention<dynamic, dynamic, HeadDim, ValueDim, CodedCache>;
  static bool are(const KvCacheView& kv) { return kv.head_dim == HeadDim && kv.value_dim == ValueDim; }
};

/// By the plain model, `values` being those of the queries: where rows are rotated, these are likewise, and outputs are turned back.
template <class V>
Result integer_model(ConstTensorView queries, std::vector<float> values, const KvCacheView& kv, const KvCacheView& f32,
                     const V& variant) {
  if (kv.k_rotation > 1)
    hadamard_rotate(TensorView(values.data(), queries.tokens, queries.heads, queries.dim), kv.k_rotation);
  queries.data = values.data();
  Result result = IntegerModel(kv, f32).attend(queries, variant);
  if (kv.v_rotation > 1)
    hadamard_rotate(TensorView(result.out.data(), result.tokens, result.heads, result.dim), kv.v_rotation);
  return result;
}

/// Calls over caches of these widths, on a path.
template <class... W>
struct Coded {
  Path path;

  template <class V>
  Result attend(const ConstTensorView& q, const KvCacheView& kv, const V& variant,
                Products products = Products::as_stored) const {
    Result result;
    const bool found =
        ((W::are(kv) && (result = test::attend(q, kv, how(products), variant, {}, typename W::Attention()), true)) ||
         ...);
    EXPECT_TRUE(found) << "no kernels are compiled for these widths";
    return result;
  }
  /// The bits of the f32 cache, or where products are of integers, of the plain model; and right.
  void compare(const Case& c, const KvCacheView& kv, const KvCacheView& f32, Random& random) const {
    std::vector<float> q(static_cast<std::size_t>(c.n_q * c.group * c.kv_heads * c.head_dim));
    for (float& x : q) x = random.normal();
    const ConstTensorView queries(q.data(), c.n_q, c.group * c.kv_heads, c.head_dim);
    const CausalWindow variant{kv.storage == Storage::ring ? kv.capacity - c.n_q + 1 : c.length};
    for (const Products products : kEveryProducts) {
      if (products != Products::as_stored && has_f32_arithmetic_only(path)) continue;
      const bool of_integers =
          bf16_terms(queries, kv, how(products)) == 0 && (integers(kv, true) || integers(kv, false));
      const Result expected =
          of_integers ? integer_model(queries, q, kv, f32, variant) : attend(queries, f32, variant, products);
      ASSERT_TRUE(same_bits(expected, attend(queries, kv, variant, products))) << products_name(products);
      if (c.n_q != 3) continue;
      How call = how(products);
      if (of_integers) call.integers = &kv;
      ASSERT_TRUE(within_bound(queries, f32, call, variant, expected)) << products_name(products);
    }
  }
  /// Every storage.
  void compare(const Case& c, const KvEncoding& format, Random& random) const {
    const Rows rows(c, random);
    const KvEncoding plain = ElementType::f32;
    for (const KvLayout layout : {KvLayout::head_major, KvLayout::token_major}) {
      SCOPED_TRACE(describe(c, layout == KvLayout::head_major ? "head-major" : "token-major"));
      const auto over = [&](auto&& coded, auto&& f32) {
        coded.append(rows.k, rows.v);
        f32.append(rows.k, rows.v);
        dequantise(coded.view(), format, format, f32.view());
        compare(c, coded.view(), f32.view(), random);
      };
      over(ContiguousKvCache(config_of(c, format, format, layout, c.length + 3)),
           ContiguousKvCache(config_of(c, plain, plain, layout, c.length)));
      if (testing::Test::HasFatalFailure()) return;
      over(RingKvCache(config_of(c, format, format, layout, 75)), RingKvCache(config_of(c, plain, plain, layout, 75)));
      if (testing::Test::HasFatalFailure()) return;
      const Index page_size = layout == KvLayout::head_major ? 16 : 50;
      PagedKvPool pool(pool_of(c, format, format, layout, page_size));
      PagedKvPool f32_pool(pool_of(c, plain, plain, layout, page_size));
      over(pool.sequence(), f32_pool.sequence());
      if (testing::Test::HasFatalFailure()) return;
    }
  }

  How how(Products products) const { return {.path = path, .products = products}; }
};

/// A test for each codec and path.
class PerCodecAndPath : public testing::TestWithParam<std::tuple<std::size_t, Path>> {
 public:
  static auto cases() {
    return testing::Combine(testing::Range(std::size_t{0}, tested_codecs().size()), testing::ValuesIn(tested_paths()));
  }
  static std::string name(const testing::TestParamInfo<ParamType>& info) {
    return std::string(tested_codecs()[std::get<0>(info.param)].name) + "_" + path_name(std::get<1>(info.param));
  }

 protected:
  void SetUp() override {
    report_paths_not_run();
    if (!path_available(path())) GTEST_SKIP() << kNoTiles;
  }
  const TestedCodec& codec() const { return tested_codecs()[std::get<0>(GetParam())]; }
  /// The one after it.
  const TestedCodec& other() const { return tested_codecs()[(std::get<0>(GetParam()) + 1) % tested_codecs().size()]; }
  Path path() const { return std::get<1>(GetParam()); }
};

}  // namespace gqa::test
