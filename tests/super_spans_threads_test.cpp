// SPDX-License-Identifier: Apache-2.0
// Beyond 32,768 tokens: spans are merged within their super-span and super-spans among themselves, whatever the threads, chunks, storage or
// visible ranges. So whoever computes the super-spans of a sequence one by one, on several machines, has the same bits.
#include <gtest/gtest.h>

#include <chrono>
#include <limits>
#include <thread>

#include "gqa/thread_pool.hpp"
#include "support/state_model.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

using detail::kSpan;
using detail::kSuperSpan;

constexpr Index kLength = 70000;  ///< two super-spans and a part of a third

/// Queries of two or four heads on one KV head, so few that they are one tile.
struct Long {
  Types types;
  Problem problem;
  Tensor q;
  StoredCaches kv;

  Long(const Types& t, Index heads, Index n_q, Index n_kv, const Place& place = {}, Index kv_heads = 1)
      : Long(t, make_problem({heads, kv_heads, 16, 16, n_q, n_kv}, 401), place) {}
  Long(const Types& t, const Problem& p, const Place& place = {})
      : types(t), problem(p), q(p.q, t.q), kv(store_cache(p.kv, t.k, t.v, place)) {}

  template <class V>
  Result run(Path path, const V& variant, const ExecutorRef& executor = {}) const {
    How how{path};
    how.scale = SteppedCall::kScale;
    how.executor = executor;
    return attend(q.const_view(), kv.view(), how, variant);
  }
  template <class V>
  Result model(Path path, const V& variant, Index part = kSpan, Index group = kSuperSpan) const {
    return PartwiseAttention<V>(q.const_view(), kv.view(), variant, path).result(part, group);
  }
};

/// Causal, and nothing in a range is seen either: spans and super-spans may be left out that lie between those seen.
struct Hidden {
  PositionRange hidden;
  PositionRange visible_range(Index query_position, Index kv_length) const {
    return Causal{}.visible_range(query_position, kv_length);
  }
  bool is_visible(Index, Index key_position, Index) const {
    return key_position < hidden.begin || key_position >= hidden.end;
  }
};

class SuperSpans : public PerPath {
 protected:
  /// Holds a variant to the model, on any number of threads.
  template <class V>
  void expect_model(const Long& work, const V& variant, const char* what) const {
    SCOPED_TRACE(describe(on(path()), work.types, what));
    const Result expected = work.model(path(), variant);
    EXPECT_TRUE(same_bits(expected, work.model(path(), variant, kSuperSpan))) << "super-spans computed apart";
    EXPECT_TRUE(same_bits(expected, work.run(path(), variant))) << "one thread";
    for (const int threads : {2, 5, 8}) {
      ThreadsExecutor executor{threads};
      EXPECT_TRUE(same_bits(expected, work.run(path(), variant, executor))) << threads << " threads";
    }
    ShuffledExecutor shuffled{7, 6};
    EXPECT_TRUE(same_bits(expected, work.run(path(), variant, shuffled))) << "tasks in any order";
  }
};

TEST_P(SuperSpans, MergeInOrder) {
  for (const ElementType type : {ElementType::f32, ElementType::bf16})
    for (const auto& [heads, n_q] : {std::pair<Index, Index>{2, 1}, {4, 4}}) {
      const Long work({type, type, type, ElementType::f32}, heads, n_q, kLength);
      expect_model(work, Causal{}, "causal");
      expect_model(work, CausalWindow{kLength - kSuperSpan + 1000}, "a window from within a super-span on");
      expect_model(work, SinksAndWindowRanges{kSuperSpan - 1, 2000}, "ranges with a super-span between them");
      expect_model(work, SinksAndWindowRanges{10, kLength - kSuperSpan - 5}, "ranges that begin in two of them");
    }
}

TEST_P(SuperSpans, AreNotOneFoldOfSpans) {
  const Long work(cache_of(ElementType::f32), 2, 1, kLength);
  const Result one_fold = work.model(path(), Causal{}, kSpan, kLength);
  EXPECT_FALSE(same_bits(one_fold, work.run(path(), Causal{}))) << on(path()) << ": these tests could not fail";
  const Long shorter(cache_of(ElementType::f32), 2, 1, kSuperSpan);
  EXPECT_TRUE(same_bits(shorter.model(path(), Causal{}, kSpan, kLength), shorter.run(path(), Causal{})))
      << on(path()) << ": but they are where there is one";
}

TEST_P(SuperSpans, MayHaveNothingThatIsSeen) {
  const Long work(cache_of(ElementType::bf16), 2, 2, kLength);
  expect_model(work, Hidden{{0, kSuperSpan + 700}}, "the first");
  expect_model(work, Hidden{{kSuperSpan - 700, 2 * kSuperSpan + 70}}, "one between");
  expect_model(work, Hidden{{2 * kSuperSpan - 70, kLength}}, "the last");
  expect_model(work, Hidden{{0, kLength}}, "all");
}

TEST_P(SuperSpans, OfManyTokens) {
  const Long work(cache_of(ElementType::f32), 2, 1, 2 * kLength);
  expect_model(work, Causal{}, "causal");
  expect_model(work, SinksAndWindowRanges{5, 600}, "ranges with three super-spans between them");
}

TEST_P(SuperSpans, ShowWhatIsNotFinite) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float strange : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
    Problem p = make_problem({2, 1, 16, 16, 2, kLength}, 402);
    p.kv.v.at(kSuperSpan + 5, 0, 3) = strange;
    expect_model(Long(cache_of(ElementType::f32), p), Causal{}, "a value");
    p.kv.k.at(7, 0, 2) = strange;
    expect_model(Long(cache_of(ElementType::f32), p), Causal{}, "a key of the first");
    expect_model(Long(cache_of(ElementType::f32), p), CausalWindow{kLength - kSuperSpan}, "which is out of sight");
  }
}

TEST_P(SuperSpans, AnyExecutorIsSerial) {
  const Long work(all_of(ElementType::bf16), 4, 3, kLength);
  const Result serial = work.run(path(), Causal{});
  for (int threads = 1; threads <= 8; ++threads) {
    ThreadsExecutor plain{threads};
    EXPECT_TRUE(same_bits(serial, work.run(path(), Causal{}, plain))) << on(path()) << ", std::thread " << threads;
    ThreadPoolExecutor pool(threads);
    EXPECT_TRUE(same_bits(serial, work.run(path(), Causal{}, pool))) << on(path()) << ", Eigen's pool " << threads;
#if defined(_OPENMP)
    OpenMpExecutor openmp{threads};
    EXPECT_TRUE(same_bits(serial, work.run(path(), Causal{}, openmp))) << on(path()) << ", OpenMP " << threads;
#endif
  }
  BackwardExecutor backward;
  EXPECT_TRUE(same_bits(serial, work.run(path(), Causal{}, backward))) << on(path()) << ", backward";
}

/// Held up at the first token of some spans, so that states of later super-spans are there before those of earlier ones.
struct HeldUpAtBorders : Causal {
  bool is_visible(Index, Index key_position, Index) const {
    if (key_position % kSuperSpan == 0 || key_position % (5 * kSpan) == 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(key_position % kSuperSpan == 0 ? 15 : 1));
    return true;
  }
};

TEST_P(SuperSpans, WhoeverIsLateChangesNoBit) {
  const Long work(cache_of(ElementType::f32), 1, 1, kLength);
  const Result serial = work.run(path(), Causal{});
  for (const int threads : {2, 3, 8}) {
    ThreadsExecutor executor{threads};
    EXPECT_TRUE(same_bits(serial, work.run(path(), HeldUpAtBorders{}, executor))) << on(path()) << ", " << threads;
  }
}

TEST_P(SuperSpans, StatesMayComeInAnyOrder) {
  // A fold that begins four spans before the border. One worker leaves all of its spans as deposits, the later ones first.
  constexpr Index length = kSuperSpan + 8 * kSpan;
  const Long work(cache_of(ElementType::f32), 2, 1, length);
  const CausalWindow variant{12 * kSpan};
  Output out(ElementType::f32, 1, 2, 16);
  const Sequence sequence{work.q.const_view(), work.kv.view(), out.view(), {}, out.lse()};
  SteppedCall stepped({&sequence, 1}, variant, path());
  detail::CallPlan& call = stepped.call();
  detail::FoldProgress& fold = call.progress[0];
  {
    detail::SequenceTasks tasks = stepped.tasks(1, 0);
    const Index spans = tasks.enter(0, 0);
    ASSERT_EQ(spans, 12);
    detail::FoldShare share(call, 1, fold, tasks, spans);
    fold.held.store(true);
    std::vector<detail::Claim> claims;
    for (detail::Claim claim = share.claim(false); claim.count > 0; claim = share.claim(false)) claims.push_back(claim);
    ASSERT_GT(claims.size(), 1u);
    ASSERT_FALSE(claims.front().in_order);
    for (std::size_t i = claims.size(); i > 0; --i) {
      tasks.run(claims[i - 1]);
      if (i == 1) fold.held.store(false);
      share.finish(claims[i - 1]);
    }
  }
  detail::run_worker(call, 0);
  EXPECT_TRUE(same_bits(work.model(path(), variant), out.result())) << on(path());
}

/// Queries [first, first + count) of a tensor.
ConstTensorView tokens_of(ConstTensorView q, Index first, Index count) {
  q.data = static_cast<const std::byte*>(q.data) + first * q.strides.token * element_bytes(q.type);
  q.tokens = count;
  return q;
}

TEST_P(SuperSpans, ChunksAndStepsAcrossABorderAreTheWhole) {
  // 24 query tokens on both sides of a border: rows that see one super-span share a tile with those that see two.
  constexpr Index length = kSuperSpan + 12;
  constexpr Index n_q = 24;
  const Long work(cache_of(ElementType::bf16), 4, n_q, length, {}, 2);
  const auto in_chunks = [&](Index chunk, const auto& variant) {
    Result all;
    for (Index first = 0; first < n_q; first += chunk) {
      const Index count = std::min(chunk, n_q - first);
      all.append(attend(tokens_of(work.q.const_view(), first, count),
                        first_tokens(work.kv.view(), length - n_q + first + count), {path()}, variant));
    }
    return all;
  };
  for (const Index chunk : {1, 7}) {
    SCOPED_TRACE(describe(on(path()), "chunk", chunk));
    EXPECT_TRUE(same_bits(in_chunks(n_q, Causal{}), in_chunks(chunk, Causal{})));
    const CausalWindow window{kSpan + 3};
    EXPECT_TRUE(same_bits(in_chunks(n_q, window), in_chunks(chunk, window)));
  }
}

TEST_P(SuperSpans, AnyStorageIsTheSame) {
  const Types types = cache_of(ElementType::f32);
  const Long plain(types, 4, 2, kLength, {}, 2);
  const Result expected = plain.run(path(), Causal{});
  for (const Place& place : {contiguous_place(CacheLayout::head_major), paged_place(64), paged_place(500),
                             paged_place(7, CacheLayout::head_major), ring_place(kLength)})
    EXPECT_TRUE(same_bits(expected, Long(types, plain.problem, place).run(path(), Causal{})))
        << on(path()) << ", " << place.name();

  const Index to = 2 * kSuperSpan + 900;  // a window across the border, in a ring that has no more than it sees
  const Long around(types, 4, 2, to, {}, 2);
  const CausalWindow window{2000};
  EXPECT_TRUE(same_bits(around.run(path(), window), Long(types, around.problem, ring_place(2001)).run(path(), window)))
      << on(path());
}

TEST_P(SuperSpans, AddOneStateToScratch) {
  const auto bytes_of = [&](Index n_kv, const Place& place, const auto& variant) {
    const Long work(cache_of(ElementType::f32), 2, 1, n_kv, place);
    Output out(ElementType::f32, 1, 2, 16);
    const Sequence sequence{work.q.const_view(), work.kv.view(), out.view(), {}, out.lse()};
    return DynamicAttention{}.scratch_bytes({&sequence, 1}, variant, How{path()}.options());
  };
  const Place contiguous{};
  const std::size_t one = bytes_of(kSuperSpan, contiguous, Causal{});
  const std::size_t two = bytes_of(kSuperSpan + 1, contiguous, Causal{});
  EXPECT_GT(two, one);
  EXPECT_LE(two, one + 1024) << "two rows of 16 values";
  EXPECT_EQ(two, bytes_of(2 * kLength, contiguous, Causal{})) << "no more for more of them";
  EXPECT_EQ(bytes_of(2 * kSuperSpan, ring_place(700), CausalWindow{600}),
            bytes_of(kSuperSpan, ring_place(700), CausalWindow{600}))
      << "a ring in one super-span";
}

TEST_P(SuperSpans, AStateOfNoTokensChangesNothing) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const detail::Kernels& kernels =
      detail::kernels_for<AnyCache::types, detail::kOtherDim, detail::kOtherDim>(path(), 1);
  constexpr Index rows = 21;
  constexpr Index dim = 16;
  // (m, l) of usual rows; of one whose scores are all −∞, its values being finite or not; a score of +∞ leaves NaN in all sums.
  const std::pair<float, float> rows_of[] = {{0.5f, 1.0f},       {-300.0f, 7.25f},   {3.0e38f, 1.0f},
                                             {-3.0e38f, 512.0f}, {-kInfinity, 0.0f}, {kInfinity, kNan}};
  const float values[] = {-0.0f, 0.0f, 1.5f, -3.0e38f, 1.0e-40f, kInfinity, -kInfinity, kNan};
  RowsState state(kernels, rows, dim);
  const detail::QueryTile& tile = state.tile();
  for (Index row = 0; row < rows; ++row) {
    const auto& [m, l] = rows_of[row % 6];
    tile.m[row] = m;
    for (Index i = 0; i < tile.l_stride; ++i) tile.l[row * tile.l_stride + i] = l;
    if (tile.has_divisor) tile.divisor[row] = l;
    for (Index d = 0; d < tile.o_stride; ++d)
      tile.o[row * tile.o_stride + d] = row % 6 == 5  ? kNan
                                        : row % 6 < 4 ? values[(row + d) % 8]
                                        : d % 2 == 0  ? 0.0f
                                                      : kNan;
  }
  const RowsState nothing(kernels, rows, dim);
  RowsState before(kernels, rows, dim);
  before.merge(state);
  RowsState behind(kernels, rows, dim);
  behind.copy(state.data());
  behind.merge(nothing);
  for (const RowsState* merged : {&before, &behind}) {
    const char* const where = merged == &before ? " before" : " behind";
    for (Index row = 0; row < rows; ++row) {
      EXPECT_TRUE(same_value(merged->tile().m[row], tile.m[row])) << on(path()) << where << ", row " << row;
      EXPECT_TRUE(same_value(merged->tile().l[row * tile.l_stride], tile.l[row * tile.l_stride])) << where << row;
      if (tile.has_divisor) {
        EXPECT_TRUE(same_value(merged->tile().divisor[row], tile.divisor[row])) << where << row;
      }
      for (Index d = 0; d < tile.o_stride; ++d)
        EXPECT_TRUE(same_value(merged->tile().o[row * tile.o_stride + d], tile.o[row * tile.o_stride + d]))
            << on(path()) << where << ", row " << row << ", value " << values[(row + d) % 8];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryPath, SuperSpans, SuperSpans::cases(), SuperSpans::name);

}  // namespace
}  // namespace gqa::test
