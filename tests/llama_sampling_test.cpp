// SPDX-License-Identifier: Apache-2.0
// Tokens that examples/llama draws by chance: each against the definition, computed apart in extended precision from the same bits of the
// generator; how often they come; where they are cut off; and options that are refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../examples/llama/sampling.hpp"

namespace llama {
namespace {

/// Tokens that may be drawn, in the order in which they are passed, and their probabilities.
struct Distribution {
  std::vector<Token> tokens;
  std::vector<long double> shares;
};

Distribution definition(const std::vector<float>& logits, const Sampling& how) {
  Distribution made;
  made.tokens.resize(logits.size());
  std::iota(made.tokens.begin(), made.tokens.end(), 0);
  const auto logit = [&](Token token) { return logits[static_cast<std::size_t>(token)]; };
  const bool cut = (how.top_k > 0 && how.top_k < std::ssize(logits)) || how.top_p < 1 || how.min_p > 0;
  if (cut)
    std::stable_sort(made.tokens.begin(), made.tokens.end(), [&](Token a, Token b) { return logit(a) > logit(b); });
  const auto weigh = [&] {
    const float most = *std::max_element(logits.begin(), logits.end());
    made.shares.clear();
    for (const Token token : made.tokens)
      made.shares.push_back(std::exp((static_cast<long double>(logit(token)) - most) / how.temperature));
    const long double all = std::accumulate(made.shares.begin(), made.shares.end(), 0.0L);
    for (long double& share : made.shares) share /= all;
  };
  if (how.top_k > 0 && how.top_k < std::ssize(logits)) made.tokens.resize(static_cast<std::size_t>(how.top_k));
  weigh();
  if (how.top_p < 1) {
    long double sum = 0;
    std::size_t count = 0;
    while (count < made.shares.size() && sum < how.top_p) sum += made.shares[count++];
    made.tokens.resize(count);
    weigh();
  }
  if (how.min_p > 0) {
    std::size_t count = 0;
    while (count < made.shares.size() && made.shares[count] >= how.min_p * made.shares[0]) ++count;
    made.tokens.resize(count);
    weigh();
  }
  return made;
}

std::vector<float> random_logits(std::size_t count, double from, double to) {
  std::mt19937 bits(5);
  std::vector<float> made;
  for (std::size_t i = 0; i < count; ++i)
    made.push_back(static_cast<float>(from + (to - from) * static_cast<double>(bits()) / 4294967296.0));
  return made;
}

std::vector<Sampling> samplings() {
  return {{.temperature = 1, .seed = 1},
          {.temperature = 0.5, .seed = 2},
          {.temperature = 2, .seed = 3},
          {.temperature = 1, .top_k = 7, .seed = 4},
          {.temperature = 1, .top_p = 0.8, .seed = 5},
          {.temperature = 1, .min_p = 0.05, .seed = 6},
          {.temperature = 1.5, .top_k = 30, .top_p = 0.9, .min_p = 0.02, .seed = 7},
          {.temperature = 2, .top_k = 1000000, .top_p = 0.95, .seed = ~std::uint64_t{0}}};
}

/// Tokens that are drawn, sorted, without repetitions.
std::vector<Token> drawn(const std::vector<float>& logits, const Sampling& how, int draws = 2000) {
  Sampler sampler(how);
  std::vector<Token> made;
  for (int i = 0; i < draws; ++i) made.push_back(sampler(logits));
  std::sort(made.begin(), made.end());
  made.erase(std::unique(made.begin(), made.end()), made.end());
  return made;
}

using Tokens = std::vector<Token>;

TEST(LlamaSampling, EachDrawIsTheInverseOfTheDistribution) {
  // Of a few tokens, and of so many that their order is found in several steps.
  for (const std::size_t vocabulary : {1u, 50u, 6000u})
    for (const Sampling& how : samplings()) {
      const std::vector<float> logits = random_logits(vocabulary, -2, 2);
      const Distribution expected = definition(logits, how);
      Sampler sampler(how);
      std::mt19937_64 bits(how.seed);
      for (int draw = 0; draw < 200; ++draw) {
        const long double part = static_cast<long double>(bits() >> 11) * 0x1p-53L;
        long double sum = 0;
        std::size_t at = 0;
        while ((sum += expected.shares[at]) <= part) ++at;
        ASSERT_EQ(sampler(logits), expected.tokens[at])
            << vocabulary << " tokens, seed " << how.seed << ", draw " << draw;
      }
    }
}

TEST(LlamaSampling, TokensComeAsOftenAsTheyShould) {
  // Pearson's sum over k tokens is chi-square distributed with d = k − 1 degrees of freedom, which exceeds d + 2 √(d t) + 2 t with
  // probability e⁻ᵗ at most (Laurent and Massart 2000); t: a billion to one. All tokens are expected 5 times or more.
  constexpr int draws = 100000;
  const double t = std::log(1e9);
  const std::vector<float> logits = random_logits(40, -1.8, 1.8);
  const auto pearson = [&](const Distribution& expected, Sampling how) {
    Sampler sampler(how);
    std::vector<int> counts(logits.size());
    for (int i = 0; i < draws; ++i) ++counts[static_cast<std::size_t>(sampler(logits))];
    double sum = 0;
    int counted = 0;
    for (std::size_t i = 0; i < expected.tokens.size(); ++i) {
      const auto mean = static_cast<double>(draws * expected.shares[i]);
      EXPECT_GE(mean, 5);
      const int count = counts[static_cast<std::size_t>(expected.tokens[i])];
      counted += count;
      sum += (count - mean) * (count - mean) / mean;
    }
    EXPECT_EQ(counted, draws) << "tokens were drawn that had been cut off";
    return sum;
  };
  for (const Sampling& how : samplings()) {
    const Distribution expected = definition(logits, how);
    const auto d = static_cast<double>(expected.tokens.size() - 1);
    const double bound = d + 2 * std::sqrt(d * t) + 2 * t;
    EXPECT_LE(pearson(expected, how), bound) << "seed " << how.seed;
    if (how.top_k > 0 || how.top_p < 1 || how.min_p > 0) continue;
    Sampling warmer = how;
    warmer.temperature *= 1.1;
    EXPECT_GT(pearson(expected, warmer), bound) << "the bound says nothing";
  }
}

TEST(LlamaSampling, CutsAreWhereTheyAreDefinedAndTiesGoToLowerIds) {
  const std::vector<float> ties{1, 3, 3, 2, 3};
  EXPECT_EQ(drawn(ties, {.temperature = 1, .top_k = 1}), (Tokens{1}));
  EXPECT_EQ(drawn(ties, {.temperature = 1, .top_k = 2}), (Tokens{1, 2}));
  EXPECT_EQ(drawn(ties, {.temperature = 1, .top_k = 4}), (Tokens{1, 2, 3, 4}));
  EXPECT_EQ(drawn(ties, {.temperature = 1, .top_k = 9}), (Tokens{0, 1, 2, 3, 4}));
  // So hot that all probabilities are the same number: the order is that of logits.
  EXPECT_EQ(drawn({1, 2, 3, 4}, {.temperature = 1e30, .top_k = 2}), (Tokens{2, 3}));

  const std::vector<float> quarters(4, 0.0f);
  EXPECT_EQ(drawn(quarters, {.temperature = 1, .top_p = 0.25}), (Tokens{0}));
  EXPECT_EQ(drawn(quarters, {.temperature = 1, .top_p = std::nextafter(0.25, 1.0)}), (Tokens{0, 1}));
  EXPECT_EQ(drawn(quarters, {.temperature = 1, .top_p = 0.75}), (Tokens{0, 1, 2}));
  EXPECT_EQ(drawn(quarters, {.temperature = 1, .top_p = std::numeric_limits<double>::min()}), (Tokens{0}));
  EXPECT_EQ(drawn(quarters, {.temperature = 1, .min_p = 1}), (Tokens{0, 1, 2, 3}));

  const double second = exp_of_nonpositive(-1);  // so likely as the likeliest
  EXPECT_EQ(drawn({0, 1}, {.temperature = 1, .min_p = second}), (Tokens{0, 1}));
  EXPECT_EQ(drawn({0, 1}, {.temperature = 1, .min_p = std::nextafter(second, 1.0)}), (Tokens{1}));
}

TEST(LlamaSampling, TheOrderIsTemperatureTopKTopPMinP) {
  const std::vector<float> logits{std::log(0.4f), std::log(0.3f), std::log(0.2f), std::log(0.1f)};
  // By top-p alone two tokens; of the two that top-k leaves, 4/7 and 3/7, the first is enough.
  EXPECT_EQ(drawn(logits, {.temperature = 1, .top_p = 0.5}), (Tokens{0, 1}));
  EXPECT_EQ(drawn(logits, {.temperature = 1, .top_k = 2, .top_p = 0.5}), (Tokens{0}));
  // At temperature 2 probabilities are as square roots: 0.325, 0.282, 0.230, 0.163.
  EXPECT_EQ(drawn(logits, {.temperature = 1, .top_p = 0.35}), (Tokens{0}));
  EXPECT_EQ(drawn(logits, {.temperature = 2, .top_p = 0.35}), (Tokens{0, 1}));
  // Roots of 0.4 and 0.1 are as 1 to 0.5; and what min-p cuts off counts for top-p: 0.4 + 0.3 are 0.7 of all, but all of what min-p leaves.
  EXPECT_EQ(drawn(logits, {.temperature = 2, .min_p = 0.49}), (Tokens{0, 1, 2, 3}));
  EXPECT_EQ(drawn(logits, {.temperature = 1, .min_p = 0.49}), (Tokens{0, 1, 2}));
  EXPECT_EQ(drawn(logits, {.temperature = 1, .top_p = 0.55, .min_p = 0.6}), (Tokens{0, 1}));
}

TEST(LlamaSampling, WithoutTemperatureTheLikeliestTokenIsTaken) {
  for (int seed = 0; seed < 50; ++seed) {
    std::vector<float> logits = random_logits(100, -2, 2);
    std::rotate(logits.begin(), logits.begin() + seed, logits.end());
    const auto likeliest = static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    EXPECT_EQ(greedy(logits), likeliest);
    for (const double temperature : {0.0, std::numeric_limits<double>::denorm_min(), 1e-300, 1e-6})
      EXPECT_EQ(drawn(logits, {.temperature = temperature, .seed = 3}, 20), (Tokens{likeliest})) << temperature;
  }
  EXPECT_EQ(greedy(std::vector<float>{1, 2, 2}), 1);
  EXPECT_EQ(drawn({1, 2, 2}, {.temperature = 0}), (Tokens{1}));
  EXPECT_EQ(drawn({1, 2, 2}, {.temperature = 1e-300}), (Tokens{1, 2})) << "two that are equally likely";
}

TEST(LlamaSampling, ASeedGivesTheSameTokensEverywhere) {
  // Found by another program: the generator from its recurrence, exponentials with 60 digits.
  std::vector<float> logits;
  for (int i = 0; i < 101; ++i) logits.push_back(static_cast<float>(i * 37 % 101) / 16);
  const auto draw = [&](const Sampling& how) {
    Sampler sampler(how);
    Tokens made;
    for (int i = 0; i < 20; ++i) made.push_back(sampler(logits));
    return made;
  };
  EXPECT_EQ(draw({.temperature = 0.75, .seed = 2026}),
            (Tokens{30, 62, 49, 79, 29, 68, 30, 90, 79, 8, 46, 37, 30, 30, 5, 68, 65, 84, 37, 49}));
  EXPECT_EQ(draw({.temperature = 1.5, .top_k = 40, .top_p = 0.875, .min_p = 0.0625, .seed = 2026}),
            (Tokens{8, 76, 27, 65, 49, 5, 79, 73, 65, 30, 98, 38, 79, 8, 30, 5, 76, 54, 38, 27}));
  // Of 16 tokens that are equally likely: the first four bits.
  std::mt19937_64 bits(9);
  Sampler sampler({.temperature = 1, .seed = 9});
  for (int i = 0; i < 100; ++i) EXPECT_EQ(sampler(std::vector<float>(16, 2.5f)), static_cast<Token>(bits() >> 60));
}

TEST(LlamaSampling, ExponentialsAreWithinTwoUnitsInTheLastPlace) {
  EXPECT_EQ(exp_of_nonpositive(0), 1);
  EXPECT_EQ(exp_of_nonpositive(-std::numeric_limits<double>::infinity()), 0);
  EXPECT_EQ(exp_of_nonpositive(-708), 0);
  std::mt19937_64 bits(4);
  for (int i = 0; i < 200000; ++i) {
    const double x = -708 * std::pow(static_cast<double>(bits() >> 11) * 0x1p-53, 4.0);
    const long double exact = std::exp(static_cast<long double>(x));
    const double made = exp_of_nonpositive(x);
    const double unit = std::nextafter(made, 2.0) - made;
    ASSERT_LE(std::abs(static_cast<double>(made - exact)), 2 * unit) << x;
  }
}

TEST(LlamaSampling, WrongOptionsAreNamed) {
  const auto complaint = [](const Sampling& how) -> std::string {
    try {
      const Sampler sampler(how);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "nothing thrown";
  };
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(complaint({.temperature = -0.5}), "--temperature is -0.5; expected a number from 0 on");
  EXPECT_EQ(complaint({.temperature = nan}), "--temperature is nan; expected a number from 0 on");
  EXPECT_EQ(complaint({.temperature = infinity}), "--temperature is inf; expected a number from 0 on");
  EXPECT_EQ(complaint({.top_k = -1}), "--top-k is -1; expected a whole number from 0 (all tokens) on");
  EXPECT_EQ(complaint({.top_p = 0}), "--top-p is 0; expected a number above 0, 1 (all tokens) at most");
  EXPECT_EQ(complaint({.top_p = 1.25}), "--top-p is 1.25; expected a number above 0, 1 (all tokens) at most");
  EXPECT_EQ(complaint({.top_p = nan}), "--top-p is nan; expected a number above 0, 1 (all tokens) at most");
  EXPECT_EQ(complaint({.min_p = -1}), "--min-p is -1; expected a number from 0 (all tokens) to 1");
  EXPECT_EQ(complaint({.min_p = 1.5}), "--min-p is 1.5; expected a number from 0 (all tokens) to 1");
  EXPECT_EQ(complaint({.temperature = 1, .top_k = 5, .top_p = 1, .min_p = 0}), "nothing thrown");
}

}  // namespace
}  // namespace llama
