// SPDX-License-Identifier: Apache-2.0
// A register of kLanes floats, in the compiler's own vectors: what differs between instruction sets is how long it is. Included once per
// instruction set by what goes through whole rows, in a region and a namespace of its own.

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef std::uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef std::uint16_t HalfWords __attribute__((vector_size(2 * kLanes)));
using Lanes = std::make_integer_sequence<int, kLanes>;

template <class V>
GQA_OP V load(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <class V>
GQA_OP void store(void* to, const V& value) {
  std::memcpy(to, &value, sizeof value);
}

#if defined(__clang__)
template <int... Lane>
GQA_OP Floats shuffled(const Floats& x) {
  return __builtin_shufflevector(x, x, Lane...);
}
#else
template <int... Lane>
GQA_OP Floats shuffled(const Floats& x) {
  return __builtin_shuffle(x, Ints{Lane...});
}
#endif

// -x where a bit of Lane is set.
template <int Bit, int... Lane>
GQA_OP Floats negated_where(const Floats& x, std::integer_sequence<int, Lane...>) {
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(x) ^ Ints{((Lane & Bit) != 0 ? (-0x7fffffff - 1) : 0)...});
}
