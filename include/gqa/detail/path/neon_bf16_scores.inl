// SPDX-License-Identifier: Apache-2.0
// Queries packed two by two, and scores by matrices of 2 rows × 4 dims and 4 dims × 2 tokens. Part of neon_bf16.hpp.

// tile.q ← queries as bf16, unscaled: of rows 2p and 2p + 1, [4 dims][row][dim], zeros for a row that there is not. A row takes
// 2 · q_stride bytes.
inline void pack(const QueryTile& tile, const QuerySource& source) {
  const Index row_bytes = tile.q_stride * 2;
  for (Index row = 0; row < tile.rows; row += 2) {
    auto* to = static_cast<std::byte*>(tile.q) + row * row_bytes;
    std::byte* const second = tile.staging + row_bytes;
    pack_query(tile, source, row, tile.staging);
    if (row + 1 < tile.rows) pack_query(tile, source, row + 1, second);
    for (Index d = 0; d < tile.head_dim; d += 8, to += 32) {
      const uint16x8_t a = load_eight(tile.staging + d * 2);
      const uint16x8_t b = row + 1 < tile.rows ? load_eight(second + d * 2) : vdupq_n_u16(0);
      store_eight(to, first_halves(a, b));
      store_eight(to + 16, second_halves(a, b));
    }
  }
}

// Sums of R rows and T tokens: of rows 2p and 2p + 1 and tokens 2u and 2u + 1, [row][token], those of dims 0 … 3 of every eight and those
// of dims 4 … 7.
template <int R, int T>
struct StripSums {
  static_assert(R % 2 == 0 && T % 4 == 0);
  static constexpr int kPairs = R / 2;
  const std::byte* q;
  Index pair_bytes;
  float32x4_t first[kPairs * T / 2];
  float32x4_t second[kPairs * T / 2];
  GQA_OP StripSums(const std::byte* packed, Index row_bytes) : q(packed), pair_bytes(2 * row_bytes) {
    GQA_UNROLL
    for (int i = 0; i < kPairs * T / 2; ++i) first[i] = second[i] = vdupq_n_f32(0.0f);
  }
  // += dims d … d + 7
  GQA_OP void add(Index d, const uint16x8_t (&key)[T]) {
    uint16x8_t query[2][kPairs];
    GQA_UNROLL
    for (int p = 0; p < kPairs; ++p) {
      query[0][p] = load_eight(q + p * pair_bytes + d * 4);
      query[1][p] = load_eight(q + p * pair_bytes + d * 4 + 16);
    }
    GQA_UNROLL
    for (int u = 0; u < T / 2; ++u) {
      const uint16x8_t low = first_halves(key[2 * u], key[2 * u + 1]);
      const uint16x8_t high = second_halves(key[2 * u], key[2 * u + 1]);
      GQA_UNROLL
      for (int p = 0; p < kPairs; ++p) {
        const int i = p * T / 2 + u;
        first[i] = add_matrices(first[i], query[0][p], low);
        second[i] = add_matrices(second[i], query[1][p], high);
      }
    }
  }
  // to[row · kBlock + token]
  GQA_OP void store(float* to, float scale) const {
    GQA_UNROLL
    for (int p = 0; p < kPairs; ++p) {
      GQA_UNROLL
      for (int u = 0; u < T / 2; u += 2) {
        const int i = p * T / 2 + u;
        const float32x4_t a = vmulq_n_f32(first[i] + second[i], scale);
        const float32x4_t b = vmulq_n_f32(first[i + 1] + second[i + 1], scale);
        vst1q_f32(to + 2 * p * kBlock + 2 * u, first_halves(a, b));
        vst1q_f32(to + (2 * p + 1) * kBlock + 2 * u, second_halves(a, b));
      }
    }
  }
};
// Of one row, the first of its pair: its query's halves of every eight dims are rows, and a key's halves tokens. The same sums are on the
// diagonal; what is beside it is nobody's.
template <int T>
struct StripSums<1, T> {
  const std::byte* q;
  float32x4_t sum[T];
  GQA_OP StripSums(const std::byte* packed, Index) : q(packed) {
    GQA_UNROLL
    for (int t = 0; t < T; ++t) sum[t] = vdupq_n_f32(0.0f);
  }
  GQA_OP void add(Index d, const uint16x8_t (&key)[T]) {
    const uint16x8_t query = first_halves(load_eight(q + d * 4), load_eight(q + d * 4 + 16));
    GQA_UNROLL
    for (int t = 0; t < T; ++t) sum[t] = add_matrices(sum[t], query, key[t]);
  }
  GQA_OP void store(float* to, float scale) const {
    GQA_UNROLL
    for (int t = 0; t < T; t += 4) {
      const float32x4_t first = first_halves(vzip1q_f32(sum[t], sum[t + 1]), vzip1q_f32(sum[t + 2], sum[t + 3]));
      const float32x4_t second = second_halves(vzip2q_f32(sum[t], sum[t + 1]), vzip2q_f32(sum[t + 2], sum[t + 3]));
      vst1q_f32(to + t, vmulq_n_f32(first + second, scale));
    }
  }
};

struct Dot {
  using ForPanels = Dot;
  using Key = Bf16;
  static constexpr Index kDims = 8;
  static constexpr Index kQueryBytes = 2;
  static constexpr bool kPlainKeys = true;
  static constexpr bool kMatrices = true;
  template <int R>
  static constexpr int kStripTokens = R == 8 ? 4 : 8;

  // to[row · kBlock + t] ← scale · q · k of R rows, packed at q, and T tokens from keys(s) on.
  template <int R, int T>
  static GQA_OP void strip(const QueryTile& tile, const std::byte* q, const ScatteredRows& keys, Index s, float* to) {
    StripSums<R, T> sums(q, tile.q_stride * kQueryBytes);
    const std::byte* k[T];
    GQA_UNROLL
    for (int t = 0; t < T; ++t) k[t] = keys(s + t);
    const Index whole = tile.head_dim / kDims * kDims;
    uint16x8_t key[T];
    for (Index d = 0; d < whole; d += kDims) {
      GQA_UNROLL
      for (int t = 0; t < T; ++t) key[t] = load_eight(k[t] + d * 2);
      sums.add(d, key);
    }
    if (whole != tile.head_dim) {
      GQA_UNROLL
      for (int t = 0; t < T; ++t) key[t] = load_eight_part(k[t] + whole * 2, tile.head_dim - whole);
      sums.add(whole, key);
    }
    sums.store(to, tile.score_scale);
  }
};
