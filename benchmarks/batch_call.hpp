// SPDX-License-Identifier: Apache-2.0
/// @file
/// Attention calls for many sequences at once.
#pragma once

#include <random>
#include <span>
#include <string>
#include <vector>

#include "attention_call.hpp"

namespace gqa::bench {

struct Member {
  Index query_tokens;
  Index tokens;
};

/// A decode step of each of 64 sequences of 100 to 4000 tokens.
inline std::vector<Member> ragged_members() {
  std::vector<Member> ragged;
  std::mt19937 bits(11);
  for (int i = 0; i < 64; ++i) ragged.push_back({1, 100 + static_cast<Index>(bits() % 3901u)});
  return ragged;
}

/// A step of a batch, by a functor of a type. Its caches together are far larger than the processor's.
template <class Functor>
class BatchCallOf {
 public:
  BatchCallOf(const CacheShape& cache, const std::vector<Member>& members, int threads,
              NormalMemory& from = normal_memory()) {
    const ElementType type = cache.query_type();
    std::size_t rows = 0, elements = 0;
    for (const Member& member : members) {
      tables_.push_back(random_pages(member.tokens));
      rows += 2 * stored_rows(of(cache, member));
      elements += static_cast<std::size_t>(member.query_tokens * cache.query_heads * cache.head_dim);
    }
    StoredRows memory = from.rows(cache.type, cache.head_dim, rows);
    query_ = normal_elements(type, elements, 2);
    out_.resize(elements);
    std::size_t at = 0;
    for (std::size_t i = 0; i < members.size(); ++i) {
      const CacheShape shape = of(cache, members[i]);
      ConstTensorView q;
      q.data = query_.data() + at * static_cast<std::size_t>(element_bytes(type));
      q.type = type;
      q.tokens = members[i].query_tokens;
      q.heads = cache.query_heads;
      q.dim = cache.head_dim;
      q.strides = {q.heads * q.dim, q.dim, 1};
      sequences_.push_back(
          {q, view_of(shape, memory, tables_[i]), TensorView(out_.data() + at, q.tokens, q.heads, q.dim)});
      memory = rows_behind(memory, cache.type, cache.head_dim, 2 * stored_rows(shape));
      at += static_cast<std::size_t>(q.tokens * q.heads * q.dim);
      work_.bytes += shape.bytes();
      work_.flop += attention_flop(causal_pairs(q.tokens, shape.tokens), shape);
    }
    work_.peak = peak_of_call(best_path(), type, cache.type);
    options_.executor = team_of(threads);
  }
  void operator()() { attention_(std::span<const Sequence>(sequences_), options_); }
  const Work& work() const { return work_; }

 private:
  static CacheShape of(CacheShape cache, const Member& member) {
    cache.tokens = member.tokens;
    return cache;
  }
  std::vector<std::vector<std::int32_t>> tables_;
  std::vector<std::byte> query_;
  std::vector<float> out_;
  std::vector<Sequence> sequences_;
  Work work_;
  Options options_;
  Functor attention_;
};

using BatchCall = BatchCallOf<DynamicAttention>;

}  // namespace gqa::bench
