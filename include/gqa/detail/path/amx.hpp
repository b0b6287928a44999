// SPDX-License-Identifier: Apache-2.0
/// @file
/// The AMX path: bf16 tile products for both halves of attention; between them, a lane of AVX-512 for each row.
///
/// One block of 64 tokens, for panels of 16 rows:
///   1. Sᵀ = K·Qᵀ        16 tokens × 16 rows a tile; K straight from the cache (operand A), Q packed once per head (B)
///   2. m, α             a lane is a row: maximum over the tokens, no step across lanes
///   3. P = exp2(c·S−m)  by a cubic, rounded to bf16, in place of the scores; transposed to row-major as operand A
///   4. V                token pairs interleaved once per block for all panels, as operand B
///   5. O ← α·O          only where a maximum has moved
///   6. l ← l + P·1      the same weights times ones: what o is divided by is the sum of what it was weighted with
///   7. O ← O + P·V      16 rows × 16 dims a tile, loaded and stored once per block
///   8. merging states and storing outputs: those of the AVX-512 path
///
/// | instruction | what it does here                              | cycles each, until done (Intel's manual) |
/// |-------------|------------------------------------------------|------------------------------------------|
/// | tdpbf16ps   | C (16×16 f32) += A (16×32 bf16) · B (32×16)    | 16, 52                                   |
/// | tileloadd   | 16 rows of 64 bytes, any stride                | 8, 45 from L1                            |
/// | tilestored  | 16 rows of 64 bytes                            | 16                                       |
/// | ldtilecfg   | shapes of the eight tiles                      | once a worker and sequence               |
/// | vaddps {rd} | rounds down to a multiple of 128               | 1/2, 4                                   |
///
/// Tile geometry. All eight tiles are 16 rows × 64 bytes. Scores: C 0–3 = 2 token tiles × 2 panels, A 4–5 = K, B 6–7
/// = Q: four loads for four products. Outputs: C 0–3 = 2 panels × 2 column tiles, A 4–5 = P, B 6–7 = V: six loads and
/// two stores for four products. Up to 128 rows share a pass over K and V. An odd last panel goes alone; a panel of
/// fewer than 16 rows, and one whose rows must not see each other's values, keeps its O in staging while products are
/// added.
///
/// Accumulation. A product of 32 terms is two chains of fused multiply-adds from zero, one over the even terms and
/// one over the odd, then c + (even + odd); round to nearest even, denormal inputs and results zero. Scores sum dims
/// in chunks of 32, ascending; outputs and l sum tokens in halves of a block, ascending. q is used as stored: the
/// scale is applied to scores in f32. l is kept as 16 partial sums, lane i those of the tokens 2i and 2i + 1 of every
/// half block.
///
/// Terms. The kernels in two_terms go the same way with numbers that are sums of two bf16 (amx_terms.inl), two staged copies of K
/// and V, and P by the exponential of the AVX-512 path, whose two terms just fill the room of the scores. For each chunk or
/// half the tile products of the terms follow each other into the same C: k2·q1, k1·q1, k1·q2, and v2·p1, v1·p1, v1·p2. From
/// each to the next one operand stays in its tile, so that twelve products take eight loads; errors do not ask for another
/// order, because every addition rounds a share of the whole sum. Of a cache in bf16 the first of the three is missing, and
/// keys are loaded from where they are.
///
/// Compilers know nothing of these tiles: each instruction is an asm statement of its own, in program order and with
/// a memory clobber (GCC's intrinsics have none, and lose the stores that feed them).
#pragma once

#include "gqa/detail/path/avx512.hpp"

#if GQA_DETAIL_X86

namespace gqa::detail {

/// What ldtilecfg takes.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

/// Operand B that leaves each row's weights as 16 sums of two tokens: column i has ones at tokens 2i and 2i + 1.
struct alignas(64) PairSums {
  std::uint16_t one[16][32] = {};  // [pair of tokens][column × 2]
  constexpr PairSums() {
    for (int i = 0; i < 16; ++i) one[i][2 * i] = one[i][2 * i + 1] = 0x3f80;
  }
};

/// Thirty-two elements of a token that is not seen.
struct alignas(64) Zeros {
  std::byte byte[128] = {};
};

}  // namespace gqa::detail

// Tile instructions by tile number, a constant; either dialect of assembler.
#define GQA_TILE_ZERO(t) asm volatile("tilezero {%%tmm%c0|tmm%c0}" : : "n"(t))
#define GQA_TILE_LOAD(t, from, stride) \
  asm volatile("tileloadd {(%0,%1,1), %%tmm%c2|tmm%c2, [%0+%1*1]}" : : "r"(from), "r"(stride), "n"(t) : "memory")
#define GQA_TILE_STORE(t, to, stride) \
  asm volatile("tilestored {%%tmm%c2, (%0,%1,1)|[%0+%1*1], tmm%c2}" : : "r"(to), "r"(stride), "n"(t) : "memory")
// Tile c += tile a · tile b.
#define GQA_TILE_PRODUCT(c, a, b) \
  asm volatile("tdpbf16ps {%%tmm%c2, %%tmm%c1, %%tmm%c0|tmm%c0, tmm%c1, tmm%c2}" : : "n"(c), "n"(a), "n"(b))

GQA_BEGIN_REGION("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", "tune=icelake-server")

namespace gqa::detail::inline GQA_ABI::amx {

using avx512::first_lanes;
using avx512::kLoads;
using avx512::Vec;

inline constexpr Index kPanel = 16;  // rows of a tile
inline constexpr Index kHalf = 32;   // tokens, or dims, of one product
inline constexpr Index kTileBytes = 1024;
inline constexpr Index kRowBytes = 64;                  // of a tile
inline constexpr Index kPanelFloats = kPanel * kBlock;  // of a panel's scores in tile.weights: [token][row]

inline constexpr TileConfig kTileConfig;
inline constexpr PairSums kPairSums;
inline constexpr Zeros kZeros;

inline void enter() { asm volatile("ldtilecfg %0" : : "m"(kTileConfig) : "memory"); }
inline void leave() { asm volatile("tilerelease" : : : "memory"); }

GQA_OP Index panel_count(const QueryTile& tile) { return (tile.rows + kPanel - 1) / kPanel; }
GQA_OP Index rows_in_panel(const QueryTile& tile, Index panel) {
  const Index rest = tile.rows - panel * kPanel;
  return rest < kPanel ? rest : kPanel;
}

// What the rows of a panel see of a block: lane = row, bit = token.
struct PanelView {
  __m512i half[2];  // tokens 0 … 31 and 32 … 63
  bool any[2];      // some row sees some token of that half
  bool everything;  // every row sees every token
};

GQA_OP PanelView panel_view(const QueryTile& tile, const Block& block, Index panel) {
  PanelView view;
  if (block.visible == nullptr) {
    view.half[0] = view.half[1] = _mm512_set1_epi32(-1);
    view.any[0] = view.any[1] = view.everything = true;
    return view;
  }
  const __mmask16 lanes = first_lanes(rows_in_panel(tile, panel));
  const std::uint64_t* visible = block.visible + panel * kPanel;
  const __m512i a = _mm512_maskz_loadu_epi64(static_cast<__mmask8>(lanes), visible);
  const __m512i b = _mm512_maskz_loadu_epi64(static_cast<__mmask8>(lanes >> 8), visible + 8);
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  view.half[0] = _mm512_permutex2var_epi32(a, even, b);
  view.half[1] = _mm512_permutex2var_epi32(a, _mm512_or_si512(even, _mm512_set1_epi32(1)), b);
  view.any[0] = _mm512_test_epi32_mask(view.half[0], view.half[0]) != 0;
  view.any[1] = _mm512_test_epi32_mask(view.half[1], view.half[1]) != 0;
  const __m512i all = _mm512_set1_epi32(-1);
  view.everything = _mm512_cmpeq_epi32_mask(_mm512_and_si512(view.half[0], view.half[1]), all) == lanes;
  return view;
}

// 16 × 16 of 32 bits: row i, column j ↔ row j, column i.
GQA_OP void transpose(__m512i (&r)[kLanes]) {
  Vec lanes[kLanes];
  GQA_UNROLL
  for (int i = 0; i < kLanes; ++i) lanes[i] = _mm512_castsi512_ps(r[i]);
  avx512::transpose(lanes);
  GQA_UNROLL
  for (int i = 0; i < kLanes; ++i) r[i] = _mm512_castps_si512(lanes[i]);
}

#include "gqa/detail/path/amx_terms.inl"

// What is fetched while a head takes a block, a stretch of the Prefetcher: into the second-level cache.
struct BlockCursor {
  PrefetchCursor cursor{};
  Index row_bytes = 0;
  Index left = 0;  // rows
  GQA_OP void fetch(Index rows) {
    for (; rows > 0 && left > 0 && cursor.row != nullptr; --rows, --left) {
      for (Index line = 0; line < row_bytes; line += kRowBytes) __builtin_prefetch(cursor.row + line, 0, 2);
      cursor.next();
    }
  }
};
GQA_OP BlockCursor begin_block(Prefetcher& prefetcher, const Block& block) {
  const Index tokens = block.last - block.first;
  prefetcher.share(1, tokens);
  BlockCursor ahead{prefetcher.cursor(0, tokens), prefetcher.row_bytes(), tokens};
  return ahead;
}
GQA_OP void end_block(Prefetcher& prefetcher, const Block& block) {
  avx512::end_stretch(prefetcher, block.last - block.first, block.last - block.first);
}

// Staging: K of a block as bf16 rows, or V of it as interleaved tiles, one term behind the other; behind that O and l of one
// panel, padded to 16 rows.
template <int Terms>
GQA_OP Index staged_state(Index head_dim, Index value_dim) {
  const Index keys = round_up(head_dim, kHalf);
  const Index values = round_up(value_dim, kLanes);
  return Terms * kBlock * (keys > values ? keys : values) * Index{sizeof(bf16)};
}
template <int Terms>
inline Index staging_bytes(Index, Index head_dim, Index value_dim) {
  return staged_state<Terms>(head_dim, value_dim) +
         kPanel * (round_up(value_dim, kLanes) + kLanes) * Index{sizeof(float)};
}

#include "gqa/detail/path/amx_qk.inl"

#include "gqa/detail/path/amx_softmax.inl"

#include "gqa/detail/path/amx_pv.inl"

// Units one by one.
template <class Codec, int Terms>
inline void scores(const QueryTile& tile, const Stage& stage, Prefetcher& prefetcher) {
  avx512::begin_stretches(prefetcher);
  for (Index b = 0; b < stage.blocks; ++b) {
    for (Index j = 0; j < stage.heads; ++j) {
      const Block& block = stage.units[b * stage.heads + j];
      BlockCursor ahead = begin_block(prefetcher, block);
      score_block<Codec, Terms>(unit_tile(tile, stage, b, j), block, ahead);
      end_block(prefetcher, block);
    }
  }
}
template <class Codec, int Terms>
inline void accumulate(const QueryTile& tile, const Stage& stage, Prefetcher& prefetcher) {
  avx512::begin_stretches(prefetcher);
  for (Index b = 0; b < stage.blocks; ++b) {
    for (Index j = 0; j < stage.heads; ++j) {
      const Block& block = stage.units[b * stage.heads + j];
      BlockCursor ahead = begin_block(prefetcher, block);
      accumulate_block<kTermsOf<Codec, Terms>, Terms>(unit_tile(tile, stage, b, j), block, &stage_values<Codec, Terms>,
                                                      ahead);
      end_block(prefetcher, block);
    }
  }
}

// Terms == 1: inputs and weights are one bf16 each. Terms == 2: they are sums of two, but for keys and values that are stored as bf16.
template <class Codec, int Terms>
constexpr CodecKernels codec_kernels() {
  CodecKernels kernels{.scores = scores<Codec, Terms>, .accumulate = accumulate<Codec, Terms>};
  // 3.4e38 rounds to infinity; as a sum of two terms it is like any other number.
  if constexpr (Terms == 1 && kRoundsToInfinity<Codec>) kernels.nonfinite = avx512::nonfinite_as_bf16<Codec>;
  else kernels.nonfinite = avx512::nonfinite<Codec>;
  return kernels;
}
template <int Terms>
constexpr Kernels common_kernels() {
  return {
      .path = Path::amx,
      .pack = pack<Terms>,
      .begin = avx512::begin,
      .softmax = softmax<Terms, avx512::PlainScore>,
      .merge = avx512::merge,
      .store = avx512::store,
      .few_rows_distance = avx512::few_rows_distance,
      .staging_bytes = staging_bytes<Terms>,
      .bf16_terms = Terms,
      .weight_rows = kPanel,
      .l_stride = kLanes,
      .enter = enter,
      .leave = leave,
  };
}

namespace one_term {
constexpr Kernels common_kernels() { return amx::common_kernels<1>(); }
template <class Codec, int, int>
constexpr CodecKernels codec_kernels() {
  return amx::codec_kernels<Codec, 1>();
}
#define GQA_KERNELS_NAME "gqa_kernels_amx_one_term"
#include "gqa/detail/path/table.inl"
#undef GQA_KERNELS_NAME
}  // namespace one_term
namespace two_terms {
constexpr Kernels common_kernels() { return amx::common_kernels<2>(); }
template <class Codec, int, int>
constexpr CodecKernels codec_kernels() {
  return amx::codec_kernels<Codec, 2>();
}
#define GQA_KERNELS_NAME "gqa_kernels_amx_two_terms"
#include "gqa/detail/path/table.inl"
#undef GQA_KERNELS_NAME
}  // namespace two_terms

template <unsigned Types, int HeadDim, int ValueDim>
inline const Kernels& kernels_of(int bf16_terms) noexcept {
  if (bf16_terms == 2) return two_terms::kernels<Types, HeadDim, ValueDim>();
  if (bf16_terms == 1) return one_term::kernels<Types, HeadDim, ValueDim>();
  return avx512::kernels<Types, HeadDim, ValueDim>();
}
template <class V>
inline SoftmaxKernel variant_softmax(const Kernels& kernels) noexcept {
  if (kernels.bf16_terms == 2) return softmax<2, avx512::VariantScore<V>>;
  return softmax<1, avx512::VariantScore<V>>;
}
using avx512::finish_rows;
using avx512::visible_tokens;

}  // namespace gqa::detail::inline GQA_ABI::amx

GQA_END_REGION()

#undef GQA_TILE_ZERO
#undef GQA_TILE_LOAD
#undef GQA_TILE_STORE
#undef GQA_TILE_PRODUCT

#endif  // GQA_DETAIL_X86
