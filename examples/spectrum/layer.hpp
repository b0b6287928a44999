// SPDX-License-Identifier: Apache-2.0
/// @file
/// One attention layer of a model with one number of KV heads: its caches, its calls, and what they are checked against.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "../../benchmarks/machine.hpp"
#include "../../benchmarks/thread_team.hpp"
#include "gqa/gqa.hpp"
#include "gqa/reference.hpp"
#include "inputs.hpp"
#include "models.hpp"

namespace spectrum {

using gqa::bench::HugeBuffer;
using gqa::bench::ThreadTeam;

/// What the user chose.
struct Settings {
  Index context = 8192;
  Index prefill = 0;  ///< tokens; 0: as many as the time allows
  gqa::KvEncoding kv_type = gqa::ElementType::bf16;
  gqa::Path path = gqa::Path::portable;
  int threads = 1;

  bool quantised() const { return kv_type.codec() != nullptr; }
  /// Queries have the cache's elements, or are bf16.
  gqa::ElementType query_type() const {
    return quantised() ? gqa::ElementType::bf16 : gqa::ElementType(gqa::KvType(kv_type));
  }
};

/// What is measured: caches of any of these types.
using Attention =
    gqa::GroupedQueryAttention<gqa::dynamic, gqa::dynamic, gqa::dynamic, gqa::dynamic,
                               gqa::CacheOf<float, gqa::bf16, gqa::f16, gqa::Int8, gqa::Int4, gqa::Q8_0, gqa::Q4_0>>;

/// Query rows and where their results go.
struct Rows {
  std::vector<std::byte> q;
  std::vector<float> out;
  gqa::ConstTensorView q_view;
  gqa::TensorView out_view;

  Rows(const Inputs& inputs, const Model& model, Index first, Index tokens, gqa::ElementType type)
      : q(static_cast<std::size_t>(tokens * model.query_heads * model.head_dim * gqa::element_bytes(type))),
        out(static_cast<std::size_t>(tokens * model.query_heads * model.head_dim)) {
    inputs.queries(model.query_heads, first, tokens, type, q.data());
    q_view.data = q.data();
    q_view.type = type;
    q_view.tokens = tokens;
    q_view.heads = model.query_heads;
    q_view.dim = model.head_dim;
    q_view.strides = {model.query_heads * model.head_dim, model.head_dim, 1};
    out_view = gqa::TensorView(out.data(), tokens, model.query_heads, model.head_dim);
  }
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;
};

/// Head-major K and V of one layer, `copies` times, so that each decode step finds the next copy in memory and not in a cache of
/// the processor: in a model, the other layers' caches lie between two uses of one.
class Layer {
 public:
  /// @param all_heads K and V of all query heads (the MHA cache); KV head j is its head j · G
  /// @param buffer    where the copies go; grown if need be
  Layer(const Model& model, const Settings& settings, Index kv_heads, const HugeBuffer& all_heads, HugeBuffer& buffer,
        ThreadTeam& team)
      : model_(model), settings_(settings), kv_heads_(kv_heads), head_bytes_(head_bytes(model, settings)) {
    const std::size_t half = head_bytes_ * static_cast<std::size_t>(kv_heads);
    const std::size_t stride = (2 * half + 4095) / 4096 * 4096;
    const std::size_t copies = (gqa::bench::out_of_cache_bytes() + stride - 1) / stride;
    if (buffer.size() < copies * stride) {
      buffer = HugeBuffer();
      buffer = HugeBuffer(copies * stride);
    }
    const std::size_t group = static_cast<std::size_t>(model.query_heads / kv_heads);
    const std::size_t all = head_bytes_ * static_cast<std::size_t>(model.query_heads);
    for (std::size_t copy = 0; copy < copies; ++copy) {
      std::byte* const k = buffer.data() + copy * stride;
      for (std::size_t j = 0; j < static_cast<std::size_t>(kv_heads); ++j) {
        std::memcpy(k + j * head_bytes_, all_heads.data() + j * group * head_bytes_, head_bytes_);
        std::memcpy(k + half + j * head_bytes_, all_heads.data() + all + j * group * head_bytes_, head_bytes_);
      }
      views_.push_back(view(k, k + half, kv_heads));
    }
    options_.path = settings.path;
    options_.executor = team;
  }

  /// Bytes of K, or of V, of one head, as it is kept.
  static std::size_t head_bytes(const Model& model, const Settings& settings) {
    return static_cast<std::size_t>(head_layout(model, settings).bytes());
  }

  Index kv_heads() const { return kv_heads_; }
  Index bytes_per_token() const {
    const gqa::KvType type = settings_.kv_type;
    return 2 * kv_heads_ * (type.row_bytes(model_.head_dim) + type.scale_bytes());
  }

  /// One decode step on the next copy.
  void decode(const Rows& rows) {
    attention_(rows.q_view, views_[at_], rows.out_view, options_);
    at_ = (at_ + 1) % views_.size();
  }
  /// The first rows.q_view.tokens tokens of the sequence at once.
  void prefill(const Rows& rows) {
    attention_(rows.q_view, first(views_[0], rows.q_view.tokens), rows.out_view, options_);
  }

  /// True if the rows' results equal, bit for bit, those of multi-head attention over a cache in which every KV head is repeated
  /// G times. With G = 1, where nothing is to be repeated: those of calls for one head after the other.
  /// @param repeated room for that cache
  bool equals_repeated(const Rows& rows, HugeBuffer& repeated) const {
    std::vector<float> out(rows.out.size());
    const gqa::TensorView out_view(out.data(), rows.q_view.tokens, model_.query_heads, model_.head_dim);
    const Index tokens = rows.q_view.tokens == 1 ? settings_.context : rows.q_view.tokens;
    if (kv_heads_ == model_.query_heads) {
      for (Index h = 0; h < kv_heads_; ++h)
        attention_(rows.q_view.slice_heads(h, 1), first(views_[0], tokens).slice_heads(h, 1),
                   out_view.slice_heads(h, 1), options_);
    } else {
      const std::size_t half = head_bytes_ * static_cast<std::size_t>(model_.query_heads);
      if (repeated.size() < 2 * half) {
        repeated = HugeBuffer();
        repeated = HugeBuffer(2 * half);
      }
      const auto* const k = static_cast<const std::byte*>(views_[0].k);
      const auto* const v = static_cast<const std::byte*>(views_[0].v);
      for (Index h = 0; h < model_.query_heads; ++h) {
        const std::size_t from = static_cast<std::size_t>(h / (model_.query_heads / kv_heads_)) * head_bytes_;
        const std::size_t to = static_cast<std::size_t>(h) * head_bytes_;
        std::memcpy(repeated.data() + to, k + from, head_bytes_);
        std::memcpy(repeated.data() + half + to, v + from, head_bytes_);
      }
      attention_(rows.q_view, first(view(repeated.data(), repeated.data() + half, model_.query_heads), tokens),
                 out_view, options_);
    }
    for (std::size_t i = 0; i < out.size(); ++i)
      if (out[i] != rows.out[i]) return false;  // a NaN, which these inputs must not give, would show here too
    return true;
  }

  /// The largest distance of a result from the definition in double precision, over what the cache's rows stand for.
  /// @param tokens of the rows to look at
  double max_error(const Rows& rows, const std::vector<Index>& tokens, ThreadTeam& team) const {
    return largest_distance(rows, tokens, team, [&](Index kv_head, Index length, std::vector<float>& room) {
      const gqa::KvCacheView stored = first(views_[0], length).slice_heads(kv_head, 1);
      return settings_.quantised() ? decoded(stored, room) : stored;
    });
  }
  /// The same over the keys and values that were stored, before they were.
  double max_error_of_values(const Rows& rows, const Inputs& inputs, const std::vector<Index>& tokens,
                             ThreadTeam& team) const {
    return largest_distance(rows, tokens, team, [&](Index kv_head, Index length, std::vector<float>& room) {
      const Index head = kv_head * (model_.query_heads / kv_heads_);
      const gqa::KvCacheView floats = in_floats(room, length);
      inputs.keys(head, length, gqa::ElementType::f32, reinterpret_cast<std::byte*>(room.data()));
      inputs.values(head, length, gqa::ElementType::f32,
                    reinterpret_cast<std::byte*>(room.data() + length * model_.head_dim));
      return floats;
    });
  }

 private:
  static HeadLayout head_layout(const Model& model, const Settings& settings) {
    return {settings.kv_type, model.head_dim, settings.context};
  }
  gqa::KvCacheView view(const std::byte* k, const std::byte* v, Index kv_heads) const {
    const HeadLayout layout = head_layout(model_, settings_);
    gqa::KvCacheView view;
    view.k = k;
    view.v = v;
    view.k_type = view.v_type = layout.type;
    view.length = settings_.context;
    view.kv_heads = kv_heads;
    view.head_dim = view.value_dim = model_.head_dim;
    view.k_strides =
        view.v_strides = {.token = layout.type.row_stride(model_.head_dim),
                          .head = layout.bytes() / layout.type.block_bytes() * layout.type.block_elements()};
    if (const Index scale = layout.type.scale_bytes(); scale > 0) {
      const gqa::KvStrides strides{.token = 1, .head = layout.bytes() / scale};
      view.k_scales = {layout.scales(k), strides};
      view.v_scales = {layout.scales(v), strides};
    }
    return view;
  }
  /// A view of one head with room for its keys and values.
  gqa::KvCacheView in_floats(std::vector<float>& room, Index length) const {
    room.resize(static_cast<std::size_t>(2 * length * model_.head_dim));
    return gqa::KvCacheView::contiguous(static_cast<const float*>(room.data()),
                                        static_cast<const float*>(room.data() + length * model_.head_dim),
                                        {.length = length, .kv_heads = 1, .head_dim = model_.head_dim});
  }
  /// What the rows of a view of one head stand for.
  gqa::KvCacheView decoded(const gqa::KvCacheView& head, std::vector<float>& room) const {
    const gqa::KvCacheView floats = in_floats(room, head.length);
    const Index row = head.k_type.row_bytes(model_.head_dim), scale = head.k_type.scale_bytes();
    float* to = room.data();
    for (const auto& [rows, scales] : {std::pair{head.k, head.k_scales.data}, std::pair{head.v, head.v_scales.data}})
      for (Index t = 0; t < head.length; ++t, to += model_.head_dim)
        settings_.kv_type.codec()->decode(
            static_cast<const std::byte*>(rows) + t * row,
            scales == nullptr ? nullptr : static_cast<const std::byte*>(scales) + t * scale, model_.head_dim, to);
    return floats;
  }
  /// @param keys_and_values called with a KV head, the cache's length and room for floats; gives a view of that head
  template <class KeysAndValues>
  double largest_distance(const Rows& rows, const std::vector<Index>& tokens, ThreadTeam& team,
                          const KeysAndValues& keys_and_values) const {
    const Index group = model_.query_heads / kv_heads_;
    const Index length = rows.q_view.tokens == 1 ? settings_.context : rows.q_view.tokens;
    const auto take_larger = [](double& most, double distance) {
      if (std::isnan(distance) || distance > most) most = distance;  // once NaN, NaN to the end
    };
    std::vector<double> worst(static_cast<std::size_t>(team.size()), 0.0);
    team.run([&](int member) {
      std::vector<float> room;
      Index of_room = -1;
      gqa::KvCacheView kv;
      const Index share = (model_.query_heads + team.size() - 1) / team.size();  // neighbours have a KV head in common
      for (Index h = member * share; h < std::min((member + 1) * share, model_.query_heads); ++h) {
        if (h / group != of_room) kv = keys_and_values(of_room = h / group, length, room);
        for (const Index token : tokens) {
          const Index position = length - rows.q_view.tokens + token;
          const gqa::ReferenceResult reference =
              gqa::reference_attention(rows.q_view.slice(token, 1).slice_heads(h, 1), kv, gqa::Causal{}, std::nullopt,
                                       std::span<const Index>(&position, 1));
          const float* const out = rows.out.data() + (token * model_.query_heads + h) * model_.head_dim;
          for (Index d = 0; d < model_.head_dim; ++d)
            take_larger(worst[static_cast<std::size_t>(member)],
                        std::abs(static_cast<double>(out[d]) - reference.out(0, d)));
        }
      }
    });
    double most = 0;
    for (const double each : worst) take_larger(most, each);
    return most;
  }

  /// The same cache when it held `tokens` tokens.
  static gqa::KvCacheView first(gqa::KvCacheView view, Index tokens) {
    view.length = tokens;
    return view;
  }

  Model model_;
  Settings settings_;
  Index kv_heads_;
  std::size_t head_bytes_;
  std::vector<gqa::KvCacheView> views_;
  std::size_t at_ = 0;
  gqa::Options options_;
  Attention attention_;
};

}  // namespace spectrum
