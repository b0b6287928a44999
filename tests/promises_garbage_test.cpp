// SPDX-License-Identifier: Apache-2.0
// What no query sees changes nothing, NaN and infinities included; a NaN that is seen shows in exactly the rows that see it.
#include <gtest/gtest.h>

#include <functional>

#include "support/problem.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

constexpr Index kLength = detail::kSpan + 36;
constexpr Index kFirst =
    detail::kSpan - 30;  ///< the queries' first position: they lie on both sides of a span boundary
constexpr Index kQueries = kLength - kFirst;
constexpr Index kHeads = 4;
constexpr Index kKvHeads = 2;
constexpr Index kGroup = kHeads / kKvHeads;
static_assert(kQueries * kGroup > detail::kTileRows, "the rows of a KV head must fill more than a tile");

class Garbage : public PerPathAndType {
 protected:
  Problem problem_ = make_problem({kHeads, kKvHeads, 20, 24, kQueries, kLength}, 131);

  template <class V = Causal>
  Result run(const Problem& p, const V& variant = {}) const {
    return solve(p, all_of(type()), {path()}, variant);
  }

  /// Rows for which `sees` holds are NaN in dim `d` (all of them if d < 0) and, if `lse` is set, in lse; everything else is as
  /// in `clean`.
  static testing::AssertionResult only_these_rows_are_spoilt(const Result& clean, const Result& spoilt,
                                                             const std::function<bool(Index, Index)>& sees, Index d,
                                                             bool lse) {
    Result expected = clean;
    for (Index token = 0; token < clean.tokens; ++token)
      for (Index head = 0; head < clean.heads; ++head) {
        if (!sees(token, head)) continue;
        const auto row = static_cast<std::size_t>(token * clean.heads + head);
        for (Index i = 0; i < clean.dim; ++i)
          if (d < 0 || i == d)
            expected.out[row * static_cast<std::size_t>(clean.dim) + static_cast<std::size_t>(i)] = NAN;
        if (lse) expected.lse[row] = NAN;
      }
    return same_bits(expected, spoilt);
  }
};

/// A few of them where a fused multiply-add is a function call.
std::vector<Index> positions_to_spoil(Path path) {
  if (path == Path::portable) return {0, kFirst + 1, 511, 512, kLength - 1};
  return {0, 1, 63, 64, 65, 448, kFirst - 1, kFirst, kFirst + 1, 511, 512, 513, kLength - 2, kLength - 1};
}

TEST_P(Garbage, ANaNInAKeyShowsInTheRowsThatSeeIt) {
  const Result clean = run(problem_);
  for (const Index position : positions_to_spoil(path()))
    for (const Index kv_head : {0, 1}) {
      Problem p = problem_;
      p.kv.k.at(position, kv_head, position % 20) = NAN;
      const auto sees = [&](Index token, Index head) { return kFirst + token >= position && head / kGroup == kv_head; };
      EXPECT_TRUE(only_these_rows_are_spoilt(clean, run(p), sees, -1, true))
          << on(path()) << ", " << all_of(type()) << ", key " << position << " of KV head " << kv_head;
    }
}

TEST_P(Garbage, ANaNInAValueShowsInThatDimOfTheRowsThatSeeIt) {
  const Result clean = run(problem_);
  for (const Index position : positions_to_spoil(path()))
    for (const Index d : path() == Path::portable ? std::vector<Index>{0, 23} : std::vector<Index>{0, 15, 16, 23}) {
      Problem p = problem_;
      p.kv.v.at(position, 1, d) = NAN;
      const auto sees = [&](Index token, Index head) { return kFirst + token >= position && head / kGroup == 1; };
      EXPECT_TRUE(only_these_rows_are_spoilt(clean, run(p), sees, d, false))
          << on(path()) << ", " << all_of(type()) << ", value " << position << ", dim " << d;
    }
}

TEST_P(Garbage, AnInfiniteValueShowsAsInfinityOrNaN) {
  const Result clean = run(problem_);
  for (const Index position : {Index{3}, kFirst + 5, Index{512}}) {
    Problem p = problem_;
    p.kv.v.at(position, 0, 7) = -INFINITY;
    const Result spoilt = run(p);
    Result expected = clean;
    for (Index token = std::max<Index>(0, position - kFirst); token < kQueries; ++token)
      for (Index head = 0; head < kGroup; ++head) {
        EXPECT_FALSE(std::isfinite(spoilt.at(token, head, 7)));
        expected.out[static_cast<std::size_t>((token * kHeads + head) * 24 + 7)] = spoilt.at(token, head, 7);
      }
    EXPECT_TRUE(same_bits(expected, spoilt)) << on(path()) << ", " << all_of(type()) << ", value " << position;
  }
}

TEST_P(Garbage, ANaNInAQueryShowsInItsRowAlone) {
  const Result clean = run(problem_);
  for (const Index token : {Index{0}, Index{32}, kQueries - 1})
    for (const Index head : {1, 2}) {
      Problem p = problem_;
      p.q.at(token, head, 19) = NAN;
      const auto sees = [&](Index t, Index h) { return t == token && h == head; };
      EXPECT_TRUE(only_these_rows_are_spoilt(clean, run(p), sees, -1, true))
          << on(path()) << ", " << all_of(type()) << ", query " << token << ", head " << head;
    }
}

// A window hides the beginning of the cache from everyone, and parts of blocks from some.
TEST_P(Garbage, NothingHiddenByAWindowReachesARow) {
  for (const Index window : {1, 20, 64, 100}) {
    const CausalWindow variant{window};
    const Result clean = run(problem_, variant);
    for (const float poison : {NAN, INFINITY, -INFINITY}) {
      Problem p = problem_;
      for (Index t = 0; t <= kFirst - window; ++t)
        for (Index h = 0; h < kKvHeads; ++h) {
          p.kv.k.at(t, h, t % 20) = poison;
          p.kv.v.at(t, h, t % 24) = poison;
        }
      EXPECT_TRUE(same_bits(clean, run(p, variant)))
          << on(path()) << ", " << all_of(type()) << ", window " << window << ", " << poison;
    }
    for (const Index position : {kFirst - window + 1, kFirst, Index{511}, Index{512}}) {
      Problem p = problem_;
      p.kv.k.at(position, 0, 3) = NAN;
      p.kv.v.at(position, 0, 3) = NAN;
      const auto sees = [&](Index token, Index head) {
        return kFirst + token >= position && kFirst + token < position + window && head / kGroup == 0;
      };
      EXPECT_TRUE(only_these_rows_are_spoilt(clean, run(p, variant), sees, -1, true))
          << on(path()) << ", " << all_of(type()) << ", window " << window << ", position " << position;
    }
  }
}

// A user's mask hides single tokens inside blocks, from some heads and not from others.
TEST_P(Garbage, NothingHiddenByAMaskReachesARow) {
  const Sieve sieve;
  const Result clean = run(problem_, sieve);
  for (const Index position : {Index{0}, Index{100}, kFirst + 3, Index{511}, Index{512}}) {
    Problem p = problem_;
    p.kv.v.at(position, 1, 5) = NAN;
    const auto sees = [&](Index token, Index head) {
      return head / kGroup == 1 && kFirst + token >= position && sieve.is_visible(kFirst + token, position, head);
    };
    EXPECT_TRUE(only_these_rows_are_spoilt(clean, run(p, sieve), sees, 5, false))
        << on(path()) << ", " << all_of(type()) << ", value " << position;
    p = problem_;
    p.kv.k.at(position, 1, 5) = NAN;
    EXPECT_TRUE(only_these_rows_are_spoilt(clean, run(p, sieve), sees, -1, true))
        << on(path()) << ", " << all_of(type()) << ", key " << position;
  }
}

// Few rows, whose hidden values are looked at when outputs are no finite numbers: streams of one head, and heads side by side.
TEST_P(Garbage, NothingHiddenReachesAFewRows) {
  const Sieve sieve;
  const Types types = all_of(type());
  const How how{path(), types.out};
  for (const Index queries : {1, 3}) {
    const Problem p = make_problem({kHeads, kKvHeads, 20, 24, queries, kLength}, 133);
    const Index first = kLength - queries;
    const Tensor q(p.q, types.q);
    for (const Place& place : {contiguous_place(), contiguous_place(CacheLayout::head_major), paged_place(16)}) {
      const auto solved = [&](const Problem& of) {
        const StoredCaches kv = store_cache(of.kv, types.k, types.v, place);
        return attend(q.const_view(), kv.view(), how, sieve);
      };
      const Result clean = solved(p);
      for (const float poison : {NAN, INFINITY}) {
        Problem everywhere = p;  // what no row sees, in every block
        for (Index t = 0; t < kLength; ++t)
          for (Index h = 0; h < kKvHeads; ++h) {
            bool seen = false;
            for (Index i = 0; i < queries * kGroup; ++i)
              seen = seen || sieve.is_visible(first + i / kGroup, t, h * kGroup + i % kGroup);
            if (!seen) everywhere.kv.v.at(t, h, t % 24) = poison;
          }
        EXPECT_TRUE(same_bits(clean, solved(everywhere)))
            << on(path()) << ", " << types << ", " << place.name() << ", " << queries << " queries, " << poison;
      }
      for (const Index position : {Index{0}, Index{70}, Index{511}, kLength - 2}) {  // what some rows see
        Problem some = p;
        some.kv.v.at(position, 1, 5) = NAN;
        const auto sees = [&](Index token, Index head) {
          return head / kGroup == 1 && first + token >= position && sieve.is_visible(first + token, position, head);
        };
        EXPECT_TRUE(only_these_rows_are_spoilt(clean, solved(some), sees, 5, false))
            << on(path()) << ", " << types << ", " << place.name() << ", " << queries << " queries, value " << position;
      }
    }
  }
}

TEST_P(Garbage, NothingOfAnotherDocumentReachesARow) {
  const PackedDocuments documents{100};
  const Result clean = run(problem_, documents);
  for (const Index position : {Index{399}, Index{482}, Index{499}, Index{500}, Index{511}, Index{512}}) {
    Problem p = problem_;
    for (Index h = 0; h < kKvHeads; ++h) p.kv.v.at(position, h, 9) = p.kv.k.at(position, h, 9) = INFINITY;
    p.kv.k.at(position, 0, 9) = p.kv.k.at(position, 1, 9) = NAN;
    const auto sees = [&](Index token, Index) {
      return kFirst + token >= position && (kFirst + token) / 100 == position / 100;
    };
    EXPECT_TRUE(only_these_rows_are_spoilt(clean, run(p, documents), sees, -1, true))
        << on(path()) << ", " << all_of(type()) << ", position " << position;
  }
}

// Queries far apart in one call: what lies between their windows is seen by none of them.
TEST_P(Garbage, NothingBetweenTheQueriesReachesARow) {
  const std::vector<Index> at = {30, 31, 300, 560};
  const Problem p = make_problem({kHeads, kKvHeads, 16, 16, 4, kLength}, 132);
  Problem poisoned = p;
  for (Index t = 0; t < kLength; ++t) {
    bool seen = false;
    for (const Index position : at) seen = seen || (t <= position && t > position - 10);
    for (Index h = 0; h < kKvHeads && !seen; ++h)
      for (Index d = 0; d < 16; ++d) poisoned.kv.k.at(t, h, d) = poisoned.kv.v.at(t, h, d) = NAN;
  }
  const Types types = all_of(type());
  const Tensor q(p.q, types.q);
  const How how{path(), types.out};
  const StoredCaches clean = store_cache(p.kv, types.k, types.v, {});
  const Result expected = attend(q.const_view(), clean.view(), how, CausalWindow{10}, at);
  for (const Place& place : {contiguous_place(), paged_place(16), contiguous_place(CacheLayout::head_major)}) {
    const StoredCaches kv = store_cache(poisoned.kv, types.k, types.v, place);
    EXPECT_TRUE(same_bits(expected, attend(q.const_view(), kv.view(), how, CausalWindow{10}, at)))
        << on(path()) << ", " << types << ", " << place.name();
  }
  // Nor are the table's entries of those pages looked at.
  const StoredCaches kv = store_cache(poisoned.kv, types.k, types.v, paged_place(16));
  KvCacheView view = kv.view();
  std::vector<std::int32_t> table(view.page_table, view.page_table + view.page_table_size);
  for (std::size_t page = 3; page < 18; ++page) table[page] = -1;  // positions 48 … 287: between 31 and 291
  view.page_table = table.data();
  EXPECT_TRUE(same_bits(expected, attend(q.const_view(), view, how, CausalWindow{10}, at)))
      << on(path()) << ", " << types << ", pages between that are gone";
}

// Finite as stored, infinite once rounded to bf16: under a mask it is garbage like any other.
TEST_P(Garbage, AValueThatRoundsToInfinityReachesNoRowThatDoesNotSeeIt) {
  How how{path()};
  how.products = Products::bf16;
  const Types types = cache_of(type());
  const auto run_rounded = [&](const Problem& p) {
    const Tensor q(p.q, types.q);
    const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
    return attend(q.const_view(), kv.view(), how);
  };
  const Result clean = run_rounded(problem_);
  for (const Index position : {kFirst + 3, Index{512}}) {
    Problem p = problem_;
    p.kv.v.at(position, 1, 17) = 3.4e38f;
    const Result spoilt = run_rounded(p);
    Result expected = clean;
    for (Index token = position - kFirst; token < kQueries; ++token)
      for (Index head = kGroup; head < kHeads; ++head)
        expected.out[static_cast<std::size_t>((token * kHeads + head) * 24 + 17)] = spoilt.at(token, head, 17);
    EXPECT_TRUE(same_bits(expected, spoilt)) << on(path()) << ", " << types << ", value " << position;
  }
}

// The row of everything: all garbage at once, in storage that is garbage wherever it is not in use.
TEST_P(Garbage, PastTheLengthAndInUnusedPagesNothingIsRead) {
  const Types types = all_of(type());
  const Tensor q(problem_.q, types.q);
  const How how{path(), types.out};
  const Result expected = run(problem_);
  for (const Place& place : {contiguous_place(CacheLayout::token_major, kLength + 200),
                             contiguous_place(CacheLayout::head_major, kLength + 1), paged_place(7), paged_place(1000),
                             ring_place(kLength + 99)}) {
    const StoredCaches kv = store_cache(problem_.kv, types.k, types.v, place);
    EXPECT_TRUE(same_bits(expected, attend(q.const_view(), kv.view(), how)))
        << on(path()) << ", " << types << ", " << place.name();
    // Cut in the middle of a block: the tokens behind the cut are no garbage, but hidden all the same.
    const Index cut = kFirst + 11;
    EXPECT_TRUE(
        same_bits(expected.slice(0, 11), attend(q.const_view().slice(0, 11), first_tokens(kv.view(), cut), how)))
        << on(path()) << ", " << types << ", " << place.name() << ", cut";
  }
}

TEST_P(Garbage, ARowThatSeesNothingIsZeroAndMinusInfinity) {
  const Types types = all_of(type());
  const How how{path(), types.out};
  Problem p = problem_;
  p.kv.k.at(1, 0, 0) = NAN;  // visible to nobody below
  p.kv.v.at(1, 0, 0) = NAN;
  const auto is_empty = [](const Result& r, Index token) {
    for (Index h = 0; h < r.heads; ++h) {
      if (r.lse_at(token, h) != -INFINITY) return false;
      for (Index d = 0; d < r.dim; ++d)
        if (r.at(token, h, d) != 0.0f) return false;
    }
    return true;
  };
  const Tensor q(p.q, types.q);
  const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
  // An empty cache.
  const Result nothing = attend(q.const_view().slice(0, 2), first_tokens(kv.view(), 0), how);
  EXPECT_TRUE(is_empty(nothing, 0) && is_empty(nothing, 1)) << on(path()) << ", " << types;
  // A variant that shows nothing to some tokens, beside others that see a lot.
  const Result half = attend(q.const_view().slice(0, 8), kv.view(), how, StrictlyBeforeOdd{});
  for (Index token = 0; token < 8; ++token)
    EXPECT_EQ(is_empty(half, token), (kLength - 8 + token) % 2 == 0)
        << on(path()) << ", " << types << ", token " << token;
  // More queries than tokens: the first of them stand before the beginning.
  const Result early = attend(q.const_view().slice(0, 3), first_tokens(kv.view(), 1), how);
  EXPECT_TRUE(is_empty(early, 0) && is_empty(early, 1) && !is_empty(early, 2)) << on(path()) << ", " << types;
}

INSTANTIATE_TEST_SUITE_P(EveryPath, Garbage, Garbage::cases(), Garbage::name);

}  // namespace
}  // namespace gqa::test
