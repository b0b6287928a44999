// SPDX-License-Identifier: Apache-2.0
// A path's kernels for some element types, as bits. Part of every path, after common_kernels(), what is the same for every type, and
// add_codec<Codec>(), what is per type.
//
// A program of many units may compile the kernels once: one unit defines GQA_COMPILE_KERNELS_HERE, the others GQA_COMPILED_KERNELS,
// all with the same -m flags, and with exceptions or without. Nobody has to; without them every unit carries the kernels it asks for, and
// the linker keeps one copy.

#if defined(GQA_COMPILED_KERNELS)
const Kernels& every_kernel() noexcept;
template <unsigned Types>
inline const Kernels& kernels() noexcept {
  return every_kernel();
}
#else
template <unsigned Types>
constexpr Kernels make_kernels() {
  Kernels table = common_kernels();
  if constexpr (is_among(Types, F32::type)) add_codec<F32>(table);
  if constexpr (is_among(Types, Bf16::type)) add_codec<Bf16>(table);
  if constexpr (is_among(Types, F16::type)) add_codec<F16>(table);
  return table;
}
template <unsigned Types>
inline constexpr Kernels kTable = make_kernels<Types>();
template <unsigned Types>
inline const Kernels& kernels() noexcept {
  return kTable<Types>;
}
#if defined(GQA_COMPILE_KERNELS_HERE)
const Kernels& every_kernel() noexcept { return kTable<AnyCache::types>; }
#endif
#endif
