// SPDX-License-Identifier: Apache-2.0
// A second unit of the same program and flags that uses the rest of the library: owning caches, executors, Eigen views.
#include <vector>

#include "gqa/eigen.hpp"
#include "gqa/gqa.hpp"
#include "gqa/reference.hpp"
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

}  // namespace

// The same result from each storage and executor.
bool second_unit() {
  const gqa::KvCacheConfig config{.kv_heads = 1, .head_dim = kHeadDim, .k_type = gqa::ElementType::bf16, .capacity = 128};
  gqa::ContiguousKvCache contiguous(config);
  gqa::RingKvCache ring(config);
  gqa::PagedKvPool pool({.kv_heads = 1, .head_dim = kHeadDim, .k_type = gqa::ElementType::bf16, .page_size = 3, .pages = 99});
  gqa::PagedSequence paged = pool.sequence();
  for (int token = 0; token < kTokens; ++token) {
    const std::vector<float> row(kHeadDim, static_cast<float>(token % 11) * 0.125f);
    contiguous.append(row, row);
    ring.append(row, row);
    paged.append(row, row);
  }
  const gqa::PagedSequence forked = paged.fork();

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
  return same && attend(forked.view(), q, options) == expected && !expected.isZero();
}
