// SPDX-License-Identifier: Apache-2.0
// How the keys and values of a drawn call are stored: codecs, the scales of those that have them outside of rows, parts of sequences; and the
// rows themselves, which every storage has copies of.
#pragma once

#include <cstring>

#include "caches.hpp"
#include "every_codec.hpp"
#include "kv_rows.hpp"
#include "random_draws.hpp"

namespace gqa::test {

/// A codec of gqa/codec/list.inl, plain elements among them.
struct AnyCodec {
  KvType type;
  void (*encode)(const std::byte* from, Index step, Index dim, std::byte* row, std::byte* scale);
  void (*decode)(const std::byte* row, const std::byte* scale, Index dim, float* to);
};

template <int... Id>
const AnyCodec& codec_of(Index id, std::integer_sequence<int, Id...>) {
  static constexpr AnyCodec all[] = {
      {CodecWithId<Id>::type::type,
       [](const std::byte* from, Index step, Index dim, std::byte* row, std::byte* scale) {
         CodecWithId<Id>::type::template encode<float>(from, step, dim, row, scale);
       },
       [](const std::byte* row, const std::byte* scale, Index dim, float* to) {
         CodecWithId<Id>::type::decode(row, scale, dim, to);
       }}...};
  return all[id];
}
inline const AnyCodec& codec_of(Index id) {
  return codec_of(id, std::make_integer_sequence<int, detail::CodecList::size>());
}

/// Which rows have a scale in common, of codecs with scales outside of rows.
enum class Sharing : std::uint8_t { none, heads, all };

/// How keys, or values, of a part of a sequence are stored.
struct DrawnFormat {
  KvType type = ElementType::f32;
  Sharing sharing = Sharing::none;
  bool scale_a_dim = false;  ///< each dim has a scale of its own
  bool any_bytes = false;    ///< integers that no encoder writes, and something in what pads a row

  void draw_scales(Draws& draws) {
    if (type.scale_bytes() == 0) return;
    sharing = draws.seldom("scales in common", 3) ? (draws.flag("one scale for all") ? Sharing::all : Sharing::heads)
                                                  : Sharing::none;
    scale_a_dim = draws.seldom("a scale a dim", 5);
    any_bytes = draws.seldom("any bytes", 4) && (type == Int8::type || type == Int4::type);
  }
  Index scales_a_row(Index dim) const { return type.scale_bytes() == 0 ? 0 : scale_a_dim ? dim : 1; }
};
/// Keys and values of a part; all parts but a sequence's last end where `end` says.
struct DrawnPart {
  DrawnFormat k, v;
  Index end = 0;
};

/// The rows of a sequence's keys or values as a part stores them.
class CodedRows {
 public:
  /// Encodes rows [begin, end); they become what they are decoded to. `common`: what scales in common are made of, that of the first row of all.
  CodedRows(const DrawnFormat& format, Numbers& rows, Index begin, Index end, float& common)
      : format_(format), begin_(begin), heads_(rows.heads), dim_(rows.dim) {
    const auto count = static_cast<std::size_t>(std::max<Index>(end - begin, 0) * heads_);
    rows_.resize(count * static_cast<std::size_t>(row_bytes()));
    scales_.resize(count * static_cast<std::size_t>(scales()));
    for (Index t = begin; t < end; ++t)
      for (Index h = 0; h < heads_; ++h) code(rows, t, h, common);
  }

  /// Writes rows [from, …) to where a view with them has room.
  void write(const KvCacheView& view, bool keys, Index from) const {
    for (Index t = std::max(from, begin_); t < view.length; ++t)
      for (Index h = 0; h < heads_; ++h) {
        const At at = row_at(view, keys, t, h);
        const std::size_t row = index(t, h);
        std::memcpy(at.row, rows_.data() + row * static_cast<std::size_t>(row_bytes()),
                    static_cast<std::size_t>(row_bytes()));
        const Index step = (keys ? view.k_scales : view.v_scales).dim;
        for (Index i = 0; i < scales(); ++i)
          std::memcpy(at.scale + i * step * Index{sizeof(float)},
                      scales_.data() + row * static_cast<std::size_t>(scales()) + i, sizeof(float));
      }
  }

 private:
  Index row_bytes() const { return format_.type.row_bytes(dim_); }
  Index scales() const { return format_.scales_a_row(dim_); }
  std::size_t index(Index t, Index h) const { return static_cast<std::size_t>((t - begin_) * heads_ + h); }

  void code(Numbers& rows, Index t, Index h, float& common) {
    const AnyCodec& codec = codec_of(format_.type.id());
    float* const x = &rows.at(t, h, 0);
    std::byte* const row = rows_.data() + index(t, h) * static_cast<std::size_t>(row_bytes());
    float scale = 1.0f;
    codec.encode(reinterpret_cast<const std::byte*>(x), 1, dim_, row, reinterpret_cast<std::byte*>(&scale));
    if (format_.any_bytes) {
      Random random(index(t, h) + 1);
      for (Index i = 0; i < row_bytes(); ++i) row[i] = static_cast<std::byte>(random.below(256));
    }
    if (format_.sharing != Sharing::none) {
      if (common == 0.0f) common = scale;
      scale = common * (format_.sharing == Sharing::heads ? 1.0f + 0.25f * static_cast<float>(h) : 1.0f);
    }
    if (!format_.scale_a_dim || scales() == 0) {
      codec.decode(row, reinterpret_cast<const std::byte*>(&scale), dim_, x);
      if (scales() != 0) scales_[index(t, h)] = scale;
      return;
    }
    const float one = 1.0f;
    codec.decode(row, reinterpret_cast<const std::byte*>(&one), dim_, x);
    for (Index d = 0; d < dim_; ++d) {
      const float of_dim = scale * (1.0f + 0.125f * static_cast<float>(d % 5));
      scales_[index(t, h) * static_cast<std::size_t>(dim_) + static_cast<std::size_t>(d)] = of_dim;
      x[d] *= of_dim;
    }
  }

  DrawnFormat format_;
  Index begin_, heads_, dim_;
  std::vector<std::byte> rows_;
  std::vector<float> scales_;
};

/// A plane of scales for all rows of a view's keys or values; NaN, until they are written.
class ScalePlane {
 public:
  ScalePlane(const DrawnFormat& format, const KvCacheView& view, Index dim, CacheLayout layout) {
    const Index scales = format.scales_a_row(dim);
    if (scales == 0) return;
    const Index pages = view.storage == Storage::paged ? view.pool_pages : 1;
    const Index slots = view.storage == Storage::paged  ? view.page_size
                        : view.storage == Storage::ring ? view.capacity
                                                        : std::max<Index>(view.length, 1);
    const Index gap = layout == CacheLayout::padded ? 3 : 0;
    const Index heads = view.kv_heads;
    dim_step_ = format.scale_a_dim ? 1 + gap : 0;
    const Index row = scales * (1 + gap);
    KvStrides strides = layout == CacheLayout::head_major
                            ? KvStrides::head_major(heads, slots, row)
                            : KvStrides{heads * row + gap, row, slots * (heads * row + gap)};
    if (format.sharing != Sharing::none) strides = {0, format.sharing == Sharing::all ? 0 : row, 0};
    const Index farthest = (pages - 1) * strides.page + (slots - 1) * strides.token + (heads - 1) * strides.head;
    memory_.assign(static_cast<std::size_t>(farthest + (scales - 1) * dim_step_ + 1), std::nanf(""));
    if (layout == CacheLayout::reversed) {
      first_ = farthest;
      strides = {-strides.token, -strides.head, -strides.page};
    }
    strides_ = strides;
  }
  KvScales scales() const {
    if (memory_.empty()) return {};
    return {memory_.data() + first_, strides_, dim_step_};
  }

 private:
  std::vector<float> memory_;
  KvStrides strides_{0, 0, 0};
  Index first_ = 0;
  Index dim_step_ = 0;
};

}  // namespace gqa::test
