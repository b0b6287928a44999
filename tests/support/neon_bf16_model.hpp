// SPDX-License-Identifier: Apache-2.0
// The arithmetic of Path::neon_bf16 in plain loops: what a whole attention call computes, one row at a time, on any machine. Written from
// the definition, not from the kernels: no matrices, no rows beside each other.
//
//   s_t   pairs of bf16 products, dims 0 … 3 and 4 … 7 of every eight summed apart; added, then scaled        bf16_pair
//   w_t   2^(s_t − m) in f32, then rounded to bf16                                                            exp2_f32
//   l     Σ of the weights before they are rounded; o's divisor: Σ of those after, by pairs of tokens
//   o     pairs of tokens, ascending, hidden ones zero                                                        bf16_pair
#pragma once

#include <algorithm>

#include "amx_model.hpp"
#include "gqa/reference.hpp"

GQA_BEGIN_PLAIN_REGION()  // products and sums stay apart, whatever the flags

namespace gqa::test {

/// a + b rounded to odd: cut off, and the last bit set where something was cut. Denormal results are zero, what is too large is infinite.
inline float sum_to_odd(float a, float b) {
  if (!std::isfinite(a) || !std::isfinite(b)) return a + b;
  const auto x = static_cast<double>(a), y = static_cast<double>(b);
  const double sum = x + y;
  const double of_y = sum - x;
  const double left = (x - (sum - of_y)) + (y - of_y);  // x + y = sum + left, exactly
  const double size = std::abs(sum);
  if (size < 0x1p-126) return std::copysign(0.0f, static_cast<float>(sum));  // such a sum is exact
  if (size >= 0x1p128) return std::copysign(kInfinity, a);
  const auto nearest = static_cast<float>(size);
  float cut = static_cast<double>(nearest) > size || std::isinf(nearest) ? std::nextafter(nearest, 0.0f) : nearest;
  const bool less = left != 0.0 && (left < 0.0) != (sum < 0.0);
  const bool exact = static_cast<double>(cut) == size && left == 0.0;
  if (static_cast<double>(cut) == size && less) cut = std::nextafter(cut, 0.0f);
  if (!exact) cut = std::bit_cast<float>(std::bit_cast<std::uint32_t>(cut) | 1u);
  return std::copysign(cut, static_cast<float>(sum));
}

/// Of two bf16: exact, but that denormals are zero, in and out.
inline float bf16_product(float a, float b) {
  const float product = flushed(a) * flushed(b);
  return std::abs(static_cast<double>(flushed(a)) * static_cast<double>(flushed(b))) < 0x1p-126
             ? std::copysign(0.0f, product)
             : product;
}

/// What bfdot does to a lane, and bfmmla to an element, twice: sum + (a0·b0 + a1·b1).
inline float bf16_pair(float sum, float a0, float b0, float a1, float b1) {
  return sum_to_odd(flushed(sum), sum_to_odd(bf16_product(a0, b0), bf16_product(a1, b1)));
}

/// The tree that sixteen lanes are added by.
inline float lanes_added(std::array<float, 16> lane) {
  for (std::size_t half = lane.size() / 2; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i) lane[i] = lane[i] + lane[i + half];
  return lane[0];
}

/// One call: its inputs, rounded to bf16 where they are something else. The last of a state's outputs is the divisor of the others.
template <Variant V>
class NeonBf16Model {
 public:
  NeonBf16Model(const ConstTensorView& q, const KvCacheView& kv, const V& variant, std::optional<float> scale)
      : q_(q), kv_(kv), variant_(variant), scale_(scale.value_or(1.0f / std::sqrt(static_cast<float>(q.dim)))) {
    if (!ScoringVariant<V>) scale_ = scale_ * detail::kLog2E;  // a scoring variant wants natural scores
  }

  Result run() const {
    Result result{q_.tokens, q_.heads, kv_.value_dim, {}, {}};
    for (Index token = 0; token < q_.tokens; ++token)
      for (Index head = 0; head < q_.heads; ++head) {
        ModelState state = row(token, head);
        const float divisor = state.o.back();
        state.o.pop_back();
        const float factor = divisor == 0.0f ? 0.0f : 1.0f / divisor;
        for (const float o : state.o) result.out.push_back(o * factor);
        const double log_l = state.l[0] == 0.0f ? 0.0 : std::log(static_cast<double>(state.l[0]));
        const double scaled = static_cast<double>(state.m) * 0.693147180559945309417;
        result.lse.push_back(static_cast<float>(scaled + log_l));
      }
    return result;
  }

 private:
  using Row = std::vector<float>;

  static float rounded(double x) { return rounded_to(ElementType::bf16, static_cast<float>(x)); }
  Row cache_row(bool keys, Index at, Index kv_head, Index width) const {
    const Index offset = detail::reference_offset(kv_, keys ? kv_.k_strides : kv_.v_strides, at, kv_head);
    const auto elements = detail::reference_row(keys ? kv_.k : kv_.v, keys ? kv_.k_type : kv_.v_type, offset, width, 1);
    Row row;
    for (Index d = 0; d < width; ++d) row.push_back(rounded(elements[d]));
    return row;
  }

  ModelState row(Index token, Index head) const {
    const auto elements = detail::reference_row(q_.data, q_.type, token * q_.strides.token + head * q_.strides.head,
                                                q_.dim, q_.strides.dim);
    Row q;
    for (Index d = 0; d < q_.dim; ++d) q.push_back(rounded(elements[d]));
    const Index position = kv_.length - q_.tokens + token;
    PositionRange range = variant_.visible_range(position, kv_.length);
    range.begin = std::max<Index>(range.begin, 0);
    range.end = std::min(range.end, kv_.length);
    return merged_spans(range, kv_.value_dim + 1,
                        [&](ModelState& state, Index begin) { add_block(state, q, begin, range, position, head); });
  }

  float score(Row q, Row k) const {
    q.resize((q.size() + 7) / 8 * 8);
    k.resize(q.size());
    std::array<float, 2> sum{};
    for (std::size_t d = 0; d < q.size(); d += 2) {
      float& of_half = sum[d / 4 % 2];
      of_half = bf16_pair(of_half, q[d], k[d], q[d + 1], k[d + 1]);
    }
    return (sum[0] + sum[1]) * scale_;
  }

  /// The tokens at begin, begin + 1, …, begin + 63, as far as the row sees them.
  void add_block(ModelState& state, const Row& q, Index begin, const PositionRange& range, Index position,
                 Index head) const {
    const Index kv_head = head / (q_.heads / kv_.kv_heads);
    std::array<float, detail::kBlock> w;
    w.fill(-kInfinity);
    std::vector<Row> v(w.size(), Row(static_cast<std::size_t>(kv_.value_dim)));
    float m = state.m;
    bool any = false;
    for (std::size_t t = 0; t < w.size(); ++t) {
      const Index at = begin + static_cast<Index>(t);
      if (at < range.begin || at >= range.end) continue;
      if constexpr (MaskingVariant<V>)
        if (!variant_.is_visible(position, at, head)) continue;
      any = true;
      w[t] = score(q, cache_row(true, at, kv_head, kv_.head_dim));
      if constexpr (ScoringVariant<V>)
        w[t] = detail::kLog2E * static_cast<float>(variant_.score(w[t], position, at, head));
      v[t] = cache_row(false, at, kv_head, kv_.value_dim);
      if (w[t] > m) m = w[t];
    }
    if (!any) return;

    const float base = m == -kInfinity ? 0.0f : m;
    const float alpha = m == state.m ? 1.0f : exp2_f32(state.m - base);
    state.m = m;
    for (float& x : w) x = exp2_f32(x - base);
    std::array<float, 16> lane, pairs{};
    for (std::size_t i = 0; i < lane.size(); ++i) lane[i] = (w[i] + w[i + 16]) + (w[i + 32] + w[i + 48]);
    state.l[0] = std::fma(state.l[0], alpha, lanes_added(lane));
    for (float& x : w) x = rounded_to(ElementType::bf16, x);
    for (std::size_t t = 0; t < w.size(); t += 2) {
      float& sum = pairs[t / 2 % 16];
      sum = bf16_pair(sum, w[t], 1.0f, w[t + 1], 1.0f);
    }
    state.o.back() = std::fma(state.o.back(), alpha, lanes_added(pairs));
    for (std::size_t d = 0; d + 1 < state.o.size(); ++d) {
      float o = state.o[d] * alpha;
      for (std::size_t t = 0; t < w.size(); t += 2) o = bf16_pair(o, w[t], v[t][d], w[t + 1], v[t + 1][d]);
      state.o[d] = o;
    }
  }

  const ConstTensorView q_;
  const KvCacheView kv_;
  const V& variant_;
  float scale_;
};

/// What a call on Path::neon_bf16 with bf16 products gives, in f32: out and lse.
template <Variant V = Causal>
Result neon_bf16_model(const ConstTensorView& q, const KvCacheView& kv, const V& variant = {},
                       std::optional<float> scale = std::nullopt) {
  return NeonBf16Model<V>(q, kv, variant, scale).run();
}

}  // namespace gqa::test

GQA_END_PLAIN_REGION()
