// SPDX-License-Identifier: Apache-2.0
// Rows converted and turned, a register of kLanes floats at a time; once per instruction set, in a region and a namespace of its own.
// GQA_DETAIL_ROWS_F16C: whether there is F16C.

#include "gqa/detail/row_vectors.inl"

// --- conversions: RowEncoder -----------------------------------------------------------------------------------------

// `convert(i)` for each i of elements i … i + kLanes − 1, and what is left over element by element.
template <class Codec, class From, class Convert>
GQA_OP void convert_row(const std::byte* from, Index step, Index dim, std::byte* row, const Convert& convert) {
  Index i = 0;
  if (step == 1)
    for (; i + kLanes <= dim; i += kLanes) convert(i);
  if (i < dim)
    Codec::template encode<From>(from + i * step * static_cast<Index>(sizeof(From)), step, dim - i,
                                 row + i * Codec::bytes, nullptr);
}

inline void f32_to_bf16(const std::byte* from, Index step, Index dim, std::byte* row, std::byte*) {
  convert_row<Bf16, float>(
      from, step, dim, row, [&](Index i) __attribute__((always_inline)) {
        const Words bits = load<Words>(from + i * 4);
        const Words upper = bits >> 16;
        const Words rounded = (bits + 0x7fffu + (upper & 1u)) >> 16;
        const Words kept = reinterpret_cast<Ints>(bits & 0x7fffffffu) > 0x7f800000 ? upper | 0x40u : rounded;
        store(row + i * 2, __builtin_convertvector(kept, HalfWords));
      });
}
inline void bf16_to_f32(const std::byte* from, Index step, Index dim, std::byte* row, std::byte*) {
  convert_row<F32, bf16>(
      from, step, dim, row, [&](Index i) __attribute__((always_inline)) {
        store(row + i * 4, __builtin_convertvector(load<HalfWords>(from + i * 2), Words) << 16);
      });
}
#if GQA_DETAIL_ROWS_F16C
// The instructions round to nearest, ties to even, whatever the environment says; NaN becomes quiet and keeps its upper bits.
inline void f32_to_f16(const std::byte* from, Index step, Index dim, std::byte* row, std::byte*) {
  convert_row<F16, float>(
      from, step, dim, row, [&](Index i) __attribute__((always_inline)) {
        for (Index j = i; j < i + kLanes; j += 8)
          store(row + j * 2, _mm256_cvtps_ph(load<__m256>(from + j * 4), _MM_FROUND_TO_NEAREST_INT));
      });
}
inline void f16_to_f32(const std::byte* from, Index step, Index dim, std::byte* row, std::byte*) {
  convert_row<F32, f16>(
      from, step, dim, row, [&](Index i) __attribute__((always_inline)) {
        for (Index j = i; j < i + kLanes; j += 8) store(row + j * 4, _mm256_cvtph_ps(load<__m128i>(from + j * 2)));
      });
}
#endif

// --- pairs turned ----------------------------------------------------------------------------------------------------

// A product that is rounded before it is added to something: with -ffp-contract=fast Clang fuses the two in regions as well.
GQA_OP Floats unfused(Floats product) {
#if defined(__clang__) && GQA_DETAIL_X86
  asm("" : "+v"(product));
#elif defined(__clang__) && defined(__aarch64__)
  asm("" : "+w"(product));
#endif
  return product;
}

template <int... Lane>
GQA_OP Floats swapped(const Floats& x, std::integer_sequence<int, Lane...>) {
  return shuffled<(Lane ^ 1)...>(x);
}
// Each of the lower or upper half of the elements twice.
template <int... Lane>
GQA_OP Floats lower_twice(const Floats& x, std::integer_sequence<int, Lane...>) {
  return shuffled<Lane / 2 ...>(x);
}
template <int... Lane>
GQA_OP Floats upper_twice(const Floats& x, std::integer_sequence<int, Lane...>) {
  return shuffled<(Lane / 2 + kLanes / 2)...>(x);
}
// -x where Lane is even.
template <int... Lane>
GQA_OP Floats negated_firsts(const Floats& x, std::integer_sequence<int, Lane...>) {
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(x) ^ Ints{(Lane % 2 == 0 ? (-0x7fffffff - 1) : 0)...});
}
// (a, b), (a, b), … of which each has its cosine and its sine twice.
GQA_OP Floats turned(const Floats& pairs, const Floats& cosine, const Floats& sine) {
  return unfused(pairs * cosine) + negated_firsts(unfused(swapped(pairs, Lanes{}) * sine), Lanes{});
}

// See turn_pairs, whose bits these have.
inline void turn_row(float* row, const float* turns, Index dims, bool split, Index first, Index last) {
  const float* const cosines = turns;
  const float* const sines = turns + dims / 2;
  Index i = first;
  if (split) {
    float* const behind = row + dims / 2;
    for (; i + kLanes <= last; i += kLanes) {
      const Floats a = load<Floats>(row + i);
      const Floats b = load<Floats>(behind + i);
      const Floats cosine = load<Floats>(cosines + i);
      const Floats sine = load<Floats>(sines + i);
      store(row + i, unfused(a * cosine) - unfused(b * sine));
      store(behind + i, unfused(b * cosine) + unfused(a * sine));
    }
    return turn_pairs(row + i, behind + i, 1, cosines + i, sines + i, last - i);
  }
  for (; i + kLanes <= last; i += kLanes) {
    float* const pairs = row + 2 * i;
    const Floats cosine = load<Floats>(cosines + i);
    const Floats sine = load<Floats>(sines + i);
    store(pairs, turned(load<Floats>(pairs), lower_twice(cosine, Lanes{}), lower_twice(sine, Lanes{})));
    store(pairs + kLanes,
          turned(load<Floats>(pairs + kLanes), upper_twice(cosine, Lanes{}), upper_twice(sine, Lanes{})));
  }
  turn_pairs(row + 2 * i, row + 2 * i + 1, 2, cosines + i, sines + i, last - i);
}

#if GQA_DETAIL_ROWS_F16C
inline constexpr RowOps kOps{f32_to_bf16, f32_to_f16, bf16_to_f32, f16_to_f32, turn_row, kSet};
#else
inline constexpr RowOps kOps{f32_to_bf16, nullptr, bf16_to_f32, nullptr, turn_row, kSet};
#endif
