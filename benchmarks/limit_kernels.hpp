// SPDX-License-Identifier: Apache-2.0
/// @file
/// The few instructions in a row that a machine's limits are measured with: nothing but loads, nothing but multiply-adds.
/// Each instruction set's are compiled through function target attributes, so the binary needs no -m flag.
///
///   what               instructions in the loop                            counted
///   read               vector loads and one OR each                        bytes
///   f32 FMA            12 independent vfmadd231ps chains                   2 FLOP per lane
///   bf16 dot products  12 independent vdpbf16ps chains                     4 FLOP per lane
///   bf16 tiles         4 independent tdpbf16ps chains, 16×16×32            16,384 FLOP each
///   plain f32          12 chains of multiply and add, 4 lanes (baseline)   2 FLOP per lane
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "machine.hpp"

#if defined(__x86_64__)
// GCC 12 reports the undefined operands that its own AVX-512 intrinsics are made of.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

namespace gqa::bench {

/// Reads `bytes` bytes, a multiple of 4096, from 64-byte aligned memory, once.
using ReadKernel = void (*)(const std::byte* data, std::size_t bytes);
/// Runs `rounds` rounds of independent multiply-adds in registers; returns the FLOP that were done.
using PeakKernel = double (*)(std::size_t rounds);

namespace kernels {

// One read loop: `streams` equal parts of the range, walked side by side, 256 bytes of each in turn, asking for what lies `ahead`
// bytes further on (0: leave it to the hardware).
#define GQA_BENCH_READ_BODY(Vector)                                                                        \
  constexpr std::size_t step = 256;                                                                        \
  const std::size_t part = bytes / Streams;                                                                \
  Vector a{}, b{}, c{}, d{};                                                                               \
  for (std::size_t at = 0; at < part; at += step) {                                                        \
    for (int stream = 0; stream < Streams; ++stream) {                                                     \
      const std::byte* const from = data + static_cast<std::size_t>(stream) * part + at;                   \
      if constexpr (Ahead > 0)                                                                             \
        for (std::size_t line = 0; line < step; line += 64) __builtin_prefetch(from + Ahead + line, 0, 3); \
      for (std::size_t unit = 0; unit < step; unit += 4 * sizeof(Vector)) {                                \
        const Vector* const v = reinterpret_cast<const Vector*>(from + unit);                              \
        a |= v[0];                                                                                         \
        b |= v[1];                                                                                         \
        c |= v[2];                                                                                         \
        d |= v[3];                                                                                         \
      }                                                                                                    \
    }                                                                                                      \
  }                                                                                                        \
  a |= b | c | d;                                                                                          \
  keep(&a);

// The first 256 of every 2048 bytes: what one KV head of eight looks like in a token-major 16-bit cache at D = 128.
#define GQA_BENCH_READ_STRIDED_BODY(Vector)                                      \
  Vector a{}, b{}, c{}, d{};                                                     \
  for (std::size_t at = 0; at < bytes; at += 2048) {                             \
    for (std::size_t unit = 0; unit < 256; unit += 4 * sizeof(Vector)) {         \
      const Vector* const v = reinterpret_cast<const Vector*>(data + at + unit); \
      a |= v[0];                                                                 \
      b |= v[1];                                                                 \
      c |= v[2];                                                                 \
      d |= v[3];                                                                 \
    }                                                                            \
  }                                                                              \
  a |= b | c | d;                                                                \
  keep(&a);

typedef std::int64_t Bits16 __attribute__((vector_size(16), may_alias));
typedef float Lanes4 __attribute__((vector_size(16)));

template <int Streams, std::size_t Ahead>
void read_portable(const std::byte* data, std::size_t bytes) {
  GQA_BENCH_READ_BODY(Bits16)
}
inline void read_strided_portable(const std::byte* data, std::size_t bytes) { GQA_BENCH_READ_STRIDED_BODY(Bits16) }

// Every chain starts from another value, or the compiler would see that they are one.
#define GQA_BENCH_CHAINS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
inline constexpr double chains = 12;

inline double peak_portable(std::size_t rounds) {
  Lanes4 factor{0.999f, 0.999f, 0.999f, 0.999f}, addend{0.001f, 0.001f, 0.001f, 0.001f};
  asm volatile("" : "+m"(factor), "+m"(addend));
  const Lanes4 x = factor, y = addend;
#define GQA_BENCH_START(i) Lanes4 s##i = x + 0.01f * (i);
#define GQA_BENCH_STEP(i) s##i = s##i * x + y;
#define GQA_BENCH_KEEP(i) keep(&s##i);
  GQA_BENCH_CHAINS(GQA_BENCH_START)
  for (std::size_t round = 0; round < rounds; ++round) {
    GQA_BENCH_CHAINS(GQA_BENCH_STEP)
  }
  GQA_BENCH_CHAINS(GQA_BENCH_KEEP)
#undef GQA_BENCH_START
#undef GQA_BENCH_STEP
  return static_cast<double>(rounds) * chains * 4 * 2;
}

#if defined(__x86_64__)
#define GQA_BENCH_AVX2 __attribute__((target("avx2,fma")))
#define GQA_BENCH_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define GQA_BENCH_AVX512BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define GQA_BENCH_AMX __attribute__((target("avx512f,amx-tile,amx-bf16")))

typedef std::int64_t Bits32 __attribute__((vector_size(32), may_alias));
typedef std::int64_t Bits64 __attribute__((vector_size(64), may_alias));

template <int Streams, std::size_t Ahead>
GQA_BENCH_AVX2 void read_avx2(const std::byte* data, std::size_t bytes){GQA_BENCH_READ_BODY(Bits32)} GQA_BENCH_AVX2
    inline void read_strided_avx2(const std::byte* data, std::size_t bytes) {
  GQA_BENCH_READ_STRIDED_BODY(Bits32)
}
template <int Streams, std::size_t Ahead>
GQA_BENCH_AVX512 void read_avx512(const std::byte* data,
                                  std::size_t bytes){GQA_BENCH_READ_BODY(Bits64)} GQA_BENCH_AVX512
    inline void read_strided_avx512(const std::byte* data, std::size_t bytes){GQA_BENCH_READ_STRIDED_BODY(Bits64)}

GQA_BENCH_AVX2 inline double peak_avx2(std::size_t rounds) {
  const __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(0.001f);
#define GQA_BENCH_START(i) __m256 s##i = _mm256_set1_ps(0.01f * (i));
#define GQA_BENCH_STEP(i) s##i = _mm256_fmadd_ps(s##i, x, y);
  GQA_BENCH_CHAINS(GQA_BENCH_START)
  for (std::size_t round = 0; round < rounds; ++round) {
    GQA_BENCH_CHAINS(GQA_BENCH_STEP)
  }
  GQA_BENCH_CHAINS(GQA_BENCH_KEEP)
#undef GQA_BENCH_START
#undef GQA_BENCH_STEP
  return static_cast<double>(rounds) * chains * 8 * 2;
}

GQA_BENCH_AVX512 inline double peak_avx512(std::size_t rounds) {
  const __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f);
#define GQA_BENCH_START(i) __m512 s##i = _mm512_set1_ps(0.01f * (i));
#define GQA_BENCH_STEP(i) s##i = _mm512_fmadd_ps(s##i, x, y);
  GQA_BENCH_CHAINS(GQA_BENCH_START)
  for (std::size_t round = 0; round < rounds; ++round) {
    GQA_BENCH_CHAINS(GQA_BENCH_STEP)
  }
  GQA_BENCH_CHAINS(GQA_BENCH_KEEP)
#undef GQA_BENCH_START
#undef GQA_BENCH_STEP
  return static_cast<double>(rounds) * chains * 16 * 2;
}

GQA_BENCH_AVX512BF16 inline double peak_avx512bf16(std::size_t rounds) {
  // Pairs of bf16: 0.5 and 0.0078125, times 1: sums grow slowly and stay finite.
  const __m512bh x = (__m512bh)_mm512_set1_epi32(0x3f003c00);
  const __m512bh y = (__m512bh)_mm512_set1_epi32(0x3f803f80);
#define GQA_BENCH_START(i) __m512 s##i = _mm512_set1_ps(0.01f * (i));
#define GQA_BENCH_STEP(i) s##i = _mm512_dpbf16_ps(s##i, x, y);
  GQA_BENCH_CHAINS(GQA_BENCH_START)
  for (std::size_t round = 0; round < rounds; ++round) {
    GQA_BENCH_CHAINS(GQA_BENCH_STEP)
  }
  GQA_BENCH_CHAINS(GQA_BENCH_KEEP)
#undef GQA_BENCH_START
#undef GQA_BENCH_STEP
  return static_cast<double>(rounds) * chains * 16 * 4;
}

GQA_BENCH_AMX inline double peak_amx(std::size_t rounds) {
  struct alignas(64) Configuration {
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } configuration;
  alignas(64) std::uint16_t operand[512];
  for (std::size_t i = 0; i < 512; ++i) operand[i] = static_cast<std::uint16_t>(0x3c00u + i % 61u);
  // GCC 12's tile intrinsics do not say that they read memory: without the barriers these stores are dropped.
  asm volatile("" : : "r"(&configuration), "r"(operand) : "memory");
  _tile_loadconfig(&configuration);
  asm volatile("" : : : "memory");
  _tile_loadd(4, operand, 64);
  _tile_loadd(5, operand, 64);
  _tile_loadd(6, operand, 64);
  _tile_loadd(7, operand, 64);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::size_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return static_cast<double>(rounds) * 4 * 16384;
}
#endif  // __x86_64__

/// Writes `bytes` bytes to memory from a source that stays in the first-level cache: what appending to a cache can reach.
inline void write_memory(std::byte* data, std::size_t bytes) {
  alignas(64) static const std::byte source[4096] = {};
  for (std::size_t at = 0; at < bytes; at += sizeof source) {
    std::memcpy(data + at, source, sizeof source);
    keep(data + at);
  }
}

#undef GQA_BENCH_KEEP
#undef GQA_BENCH_CHAINS
#undef GQA_BENCH_READ_BODY
#undef GQA_BENCH_READ_STRIDED_BODY

}  // namespace kernels
}  // namespace gqa::bench
