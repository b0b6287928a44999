// SPDX-License-Identifier: Apache-2.0
// A unit with a leak of the kind that the disassembly test looks for: a baseline function template that is compiled for a wider
// instruction set, and names a path only in its arguments. The test must find it.
namespace gqa::detail::abi_planted::avx2 {
struct Vec {
  float lane[8];
};
}  // namespace gqa::detail::abi_planted::avx2

namespace gqa::detail {
template <class Vector>
__attribute__((target("avx2"), noinline)) void add(const Vector& a, Vector& sum) {
  for (int i = 0; i < 8; ++i) sum.lane[i] += a.lane[i];
}
template void add<abi_planted::avx2::Vec>(const abi_planted::avx2::Vec&, abi_planted::avx2::Vec&);
}  // namespace gqa::detail
