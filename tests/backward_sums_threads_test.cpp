// SPDX-License-Identifier: Apache-2.0
// Gradients by lookups whose pairs share elements are the same bits for any number of threads.
#include <gtest/gtest.h>

#include "gqa/thread_pool.hpp"
#include "gqa/variants.hpp"
#include "support/backward_call.hpp"
#include "support/executors.hpp"

namespace gqa::test {
namespace {

/// Runs with threads 1 … 5 and tasks in any order; all that is added to `size` zeros must be the same.
template <class V>
void expect_same_sums(const std::vector<const StoredProblem*>& problems, Path path, const V& variant, std::size_t size,
                      const std::vector<LookupGradient>& wanted) {
  std::vector<Output> outputs;
  for (const StoredProblem* p : problems) outputs.push_back(run_forward(p->inputs(), {.path = path}, variant));
  const auto sums = [&](const ExecutorRef& executor) {
    std::vector<float> data(size, 0.0f);
    std::vector<LookupGradient> lookups = wanted;
    for (LookupGradient& lookup : lookups) lookup.data = data;
    std::vector<Sequence> batch;
    std::vector<SequenceGradients> gradients;
    std::vector<GradientTensors> memory;
    memory.reserve(problems.size());
    for (std::size_t i = 0; i < problems.size(); ++i) {
      const BackwardInputs in = problems[i]->inputs();
      batch.push_back({in.q, in.kv, outputs[i].view(), {}, outputs[i].lse()});
      gradients.push_back(memory.emplace_back(GradientTensors::of<V>(in)).gradients(in.d_out));
    }
    BackwardHow how{.path = path};
    how.executor = executor;
    how.lookups = lookups;
    DynamicAttentionBackward{}(batch, gradients, variant, how.options());
    return data;
  };
  const std::vector<float> expected = sums({});
  bool any = false;
  for (const float x : expected) any = any || x != 0.0f;
  EXPECT_TRUE(any);
  for (int threads = 2; threads <= 5; ++threads) {
    ThreadPoolExecutor pool(threads);
    for (int repeat = 0; repeat < 6; ++repeat)
      ASSERT_TRUE(same_floats(expected, sums(pool), "data")) << threads << " threads, " << on(path);
  }
  ShuffledExecutor shuffled{3, 6};
  EXPECT_TRUE(same_floats(expected, sums(shuffled), "data"));
}

class BackwardSums : public PerPath {
 protected:
  Shape shape() const { return path() == Path::portable ? Shape{4, 2, 4, 4, 9, 800} : Shape{4, 2, 16, 12, 70, 1100}; }
};

TEST_P(BackwardSums, OverPairsThatShareAnElement) {
  const StoredProblem p(shape(), 941, ElementType::f32);
  const float bias[] = {0.25f};
  const BroadcastView<float> view(bias, 1, 1, 1, shape().n_kv, {0, 0, 0, 0});
  expect_same_sums({&p}, path(), compose(Full{}, AdditiveBias<float>{view}), 1, {{0, {}, {0, 0, 0, 0}, 0}});
  const std::vector<float> keys = make_problem({1, 1, shape().n_kv, 1, 1, 0}, 942).q.values;
  const BroadcastView<float> by_key(keys.data(), 1, 1, 1, shape().n_kv);
  expect_same_sums({&p}, path(), compose(Full{}, AdditiveBias<float>{by_key}), keys.size(), {{0, {}, {0, 0, 0, 1}, 0}});
}

TEST_P(BackwardSums, OverDistances) {
  const Shape s = shape();
  const StoredProblem p(s, 951, ElementType::f32);
  const Index first = s.n_kv - s.n_q, least = first - (s.n_kv - 1), distances = s.n_kv - least;
  const std::vector<float> bias = make_problem({4, 1, distances, 1, 1, 0}, 952).q.values;
  expect_same_sums({&p}, path(), compose(Full{}, DistanceBias{bias, distances, least}), bias.size(),
                   {{0, {}, {0, distances, 1, -1}, first - least}});
}

// Sequences that share a bias, one without queries between them.
TEST_P(BackwardSums, OverSequencesAlsoBehindOneWithoutQueries) {
  Shape s = shape();
  const StoredProblem a(s, 961, ElementType::f32), b(s, 962, ElementType::f32);
  s.n_q = 0;
  const StoredProblem none(s, 963, ElementType::f32);
  const float bias[] = {0.25f};
  const BroadcastView<float> view(bias, 1, 1, 1, s.n_kv, {0, 0, 0, 0});
  expect_same_sums({&a, &none, &b, &none, &none, &a}, path(), compose(Full{}, AdditiveBias<float>{view}), 1,
                   {{0, {}, {0, 0, 0, 0}, 0}});
}

/// A number of each key and of the one before it: neighbouring keys share an element by different lookups.
struct Neighbours : Full {
  const float* numbers;
  auto score(auto s, const RowContext&, auto k) const {
    using expression::lookup;
    return s + lookup(numbers + 1, k) - 0.5f * lookup(numbers, k);
  }
};

TEST_P(BackwardSums, OverLookupsThatShareElements) {
  Shape s = shape();
  s.query_heads = s.kv_heads = 1;
  const StoredProblem p(s, 971, ElementType::f32);
  const std::vector<float> numbers = make_problem({1, 1, s.n_kv + 1, 1, 1, 0}, 972).q.values;
  expect_same_sums({&p}, path(), Neighbours{{}, numbers.data()}, numbers.size(),
                   {{0, {}, {0, 0, 0, 1}, 1}, {1, {}, {0, 0, 0, 1}, 0}});
}

INSTANTIATE_TEST_SUITE_P(EveryPath, BackwardSums, BackwardSums::cases(), BackwardSums::name);

}  // namespace
}  // namespace gqa::test
