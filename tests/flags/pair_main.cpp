// SPDX-License-Identifier: Apache-2.0
// Prints what the plain unit of a pair computes. The unit with newer flags is in the program, and is called only if there is an argument.
#include <cinttypes>
#include <cstdint>
#include <cstdio>

extern "C" std::uint64_t unit_newer();
extern "C" std::uint64_t unit_plain();

int main(int argc, char**) {
  std::printf("plain %016" PRIx64 "\n", unit_plain());
  if (argc > 1) std::printf("newer %016" PRIx64 "\n", unit_newer());
}
