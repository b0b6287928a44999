// SPDX-License-Identifier: Apache-2.0
// What attention over a cache of integers with one scale a row is, bit for bit, in plain code: no blocks of queries, no vectors, no threads.
// Keys or values of other codecs may stand beside them: they are taken from an f32 cache that holds what they stand for.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "gqa/codec.hpp"
#include "kv_rows.hpp"
#include "problem.hpp"

namespace gqa::test {

/// Whether keys, or values, are computed with as integers where products are as stored.
inline bool integers(const KvCacheView& kv, bool keys) {
  const KvType type = keys ? kv.k_type : kv.v_type;
  return (type == Int8::type || type == Int4::type) && (keys ? kv.k_scales : kv.v_scales).dim == 0;
}

class IntegerModel {
 public:
  /// f32: the same tokens, as floats.
  IntegerModel(const KvCacheView& kv, const KvCacheView& f32) : kv_(kv), f32_(f32) {}

  /// Of f32 queries, with the usual scale.
  template <class V>
  Result attend(const ConstTensorView& q, const V& variant) const {
    Result result{q.tokens, q.heads, kv_.value_dim, {}, {}};
    for (Index token = 0; token < q.tokens; ++token) {
      PositionRange ranges[detail::kMaxRanges];
      const Index position = kv_.length - q.tokens + token;
      detail::get_ranges(variant, QueryContext{position, token, 0}, kv_.length, ranges);
      std::vector<bool> visible(static_cast<std::size_t>(kv_.length));
      for (int i = 0; i < detail::ranges_of<V>; ++i)
        for (Index t = ranges[i].begin; t < ranges[i].end; ++t) visible[static_cast<std::size_t>(t)] = true;
      for (Index head = 0; head < q.heads; ++head) {
        const auto* const row = static_cast<const float*>(q.data) + token * q.strides.token + head * q.strides.head;
        add_row(query(row), head / (q.heads / kv_.kv_heads), visible, result);
      }
    }
    return result;
  }

 private:
  struct Integers {
    std::vector<std::int64_t> n;
    float scale;
  };
  struct State {
    float m = -std::numeric_limits<float>::infinity();
    float l = 0.0f;
    std::vector<float> o;
  };

  static Integers rounded(const std::vector<float>& x, int most) {
    Integers row{std::vector<std::int64_t>(x.size()), 0.0f};
    float largest = 0.0f;
    for (const float each : x) {
      if (!std::isfinite(each)) return {row.n, std::nanf("")};
      largest = std::max(largest, std::fabs(each));
    }
    if (largest < 0x1p-100f) return row;
    const float factor = static_cast<float>(most) / largest;
    for (std::size_t i = 0; i < x.size(); ++i)
      row.n[i] = static_cast<std::int64_t>(std::fma(x[i], factor, 0x1.8p23f) - 0x1.8p23f);
    row.scale = largest / static_cast<float>(most);
    return row;
  }

  std::vector<float> query(const float* q) const {
    const float factor = 1.0f / std::sqrt(static_cast<float>(kv_.head_dim)) * detail::kLog2E;
    std::vector<float> x(static_cast<std::size_t>(kv_.head_dim));
    for (std::size_t d = 0; d < x.size(); ++d) x[d] = q[d] * factor;
    return x;
  }
  /// A row's integers, or what it stands for.
  std::vector<float> row_of(bool keys, Index t, Index head) const {
    std::vector<float> row(static_cast<std::size_t>(keys ? kv_.head_dim : kv_.value_dim));
    const auto dim = static_cast<Index>(row.size());
    const float one = 1.0f;
    const auto* const scale = reinterpret_cast<const std::byte*>(&one);
    const KvType type = keys ? kv_.k_type : kv_.v_type;
    if (!integers(kv_, keys)) std::memcpy(row.data(), row_at(f32_, keys, t, head).row, row.size() * sizeof(float));
    else if (type == Int8::type) Int8::decode(row_at(kv_, keys, t, head).row, scale, dim, row.data());
    else Int4::decode(row_at(kv_, keys, t, head).row, scale, dim, row.data());
    return row;
  }
  float scale_of(bool keys, Index t, Index head) const {
    float scale;
    std::memcpy(&scale, row_at(kv_, keys, t, head).scale, sizeof scale);
    return scale;
  }

  static float exp2(float x) {
    if (x < -126.0f) return 0.0f;
    constexpr float magic = 0x1.8p23f + 127.0f;
    const float t = x + magic;
    const float r = x - (t - magic);
    float p = 0x1.41fbcap-13f;
    for (const float c : {0x1.5f3e5ep-10f, 0x1.3b2d4cp-7f, 0x1.c6aee8p-5f, 0x1.ebfbdcp-3f, 0x1.62e430p-1f, 1.0f})
      p = std::fma(p, r, c);
    return p * std::bit_cast<float>(std::bit_cast<std::uint32_t>(t) << 23);
  }
  static float base_of(float m) { return std::isinf(m) ? 0.0f : m; }
  /// 16 lanes: i and i + 8, then i + 4, i + 2, i + 1.
  static float tree(float (&lane)[16]) {
    for (int half = 8; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) lane[i] = lane[i] + lane[i + half];
    return lane[0];
  }

  float score(const std::vector<float>& x, const Integers& q, Index t, Index head) const {
    const std::vector<float> k = row_of(true, t, head);
    if (!integers(kv_, true)) {
      float lane[16] = {};
      for (std::size_t d = 0; d < k.size(); ++d) lane[d % 16] = std::fma(x[d], k[d], lane[d % 16]);
      return tree(lane);
    }
    std::int64_t sum = 0;
    for (std::size_t d = 0; d < k.size(); ++d) sum += q.n[d] * static_cast<std::int64_t>(k[d]);
    EXPECT_LT(std::abs(sum), std::int64_t{1} << 31);
    return static_cast<float>(sum) * (q.scale * scale_of(true, t, head));
  }

  /// o ← alpha · o + Σ weights · values, over tokens from `begin` on that are visible.
  void add_values(const float (&w)[64], const std::vector<bool>& visible, Index begin, Index head, float alpha,
                  std::vector<float>& o) const {
    const Index end = std::min(begin + 64, kv_.length);
    const auto seen = [&](Index t) { return visible[static_cast<std::size_t>(t)]; };
    if (!integers(kv_, false)) {
      for (float& each : o) each *= alpha;
      for (Index t = begin; t < end; ++t) {
        if (!seen(t)) continue;
        const std::vector<float> v = row_of(false, t, head);
        for (std::size_t d = 0; d < o.size(); ++d) o[d] = std::fma(w[t - begin], v[d], o[d]);
      }
      return;
    }
    std::vector<float> x(64);
    for (Index t = begin; t < end; ++t)
      if (seen(t)) x[static_cast<std::size_t>(t - begin)] = w[t - begin] * scale_of(false, t, head);
    const Integers p = rounded(x, 32639);
    std::vector<std::int64_t> sums(o.size());
    for (Index t = begin; t < end; ++t) {
      if (!seen(t)) continue;
      const std::vector<float> v = row_of(false, t, head);
      for (std::size_t d = 0; d < o.size(); ++d)
        sums[d] += p.n[static_cast<std::size_t>(t - begin)] * static_cast<std::int64_t>(v[d]);
    }
    for (std::size_t d = 0; d < o.size(); ++d) o[d] = std::fma(o[d], alpha, static_cast<float>(sums[d]) * p.scale);
  }

  void add_block(const std::vector<float>& x, const Integers& q, const std::vector<bool>& visible, Index begin,
                 Index head, State& state) const {
    float w[64];
    float m = state.m;
    for (Index i = 0; i < 64; ++i) {
      const Index t = begin + i;
      const bool seen = t < kv_.length && visible[static_cast<std::size_t>(t)];
      w[i] = seen ? score(x, q, t, head) : -std::numeric_limits<float>::infinity();
      if (w[i] > m) m = w[i];
    }
    const float base = base_of(m);
    for (float& each : w) each = exp2(each - base);
    float lane[16];
    for (int i = 0; i < 16; ++i) lane[i] = (w[i] + w[i + 16]) + (w[i + 32] + w[i + 48]);
    const float alpha = m == state.m ? 1.0f : exp2(state.m - base);
    state.m = m;
    state.l = std::fma(state.l, alpha, tree(lane));
    add_values(w, visible, begin, head, alpha, state.o);
  }

  void add_row(const std::vector<float>& x, Index head, const std::vector<bool>& visible, Result& result) const {
    int most = 32639;
    for (Index dims = 512; dims < kv_.head_dim; dims *= 2) most /= 2;
    const Integers q = rounded(x, most);
    const State nothing{.o = std::vector<float>(static_cast<std::size_t>(kv_.value_dim))};
    State total = nothing;
    bool first = true;
    for (Index span = 0; span < kv_.length; span += detail::kSpan) {
      State state = nothing;
      bool any = false;
      for (Index begin = span; begin < std::min(span + detail::kSpan, kv_.length); begin += 64) {
        const auto from = visible.begin() + begin;
        if (std::find(from, visible.begin() + std::min(begin + 64, kv_.length), true) ==
            visible.begin() + std::min(begin + 64, kv_.length))
          continue;
        add_block(x, q, visible, begin, head, state);
        any = true;
      }
      if (!any) continue;
      if (first) total = state;
      else merge(total, state);
      first = false;
    }
    const float factor = total.l == 0.0f ? 0.0f : 1.0f / total.l;
    for (const float o : total.o) result.out.push_back(o * factor);
    const double scaled = static_cast<double>(total.m) * 0x1.62e42fefa39efp-1;
    result.lse.push_back(static_cast<float>(scaled + (total.l == 0.0f ? 0.0 : std::log(static_cast<double>(total.l)))));
  }
  static void merge(State& into, const State& from) {
    const float m = from.m > into.m ? from.m : into.m;
    const float a = exp2(into.m - base_of(m));
    const float b = exp2(from.m - base_of(m));
    into.m = m;
    into.l = std::fma(into.l, a, from.l * b);
    for (std::size_t d = 0; d < into.o.size(); ++d) into.o[d] = std::fma(into.o[d], a, from.o[d] * b);
  }

  const KvCacheView& kv_;
  const KvCacheView& f32_;
};

}  // namespace gqa::test
