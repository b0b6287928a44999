// SPDX-License-Identifier: Apache-2.0
#include "measure.hpp"

#include <chrono>
#include <random>

#include "../../benchmarks/machine.hpp"
#include "gqa/attention.hpp"
#include "gqa/thread_pool.hpp"

namespace kv_budget {
namespace {

using Attention =
    gqa::GroupedQueryAttention<gqa::dynamic, gqa::dynamic, gqa::dynamic, gqa::dynamic, gqa::CacheOf<gqa::bf16>>;
constexpr Index kBf16 = 2;

/// Ordinary numbers; what they are does not matter to time.
void fill(gqa::bench::HugeBuffer& buffer) {
  std::minstd_rand random(1);
  std::vector<gqa::bf16> some(4099);
  for (gqa::bf16& x : some) x = gqa::bf16(static_cast<float>(random() % 2001) / 1000.0f - 1.0f);
  auto* const to = reinterpret_cast<gqa::bf16*>(buffer.data());
  for (std::size_t i = 0; i < buffer.size() / sizeof(gqa::bf16); ++i) to[i] = some[i % some.size()];
}

/// The shortest of several calls within about `budget` seconds, after one that warms up.
template <class Call>
double shortest(double budget, const Call& call) {
  using Clock = std::chrono::steady_clock;
  const auto timed = [&] {
    const Clock::time_point start = Clock::now();
    call();
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  double least = timed(), spent = 0;
  for (int turn = 0; turn < 20 && (turn == 0 || spent + least < budget); ++turn) {
    const double one = timed();
    spent += one;
    least = std::min(least, one);
  }
  return least;
}

/// A head-major cache of one layer in the buffer, of as many tokens as fit, `most` at most.
gqa::KvCacheView cache_of(const gqa::LayerKind& kind, const gqa::bench::HugeBuffer& buffer, Index most) {
  const Index dv = kind.width_of_values();
  const Index row = kind.kv_heads * (kind.head_dim + (kind.values_in_keys ? 0 : dv)) * kBf16;
  const Index tokens = std::min(most, static_cast<Index>(buffer.size()) / row);
  const auto* const keys = reinterpret_cast<const gqa::bf16*>(buffer.data());
  const gqa::KvShape shape{.length = tokens, .kv_heads = kind.kv_heads, .head_dim = kind.head_dim, .value_dim = dv};
  const gqa::KvStrides k_steps = gqa::KvStrides::head_major(kind.kv_heads, tokens, kind.head_dim);
  if (kind.values_in_keys) return gqa::KvCacheView::contiguous(keys, keys, shape, k_steps, k_steps);
  return gqa::KvCacheView::contiguous(keys, keys + tokens * kind.kv_heads * kind.head_dim, shape, k_steps,
                                      gqa::KvStrides::head_major(kind.kv_heads, tokens, dv));
}

MeasuredRate measure(const gqa::LayerKind& kind, const gqa::bench::HugeBuffer& buffer, const gqa::Options& options,
                     double budget) {
  const Attention attention;
  const Index dv = kind.width_of_values();
  constexpr Index prompt = 512;
  const std::vector<gqa::bf16> q(static_cast<std::size_t>(prompt * kind.query_heads * kind.head_dim),
                                 gqa::bf16(0.125f));
  std::vector<float> out(static_cast<std::size_t>(prompt * kind.query_heads * dv));

  MeasuredRate rate;
  const gqa::KvCacheView whole = cache_of(kind, buffer, gqa::kUnlimited);
  const gqa::ConstTensorView one(q.data(), 1, kind.query_heads, kind.head_dim);
  const gqa::TensorView one_out(out.data(), 1, kind.query_heads, dv);
  const double step = shortest(budget, [&] { attention(one, whole, one_out, options); });
  const Index row = kind.kv_heads * (kind.head_dim + (kind.values_in_keys ? 0 : dv)) * kBf16;
  rate.bandwidth = static_cast<double>(whole.length * row) / step;

  const gqa::KvCacheView start = cache_of(kind, buffer, prompt);
  const gqa::ConstTensorView all(q.data(), start.length, kind.query_heads, kind.head_dim);
  const gqa::TensorView all_out(out.data(), start.length, kind.query_heads, dv);
  const double prefill = shortest(budget, [&] { attention(all, start, all_out, options); });
  const double n = static_cast<double>(start.length);
  rate.flops = 2 * static_cast<double>(kind.query_heads * (kind.head_dim + dv)) * n * (n + 1) / 2 / prefill;
  return rate;
}

}  // namespace

void measure(std::vector<Row>& rows, int threads) {
  const std::size_t free = gqa::bench::available_memory();
  std::size_t bytes = std::min(gqa::bench::out_of_cache_bytes(), std::size_t{512} << 20);
  if (free > 0) bytes = std::min(bytes, free / 4);
  gqa::bench::HugeBuffer buffer(std::max(bytes, std::size_t{64} << 20));
  fill(buffer);
  const gqa::ThreadPoolExecutor executor(threads);
  gqa::Options options;
  options.executor = executor;
  const double budget = 0.5 / static_cast<double>(rows.size());
  for (Row& row : rows) row.measured = measure(row.shape.kinds[0], buffer, options, budget);
}

}  // namespace kv_budget
