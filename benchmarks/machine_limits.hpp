// SPDX-License-Identifier: Apache-2.0
/// @file
/// The machine's own limits, measured in the binary and the run that divides by them: how fast it reads memory and its caches,
/// how fast it multiplies and adds. Samples are short, so that they can be taken in turn with what they are a limit for.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <vector>

#include "gqa/cpu.hpp"
#include "gqa/element.hpp"
#include "limit_kernels.hpp"
#include "machine.hpp"
#include "thread_team.hpp"

namespace gqa::bench {

/// A rate that a machine cannot exceed.
enum class Limit {
  memory_read,          ///< the best of the three below: what "share of read bandwidth" divides by
  memory_read_1,        ///< one stream
  memory_read_4,        ///< four streams
  memory_read_ahead,    ///< one stream, prefetched
  memory_read_strided,  ///< 256 of every 2048 bytes; only those 256 are counted
  memory_write,         ///< from a source in L1
  l2_read,
  l1_read,
  f32_portable,  ///< multiply and add as the plain build has them, 4 lanes
  f32_avx2,
  f32_avx512,
  bf16_dot,  ///< vdpbf16ps
  bf16_tile  ///< tdpbf16ps
};

inline constexpr std::array all_limits{Limit::memory_read,
                                       Limit::memory_read_1,
                                       Limit::memory_read_4,
                                       Limit::memory_read_ahead,
                                       Limit::memory_read_strided,
                                       Limit::memory_write,
                                       Limit::l2_read,
                                       Limit::l1_read,
                                       Limit::f32_portable,
                                       Limit::f32_avx2,
                                       Limit::f32_avx512,
                                       Limit::bf16_dot,
                                       Limit::bf16_tile};

inline const char* limit_name(Limit limit) {
  constexpr const char* names[] = {
      "memory_read",  "memory_read_1", "memory_read_4", "memory_read_ahead", "memory_read_strided",
      "memory_write", "l2_read",       "l1_read",       "f32_portable",      "f32_avx2",
      "f32_avx512",   "bf16_dot",      "bf16_tile"};
  return names[static_cast<int>(limit)];
}

/// True for limits in bytes per second; the others are in FLOP per second.
inline bool counts_bytes(Limit limit) { return limit < Limit::f32_portable; }

/// True if this machine has what the limit is about.
inline bool limit_available(Limit limit) {
  switch (limit) {
    case Limit::f32_avx2: return path_available(Path::avx2);
    case Limit::f32_avx512: return path_available(Path::avx512);
    case Limit::bf16_dot: return path_available(Path::avx512bf16);
    case Limit::bf16_tile: return path_available(Path::amx);
    default: return true;
  }
}

/// The multiply-adds that a path's kernels are made of.
/// @param bf16_products whether queries, keys and values are all bf16 (or rounding to it was accepted)
inline Limit peak_of(Path path, bool bf16_products) {
  switch (path) {
    case Path::amx: return bf16_products ? Limit::bf16_tile : Limit::f32_avx512;
    case Path::avx512bf16: return bf16_products ? Limit::bf16_dot : Limit::f32_avx512;
    case Path::avx512: return Limit::f32_avx512;
    case Path::avx2: return Limit::f32_avx2;
    default: return Limit::f32_portable;
  }
}

/// The middle one of some values (of an even number, the lower of the two in the middle). Empty: 0.
inline double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Samples limits with a team of threads, all of them busy at once. A sample takes about two milliseconds.
/// Not to be used from two threads at a time.
class MachineLimits {
 public:
  explicit MachineLimits(ThreadTeam& team) : team_(team) {}

  int threads() const { return team_.size(); }

  /// One sample: bytes per second or FLOP per second, all threads together.
  double sample(Limit limit) {
    switch (limit) {
      case Limit::memory_read: return sample_memory(best_read());
      case Limit::memory_read_1: return sample_memory(kernels().one);
      case Limit::memory_read_4: return sample_memory(kernels().four);
      case Limit::memory_read_ahead: return sample_memory(kernels().ahead);
      case Limit::memory_read_strided: return sample_memory(kernels().strided) / 8;
      case Limit::memory_write: return sample_write();
      case Limit::l2_read: return sample_cache(std::min<std::size_t>(sizes_.l2 / 2, std::size_t{512} << 10));
      case Limit::l1_read: return sample_cache(sizes_.l1 * 3 / 4);
      case Limit::f32_portable: return sample_peak(limit, kernels::peak_portable);
#if defined(__x86_64__)
      case Limit::f32_avx2: return sample_peak(limit, kernels::peak_avx2);
      case Limit::f32_avx512: return sample_peak(limit, kernels::peak_avx512);
      case Limit::bf16_dot: return sample_peak(limit, kernels::peak_avx512bf16);
      case Limit::bf16_tile: return sample_peak(limit, kernels::peak_amx);
#endif
      default: return 0;
    }
  }

  /// The median of `samples` samples.
  double measure(Limit limit, int samples = 9) {
    std::vector<double> rates;
    for (int i = 0; i < samples; ++i) rates.push_back(sample(limit));
    return median(std::move(rates));
  }

 private:
  struct Kernels {
    ReadKernel one, four, ahead, strided;
  };

  // The widest loads there are. Four streams and prefetching make up for what a single stream may lose.
  static Kernels kernels() {
#if defined(__x86_64__)
    if (path_available(Path::avx512))
      return {kernels::read_avx512<1, 0>, kernels::read_avx512<4, 0>, kernels::read_avx512<1, 4096>,
              kernels::read_strided_avx512};
    if (path_available(Path::avx2))
      return {kernels::read_avx2<1, 0>, kernels::read_avx2<4, 0>, kernels::read_avx2<1, 4096>,
              kernels::read_strided_avx2};
#endif
    return {kernels::read_portable<1, 0>, kernels::read_portable<4, 0>, kernels::read_portable<1, 4096>,
            kernels::read_strided_portable};
  }

  // Memory that no cache holds, written once so that every page is there. One for all instances.
  static const HugeBuffer& memory() {
    static const HugeBuffer buffer = [] {
      HugeBuffer fresh(out_of_cache_bytes());
      std::memset(fresh.data(), 1, fresh.size());
      return fresh;
    }();
    return buffer;
  }

  template <class Job>
  double seconds(Job&& job) {
    const double start = sample_clock();
    team_.run(job);
    return sample_clock() - start;
  }

  // The next part of the memory, each thread its own share of it.
  std::byte* next_slice(std::size_t bytes) {
    static std::size_t cursor = 0;
    if (cursor + bytes > memory().size()) cursor = 0;
    std::byte* const slice = memory().data() + cursor;
    cursor += bytes;
    return slice;
  }

  std::size_t share_bytes() const {
    constexpr std::size_t sweep = std::size_t{64} << 20, unit = std::size_t{64} << 10;
    return sweep / static_cast<std::size_t>(threads()) / unit * unit;
  }

  double sample_memory(ReadKernel kernel) {
    const std::size_t share = share_bytes(), bytes = share * static_cast<std::size_t>(threads());
    const std::byte* const slice = next_slice(bytes);
    const double time = seconds([&](int member) { kernel(slice + static_cast<std::size_t>(member) * share, share); });
    return static_cast<double>(bytes) / time;
  }

  double sample_write() {
    const std::size_t share = share_bytes(), bytes = share * static_cast<std::size_t>(threads());
    std::byte* const slice = next_slice(bytes);
    const double time =
        seconds([&](int member) { kernels::write_memory(slice + static_cast<std::size_t>(member) * share, share); });
    return static_cast<double>(bytes) / time;
  }

  double sample_cache(std::size_t bytes) {
    bytes = std::max<std::size_t>(4096, bytes / 4096 * 4096);
    const std::size_t repeats = (std::size_t{128} << 20) / bytes;
    while (static_cast<int>(resident_.size()) < threads()) resident_.emplace_back(std::size_t{2} << 20);
    const ReadKernel kernel = kernels().one;
    const auto job = [&](int member) {
      const std::byte* const mine = resident_[static_cast<std::size_t>(member)].data();
      for (std::size_t i = 0; i < repeats; ++i) kernel(mine, bytes);
    };
    team_.run([&](int member) {
      std::byte* const mine = resident_[static_cast<std::size_t>(member)].data();
      std::memset(mine, 1, bytes);
      kernel(mine, bytes);
    });
    return static_cast<double>(repeats * bytes) * threads() / seconds(job);
  }

  double sample_peak(Limit limit, PeakKernel kernel) {
    std::size_t& rounds = rounds_[limit];
    if (rounds == 0) {  // as many as take about a millisecond
      constexpr std::size_t trial = 20000;
      kernel(trial);
      const double start = now();
      kernel(trial);
      rounds = static_cast<std::size_t>(trial * std::clamp(1e-3 / (now() - start), 0.1, 100.0)) + 1;
    }
    std::vector<double> flops(static_cast<std::size_t>(threads()));
    const double time = seconds([&](int member) { flops[static_cast<std::size_t>(member)] = kernel(rounds); });
    double sum = 0;
    for (const double each : flops) sum += each;
    return sum / time;
  }

  ReadKernel best_read() {
    if (best_read_ == nullptr) {
      double best = 0;
      for (const ReadKernel kernel : {kernels().one, kernels().four, kernels().ahead}) {
        std::vector<double> rates;
        for (int i = 0; i < 7; ++i) rates.push_back(sample_memory(kernel));
        const double rate = median(std::move(rates));
        if (rate > best) {
          best = rate;
          best_read_ = kernel;
        }
      }
    }
    return best_read_;
  }

  ThreadTeam& team_;
  CacheSizes sizes_ = cache_sizes();
  std::vector<HugeBuffer> resident_;  // one for each thread
  std::map<Limit, std::size_t> rounds_;
  ReadKernel best_read_ = nullptr;
};

}  // namespace gqa::bench
