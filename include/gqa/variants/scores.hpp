// SPDX-License-Identifier: Apache-2.0
/// @file
/// Changes of scores, and sinks: parts of variants, to be composed with a mask. All but the sinks are expressions.
#pragma once

#include <span>

#include "gqa/detail/checked.hpp"
#include "gqa/variant.hpp"
#include "gqa/variants/broadcast_view.hpp"

namespace gqa {

/// s → cap · tanh(s / cap): Gemma 2, Grok.
struct SoftCap {
  float cap;
  /// @throws ArgumentError unless the cap is a number above 0
  GQA_ALWAYS_INLINE void check() const {
    if (!(cap > 0.0f) || cap > 3.4028234e38f)
      detail::fail("variant.cap", detail::to_text(static_cast<double>(cap)), "a number above 0");
  }
  GQA_ALWAYS_INLINE auto score(auto s, const RowContext&, auto) const { return cap * tanh(s / cap); }
};

/// s → s − slope · (query position − key position), a slope for each query head (ALiBi, Press et al. 2022): MPT, BLOOM.
struct Alibi {
  std::span<const float> slopes;

  /// The published slopes of a number of heads: 2^(−8i/n) for i = 1 … n; where n is no power of two, those of the largest one below, and then
  /// every second one of twice as many.
  static GQA_ALWAYS_INLINE void fill_slopes(std::span<float> slopes) noexcept {
    const std::size_t heads = slopes.size();
    std::size_t power = 1;
    while (power * 2 <= heads) power *= 2;
    for (std::size_t i = 0; i < heads; ++i) {
      const double at = i < power ? static_cast<double>(i + 1) / static_cast<double>(power)
                                  : static_cast<double>(2 * (i - power) + 1) / static_cast<double>(2 * power);
      slopes[i] = static_cast<float>(__builtin_exp2(-8.0 * at));
    }
  }

  /// @throws ArgumentError unless there is a slope for each query head
  GQA_ALWAYS_INLINE void check(const SequenceContext& sequence) const {
    if (static_cast<Index>(slopes.size()) != sequence.query_heads)
      detail::fail("variant.slopes.size()", static_cast<Index>(slopes.size()),
                   "the query heads, " + detail::to_text(sequence.query_heads));
  }
  GQA_ALWAYS_INLINE auto score(auto s, const RowContext& row, auto k) const {
    return s - slopes[static_cast<std::size_t>(row.query_head)] * (row.position - k);
  }
};

/// s → s + bias: T is float, bf16 or f16.
template <class T>
struct AdditiveBias {
  BroadcastView<T> bias;
  /// @throws ArgumentError if the biases do not fit the call
  GQA_ALWAYS_INLINE void check(const SequenceContext& sequence) const { bias.check("bias", sequence); }
  GQA_ALWAYS_INLINE auto score(auto s, const RowContext& row, auto k) const {
    return s + lookup(bias.row(row), k, bias.strides.key);
  }
};
template <class T>
AdditiveBias(BroadcastView<T>) -> AdditiveBias<T>;

/// s → s + a bias by how far the key is before the query: T5's relative buckets, and any other bias of distances.
struct DistanceBias {
  std::span<const float>
      bias;  ///< query heads × distances: of head h and distance n, query position − key position, at h · distances + n − least
  Index distances;
  Index least;  ///< the least distance, 0 or below: that to the farthest key behind a query

  /// T5's bucket of a distance (Raffel et al. 2020; `_relative_position_bucket` of the published code).
  static GQA_ALWAYS_INLINE Index t5_bucket(Index distance, bool bidirectional, Index buckets,
                                           Index max_distance) noexcept {
    Index bucket = 0;
    Index away = distance;
    if (bidirectional) {
      buckets /= 2;
      if (distance < 0) {
        bucket = buckets;
        away = -distance;
      }
    } else if (distance < 0) {
      away = 0;
    }
    const Index exact = buckets / 2;
    if (away < exact) return bucket + away;
    const double share = __builtin_log(static_cast<double>(away) / static_cast<double>(exact)) /
                         __builtin_log(static_cast<double>(max_distance) / static_cast<double>(exact));
    const Index logarithmic = exact + static_cast<Index>(share * static_cast<double>(buckets - exact));
    return bucket + (logarithmic < buckets ? logarithmic : buckets - 1);
  }
  /// bias[h][n − least] ← table[t5_bucket(n)][h], `table` being T5's weights, buckets × heads.
  /// @throws ArgumentError if the sizes do not fit, there are fewer than 2 buckets to a side, or max_distance has no place behind the half of
  ///         them that are exact
  static GQA_ALWAYS_INLINE void fill_t5(std::span<const float> table, Index heads, bool bidirectional, Index buckets,
                                        Index max_distance, Index least, Index distances, std::span<float> bias) {
    const Index sides = bidirectional ? 2 : 1;
    if (heads < 1) detail::fail("heads", heads, "1 or more");
    if (buckets < 2 * sides) detail::fail("buckets", buckets, detail::to_text(2 * sides) + " or more");
    if (max_distance <= buckets / sides / 2)
      detail::fail("max_distance", max_distance,
                   "more than the exact buckets, " + detail::to_text(buckets / sides / 2));
    const auto check_size = [](const char* name, std::size_t given, const char* what, Index wanted) {
      if (static_cast<Index>(given) != wanted)
        detail::fail(name, static_cast<Index>(given), what + detail::to_text(wanted));
    };
    check_size("table.size()", table.size(), "buckets * heads = ", detail::product(buckets, heads));
    check_size("bias.size()", bias.size(), "heads * distances = ", detail::product(heads, distances));
    if (!(detail::Checked(least) + distances).fits() || least < -detail::kTooLarge)
      detail::fail("least", least, "distances that are numbers");
    for (Index n = 0; n < distances; ++n) {
      const Index bucket = t5_bucket(n + least, bidirectional, buckets, max_distance);
      for (Index head = 0; head < heads; ++head)
        bias[static_cast<std::size_t>(head * distances + n)] = table[static_cast<std::size_t>(bucket * heads + head)];
    }
  }

  /// @throws ArgumentError unless there are biases for each query head, and for each distance of the queries' positions to all keys
  GQA_ALWAYS_INLINE void check(const SequenceContext& sequence) const {
    using detail::Checked;
    const Index biases = detail::product(sequence.query_heads, distances);
    if (static_cast<Index>(bias.size()) != biases)
      detail::fail("variant.bias.size()", static_cast<Index>(bias.size()),
                   "query heads * distances = " + detail::to_text(biases));
    if (sequence.queries == 0) return;
    const Index behind = sequence.kv_length - 1;  // the last key; positions may be any numbers
    if (least > 0 || !(Checked(least) + behind).at_most(sequence.first_position))
      detail::fail("variant.least", least,
                   "0 or less, and no more than the distance from the last key, " + detail::to_text(behind) +
                       ", to the first query, " + detail::to_text(sequence.first_position));
    if ((Checked(distances) + least).at_most(sequence.last_position))
      detail::fail("variant.distances", distances,
                   "last query position - least + 1 = " +
                       detail::to_text((Checked(sequence.last_position) - least + 1).value_or(detail::kTooLarge)) +
                       " or more");
  }
  GQA_ALWAYS_INLINE auto score(auto s, const RowContext& row, auto k) const {
    // At position k: bias[head][position − k − least].
    return s + lookup(bias.data() + row.query_head * distances + row.position - least, k, -1);
  }
};

/// s → scale · s, a scale for each query head.
struct HeadScale {
  std::span<const float> scales;
  /// @throws ArgumentError unless there is a scale for each query head
  GQA_ALWAYS_INLINE void check(const SequenceContext& sequence) const {
    if (static_cast<Index>(scales.size()) != sequence.query_heads)
      detail::fail("variant.scales.size()", static_cast<Index>(scales.size()),
                   "the query heads, " + detail::to_text(sequence.query_heads));
  }
  GQA_ALWAYS_INLINE auto score(auto s, const RowContext& row, auto) const {
    return scales[static_cast<std::size_t>(row.query_head)] * s;
  }
};

/// s → s · (1 + strength · log(1 + ⌊(position + 1) / floor_scale⌋)): Llama 4's layers without RoPE, whose queries are scaled so.
struct PositionTemperature {
  Index floor_scale = 8192;
  float strength = 0.1f;
  /// @throws ArgumentError unless floor_scale >= 1
  GQA_ALWAYS_INLINE void check() const {
    if (floor_scale < 1) detail::fail("variant.floor_scale", floor_scale, "1 or more positions");
  }
  GQA_ALWAYS_INLINE auto score(auto s, const RowContext& row, auto) const {
    const Index last = row.position / floor_scale;  // position + 1 may be no number; below 0 nothing is scaled
    const bool ends = row.position % floor_scale == floor_scale - 1;
    const double steps = row.position < 0 ? 0.0 : static_cast<double>(last) + (ends ? 1.0 : 0.0);
    return static_cast<float>(1.0 + static_cast<double>(strength) * __builtin_log1p(steps)) * s;
  }
};

/// A learned logit for each query head that takes its share of the weights (gpt-oss), in the log-sum-exp too unless `in_lse` is off.
struct LearnedSinks {
  std::span<const float> logits;
  bool in_lse = true;
  /// @throws ArgumentError unless there is a logit for each query head
  GQA_ALWAYS_INLINE void check(const SequenceContext& sequence) const {
    if (static_cast<Index>(logits.size()) != sequence.query_heads)
      detail::fail("variant.logits.size()", static_cast<Index>(logits.size()),
                   "the query heads, " + detail::to_text(sequence.query_heads));
  }
  GQA_ALWAYS_INLINE float sink(const RowContext& row) const noexcept {
    return logits[static_cast<std::size_t>(row.query_head)];
  }
  GQA_ALWAYS_INLINE bool sink_in_lse() const noexcept { return in_lse; }
};

}  // namespace gqa
