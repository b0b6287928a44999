// SPDX-License-Identifier: Apache-2.0
/// @file
/// The NEON path with bf16 products: bfmmla multiplies matrices of 2 × 4 and 4 × 2, four times the products of an f32 multiply-add.
///
///   scores      s[row][t] = scale · Σ_d q[row][d] · k[t][d]     two chains, of dims 0 … 3 and 4 … 7 of every eight; added
///   softmax     that of the NEON path, then w rounded to bf16; divisor ← α · divisor + Σ_t w[row][t], these
///   accumulate  o[row][d] = α · o[row][d] + Σ_t w[row][t] · v[t][d]     token pairs (2j, 2j + 1), j ascending
///
/// | instruction     | what it does here                                                                    |
/// |-----------------|--------------------------------------------------------------------------------------|
/// | bfmmla          | 2 rows × 2 tokens (scores), or 2 rows × 2 dims (outputs), += four products each        |
/// | bfdot           | a lane += two products: sums of rounded weights                                        |
/// | bfcvtn, bfcvtn2 | f32 → bf16, to nearest, ties to even                                                   |
///
/// Arithmetic (Arm's BFDotAdd, as it is unless a program sets FPCR.EBF): sum ← sum + (a₀·b₀ + a₁·b₁), the products exact, both additions
/// rounded to odd; denormals are zero, in and out; every NaN is the default one. An element of a bfmmla is two of these steps, for pairs
/// (0, 1) and (2, 3), whichever other elements are computed with it. So a row that is alone, as in a decode step, may take any
/// arrangement that has its chains: its query's two halves are two "rows", and a key as it lies two "tokens"; scores are on the
/// diagonal.
///
/// q and k are used as stored: scores are exact products, summed in f32, and scaled then. Weights are rounded to bf16, and outputs are
/// divided by the sum of the rounded ones, as on the AVX-512 path with bf16 products. The log-sum-exp is that of the weights before they are
/// rounded.
///
/// Two neighbouring rows are one operand: their queries are packed as [4 dims][row][dim], in 16 bytes, and their weights as
/// [4 tokens][row][token], in the room that the first one's scores had. There are no panels: a lane is no row.
#pragma once

#include "gqa/detail/path/neon.hpp"

#if GQA_DETAIL_NEON

GQA_BEGIN_ARM_REGION("bf16")

namespace gqa::detail::inline GQA_ABI::neon_bf16 {

namespace f32_path = neon;

using neon::add;
using neon::begin_stretches;
using neon::end_stretch;
using neon::join_pieces;
using neon::kHeldQueries;
using neon::kLoads;
using neon::kPieces;
using neon::kPvSums;
using neon::kQkSums;
using neon::kRowPanels;
using neon::kRowsSideBySide;
using neon::kStripParts;
using neon::load;
using neon::mul;
using neon::once_known;
using neon::prefetch_row;
using neon::prefetch_rows;
using neon::reduce_sums;
using neon::set1;
using neon::store;
using neon::touch_row;
using neon::Vec;
using neon::zero;

inline constexpr Index kRowTokens = 0;  // no lanes that are rows
inline constexpr int kQkRows = 8;       // with 4 tokens 16 registers of sums, 4 of queries, 6 of keys
inline constexpr int kPvRows = 6;       // with 16 dims 24 registers of sums, 3 of weights, 1 of values

// Compilers know these instructions by names that differ, or for units of some flags alone.
GQA_OP float32x4_t add_matrices(float32x4_t sum, uint16x8_t a, uint16x8_t b) {
  asm("bfmmla %0.4s, %1.8h, %2.8h" : "+w"(sum) : "w"(a), "w"(b));
  return sum;
}
GQA_OP float32x4_t add_pairs(float32x4_t sum, uint16x8_t a, uint16x8_t b) {
  asm("bfdot %0.4s, %1.8h, %2.8h" : "+w"(sum) : "w"(a), "w"(b));
  return sum;
}
GQA_OP uint16x8_t round_eight(float32x4_t first, float32x4_t second) {
  uint16x8_t rounded;
  asm("bfcvtn %0.4h, %1.4s" : "=w"(rounded) : "w"(first));
  asm("bfcvtn2 %0.8h, %1.4s" : "+w"(rounded) : "w"(second));
  return rounded;
}

// Halves of registers, 4 bf16 each, side by side: the first ones of two, or the second ones.
GQA_OP uint16x8_t first_halves(uint16x8_t a, uint16x8_t b) {
  return vreinterpretq_u16_u64(vzip1q_u64(vreinterpretq_u64_u16(a), vreinterpretq_u64_u16(b)));
}
GQA_OP uint16x8_t second_halves(uint16x8_t a, uint16x8_t b) {
  return vreinterpretq_u16_u64(vzip2q_u64(vreinterpretq_u64_u16(a), vreinterpretq_u64_u16(b)));
}
GQA_OP float32x4_t first_halves(float32x4_t a, float32x4_t b) {
  return vreinterpretq_f32_u64(vzip1q_u64(vreinterpretq_u64_f32(a), vreinterpretq_u64_f32(b)));
}
GQA_OP float32x4_t second_halves(float32x4_t a, float32x4_t b) {
  return vreinterpretq_f32_u64(vzip2q_u64(vreinterpretq_u64_f32(a), vreinterpretq_u64_f32(b)));
}

// Eight bf16, all or the first `count`, zeros behind them, nothing read there. None, if that is less than one.
GQA_OP uint16x8_t load_eight(const std::byte* p) { return vld1q_u16(typed<const std::uint16_t>(p)); }
GQA_OP std::uint64_t load_four_part(const std::byte* p, Index count) {
  std::uint64_t four = 0;
  std::uint32_t two = 0;
  std::uint16_t one = 0;
  if (count >= 4) {
    __builtin_memcpy(&four, p, sizeof four);
  } else if (count > 0) {
    const Index whole = count & 2;
    if (whole != 0) __builtin_memcpy(&two, p, sizeof two);
    if ((count & 1) != 0) __builtin_memcpy(&one, p + whole * 2, sizeof one);
    four = two | static_cast<std::uint64_t>(one) << (16 * whole);
  }
  return four;
}
GQA_OP uint16x8_t load_eight_part(const std::byte* p, Index count) {
  return vcombine_u16(vcreate_u16(load_four_part(p, count)), vcreate_u16(load_four_part(p + 8, count - 4)));
}
GQA_OP void store_eight(std::byte* p, uint16x8_t a) { vst1q_u16(typed<std::uint16_t>(p), a); }

// Sixteen bf16: pairs of dims.
struct Pairs {
  uint16x8_t part[2];
};
inline constexpr Index kNarrowed = kLanes;
GQA_OP Pairs no_pairs() { return {{vdupq_n_u16(0), vdupq_n_u16(0)}}; }
GQA_OP Pairs load_pairs(const std::byte* p) { return {{load_eight(p), load_eight(p + 16)}}; }
GQA_OP void store_pairs(std::byte* p, const Pairs& a) {
  store_eight(p, a.part[0]);
  store_eight(p + 16, a.part[1]);
}
GQA_OP Pairs round_pairs(const Vec& a) {
  return {{round_eight(a.part[0], a.part[1]), round_eight(a.part[2], a.part[3])}};
}
// Elements d … d + count − 1 of a row of any codec as bf16, up to 16 of them; zeros behind them.
template <class Codec>
GQA_OP Pairs narrow_pairs(RowOf<Codec> row, Index d, Index count) {
  if constexpr (Codec::type == ElementType::bf16) {
    if (count == kNarrowed) return load_pairs(row + d * 2);
    return {{load_eight_part(row + d * 2, count), load_eight_part(row + d * 2 + 16, count - 8)}};
  } else {
    if (count == kNarrowed) return round_pairs(neon::load(Codec{}, row, d));
    return round_pairs(neon::load_part(Codec{}, row, d, count));
  }
}

#define GQA_STRIP_LOOP
#include "gqa/detail/path/qk.inl"
#undef GQA_STRIP_LOOP

#include "gqa/detail/path/bf16_rows.inl"

#include "gqa/detail/path/neon_bf16_scores.inl"

#include "gqa/detail/path/neon_bf16_outputs.inl"

#include "gqa/detail/path/bf16_values.inl"

#include "gqa/detail/path/bf16_softmax.inl"

#include "gqa/detail/path/pv.inl"

// K rounded to bf16 (other codecs only), or V interleaved, one block at a time; two queries while they are packed.
inline Index staging_bytes(Index, Index head_dim, Index value_dim) {
  const Index widest = head_dim > value_dim ? head_dim : value_dim;
  return kBlock * round_up(widest, 2 * kLanes) * Index{sizeof(bf16)};
}

// Any value of V that is no finite number once rounded to bf16?
template <class Codec>
inline bool nonfinite_as_bf16(const Block& block, std::uint64_t tokens, Index value_dim) {
  const uint16x8_t exponent = vdupq_n_u16(0x7f80);
  const BlockRows<Codec> rows = block_values<Codec>(block);
  for (; tokens != 0; tokens &= tokens - 1) {
    const RowOf<Codec> v = rows(__builtin_ctzll(tokens));
    uint16x8_t found = vdupq_n_u16(0);
    for (Index d = 0; d < value_dim; d += kNarrowed) {
      const Pairs some = narrow_pairs<Codec>(v, d, value_dim - d < kNarrowed ? value_dim - d : kNarrowed);
      GQA_UNROLL
      for (int i = 0; i < 2; ++i) found = vorrq_u16(found, vceqq_u16(vandq_u16(some.part[i], exponent), exponent));
    }
    if (vmaxvq_u16(found) != 0) return true;
  }
  return false;
}

template <class Codec, int HeadDim, int ValueDim>
constexpr CodecKernels codec_kernels() {
  CodecKernels kernels{.scores = scores<Codec, HeadDim>, .accumulate = accumulate<Codec, ValueDim>};
  if constexpr (kRoundsToInfinity<Codec>) kernels.nonfinite = nonfinite_as_bf16<Codec>;
  else kernels.nonfinite = neon::nonfinite<Codec>;
  kernels.stream_rows = neon::kStreamRows<Codec>;
  return kernels;
}
constexpr Kernels common_kernels() {
  return {
      .path = Path::neon_bf16,
      .pack = pack,
      .begin = neon::begin,
      .softmax = softmax<neon::PlainScore>,
      .merge = neon::merge,
      .store = neon::store,
      .few_rows_distance = few_rows_distance,
      .staging_bytes = staging_bytes,
      .has_divisor = true,
  };
}
#define GQA_KERNELS_NAME "gqa_kernels_neon_bf16"
#include "gqa/detail/path/table.inl"
#undef GQA_KERNELS_NAME

template <unsigned Types, int HeadDim, int ValueDim>
inline const Kernels& kernels_of(int bf16_terms) noexcept {
  return bf16_terms == 1 ? kernels<Types, HeadDim, ValueDim>() : neon::kernels<Types, HeadDim, ValueDim>();
}
template <class V>
inline SoftmaxKernel variant_softmax(const Kernels&) noexcept {
  return softmax<neon::VariantScore<V>>;
}
using neon::finish_rows;
using neon::visible_tokens;

}  // namespace gqa::detail::inline GQA_ABI::neon_bf16

GQA_END_ARM_REGION()

#endif  // GQA_DETAIL_NEON
