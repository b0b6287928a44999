// SPDX-License-Identifier: Apache-2.0
// Grouped-query attention over keys and values that lie in memory: 32 query heads share 8 KV heads, in bf16.
#include <cstddef>
#include <cstdio>
#include <random>
#include <vector>

#include "gqa/gqa.hpp"
#include "gqa/reference.hpp"

namespace {

std::vector<gqa::bf16> random_values(int count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<gqa::bf16> values;
  for (int i = 0; i < count; ++i) values.emplace_back(normal(random));
  return values;
}

}  // namespace

int main() {
  // What the model made: keys and values of the 1000 tokens so far, and the queries of the last 4 of them. (token, head, dim)
  constexpr int query_heads = 32, kv_heads = 8, head_dim = 128, cached = 1000, queries = 4;
  const std::vector<gqa::bf16> keys = random_values(cached * kv_heads * head_dim, 1);
  const std::vector<gqa::bf16> values = random_values(cached * kv_heads * head_dim, 2);
  const std::vector<gqa::bf16> query = random_values(queries * query_heads * head_dim, 3);
  std::vector<float> result(std::size_t{queries} * query_heads * head_dim);

  // Views copy nothing.
  const auto kv = gqa::KvCacheView::contiguous(keys.data(), values.data(), {cached, kv_heads, head_dim});
  const gqa::ConstTensorView q(query.data(), queries, query_heads, head_dim);
  const gqa::TensorView out(result.data(), queries, query_heads, head_dim);

  // Causal unless said otherwise. Compiled without flags, this runs the best instruction set of the machine it starts on.
  const gqa::GroupedQueryAttention<query_heads, kv_heads, head_dim> attention;
  attention(q, kv, out);

  // Held against the definition in double precision.
  using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Eigen::Map<const Rows> rows(result.data(), Eigen::Index{queries} * query_heads, head_dim);
  const double error =
      (rows.cast<double>() - gqa::reference_attention(q, kv).out).cwiseAbs().maxCoeff<Eigen::PropagateNaN>();
  std::printf("path: %s, because %s\n", gqa::path_name(gqa::active_path().path), gqa::active_path().reason);
  std::printf("%d query heads over %d KV heads: %zu bytes of cache instead of %zu\n", query_heads, kv_heads,
              sizeof(gqa::bf16) * (keys.size() + values.size()),
              sizeof(gqa::bf16) * (keys.size() + values.size()) * query_heads / kv_heads);
  std::printf("largest difference from the definition in double precision: %.1e\n", error);
  return error < 2e-3 ? 0 : 1;
}
