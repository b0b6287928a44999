// SPDX-License-Identifier: Apache-2.0
// Caches of the library's codecs: attention over one has the bits of attention over an f32 cache that holds what its rows stand for, on every
// path and in every storage, and is right. Other widths: quantised_widths_test.cpp.
#include "support/quantised.hpp"

namespace gqa::test {
namespace {

class QuantisedCache : public PerCodecAndPath {
 protected:
  Coded<Widths<128, 128>> calls() const { return {path()}; }
};

TEST_P(QuantisedCache, IsTheF32CacheOfWhatItsRowsStandFor) {
  Random random(11);
  const Case cases[] = {{4, 2, 128, 128, 1, 700},
                        {1, 3, 128, 128, 3, 150},
                        {5, 1, 128, 128, 1, 131},
                        {4, 2, 128, 128, 3, 150},
                        {3, 1, 128, 128, 40, 97}};
  for (const Case& c : cases) {
    calls().compare(c, codec().format, random);
    if (HasFatalFailure()) return;
  }
}

// Keys of one codec, values of another, or of plain elements.
TEST_P(QuantisedCache, GoesWithOtherTypes) {
  Random random(12);
  const Case c{4, 2, 128, 128, 5, 300};
  const Rows rows(c, random);
  const KvEncoding plain = ElementType::f32;
  for (const KvEncoding& values : {plain, other().format}) {
    ContiguousKvCache coded(config_of(c, codec().format, values, KvLayout::head_major, c.length));
    ContiguousKvCache f32(config_of(c, plain, plain, KvLayout::head_major, c.length));
    coded.append(rows.k, rows.v);
    f32.append(rows.k, rows.v);
    dequantise(coded.view(), codec().format, values, f32.view());
    calls().compare(c, coded.view(), f32.view(), random);
    const Case half{4, 1, 128, 128, 5, 300};
    calls().compare(half, coded.view().slice_heads(1, 1), f32.view().slice_heads(1, 1), random);
  }
}

// Kernels know nothing of rotations; calls over any cache rotate queries and turn outputs back.
TEST_P(QuantisedCache, GoesRotated) {
  Random random(16);
  const Case c{3, 2, 128, 128, 3, 150};
  const Rows rows(c, random);
  const KvEncoding plain = ElementType::f32;
  const auto rotating = [&](const KvEncoding& format) {
    KvCacheConfig config = config_of(c, format, format, KvLayout::head_major, c.length);
    config.k_rotation = 128;
    config.v_rotation = 64;
    return ContiguousKvCache(config);
  };
  ContiguousKvCache coded = rotating(codec().format), f32 = rotating(plain);
  coded.append(rows.k, rows.v);
  f32.append(rows.k, rows.v);
  dequantise(coded.view(), codec().format, codec().format, f32.view());
  calls().compare(c, coded.view(), f32.view(), random);
}

// One scale for a head, one for all, and one for each dim, as other programs have them.
TEST_P(QuantisedCache, HasScalesWhereTheirStridesLead) {
  if (codec().type().scale_bytes() == 0) return;  // none outside of rows
  Random random(15);
  const Case c{2, 2, 128, 128, 2, 90};
  const Rows rows(c, random);
  const KvEncoding plain = ElementType::f32;
  ContiguousKvCache coded(config_of(c, codec().format, codec().format, KvLayout::token_major, c.length));
  ContiguousKvCache f32(config_of(c, plain, plain, KvLayout::token_major, c.length));
  coded.append(rows.k, rows.v);
  f32.append(rows.k, rows.v);
  std::vector<float> scales(2 * 128);
  for (float& x : scales) x = 0.5f + static_cast<float>(random.uniform());
  for (const KvScales& each : {KvScales{scales.data(), {0, 0}}, KvScales{scales.data(), {0, 1}},
                               KvScales{scales.data(), {0, 128}, 1}, KvScales{scales.data(), {0, 0}, 1}}) {
    KvCacheView kv = coded.view();
    kv.k_scales = kv.v_scales = each;
    for (const bool keys : {true, false})
      for (Index t = 0; t < c.length; ++t)
        for (Index head = 0; head < c.kv_heads; ++head) {
          auto* const to = detail::typed<float>(row_at(f32.view(), keys, t, head).row);
          for (Index d = 0; d < 128; ++d) {  // element by element, by its own scale
            float row[128];
            const auto* const scale = scales.data() + head * each.strides.head + d * each.dim;
            codec().rows().decode(row_at(kv, keys, t, head).row, reinterpret_cast<const std::byte*>(scale), 128, row);
            to[d] = row[d];
          }
        }
    calls().compare(c, kv, f32.view(), random);
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
        for (Index head = 0; head < kv.kv_heads; ++head) each(row_at(kv, keys, t, head));
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
  const Case c{3, 2, 128, 128, 4, 83};
  const Rows rows(c, random);
  std::vector<float> q(static_cast<std::size_t>(c.n_q * 6 * 128));
  for (float& x : q) x = random.normal();
  const ConstTensorView queries(q.data(), c.n_q, 6, 128);
  const auto unchanged = [&](auto&& cache, Index slots, Index pages) {
    cache.append(rows.k, rows.v);
    const CausalWindow window{20};
    const Result before = calls().attend(queries, cache.view(), window);
    spoil(cache.view(), slots, pages);
    EXPECT_TRUE(same_bits(before, calls().attend(queries, cache.view(), window)));
  };
  unchanged(ContiguousKvCache(config_of(c, codec().format, codec().format, KvLayout::head_major, 130)), 130, 1);
  unchanged(RingKvCache(config_of(c, codec().format, codec().format, KvLayout::token_major, 130)), 130, 1);
  PagedKvPool pool(pool_of(c, codec().format, codec().format, KvLayout::head_major, 16));
  unchanged(pool.sequence(), 16, pool.pages());
}

// A value that is not finite, in a token that some query rows see and others do not.
TEST_P(QuantisedCache, NonfiniteValuesReachThoseThatSeeThem) {
  Random random(14);
  const Case c{2, 1, 128, 128, 3, 70};
  for (const Index bad : {Index{68}, Index{69}}) {
    Rows rows(c, random);
    rows.v[static_cast<std::size_t>(bad * 128 + 7)] = std::nanf("");
    ContiguousKvCache cache(config_of(c, codec().format, codec().format, KvLayout::head_major, 70));
    cache.append(rows.k, rows.v);
    const std::vector<float> q(static_cast<std::size_t>(3 * 2 * 128), 0.25f);
    const Result result = calls().attend(ConstTensorView(q.data(), 3, 2, 128), cache.view(), Causal{});
    for (Index token = 0; token < 3; ++token)
      for (Index head = 0; head < 2; ++head)
        EXPECT_EQ(std::isnan(result.at(token, head, 7)), 67 + token >= bad) << token;
  }
}

enum class Codes : std::uint8_t { ordinary, denormal, nonfinite };
/// Bytes that nobody has encoded, of floats of 8 and 4 bits: any code, the largest and denormal ones among them. By scales that make them
/// denormal f32 numbers, or with those that are not finite, if asked for.
void put_codes(const TestedCodec& codec, const At& at, Codes codes, Random& random) {
  std::byte* const row = at.row;
  for (Index d = 0; d < codec.type().row_bytes(128); ++d) row[d] = static_cast<std::byte>(random.bits());
  if (codec.type() == Mxfp4::type) {
    const Index least = codes == Codes::denormal ? 0 : 118;
    for (Index block = 0; block < 4; ++block) row[block * 17] = static_cast<std::byte>(least + random.below(10));
    if (codes == Codes::nonfinite) row[17] = std::byte{255};
    return;
  }
  const float largest = codec.type() == Fp8E4M3::type ? 448.0f : 57344.0f;
  const float scale = codes == Codes::denormal ? 0x1p-140f : 4.0f / largest;
  std::memcpy(at.scale, &scale, sizeof scale);
  float back[128];
  codec.rows().decode(row, at.scale, 128, back);
  for (Index d = 0; d < 128; ++d)
    if (codes != Codes::nonfinite && !std::isfinite(back[d])) row[d] = row[d] & std::byte{0xbf};
}

TEST_P(QuantisedCache, HasEveryCodeOfItsFloats) {
  const KvType type = codec().type();
  if (type != Fp8E4M3::type && type != Fp8E5M2::type && type != Mxfp4::type) return;
  Random random(16);
  const Case c{2, 2, 128, 128, 3, 150};
  const Rows rows(c, random);
  const KvEncoding plain = ElementType::f32;
  ContiguousKvCache coded(config_of(c, codec().format, codec().format, KvLayout::head_major, c.length));
  ContiguousKvCache f32(config_of(c, plain, plain, KvLayout::head_major, c.length));
  coded.append(rows.k, rows.v);
  f32.append(rows.k, rows.v);
  const auto put = [&](bool keys, Index token, Codes codes) {
    for (Index head = 0; head < c.kv_heads; ++head)
      put_codes(codec(), row_at(coded.view(), keys, token, head), codes, random);
  };
  for (const Codes values : {Codes::denormal, Codes::ordinary}) {
    for (Index t = 0; t < c.length; ++t) {
      put(true, t, t % 4 == 0 ? Codes::denormal : Codes::ordinary);
      put(false, t, values);
    }
    dequantise(coded.view(), codec().format, codec().format, f32.view());
    calls().compare(c, coded.view(), f32.view(), random);
  }

  // In a token that the last of three queries sees alone.
  std::vector<float> q(static_cast<std::size_t>(c.n_q * 4 * 128));
  for (float& x : q) x = random.normal();
  const ConstTensorView queries(q.data(), c.n_q, 4, 128);
  for (const bool keys : {false, true}) {
    put(keys, c.length - 1, Codes::nonfinite);
    dequantise(coded.view(), codec().format, codec().format, f32.view());
    const Result expected = calls().attend(queries, f32.view(), Causal{});
    EXPECT_TRUE(same_bits(expected, calls().attend(queries, coded.view(), Causal{})));
    bool lost = true;
    for (Index d = 0; d < 128; ++d) {
      EXPECT_TRUE(std::isfinite(expected.at(1, 0, d))) << d;
      if (!std::isfinite(expected.at(2, 0, d))) lost = false;
    }
    EXPECT_FALSE(lost);
  }
}

INSTANTIATE_TEST_SUITE_P(Codecs, QuantisedCache, QuantisedCache::cases(), QuantisedCache::name);

}  // namespace
}  // namespace gqa::test
