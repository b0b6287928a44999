// SPDX-License-Identifier: Apache-2.0
// What model_neon.py and count_neon.py compile for AArch64. The model reads the assembly of `call`; the program, run by an emulator, calls
// attention over a cache of so many tokens so many times: one KV head, 4 query heads, D = 128.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "gqa/gqa.hpp"

#ifndef GQA_COUNTED_TYPE
#define GQA_COUNTED_TYPE float
#endif

namespace {

constexpr gqa::Index kGroup = 4;
constexpr gqa::Index kDim = 128;

}  // namespace

void call(const gqa::Sequence& sequence);
void call(const gqa::Sequence& sequence) {
  const gqa::GroupedQueryAttention<kGroup, 1, kDim> attention;
  attention(sequence, gqa::Causal{});
}

int main(int argc, char** argv) {
  using T = GQA_COUNTED_TYPE;
  if (argc != 3) return 1;
  const gqa::Index tokens = std::atoi(argv[1]);
  const int calls = std::atoi(argv[2]);
  const std::vector<float> q(kGroup * kDim, 0.01f);
  std::vector<float> out(q.size());
  const std::vector<T> rows(static_cast<std::size_t>(tokens * kDim));
  const gqa::KvCacheView kv = gqa::KvCacheView::contiguous(
      rows.data(), rows.data(), {.length = tokens, .kv_heads = 1, .head_dim = kDim, .value_dim = kDim});
  const gqa::Sequence sequence{.q = gqa::ConstTensorView(q.data(), 1, kGroup, kDim),
                               .kv = kv,
                               .out = gqa::TensorView(out.data(), 1, kGroup, kDim)};
  for (int i = 0; i < calls; ++i) call(sequence);
  std::printf("%g\n", static_cast<double>(out[0]));
  return 0;
}
