// SPDX-License-Identifier: Apache-2.0
// What a path's file has before its kernels: the logical vector `Vec`, its operations, and constants. Part of kernel.inl; a path that lacks
// an operation is told its name here, not in the middle of a kernel.
//
// Operations are lane by lane and rounded to nearest, unless they say otherwise. Every f32 path must compute the same bits.

template <class>
struct OperandOf {
  using Type = Vec;
};
#define GQA_DETAIL_NEEDS(Name, operation, use)                                                                        \
  template <class T>                                                                                                  \
  concept Name =                                                                                                      \
      requires(typename OperandOf<T>::Type a, typename OperandOf<T>::Type b, typename OperandOf<T>::Type c, float* p, \
               float x, std::uint64_t bits, typename OperandOf<T>::Type(&rows)[kLanes], const std::byte* bytes) {     \
    use;                                                                                                              \
  };                                                                                                                  \
  static_assert(Name<void>, "the path has no " operation)

GQA_DETAIL_NEEDS(HasSet, "Vec set1(float x): every lane x", add(a, set1(x)));
GQA_DETAIL_NEEDS(HasLoad, "Vec load(const float* p): 16 floats, unaligned", add(load(p), a));
GQA_DETAIL_NEEDS(HasStore, "void store(float* p, Vec a): 16 floats, unaligned", store(p, a));
GQA_DETAIL_NEEDS(HasAdd, "Vec add(Vec a, Vec b)", add(a, b));
GQA_DETAIL_NEEDS(HasSub, "Vec sub(Vec a, Vec b)", sub(a, b));
GQA_DETAIL_NEEDS(HasMul, "Vec mul(Vec a, Vec b)", mul(a, b));
GQA_DETAIL_NEEDS(HasDiv, "Vec div(Vec a, Vec b)", div(a, b));
GQA_DETAIL_NEEDS(HasFma, "Vec fma(Vec a, Vec b, Vec c): a * b + c, rounded once", fma(a, b, c));
GQA_DETAIL_NEEDS(HasUnfused, "Vec unfused(Vec product): not to be fused with a sum that follows", unfused(a));
GQA_DETAIL_NEEDS(HasLarger, "Vec larger(Vec a, Vec b): a > b ? a : b", larger(a, b));
GQA_DETAIL_NEEDS(HasLess, "Vec less(Vec a, Vec b): lanes of ones where a < b, else of zeros", less(a, b));
GQA_DETAIL_NEEDS(HasLessEqual, "Vec less_equal(Vec a, Vec b): likewise, a <= b", less_equal(a, b));
GQA_DETAIL_NEEDS(HasAnd, "Vec bit_and(Vec a, Vec b)", bit_and(a, b));
GQA_DETAIL_NEEDS(HasOr, "Vec bit_or(Vec a, Vec b)", bit_or(a, b));
GQA_DETAIL_NEEDS(HasXor, "Vec bit_xor(Vec a, Vec b)", bit_xor(a, b));
GQA_DETAIL_NEEDS(HasShiftLeft, "Vec shift_left<N>(Vec a): of the lanes' bits", shift_left<23>(a));
GQA_DETAIL_NEEDS(HasShiftRight, "Vec shift_right<N>(Vec a): of the lanes' bits", shift_right<23>(a));
GQA_DETAIL_NEEDS(HasZeroBelow, "Vec zero_below(Vec x, Vec floor, Vec value): x < floor ? 0 : value",
                 zero_below(a, b, c));
GQA_DETAIL_NEEDS(HasSelectNegative,
                 "Vec select_negative(Vec bits, Vec a, Vec b): a where the highest bit is set, else b",
                 select_negative(a, b, c));
GQA_DETAIL_NEEDS(HasSelect, "Vec select(std::uint64_t bits, Vec a, Vec b): a where the lane's bit is set, else b",
                 add(select(bits, a, b), c));
GQA_DETAIL_NEEDS(HasSignBits, "std::uint32_t sign_bits(Vec a): the lanes' highest bits", sign_bits(a));
GQA_DETAIL_NEEDS(HasReduceMax, "float reduce_max(Vec a)", reduce_max(a));
GQA_DETAIL_NEEDS(HasReduceAdd, "float reduce_add(Vec a): lanes i and i + 8, then i + 4, i + 2, i + 1", reduce_add(a));
GQA_DETAIL_NEEDS(HasTranspose, "void transpose(Vec (&rows)[16])", transpose(rows));
GQA_DETAIL_NEEDS(HasAnyNonfinite, "bool any_nonfinite(Vec a)", any_nonfinite(a));
GQA_DETAIL_NEEDS(HasWidenBytes, "Vec widen_i8(load_bytes(const void* p)): 16 signed bytes as floats",
                 add(widen_i8(load_bytes(bytes)), a));
GQA_DETAIL_NEEDS(HasBytesPart, "load_bytes_part(const std::byte* p, Index count): the first of them, then zeros",
                 add(widen_i8(load_bytes_part(bytes, Index{1})), a));
GQA_DETAIL_NEEDS(HasByteBits, "Vec byte_bits(load_bytes(p)): bytes as the lanes' lowest bits",
                 add(byte_bits(load_bytes(bytes)), a));
GQA_DETAIL_NEEDS(HasLookUp, "look_up(table, nibbles<Upper>(index)): of 16 bytes, by halves of bytes",
                 add(widen_i8(look_up(load_bytes(bytes), nibbles<true>(load_bytes(bytes)))), a));
GQA_DETAIL_NEEDS(HasSetF16, "Vec set1_f16(const std::byte* p): every lane the f16 at p", add(set1_f16(bytes), a));
#undef GQA_DETAIL_NEEDS

// Besides these, by codec: loads of 16 elements and of fewer, stores, and what a strip adds up at a time (StripDot). And how large the pieces
// of work are, by the registers that there are:
static_assert(kQkRows >= 1 && kQkSums >= 1, "a score tile has rows and accumulators");
static_assert(kStripParts >= 1 && kLanes % kStripParts == 0, "strips add up whole parts of a vector");
static_assert(kRowTokens >= 0 && kBlock % (kRowTokens > 0 ? kRowTokens : 1) == 0,
              "panels of rows take whole numbers of tokens of a block");
static_assert(kPvSums >= 1 && kPvRows >= 1, "an output tile has rows and accumulators");
