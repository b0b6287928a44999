// SPDX-License-Identifier: Apache-2.0
// The AMX path's arithmetic in plain loops: what a whole attention call computes, one row at a time, on any machine.
//
// Written from the definition, not from the kernels: no tiles, no lanes but the sixteen that l is kept in, no rows
// beside each other.
//
//   s_t   bf16 products summed by dims in chunks of 32                               tile_product
//   w_t   2^(c·s_t − m) by a cubic, rounded to bf16 (nearest even; below 2^-127 zero)  weight
//   l, o  bf16 products summed by tokens in halves of a block, hidden tokens zero      tile_product
//   α     2^(old m − new m) in f32; spans of 512 tokens merged in ascending order      exp2_f32, merge
//
// With sums of two terms every factor is x1 + x2 (two_terms), and for each chunk or half there are products of k2·q1, k1·q1,
// k1·q2 and of v2·w1, v1·w1, v1·w2, in this order; l takes w1, then w2. A cache's bf16 is one term. Weights are split in two
// after the f32 paths' exponential of s_t·c − m.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "gqa/detail/path/region.hpp"
#include "gqa/variant.hpp"
#include "problem.hpp"

GQA_BEGIN_PLAIN_REGION()  // products and sums stay apart, whatever the flags

namespace gqa::test {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr Index kProductTerms = 32;
inline constexpr Index kSums = 16;  ///< partial sums that l is kept in

/// Zero of the same sign for a denormal.
inline float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

/// `rounded`, or zero if the exact result it stands for is below the least normal number even after rounding to 24
/// bits: tiny, as x86 sees it. 2^-126 · (1 − 2^-25) is where that rounding begins to reach 2^-126.
inline float flushed_result(float rounded, double exact) {
  return std::abs(exact) < 0x1.ffffffp-127 ? std::copysign(0.0f, rounded) : rounded;
}

inline float fused(float a, float b, float c) {
  const double exact = std::fma(static_cast<double>(a), static_cast<double>(b), static_cast<double>(c));
  return flushed_result(std::fma(a, b, c), exact);
}

inline float added(float a, float b) { return flushed_result(a + b, static_cast<double>(a) + static_cast<double>(b)); }

/// What tdpbf16ps does to one element: c + Σ a_i b_i over 32 bf16 terms. Even and odd terms are summed apart, from
/// zero, by fused multiply-adds; then both are added to each other, and that to c. Denormals are zero on the way in
/// and out.
inline float tile_product(const float* a, const float* b, float c) {
  float even = 0.0f;
  float odd = 0.0f;
  for (Index i = 0; i < kProductTerms; i += 2) {
    even = fused(flushed(a[i]), flushed(b[i]), even);
    odd = fused(flushed(a[i + 1]), flushed(b[i + 1]), odd);
  }
  return added(flushed(c), added(even, odd));
}

/// `value` rounded to 8 bits, or to a multiple of the least denormal bf16; halves away from zero.
inline double nearest_bf16(double value) {
  int exponent = 0;
  std::frexp(value, &exponent);
  const int unit = std::max(exponent - 8, -133);
  return std::ldexp(std::round(std::ldexp(value, -unit)), unit);
}

/// A number as a sum of bf16 terms. One term: rounded to nearest even. Two: the nearest, then the nearest to what is left; both cut
/// off where the first would be infinite. What is no finite number is the second.
template <int Terms>
std::array<float, 2> terms_of(float x) {
  if (Terms == 1) return {rounded_to(ElementType::bf16, x), 0.0f};
  if (!std::isfinite(x)) return {0.0f, x};
  const auto exact = static_cast<double>(x);
  const double first = nearest_bf16(exact);
  if (std::abs(first) >= 0x1p128) {
    const double most = std::copysign(0x1.fep127, exact);
    return {static_cast<float>(most), static_cast<float>(std::trunc((exact - most) * 0x1p-112) * 0x1p112)};
  }
  return {static_cast<float>(first), static_cast<float>(nearest_bf16(exact - first))};
}

/// 2^x for x <= 0 in f32, below 2^-126 zero: the f32 paths' polynomial.
inline float exp2_f32(float x) {
  if (x < -126.0f) return 0.0f;
  if (std::isnan(x)) return x;
  const float magic = 0x1.8p23f + 127.0f;  // halves are rounded so that the exponent's bits become even
  const float sum = x + magic;
  const float power = sum - magic;
  const float r = x - power;
  float p = 0.0f;
  for (const float coefficient :
       {0x1.41fbcap-13f, 0x1.5f3e5ep-10f, 0x1.3b2d4cp-7f, 0x1.c6aee8p-5f, 0x1.ebfbdcp-3f, 0x1.62e430p-1f, 1.0f})
    p = std::fma(p, r, coefficient);
  return p * std::bit_cast<float>(static_cast<std::uint32_t>(static_cast<int>(power) + 127) << 23);
}

/// 2^(c·s − m) as bf16. X = 128·(127 + x) is the bf16's bits as a number, but for the curve between powers of two.
inline float weight(float s, float c, float m) {
  const float offset = 127.0f * 128.0f;
  float x = 0.0f;
  if (std::abs(m) >= 16384.0f) {
    const float scaled = s * c;
    const float below = scaled - m;
    x = std::fma(below, 128.0f, offset);
  } else {
    x = std::fma(s, 128.0f * c, std::fma(-128.0f, m, offset));
  }
  if (std::isnan(x)) return x;
  if (x < 0.0f) x = 0.0f;
  const float whole = std::floor(x / 128.0f) * 128.0f;
  const float f = x - whole;
  const float curve = std::fma(std::fma(0x1.3baadcp-18f, f, 0x1.d23788p-10f), f, 0x1.63e654p-1f);
  const float bits = std::nearbyint(std::fma(curve, f, whole));
  return detail::float_from_bf16(static_cast<std::uint16_t>(bits));
}

/// 2^(c·s − m) in f32.
inline float f32_weight(float s, float c, float m) {
  const float scaled = s * c;
  return exp2_f32(scaled - m);
}

/// A row's state over some tokens.
struct ModelState {
  float m = -kInfinity;
  std::array<float, kSums> l{};
  std::vector<float> o;

  /// The state of these tokens followed by those of `other`.
  void merge(const ModelState& other) {
    const float both = other.m > m ? other.m : m;
    const float base = both == -kInfinity ? 0.0f : both;
    const float a = exp2_f32(m - base);
    const float b = exp2_f32(other.m - base);
    m = both;
    for (std::size_t i = 0; i < l.size(); ++i) l[i] = std::fma(l[i], a, other.l[i] * b);
    for (std::size_t d = 0; d < o.size(); ++d) o[d] = std::fma(o[d], a, other.o[d] * b);
  }

  float sum() const {
    std::array<float, kSums> lane = l;
    for (std::size_t half = lane.size() / 2; half > 0; half /= 2)
      for (std::size_t i = 0; i < half; ++i) lane[i] = lane[i] + lane[i + half];
    return lane[0];
  }
};

/// The state of a range of tokens: add_block(state, begin) for each block, spans and super-spans merged in order. `width` outputs.
template <class AddBlock>
ModelState merged_spans(const PositionRange& range, Index width, const AddBlock& add_block) {
  ModelState nothing;
  nothing.o.assign(static_cast<std::size_t>(width), 0.0f);
  ModelState total = nothing;
  ModelState sum = nothing;  // of the super-span
  for (Index span = range.begin / detail::kSpan; span * detail::kSpan < range.end; ++span) {
    if (span % (detail::kSuperSpan / detail::kSpan) == 0) {
      total.merge(sum);
      sum = nothing;
    }
    ModelState state = nothing;
    for (Index block = 0; block < detail::kSpan; block += detail::kBlock)
      add_block(state, span * detail::kSpan + block);
    sum.merge(state);
  }
  total.merge(sum);
  return total;
}

/// One call: its inputs, rounded to bf16 where they are something else, or sums of two terms.
template <Variant V, int Terms>
class AmxModel {
 public:
  AmxModel(const ConstTensorView& q, const KvCacheView& kv, const V& variant, std::optional<float> scale,
           std::span<const Index> positions)
      : q_(q),
        kv_(kv),
        variant_(variant),
        scale_(scale.value_or(1.0f / std::sqrt(static_cast<float>(q.dim)))),
        positions_(positions) {
    // A scoring variant wants natural scores; the sign of the scale goes into q, and so does a scale of zero.
    const float all = ScoringVariant<V> ? scale_ : scale_ * detail::kLog2E;
    factor_ = all == 0.0f ? 1.0f : std::abs(all);
  }

  Result run() const {
    Result result{q_.tokens, q_.heads, kv_.value_dim, {}, {}};
    for (Index token = 0; token < q_.tokens; ++token)
      for (Index head = 0; head < q_.heads; ++head) {
        const ModelState state = row(token, head);
        const float l = state.sum();
        const float factor = l == 0.0f ? 0.0f : 1.0f / l;
        for (const float o : state.o) result.out.push_back(o * factor);
        const double log_l = l == 0.0f ? 0.0 : std::log(static_cast<double>(l));
        const double scaled = static_cast<double>(state.m) * 0.693147180559945309417;
        result.lse.push_back(static_cast<float>(scaled + log_l));
      }
    return result;
  }

 private:
  /// Elements by terms. Where there is one term, the second ones are zero and meet nothing.
  struct Row {
    std::array<std::vector<float>, 2> term;
    explicit Row(Index width = 0) {
      for (std::vector<float>& t : term) t.assign(static_cast<std::size_t>(width), 0.0f);
    }
    void set(std::size_t at, const std::array<float, 2>& terms) {
      for (std::size_t i = 0; i < 2; ++i) term[i][at] = terms[i];
    }
  };
  static constexpr bool has_second_term(ElementType type) { return Terms == 2 && type != ElementType::bf16; }

  static Row read_row(const void* data, ElementType type, Index first, Index width, Index step, Index padded) {
    Row row(padded);
    for (Index d = 0; d < width; ++d) {
      const float x =
          read_element(static_cast<const std::byte*>(data) + (first + d * step) * element_bytes(type), type);
      row.set(static_cast<std::size_t>(d), has_second_term(type) ? terms_of<2>(x) : terms_of<1>(x));
    }
    return row;
  }

  /// The products of 32 elements of a cache's row or column, of `type`, with those of another one, added to c.
  static float add_products(const Row& cache, ElementType type, const Row& other, std::size_t at, float c) {
    const auto product = [&](std::size_t i, std::size_t j) {
      return tile_product(cache.term[i].data() + at, other.term[j].data() + at, c);
    };
    if (has_second_term(type)) c = product(1, 0);
    c = product(0, 0);
    if (Terms == 2) c = product(0, 1);
    return c;
  }

  Row cache_row(const void* data, ElementType type, const KvStrides& strides, Index position, Index head, Index width,
                Index padded) const {
    Index slot = position;
    Index page = 0;
    if (kv_.storage == Storage::ring) slot = position % kv_.capacity;
    if (kv_.storage == Storage::paged) {
      slot = position % kv_.page_size;
      page = kv_.page_table[position / kv_.page_size];
    }
    return read_row(data, type, page * strides.page + slot * strides.token + head * strides.head, width, 1, padded);
  }

  Row query_row(Index token, Index head) const {
    Row q = read_row(q_.data, q_.type, token * q_.strides.token + head * q_.strides.head, q_.dim, q_.strides.dim,
                     padded_dim());
    for (std::vector<float>& term : q.term)
      for (float& x : term) {
        if (scale_ < 0.0f) x = -x;
        if (scale_ == 0.0f) x = x * 0.0f;
      }
    return q;
  }

  Index padded_dim() const { return (kv_.head_dim + kProductTerms - 1) / kProductTerms * kProductTerms; }

  /// The state of everything that one row sees: that of its spans, merged.
  ModelState row(Index token, Index head) const {
    const Row q = query_row(token, head);
    const Index position =
        positions_.empty() ? kv_.length - q_.tokens + token : positions_[static_cast<std::size_t>(token)];
    PositionRange range = variant_.visible_range(position, kv_.length);
    range.begin = std::max<Index>(range.begin, 0);
    range.end = std::min(range.end, kv_.length);
    return merged_spans(range, kv_.value_dim,
                        [&](ModelState& state, Index begin) { add_block(state, q, begin, range, position, head); });
  }

  bool is_visible(Index position, Index at, Index head) const {
    if constexpr (MaskingVariant<V>) return variant_.is_visible(position, at, head);
    else return true;
  }

  /// The tokens at begin, begin + 1, …, begin + 63, as far as the row sees them.
  void add_block(ModelState& state, const Row& q, Index begin, const PositionRange& range, Index position,
                 Index head) const {
    const Index kv_head = head / (q_.heads / kv_.kv_heads);
    std::array<bool, detail::kBlock> seen{};
    std::array<float, detail::kBlock> score{};
    float most = -kInfinity;
    bool any = false;
    for (Index t = 0; t < detail::kBlock; ++t) {
      const Index at = begin + t;
      if (at < range.begin || at >= range.end || !is_visible(position, at, head)) continue;
      const Row k = cache_row(kv_.k, kv_.k_type, kv_.k_strides, at, kv_head, kv_.head_dim, padded_dim());
      float s = 0.0f;
      for (Index d = 0; d < padded_dim(); d += kProductTerms)
        s = add_products(k, kv_.k_type, q, static_cast<std::size_t>(d), s);
      if constexpr (ScoringVariant<V>)
        s = detail::kLog2E * static_cast<float>(variant_.score(factor_ * s, position, at, head));
      seen[static_cast<std::size_t>(t)] = any = true;
      score[static_cast<std::size_t>(t)] = s;
      if (s > most) most = s;
    }
    if (!any) return;

    const float c = ScoringVariant<V> ? 1.0f : factor_;
    const float scaled = most * c;
    const float m = scaled > state.m ? scaled : state.m;
    const float base = m == -kInfinity ? 0.0f : m;
    const float alpha = m == state.m ? 1.0f : exp2_f32(state.m - base);
    state.m = m;
    for (float& l : state.l) l = l * alpha;
    for (float& o : state.o) o = o * alpha;

    Row p(detail::kBlock);
    std::array<Row, detail::kBlock> v;
    for (std::size_t t = 0; t < seen.size(); ++t) {
      v[t] = Row(kv_.value_dim);
      if (!seen[t]) continue;
      p.set(t, Terms == 1 ? std::array<float, 2>{weight(score[t], c, base), 0.0f}
                          : terms_of<2>(f32_weight(score[t], c, base)));
      v[t] = cache_row(kv_.v, kv_.v_type, kv_.v_strides, begin + static_cast<Index>(t), kv_head, kv_.value_dim,
                       kv_.value_dim);
    }
    for (std::size_t half = 0; half < seen.size(); half += kProductTerms) {
      Row column(detail::kBlock);
      for (std::size_t i = 0; i < state.l.size(); ++i) {
        for (std::size_t t = 0; t < kProductTerms; ++t) column.term[0][half + t] = t / 2 == i ? 1.0f : 0.0f;
        state.l[i] = add_products(column, ElementType::bf16, p, half, state.l[i]);
      }
      for (std::size_t d = 0; d < state.o.size(); ++d) {
        for (std::size_t t = half; t < half + kProductTerms; ++t) column.set(t, {v[t].term[0][d], v[t].term[1][d]});
        state.o[d] = add_products(column, kv_.v_type, p, half, state.o[d]);
      }
    }
  }

  const ConstTensorView q_;
  const KvCacheView kv_;
  const V& variant_;
  const float scale_;
  const std::span<const Index> positions_;
  float factor_ = 1.0f;
};

/// What a call on Path::amx with bf16 products gives, in f32: out and lse.
template <int Terms = 1, Variant V = Causal>
Result amx_model(const ConstTensorView& q, const KvCacheView& kv, const V& variant = {},
                 std::optional<float> scale = std::nullopt, std::span<const Index> positions = {}) {
  return AmxModel<V, Terms>(q, kv, variant, scale, positions).run();
}

/// The same rounded to an output type.
inline Result rounded_result(Result result, ElementType type) {
  for (float& x : result.out) x = rounded_to(type, x);
  return result;
}

}  // namespace gqa::test

GQA_END_PLAIN_REGION()
