// SPDX-License-Identifier: Apache-2.0
// Integers of an AArch64 processor, whatever products it has of them. In scores a lane is a token, in outputs a dim, and groups of 8 elements
// are added up. Part of neon_smlal.hpp, neon_dot.hpp and neon_i8mm.hpp, which say how integers lie and what a product is:
//
//   kGroupBytes, kLaneBytes       see ints.inl
//   put_group                     8 integers of a row → the 16 bytes that add_group takes
//   put_keys                      16 dims of 16 tokens → two groups of 16 lanes, 16 · kGroupBytes each
//   put_values                    16 dims of 8 tokens → 16 lanes of a group of `stride` bytes
//   kParts<R>                     how many quarters of the lanes R rows' sums are in registers for: 2 or 4
//   RowSums<P>                    sums of a row and 4 · P lanes, such of nothing, and a quarter of them in their order
//   add_group                     such sums ← themselves + the products of a group

struct IntegerSums {
  int32x4_t part[4];
};
inline constexpr int kIntegerRows = 4;
inline constexpr int kIntegerVectors = 1;
inline constexpr Index kGroupStep = 16;
inline constexpr Index kPanelRowBytes = 16;
GQA_OP Index other_half(Index) { return 0; }
template <class Codec>
inline constexpr Index kSpread = kLanes;
template <class Codec>
inline constexpr Index kExcess = Codec::integer_bits == 4 ? 8 : 0;
inline constexpr StreamRows kIntegerStreamRows = {8, 1};

// The lower halves of 8 lanes' bits: the first 8, or the last.
GQA_OP int16x8_t lower_halves(const Vec& a, int half) {
  return vreinterpretq_s16_u16(
      vuzp1q_u16(vreinterpretq_u16_f32(a.part[2 * half]), vreinterpretq_u16_f32(a.part[2 * half + 1])));
}
GQA_OP void put_integers(std::byte* row, Index, Index i, const Vec& rounded) {
  GQA_UNROLL
  for (int half = 0; half < 2; ++half) put_group(row + i * 2 + half * kGroupStep, lower_halves(rounded, half));
}
GQA_OP void put_panel_integers(std::byte* to, const Vec (&rounded)[kGroup]) {
  GQA_UNROLL
  for (int half = 0; half < 2; ++half) {
    int16x8_t rows[kGroup];
    GQA_UNROLL
    for (int i = 0; i < kGroup; ++i) rows[i] = lower_halves(rounded[i], half);
    interleave<3>(rows);
    GQA_UNROLL
    for (int r = 0; r < kGroup; ++r) put_group(to + (half * kGroup + r) * kPanelRowBytes, rows[r]);
  }
}
GQA_OP int32x4_t larger_bits(float32x4_t a, float32x4_t b) {
  return vmaxq_s32(vreinterpretq_s32_f32(a), vreinterpretq_s32_f32(b));
}
GQA_OP Vec larger_bits(const Vec& a, const Vec& b) {
  Vec r;
  GQA_UNROLL
  for (int i = 0; i < 4; ++i) r.part[i] = vreinterpretq_f32_s32(larger_bits(a.part[i], b.part[i]));
  return r;
}
// Numbers of dims d … d + 15, d a multiple of 16: all of them there if Whole, else zeros or what a block is filled with behind them.
template <class Codec, bool Whole>
GQA_OP int8x16_t integers_at(const std::byte* row, Index d, Index dim) {
  if constexpr (Codec::integer_bits == 8) {
    return vreinterpretq_s8_u8(Whole ? load_bytes(row + d) : load_bytes_part(row + d, dim - d));
  } else {
    const int8x16_t shift = vdupq_n_s8((d & 16) == 0 ? 0 : -4);
    return vreinterpretq_s8_u8(vandq_u8(vshlq_u8(load_bytes(row + d / 32 * 16), shift), vdupq_n_u8(15)));
  }
}
GQA_OP std::byte* staged_keys(const QueryTile& tile, Index t) {
  return tile.staging + t * round_up(tile.head_dim, kLanes) / kGroup * kGroupBytes;
}
template <class Codec, bool Whole, class RowAt>
GQA_OP void stage_key_dims(const RowAt& rows, Index d, Index dim, std::byte* to) {
  int8x16_t k[kLanes];
  GQA_UNROLL
  for (Index t = 0; t < kLanes; ++t) k[t] = integers_at<Codec, Whole>(rows(t), d, dim);
  put_keys(k, to + d / kGroup * kLanes * kGroupBytes);
}
template <class Codec, class RowAt>
GQA_OP void stage_key_tokens(const RowAt& rows, Index dim, std::byte* to) {
  const Index whole = dim / kLanes * kLanes;
  for (Index d = 0; d < whole; d += kLanes) stage_key_dims<Codec, true>(rows, d, dim, to);
  if (whole < dim) stage_key_dims<Codec, false>(rows, whole, dim, to);
}
template <class Codec, bool Whole>
GQA_OP void stage_value_dims(const std::byte* const (&rows)[kGroup], Index d, Index dim, std::byte* to, Index stride) {
  int8x16_t v[kGroup];
  GQA_UNROLL
  for (int i = 0; i < kGroup; ++i) v[i] = integers_at<Codec, Whole>(rows[i], d, dim);
  put_values(v, to + d * kLaneBytes, stride);
}
template <class Codec>
GQA_OP void stage_value_group(const std::byte* const (&rows)[kGroup], Index dim, std::byte* to, Index stride) {
  const Index whole = dim / kLanes * kLanes;
  for (Index d = 0; d < whole; d += kLanes) stage_value_dims<Codec, true>(rows, d, dim, to, stride);
  if (whole < dim) stage_value_dims<Codec, false>(rows, whole, dim, to, stride);
}
template <int R, int C, class Rows, class Ahead>
GQA_OP void integer_sums(const Rows& rows, Index first, const std::byte* staged, Index groups, Index stride,
                         Ahead& ahead, IntegerSums (&acc)[R * C]) {
  static_assert(C == 1);
  constexpr int P = kParts<R>;
  GQA_UNROLL
  for (int p = 0; p < 4; p += P) {
    RowSums<P> sums[R];
    GQA_UNROLL
    for (int r = 0; r < R; ++r) sums[r] = RowSums<P>::none();
    const std::byte* from = staged + 4 * p * kLaneBytes;
    for (Index at = first * rows.step; at < (first + groups) * rows.step; at += rows.step, from += stride) {
      ahead.step();
      uint8x16_t a[R];
      GQA_UNROLL
      for (int r = 0; r < R; ++r) a[r] = load_bytes(rows.first[r] + at);
      add_group<R, P>(a, from, stride, sums);
    }
    GQA_UNROLL
    for (int r = 0; r < R; ++r) {
      GQA_UNROLL
      for (int i = 0; i < P; ++i) acc[r].part[p + i] = sums[r].part(i);
    }
  }
}
template <int R, class Rows, class Ahead>
GQA_OP void key_sums(const Rows& rows, const std::byte* staged, Index dim, Ahead& ahead, IntegerSums (&sums)[R]) {
  integer_sums<R, 1>(rows, 0, staged, (dim + kGroup - 1) / kGroup, kLanes * kGroupBytes, ahead, sums);
}
GQA_OP void natural_order(IntegerSums (&)[kIntegerVectors]) {}
GQA_OP Vec integers_as_floats(const IntegerSums& sums, std::int32_t constant) {
  const uint32x4_t all =
      vdupq_n_u32(static_cast<std::uint32_t>(constant));  // unsigned, for rows whose constant is anything
  Vec r;
  GQA_UNROLL
  for (int i = 0; i < 4; ++i)
    r.part[i] = vcvtq_f32_s32(vreinterpretq_s32_u32(vaddq_u32(vreinterpretq_u32_s32(sums.part[i]), all)));
  return r;
}
#include "gqa/detail/path/ints.inl"
