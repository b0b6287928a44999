// SPDX-License-Identifier: Apache-2.0
// One program of units with different flags: it links, and each unit computes the same bits on every path.
#include <cstdio>

#include "digests.hpp"

void unit_plain(Digests& digests);
void unit_o0(Digests& digests);
void unit_o3(Digests& digests);
void unit_native(Digests& digests);
void unit_avx2(Digests& digests);
void unit_no_exceptions(Digests& digests);

int main() {
  struct Named {
    const char* name;
    Unit unit;
    bool runs;
  };
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  const bool avx2 = true;  // compiled without the flag there
#endif
  const Named units[] = {{"-O0", unit_o0, true},
                         {"-O3", unit_o3, true},
                         {"-O3 -march=native", unit_native, true},
                         {"-mavx2 -mfma", unit_avx2, avx2},
                         {"-fno-exceptions", unit_no_exceptions, true}};
  Digests plain;
  unit_plain(plain);
  int compared = 0;
  int different = 0;
  for (const Named& other : units) {
    if (!other.runs) {
      std::printf("skipped on this machine: the unit compiled with %s\n", other.name);
      continue;
    }
    Digests digests;
    other.unit(digests);
    for (int path = 0; path < kPaths; ++path)
      for (int i = 0; i < kCases; ++i) {
        if (plain.value[path][i] != 0) ++compared;
        if (digests.value[path][i] == plain.value[path][i]) continue;
        ++different;
        std::printf("%s, path %s, case %d: not the bits of the plain unit\n", other.name, plain.path_names[path], i);
      }
  }
  std::printf("%d results compared, %d differ\n", compared, different);
  return compared > 0 && different == 0 ? 0 : 1;
}
