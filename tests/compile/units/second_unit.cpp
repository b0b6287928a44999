// SPDX-License-Identifier: Apache-2.0
// A second unit of the same program and flags that uses the rest of the library: owning caches, executors, Eigen views, budgets.
#include <string_view>
#include <vector>

#include "gqa/budget_presets.hpp"
#include "gqa/budget_time.hpp"
#include "gqa/eigen.hpp"
#include "gqa/gqa.hpp"
#include "gqa/qk_norm.hpp"
#include "gqa/reference.hpp"
#include "gqa/rope.hpp"
#include "gqa/thread_pool.hpp"

bool second_unit();

namespace {

constexpr int kHeads = 4;
constexpr int kHeadDim = 16;
constexpr int kTokens = 70;

class InlinePool {
 public:
  void parallel_for(gqa::Index count, const gqa::TaskRef& work) {
    for (gqa::Index task = count - 1; task >= 0; --task) work(task);
  }
  gqa::Index concurrency() const { return 1; }
};

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Matrix attend(const gqa::KvCacheView& kv, Matrix q, const gqa::Options& options) {
  static const gqa::MultiQueryAttention<kHeads, kHeadDim> attention;
  Matrix out = Matrix::Zero(q.rows(), q.cols());
  attention(gqa::ConstTensorView(q.data(), q.rows(), kHeads, kHeadDim), kv,
            gqa::TensorView(out.data(), out.rows(), kHeads, kHeadDim), gqa::CausalWindow{50}, options);
  return out;
}

// Every function of the budget, with numbers that the compiler does not know.
bool budgets(std::string_view name, gqa::Index tokens) {
  const gqa::ModelShape model = gqa::with_kv_heads(gqa::preset(name), 4);
  const gqa::KvPlan plan{.k_format = gqa::kv_format_named("q8_0"), .page_size = tokens};
  const gqa::Index bytes = gqa::kv_batch_bytes(model, plan, tokens, 2);
  const double step = gqa::seconds_to_read(gqa::kv_bytes_read(model, plan, tokens), 1e9) +
                      gqa::seconds_to_compute(gqa::prefill_flops(model, tokens).total(), 1e12);
  return gqa::longest_context(model, plan, 2, bytes) == tokens &&
         gqa::most_sequences(model, plan, tokens, bytes) == 2 && gqa::devices_needed(bytes, bytes) == 1 &&
         gqa::tensor_parallel_devices(model, plan, tokens, 2, 0, bytes) == 1 &&
         gqa::widest_format_that_fits(model, plan, tokens, 2, 0) == std::nullopt &&
         gqa::most_kv_heads_that_fit(model, plan, tokens, 2, bytes) == 4 &&
         gqa::kv_waste_bytes(model, plan, tokens) == 0 && gqa::kv_bytes_per_token(model, plan) * tokens * 2 == bytes &&
         gqa::count_parameters(model)->total() > 0 && *gqa::parameters_read(model, 1) > 0 &&
         gqa::layer_count(model) > 0 && step > 0 && gqa::kv_slots(model.kinds[0], plan, tokens) == tokens &&
         gqa::kv_sequence_bytes(model, plan, tokens) * 2 == bytes && gqa::kv_row_bytes(plan.k_format, 64) == 68 &&
         !gqa::preset_name(0).empty() && gqa::kv_format_has_width(plan.k_format, 64);
}

}  // namespace

// The same result from each storage and executor.
bool second_unit() {
  const gqa::KvCacheConfig config{
      .kv_heads = 1, .head_dim = kHeadDim, .k_type = gqa::ElementType::bf16, .capacity = 128};
  gqa::ContiguousKvCache contiguous(config);
  gqa::RingKvCache ring(config);
  gqa::PagedKvPool pool(
      {.kv_heads = 1, .head_dim = kHeadDim, .k_type = gqa::ElementType::bf16, .page_size = 3, .pages = 99});
  gqa::PagedSequence paged = pool.sequence();
  for (int token = 0; token < kTokens; ++token) {
    const std::vector<float> row(kHeadDim, static_cast<float>(token % 11) * 0.125f);
    contiguous.append(row, row);
    ring.append(row, row);
    paged.append(row, row);
  }
  const gqa::PagedSequence forked = paged.fork();
  const gqa::Rope rope({.dims = kHeadDim}, 2 * kTokens);
  gqa::PagedSequence turned = paged.fork();
  const std::vector<float> row(kHeadDim, 0.5f);
  turned.append(row, row, gqa::compose_hooks(gqa::RmsNormKeys{}, rope.keys()));
  turned.erase(0, 1);
  turned.change_keys(kTokens - 1, kTokens, rope.shift(-1));

  const Matrix q = Matrix::Constant(3, kHeads * kHeadDim, 0.25f);
  const Matrix expected = attend(contiguous.view(), q, {});
  gqa::Options options;
  gqa::ThreadPoolExecutor threads(2);
  options.executor = gqa::ExecutorRef(threads);
  bool same = attend(ring.view(), q, options) == expected;
  InlinePool own;
  options.executor = gqa::ExecutorRef(own);
  same = same && attend(paged.view(), q, options) == expected;
#if defined(_OPENMP)
  gqa::OpenMpExecutor team{2};
  options.executor = gqa::ExecutorRef(team);
#endif
  return same && attend(forked.view(), q, options) == expected && !expected.isZero() && budgets("llama-3-8b", kTokens);
}
