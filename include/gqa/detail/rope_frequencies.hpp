// SPDX-License-Identifier: Apache-2.0
/// @file
/// Frequencies of rotary embeddings, as published, in double precision.
#pragma once

#include <array>
#include <cmath>
#include <span>

#include "gqa/detail/path/region.hpp"
#include "gqa/error.hpp"
#include "gqa/rope_pairs.hpp"

namespace gqa {

/// How frequencies change so that a model reaches farther than it was trained for.
enum class RopeScaling : std::uint8_t {
  none,
  linear,    ///< all divided by `factor` (Chen et al. 2023)
  ntk,       ///< the base times factor^(dims / (dims − 2)) (NTK-aware)
  yarn,      ///< Peng et al. 2023: low frequencies divided, high ones kept, a ramp between; and an attention factor
  llama3,    ///< Llama 3.1's: by wavelength, with a smooth step
  longrope,  ///< Ding et al. 2024: each divided by its own number; and an attention factor
};

/// Of one model. Names in brackets: those of Hugging Face's configurations.
struct RopeOptions {
  Index dims = 0;         ///< that are turned, even; the first ones of a row (head_dim · partial_rotary_factor)
  double base = 10000.0;  ///< [rope_theta]
  RopePairs pairs = RopePairs::half_split;
  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;           ///< [factor]: linear, ntk, yarn, llama3
  Index original_positions = 0;  ///< [original_max_position_embeddings]: yarn, llama3, longrope
  double beta_fast = 32.0;       ///< yarn
  double beta_slow = 1.0;        ///< yarn
  bool truncate = true;          ///< yarn: whether the ramp begins and ends at whole pairs; gpt-oss says no
  double mscale = 0.0;           ///< yarn, DeepSeek's: with mscale_all_dim the attention factor is a quotient
  double mscale_all_dim = 0.0;
  double low_freq_factor = 1.0;   ///< llama3
  double high_freq_factor = 4.0;  ///< llama3
  std::span<const double> divisors =
      {};  ///< longrope: dims / 2 of them, [long_factor] or [short_factor]; used while the table is made
  double max_positions = 0.0;       ///< longrope: [max_position_embeddings], for its attention factor
  double attention_factor = 0.0;    ///< what sines and cosines are multiplied by; 0: what the scaling says
  std::array<Index, 4> sections{};  ///< pairs of each axis of positions (Qwen2-VL's mRoPE); none: one axis

  GQA_ALWAYS_INLINE Index axes() const noexcept {
    Index count = 0;
    while (count < 4 && sections[static_cast<std::size_t>(count)] > 0) ++count;
    return count > 0 ? count : 1;
  }
};

namespace detail {

// With a suffix: there is a flag that makes floats of constants without.
inline constexpr double kPi = static_cast<double>(3.14159265358979323846L);
inline constexpr double kLargestOption = static_cast<double>(1e300L);

}  // namespace detail
}  // namespace gqa

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI {

inline void check_rope(const RopeOptions& options) {
  const auto positive = [](const char* name, double given) {
    if (!(given > 0.0) || given > kLargestOption) fail(name, to_text(given), "a number above 0");
  };
  if (options.dims < 0 || options.dims % 2 != 0 || options.dims > (Index{1} << 20))
    fail("options.dims", options.dims, "an even number, 0 to 2^20");
  if (options.pairs > RopePairs::interleaved)
    fail("options.pairs", static_cast<Index>(options.pairs), "RopePairs::half_split or interleaved");
  positive("options.base", options.base);
  positive("options.factor", options.factor);
  if (options.scaling == RopeScaling::yarn) {
    positive("options.beta_fast", options.beta_fast);
    positive("options.beta_slow", options.beta_slow);
  }
  if (options.scaling == RopeScaling::llama3) {
    positive("options.low_freq_factor", options.low_freq_factor);
    positive("options.high_freq_factor", options.high_freq_factor);
  }
  if (options.scaling == RopeScaling::longrope) {
    if (!(options.attention_factor > 0.0)) positive("options.max_positions", options.max_positions);
    for (const double divisor : options.divisors) positive("options.divisors", divisor);
  }
  if (options.scaling == RopeScaling::yarn || options.scaling == RopeScaling::llama3 ||
      options.scaling == RopeScaling::longrope) {
    if (options.original_positions < 1) fail("options.original_positions", options.original_positions, "1 or more");
  }
  if (options.scaling == RopeScaling::ntk && options.dims == 2) fail("options.dims", options.dims, "4 or more for ntk");
  if (options.scaling == RopeScaling::longrope && static_cast<Index>(options.divisors.size()) != options.dims / 2)
    fail("options.divisors.size()", static_cast<Index>(options.divisors.size()),
         "options.dims / 2 = " + to_text(options.dims / 2));
  Index pairs = 0;
  Index sections = 0;
  for (const Index section : options.sections) {
    if (section < 0 || section > options.dims / 2)
      fail("options.sections", section, "0 to options.dims / 2 = " + to_text(options.dims / 2) + " pairs each");
    pairs += section;
    if (section > 0) ++sections;
  }
  if (sections > options.axes())
    fail("options.sections", sections, "sections with pairs, one behind the other, before those of 0");
  if (pairs != 0 && pairs != options.dims / 2)
    fail("options.sections", pairs, "options.dims / 2 = " + to_text(options.dims / 2) + " pairs in all");
}

/// YaRN's ramp of pair i: 0 where a frequency is kept, 1 where it is divided.
inline double yarn_ramp(const RopeOptions& options, Index i) noexcept {
  const auto dims = static_cast<double>(options.dims);
  const auto pair_of = [&](double turns) {  // the pair that turns so often over the original positions
    return dims * std::log(static_cast<double>(options.original_positions) / (turns * 2.0 * kPi)) /
           (2.0 * std::log(options.base));
  };
  double low = pair_of(options.beta_fast);
  double high = pair_of(options.beta_slow);
  if (options.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = low < 0.0 ? 0.0 : low;
  high = high > dims - 1.0 ? dims - 1.0 : high;
  if (!(low < high) && !(high < low)) high += static_cast<double>(0.001L);
  const double ramp = (static_cast<double>(i) - low) / (high - low);
  return ramp < 0.0 ? 0.0 : ramp > 1.0 ? 1.0 : ramp;
}

/// Llama 3.1's: long wavelengths divided, short ones kept, between them a step from one to the other.
inline double llama3_frequency(const RopeOptions& options, double frequency) noexcept {
  const auto original = static_cast<double>(options.original_positions);
  const double wavelength = 2.0 * kPi / frequency;
  if (wavelength > original / options.low_freq_factor) return frequency / options.factor;
  if (wavelength < original / options.high_freq_factor) return frequency;
  const double smooth =
      (original / wavelength - options.low_freq_factor) / (options.high_freq_factor - options.low_freq_factor);
  return (1.0 - smooth) * frequency / options.factor + rounded_product(smooth * frequency);
}

/// frequencies[i] ← radians a position of pair i, i in [0, dims / 2).
inline void fill_frequencies(const RopeOptions& options, std::span<double> frequencies) {
  check_rope(options);
  const auto dims = static_cast<double>(options.dims);
  const double base =
      options.scaling == RopeScaling::ntk ? options.base * std::pow(options.factor, dims / (dims - 2.0)) : options.base;
  for (Index i = 0; i < options.dims / 2; ++i) {
    double& frequency = frequencies[static_cast<std::size_t>(i)];
    frequency = std::pow(base, -2.0 * static_cast<double>(i) / dims);
    switch (options.scaling) {
      case RopeScaling::none: [[fallthrough]];
      case RopeScaling::ntk: [[fallthrough]];
      default: break;
      case RopeScaling::linear: frequency /= options.factor; break;
      case RopeScaling::yarn: {
        const double ramp = yarn_ramp(options, i);
        frequency = ramp * frequency / options.factor + rounded_product((1.0 - ramp) * frequency);
        break;
      }
      case RopeScaling::llama3: frequency = llama3_frequency(options, frequency); break;
      case RopeScaling::longrope: frequency /= options.divisors[static_cast<std::size_t>(i)]; break;
    }
  }
}

inline double attention_factor(const RopeOptions& options) noexcept {
  if (options.attention_factor > 0.0) return options.attention_factor;
  if (options.scaling == RopeScaling::yarn) {
    const auto scale = [&](double m) {
      const double tenth = static_cast<double>(0.1L);
      return options.factor <= 1.0 ? 1.0 : rounded_product(tenth * m * std::log(options.factor)) + 1.0;
    };
    if (options.mscale > 0.0 && options.mscale_all_dim > 0.0)
      return scale(options.mscale) / scale(options.mscale_all_dim);
    return scale(1.0);
  }
  if (options.scaling == RopeScaling::longrope) {
    const double factor = options.max_positions / static_cast<double>(options.original_positions);
    return factor <= 1.0
               ? 1.0
               : std::sqrt(1.0 + std::log(factor) / std::log(static_cast<double>(options.original_positions)));
  }
  return 1.0;
}

/// turns[position − first] ← factor · cosines of the pairs, then factor · sines.
inline void fill_turns(std::span<const double> frequencies, Index first, Index positions, double factor, float* turns) {
  for (Index position = first; position < first + positions; ++position, turns += 2 * frequencies.size()) {
    for (std::size_t i = 0; i < frequencies.size(); ++i) {
      const double angle = static_cast<double>(position) * frequencies[i];
      turns[i] = static_cast<float>(factor * std::cos(angle));
      turns[frequencies.size() + i] = static_cast<float>(factor * std::sin(angle));
    }
  }
}

}  // namespace gqa::detail::inline GQA_ABI

GQA_END_PLAIN_REGION()
