// SPDX-License-Identifier: Apache-2.0
// Tile instructions in software, for machines without AMX: x86-64 Linux.
//
// A processor without AMX raises an invalid opcode at each tile instruction, which Linux makes SIGILL. The handler
// decodes the instruction, does what the manual says on a tile state of the thread's own, and goes on behind it. A
// tile instruction that is misused ends the program with a message; any other invalid opcode ends it as it would have
// without the handler.
//
// A program can run Path::amx wherever there is AVX-512 with bf16 if one of its units includes this file and each that
// calls attention defines GQA_DETAIL_EMULATED_AMX. Kernels compiled elsewhere need not: what paths there are is asked by
// calls alone.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "gqa/cpu.hpp"
#include "gqa/detail/path/region.hpp"

#if defined(__x86_64__) && defined(__linux__)
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>
#endif

namespace gqa::test {

/// Tile instructions executed in software so far, by all threads.
struct AmxCounts {
  std::atomic<long> configurations{0};  ///< ldtilecfg
  std::atomic<long> loads{0};           ///< tileloadd, tileloaddt1
  std::atomic<long> stores{0};          ///< tilestored
  std::atomic<long> products{0};        ///< tdpbf16ps
};
inline AmxCounts amx_counts;

/// Where Path::amx comes from in this process.
enum class AmxProvider : std::uint8_t { nobody, processor, emulator };

#if defined(__x86_64__) && defined(__linux__)

namespace emulator {

inline constexpr int kTiles = 8;
inline constexpr int kMaxRows = 16;
inline constexpr int kMaxRowBytes = 64;

/// One thread's tile registers. Nothing in it is built or taken down, so that a signal handler may use it.
struct TileState {
  std::uint8_t config[64];
  bool configured;
  int rows[kTiles];
  int row_bytes[kTiles];
  alignas(64) std::uint8_t tile[kTiles][kMaxRows][kMaxRowBytes];
};
inline constinit thread_local TileState state{};

inline struct sigaction previous;

[[noreturn]] inline void stop(const char* message) {
  const char prefix[] = "AMX emulator: ";
  static_cast<void>(!::write(2, prefix, sizeof prefix - 1));
  static_cast<void>(!::write(2, message, std::strlen(message)));
  static_cast<void>(!::write(2, "\n", 1));
  std::abort();
}

inline std::uint64_t read_register(const ucontext_t& context, int number) {
  constexpr int place[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                             REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return static_cast<std::uint64_t>(context.uc_mcontext.gregs[place[number]]);
}

/// A decoded tile instruction.
struct Instruction {
  std::uint8_t opcode;
  int prefix;  ///< VEX.pp: 0 none, 1 66, 2 F3, 3 F2
  bool memory;
  int reg;  ///< ModRM.reg
  int rm;   ///< ModRM.rm of a register operand
  int vvvv;
  std::uint64_t address;  ///< base and displacement: where row 0 is
  std::uint64_t stride;   ///< scaled index: from row to row; of ldtilecfg, a part of the address
  bool has_sib;
  int length;
};

template <class T>
T read_unaligned(const std::uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

/// False if the bytes are not a VEX.128.0F38.W0 instruction with one of the tile opcodes.
inline bool decode(const std::uint8_t* code, const ucontext_t& context, Instruction& in) {
  if (code[0] != 0xc4) return false;  // W0 with map 0F38 always takes the three-byte VEX
  const bool r = (code[1] & 0x80) == 0;
  const bool x = (code[1] & 0x40) == 0;
  const bool b = (code[1] & 0x20) == 0;
  if ((code[1] & 0x1f) != 2) return false;
  const bool w = (code[2] & 0x80) != 0;
  const bool l = (code[2] & 0x04) != 0;
  in.vvvv = (~code[2] >> 3) & 15;
  in.prefix = code[2] & 3;
  in.opcode = code[3];
  if (w || l || (in.opcode != 0x49 && in.opcode != 0x4b && in.opcode != 0x5c)) return false;
  const std::uint8_t modrm = code[4];
  const int mod = modrm >> 6;
  in.reg = ((modrm >> 3) & 7) | (r ? 8 : 0);
  in.rm = (modrm & 7) | (b ? 8 : 0);
  in.memory = mod != 3;
  in.has_sib = false;
  in.address = 0;
  in.stride = 0;
  in.length = 5;
  if (!in.memory) return true;
  if ((modrm & 7) == 4) {
    const std::uint8_t sib = code[5];
    in.has_sib = true;
    in.length = 6;
    const int index = ((sib >> 3) & 7) | (x ? 8 : 0);
    if (index != 4) in.stride = read_register(context, index) << (sib >> 6);
    if ((sib & 7) == 5 && mod == 0) {
      in.address = static_cast<std::uint64_t>(std::int64_t{read_unaligned<std::int32_t>(code + 6)});
      in.length = 10;
      return true;
    }
    in.address = read_register(context, (sib & 7) | (b ? 8 : 0));
  } else if ((modrm & 7) == 5 && mod == 0) {
    in.length = 9;
    in.address = reinterpret_cast<std::uint64_t>(code) + 9 +
                 static_cast<std::uint64_t>(std::int64_t{read_unaligned<std::int32_t>(code + 5)});
    return true;
  } else {
    in.address = read_register(context, in.rm);
  }
  if (mod == 1) {
    in.address += static_cast<std::uint64_t>(std::int64_t{read_unaligned<std::int8_t>(code + in.length)});
    in.length += 1;
  } else if (mod == 2) {
    in.address += static_cast<std::uint64_t>(std::int64_t{read_unaligned<std::int32_t>(code + in.length)});
    in.length += 4;
  }
  return true;
}

inline void release() { std::memset(static_cast<void*>(&state), 0, sizeof state); }

inline void configure(const std::uint8_t* config) {
  if (config[0] == 0) return release();
  if (config[0] != 1) stop("ldtilecfg of a palette other than 0 and 1");
  for (int i = 2; i < 16; ++i)
    if (config[i] != 0) stop("ldtilecfg with a reserved byte that is not zero");
  for (int t = kTiles; t < 16; ++t)
    if (config[16 + 2 * t] != 0 || config[17 + 2 * t] != 0 || config[48 + t] != 0)
      stop("ldtilecfg of a tile beyond the eighth");
  release();
  for (int t = 0; t < kTiles; ++t) {
    state.row_bytes[t] = read_unaligned<std::uint16_t>(config + 16 + 2 * t);
    state.rows[t] = config[48 + t];
    if (state.row_bytes[t] > kMaxRowBytes || state.rows[t] > kMaxRows)
      stop("ldtilecfg of a tile beyond 16 rows of 64 bytes");
    if ((state.row_bytes[t] == 0) != (state.rows[t] == 0))
      stop("ldtilecfg with rows or bytes of a tile zero, and not both");
  }
  std::memcpy(state.config, config, 64);
  state.configured = true;
}

inline void require_tile(int tile) {
  if (!state.configured) stop("a tile instruction without a configuration");
  if (tile >= kTiles) stop("a tile number beyond 7");
  if (state.rows[tile] == 0) stop("a tile that is not configured");
}

/// c += a · b with the numbers of the manual: for each element two chains of fused multiply-adds from zero, one over
/// the even terms and one over the odd; then c + (even + odd). The caller has set denormals to be zero, as operands
/// and as results.
__attribute__((target("avx512f"), noinline)) inline void product(std::uint8_t (*c)[kMaxRowBytes],
                                                                 const std::uint8_t (*a)[kMaxRowBytes],
                                                                 const std::uint8_t (*b)[kMaxRowBytes], int rows,
                                                                 int pairs, int columns) {
  const auto lanes = static_cast<__mmask16>((1u << columns) - 1u);
  for (int m = 0; m < rows; ++m) {
    __m512 even = _mm512_setzero_ps();
    __m512 odd = _mm512_setzero_ps();
    for (int k = 0; k < pairs; ++k) {
      std::uint32_t pair;
      std::memcpy(&pair, a[m] + 4 * k, 4);
      const __m512i terms = _mm512_load_si512(b[k]);
      const __m512 a_even = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(pair << 16)));
      const __m512 a_odd = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(pair & 0xffff0000u)));
      even = _mm512_fmadd_ps(a_even, _mm512_castsi512_ps(_mm512_slli_epi32(terms, 16)), even);
      odd = _mm512_fmadd_ps(
          a_odd, _mm512_castsi512_ps(_mm512_and_si512(terms, _mm512_set1_epi32(static_cast<int>(0xffff0000u)))), odd);
    }
    const __m512 sum = _mm512_add_ps(_mm512_load_ps(c[m]), _mm512_add_ps(even, odd));
    _mm512_store_ps(c[m], _mm512_maskz_mov_ps(lanes, sum));
  }
}

inline void multiply(int c, int a, int b) {
  require_tile(c);
  require_tile(a);
  require_tile(b);
  if (c == a || c == b || a == b) stop("tdpbf16ps with two operands in one tile");
  if (state.rows[c] != state.rows[a] || state.row_bytes[c] != state.row_bytes[b] ||
      state.row_bytes[a] != 4 * state.rows[b] || state.row_bytes[c] % 4 != 0)
    stop("tdpbf16ps of tiles whose shapes do not go together");
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(0x9fc0);  // every exception masked, nearest even, denormal operands and results zero
  product(state.tile[c], state.tile[a], state.tile[b], state.rows[c], state.rows[b], state.row_bytes[c] / 4);
  _mm_setcsr(saved);
  for (int m = state.rows[c]; m < kMaxRows; ++m) std::memset(state.tile[c][m], 0, kMaxRowBytes);
  amx_counts.products.fetch_add(1, std::memory_order_relaxed);
}

inline void load(const Instruction& in) {
  require_tile(in.reg);
  std::memset(state.tile[in.reg], 0, sizeof state.tile[in.reg]);
  for (int row = 0; row < state.rows[in.reg]; ++row)
    std::memcpy(state.tile[in.reg][row],
                reinterpret_cast<const void*>(in.address + static_cast<std::uint64_t>(row) * in.stride),
                static_cast<std::size_t>(state.row_bytes[in.reg]));
  amx_counts.loads.fetch_add(1, std::memory_order_relaxed);
}

inline void store(const Instruction& in) {
  require_tile(in.reg);
  for (int row = 0; row < state.rows[in.reg]; ++row)
    std::memcpy(reinterpret_cast<void*>(in.address + static_cast<std::uint64_t>(row) * in.stride),
                state.tile[in.reg][row], static_cast<std::size_t>(state.row_bytes[in.reg]));
  amx_counts.stores.fetch_add(1, std::memory_order_relaxed);
}

/// False if it is not a tile instruction.
inline bool execute(const Instruction& in) {
  if (in.opcode == 0x49) {
    if (in.memory && in.reg == 0 && in.prefix == 0) {
      configure(reinterpret_cast<const std::uint8_t*>(in.address + in.stride));
      amx_counts.configurations.fetch_add(1, std::memory_order_relaxed);
    } else if (in.memory && in.reg == 0 && in.prefix == 1) {
      std::memcpy(reinterpret_cast<void*>(in.address), state.config, sizeof state.config);
    } else if (!in.memory && in.reg == 0 && in.rm == 0 && in.prefix == 0) {
      release();
    } else if (!in.memory && in.rm == 0 && in.prefix == 3) {
      require_tile(in.reg);
      std::memset(state.tile[in.reg], 0, sizeof state.tile[in.reg]);
    } else {
      return false;
    }
    return true;
  }
  if (in.opcode == 0x4b) {
    if (!in.memory || !in.has_sib || in.prefix == 0) return false;
    if (in.prefix == 2) store(in);
    else load(in);
    return true;
  }
  if (in.memory || in.prefix != 2) return false;
  multiply(in.reg, in.rm, in.vvvv);
  return true;
}

inline void handle(int signal, siginfo_t* info, void* raw) {
  auto& context = *static_cast<ucontext_t*>(raw);
  greg_t& rip = context.uc_mcontext.gregs[REG_RIP];
  Instruction in;
  int executed = 0;
  // Tile instructions come in runs: the next ones are cheaper here than through another signal.
  while (decode(reinterpret_cast<const std::uint8_t*>(rip), context, in) && execute(in)) {
    rip += in.length;
    ++executed;
  }
  if (executed > 0) return;
  if ((previous.sa_flags & SA_SIGINFO) != 0 && previous.sa_sigaction != nullptr) {
    previous.sa_sigaction(signal, info, raw);
    return;
  }
  ::sigaction(SIGILL, &previous, nullptr);  // and the instruction faults again
}

}  // namespace emulator

inline bool install_amx_emulator() {
  static const bool installed = [] {
    struct sigaction action {};
    action.sa_sigaction = emulator::handle;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    return ::sigaction(SIGILL, &action, &emulator::previous) == 0;
  }();
  return installed;
}

/// True if the calling thread's emulated tiles are configured: a task that is over has released them.
inline bool amx_tiles_in_use() { return emulator::state.configured; }

#else

inline bool install_amx_emulator() { return false; }
inline bool amx_tiles_in_use() { return false; }

#endif

/// The processor's own tiles where it has them; else the emulator, where there is AVX-512 with bf16.
inline AmxProvider provide_amx() {
  const detail::CpuFeatures has = detail::detect_features();
  if (has.amx) return AmxProvider::processor;
  return has.avx512bf16 && install_amx_emulator() ? AmxProvider::emulator : AmxProvider::nobody;
}

#if defined(GQA_DETAIL_EMULATED_AMX)
/// Seen to before main.
inline const AmxProvider amx_provider = provide_amx();
#endif

}  // namespace gqa::test
