// SPDX-License-Identifier: Apache-2.0
/// @file
/// What every benchmark binary shares: main, its options, its threads, and how an entry is timed and reported. Included by one
/// unit per binary, which defines register_benchmarks().
///
/// An entry is `operation/heads/type/tokens/path/threads`. Its time is the median over rounds in which the call and the limits it
/// is held against are sampled in turn; Google Benchmark's own iterations are not used. Counters:
///
///   bytes_per_s, flop_per_s       of the call
///   memory_bytes_per_s, peak_flop_per_s      of the machine, between the calls
///   percent_of_memory, percent_of_peak       the shares reached of those two
///   percent_of_limit              the larger of them: the share of what the machine allows; the label names the limit
///   target_percent                what is aimed for, where something is
#pragma once

#include <benchmark/benchmark.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "caches.hpp"
#include "gqa/gqa.hpp"
#include "machine_limits.hpp"
#include "measure.hpp"
#include "report.hpp"

namespace gqa::bench {

/// Defined by each binary: calls add() for every entry.
void register_benchmarks();

/// What --gqa_seconds and --gqa_threads set.
struct BenchOptions {
  double seconds = 0.2;
  std::vector<int> threads;
};
inline BenchOptions& bench_options() {
  static BenchOptions options;
  return options;
}

/// How long an entry is sampled.
inline double seconds_per_entry() { return bench_options().seconds; }
/// Thread counts to measure with: one, and two where there are two processors.
inline const std::vector<int>& thread_counts() { return bench_options().threads; }

/// The threads that calls and limits share, so that no idle thread of one spins beside the other.
inline ThreadTeam& team_of(int threads) {
  static std::map<int, std::unique_ptr<ThreadTeam>> teams;
  std::unique_ptr<ThreadTeam>& team = teams[threads];
  if (team == nullptr) team = std::make_unique<ThreadTeam>(threads);
  return *team;
}
inline MachineLimits& limits_of(int threads) {
  static std::map<int, std::unique_ptr<MachineLimits>> all;
  std::unique_ptr<MachineLimits>& limits = all[threads];
  if (limits == nullptr) limits = std::make_unique<MachineLimits>(team_of(threads));
  return *limits;
}

/// The paths that can run here, best first; the first is the one that calls take by themselves.
inline std::vector<Path> paths() {
  std::vector<Path> found;
  for (const Path path : {Path::amx, Path::avx512bf16, Path::avx512, Path::avx2, Path::portable})
    if (path <= active_path().path && path_available(path)) found.push_back(path);
  return found;
}
inline Path best_path() { return paths().front(); }

/// Registers an entry. `body` sets the iteration time and the counters.
template <class Body>
void add(const std::string& name, Body body) {
  benchmark::RegisterBenchmark(name.c_str(),
                               [body](benchmark::State& state) {
                                 try {
                                   body(state);
                                 } catch (const std::exception& error) {
                                   state.SkipWithError(error.what());
                                 }
                               })
      ->UseManualTime()
      ->Iterations(1)
      ->Unit(benchmark::kMicrosecond);
}

/// What one call does, and what it is held against.
struct Work {
  double bytes = 0;  ///< of K and V that must be read
  double flop = 0;
  Limit memory = Limit::memory_read;  ///< where K and V come from
  Limit peak = Limit::f32_portable;   ///< what multiplies
  double target_percent = 0;          ///< 0: none
  bool resident = false;  ///< each sample follows an untimed call, which fetches back what the limits drove out
};

/// Times `call` in turn with its limits and fills in the entry.
/// @param beside more sides to sample in turn
/// @return the medians of `beside`
inline std::vector<double> measure_call(benchmark::State& state, int threads, const Work& work,
                                        const std::function<void()>& call, const std::vector<Side>& beside = {}) {
  const TimedCall timed(call);
  MachineLimits& limits = limits_of(threads);
  const auto sample = [&] {
    if (work.resident) call();
    return timed();
  };
  std::vector<Side> sides{sample, limit_side(limits, work.memory, timed.estimate()),
                          limit_side(limits, work.peak, timed.estimate())};
  sides.insert(sides.end(), beside.begin(), beside.end());
  std::vector<double> medians = take_turns(sides, seconds_per_entry(), timed.estimate() > 0.2 ? 3 : 5);

  const double seconds = medians[0], memory_rate = medians[1], peak_rate = medians[2];
  for (auto _ : state) state.SetIterationTime(seconds);
  const double of_memory = 100 * work.bytes / seconds / memory_rate, of_peak = 100 * work.flop / seconds / peak_rate;
  state.counters["bytes_per_s"] = work.bytes / seconds;
  state.counters["memory_bytes_per_s"] = memory_rate;
  state.counters["percent_of_memory"] = of_memory;
  if (work.flop > 0) {
    state.counters["flop_per_s"] = work.flop / seconds;
    state.counters["peak_flop_per_s"] = peak_rate;
    state.counters["percent_of_peak"] = of_peak;
  }
  state.counters["percent_of_limit"] = std::max(of_memory, of_peak);
  if (work.target_percent > 0) state.counters["target_percent"] = work.target_percent;
  state.SetLabel(limit_name(of_memory >= of_peak ? work.memory : work.peak));
  return {medians.begin() + 3, medians.end()};
}

/// Takes --gqa_seconds=X, --gqa_threads=1,2 and --gqa_processor_time out of the command line. The last is for machines that others
/// use at the same time: see sample_processor_time(). It implies one thread.
inline void take_bench_options(int& argc, char** argv) {
  BenchOptions& options = bench_options();
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.rfind("--gqa_seconds=", 0) == 0) {
      options.seconds = std::atof(word.c_str() + 14);
    } else if (word.rfind("--gqa_threads=", 0) == 0) {
      for (std::size_t at = 14; at < word.size();
           at = word.find(',', at) == std::string::npos ? word.size() : word.find(',', at) + 1)
        options.threads.push_back(std::max(1, std::atoi(word.c_str() + at)));
    } else if (word == "--gqa_processor_time") {
      sample_processor_time() = true;
    } else {
      argv[kept++] = argv[i];
    }
  }
  argc = kept;
  if (sample_processor_time()) options.threads = {1};
  if (options.threads.empty()) options.threads = usable_processors() > 1 ? std::vector<int>{1, 2} : std::vector<int>{1};
}

}  // namespace gqa::bench

int main(int argc, char** argv) {
  using namespace gqa::bench;
  take_bench_options(argc, argv);
  bool own_lines = true, to_file = false;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.rfind("--benchmark_format", 0) == 0) own_lines = false;
    if (word.rfind("--benchmark_out=", 0) == 0) to_file = true;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::AddCustomContext("gqa_machine", machine_name());
  benchmark::AddCustomContext("gqa_path", gqa::path_name(best_path()));
  benchmark::AddCustomContext("gqa_streaming", gqa::detail::streaming_name(gqa::detail::streaming_in_use()));
  benchmark::AddCustomContext("gqa_clock", sample_processor_time() ? "processor time" : "wall");
  register_benchmarks();
  LineReporter lines;
  PlainJsonReporter file;
  benchmark::RunSpecifiedBenchmarks(own_lines ? &lines : nullptr, to_file ? &file : nullptr);
  benchmark::Shutdown();
  return 0;
}
