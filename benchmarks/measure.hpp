// SPDX-License-Identifier: Apache-2.0
/// @file
/// Timing on machines that are never quiet: everything that is compared is sampled in turn, round after round, and what is
/// reported are medians. A disturbance then hits both sides alike.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "machine_limits.hpp"

namespace gqa::bench {

/// One side of a comparison: takes a sample and returns it (seconds, or a rate).
using Side = std::function<double()>;

/// Samples the sides in turn until `seconds` have passed, at least `least` rounds and at most `most`.
/// @return the median of each side's samples
inline std::vector<double> take_turns(const std::vector<Side>& sides, double seconds, int least = 5, int most = 400) {
  std::vector<std::vector<double>> samples(sides.size());
  const double end = now() + seconds;
  for (int round = 0; round < most && (round < least || now() < end); ++round)
    for (std::size_t i = 0; i < sides.size(); ++i) samples[i].push_back(sides[i]());
  std::vector<double> medians;
  for (std::vector<double>& each : samples) medians.push_back(median(std::move(each)));
  return medians;
}

/// Calls as one side: the seconds of one of them. Short calls are timed many at a time. The first call is in no sample: it lets
/// caches and scratch be allocated.
class TimedCall {
 public:
  explicit TimedCall(std::function<void()> call) : call_(std::move(call)) {
    double once = 0;
    for (int i = 0; i < 2 && once < 0.5; ++i) {
      const double start = sample_clock();
      call_();
      once = sample_clock() - start;
    }
    constexpr double least = 300e-6;
    repeats_ = once >= least ? 1 : static_cast<int>(std::min(least / std::max(once, 1e-8), 1e5)) + 1;
    seconds_ = once;
  }

  /// Seconds of one call.
  double operator()() const {
    const double start = sample_clock();
    for (int i = 0; i < repeats_; ++i) call_();
    return (sample_clock() - start) / repeats_;
  }

  /// Seconds of one call, roughly, from before the first sample.
  double estimate() const { return seconds_; }

 private:
  std::function<void()> call_;
  int repeats_ = 1;
  double seconds_ = 0;
};

/// A limit as one side. Beside calls that take long, a sample is the median of several, so that it sees as much of the machine's
/// moods as they do.
inline Side limit_side(MachineLimits& limits, Limit limit, double beside_seconds = 0) {
  limits.sample(limit);  // chooses kernels, touches memory
  const int samples = 1 + static_cast<int>(std::min(beside_seconds / 0.02, 8.0));
  return [&limits, limit, samples] { return limits.measure(limit, samples); };
}

}  // namespace gqa::bench
