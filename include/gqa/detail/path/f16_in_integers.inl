// SPDX-License-Identifier: Apache-2.0
// f16 as floats, four at a time, for paths without an instruction for it. Part of such a path, behind fma_in_double.inl.

// Four f16, in the upper halves of lanes. As a float, exponent and mantissa are 2⁻¹¹² times what they are, denormal or not; infinities and NaNs
// lack the upper bits of their exponents.
GQA_OP Floats floats_of_upper_halves(Ints halves) {
  const Ints sign = halves & static_cast<int>(0x80000000u);
  const Ints magnitude = (halves ^ sign) >> 3;  // no sign to be shifted in
  const Floats scaled = __builtin_bit_cast(Floats, magnitude) * (Floats{} + 0x1p112f);
  const Ints exponent = (magnitude > Ints{} + ((0x7c00 << 13) - 1)) & 0x7f800000;
  return __builtin_bit_cast(Floats, __builtin_bit_cast(Ints, scaled) | exponent | sign);
}
