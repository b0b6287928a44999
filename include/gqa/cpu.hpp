// SPDX-License-Identifier: Apache-2.0
/// @file
/// Which instruction set runs, and why.
#pragma once

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "gqa/error.hpp"

#if GQA_DETAIL_X86
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif
#if GQA_DETAIL_NEON
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#endif

namespace gqa {

/// One instruction set's kernels, in rising order within an architecture:
/// portable (plain C++, any processor); neon (AArch64), neon_bf16 (the same with bf16 products; f32 arithmetic as neon); wasm (WebAssembly with
/// SIMD128); avx2 (AVX2, FMA, F16C), avx512 (AVX-512 F, BW, DQ, VL), avx512bf16 (the same with bf16 products; f32 arithmetic as avx512), amx
/// (AMX-BF16 tile products; f32 arithmetic as avx512). Those with bf16 products are the ones whose results differ from those of the others,
/// where inputs are bf16.
enum class Path : std::uint8_t {
#define GQA_DETAIL_PATH(name, architecture, test, arithmetic, reason) name,
#include "gqa/detail/path/paths.def"
#undef GQA_DETAIL_PATH
};

namespace detail {

inline constexpr Path kEveryPath[] = {
#define GQA_DETAIL_PATH(name, architecture, test, arithmetic, reason) Path::name,
#include "gqa/detail/path/paths.def"
#undef GQA_DETAIL_PATH
};
inline constexpr int kPaths = static_cast<int>(sizeof kEveryPath / sizeof kEveryPath[0]);
/// "portable, neon, …", behind a comma and a space.
inline constexpr char kPathNames[] =
#define GQA_DETAIL_PATH(name, architecture, test, arithmetic, reason) ", " #name
#include "gqa/detail/path/paths.def"
#undef GQA_DETAIL_PATH
    ;

/// What a path computes with where inputs are bf16.
enum class Arithmetic : std::uint8_t { f32, bf16 };
GQA_ALWAYS_INLINE constexpr Arithmetic path_arithmetic(Path path) noexcept {
  switch (path) {
#define GQA_DETAIL_PATH(name, architecture, test, arithmetic, reason) \
  case Path::name:                                                    \
    return Arithmetic::arithmetic;
#include "gqa/detail/path/paths.def"
#undef GQA_DETAIL_PATH
    default: break;
  }
  return Arithmetic::f32;
}

// Code for one architecture.
#define GQA_DETAIL_FOR_ANY(...) __VA_ARGS__
#if GQA_DETAIL_X86
#define GQA_DETAIL_FOR_X86(...) __VA_ARGS__
#else
#define GQA_DETAIL_FOR_X86(...)
#endif
#if GQA_DETAIL_NEON
#define GQA_DETAIL_FOR_ARM(...) __VA_ARGS__
#else
#define GQA_DETAIL_FOR_ARM(...)
#endif
#if GQA_DETAIL_WASM
#define GQA_DETAIL_FOR_WASM(...) __VA_ARGS__
#else
#define GQA_DETAIL_FOR_WASM(...)
#endif
#if defined(__x86_64__) && !GQA_DETAIL_X86
#define GQA_DETAIL_WHY_PORTABLE \
  "GCC for Windows, which does not align the stack for wide registers, compiles no other path"
#elif defined(__wasm__)
#define GQA_DETAIL_WHY_PORTABLE "the WebAssembly module was compiled without -msimd128, which the other path needs"
#else
#define GQA_DETAIL_WHY_PORTABLE "the processor has none of the instruction sets that other paths need"
#endif

}  // namespace detail

/// "portable", "neon", "neon_bf16", "wasm", "avx2", "avx512", "avx512bf16" or "amx": the words that GQA_PATH takes. "unknown" for any other number.
GQA_ALWAYS_INLINE constexpr const char* path_name(Path path) noexcept {
  switch (path) {
#define GQA_DETAIL_PATH(name, architecture, test, arithmetic, reason) \
  case Path::name:                                                    \
    return #name;
#include "gqa/detail/path/paths.def"
#undef GQA_DETAIL_PATH
    default: break;
  }
  return "unknown";
}

/// The path that calls take by default, and what decided it.
struct ActivePath {
  Path path;
  const char* reason;  ///< a sentence; static storage
};

namespace detail {

/// What the processor and the operating system allow.
struct CpuFeatures {
  bool neon = GQA_DETAIL_NEON;
  bool wasm = GQA_DETAIL_WASM;  ///< a module cannot ask what runs it
  bool avx2 = false;
  bool avx512 = false;
  bool avx512bf16 = false;
  bool amx = false;
  bool follows_loads = false;  ///< see Streaming::followed
  bool avx512vnni = false;     ///< beside avx512: sums of products of bytes
  bool neon_dot = false;       ///< beside neon: sums of products of bytes (FEAT_DotProd)
  bool neon_i8mm = false;      ///< beside neon: 2 × 8 by 8 × 2 matrices of bytes (FEAT_I8MM)
  bool neon_bf16 = false;      ///< beside neon: products of bf16, and of matrices of it (FEAT_BF16)
  bool sve = false;            ///< told for whoever asks: no path uses it
};

/// How keys and values come out of memory in time. It decides what is prefetched, and how long stages are; it changes no bit of a result.
enum class Streaming : std::uint8_t {
  prefetched,  ///< by prefetch instructions, some KiB ahead of the loads
  followed  ///< by loads in equal steps, which the processor follows: AMD's up to Zen 4, where prefetch instructions bring less
};

/// "prefetched" or "followed": the words that GQA_STREAMING takes.
GQA_ALWAYS_INLINE constexpr const char* streaming_name(Streaming streaming) noexcept {
  return streaming == Streaming::prefetched ? "prefetched" : "followed";
}

}  // namespace detail

namespace detail::inline GQA_ABI {

#if GQA_DETAIL_X86
inline std::uint64_t read_xcr0() noexcept {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

// AMD's families up to 19h: Zen to Zen 4, and Hygon's of the same kind.
inline bool follows_loads(std::uint32_t vendor, std::uint32_t signature) noexcept {
  constexpr std::uint32_t amd = 0x68747541;    // "Auth", of AuthenticAMD
  constexpr std::uint32_t hygon = 0x6f677948;  // "Hygo", of HygonGenuine
  const std::uint32_t base = (signature >> 8) & 0xfu;
  const std::uint32_t family = base == 0xfu ? base + ((signature >> 20) & 0xffu) : base;
  return (vendor == amd || vendor == hygon) && family <= 0x19;
}

inline CpuFeatures detect_features() noexcept {
  CpuFeatures has;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(0, &a, &b, &c, &d)) return has;
  const std::uint32_t vendor = b;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return has;
  has.follows_loads = follows_loads(vendor, a);
  const bool osxsave = (c >> 27) & 1u;
  const bool avx = (c >> 28) & 1u;
  const bool fma = (c >> 12) & 1u;
  const bool f16c = (c >> 29) & 1u;
  if (!osxsave || !avx) return has;
  const std::uint64_t xcr0 = read_xcr0();
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return has;
  has.avx2 = (xcr0 & 0x6u) == 0x6u && fma && f16c && ((b >> 5) & 1u);
  // F 16, DQ 17, BW 30, VL 31 of ebx; zmm state in XCR0.
  constexpr unsigned avx512_bits = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);
  has.avx512 = has.avx2 && (xcr0 & 0xe6u) == 0xe6u && (b & avx512_bits) == avx512_bits;
  has.avx512vnni = has.avx512 && ((c >> 11) & 1u);
  const bool amx_cpu = ((d >> 24) & 1u) && ((d >> 22) & 1u);  // AMX-TILE, AMX-BF16
  if (!has.avx512 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return has;
  has.avx512bf16 = (a >> 5) & 1u;
#if defined(__linux__)
  // Linux grants tile state on request, per process: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
  if (has.avx512bf16 && amx_cpu && (xcr0 & 0x60000u) == 0x60000u) has.amx = ::syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  static_cast<void>(amx_cpu);
#endif
  return has;
}
#elif GQA_DETAIL_NEON
/// What Linux says of an AArch64 processor, by the bits of its uapi/asm/hwcap.h: AT_HWCAP and AT_HWCAP2.
inline CpuFeatures features_of_hwcaps(std::uint64_t hwcap, std::uint64_t hwcap2) noexcept {
  CpuFeatures has;
  has.neon_dot = (hwcap >> 20) & 1u;
  has.sve = (hwcap >> 22) & 1u;
  has.neon_i8mm = (hwcap2 >> 13) & 1u;
  has.neon_bf16 = (hwcap2 >> 14) & 1u;
  return has;
}
#if defined(__linux__)
inline CpuFeatures detect_features() noexcept { return features_of_hwcaps(::getauxval(16), ::getauxval(26)); }
#elif defined(__APPLE__)
inline bool system_says(const char* name) noexcept {
  int value = 0;
  std::size_t bytes = sizeof value;
  return ::sysctlbyname(name, &value, &bytes, nullptr, 0) == 0 && value != 0;
}
inline CpuFeatures detect_features() noexcept {
  CpuFeatures has;
  has.neon_dot = system_says("hw.optional.arm.FEAT_DotProd");
  has.neon_i8mm = system_says("hw.optional.arm.FEAT_I8MM");
  has.neon_bf16 = system_says("hw.optional.arm.FEAT_BF16");
  return has;
}
#else
inline CpuFeatures detect_features() noexcept { return {}; }
#endif
#else
inline CpuFeatures detect_features() noexcept { return {}; }
#endif

inline const CpuFeatures& features() noexcept {
#if defined( \
    GQA_DETAIL_EMULATED_AMX)  // a test program that executes tile instructions in software: 1; 2: where it is asked to
  static const CpuFeatures found = [] {
    CpuFeatures has = detect_features();
    if (GQA_DETAIL_EMULATED_AMX == 1 || std::getenv("GQA_TEST_AMX_ALONE") != nullptr) has.amx = has.avx512bf16;
    return has;
  }();
#else
  static const CpuFeatures found = detect_features();
#endif
  return found;
}

inline bool has_path([[maybe_unused]] const CpuFeatures& has, Path path) noexcept {
#define GQA_DETAIL_PATH(name, architecture, test, arithmetic, reason) \
  GQA_DETAIL_FOR_##architecture(if (path == Path::name) return test;)
#include "gqa/detail/path/paths.def"
#undef GQA_DETAIL_PATH
  return false;
}

inline Path best_path(const CpuFeatures& has, Path limit) noexcept {
  for (int i = static_cast<int>(limit); i > 0; --i)
    if (has_path(has, kEveryPath[i])) return kEveryPath[i];
  return Path::portable;
}

inline const char* path_reason(Path path) noexcept {
  switch (path) {
#define GQA_DETAIL_PATH(name, architecture, test, arithmetic, reason) \
  case Path::name:                                                    \
    return reason;
#include "gqa/detail/path/paths.def"
#undef GQA_DETAIL_PATH
    default: break;
  }
  return "";
}

inline Path parse_path(const char* word) {
  for (const Path path : kEveryPath)
    if (std::strcmp(word, path_name(path)) == 0) return path;
  fail("environment variable GQA_PATH", Text("\"") + word + "\"", Text("one of ") + (kPathNames + 2));
}

/// `wish`: the value of GQA_PATH, or null. Lowers the path, never raises it.
inline ActivePath choose_path(const CpuFeatures& has, const char* wish) {
  const Path best = best_path(has, kEveryPath[kPaths - 1]);
  if (wish == nullptr || *wish == '\0') return {best, path_reason(best)};
  const Path asked = parse_path(wish);
  if (!has_path(has, asked)) {
    if (asked < best)
      return {best_path(has, asked), "GQA_PATH names a path that cannot run here: the best below it runs"};
    return {best, "GQA_PATH names a path that cannot run here, and never raises it: the best that can runs"};
  }
  return {asked, "GQA_PATH asks for it"};
}

inline const ActivePath& chosen_path() {
  static const ActivePath chosen = choose_path(features(), std::getenv("GQA_PATH"));
  return chosen;
}

/// `wish`: the value of GQA_STREAMING, or null.
inline Streaming choose_streaming(const CpuFeatures& has, const char* wish) {
  if (wish == nullptr || *wish == '\0') return has.follows_loads ? Streaming::followed : Streaming::prefetched;
  constexpr Streaming every[] = {Streaming::prefetched, Streaming::followed};
  for (const Streaming streaming : every)
    if (std::strcmp(wish, streaming_name(streaming)) == 0) return streaming;
  fail("environment variable GQA_STREAMING", Text("\"") + wish + "\"", "prefetched or followed");
}

/// What calls take. Tests change it between calls; users have GQA_STREAMING.
inline std::atomic<Streaming>& streaming_in_use() {
  static std::atomic<Streaming> chosen{choose_streaming(features(), std::getenv("GQA_STREAMING"))};
  return chosen;
}

}  // namespace detail::inline GQA_ABI

/// True if this process can run `path`. Thread safe.
GQA_ALWAYS_INLINE bool path_available(Path path) noexcept { return detail::has_path(detail::features(), path); }

/// The path of calls that ask for none: the best that the processor and the operating system allow, or a lower one that the
/// environment variable GQA_PATH names. Decided once per process. Thread safe.
/// @throws ArgumentError if GQA_PATH is not a path's name.
GQA_ALWAYS_INLINE ActivePath active_path() { return detail::chosen_path(); }

}  // namespace gqa
