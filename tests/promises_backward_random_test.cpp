// SPDX-License-Identifier: Apache-2.0
// Backward calls that are drawn at random: held to the definition, and to the same bits in other company.
//
// GQA_PROPERTY_CASES=5000 runs so many on each path, GQA_PROPERTY_SEED=7 other ones. What fails says its seed, which draws the same call again.
#include <gtest/gtest.h>

#include <cstdlib>

#include "gqa/thread_pool.hpp"
#include "gqa/variants.hpp"
#include "support/backward_cases.hpp"
#include "support/executors.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

Index from_environment(const char* name, Index otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr || *text == '\0' ? otherwise : std::atoll(text);
}

template <class T, std::size_t N>
const T& one_of(const T (&items)[N], Random& random) {
  return items[static_cast<std::size_t>(random.below(static_cast<Index>(N)))];
}

/// A call, and where its numbers lie.
class Drawn {
 public:
  Drawn(Path path, Random& random) {
    const bool slow = path == Path::portable;
    const auto around = [&](Index most) {  // small, or near a whole number of vectors, panels or blocks
      const Index kind = random.below(3);
      if (kind == 0) return 1 + random.below(std::min<Index>(most, 12));
      if (kind == 1) return 1 + random.below(most);
      return std::clamp<Index>(16 * (1 + random.below(most / 16)) - 1 + random.below(3), 1, most);
    };
    shape.kv_heads = 1 + random.below(3);
    shape.query_heads = shape.kv_heads * (1 + random.below(slow ? 3 : 9));
    shape.head_dim = around(slow ? 40 : 144);
    shape.value_dim = random.below(3) == 0 ? shape.head_dim : around(slow ? 40 : 144);
    shape.n_kv = random.below(12) == 0 ? 0 : around(slow ? 280 : 600);
    shape.n_q = random.below(12) == 0 ? 0 : around(slow ? 20 : 80);
    problem = make_problem(shape, random.bits());
    d_out = StoredProblem::draw_d_out(shape, random.bits());
    const bool same_types = random.below(2) == 0;
    for (ElementType* type : {&types.q, &types.k, &types.v, &types.out, &d_out_type})
      *type = one_of(kEveryType, random);
    if (same_types) types = all_of(d_out_type);
    how.path = path;
    how.out = types.out;
    how.products = one_of(kEveryProducts, random);
    if (random.below(4) == 0) how.scale = 0.25f * static_cast<float>(random.below(5) - 2);
    // Positions must be there unless the last ones of the cache are meant; all of them are needed by contiguous and paged caches alone.
    if (shape.n_q > shape.n_kv || random.below(4) == 0)
      for (Index i = 0; i < shape.n_q; ++i) positions.push_back(random.below(shape.n_kv + 5) - 2);
  }

  /// The call's numbers in some storage and layouts.
  struct Stored {
    Tensor q;
    StoredCaches kv;
    Tensor d_out;
    std::string place;
    BackwardInputs in(std::span<const Index> of_queries) const {
      return {q.const_view(), kv.view(), d_out.const_view(), of_queries};
    }
  };
  Stored store(Random& random) const {
    const CacheLayout layout = one_of(kCacheLayouts, random);
    Place place = contiguous_place(layout, shape.n_kv + random.below(20));
    if (random.below(3) == 0) place = paged_place(1 + random.below(70), layout, random.bits());
    else if (random.below(3) == 0) place = ring_place(std::max<Index>(1, shape.n_kv + random.below(9)), layout);
    return {Tensor(problem.q, types.q, one_of(kTensorLayouts, random)),
            store_cache(problem.kv, types.k, types.v, place), Tensor(d_out, d_out_type, one_of(kTensorLayouts, random)),
            place.name()};
  }

  friend std::ostream& operator<<(std::ostream& out, const Drawn& d) {
    return out << d.shape << ", " << d.types << ", d_out " << element_name(d.d_out_type) << ", "
               << products_name(d.how.products) << ", scale " << d.how.scale.value_or(-1.0f) << ", "
               << d.positions.size() << " positions";
  }

  Shape shape;
  Problem problem;
  Numbers d_out;
  Types types;
  ElementType d_out_type = ElementType::f32;
  BackwardHow how;
  std::vector<Index> positions;
};

template <class V>
void hold(const Drawn& drawn, Random& random, const V& variant, const ScoreErrors& errors = {}) {
  const Drawn::Stored stored = drawn.store(random);
  const BackwardInputs in = stored.in(drawn.positions);
  SCOPED_TRACE(describe(drawn, stored.place));
  Output given = run_forward(in, drawn.how, variant);
  const Gradients expected = run_backward(in, given, drawn.how, variant);
  EXPECT_TRUE(GradientBound(in, in.kv, given, drawn.how, variant, errors).holds(expected));

  const Drawn::Stored other = drawn.store(random);
  BackwardHow how = drawn.how;
  ThreadPoolExecutor pool(static_cast<int>(1 + random.below(5)));
  BackwardExecutor reversed;
  ShuffledExecutor shuffled{random.bits(), 1 + random.below(6)};
  const ExecutorRef executors[] = {ExecutorRef(pool), ExecutorRef(reversed), ExecutorRef(shuffled)};
  how.executor = one_of(executors, random);
  constexpr TensorLayout layouts[] = {TensorLayout::packed, TensorLayout::head_major, TensorLayout::padded,
                                      TensorLayout::reversed};
  how.layout = one_of(layouts, random);
  EXPECT_TRUE(same_gradients(expected, run_backward(other.in(drawn.positions), given, how, variant))) << other.place;

  // Between two others of their own types.
  Shape beside = drawn.shape;
  beside.n_q = random.below(5);
  beside.n_kv = beside.n_q + random.below(300);
  const StoredProblem before(beside, random.bits(), one_of(kEveryType, random));
  Output of_before = run_forward(before.inputs(), {.path = how.path}, variant);
  Output of_after = run_forward(before.inputs(), {.path = how.path}, variant);
  auto memory = GradientTensors::of<V>(before.inputs());
  auto mine = GradientTensors::of<V>(in, how.layout);
  auto after = GradientTensors::of<V>(before.inputs());
  const Sequence batch[] = {{before.inputs().q, before.inputs().kv, of_before.view(), {}, of_before.lse()},
                            {in.q, in.kv, given.view(), drawn.positions, given.lse()},
                            {before.inputs().q, before.inputs().kv, of_after.view(), {}, of_after.lse()}};
  const SequenceGradients gradients[] = {memory.gradients(before.inputs().d_out), mine.gradients(in.d_out),
                                         after.gradients(before.inputs().d_out)};
  DynamicAttentionBackward{}(batch, gradients, variant, how.options());
  EXPECT_TRUE(same_gradients(expected, mine.result())) << "in a batch";
  EXPECT_TRUE(same_gradients(memory.result(), after.result())) << "in a batch";
}

/// One call with a variant that is drawn too.
void draw_and_hold(Path path, std::uint64_t seed) {
  Random random(seed);
  const Drawn drawn(path, random);
  std::vector<float> numbers;
  for (int i = 0; i < 700; ++i) numbers.push_back(random.normal());
  const auto heads = static_cast<std::size_t>(drawn.shape.query_heads);
  const std::span<const float> by_head = std::span<const float>(numbers).first(heads);
  const auto slopes = [&] {
    for (std::size_t h = 0; h < heads; ++h) numbers[h] = static_cast<float>(h % 4) * 0.03125f;
    return std::span<const float>(numbers).first(heads);
  };
  // Distances are below 700 and slopes below 1/8; a cap of c has second derivatives below 0.77 / c.
  const ScoreErrors linear{.curvature = 0.4, .roundings = 12.0, .magnitude = 100.0, .slope_roundings = 8.0};
  switch (random.below(8)) {
    case 0: return hold(drawn, random, Causal{});
    case 1: return hold(drawn, random, Full{});
    case 2:
      return hold(drawn, random,
                  compose(CausalWindow{1 + random.below(200)}, LearnedSinks{by_head, random.below(2) == 0}));
    case 3: return hold(drawn, random, Sieve{});
    case 4: return hold(drawn, random, compose(Causal{}, gqa::SoftCap{2.0f}, gqa::Alibi{slopes()}), linear);
    case 5: {
      const BroadcastView<float> view(numbers.data(), 1, 1, 1, 700);
      return hold(drawn, random, compose(Full{}, AdditiveBias<float>{view}), linear);
    }
    case 6: return hold(drawn, random, StrictlyBeforeOdd{});
    default: return hold(drawn, random, FirstTokensAndWindow{random.below(80), 1 + random.below(100)});
  }
}

class RandomBackward : public PerPath {};

TEST_P(RandomBackward, IsRightAndTheSameInAnyCompany) {
  const auto seed = static_cast<std::uint64_t>(from_environment("GQA_PROPERTY_SEED", 1));
  const Index cases = from_environment("GQA_PROPERTY_CASES", path() == Path::portable ? 12 : 50);
  for (Index i = 0; i < cases; ++i) {
    const std::uint64_t drawn = seed * 1'000'003u + static_cast<std::uint64_t>(i);
    SCOPED_TRACE(describe("case", i, "of seed", seed));
    draw_and_hold(path(), drawn);
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(EveryPath, RandomBackward, RandomBackward::cases(), RandomBackward::name);

}  // namespace
}  // namespace gqa::test
