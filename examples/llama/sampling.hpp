// SPDX-License-Identifier: Apache-2.0
/// @file
/// The next token by chance: temperature, top-k, top-p and min-p, in this order, which is transformers'.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace llama {

using Token = int;

/// The likeliest token: the first of the greatest logits.
inline Token greedy(std::span<const float> logits) {
  return static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// How a token is drawn. Of tokens that are equally likely, those of lower ids are kept first.
struct Sampling {
  double temperature = 0;  ///< what logits are divided by before anything else; 0: always the likeliest token
  std::int64_t top_k = 0;  ///< so many of the likeliest tokens are kept; 0: all
  double top_p = 1;        ///< then the fewest of the likeliest whose share of those is at least this
  double min_p = 0;        ///< then those that are at least so likely as the likeliest, times this
  std::uint64_t seed = 0;  ///< of std::mt19937_64
};

/// e^x for x ≤ 0, within 2 units in the last place; 0 where that is below the normal numbers. Unlike the standard library's it gives the same bits
/// everywhere: sums of products are fused where it says so, and nowhere else, so that no compiler has a choice.
inline double exp_of_nonpositive(double x) {
  if (!(x > -708)) return 0;
  const double power = std::floor(std::fma(x, 0x1.71547652b82fep+0, 0.5));  // x / ln 2, to nearest
  double rest = std::fma(power, -0x1.62e42fefa39efp-1, x);                  // ln 2 in two parts
  rest = std::fma(power, -0x1.abc9e3b39803fp-56, rest);                     // at most ln 2 / 2 from 0
  constexpr auto factors = [] {  // Taylor's series, 1 / n!; what is left out is below 2⁻⁶²
    std::array<double, 15> made{1};
    for (std::size_t n = 1; n < made.size(); ++n) made[n] = made[n - 1] / static_cast<double>(n);
    return made;
  }();
  double sum = 0;
  for (std::size_t n = factors.size(); n-- > 0;) sum = std::fma(sum, rest, factors[n]);
  return sum * std::bit_cast<double>(static_cast<std::uint64_t>(static_cast<std::int64_t>(power) + 1023) << 52);
}

/// Draws tokens: for the same logits and seed the same ones on every machine and with every compiler, as the generator is the standard's, to the
/// bit, and the draw is its first 53 bits through the inverse of the distribution: the first token at which the sum of weights exceeds that
/// part of all of it, in the order of ids if nothing is cut and from the likeliest down if something is.
class Sampler {
 public:
  /// @throws std::invalid_argument that names the option, its value and what is expected
  explicit Sampler(const Sampling& how) : how_(how), bits_(how.seed) {
    const auto expect = [](bool fits, const char* name, const std::string& value, const char* expected) {
      if (!fits) throw std::invalid_argument(std::string(name) + " is " + value + "; expected " + expected);
    };
    expect(how.temperature >= 0 && how.temperature <= std::numeric_limits<double>::max(), "--temperature",
           text(how.temperature), "a number from 0 on");
    expect(how.top_k >= 0, "--top-k", std::to_string(how.top_k), "a whole number from 0 (all tokens) on");
    expect(how.top_p > 0 && how.top_p <= 1, "--top-p", text(how.top_p), "a number above 0, 1 (all tokens) at most");
    expect(how.min_p >= 0 && how.min_p <= 1, "--min-p", text(how.min_p), "a number from 0 (all tokens) to 1");
  }

  /// @param logits  of every token of the vocabulary, at least one, all finite
  Token operator()(std::span<const float> logits) {
    const Token best = greedy(logits);
    if (how_.temperature <= 0) return best;
    weights_.resize(logits.size());
    for (std::size_t i = 0; i < logits.size(); ++i) weights_[i] = {0, logits[i], static_cast<Token>(i)};
    weigh_and_cut(logits[static_cast<std::size_t>(best)]);
    const double drawn = static_cast<double>(bits_() >> 11) * 0x1p-53 * sum(weights_);  // below the sum
    double passed = 0;
    for (const Weight& weight : weights_)
      if ((passed += weight.value) > drawn) return weight.token;
    return best;  // not reached: in the end `passed` is the sum
  }

 private:
  struct Weight {
    double value;  ///< probability, relative to the likeliest token's
    float logit;
    Token token;
  };

  static std::string text(double value) {
    char made[32];
    std::snprintf(made, sizeof made, "%g", value);
    return made;
  }

  static double sum(const std::vector<Weight>& weights) {
    double made = 0;
    for (const Weight& weight : weights) made += weight.value;
    return made;
  }

  /// Leaves the tokens that may be drawn, with their weights, from the likeliest down if there was anything to cut.
  void weigh_and_cut(double most) {
    const auto more_likely = [](const Weight& a, const Weight& b) {
      return a.logit > b.logit || (a.logit >= b.logit && a.token < b.token);
    };
    const auto at = [&](std::size_t i) { return weights_.begin() + static_cast<std::ptrdiff_t>(i); };
    std::size_t sorted = 0;
    if (how_.top_k > 0 && static_cast<std::size_t>(how_.top_k) < weights_.size()) {
      sorted = static_cast<std::size_t>(how_.top_k);
      std::partial_sort(at(0), at(sorted), weights_.end(), more_likely);
      weights_.resize(sorted);
    }
    for (Weight& weight : weights_) weight.value = exp_of_nonpositive((weight.logit - most) / how_.temperature);
    if (how_.top_p >= 1 && how_.min_p <= 0) return;
    const double enough = how_.top_p >= 1 ? std::numeric_limits<double>::infinity() : how_.top_p * sum(weights_);
    double likeliest = 0;  // the sum of those that are kept
    std::size_t kept = 0;
    for (; kept < weights_.size() && likeliest < enough; ++kept) {
      if (kept == sorted) {  // few are kept of a large vocabulary
        sorted = std::min(weights_.size(), std::max<std::size_t>(256, 8 * sorted));
        std::partial_sort(at(kept), at(sorted), weights_.end(), more_likely);
      }
      if (weights_[kept].value < how_.min_p) break;
      likeliest += weights_[kept].value;
    }
    weights_.resize(kept);
  }

  Sampling how_;
  std::mt19937_64 bits_;
  std::vector<Weight> weights_;
};

}  // namespace llama
