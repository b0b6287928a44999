// SPDX-License-Identifier: Apache-2.0
// One layer's decode loop: an owning cache takes the prompt's keys and values, then one token's a step, and attention reads it.
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <random>
#include <span>
#include <vector>

#include "gqa/gqa.hpp"

namespace {

constexpr int query_heads = 32, kv_heads = 8, head_dim = 128;
constexpr std::size_t q_width = std::size_t{query_heads} * head_dim, kv_width = std::size_t{kv_heads} * head_dim;

// Queries, keys and values of a sequence, (token, head, dim): what the layer's projections would give. They are f32; the cache
// stores bf16.
struct Projections {
  std::vector<float> q, k, v;
};

Projections project(std::size_t tokens) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  Projections made{std::vector<float>(tokens * q_width), std::vector<float>(tokens * kv_width),
                   std::vector<float>(tokens * kv_width)};
  for (std::vector<float>* values : {&made.q, &made.k, &made.v})
    for (float& value : *values) value = normal(random);
  return made;
}

std::span<const float> rows(const std::vector<float>& all, std::size_t width, int first, int count) {
  return std::span(all).subspan(static_cast<std::size_t>(first) * width, static_cast<std::size_t>(count) * width);
}

}  // namespace

int main() {
  constexpr int prompt = 1000, total = 1100;
  const Projections model = project(total);
  std::vector<float> out(total * q_width);

  const gqa::GroupedQueryAttention<query_heads, kv_heads, head_dim> attention;
  gqa::ContiguousKvCache cache(
      {.kv_heads = kv_heads, .head_dim = head_dim, .k_type = gqa::ElementType::bf16, .capacity = total});

  const auto forward = [&](int first, int count) {
    cache.append(rows(model.k, kv_width, first, count), rows(model.v, kv_width, first, count));
    attention(gqa::ConstTensorView(rows(model.q, q_width, first, count), count, query_heads, head_dim), cache.view(),
              gqa::TensorView(out.data() + static_cast<std::size_t>(first) * q_width, count, query_heads, head_dim));
  };
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  forward(0, prompt);  // prefill
  const auto prefilled = Clock::now();
  for (int position = prompt; position < total; ++position) forward(position, 1);  // decode
  const auto done = Clock::now();

  const auto milliseconds = [](Clock::duration time) {
    return std::chrono::duration<double, std::milli>(time).count();
  };
  std::printf("prefill: %d tokens in %.2f ms\n", prompt, milliseconds(prefilled - start));
  std::printf("decode:  %d tokens, %.3f ms each, over %td cached tokens at the end\n", total - prompt,
              milliseconds(done - prefilled) / (total - prompt), cache.length());
  std::printf("cache:   %td bytes in bf16\n", cache.bytes());

  // The same sequence in one call, from a cache that was filled in one go: the same bits, not merely nearly the same.
  std::vector<float> at_once(out.size());
  cache.clear();
  cache.append(model.k, model.v);
  attention(gqa::ConstTensorView(model.q.data(), total, query_heads, head_dim), cache.view(),
            gqa::TensorView(at_once.data(), total, query_heads, head_dim));
  const bool same = out == at_once;
  std::printf("prefill and decode steps %s one call over all %d tokens\n", same ? "equal, bit for bit," : "DIFFER FROM",
              total);
  return same ? 0 : 1;
}
