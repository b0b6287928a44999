// SPDX-License-Identifier: Apache-2.0
// A path's kernels for some element types, as bits, and for the extents that they are compiled for. Part of every path, after
// common_kernels(), what is the same for all, and add_codec<Codec, HeadDim, ValueDim>(), what is not.
//
// A program of many units may compile the kernels once: one unit defines GQA_COMPILE_KERNELS_HERE, the others GQA_COMPILED_KERNELS. A unit
// that has both definitions, because a whole target has the second, is the one that compiles them. Nobody has to; without them every unit
// carries the kernels it asks for, and the linker keeps one copy for units of the same flags. The one unit may have other flags than the
// others, so every_kernel() has a name (GQA_KERNELS_NAME) without them.

#if defined(GQA_COMPILE_KERNELS_HERE) || !defined(GQA_COMPILED_KERNELS)
template <unsigned Types, int HeadDim, int ValueDim>
constexpr Kernels make_kernels() {
  Kernels table = common_kernels();
  if constexpr (is_among(Types, F32::type)) add_codec<F32, HeadDim, ValueDim>(table);
  if constexpr (is_among(Types, Bf16::type)) add_codec<Bf16, HeadDim, ValueDim>(table);
  if constexpr (is_among(Types, F16::type)) add_codec<F16, HeadDim, ValueDim>(table);
  return table;
}
template <unsigned Types, int HeadDim, int ValueDim>
inline constexpr Kernels kTable = make_kernels<Types, HeadDim, ValueDim>();
#endif
#if defined(GQA_COMPILE_KERNELS_HERE) || defined(GQA_COMPILED_KERNELS)
const Kernels& every_kernel() noexcept __asm__(GQA_KERNELS_NAME);
template <unsigned Types, int HeadDim, int ValueDim>
inline const Kernels& kernels() noexcept {
  return every_kernel();
}
#else
template <unsigned Types, int HeadDim, int ValueDim>
inline const Kernels& kernels() noexcept {
  return kTable<Types, HeadDim, ValueDim>;
}
#endif
#if defined(GQA_COMPILE_KERNELS_HERE)
const Kernels& every_kernel() noexcept { return kTable<AnyCache::types, dynamic, dynamic>; }
#endif
