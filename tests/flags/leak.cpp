// SPDX-License-Identifier: Apache-2.0
// A unit of a pair as pair.cpp is, with a leak of the kind that is looked for: an inline function without the tag, of instructions that the
// unit's flags choose. The test must find it.
#include <cstdint>

extern "C" std::uint64_t GQA_UNIT();

inline __attribute__((noinline)) double planted(const double* a, const double* b, int count) {
  double sum = 0.0;
  for (int i = 0; i < count; ++i) sum += static_cast<double>(static_cast<std::int64_t>(a[i] * b[i]) << (count & 31));
  return sum;
}

extern "C" std::uint64_t GQA_UNIT() {
  static double numbers[4] = {1.0, 2.0, 3.0, 4.0};
  return static_cast<std::uint64_t>(planted(numbers, numbers, 4));
}
