// SPDX-License-Identifier: Apache-2.0
// Weights rounded, and outputs by matrices of 2 rows × 4 tokens and 4 tokens × 2 dims. Part of neon_bf16.hpp.

// Of the 32 pairs of a row's 64 weights, pairs i and i + 16 are added in lane i.
GQA_OP Vec round_row(const QueryTile& tile, Index row, const Vec (&s)[kBlock / kLanes]) {
  const uint16x8_t ones = vdupq_n_u16(0x3f80);
  float* const w = tile.weights + row / 2 * 2 * kBlock + row % 2 * 2;
  Vec sums = zero();
  GQA_UNROLL
  for (int i = 0; i < kBlock / kLanes; ++i) {
    const Pairs rounded = round_pairs(s[i]);
    GQA_UNROLL
    for (int j = 0; j < 2; ++j) {
      const uint64x2_t steps = vreinterpretq_u64_u16(rounded.part[j]);
      const std::uint64_t step[2] = {vgetq_lane_u64(steps, 0), vgetq_lane_u64(steps, 1)};
      __builtin_memcpy(w + (4 * i + 2 * j) * 4, step, sizeof step[0]);
      __builtin_memcpy(w + (4 * i + 2 * j + 1) * 4, step + 1, sizeof step[1]);
      float32x4_t& sum = sums.part[(2 * i + j) % 4];
      sum = add_pairs(sum, rounded.part[j], ones);
    }
  }
  return sums;
}
GQA_OP void reduce_two(const Vec& a, const Vec& b, float (&sums)[2]) {
  sums[0] = neon::reduce_add(a);
  sums[1] = neon::reduce_add(b);
}

// Four tokens × eight dims: of dims 2i and 2i + 1, [dim][token].
struct Quads {
  uint16x8_t part[4];
};
GQA_OP Quads interleave(uint16x8_t a, uint16x8_t b, uint16x8_t c, uint16x8_t d) {
  const auto pairs = [](uint16x8_t pair) __attribute__((always_inline)) { return vreinterpretq_u32_u16(pair); };
  const uint32x4_t ab[2] = {pairs(vzip1q_u16(a, b)), pairs(vzip2q_u16(a, b))};
  const uint32x4_t cd[2] = {pairs(vzip1q_u16(c, d)), pairs(vzip2q_u16(c, d))};
  return {{vreinterpretq_u16_u32(vzip1q_u32(ab[0], cd[0])), vreinterpretq_u16_u32(vzip2q_u32(ab[0], cd[0])),
           vreinterpretq_u16_u32(vzip1q_u32(ab[1], cd[1])), vreinterpretq_u16_u32(vzip2q_u32(ab[1], cd[1]))}};
}

// Outputs of R rows and `Held` vectors of each: of rows 2p and 2p + 1, dims 2i and 2i + 1, [row][dim]. If R is odd the last row is there
// twice.
template <int R, int Held>
struct RowPairs {
  static constexpr int kPairs = (R + 1) / 2;
  static constexpr int kParts = Held * int{kLanes} / 2;
  float32x4_t part[kPairs * kParts];
  static GQA_OP int second(int p) { return 2 * p + 1 < R ? 2 * p + 1 : 2 * p; }
};

struct Product {
  using Operand = Quads;
  template <int R, int Held>
  using Sums = RowPairs<R, Held>;
  static constexpr Index kRows = 2;
  static constexpr Index kTokens = 4;
  static constexpr Index kWeightFloats = 4;
  static constexpr Index kDims = kLanes;
  static constexpr int kVectors = 1;
};

template <int R, int Held>
GQA_OP void load_sums(RowPairs<R, Held>& acc, float* const (&o)[R]) {
  using Sums = RowPairs<R, Held>;
  GQA_UNROLL
  for (int p = 0; p < Sums::kPairs; ++p) {
    GQA_UNROLL
    for (int i = 0; i < Sums::kParts; i += 2) {
      const float32x4_t a = vld1q_f32(o[2 * p] + 2 * i);
      const float32x4_t b = vld1q_f32(o[Sums::second(p)] + 2 * i);
      acc.part[p * Sums::kParts + i] = first_halves(a, b);
      acc.part[p * Sums::kParts + i + 1] = second_halves(a, b);
    }
  }
}
template <int R, int Held>
GQA_OP void store_sums(const RowPairs<R, Held>& acc, float* const (&o)[R]) {
  using Sums = RowPairs<R, Held>;
  GQA_UNROLL
  for (int p = 0; p < Sums::kPairs; ++p) {
    GQA_UNROLL
    for (int i = 0; i < Sums::kParts; i += 2) {
      const float32x4_t a = acc.part[p * Sums::kParts + i];
      const float32x4_t b = acc.part[p * Sums::kParts + i + 1];
      vst1q_f32(o[2 * p] + 2 * i, first_halves(a, b));
      if (2 * p + 1 < R) vst1q_f32(o[Sums::second(p)] + 2 * i, second_halves(a, b));
    }
  }
}
template <int R, int N, int Held>
GQA_OP void rescale_sums(RowPairs<R, Held>& acc, float* const (&)[R], const float* alpha) {
  using Sums = RowPairs<R, Held>;
  static_assert(N == Held);
  GQA_UNROLL
  for (int p = 0; p < Sums::kPairs; ++p) {
    const float32x4_t factor = vcombine_f32(vdup_n_f32(alpha[2 * p]), vdup_n_f32(alpha[Sums::second(p)]));
    GQA_UNROLL
    for (int i = 0; i < Sums::kParts; ++i) acc.part[p * Sums::kParts + i] *= factor;
  }
}
// R rows × C steps of dims += weights · values of four tokens. Denormal sums are flushed, and a denormal sum before is taken as zero: what
// the scaling by alpha makes denormal is gone after the next step, so that it does not matter how many tokens with weight zero follow.
template <int R, int C, int S, int Held, bool, class Values, class Weights>
GQA_OP void add_step(RowPairs<R, Held>& acc, float* const (&)[R], const Weights& weights, const Values& values,
                     Index column, Index width) {
  using Sums = RowPairs<R, Held>;
  uint16x8_t weight[Sums::kPairs];
  GQA_UNROLL
  for (int p = 0; p < Sums::kPairs; ++p) {
    if (2 * p + 1 < R) weight[p] = vld1q_u16(typed<const std::uint16_t>(weights.of(p)));
    else weight[p] = vreinterpretq_u16_u64(vld1q_dup_u64(typed<const std::uint64_t>(weights.of(p))));
  }
  GQA_UNROLL
  for (int c = 0; c < 2 * C; ++c) {
    Quads value;
    values(column + 8 * c, C > 1 ? 8 : width - 8 * c, &value);
    GQA_UNROLL
    for (int i = 0; i < 4; ++i) {
      GQA_UNROLL
      for (int p = 0; p < Sums::kPairs; ++p) {
        float32x4_t& sum = acc.part[p * Sums::kParts + 4 * c + i];
        sum = add_matrices(sum, weight[p], value.part[i]);
      }
    }
  }
}

// Rows that take values straight from the cache: one strip; more share a staged copy, in the first-level cache.
template <class Codec>
inline constexpr Index kDirectRows = kPvRows;

// Evenly spaced rows, from the first token that is added; whole steps.
template <class Codec>
struct Cached {
  static constexpr bool kFewRows = false;
  static constexpr bool kWaits = false;
  static constexpr bool kAnyRows = true;
  static constexpr bool kWhole = false;
  static constexpr bool kWholeTwice = false;
  static constexpr bool kStreams = true;
  const std::byte* row;
  Index stride;
  // `count` dims from `column` on, eight or fewer.
  GQA_OP void operator()(Index column, Index count, Quads* value) const {
    const std::byte* p[4] = {row + column * 2};
    GQA_UNROLL
    for (int t = 1; t < 4; ++t) p[t] = p[t - 1] + stride;
    if (count >= 8) *value = interleave(load_eight(p[0]), load_eight(p[1]), load_eight(p[2]), load_eight(p[3]));
    else
      *value = interleave(load_eight_part(p[0], count), load_eight_part(p[1], count), load_eight_part(p[2], count),
                          load_eight_part(p[3], count));
  }
  GQA_OP void next() { row += 4 * stride; }
  GQA_OP void skip(Index tokens) { row += tokens * stride; }
  GQA_OP void touch(Index width) const {
    GQA_UNROLL
    for (int t = 0; t < 4; ++t) touch_row(row + t * stride, 2 * width);
  }
};

// [four tokens][column / 8]
struct Staged {
  static constexpr bool kFewRows = false;
  static constexpr bool kWaits = false;
  static constexpr bool kAnyRows = true;
  static constexpr bool kWhole = false;
  static constexpr bool kStreams = false;
  const std::byte* quads;
  Index stride;  // bytes from step to step
  GQA_OP void operator()(Index column, Index, Quads* value) const {
    GQA_UNROLL
    for (int i = 0; i < 4; ++i) value->part[i] = load_eight(quads + column * 8 + i * 16);
  }
  GQA_OP void next() { quads += stride; }
  GQA_OP void skip(Index tokens) { quads += tokens / 4 * stride; }
  GQA_OP void touch(Index) const {}
};

GQA_OP Index staged_stride(const QueryTile& tile) { return round_up(tile.value_dim, kLanes) * 8; }
GQA_OP void keep(std::byte* quads, Index column, const Quads* value) {
  GQA_UNROLL
  for (int i = 0; i < 4; ++i) store_eight(quads + column * 8 + i * 16, value->part[i]);
}
GQA_OP void stage_rows(const Pairs (&rows)[4], std::byte* quads, Index column) {
  GQA_UNROLL
  for (int i = 0; i < 2; ++i) {
    const Quads value = interleave(rows[0].part[i], rows[1].part[i], rows[2].part[i], rows[3].part[i]);
    keep(quads, column + 8 * i, &value);
  }
}
