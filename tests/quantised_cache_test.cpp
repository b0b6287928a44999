// SPDX-License-Identifier: Apache-2.0
// Caches of the library's codecs: attention over one has the bits of attention over an f32 cache that holds what its rows stand for, on every
// path and in every storage, and is right; owning caches keep their bytes; and what cannot be is refused.
#undef GQA_COMPILED_KERNELS  // which have no kernels for them
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "gqa/gqa.hpp"
#include "support/codecs.hpp"
#include "support/problem.hpp"
#include "support/reference_check.hpp"

namespace gqa::test {
namespace {

template <class Ids>
struct EveryCodec;
template <int... Id>
struct EveryCodec<std::integer_sequence<int, Id...>> {
  using Cache = CacheOf<typename CodecWithId<Id>::type...>;
};
using Attention = GroupedQueryAttention<dynamic, dynamic, dynamic, dynamic,
                                        EveryCodec<std::make_integer_sequence<int, detail::CodecList::size>>::Cache>;

struct Case {
  Index group, kv_heads, head_dim, value_dim, n_q, length;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
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

KvCacheConfig config(const Case& c, const KvFormat& k, const KvFormat& v, KvLayout layout, Index capacity) {
  return {.kv_heads = c.kv_heads,
          .head_dim = c.head_dim,
          .value_dim = c.value_dim,
          .k_type = k,
          .v_type = v,
          .capacity = capacity,
          .layout = layout};
}
KvPoolConfig pool_config(const Case& c, const KvFormat& k, const KvFormat& v, KvLayout layout, Index page_size) {
  return {.kv_heads = c.kv_heads,
          .head_dim = c.head_dim,
          .value_dim = c.value_dim,
          .k_type = k,
          .v_type = v,
          .page_size = page_size,
          .pages = c.length / page_size + 4,
          .layout = layout};
}

/// Where the row of a position and head is, and its scale.
struct At {
  std::byte* row;
  std::byte* scale;
};
At locate(const KvCacheView& kv, bool keys, Index position, Index head) {
  const detail::Place place = detail::locate(kv, position);
  const KvType type = keys ? kv.k_type : kv.v_type;
  const auto offset = [&](const KvStrides& strides) {
    return place.page * strides.page + place.slot * strides.token + head * strides.head;
  };
  const KvScales& scales = keys ? kv.k_scales : kv.v_scales;
  auto* const rows = static_cast<std::byte*>(const_cast<void*>(keys ? kv.k : kv.v));
  auto* const scale = static_cast<std::byte*>(const_cast<void*>(scales.data));
  return {rows + type.stride_bytes(offset(keys ? kv.k_strides : kv.v_strides)),
          scale == nullptr ? nullptr : scale + offset(scales.strides) * type.scale_bytes()};
}
void decode(const KvFormat& format, const At& at, Index dim, float* to) {
  if (format.codec() == nullptr) std::memcpy(to, at.row, static_cast<std::size_t>(dim) * sizeof(float));
  else format.codec()->decode(at.row, at.scale, dim, to);
}

/// What a cache's rows stand for, in the same storage: `dequantised` holds as many tokens, and its rows are written over.
void dequantise(const KvCacheView& kv, const KvFormat& k, const KvFormat& v, const KvCacheView& dequantised) {
  for (const bool keys : {true, false})
    for (Index t = kv.first_position(); t < kv.length; ++t)
      for (Index head = 0; head < kv.kv_heads; ++head)
        decode(keys ? k : v, locate(kv, keys, t, head), keys ? kv.head_dim : kv.value_dim,
               detail::typed<float>(locate(dequantised, keys, t, head).row));
}

class QuantisedCache : public testing::TestWithParam<std::tuple<std::size_t, Path>> {
 protected:
  const TestedCodec& codec() const { return tested_codecs()[std::get<0>(GetParam())]; }
  Path path() const { return std::get<1>(GetParam()); }

  std::vector<Case> cases() const {
    std::vector<Case> made;
    for (const Index n_q : {1, 3, 40}) {
      made.push_back({4, 2, 128, 128, n_q, n_q == 1 ? 700 : 150});
      made.push_back({1, 3, 64, 96, n_q, 131});
      made.push_back({5, 1, 256, 32, n_q, 97});
      if (!codec().type().whole_blocks()) made.push_back({7, 1, 20, 33, n_q, 97});
      if (!codec().type().whole_blocks()) made.push_back({2, 2, 80, 72, n_q, 70});
    }
    return made;
  }
  /// The bits of the f32 cache, and right.
  void check(const Case& c, const KvCacheView& kv, const KvCacheView& f32, Random& random) const {
    std::vector<float> q(static_cast<std::size_t>(c.n_q * c.group * c.kv_heads * c.head_dim));
    for (float& x : q) x = random.normal();
    const ConstTensorView queries(q.data(), c.n_q, c.group * c.kv_heads, c.head_dim);
    const Index window = kv.storage == Storage::ring ? kv.capacity - c.n_q + 1 : c.length;
    const CausalWindow variant{window};
    for (const Products products : kEveryProducts) {
      if (products != Products::as_stored && has_f32_arithmetic_only(path())) continue;
      const How how{.path = path(), .products = products};
      const Result expected = attend(queries, f32, how, variant, {}, Attention());
      ASSERT_TRUE(same_bits(expected, attend(queries, kv, how, variant, {}, Attention()))) << products_name(products);
      if (c.head_dim != 64) continue;
      ASSERT_TRUE(within_bound(queries, f32, how, variant, expected)) << products_name(products);
    }
  }
};

TEST_P(QuantisedCache, IsTheF32CacheOfWhatItsRowsStandFor) {
  Random random(11);
  const KvFormat plain = ElementType::f32;
  for (const Case& c : cases()) {
    const Rows rows(c, random);
    for (const KvLayout layout : {KvLayout::head_major, KvLayout::token_major}) {
      SCOPED_TRACE(describe(c, layout == KvLayout::head_major ? "head-major" : "token-major"));
      const auto compare = [&](auto&& coded, auto&& f32) {
        coded.append(rows.k, rows.v);
        f32.append(rows.k, rows.v);
        dequantise(coded.view(), codec().format, codec().format, f32.view());
        check(c, coded.view(), f32.view(), random);
      };
      compare(ContiguousKvCache(config(c, codec().format, codec().format, layout, c.length + 3)),
              ContiguousKvCache(config(c, plain, plain, layout, c.length)));
      if (HasFatalFailure()) return;
      compare(RingKvCache(config(c, codec().format, codec().format, layout, 75)),
              RingKvCache(config(c, plain, plain, layout, 75)));
      if (HasFatalFailure()) return;
      for (const Index page_size : {16, 50}) {
        PagedKvPool pool(pool_config(c, codec().format, codec().format, layout, page_size));
        PagedKvPool f32_pool(pool_config(c, plain, plain, layout, page_size));
        compare(pool.sequence(), f32_pool.sequence());
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Keys of one codec, values of another, or of plain elements.
TEST_P(QuantisedCache, GoesWithOtherTypes) {
  Random random(12);
  const Case c{4, 2, 64, 96, 5, 300};
  const Rows rows(c, random);
  const TestedCodec& other = tested_codecs()[(std::get<0>(GetParam()) + 1) % tested_codecs().size()];
  const KvFormat plain = ElementType::f32;
  for (const KvFormat& values : {plain, other.format}) {
    ContiguousKvCache coded(config(c, codec().format, values, KvLayout::head_major, c.length));
    ContiguousKvCache f32(config(c, plain, plain, KvLayout::head_major, c.length));
    coded.append(rows.k, rows.v);
    f32.append(rows.k, rows.v);
    dequantise(coded.view(), codec().format, values, f32.view());
    check(c, coded.view(), f32.view(), random);
    const Case half{4, 1, 64, 96, 5, 300};
    check(half, coded.view().slice_heads(1, 1), f32.view().slice_heads(1, 1), random);
  }
}

/// Bytes of a cache that no token is in: all of its memory but the rows of positions that are held.
void spoil(const KvCacheView& kv, Index slots, Index pages) {
  for (const bool keys : {true, false}) {
    const KvType type = keys ? kv.k_type : kv.v_type;
    const auto row_bytes = static_cast<std::size_t>(type.row_bytes(keys ? kv.head_dim : kv.value_dim));
    std::vector<std::vector<std::byte>> held_rows, held_scales;
    const auto go = [&](const auto& each) {
      for (Index t = kv.first_position(); t < kv.length; ++t)
        for (Index head = 0; head < kv.kv_heads; ++head) each(locate(kv, keys, t, head));
    };
    const auto scale_bytes = static_cast<std::size_t>(type.scale_bytes());
    go([&](const At& at) {
      held_rows.emplace_back(at.row, at.row + row_bytes);
      if (scale_bytes != 0) held_scales.emplace_back(at.scale, at.scale + scale_bytes);
    });
    const KvScales& scales = keys ? kv.k_scales : kv.v_scales;
    const Index stride = type.row_stride(keys ? kv.head_dim : kv.value_dim);
    const auto rows = static_cast<std::size_t>(pages * slots * kv.kv_heads);
    std::memset(const_cast<void*>(keys ? kv.k : kv.v), 0xff,
                rows * static_cast<std::size_t>(type.stride_bytes(stride)));
    if (scale_bytes != 0) std::memset(const_cast<void*>(scales.data), 0xff, rows * scale_bytes);
    std::size_t i = 0;
    go([&](const At& at) {
      std::memcpy(at.row, held_rows[i].data(), row_bytes);
      if (scale_bytes != 0) std::memcpy(at.scale, held_scales[i].data(), scale_bytes);
      ++i;
    });
  }
}

// NaN scales, and codes that are never written, in slots and pages that no token is in.
TEST_P(QuantisedCache, SeesNothingOfWhatNoTokenIsIn) {
  Random random(13);
  const Case c{3, 2, 64, 64, 4, 83};
  const Rows rows(c, random);
  std::vector<float> q(static_cast<std::size_t>(c.n_q * 6 * 64));
  for (float& x : q) x = random.normal();
  const ConstTensorView queries(q.data(), c.n_q, 6, 64);
  const auto unchanged = [&](auto&& cache, Index slots, Index pages) {
    cache.append(rows.k, rows.v);
    const CausalWindow window{20};
    const Result before = attend(queries, cache.view(), {.path = path()}, window, {}, Attention());
    spoil(cache.view(), slots, pages);
    EXPECT_TRUE(same_bits(before, attend(queries, cache.view(), {.path = path()}, window, {}, Attention())));
  };
  unchanged(ContiguousKvCache(config(c, codec().format, codec().format, KvLayout::head_major, 130)), 130, 1);
  unchanged(RingKvCache(config(c, codec().format, codec().format, KvLayout::token_major, 130)), 130, 1);
  PagedKvPool pool(pool_config(c, codec().format, codec().format, KvLayout::head_major, 16));
  unchanged(pool.sequence(), 16, pool.pages());
}

// A value that is not finite, in a token that some query rows see and others do not.
TEST_P(QuantisedCache, NonfiniteValuesReachThoseThatSeeThem) {
  Random random(14);
  const Case c{2, 1, 32, 32, 3, 70};
  for (const Index bad : {Index{68}, Index{69}}) {
    Rows rows(c, random);
    rows.v[static_cast<std::size_t>(bad * 32 + 7)] = std::nanf("");
    ContiguousKvCache cache(config(c, codec().format, codec().format, KvLayout::head_major, 70));
    cache.append(rows.k, rows.v);
    const std::vector<float> q(static_cast<std::size_t>(3 * 2 * 32), 0.25f);
    const Result result =
        attend(ConstTensorView(q.data(), 3, 2, 32), cache.view(), {.path = path()}, Causal{}, {}, Attention());
    for (Index token = 0; token < 3; ++token)
      for (Index head = 0; head < 2; ++head)
        EXPECT_EQ(std::isnan(result.at(token, head, 7)), 67 + token >= bad) << token;
  }
}

INSTANTIATE_TEST_SUITE_P(Codecs, QuantisedCache,
                         testing::Combine(testing::Range(std::size_t{0}, tested_codecs().size()),
                                          testing::ValuesIn(tested_paths())),
                         [](const auto& test) {
                           return std::string(tested_codecs()[std::get<0>(test.param)].name) + "_" +
                                  path_name(std::get<1>(test.param));
                         });

}  // namespace
}  // namespace gqa::test
