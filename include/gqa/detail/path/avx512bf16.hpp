// SPDX-License-Identifier: Apache-2.0
/// @file
/// The AVX-512 path with bf16 products: vdpbf16ps adds two products to an f32 lane, at twice the rate of f32 multiply-adds.
///
///   scores      s[row][t] = scale · Σ_d q[row][d] · k[t][d]     lane i sums pairs d = 2i, 2i + 1, then 2i + 32, …; fixed tree
///   softmax     that of the AVX-512 path, then w rounded to bf16; divisor ← α · divisor + Σ_t w[row][t], these
///   accumulate  o[row][d] = α · o[row][d] + Σ_t w[row][t] · v[t][d]     token pairs (2j, 2j + 1), j ascending
///
/// | intrinsic            | instruction | what it does here                                                          |
/// |----------------------|-------------|----------------------------------------------------------------------------|
/// | _mm512_dpbf16_ps     | vdpbf16ps   | lane += two bf16 products; rounds to nearest, flushes denormals             |
/// | _mm512_unpacklo_epi16| vpunpcklwd  | two V rows → pairs of one dim side by side                                  |
/// | _mm512_cvtne2ps_pbh  | vcvtne2ps2bf16 | 32 weights → bf16, ties to even                                         |
///
/// Outputs stay in the order that unpacking leaves dims in until they are stored.
///
/// q and k are used as stored: scores are exact products, summed in f32, and scaled then. Weights are rounded to bf16, and outputs are
/// divided by the sum of the rounded ones, so that a weight's error meets a value's distance from the output, not the value: values that
/// are all alike come out as they are. The log-sum-exp is that of the weights before they are rounded.
#pragma once

#include "gqa/detail/path/avx512.hpp"

#if GQA_DETAIL_X86

GQA_BEGIN_REGION("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", "tune=icelake-server")

namespace gqa::detail::inline GQA_ABI::avx512bf16 {

namespace f32_path = avx512;

using avx512::add;
using avx512::begin_stretches;
using avx512::end_stretch;
using avx512::join_pieces;
using avx512::kHeldQueries;
using avx512::kLanes2;
using avx512::kLoads;
using avx512::kPieces;
using avx512::kPvRows;
using avx512::kPvSums;
using avx512::kQkRows;
using avx512::kQkSums;
using avx512::kRowPanels;
using avx512::kRowsSideBySide;
using avx512::kRowTokens;
using avx512::kStripParts;
using avx512::load;
using avx512::mul;
using avx512::once_known;
using avx512::prefetch_row;
using avx512::prefetch_rows;
using avx512::reduce_halves;
using avx512::reduce_pair;
using avx512::reduce_pairs;
using avx512::reduce_quarters;
using avx512::reduce_sums;
using avx512::set1;
using avx512::store;
using avx512::store_first;
using avx512::store_quarter;
using avx512::store_second;
using avx512::touch_row;
using avx512::Vec;
using avx512::zero;

GQA_OP __m512bh as_pairs(__m512i bits) { return reinterpret_cast<__m512bh>(bits); }
GQA_OP __m512i load_pairs(const std::byte* p) { return _mm512_loadu_si512(p); }
GQA_OP __m512i load_pairs_part(const std::byte* p, Index count) {
  return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((std::uint64_t{1} << count) - 1u), p);
}

using Pairs = __m512i;
inline constexpr Index kNarrowed = kLanes2;
GQA_OP __m512i no_pairs() { return _mm512_setzero_si512(); }
GQA_OP void store_pairs(std::byte* p, __m512i pairs) { _mm512_storeu_si512(p, pairs); }

// Elements d … d + count − 1 of a row of any codec as bf16, up to 32 of them; zeros behind them.
template <class Codec>
GQA_OP __m512i narrow_pairs(RowOf<Codec> row, Index d, Index count) {
  if constexpr (Codec::type == ElementType::bf16) {
    return load_pairs_part(row + d * 2, count);
  } else {
    const Index low = count < kLanes ? count : kLanes;
    const Vec a = avx512::load_part(Codec{}, row, d, low);
    const Vec b = avx512::load_part(Codec{}, row, d + low, count - low);
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
  }
}

#define GQA_STRIP_LOOP
#include "gqa/detail/path/qk.inl"
#undef GQA_STRIP_LOOP

#include "gqa/detail/path/bf16_rows.inl"

#include "gqa/detail/path/bf16_products.inl"

#include "gqa/detail/path/bf16_values.inl"

#include "gqa/detail/path/bf16_softmax.inl"

#include "gqa/detail/path/pv.inl"

// K rounded to bf16 (other codecs only), or V interleaved, one block at a time; sixteen queries while they are packed.
inline Index staging_bytes(Index, Index head_dim, Index value_dim) {
  const Index widest = head_dim > value_dim ? head_dim : value_dim;
  return kBlock * round_up(widest, kLanes2) * Index{sizeof(bf16)};
}

template <class Codec, int HeadDim, int ValueDim>
constexpr CodecKernels codec_kernels() {
  CodecKernels kernels{.scores = scores<Codec, HeadDim>, .accumulate = accumulate<Codec, ValueDim>};
  if constexpr (kRoundsToInfinity<Codec>) kernels.nonfinite = avx512::nonfinite_as_bf16<Codec>;
  else kernels.nonfinite = avx512::nonfinite<Codec>;
  kernels.stream_rows = kReadable<Codec> ? StreamRows{8, 4} : avx512::kStreamRows<Codec>;
  return kernels;
}
constexpr Kernels common_kernels() {
  return {
      .path = Path::avx512bf16,
      .pack = pack,
      .begin = avx512::begin,
      .softmax = softmax<avx512::PlainScore>,
      .merge = avx512::merge,
      .store = store_outputs,
      .few_rows_distance = few_rows_distance,
      .staging_bytes = staging_bytes,
      .has_divisor = true,
      .o_multiple = kLanes2,
  };
}
#define GQA_KERNELS_NAME "gqa_kernels_avx512bf16"
#include "gqa/detail/path/table.inl"
#undef GQA_KERNELS_NAME

template <unsigned Types, int HeadDim, int ValueDim>
inline const Kernels& kernels_of(int bf16_terms) noexcept {
  return bf16_terms == 1 ? kernels<Types, HeadDim, ValueDim>() : avx512::kernels<Types, HeadDim, ValueDim>();
}
template <class V>
inline SoftmaxKernel variant_softmax(const Kernels&) noexcept {
  return softmax<avx512::VariantScore<V>>;
}
using avx512::finish_rows;
using avx512::visible_tokens;

}  // namespace gqa::detail::inline GQA_ABI::avx512bf16

GQA_END_REGION()

#endif  // GQA_DETAIL_X86
