// SPDX-License-Identifier: Apache-2.0
// A server's inner loop: sequences join and leave a pool of pages, share the pages of a common prefix, and go through attention
// in one ragged call a step, prefill chunks and decode steps mixed.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <list>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gqa/gqa.hpp"

namespace {

constexpr int query_heads = 32, kv_heads = 8, head_dim = 64;
constexpr std::size_t q_width = std::size_t{query_heads} * head_dim;
constexpr int prefix_tokens = 50;  // the system prompt that all requests begin with: three pages and a piece
constexpr int chunk_tokens = 40;   // of a prompt, at most, in one step

// Queries, keys and values of some tokens, (token, head, dim).
struct Rows {
  std::vector<float> q, k, v;
};

// What the layer's projections would give for tokens [first, first + count) of a request; the prefix is the same for all.
Rows project(int request, int first, int count) {
  Rows rows;
  for (int position = first; position < first + count; ++position) {
    std::mt19937 random(static_cast<unsigned>((position < prefix_tokens ? 0 : request) * 100'000 + position));
    std::normal_distribution<float> normal;
    for (auto [values, heads] :
         {std::pair{&rows.q, query_heads}, std::pair{&rows.k, kv_heads}, std::pair{&rows.v, kv_heads}})
      for (int i = 0; i < heads * head_dim; ++i) values->push_back(normal(random));
  }
  return rows;
}

struct Request {
  int id;
  int arrives;  // step
  int prompt;   // tokens after the prefix
  int answer;   // tokens
  gqa::PagedSequence cache = {};
  std::vector<float> out = {};  // of its own tokens, prompt and answer

  int total() const { return prefix_tokens + prompt + answer; }
  int done() const { return static_cast<int>(cache.length()); }
  // A chunk of the prompt while there is some, then a token a step.
  int next() const { return std::clamp(prefix_tokens + prompt - done(), 1, chunk_tokens); }
};

// The request by itself: one call over a contiguous cache.
bool equals_alone(const Request& request) {
  const int own = request.total() - prefix_tokens;
  const Rows all = project(request.id, 0, request.total());
  gqa::ContiguousKvCache cache(
      {.kv_heads = kv_heads, .head_dim = head_dim, .k_type = gqa::ElementType::bf16, .capacity = request.total()});
  cache.append(all.k, all.v);
  std::vector<float> out(static_cast<std::size_t>(own) * q_width);
  gqa::DynamicAttention()(
      gqa::ConstTensorView(all.q.data(), request.total(), query_heads, head_dim).slice(prefix_tokens, own),
      cache.view(), gqa::TensorView(out.data(), own, query_heads, head_dim));
  return out == request.out;
}

}  // namespace

int main() {
  const gqa::GroupedQueryAttention<query_heads, kv_heads, head_dim> attention;
  gqa::PagedKvPool pool(
      {.kv_heads = kv_heads, .head_dim = head_dim, .k_type = gqa::ElementType::bf16, .page_size = 16, .pages = 28});
  std::printf("pool: %td pages of %td tokens, %td bytes\n", pool.pages(), pool.page_size(), pool.bytes());

  gqa::PagedSequence prefix = pool.sequence();
  const Rows prefix_rows = project(0, 0, prefix_tokens);
  prefix.append(prefix_rows.k, prefix_rows.v);

  std::list<Request> waiting;
  for (const auto& [id, arrives, prompt, answer] :
       {std::array{1, 0, 70, 12}, std::array{2, 0, 9, 20}, std::array{3, 1, 100, 10}, std::array{4, 3, 33, 25},
        std::array{5, 4, 150, 6}, std::array{6, 5, 1, 16}})
    waiting.push_back({.id = id, .arrives = arrives, .prompt = prompt, .answer = answer});
  std::list<Request> running;
  bool same = true;

  std::printf("step  call: request(query tokens/cached tokens) …   pages: used, if nothing were shared\n");
  for (int step = 0; !waiting.empty() || !running.empty(); ++step) {
    // Join, in order of arrival, as long as the pool can take each to its end.
    gqa::Index spoken_for = 0;
    for (const Request& request : running)
      spoken_for += request.cache.pages_to_append(request.total() - request.done());
    while (!waiting.empty() && waiting.front().arrives <= step) {
      Request& request = waiting.front();
      gqa::PagedSequence joined = prefix.fork();  // shares pages; the unfilled last one is copied on the first write
      spoken_for += joined.pages_to_append(request.total() - prefix_tokens);
      if (spoken_for > pool.free_pages()) break;
      request.cache = std::move(joined);
      running.splice(running.end(), waiting, waiting.begin());
    }

    // One ragged call for all of them.
    std::vector<Rows> rows;
    for (Request& request : running) {
      rows.push_back(project(request.id, request.done(), request.next()));
      request.out.resize(request.out.size() + rows.back().q.size());
    }
    std::vector<gqa::Sequence> batch;
    std::string line;
    std::size_t i = 0;
    for (Request& request : running) {
      const Rows& row = rows[i++];
      const int tokens = request.next();
      request.cache.append(row.k, row.v);
      batch.push_back({.q = gqa::ConstTensorView(row.q.data(), tokens, query_heads, head_dim),
                       .kv = request.cache.view(),
                       .out = gqa::TensorView(request.out.data() + request.out.size() - row.q.size(), tokens,
                                              query_heads, head_dim)});
      line +=
          " " + std::to_string(request.id) + "(" + std::to_string(tokens) + "/" + std::to_string(request.done()) + ")";
    }
    attention(batch);

    gqa::Index alone = 0;
    for (const Request& request : running) alone += static_cast<gqa::Index>(request.cache.pages().size());
    std::printf("%4d %-58s %3td %3td\n", step, line.c_str(), pool.pages() - pool.free_pages(), alone);

    // Leave: the pages that nobody else uses are free again at once.
    for (auto request = running.begin(); request != running.end();) {
      const auto here = request++;
      if (here->done() < here->total()) continue;
      const bool equal = equals_alone(*here);
      std::printf("     request %d leaves; %s\n", here->id, equal ? "same bits as alone" : "DIFFERENT FROM ALONE");
      same = same && equal;
      running.erase(here);
    }
  }
  prefix.release();
  std::printf("pages still in use: %td\n", pool.pages() - pool.free_pages());
  return same && pool.free_pages() == pool.pages() ? 0 : 1;
}
