// SPDX-License-Identifier: Apache-2.0
// The online softmax of one block. Part of kernel.inl.

// 2^x for x <= 0, and exactly 0 below −126; 2^0 is exactly 1. NaN stays NaN. Relative error below 2^-22.4.
// Adding the magic number leaves round(x) + 127 in the low bits of t, one shift away from being an exponent. The polynomial is
// a minimax fit of 2^r − 1 over [−1/2, 1/2] divided by r, error 2^-28.9.
GQA_OP Vec exp2_nonpositive(const Vec& x) {
  const Vec magic = set1(0x1.8p23f + 127.0f);
  const Vec t = add(x, magic);
  const Vec r = sub(x, sub(t, magic));
  Vec p = fma(set1(0x1.41fbcap-13f), r, set1(0x1.5f3e5ep-10f));
  p = fma(p, r, set1(0x1.3b2d4cp-7f));
  p = fma(p, r, set1(0x1.c6aee8p-5f));
  p = fma(p, r, set1(0x1.ebfbdcp-3f));
  p = fma(p, r, set1(0x1.62e430p-1f));
  p = fma(p, r, set1(1.0f));
  return zero_below(x, set1(-126.0f), mul(p, shift_to_exponent(t)));
}

inline constexpr float kMinusInfinity = -__builtin_inff();

// weights ← exp2(score − m) with 0 for hidden tokens; m, l and alpha follow. A row that has seen nothing keeps m = −∞, l = 0.
// NaN scores do not enter m; they make their own weights NaN, and so the row.
inline void softmax(const RowTile& tile, const Block& block) {
  const Vec hidden = set1(kMinusInfinity);
  for (Index row = 0; row < tile.rows; ++row) {
    float* w = tile.weights + row * kBlock;
    const float m_old = tile.m[row];
    Vec s[kBlock / kLanes];
    Vec running = set1(m_old);
    GQA_UNROLL
    for (int i = 0; i < kBlock / kLanes; ++i) {
      s[i] = load(w + i * kLanes);
      if (block.visible != nullptr) s[i] = select(block.visible[row] >> (i * kLanes), s[i], hidden);
      running = max(s[i], running);
    }
    const float m_new = reduce_max(running);
    const Vec base = set1(m_new == kMinusInfinity ? 0.0f : m_new);
    GQA_UNROLL
    for (int i = 0; i < kBlock / kLanes; ++i) {
      s[i] = exp2_nonpositive(sub(s[i], base));
      store(w + i * kLanes, s[i]);
    }
    const Vec sum = add(add(s[0], s[1]), add(s[2], s[3]));
    float alpha = 1.0f;
    if (m_new != m_old) {
      alignas(64) float lanes[kLanes];
      store(lanes, exp2_nonpositive(sub(set1(m_old), base)));
      alpha = lanes[0];
    }
    tile.m[row] = m_new;
    tile.alpha[row] = alpha;
    float* l = tile.l + row * kLanes;
    store(l, fma(load(l), set1(alpha), sum));
  }
}

// A user's score functor over the visible part of the block: score → log2 e · variant.score(score).
template <class V>
inline void transform(const RowTile& tile, const Block& block, const void* variant, const Index* position,
                      const Index* head, Index block_begin) {
  const V& user = *static_cast<const V*>(variant);
  for (Index row = 0; row < tile.rows; ++row) {
    float* w = tile.weights + row * kBlock;
    for (Index t = block.first; t < block.last; ++t) {
      if (block.visible != nullptr && ((block.visible[row] >> t) & 1u) == 0) continue;
      const float score = user_score(user, w[t], position[row], block_begin + t, head[row]);
      w[t] = kLog2E * score;
    }
  }
}
