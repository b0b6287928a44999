// SPDX-License-Identifier: Apache-2.0
/// @file
/// How entries are shown: one line each, the share of the limit beside its target; and in Google Benchmark's JSON under their
/// plain names, without the tails that its way of timing would add.
#pragma once

#include <benchmark/benchmark.h>

#include <cstdio>
#include <ostream>
#include <string>
#include <vector>

#include "gqa/cpu.hpp"
#include "machine.hpp"

namespace gqa::bench {

/// The same runs, named as they were registered.
inline std::vector<benchmark::BenchmarkReporter::Run> with_plain_names(
    const std::vector<benchmark::BenchmarkReporter::Run>& runs) {
  std::vector<benchmark::BenchmarkReporter::Run> plain = runs;
  for (benchmark::BenchmarkReporter::Run& run : plain) {
    run.run_name.iterations.clear();
    run.run_name.time_type.clear();
  }
  return plain;
}

/// --benchmark_out's format.
class PlainJsonReporter : public benchmark::JSONReporter {
 public:
  void ReportRuns(const std::vector<Run>& runs) override {
    benchmark::JSONReporter::ReportRuns(with_plain_names(runs));
  }
};

/// The console's.
class LineReporter : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override {
    const CacheSizes caches = cache_sizes();
    GetErrorStream() << machine_name() << "; caches " << (caches.l1 >> 10) << " KiB, " << (caches.l2 >> 10) << " KiB, "
                     << (caches.l3 >> 20) << " MiB; path " << path_name(active_path().path) << ": "
                     << active_path().reason << "; streams are " << detail::streaming_name(detail::streaming_in_use())
                     << "\n";
    return true;
  }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : with_plain_names(runs)) print(run);
    GetOutputStream().flush();
  }

 private:
  static double counter(const Run& run, const char* name) {
    const auto found = run.counters.find(name);
    return found == run.counters.end() ? 0.0 : static_cast<double>(found->second);
  }
  static std::string formatted(const char* format, double value, const char* unit) {
    char text[64];
    std::snprintf(text, sizeof text, format, value, unit);
    return text;
  }
  void print(const Run& run) {
    std::ostream& out = GetOutputStream();
    std::string name = run.benchmark_name();
    name.resize(name.size() < 58 ? 58 : name.size(), ' ');
    out << name;
    if (run.error_occurred) {
      out << " failed: " << run.error_message << "\n";
      return;
    }
    const double micros = run.GetAdjustedRealTime();
    if (micros < 100) out << formatted(" %8.3f %s", micros, "us");
    else out << formatted(" %8.3f %s", micros / 1000, "ms");
    const double bytes = counter(run, "bytes_per_s"), flop = counter(run, "flop_per_s");
    out << (bytes > 0 ? formatted(" %7.2f %s", bytes / 1e9, "GB/s    ") : std::string(17, ' '));
    out << (flop > 0 ? formatted(" %7.1f %s", flop / 1e9, "GFLOP/s") : std::string(16, ' '));
    out << formatted(" %6.1f%%%s", counter(run, "percent_of_limit"), " of ") << run.report_label;
    if (const double target = counter(run, "target_percent"); target > 0)
      out << formatted(" (target %.0f%%%s)", target, "");
    out << "\n";
  }
};

}  // namespace gqa::bench
