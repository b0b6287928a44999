// SPDX-License-Identifier: Apache-2.0
// Sequences that are stored in parts of several types, and the f32 cache of what their rows stand for.
#pragma once

#include <memory>
#include <vector>

#include "executors.hpp"
#include "quantised.hpp"

namespace gqa::test {

inline constexpr Index kPartDim = 64;
using PartsCache = CacheOf<float, bf16, Q8_0, Fp8E4M3>;
using PartsAttention = GroupedQueryAttention<dynamic, dynamic, kPartDim, kPartDim, PartsCache>;

inline const std::vector<KvEncoding>& part_formats() {
  static const std::vector<KvEncoding> all{ElementType::f32, ElementType::bf16, Q8_0{}, Fp8E4M3{}};
  return all;
}

/// A row as the format stores it.
inline StoredRow encode_any(const KvEncoding& format, const std::vector<float>& row) {
  const KvType type = format;
  const auto dim = static_cast<Index>(row.size());
  StoredRow stored{std::vector<std::byte>(static_cast<std::size_t>(type.row_bytes(dim)))};
  const detail::RowEncoder encode = format.codec() != nullptr
                                        ? format.codec()->encoder(detail::RowSet::portable, ElementType::f32)
                                        : detail::element_encoder(type, ElementType::f32);
  encode(reinterpret_cast<const std::byte*>(row.data()), 1, dim, stored.row.data(), stored.scale.data());
  return stored;
}

/// A sequence in parts that are drawn at random, each in memory of its own, with garbage where other parts' positions would be.
class DrawnParts {
 public:
  DrawnParts(const Case& c, const std::vector<KvEncoding>& formats, Random& random)
      : case_(c), f32_(config_of(c, ElementType::f32, ElementType::f32, KvLayout::head_major, c.length)) {
    const Rows rows(c, random);
    f32_.append(rows.k, rows.v);
    const Index blocks = (c.length - 1) / 64;
    std::vector<Index> ends;
    for (Index wanted = random.below(4); wanted > 0 && blocks > 0; --wanted)
      ends.push_back(64 * (1 + random.below(blocks)));
    std::sort(ends.begin(), ends.end());
    ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
    ends.push_back(c.length);
    Index begin = 0;
    for (const Index end : ends) {
      const auto format = [&]() -> const KvEncoding& {
        return formats[static_cast<std::size_t>(random.below(static_cast<Index>(formats.size())))];
      };
      add(rows, begin, end, format(), format(), random);
      begin = end;
    }
    view_ = parts_.back();
    view_.earlier = parts_.data();
    view_.earlier_count = static_cast<Index>(parts_.size()) - 1;
  }

  const KvCacheView& view() const { return view_; }
  KvCacheView f32() const { return f32_.view(); }
  const std::vector<KvCacheView>& parts() const { return parts_; }

 private:
  void add(const Rows& rows, Index begin, Index end, const KvEncoding& k, const KvEncoding& v, Random& random) {
    const ConstTensorView keys(rows.k.data(), case_.length, case_.kv_heads, case_.head_dim);
    const ConstTensorView values(rows.v.data(), case_.length, case_.kv_heads, case_.value_dim);
    const KvLayout layout = random.below(2) == 0 ? KvLayout::head_major : KvLayout::token_major;
    const auto filled = [&](auto& cache) {
      cache.append(keys.slice(0, end), values.slice(0, end));
      return cache.view();
    };
    KvCacheView part;
    switch (random.below(3)) {
      case 0: {
        contiguous_.push_back(std::make_unique<ContiguousKvCache>(config_of(case_, k, v, layout, end + 2)));
        part = filled(*contiguous_.back());
        part.oldest = random.below(begin + 1);
        const auto behind = [&](const void* rows_of, KvType type, const KvStrides& strides) -> const void* {
          return static_cast<const std::byte*>(rows_of) + type.stride_bytes(part.oldest * strides.token);
        };
        part.k = behind(part.k, part.k_type, part.k_strides);
        part.v = behind(part.v, part.v_type, part.v_strides);
        const auto scales = [&](KvScales& of, KvType type) {
          if (of.data != nullptr)
            of.data = static_cast<const std::byte*>(of.data) + part.oldest * of.strides.token * type.scale_bytes();
        };
        scales(part.k_scales, part.k_type);
        scales(part.v_scales, part.v_type);
        break;
      }
      case 1:
        rings_.push_back(std::make_unique<RingKvCache>(config_of(case_, k, v, layout, end - begin + random.below(70))));
        part = filled(*rings_.back());
        break;
      default:
        Case longer = case_;
        longer.length = end;
        pools_.push_back(std::make_unique<PagedKvPool>(pool_of(longer, k, v, layout, random.below(2) == 0 ? 16 : 50)));
        PagedSequence first = pools_.back()->sequence();  // so that pages are out of order
        first.append(keys.slice(0, 3), values.slice(0, 3));
        sequences_.push_back(pools_.back()->sequence());
        sequences_.back().append(keys.slice(0, end / 2), values.slice(0, end / 2));
        first.clear();
        sequences_.back().append(keys.slice(end / 2, end - end / 2), values.slice(end / 2, end - end / 2));
        part = sequences_.back().view();
    }
    for (const bool of_keys : {true, false})
      for (Index head = 0; head < case_.kv_heads; ++head) {
        const Index dim = of_keys ? case_.head_dim : case_.value_dim;
        const KvType type = of_keys ? part.k_type : part.v_type;
        for (Index t = part.first_position(); t < end; ++t) {
          const At at = row_at(part, of_keys, t, head);
          if (t >= begin) {
            decode(of_keys ? k : v, at, dim, detail::typed<float>(row_at(f32_.view(), of_keys, t, head).row));
            continue;
          }
          std::memset(at.row, 0xff, static_cast<std::size_t>(type.row_bytes(dim)));
          if (at.scale != nullptr) std::memset(at.scale, 0xff, static_cast<std::size_t>(type.scale_bytes()));
        }
      }
    parts_.push_back(part);
  }

  Case case_;
  ContiguousKvCache f32_;
  std::vector<std::unique_ptr<ContiguousKvCache>> contiguous_;
  std::vector<std::unique_ptr<RingKvCache>> rings_;
  std::vector<std::unique_ptr<PagedKvPool>> pools_;
  std::vector<PagedSequence> sequences_;
  std::vector<KvCacheView> parts_;
  KvCacheView view_;
};

}  // namespace gqa::test
