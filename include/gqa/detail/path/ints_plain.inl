// SPDX-License-Identifier: Apache-2.0
// Integers lane by lane, for paths without products of them: 16 bits each, in their order. Part of such a path, before ints.inl.

struct IntegerSums {
  std::int32_t lane[kLanes];
};
inline constexpr int kIntegerRows = 1;
inline constexpr int kIntegerVectors = 1;
inline constexpr int kGroup = 4;
inline constexpr Index kGroupBytes = 8;
inline constexpr Index kLaneBytes = 2;
inline constexpr Index kGroupStep = 8;
inline constexpr Index kPanelRowBytes = 8;
GQA_OP Index other_half(Index) { return 0; }
template <class Codec>
inline constexpr Index kSpread = kLanes;
template <class Codec>
inline constexpr Index kExcess = 0;
inline constexpr StreamRows kIntegerStreamRows = {1, 1};

GQA_OP void put_integers(std::byte* row, Index, Index i, const Vec& rounded) {
  std::uint32_t bits[kLanes];
  store(reinterpret_cast<float*>(bits), rounded);
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto low = static_cast<std::uint16_t>(bits[lane]);
    __builtin_memcpy(row + (i + lane) * 2, &low, sizeof low);
  }
}
GQA_OP void put_panel_integers(std::byte* to, const Vec (&rounded)[4]) {
  for (int i = 0; i < 4; ++i) {
    std::uint32_t bits[kLanes];
    store(reinterpret_cast<float*>(bits), rounded[i]);
    for (int row = 0; row < kLanes; ++row) {
      const auto low = static_cast<std::uint16_t>(bits[row]);
      __builtin_memcpy(to + row * kPanelRowBytes + i * 2, &low, sizeof low);
    }
  }
}
GQA_OP Vec larger_bits(const Vec& a, const Vec& b) {
  std::int32_t x[kLanes], y[kLanes];
  store(reinterpret_cast<float*>(x), a);
  store(reinterpret_cast<float*>(y), b);
  for (int i = 0; i < kLanes; ++i) x[i] = x[i] > y[i] ? x[i] : y[i];
  return load(reinterpret_cast<const float*>(x));
}
template <class Codec>
GQA_OP std::int16_t integer_at(const std::byte* row, Index d) {
  if constexpr (Codec::integer_bits == 8) return static_cast<std::int8_t>(row[d]);
  const auto pair = static_cast<unsigned>(row[(d >> 5) * 16 + (d & 15)]);
  return static_cast<std::int16_t>(static_cast<int>((d & 16) == 0 ? pair & 15u : pair >> 4) - 8);
}
GQA_OP std::byte* staged_keys(const QueryTile& tile, Index t) { return tile.staging + t * kLaneBytes; }
template <class Codec, class RowAt>
GQA_OP void stage_key_tokens(const RowAt& rows, Index dim, std::byte* to) {
  for (Index t = 0; t < kLanes; ++t, to += kLaneBytes) {
    for (Index d = 0; d < round_up(dim, 4); ++d) {
      const std::int16_t k = d < dim ? integer_at<Codec>(rows(t), d) : std::int16_t{0};
      __builtin_memcpy(to + d * kBlock * kLaneBytes, &k, sizeof k);
    }
  }
}
template <class Codec>
GQA_OP void stage_value_group(const std::byte* const (&rows)[4], Index dim, std::byte* to, Index stride) {
  for (int i = 0; i < 4; ++i, to += stride / 4) {
    for (Index d = 0; d < round_up(dim, kLanes); ++d) {
      const std::int16_t v = d < dim ? integer_at<Codec>(rows[i], d) : std::int16_t{0};
      __builtin_memcpy(to + d * kLaneBytes, &v, sizeof v);
    }
  }
}
template <int R, int C, class Rows, class Ahead>
GQA_OP void integer_sums(const Rows& rows, Index first, const std::byte* staged, Index quads, Index stride,
                         Ahead& ahead, IntegerSums (&acc)[R * C]) {
  static_assert(R == 1 && C == 1);
  acc[0] = {};
  for (Index i = first * 4; i < (first + quads) * 4; ++i, staged += stride / 4) {
    if (i % 4 == 0) ahead.step();
    const std::byte* const a = rows.first[0] + i / 4 * rows.step + i % 4 * 2;
    std::int16_t x, y[kLanes];
    __builtin_memcpy(&x, a, sizeof x);
    __builtin_memcpy(y, staged, sizeof y);
    for (int lane = 0; lane < kLanes; ++lane) acc[0].lane[lane] += x * y[lane];
  }
}
GQA_OP void natural_order(IntegerSums (&)[kIntegerVectors]) {}
GQA_OP Vec integers_as_floats(const IntegerSums& sums, std::int32_t constant) {
  float r[kLanes];
  for (int i = 0; i < kLanes; ++i)  // unsigned, for rows whose constant is anything
    r[i] = static_cast<float>(
        static_cast<std::int32_t>(static_cast<std::uint32_t>(sums.lane[i]) + static_cast<std::uint32_t>(constant)));
  return load(r);
}
template <int R, class Rows, class Ahead>
GQA_OP void key_sums(const Rows& rows, const std::byte* staged, Index dim, Ahead& ahead, IntegerSums (&sums)[R]) {
  integer_sums<R, 1>(rows, 0, staged, (dim + 3) / 4, kBlock * kGroupBytes, ahead, sums);
}
#include "gqa/detail/path/ints.inl"

template <class Codec>
inline const CodecKernels* integer_kernels() noexcept {
  return &kIntegerKernels<Codec>;
}
