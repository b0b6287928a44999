// SPDX-License-Identifier: Apache-2.0
// The online softmax of one block. Part of kernel.inl.

// 2^x for x <= 0, and exactly 0 below −126; 2^0 is exactly 1. NaN stays NaN. Relative error below 2^-22.4.
// Adding the magic number leaves round(x) + 127 in the low bits of t, one shift away from being an exponent. The polynomial is
// a minimax fit of 2^r − 1 over [−1/2, 1/2] divided by r, error 2^-28.9.
// Of N vectors step by step: what waits for the step before is then not what a processor has to look through.
template <int N>
GQA_LONG_OP void exp2_nonpositive(Vec (&x)[N]) {
  const Vec magic = set1(0x1.8p23f + 127.0f);
  constexpr float coefficients[] = {0x1.5f3e5ep-10f, 0x1.3b2d4cp-7f, 0x1.c6aee8p-5f,
                                    0x1.ebfbdcp-3f,  0x1.62e430p-1f, 1.0f};
  Vec t[N], r[N], p[N];
  GQA_UNROLL
  for (int i = 0; i < N; ++i) t[i] = add(x[i], magic);
  GQA_UNROLL
  for (int i = 0; i < N; ++i) r[i] = sub(x[i], sub(t[i], magic));
  GQA_UNROLL
  for (int i = 0; i < N; ++i) p[i] = set1(0x1.41fbcap-13f);
  GQA_UNROLL
  for (const float c : coefficients) {
    GQA_UNROLL
    for (int i = 0; i < N; ++i) p[i] = fma(p[i], r[i], set1(c));
  }
  GQA_UNROLL
  for (int i = 0; i < N; ++i) x[i] = zero_below(x[i], set1(-126.0f), mul(p[i], shift_left<23>(t[i])));
}
GQA_OP Vec exp2_nonpositive(const Vec& x) {
  Vec one[1] = {x};
  exp2_nonpositive(one);
  return one[0];
}

inline constexpr float kMinusInfinity = -__builtin_inff();

// What exponents are taken relative to: the maximum, or 0 where there is none yet.
GQA_OP Vec finite_base(const Vec& m) { return zero_below(m, set1(-0x1.fffffep127f), m); }

// A row by itself: a lane is a token. Its scores as the variant changes them (Score), its new maximum; hidden scores become −∞.
template <class Score>
GQA_OP float row_maximum(const QueryTile& tile, const Block& block, Index row) {
  float* const w = tile.weights + row * kBlock;
  Vec running = set1(tile.m[row]);
  GQA_UNROLL
  for (int i = 0; i < kBlock / kLanes; ++i) {
    Vec s = load(w + i * kLanes);
    if constexpr (Score::kChanges) s = Score::tokens(tile, block, row, i * kLanes, s);
    if (block.visible != nullptr) s = select(block.visible[row] >> (i * kLanes), s, set1(kMinusInfinity));
    if (Score::kChanges || block.visible != nullptr) store(w + i * kLanes, s);
    running = larger(s, running);
  }
  return reduce_max(running);
}
// What the older sums of a row are multiplied by: 2^(m_old − m_new).
GQA_OP float rescaling(float m_old, float m_new, const Vec& base) {
  if (m_new == m_old) return 1.0f;
  alignas(64) float lanes[kLanes];
  store(lanes, exp2_nonpositive(sub(set1(m_old), base)));
  return lanes[0];
}
// The row's weights; rows are prefetched meanwhile, evenly.
GQA_OP void softmax_row(const QueryTile& tile, Index row, float m_new, PrefetchCursor& ahead) {
  float* const w = tile.weights + row * kBlock;
  const float m_old = tile.m[row];
  const Vec base = finite_base(set1(m_new));
  Vec s[kBlock / kLanes];
  GQA_UNROLL
  for (int i = 0; i < kBlock / kLanes; ++i) {
    s[i] = exp2_nonpositive(sub(load(w + i * kLanes), base));
    store(w + i * kLanes, s[i]);
    prefetch_row<kSoftmaxPiece>(ahead);
  }
  const float sum = reduce_add(add(add(s[0], s[1]), add(s[2], s[3])));
  const float alpha = rescaling(m_old, m_new, base);
  tile.m[row] = m_new;
  tile.alpha[row] = alpha;
  tile.l[row] = fma(tile.l[row], alpha, sum);
}
// Rows from `first` on, one after the other; the next one's maximum is worked out meanwhile.
template <class Score>
GQA_OP void softmax_rows(const QueryTile& tile, const Block& block, Index first, Prefetcher& prefetcher) {
  float m_new = 0.0f;
  PrefetchCursor ahead{};
  if (prefetcher.policy().between) ahead = softmax_cursor(prefetcher, tile.rows - first);
  GQA_NO_UNROLL
  for (Index next = first; next <= tile.rows; ++next) {
    const float m_next = next < tile.rows ? row_maximum<Score>(tile, block, next) : 0.0f;
    if (next > first) softmax_row(tile, next - 1, m_new, ahead);
    m_new = m_next;
  }
}

// The maximum of each of 16 rows' scores, [token][row], and of m. Bit t of visible[row]: the row sees token t.
inline constexpr int kChains = 4;
GQA_OP Vec larger_of(const Vec (&m)[kChains]) { return larger(larger(m[0], m[1]), larger(m[2], m[3])); }
// Every row sees every token.
template <class Score>
GQA_OP Vec panel_maximum(const QueryTile& tile, const Block& block, Index row, float* scores, const Vec& m_old) {
  const typename Score::Panel changed(tile, block, row, 0, kBlock);
  Vec m[kChains];
  GQA_UNROLL
  for (int c = 0; c < kChains; ++c) m[c] = m_old;
  for (Index t = 0; t < kBlock; t += kChains) {
    GQA_UNROLL
    for (int c = 0; c < kChains; ++c) {
      float* const at = scores + (t + c) * kLanes;
      Vec s = load(at);
      if constexpr (Score::kChanges) store(at, s = changed(t + c, s));
      m[c] = larger(s, m[c]);
    }
  }
  return larger_of(m);
}
// Hidden scores become −∞: from the last token on, whose bit is the sign already.
template <class Score>
GQA_OP Vec masked_panel_maximum(const QueryTile& tile, const Block& block, Index row, float* scores, const Vec& m_old) {
  const Index rows = tile.rows - row < kLanes ? tile.rows - row : kLanes;
  alignas(64) std::uint32_t half[2][kLanes] = {};
  for (Index r = 0; r < rows; ++r) {
    half[0][r] = static_cast<std::uint32_t>(block.visible[row + r]);
    half[1][r] = static_cast<std::uint32_t>(block.visible[row + r] >> 32);
  }
  const typename Score::Panel changed(tile, block, row, 0, kBlock);
  Vec m[kChains];
  GQA_UNROLL
  for (int c = 0; c < kChains; ++c) m[c] = m_old;
  for (Index t = kBlock; t > 0;) {
    Vec bits = load(reinterpret_cast<const float*>(half[t / (kBlock / 2) - 1]));
    for (Index i = 0; i < kBlock / 2; i += kChains) {
      GQA_UNROLL
      for (int c = 0; c < kChains; ++c, bits = shift_left<1>(bits)) {
        float* const at = scores + --t * kLanes;
        Vec s = load(at);
        if constexpr (Score::kChanges) s = changed(t, s);
        s = select_negative(bits, s, set1(kMinusInfinity));
        store(at, s);
        m[c] = larger(s, m[c]);
      }
    }
  }
  return larger_of(m);
}

// As many at once as there are registers for.
inline constexpr int kExponentials = kRowsSideBySide ? 4 : 1;
// exp2(score − base) of tokens c, c + 16, c + 32, c + 48, and their sum: what softmax_row has in lane c.
GQA_OP Vec class_weights(float* scores, Index c, const Vec& base) {
  float* const s = scores + c * kLanes;
  Vec w[kBlock / kLanes];
  GQA_UNROLL
  for (int i = 0; i < kBlock / kLanes; i += kExponentials) {
    Vec some[kExponentials];
    GQA_UNROLL
    for (int n = 0; n < kExponentials; ++n) some[n] = sub(load(s + (i + n) * kLanes * kLanes), base);
    exp2_nonpositive(some);
    GQA_UNROLL
    for (int n = 0; n < kExponentials; ++n) store(s + (i + n) * kLanes * kLanes, w[i + n] = some[n]);
  }
  return add(add(w[0], w[1]), add(w[2], w[3]));
}

// Sixteen rows: a lane is a row. Sums are added by the tree of reduce_add.
template <class Score>
GQA_OP void softmax_panel(const QueryTile& tile, const Block& block, Index row) {
  float* const scores = tile.weights + row * kBlock;
  const Vec m_old = load(tile.m + row);
  const Vec m_new = block.visible == nullptr ? panel_maximum<Score>(tile, block, row, scores, m_old)
                                             : masked_panel_maximum<Score>(tile, block, row, scores, m_old);
  const Vec base = finite_base(m_new);
  Vec sum[kLanes];
  GQA_NO_UNROLL
  for (Index c = 0; c < kLanes; ++c) sum[c] = class_weights(scores, c, base);
  GQA_UNROLL
  for (int half = kLanes / 2; half > 0; half /= 2) {
    GQA_UNROLL
    for (int c = 0; c < half; ++c) sum[c] = add(sum[c], sum[c + half]);
  }
  // A maximum that has not moved gives exactly 1; where there was none, what is multiplied is 0.
  const Vec alpha = exp2_nonpositive(sub(m_old, base));
  store(tile.m + row, m_new);
  store(tile.alpha + row, alpha);
  store(tile.l + row, fma(load(tile.l + row), alpha, sum[0]));
}

// weights ← exp2(score − m) with 0 for hidden tokens; m, l and alpha follow. A row that has seen nothing keeps m = −∞, l = 0.
// NaN scores do not enter m; they make their own weights NaN, and so the row. Rows of K and V are prefetched beside rows that are not in panels.
template <class Score>
inline void softmax(const QueryTile& tile, const Block& block, Prefetcher& prefetcher) {
  const Index in_panels = rows_in_panels(tile.rows);
  if constexpr (kRowTokens > 0)
    for (Index row = 0; row < in_panels; row += kLanes) softmax_panel<Score>(tile, block, row);
  if (in_panels < tile.rows) softmax_rows<Score>(tile, block, in_panels, prefetcher);
}
