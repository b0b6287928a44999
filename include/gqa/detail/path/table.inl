// SPDX-License-Identifier: Apache-2.0
// A path's kernels for some codecs, as bits, and for the extents that they are compiled for. Part of every path, after
// common_kernels(), what is the same for all, and codec_kernels<Codec, HeadDim, ValueDim>(), what is not. A codec that the path has no
// loads for is left out: Kernels::supports says so.
//
// A program of many units may compile the kernels once: one unit defines GQA_COMPILE_KERNELS_HERE, the others GQA_COMPILED_KERNELS. A unit
// that has both definitions, because a whole target has the second, is the one that compiles them. Nobody has to; without them every unit
// carries the kernels it asks for, and the linker keeps one copy for units of the same flags. The one unit may have other flags than the
// others, so every_kernel() has a name (GQA_KERNELS_NAME) without them. It has those of AnyCache, or of GQA_COMPILED_CACHES, a CacheOf.

#if defined(GQA_COMPILE_KERNELS_HERE) || !defined(GQA_COMPILED_KERNELS)
template <unsigned Types>
struct KernelTable : Kernels {
  CodecKernels codec[bits_of(Types)]{};
};
template <int Id, int HeadDim, int ValueDim, unsigned Types>
constexpr void add_codecs(KernelTable<Types>& table) {
  if constexpr (Id < bits_of(Types)) {
    if constexpr (((Types >> Id) & 1u) != 0) {
      using Codec = typename CodecWithId<Id>::type;
      if constexpr (kLoads<Codec>) {
        table.codec[Id] = codec_kernels<Codec, HeadDim, ValueDim>();
        table.compiled |= 1u << Id;
      }
    }
    add_codecs<Id + 1, HeadDim, ValueDim>(table);
  }
}
template <unsigned Types, int HeadDim, int ValueDim>
constexpr KernelTable<Types> make_kernels(const CodecKernels* codecs) {
  KernelTable<Types> table{common_kernels()};
  table.codecs = codecs;
  add_codecs<0, HeadDim, ValueDim>(table);
  return table;
}
template <unsigned Types, int HeadDim, int ValueDim>
inline constexpr KernelTable<Types> kTable =
    make_kernels<Types, HeadDim, ValueDim>(kTable<Types, HeadDim, ValueDim>.codec);
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
#if defined(GQA_COMPILED_CACHES)
const Kernels& every_kernel() noexcept { return kTable<GQA_COMPILED_CACHES::types, dynamic, dynamic>; }
#else
const Kernels& every_kernel() noexcept { return kTable<AnyCache::types, dynamic, dynamic>; }
#endif
#endif
