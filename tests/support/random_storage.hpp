// SPDX-License-Identifier: Apache-2.0
// The caches of a drawn call, in a storage: parts of sequences each in their own.
#pragma once

#include <memory>

#include "problem.hpp"
#include "random_formats.hpp"

namespace gqa::test {

/// A sequence's keys and values, and their rows as each part stores them.
struct DrawnRows {
  std::vector<CodedRows> k, v;
};

class DrawnStorage {
 public:
  /// Each of plain elements, and in the plainest storage.
  DrawnStorage(const std::vector<const LogicalCache*>& sequences, const std::vector<Types>& types) {
    for (std::size_t s = 0; s < sequences.size(); ++s) {
      stored_.push_back(std::make_unique<StoredCaches>(std::vector{sequences[s]}, types[s].k, types[s].v, Place{}));
      ends_.push_back(stored_.back()->view());
    }
  }
  /// Sequences in parts, by turns in two storages. `first_of_values`: as DrawnCall's.
  DrawnStorage(const std::vector<const LogicalCache*>& sequences, const std::vector<DrawnRows>& rows,
               std::span<const DrawnPart> parts, const Place& place, const Place& other, Index first_of_values)
      : views_(sequences.size()) {
    Index begin = 0;
    for (std::size_t i = 0; i < parts.size(); begin = parts[i++].end)
      add_part(sequences, rows, parts, i, begin, i % 2 == 0 ? place : other, first_of_values);
    for (auto& views : views_) {
      ends_.push_back(views.back());
      views.pop_back();
      if (views.empty()) continue;
      ends_.back().earlier = views.data();
      ends_.back().earlier_count = static_cast<Index>(views.size());
    }
  }
  DrawnStorage(DrawnStorage&&) = default;
  DrawnStorage(const DrawnStorage&) = delete;
  DrawnStorage& operator=(const DrawnStorage&) = delete;

  const KvCacheView& view(std::size_t s) const { return ends_[s]; }
  KvCacheView& mutable_view(std::size_t s) { return ends_[s]; }
  const StoredCaches::Planes& planes(std::size_t s) const { return stored_[0]->planes(s); }

  /// Keys and values are rotated, in all parts.
  void rotate(Index k, Index v) {
    const auto rotated = [&](KvCacheView& view) {
      view.k_rotation = k;
      view.v_rotation = v;
    };
    for (KvCacheView& view : ends_) rotated(view);
    for (auto& views : views_)
      for (KvCacheView& view : views) rotated(view);
  }

 private:
  static Numbers first_rows(const Numbers& all, Index count) {
    Numbers some(count, all.heads, all.dim);
    std::copy_n(all.values.begin(), some.values.size(), some.values.begin());
    return some;
  }

  void add_part(const std::vector<const LogicalCache*>& sequences, const std::vector<DrawnRows>& rows,
                std::span<const DrawnPart> parts, std::size_t i, Index begin, Place place, Index first_of_values) {
    const DrawnPart& part = parts[i];
    std::vector<LogicalCache> caches;
    std::vector<std::size_t> which;
    for (std::size_t s = 0; s < sequences.size(); ++s) {
      const Index length = sequences[s]->length();
      if (i > 0 && length <= begin) continue;
      const Index end = i + 1 < parts.size() ? std::min(part.end, length) : length;
      caches.push_back({first_rows(sequences[s]->k, end), first_rows(sequences[s]->v, end)});
      which.push_back(s);
    }
    if (caches.empty()) return;
    std::vector<const LogicalCache*> of_part;
    for (const LogicalCache& cache : caches) of_part.push_back(&cache);
    place.keep_from = std::max(place.keep_from, begin);
    const StoredCaches& stored =
        *stored_.emplace_back(std::make_unique<StoredCaches>(of_part, part.k.type, part.v.type, place));
    for (std::size_t c = 0; c < which.size(); ++c) {
      KvCacheView view = stored.view(c);
      add_scales(view, part, place, c);
      if (first_of_values >= 0) {
        view.v = static_cast<const std::byte*>(view.k) + part.k.type.stride_bytes(first_of_values);
        view.v_strides = view.k_strides;
        view.v_scales = view.k_scales;
        if (view.v_scales.data != nullptr)
          view.v_scales.data = static_cast<const float*>(view.v_scales.data) + first_of_values * view.v_scales.dim;
      }
      const Index from = std::max(place.keep_from, view.first_position_of_part());
      if (!part.k.type.is_element()) rows[which[c]].k[i].write(view, true, from);
      if (!part.v.type.is_element() && first_of_values < 0) rows[which[c]].v[i].write(view, false, from);
      if (begin > 0 && view.storage == Storage::contiguous) begin_at(view, begin);
      views_[which[c]].push_back(view);
    }
  }
  /// Each sequence's own, or the pool's.
  void add_scales(KvCacheView& view, const DrawnPart& part, const Place& place, std::size_t c) {
    if (c == 0 || place.storage != Storage::paged) {
      scales_.push_back(std::make_unique<ScalePlane>(part.k, view, view.head_dim, place.layout));
      scales_.push_back(std::make_unique<ScalePlane>(part.v, view, view.value_dim, place.layout));
    }
    view.k_scales = scales_.end()[-2]->scales();
    view.v_scales = scales_.end()[-1]->scales();
  }
  /// Leaves out what is before.
  static void begin_at(KvCacheView& view, Index begin) {
    const auto moved = [&](const void* data, Index bytes) { return static_cast<const std::byte*>(data) + bytes; };
    view.k = moved(view.k, view.k_type.stride_bytes(begin * view.k_strides.token));
    view.v = moved(view.v, view.v_type.stride_bytes(begin * view.v_strides.token));
    for (KvScales* const scales : {&view.k_scales, &view.v_scales})
      if (scales->data != nullptr)
        scales->data = moved(scales->data, begin * scales->strides.token * Index{sizeof(float)});
    view.oldest = begin;
  }

  std::vector<std::unique_ptr<StoredCaches>> stored_;  // one a part
  std::vector<std::unique_ptr<ScalePlane>> scales_;
  std::vector<std::vector<KvCacheView>> views_;  // a sequence's earlier parts
  std::vector<KvCacheView> ends_;
};

}  // namespace gqa::test
