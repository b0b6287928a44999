// SPDX-License-Identifier: Apache-2.0
// One prefill = any chunking of it = token by token, for lengths around every block and span boundary.
#include <gtest/gtest.h>

#include <set>

#include "support/problem.hpp"

namespace gqa::test {
namespace {

/// A prompt in a cache, and calls on parts of it.
class Prompt {
 public:
  Prompt(const Shape& shape, const Types& types, Path path, std::uint64_t seed)
      : problem_(make_problem(shape, seed, Distribution::sinks)),
        q_(problem_.q, types.q),
        kv_(store_cache(problem_.kv, types.k, types.v, {})),
        how_{path, types.out} {}

  Index length() const { return problem_.shape.n_kv; }

  /// The rows of tokens [first, first + count), from a cache that ends with them.
  template <class V = Causal>
  Result chunk(Index first, Index count, const V& variant = {}) const {
    return attend(q_.const_view().slice(first, count), first_tokens(kv_.view(), first + count), how_, variant);
  }

  /// The whole prompt in chunks of the given lengths, the last of which is repeated.
  Result in_chunks(const std::vector<Index>& lengths) const {
    Result all;
    std::size_t next = 0;
    for (Index done = 0; done < length();) {
      const Index count = std::min(lengths[std::min(next++, lengths.size() - 1)], length() - done);
      all.append(chunk(done, count));
      done += count;
    }
    return all;
  }

 private:
  Problem problem_;
  Tensor q_;
  StoredCaches kv_;
  How how_;
};

/// Lengths on both sides of every kind of boundary.
std::vector<Index> lengths_to_try(Path path) {
  constexpr Index block = detail::kBlock;
  constexpr Index span = detail::kSpan;
  std::vector<Index> lengths{1, 15, 16, 17, block - 1, block, block + 1, 2 * block - 1, 2 * block, 2 * block + 1,
                             span - 1, span, span + 1};
  // The longer ones take a second each where a fused multiply-add is a function call.
  if (path != Path::portable) lengths.insert(lengths.end(), {2 * span - 1, 2 * span, 2 * span + 1, 1100});
  return lengths;
}

/// Tokens to decode alone: all of them on fast paths; else those near a block boundary and a few others.
std::vector<Index> tokens_to_decode(Path path, Index length) {
  std::vector<Index> tokens;
  for (Index t = 0; t < length; ++t) {
    const Index in_block = t % detail::kBlock;
    if (path != Path::portable || t + 1 == length || in_block <= 1 || in_block == detail::kBlock - 1 || t % 37 == 5)
      tokens.push_back(t);
  }
  return tokens;
}

class Chunking : public PerPathAndType {};

TEST_P(Chunking, TokenByTokenIsOnePrefill) {
  for (const Index length : lengths_to_try(path())) {
    const Shape shape{2, 1, 8, 8, length, length};
    const Types types = all_of(type());
    SCOPED_TRACE(describe(on(path()), types, shape));
    const Prompt prompt(shape, types, path(), 21);
    const Result whole = prompt.chunk(0, length);
    for (const Index token : tokens_to_decode(path(), length))
      ASSERT_TRUE(same_bits(whole.slice(token, 1), prompt.chunk(token, 1))) << "token " << token << " decoded alone";
  }
}

TEST_P(Chunking, ChunksOfAnySizeAreOnePrefill) {
  const std::vector<std::vector<Index>> chunkings = {
      {7}, {16}, {detail::kBlock}, {100}, {detail::kSpan}, {1, 300, 1, 2, 130, 64}};
  for (const Index length : lengths_to_try(path())) {
    const Shape shape{3, 1, 24, 8, length, length};
    const Types types = cache_of(type());
    SCOPED_TRACE(describe(on(path()), types, shape));
    const Prompt prompt(shape, types, path(), 22);
    const Result whole = prompt.chunk(0, length);
    for (const std::vector<Index>& lengths : chunkings) {
      if (path() == Path::portable && length > 130 && lengths.front() < 100 && lengths.size() == 1) continue;
      EXPECT_TRUE(same_bits(whole, prompt.in_chunks(lengths))) << "in chunks of " << testing::PrintToString(lengths);
    }
  }
}

// Prefill runs its tiles over several spans and merges as it goes; decode runs the spans as tasks of their own and merges at the
// end. Here both happen.
TEST_P(Chunking, DecodeOverManySpansIsTheLastRowOfAPrefill) {
  constexpr Index length = 3 * detail::kSpan + 77;
  static_assert(length > 3 * detail::kSpan, "several spans must be crossed");
  const Shape shape{4, 2, 16, 24, length, length};
  const Index chunk = 70;
  ASSERT_GT(chunk * shape.query_heads / shape.kv_heads, detail::kTileRows) << "the chunk must fill more than a tile";
  for (const Types& types : {cache_of(type()), all_of(type())}) {
    SCOPED_TRACE(describe(on(path()), types, shape));
    const Prompt prompt(shape, types, path(), 23);
    const Result last = prompt.chunk(length - chunk, chunk);
    for (const Index back : {1, 2, 33, 64, 70})
      EXPECT_TRUE(same_bits(last.slice(chunk - back, 1), prompt.chunk(length - back, 1))) << back << " from the end";
    EXPECT_TRUE(same_bits(last.slice(chunk - 5, 5), prompt.chunk(length - 5, 5))) << "five tokens to verify";
    if (path() != Path::portable) {
      EXPECT_TRUE(same_bits(prompt.chunk(0, length).slice(length - chunk, chunk), last)) << "one prefill";
    }
  }
}

TEST_P(Chunking, HoldsForWindowsThatCutBlocksAndSpans) {
  constexpr Index length = detail::kSpan + 150;
  for (const Index window : {Index{1}, Index{63}, Index{64}, Index{65}, Index{300}, detail::kSpan, detail::kSpan + 1}) {
    const CausalWindow variant{window};
    const Shape shape{2, 1, 16, 8, length, length};
    const Types types = cache_of(type());
    SCOPED_TRACE(describe(on(path()), types, shape, "window " + std::to_string(window)));
    const Prompt prompt(shape, types, path(), 24);
    const Index first = path() == Path::portable ? length - 140 : 0;
    const Result whole = prompt.chunk(first, length - first, variant);
    for (const Index token : tokens_to_decode(path(), length))
      if (token >= first) {
        ASSERT_TRUE(same_bits(whole.slice(token - first, 1), prompt.chunk(token, 1, variant)))
            << "token " << token << " decoded alone";
      }
  }
}

// What a query computes does not depend on how far the cache has grown past it, if the variant does not show it that.
TEST_P(Chunking, TokensAppendedLaterChangeNothing) {
  constexpr Index length = 2 * detail::kSpan + 40;
  const Shape shape{4, 2, 16, 16, 6, length};
  const Types types = cache_of(type());
  SCOPED_TRACE(describe(on(path()), types, shape));
  const Problem p = make_problem(shape, 25);
  const Tensor q(p.q, types.q);
  const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
  const std::vector<Index> positions = {3, 63, 64, 500, 511, 700};
  const Result together = attend(q.const_view(), kv.view(), {path()}, Causal{}, positions);
  for (std::size_t i = 0; i < positions.size(); ++i) {
    const auto token = static_cast<Index>(i);
    EXPECT_TRUE(same_bits(together.slice(token, 1),
                          attend(q.const_view().slice(token, 1), first_tokens(kv.view(), positions[i] + 1), {path()})))
        << "position " << positions[i];
  }
}

INSTANTIATE_TEST_SUITE_P(EveryPath, Chunking, Chunking::cases(), Chunking::name);

}  // namespace
}  // namespace gqa::test
