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

// Rows that another program has stored may have anything in what their last blocks are filled with.
TEST_P(QuantisedWidths, SeeNothingOfPadding) {
  if (codec().type().block_elements() != 32 || codec().type().whole_blocks()) return;
  Random random(22);
  const Case c{2, 2, 20, 33, 3, 80};
  const Rows rows(c, random);
  ContiguousKvCache cache(config_of(c, codec().format, codec().format, KvLayout::head_major, c.length));
  cache.append(rows.k, rows.v);
  std::vector<float> q(static_cast<std::size_t>(c.n_q * 4 * 20));
  for (float& x : q) x = random.normal();
  const ConstTensorView queries(q.data(), c.n_q, 4, 20);
  const Result before = calls().attend(queries, cache.view(), Causal{});
  for (const bool keys : {true, false})
    for (Index t = 0; t < c.length; ++t)
      for (Index head = 0; head < c.kv_heads; ++head) {
        const Index dim = keys ? c.head_dim : c.value_dim;
        std::byte* const row = row_at(cache.view(), keys, t, head).row;
        for (Index d = dim; d < detail::round_up(dim, 32); ++d)
          row[d / 32 * 16 + d % 16] |= d % 32 < 16 ? std::byte{0x0f} : std::byte{0xf0};
      }
  EXPECT_TRUE(same_bits(before, calls().attend(queries, cache.view(), Causal{})));
}

INSTANTIATE_TEST_SUITE_P(Codecs, QuantisedWidths, QuantisedWidths::cases(), QuantisedWidths::name);

}  // namespace
}  // namespace gqa::test
