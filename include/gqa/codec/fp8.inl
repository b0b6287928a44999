// SPDX-License-Identifier: Apache-2.0
// Loads of Fp8E4M3 and Fp8E5M2, once per path.

// As float_of_fp8: bits moved to where an f32 has them, denormal numbers too, and the difference of the exponents made up for by a product
// that is exact.
template <int Mantissa, class Bytes>
GQA_OP Vec widen_fp8(const Bytes& bytes) {
  const Vec bits = byte_bits(bytes);
  const Vec scaled = shift_left<23 - Mantissa>(bit_and(bits, set1(float_of_bits(0x7f))));
  const Vec magnitude =
      mul(scaled, set1(float_of_bits(static_cast<std::uint32_t>(254 - Fp8Format<Mantissa>::bias) << 23)));
  const Vec infinity =
      bit_and(less(set1(Fp8Format<Mantissa>::largest_value), magnitude), set1(float_of_bits(kInfinityBits)));
  return bit_or(bit_or(magnitude, infinity), shift_left<24>(bit_and(bits, set1(float_of_bits(0x80)))));
}

GQA_OP Vec load(Fp8E4M3, const ScaledRow& row, Index d) {
  return mul(widen_fp8<3>(load_bytes(row.data + d)), scales_of(row, d, kLanes));
}
GQA_OP Vec load_part(Fp8E4M3, const ScaledRow& row, Index d, Index count) {
  return first_of(mul(widen_fp8<3>(load_bytes_part(row.data + d, count)), scales_of(row, d, count)), count);
}
GQA_OP Vec load(Fp8E5M2, const ScaledRow& row, Index d) {
  return mul(widen_fp8<2>(load_bytes(row.data + d)), scales_of(row, d, kLanes));
}
GQA_OP Vec load_part(Fp8E5M2, const ScaledRow& row, Index d, Index count) {
  return first_of(mul(widen_fp8<2>(load_bytes_part(row.data + d, count)), scales_of(row, d, count)), count);
}
