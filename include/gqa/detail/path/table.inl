// SPDX-License-Identifier: Apache-2.0
// A path's kernels for some codecs, as bits, and for the extents that they are compiled for. Part of every path, after
// common_kernels(), what is the same for all, and codec_kernels<Codec, HeadDim, ValueDim>(), what is not. A codec that the path has no
// loads for is left out: Kernels::supports says so.
//
// A program of many units may compile the kernels once: one unit defines GQA_COMPILE_KERNELS_HERE, the others GQA_COMPILED_KERNELS. A unit
// that has both definitions, because a whole target has the second, is the one that compiles them. Nobody has to; without them every unit
// carries the kernels it asks for, and the linker keeps one copy for units of the same flags. The one unit may have other flags than the
// others, so every_kernel() has a name (GQA_KERNELS_NAME) without them.

#if defined(GQA_COMPILE_KERNELS_HERE) || !defined(GQA_COMPILED_KERNELS)
template <unsigned Types, int HeadDim, int ValueDim>
struct CodecTable {
  CodecKernels codec[bits_of(Types)];
  unsigned compiled = 0;
};
template <int Id, unsigned Types, int HeadDim, int ValueDim>
constexpr void add_codecs(CodecTable<Types, HeadDim, ValueDim>& table) {
  if constexpr (Id < bits_of(Types)) {
    if constexpr (((Types >> Id) & 1u) != 0) {
      using Codec = typename CodecWithId<Id>::type;
      if constexpr (kLoads<Codec>) {
        table.codec[Id] = codec_kernels<Codec, HeadDim, ValueDim>();
        table.compiled |= 1u << Id;
      }
    }
    add_codecs<Id + 1>(table);
  }
}
template <unsigned Types, int HeadDim, int ValueDim>
constexpr CodecTable<Types, HeadDim, ValueDim> make_codecs() {
  CodecTable<Types, HeadDim, ValueDim> table{};
  add_codecs<0>(table);
  return table;
}
template <unsigned Types, int HeadDim, int ValueDim>
inline constexpr CodecTable<Types, HeadDim, ValueDim> kCodecs = make_codecs<Types, HeadDim, ValueDim>();

template <unsigned Types, int HeadDim, int ValueDim>
constexpr Kernels make_kernels() {
  Kernels table = common_kernels();
  table.codecs = kCodecs<Types, HeadDim, ValueDim>.codec;
  table.compiled = kCodecs<Types, HeadDim, ValueDim>.compiled;
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
