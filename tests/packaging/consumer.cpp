// SPDX-License-Identifier: Apache-2.0
// A program of somebody else's: one decode step, by whatever way the library came to it.
#include <cstdio>
#include <vector>

#include "gqa/gqa.hpp"

int main() {
  const std::vector<float> q(8 * 64, 0.5f);
  std::vector<float> out(8 * 64);
  gqa::ContiguousKvCache cache({.kv_heads = 2, .head_dim = 64, .capacity = 16});
  cache.append(std::vector<float>(2 * 64, 1.0f), std::vector<float>(2 * 64, 3.0f));
  const gqa::GroupedQueryAttention<8, 2, 64> attention;
  attention(gqa::ConstTensorView(q.data(), 1, 8, 64), cache.view(), gqa::TensorView(out.data(), 1, 8, 64));
  std::printf("gqa %d.%d.%d on the %s path: %g\n", GQA_VERSION_MAJOR, GQA_VERSION_MINOR, GQA_VERSION_PATCH,
              gqa::path_name(gqa::active_path().path), static_cast<double>(out.back()));
  const auto other = [](float value) { return value < 3.0f || value > 3.0f; };
  return other(out.front()) || other(out.back()) ? 1 : 0;
}
