// SPDX-License-Identifier: Apache-2.0
// Speculative decoding with a tree of draft tokens: all of them verified in one call, and the accepted path kept in the cache without computing
// anything again. Each node's output is that of decoding its path token by token, to the roundings of sums in another order.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <span>
#include <vector>

#include "gqa/gqa.hpp"
#include "gqa/rope.hpp"

namespace {

using gqa::Index;

constexpr Index kQueryHeads = 8;
constexpr Index kKvHeads = 2;
constexpr Index kDim = 64;
constexpr Index kPrefix = 200;  // tokens that are certain
constexpr Index kNodes = 16;

// What a model's layer makes of a token: here random, but fixed by the token.
struct Projections {
  std::vector<float> q, k, v;
};
Projections project(unsigned token) {
  std::mt19937 engine(token);
  std::normal_distribution<float> normal;
  Projections made;
  for (auto* part : {&made.q, &made.k, &made.v}) {
    part->resize(static_cast<std::size_t>((part == &made.q ? kQueryHeads : kKvHeads) * kDim));
    for (float& x : *part) x = normal(engine);
  }
  return made;
}

const gqa::Rope& rope() {
  static const gqa::Rope made({.dims = kDim}, 4096);
  return made;
}

// Tokens at positions of their own: keys are turned on their way into the cache, and queries into `queries`.
void append(gqa::ContiguousKvCache& cache, std::span<const unsigned> tokens, std::span<const Index> positions,
            std::span<float> queries) {
  std::vector<float> k, v, q;
  for (const unsigned token : tokens) {
    const Projections made = project(token);
    k.insert(k.end(), made.k.begin(), made.k.end());
    v.insert(v.end(), made.v.begin(), made.v.end());
    q.insert(q.end(), made.q.begin(), made.q.end());
  }
  cache.append(k, v, rope().keys(positions));
  if (queries.empty()) return;
  rope()(gqa::TensorView(q.data(), static_cast<Index>(tokens.size()), kQueryHeads, kDim), positions);
  std::copy(q.begin(), q.end(), queries.begin());
}
void append(gqa::ContiguousKvCache& cache, unsigned token, std::span<float> query) {
  const Index position = cache.length();
  append(cache, {&token, 1}, {&position, 1}, query);
}

gqa::ContiguousKvCache prefix_cache() {
  gqa::ContiguousKvCache cache(
      {.kv_heads = kKvHeads, .head_dim = kDim, .k_type = gqa::ElementType::bf16, .capacity = kPrefix + kNodes + 1});
  for (Index i = 0; i < kPrefix; ++i) append(cache, static_cast<unsigned>(i), {});
  return cache;
}

}  // namespace

int main() {
  const gqa::GroupedQueryAttention<kQueryHeads, kKvHeads, kDim> attention;
  constexpr Index row = kQueryHeads * kDim;

  // A draft model proposed two first tokens, and more behind them; −1 stands for the prefix.
  const std::vector<std::int32_t> parents = {-1, -1, 0, 0, 1, 2, 2, 3, 5, 5, 8, 4, 11, 10, 13, 13};
  std::vector<Index> depth(kNodes);
  for (std::size_t i = 0; i < kNodes; ++i)
    depth[i] = parents[i] < 0 ? 0 : depth[static_cast<std::size_t>(parents[i])] + 1;
  const auto token = [](Index node) { return static_cast<unsigned>(1000 + node); };
  std::vector<unsigned> tokens;
  std::vector<Index> positions;
  for (Index node = 0; node < kNodes; ++node) {
    tokens.push_back(token(node));
    positions.push_back(kPrefix + depth[static_cast<std::size_t>(node)]);
  }
  std::vector<std::uint64_t> ancestors(static_cast<std::size_t>(kNodes * gqa::DraftTree::words_a_node(kNodes)));
  gqa::DraftTree::fill_ancestors(parents, ancestors);

  // Verify: every node's token goes into the cache at its depth's position, and one call answers for all.
  gqa::ContiguousKvCache cache = prefix_cache();
  std::vector<float> queries(static_cast<std::size_t>(kNodes * row));
  std::vector<float> outputs(queries.size());
  append(cache, tokens, positions, queries);
  attention(gqa::ConstTensorView(queries.data(), kNodes, kQueryHeads, kDim), cache.view(),
            gqa::TensorView(outputs.data(), kNodes, kQueryHeads, kDim), gqa::DraftTree{kPrefix, parents, ancestors});

  // The target accepts a path: here the longest.
  std::vector<Index> path;
  Index deepest = 0;
  for (Index node = 0; node < kNodes; ++node)
    if (depth[static_cast<std::size_t>(node)] > depth[static_cast<std::size_t>(deepest)]) deepest = node;
  for (Index node = deepest; node >= 0; node = parents[static_cast<std::size_t>(node)]) path.insert(path.begin(), node);

  // Token by token along that path.
  gqa::ContiguousKvCache one_by_one = prefix_cache();
  std::vector<float> query(static_cast<std::size_t>(row));
  std::vector<float> expected(query.size());
  bool right = true;
  for (const Index node : path) {
    append(one_by_one, token(node), query);
    attention(gqa::ConstTensorView(query.data(), 1, kQueryHeads, kDim), one_by_one.view(),
              gqa::TensorView(expected.data(), 1, kQueryHeads, kDim));
    double error = 0.0;
    for (std::size_t i = 0; i < expected.size(); ++i)
      error = std::max(error,
                       std::abs(static_cast<double>(expected[i] - outputs[static_cast<std::size_t>(node * row) + i])));
    std::printf("node %2td at position %td: differs from decoding its path by at most %.1e\n", node,
                kPrefix + depth[static_cast<std::size_t>(node)], error);
    right = right && error < 1e-5;
  }

  // Commit: the path's rows move together; their keys have the positions that they were turned by already. The next step reads what
  // token-by-token decoding would have left.
  cache.keep(kPrefix, path);
  std::vector<float> next(query.size());
  append(cache, 5000, query);
  append(one_by_one, 5000, {});
  const gqa::ConstTensorView q(query.data(), 1, kQueryHeads, kDim);
  attention(q, cache.view(), gqa::TensorView(next.data(), 1, kQueryHeads, kDim));
  attention(q, one_by_one.view(), gqa::TensorView(expected.data(), 1, kQueryHeads, kDim));
  const bool same = next == expected;
  std::printf("accepted %zu of %td drafts; the next token's bits are %s\n", path.size(), kNodes,
              same ? "those of decoding one by one" : "WRONG");
  return right && same ? 0 : 1;
}
