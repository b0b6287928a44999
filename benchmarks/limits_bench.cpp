// SPDX-License-Identifier: Apache-2.0
/// @file
/// The machine's limits as benchmarks: limits/<what>/t<threads>. Everything else is held against these.

#include "bench_main.hpp"

namespace gqa::bench {

void register_benchmarks() {
  for (const int threads : thread_counts())
    for (const Limit limit : all_limits) {
      if (!limit_available(limit)) continue;
      const std::string name = std::string("limits/") + limit_name(limit) + "/t" + std::to_string(threads);
      add(name, [=](benchmark::State& state) {
        MachineLimits& limits = limits_of(threads);
        limits.sample(limit);  // chooses kernels, touches memory
        std::vector<double> rates;
        for (const double end = now() + seconds_per_entry(); rates.size() < 5 || now() < end;)
          rates.push_back(limits.sample(limit));
        const double rate = median(std::move(rates));
        // The time shown is that of 64 MiB or of 1 GFLOP.
        const double unit = counts_bytes(limit) ? 64.0 * (1 << 20) : 1e9;
        for (auto _ : state) state.SetIterationTime(unit / rate);
        state.SetLabel("itself");
        state.counters[counts_bytes(limit) ? "bytes_per_s" : "flop_per_s"] = rate;
        state.counters["percent_of_limit"] = 100;
      });
    }
}

}  // namespace gqa::bench
