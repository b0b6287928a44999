// SPDX-License-Identifier: Apache-2.0
// The promises about results over caches of every codec, on every path: the same bits whatever the chunks, the company, the storage, the
// threads and the grouping. Garbage in slots and pages that no token is in: quantised_cache_test.cpp.
#include "support/every_codec.hpp"
#include "support/executors.hpp"
#include "support/quantised.hpp"

namespace gqa::test {
namespace {

using Attention = GroupedQueryAttention<dynamic, dynamic, dynamic, dynamic, EveryCache>;

/// Queries of every token of a sequence, packed (token, head, dim).
struct Queries {
  Index heads, dim;
  std::vector<float> values;
  Queries(const Case& c, Random& random)
      : heads(c.group * c.kv_heads),
        dim(c.head_dim),
        values(static_cast<std::size_t>(c.length * c.group * c.kv_heads * c.head_dim)) {
    for (float& x : values) x = random.normal();
  }
  ConstTensorView of(Index first, Index count) const {
    return ConstTensorView(values.data() + first * heads * dim, count, heads, dim);
  }
};

class CodecPromises : public PerCodecAndPath {
 protected:
  const KvEncoding& format() const { return codec().format; }

  template <class V = Causal>
  Result call(const ConstTensorView& q, const KvCacheView& kv, const V& variant = {}) const {
    return attend(q, kv, How{.path = path()}, variant, {}, Attention());
  }
  ContiguousKvCache filled(const Case& c, const Rows& rows, KvLayout layout = KvLayout::head_major) const {
    ContiguousKvCache cache(config_of(c, format(), format(), layout, c.length));
    cache.append(rows.k, rows.v);
    return cache;
  }
};

TEST_P(CodecPromises, TokenByTokenAndInChunksIsOnePrefill) {
  Random random(31);
  for (const Case& c : {Case{2, 1, 64, 32, 0, 147}, Case{3, 1, 128, 128, 0, 70}}) {
    const Rows rows(c, random);
    const Queries q(c, random);
    const ContiguousKvCache cache = filled(c, rows);
    const Result whole = call(q.of(0, c.length), cache.view());
    for (const Index chunk : {1, 3, 13, 64}) {
      Result all;
      for (Index done = 0; done < c.length; done += chunk) {
        const Index count = std::min(chunk, c.length - done);
        all.append(call(q.of(done, count), first_tokens(cache.view(), done + count)));
      }
      ASSERT_TRUE(same_bits(whole, all)) << "chunks of " << chunk;
    }
  }
}

TEST_P(CodecPromises, EveryStorageAndTypeOfCallIsTheSame) {
  Random random(32);
  const Case c{4, 2, 64, 64, 3, detail::kSpan + 75};
  const Rows rows(c, random);
  const Queries q(c, random);
  const ConstTensorView queries = q.of(c.length - c.n_q, c.n_q);
  const Result expected = call(queries, filled(c, rows).view());
  EXPECT_TRUE(same_bits(expected, call(queries, filled(c, rows, KvLayout::token_major).view())));
  for (const KvLayout layout : {KvLayout::head_major, KvLayout::token_major}) {
    RingKvCache ring(config_of(c, format(), format(), layout, c.length + 5));
    ring.append(rows.k, rows.v);  // goes around
    const Rows again(c, random);
    ring.append(again.k, again.v);
    ContiguousKvCache twice(config_of(c, format(), format(), layout, 2 * c.length));
    twice.append(rows.k, rows.v);
    twice.append(again.k, again.v);
    const CausalWindow window{c.length};
    EXPECT_TRUE(same_bits(call(queries, twice.view(), window), call(queries, ring.view(), window)));
    for (const Index page_size : {7, 16, 64}) {
      PagedKvPool pool(pool_of({c.group, c.kv_heads, c.head_dim, c.value_dim, 0, 2 * c.length}, format(), format(),
                               layout, page_size));
      PagedSequence sequence = pool.sequence();
      PagedSequence other = pool.sequence();  // takes every second page
      const auto row = [&](const std::vector<float>& all, Index first, Index count, Index dim) {
        return ConstTensorView(all.data() + first * c.kv_heads * dim, count, c.kv_heads, dim);
      };
      for (Index done = 0; done < c.length; done += page_size) {
        const Index count = std::min(page_size, c.length - done);
        for (PagedSequence* each : {&sequence, &other})
          each->append(row(rows.k, done, count, c.head_dim), row(rows.v, done, count, c.value_dim));
      }
      EXPECT_TRUE(same_bits(expected, call(queries, sequence.view()))) << "pages of " << page_size;
    }
  }
}

TEST_P(CodecPromises, GroupingIsMultiHeadAttentionOverRepeatedHeads) {
  Random random(33);
  for (const Case& c : {Case{1, 2, 32, 32, 3, 80}, Case{4, 2, 128, 128, 1, 200}, Case{5, 2, 64, 32, 2, 131},
                        Case{7, 1, 32, 64, 4, 70}, Case{16, 1, 64, 64, 1, 90}, Case{29, 1, 32, 32, 2, 66}}) {
    const Rows rows(c, random);
    const Queries q(c, random);
    const ContiguousKvCache cache = filled(c, rows);
    const ConstTensorView all = q.of(c.length - c.n_q, c.n_q);
    const Result grouped = call(all, cache.view());
    for (Index head = 0; head < q.heads; ++head) {
      ConstTensorView one = all;
      one.data = static_cast<const float*>(all.data) + head * c.head_dim;
      one.heads = 1;
      const Result alone = call(one, cache.view().slice_heads(head / c.group, 1));
      for (Index t = 0; t < c.n_q; ++t) {
        ASSERT_TRUE(same_value(alone.lse_at(t, 0), grouped.lse_at(t, head)));
        for (Index d = 0; d < c.value_dim; ++d)
          ASSERT_TRUE(same_value(alone.at(t, 0, d), grouped.at(t, head, d)))
              << describe(c) << ": head " << head << ", token " << t << ", dim " << d;
      }
    }
  }
}

TEST_P(CodecPromises, ThreadsAndTheOrderOfTasksChangeNothing) {
  Random random(34);
  const Case c{4, 2, 64, 64, 2, 3 * detail::kSpan + 11};
  const Rows rows(c, random);
  const Queries q(c, random);
  const ContiguousKvCache cache = filled(c, rows);
  const ConstTensorView queries = q.of(c.length - c.n_q, c.n_q);
  const Result expected = call(queries, cache.view());
  const auto with = [&](auto&& executor) {
    How how{.path = path()};
    how.executor = executor;
    return attend(queries, cache.view(), how, Causal{}, {}, Attention());
  };
  EXPECT_TRUE(same_bits(expected, with(ThreadsExecutor{3})));
  ShuffledExecutor shuffled{.seed = 5, .pretended_concurrency = 4};
  EXPECT_TRUE(same_bits(expected, with(shuffled)));
  BackwardExecutor backward;
  EXPECT_TRUE(same_bits(expected, with(backward)));
}

// Of this codec, of another one and of f32, in one call.
TEST_P(CodecPromises, ABatchIsItsSequencesAlone) {
  Random random(35);
  const Case shapes[] = {{2, 2, 64, 32, 1, 300}, {2, 2, 64, 32, 40, 70}, {2, 2, 64, 32, 0, 9}, {2, 2, 64, 32, 3, 64}};
  const KvEncoding encodings[] = {format(), other().format, KvEncoding(ElementType::f32), format()};
  std::vector<ContiguousKvCache> caches;
  std::vector<Queries> queries;
  for (std::size_t i = 0; i < std::size(shapes); ++i) {
    const Rows rows(shapes[i], random);
    queries.emplace_back(shapes[i], random);
    caches.emplace_back(config_of(shapes[i], encodings[i], format(), KvLayout::token_major, shapes[i].length));
    caches.back().append(rows.k, rows.v);
  }
  std::vector<Output> outputs;
  for (const Case& c : shapes) outputs.emplace_back(ElementType::f32, c.n_q, 4, c.value_dim);
  std::vector<Sequence> batch;
  const auto queries_of = [&](std::size_t i) { return queries[i].of(shapes[i].length - shapes[i].n_q, shapes[i].n_q); };
  for (const std::size_t i : {2u, 0u, 3u, 1u})
    batch.push_back({queries_of(i), caches[i].view(), outputs[i].view(), {}, outputs[i].lse()});
  Attention{}(batch, Causal{}, How{.path = path()}.options());
  for (std::size_t i = 0; i < std::size(shapes); ++i)
    EXPECT_TRUE(same_bits(call(queries_of(i), caches[i].view()), outputs[i].result())) << "sequence " << i;
}

// What a window hides may be rows that stand for NaN, whatever scales and codes say so.
TEST_P(CodecPromises, NothingHiddenReachesARow) {
  Random random(36);
  const Case c{3, 1, 64, 64, 5, 150};
  Rows rows(c, random);
  const Queries q(c, random);
  const CausalWindow window{20};
  const ConstTensorView queries = q.of(c.length - c.n_q, c.n_q);
  const Result expected = call(queries, filled(c, rows).view(), window);
  const Index hidden =
      c.length - c.n_q - window.window + 1;  // tokens before it are seen by nobody, that one by the first query alone
  for (std::vector<float>* each : {&rows.k, &rows.v})
    for (Index i = 0; i < hidden * 64; ++i) (*each)[static_cast<std::size_t>(i)] = std::nanf("");
  EXPECT_TRUE(same_bits(expected, call(queries, filled(c, rows).view(), window)));
  rows.v[static_cast<std::size_t>(hidden * 64)] = std::nanf("");
  const Result seen = call(queries, filled(c, rows).view(), window);
  for (Index t = 0; t < c.n_q; ++t)
    for (Index head = 0; head < 3; ++head) EXPECT_EQ(std::isnan(seen.at(t, head, 0)), t == 0) << t;
  EXPECT_TRUE(same_bits(expected.slice(1, c.n_q - 1), seen.slice(1, c.n_q - 1)));
}

INSTANTIATE_TEST_SUITE_P(Codecs, CodecPromises, CodecPromises::cases(), CodecPromises::name);

/// A test for each codec.
class CodecPaths : public testing::TestWithParam<std::size_t> {};

TEST_P(CodecPaths, OfF32ArithmeticHaveTheSameBits) {
  report_paths_not_run();
  const KvEncoding& format = tested_codecs()[GetParam()].format;
  Random random(37);
  for (const Case& c : {Case{4, 2, 128, 128, 1, 600}, Case{1, 2, 64, 32, 3, 90}, Case{3, 1, 128, 128, 30, 70}}) {
    const Rows rows(c, random);
    const Queries q(c, random);
    ContiguousKvCache cache(config_of(c, format, format, KvLayout::head_major, c.length));
    cache.append(rows.k, rows.v);
    const auto on_path = [&](Path path) {
      return attend(q.of(c.length - c.n_q, c.n_q), cache.view(), How{.path = path}, Causal{}, {}, Attention());
    };
    const Result expected = on_path(Path::portable);
    for (const Path path : f32_paths()) EXPECT_TRUE(same_bits(expected, on_path(path))) << describe(c, on(path));
  }
}

INSTANTIATE_TEST_SUITE_P(Codecs, CodecPaths, testing::Range(std::size_t{0}, tested_codecs().size()),
                         [](const auto& codec) { return std::string(tested_codecs()[codec.param].name); });

}  // namespace
}  // namespace gqa::test
