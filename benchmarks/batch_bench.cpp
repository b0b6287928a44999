// SPDX-License-Identifier: Apache-2.0
/// @file
/// Many sequences in one call.
///
///   batch_ragged/<heads>/<type>/<sequences>/<path>/t<threads>    a decode step of each; 100 to 4000 tokens, contiguous caches
///   batch_paged                                                  the same over pages of 64 tokens
///   batch_uniform                                                a decode step of each; 2048 tokens
///   batch_mixed                                                  the same with a 512-token chunk of one more sequence's prompt

#include "attention_call.hpp"

namespace gqa::bench {
namespace {

struct Member {
  Index query_tokens;
  Index tokens;
};

/// A step of a batch. Its caches together are far larger than the processor's.
class BatchCall {
 public:
  BatchCall(const CacheShape& cache, const std::vector<Member>& members, int threads) {
    std::size_t bytes = 0, elements = 0;
    for (const Member& member : members) {
      tables_.push_back(random_pages(member.tokens));
      bytes += 2 * stored_bytes(of(cache, member));
      elements += static_cast<std::size_t>(member.query_tokens * cache.query_heads * cache.head_dim);
    }
    const std::byte* memory = normal_memory(cache.type, bytes);
    query_ = normal_elements(cache.type, elements, 2);
    out_.resize(elements);
    std::size_t at = 0;
    for (std::size_t i = 0; i < members.size(); ++i) {
      const CacheShape shape = of(cache, members[i]);
      ConstTensorView q;
      q.data = query_.data() + at * static_cast<std::size_t>(element_bytes(cache.type));
      q.type = cache.type;
      q.tokens = members[i].query_tokens;
      q.heads = cache.query_heads;
      q.dim = cache.head_dim;
      q.strides = {q.heads * q.dim, q.dim, 1};
      sequences_.push_back(
          {q, view_of(shape, memory, tables_[i]), TensorView(out_.data() + at, q.tokens, q.heads, q.dim)});
      memory += 2 * stored_bytes(shape);
      at += static_cast<std::size_t>(q.tokens * q.heads * q.dim);
      work_.bytes += shape.bytes();
      work_.flop += attention_flop(causal_pairs(q.tokens, shape.tokens), shape);
    }
    work_.peak = peak_of_call(best_path(), cache.type, cache.type);
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
  DynamicAttention attention_;
};

void add_batch(const std::string& operation, const CacheShape& cache, const std::vector<Member>& members, int threads,
               double target_percent = 0) {
  const std::string name = operation + "/" + cache.heads_name() + "/" + element_name(cache.type) + "/" +
                           std::to_string(members.size()) + "/" + path_name(best_path()) + "/t" +
                           std::to_string(threads);
  add(name, [=](benchmark::State& state) {
    BatchCall call(cache, members, threads);
    Work work = call.work();
    work.target_percent = target_percent;
    measure_call(state, threads, work, [&] { call(); });
  });
}

}  // namespace

void register_benchmarks() {
  std::vector<Member> ragged;
  std::mt19937 bits(11);
  for (int i = 0; i < 64; ++i) ragged.push_back({1, 100 + static_cast<Index>(bits() % 3901u)});
  const std::vector<Member> uniform(64, Member{1, 2048});
  std::vector<Member> mixed = uniform;
  mixed.push_back({512, 2048});

  for (const int threads : thread_counts()) {
    for (const ElementType type : {ElementType::bf16, ElementType::f32})
      add_batch("batch_ragged", {.type = type}, ragged, threads, 85);
    add_batch("batch_ragged", {.kv_heads = 1, .type = ElementType::bf16}, ragged, threads);
    add_batch("batch_paged", {.type = ElementType::bf16, .layout = Layout::paged}, ragged, threads);
    add_batch("batch_uniform", {.type = ElementType::bf16}, uniform, threads);
    add_batch("batch_mixed", {.type = ElementType::bf16}, mixed, threads);
  }
}

}  // namespace gqa::bench
