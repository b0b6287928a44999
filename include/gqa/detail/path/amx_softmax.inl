// SPDX-License-Identifier: Apache-2.0
// The online softmax of one block: a lane is a row, tokens go by one after the other. Part of amx.hpp.

// 2^x in bf16 by one cubic. X = 128·(x + 127) is, but for the curve between powers of two, the bf16's bits as a
// number: its multiples of 128 are the powers of two. The cubic is the curve: 128·(2^f − 1) for f = F/128 in [0, 1),
// relative error 2^-13.5 (minimax with value 0 at 0, so that 2^0 is exactly 1).
inline constexpr float kStep = 128.0f;
inline constexpr float kOffset = 127.0f * 128.0f;
inline constexpr float kCurve1 = 0x1.63e654p-1f;
inline constexpr float kCurve2 = 0x1.d23788p-10f;
inline constexpr float kCurve3 = 0x1.3baadcp-18f;
// Adding it rounds to a multiple of 128.
inline constexpr float kFloor = 0x1.8p30f;
// From this maximum on, in units of log2, X is reached in more steps: the single one would lose what a weight needs.
inline constexpr float kLargeMaximum = 0x1p14f;

// How a panel's scores become X.
struct Exponent {
  Vec slope;   // 128·c
  Vec offset;  // 128·(127 − m)
  Vec factor;  // c
  Vec base;    // m
  __mmask16 large;
};

// Bits of bf16 2^(c·s − m), below 2^-127 zero, rounded to nearest even; all ones for NaN.
template <bool Large>
GQA_OP __m512i weight_bits(Vec s, const Exponent& e) {
  Vec x = avx512::fma(s, e.slope, e.offset);
  if constexpr (Large) {
    const Vec steps = avx512::fma(avx512::sub(avx512::unfused(avx512::mul(s, e.factor)), e.base), avx512::set1(kStep),
                                  avx512::set1(kOffset));
    x = _mm512_mask_mov_ps(x, e.large, steps);
  }
  x = avx512::larger(avx512::zero(), x);  // x where it is NaN
  const Vec t = _mm512_add_round_ps(x, avx512::set1(kFloor), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  const Vec whole = avx512::sub(t, avx512::set1(kFloor));
  const Vec f = avx512::sub(x, whole);
  const Vec curve = avx512::fma(avx512::fma(avx512::set1(kCurve3), f, avx512::set1(kCurve2)), f, avx512::set1(kCurve1));
  return _mm512_cvtps_epu32(avx512::fma(curve, f, whole));  // NaN → all ones
}

// Of two tokens, side by side.
template <bool Large>
GQA_OP __m512i weight_pair(const float* scores, const Exponent& e) {
  const __m512i even = weight_bits<Large>(avx512::load(scores), e);
  const __m512i odd = weight_bits<Large>(avx512::load(scores + kPanel), e);
  return _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}

// Scores of 32 tokens → weights as operand A, [row][token], in their place. Large maxima are rare, and their code is short.
GQA_KERNEL void round_weights(float* scores, const Exponent& e) {
  __m512i pair[kPanel];
  if (e.large == 0) {
    GQA_UNROLL
    for (int i = 0; i < kPanel; ++i) pair[i] = weight_pair<false>(scores + 2 * i * kPanel, e);
  } else {
    GQA_NO_UNROLL
    for (int i = 0; i < kPanel; ++i) pair[i] = weight_pair<true>(scores + 2 * i * kPanel, e);
  }
  transpose(pair);
  GQA_UNROLL
  for (int r = 0; r < kPanel; ++r) _mm512_storeu_si512(scores + r * kPanel, pair[r]);
}

// Scores of 32 tokens → the two terms of f32 weights as operands A, [term][row][token], in their place.
GQA_OP void split_weights(float* scores, Vec factor, Vec base) {
  __m512i pairs[2][kPanel];
  for (int i = 0; i < kPanel; ++i) {
    Split weight[2];
    GQA_UNROLL
    for (int odd = 0; odd < 2; ++odd) {
      const Vec s = avx512::load(scores + (2 * i + odd) * kPanel);
      const Vec w = avx512::exp2_nonpositive(avx512::sub(avx512::unfused(avx512::mul(s, factor)), base));
      // A NaN that stays one when half a unit is added to its bits: weights have no sign, so those of any NaN are larger.
      const __m512i quiet = _mm512_min_epu32(_mm512_castps_si512(w), _mm512_set1_epi32(0x7fc00000));
      weight[odd] = split_ordinary(_mm512_castsi512_ps(quiet));
    }
    pairs[0][i] = pair_upper_halves(weight[0].first, weight[1].first);
    pairs[1][i] = pair_upper_halves(weight[0].second, weight[1].second);
  }
  for (Index term = 0; term < 2; ++term) {
    transpose(pairs[term]);
    GQA_UNROLL
    for (int r = 0; r < kPanel; ++r) _mm512_storeu_si512(scores + (term * kPanel + r) * kPanel, pairs[term][r]);
  }
}

// Scores of 32 tokens from t0 on as the variant changes them, which takes natural ones and leaves units of log2.
template <class Score>
GQA_OP void change_scores(const QueryTile& tile, const Block& block, Index panel, Index t0) {
  const Vec factor = avx512::set1(score_factor(tile.score_scale));
  const typename Score::Panel changed(tile, block, panel * kPanel, t0, t0 + kHalf);
  GQA_NO_UNROLL
  for (Index t = t0; t < t0 + kHalf; ++t) {
    float* const at = tile.weights + panel * kPanelFloats + t * kPanel;
    const Vec natural = avx512::unfused(avx512::mul(avx512::load(at), factor));
    avx512::store(at, changed(t, natural));
  }
}

// Maximum over 32 tokens, NaN aside. With a mask, hidden tokens' scores become −∞.
template <bool Masked>
GQA_OP Vec maximum(float* scores, __m512i visible, Vec so_far) {
  constexpr int kChains = 4;
  const Vec hidden = avx512::set1(avx512::kMinusInfinity);
  Vec m[kChains] = {so_far, so_far, so_far, so_far};
  __m512i bit = _mm512_set1_epi32(1);
  GQA_UNROLL
  for (int t = 0; t < kHalf; ++t) {
    Vec s = avx512::load(scores + t * kPanel);
    if constexpr (Masked) {
      s = _mm512_mask_mov_ps(hidden, _mm512_test_epi32_mask(visible, bit), s);
      avx512::store(scores + t * kPanel, s);
      bit = _mm512_slli_epi32(bit, 1);
    }
    m[t % kChains] = avx512::larger(s, m[t % kChains]);
  }
  return avx512::larger(avx512::larger(m[0], m[1]), avx512::larger(m[2], m[3]));
}

// weights ← exp2(score − m) by terms, zero for hidden tokens; m and alpha follow. l is left to the products. A row
// that has seen nothing keeps m = −∞. NaN scores do not enter m; they make their own weights NaN, and so the row.
template <int Terms, class Score>
inline void softmax(const QueryTile& tile, const Block& block, Prefetcher&) {
  const Vec factor = avx512::set1(tile.scored ? 1.0f : score_factor(tile.score_scale));
  const Vec nothing = avx512::set1(avx512::kMinusInfinity);
  for (Index panel = 0; panel < panel_count(tile); ++panel) {
    const PanelView view = panel_view(tile, block, panel);
    const __mmask16 lanes = first_lanes(rows_in_panel(tile, panel));
    float* scores = tile.weights + panel * kPanelFloats;
    float* m = tile.m + panel * kPanel;
    Vec raw = nothing;
    for (Index half = 0; half < 2; ++half) {
      if (!view.any[half]) continue;
      if constexpr (Score::kChanges) change_scores<Score>(tile, block, panel, half * kHalf);
      float* of_half = scores + half * kHalf * kPanel;
      raw = view.everything ? maximum<false>(of_half, view.half[half], raw)
                            : maximum<true>(of_half, view.half[half], raw);
    }
    const Vec m_old = _mm512_mask_loadu_ps(nothing, lanes, m);
    const Vec m_new = avx512::larger(avx512::mul(raw, factor), m_old);
    // Maxima are never NaN, and are compared by their bits. Of zeros of different signs alpha is 1 either way.
    const __m512i new_bits = _mm512_castps_si512(m_new);
    const Vec base = _mm512_maskz_mov_ps(_mm512_cmpneq_epi32_mask(new_bits, _mm512_castps_si512(nothing)), m_new);
    const __mmask16 same = _mm512_cmpeq_epi32_mask(new_bits, _mm512_castps_si512(m_old));
    const Vec alpha = avx512::exp2_nonpositive(avx512::sub(m_old, base));
    avx512::store(tile.alpha + panel * kPanel, _mm512_mask_mov_ps(alpha, same, avx512::set1(1.0f)));
    _mm512_mask_storeu_ps(m, lanes, m_new);

    const Exponent e{avx512::mul(factor, avx512::set1(kStep)),
                     avx512::fma(avx512::set1(-kStep), base, avx512::set1(kOffset)), factor, base,
                     _mm512_cmpge_epi32_mask(_mm512_castps_si512(_mm512_abs_ps(base)),
                                             _mm512_castps_si512(avx512::set1(kLargeMaximum)))};
    for (Index half = 0; half < 2; ++half) {
      if (!view.any[half]) continue;
      float* of_half = scores + half * kHalf * kPanel;
      if constexpr (Terms == 2) split_weights(of_half, factor, base);
      else round_weights(of_half, e);
    }
  }
}
