// SPDX-License-Identifier: Apache-2.0
// For libFuzzer: bytes become a whole public call, with hostile fields or without (../support/random_hostile.hpp), and the call computes or is
// refused. The sanitizers see the rest.
#include <cstdio>
#include <cstdlib>

#include "support/random_hostile.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  gqa::test::ByteDraws draws(std::span(data, size));
  gqa::test::HostileDrawn call(draws);
  const std::string complaint = call.complaint();
  if (complaint.empty()) return 0;
  const std::string variant = gqa::test::combination_name(call.drawn().combination);
  std::fprintf(stderr, "%s\nvariant: %s\n%s", complaint.c_str(), variant.c_str(),
               gqa::test::to_text(draws.made()).c_str());
  std::abort();
}
