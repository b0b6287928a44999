// SPDX-License-Identifier: Apache-2.0
// Prints the digests of one unit. Programs that hold units of different optimisation levels must print the same.
#include <cinttypes>
#include <cstdio>

#include "digests.hpp"

void GQA_UNIT(Digests& digests);

int main() {
  Digests digests;
  GQA_UNIT(digests);
  for (int path = 0; path < kPaths; ++path) {
    std::printf("%s", digests.path_names[path]);
    for (const std::uint64_t value : digests.value[path]) std::printf(" %016" PRIx64, value);
    std::printf("\n");
  }
}
