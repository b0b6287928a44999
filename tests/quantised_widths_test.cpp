// SPDX-License-Identifier: Apache-2.0
// As quantised_cache_test.cpp, for widths that have no kernels of their own: whole blocks, and where a codec takes them, any.
#undef GQA_COMPILED_KERNELS  // which have no kernels for codecs
#include "support/quantised.hpp"

namespace gqa::test {
namespace {

class QuantisedWidths : public PerCodecAndPath {
 protected:
  Coded<Widths<96, 32>, Widths<32, 64>, Widths<20, 33>, Widths<80, 72>> calls() const { return {path()}; }
};

TEST_P(QuantisedWidths, AreThoseOfTheF32Cache) {
  Random random(21);
  const Case cases[] = {{4, 2, 96, 32, 1, 131}, {2, 3, 32, 64, 3, 97}, {3, 1, 96, 32, 40, 90}, {7, 1, 20, 33, 1, 97},
                        {2, 2, 80, 72, 3, 100}, {2, 2, 20, 33, 3, 80}, {4, 1, 20, 33, 20, 80}};
  for (const Case& c : cases) {
    if (codec().type().whole_blocks() && (c.head_dim % 32 != 0 || c.value_dim % 32 != 0)) continue;
    calls().compare(c, codec().format, random);
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Codecs, QuantisedWidths, QuantisedWidths::cases(), QuantisedWidths::name);

}  // namespace
}  // namespace gqa::test
