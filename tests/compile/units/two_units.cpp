// SPDX-License-Identifier: Apache-2.0
// Two units of one program that both include the library: no symbol is defined twice, and both run.
#include <cstdio>

#include "digests.hpp"

void unit_plain(Digests& digests);
bool second_unit();

int main() {
  Digests digests;
  unit_plain(digests);
  const bool same = second_unit();
  std::printf("%s %s\n", digests.path_names[0], same ? "and every storage and executor agrees" : "but results differ");
  return same && digests.value[0][0] != 0 ? 0 : 1;
}
