// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the program runs on: the processor's name, its caches, its memory; and large buffers.
#pragma once

#include <sched.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <fstream>
#include <new>
#include <string>
#include <utility>

namespace gqa::bench {

/// Seconds on a clock that never goes back.
inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Whether samples count the calling thread's processor time instead of the time on the wall. For one thread on a machine that
/// others use too: what they take away is left out, though not what they do to caches and memory.
inline bool& sample_processor_time() {
  static bool chosen = false;
  return chosen;
}

/// Seconds on the clock that samples are taken with.
inline double sample_clock() {
  if (!sample_processor_time()) return now();
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// Keeps a value, and the work that made it, from being optimised away.
inline void keep(const void* value) { asm volatile("" : : "r"(value) : "memory"); }

/// Processors that this process may run on.
inline int usable_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  const int count = CPU_COUNT(&set);
  return count < 1 ? 1 : count;
}

/// "AMD EPYC 9R14, 2 processors", as the operating system names it.
inline std::string machine_name() {
  std::string model = "unknown processor";
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const std::size_t colon = line.find(':');
    if (colon != std::string::npos && colon + 2 < line.size()) model = line.substr(colon + 2);
    break;
  }
  const int count = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  return model + ", " + std::to_string(count) + (count == 1 ? " processor" : " processors");
}

/// Bytes of one core's data caches, and of the last level it shares. What the system does not tell is guessed small.
struct CacheSizes {
  std::size_t l1 = std::size_t{32} << 10;
  std::size_t l2 = std::size_t{512} << 10;
  std::size_t l3 = std::size_t{32} << 20;
};

inline CacheSizes cache_sizes() {
  CacheSizes sizes;
  for (int index = 0; index < 8; ++index) {
    const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    std::ifstream level_file(folder + "level"), type_file(folder + "type"), size_file(folder + "size");
    int level = 0;
    std::string type;
    std::size_t size = 0;
    char unit = 'B';
    if (!(level_file >> level) || !(type_file >> type) || !(size_file >> size)) continue;
    size_file >> unit;
    if (type == "Instruction") continue;
    size <<= unit == 'K' ? 10 : unit == 'M' ? 20 : 0;
    if (size == 0) continue;
    if (level == 1) sizes.l1 = size;
    if (level == 2) sizes.l2 = size;
    if (level == 3) sizes.l3 = size;
  }
  return sizes;
}

/// Bytes that must be walked before a byte read once is surely out of every cache: a few times the last level, but
/// within reason where a virtual machine reports its host's whole cache.
inline std::size_t out_of_cache_bytes() {
  constexpr std::size_t least = std::size_t{256} << 20, most = std::size_t{1} << 30;
  const std::size_t wanted = 4 * cache_sizes().l3;
  return wanted < least ? least : wanted > most ? most : wanted;
}

/// Bytes that a program may take without driving others out; 0 where the system does not tell.
inline std::size_t available_memory() {
  std::ifstream info("/proc/meminfo");
  for (std::string word; info >> word;) {
    std::size_t kib = 0;
    if (word == "MemAvailable:" && info >> kib) return kib << 10;
  }
  return 0;
}

/// Zeroed memory, aligned to and asking for huge pages. Owns it.
class HugeBuffer {
 public:
  HugeBuffer() = default;
  /// @throws std::bad_alloc if the system has no such room
  explicit HugeBuffer(std::size_t bytes) : size_(bytes) {
    mapped_ = bytes + page;
    void* const place = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED) throw std::bad_alloc();
    base_ = place;
    auto* const first = static_cast<std::byte*>(place);
    data_ = first + (page - reinterpret_cast<std::size_t>(first) % page) % page;
#if defined(MADV_HUGEPAGE)
    madvise(base_, mapped_, MADV_HUGEPAGE);
#endif
  }
  ~HugeBuffer() {
    if (base_ != nullptr) munmap(base_, mapped_);
  }
  HugeBuffer(HugeBuffer&& other) noexcept { swap(other); }
  HugeBuffer& operator=(HugeBuffer&& other) noexcept {
    swap(other);
    return *this;
  }

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }

 private:
  static constexpr std::size_t page = std::size_t{2} << 20;
  void swap(HugeBuffer& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(mapped_, other.mapped_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  void* base_ = nullptr;
  std::size_t mapped_ = 0;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace gqa::bench
