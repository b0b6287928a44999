// SPDX-License-Identifier: Apache-2.0
// The loads of every codec, and of the program's own. Part of a path, after its vector operations.

// The first `count` lanes, no more than 16; zeros behind them.
GQA_OP Vec first_of(const Vec& a, Index count) {
  return select((std::uint64_t{1} << static_cast<unsigned>(count)) - 1, a, zero());
}
// What codes of four bits are worth: of elements d … d + 15 of a block of 32, the first 16 of which are the lower halves of 16 bytes, the
// others the upper ones.
GQA_OP Vec codes_of(const std::int8_t (&table)[16], const std::byte* codes, Index d) {
  const auto pairs = load_bytes(codes);
  if ((d & 16) == 0) return widen_i8(look_up(load_bytes(table), nibbles<false>(pairs)));
  return widen_i8(look_up(load_bytes(table), nibbles<true>(pairs)));
}
// The same times `scale`. Paths that look floats up scale what there is to be found instead of what is found, and both halves of the bytes
// share that.
template <const std::int8_t (&Table)[16]>
GQA_OP Vec scaled_codes(const std::byte* codes, Index d, const Vec& scale) {
  if constexpr (kLooksUpFloats) {
    const Vec pairs = byte_bits(load_bytes(codes));
    return look_up(mul(load(kFloatsOf<Table>.of), scale), (d & 16) == 0 ? pairs : shift_right<4>(pairs));
  } else {
    return mul(codes_of(Table, codes, d), scale);
  }
}
// The f32 scales of elements d … d + 15 of a row, or of the first `count` of them: one for all, or one each.
GQA_OP Vec scales_of(const ScaledRow& row, Index d, Index count) {
  if (row.scale_step == 0) {
    float scale;
    __builtin_memcpy(&scale, row.scale, sizeof scale);
    return set1(scale);
  }
  alignas(64) float lanes[kLanes] = {};
  for (Index i = 0; i < count; ++i) __builtin_memcpy(lanes + i, row.scale + (d + i) * row.scale_step, sizeof(float));
  return load(lanes);
}

#define GQA_CODEC(name) GQA_DETAIL_TEXT(name.inl)
#include "gqa/codec/list.inl"
#undef GQA_CODEC
#if defined(GQA_OWN_CODECS)
#include GQA_OWN_CODECS
#endif

// Whether this path can load a codec's rows.
template <class Codec>
inline constexpr bool kLoads = requires(RowOf<Codec> row) {
  load(Codec{}, row, Index{0});
  load_part(Codec{}, row, Index{0}, Index{0});
};
