// SPDX-License-Identifier: Apache-2.0
// The variants that the library ships, alone and composed: each held to the definition, in which it is written again in its own way, pair by
// pair; and the same bits token by token, in chunks and in pages.
#include "gqa/variants.hpp"

#include <gtest/gtest.h>

#include <functional>

#include "support/paths.hpp"
#include "support/problem.hpp"
#include "support/reference_check.hpp"

namespace gqa::test {
namespace {

/// A variant as its paper has it: what a row sees, key by key, and its scores, in double until they are handed on.
struct Written {
  std::function<bool(const RowContext&, Index key)> visible;
  std::function<double(double score, const RowContext&, Index key)> scored;
  std::function<double(Index head)> sink_of;

  Written(decltype(visible) sees, decltype(scored) changes = nullptr, decltype(sink_of) has = nullptr)
      : visible(std::move(sees)), scored(std::move(changes)), sink_of(std::move(has)) {}
  PositionRange visible_range(Index, Index kv_length) const { return {0, kv_length}; }
  bool is_visible(const RowContext& row, Index key) const { return visible(row, key); }
  float score(float s, const RowContext& row, Index key) const {
    return scored ? static_cast<float>(scored(static_cast<double>(s), row, key)) : s;
  }
  float sink(const RowContext& row) const { return sink_of ? static_cast<float>(sink_of(row.query_head)) : -INFINITY; }
};

constexpr Index kHeads = 4;
constexpr Index kQueries = 40;
constexpr Index kLength = 300;
constexpr Index kFirst = kLength - kQueries;  // position of query token 0

bool causal(const RowContext& row, Index key) { return key <= row.position; }

class Shipped : public PerPathAndType {
 protected:
  Shipped() : random_(171) {
    for (float& x : bias_) x = random_.normal();
    for (std::size_t i = 0; i < flags_.size(); ++i)
      flags_[i] = static_cast<std::uint8_t>(random_.below(3) == 0 ? 1 + random_.below(255) : 0);
    for (float& x : sinks_) x = random_.normal();
    Alibi::fill_slopes(slopes_);
  }

  template <class V>
  void hold(const V& variant, const Written& written, const char* name) const {
    const Types types = cache_of(type());
    const Problem p = make_problem({kHeads, 2, 24, 16, kQueries, kLength}, 172);
    SCOPED_TRACE(describe(on(path()), types, p.shape, name));
    const Tensor q(p.q, types.q);
    const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
    const Result whole = attend(q.const_view(), kv.view(), {path()}, variant);
    EXPECT_TRUE(within_bound(q.const_view(), kv.view(), {path()}, written, whole));
    const StoredCaches paged = store_cache(p.kv, types.k, types.v, paged_place(7));
    EXPECT_TRUE(same_bits(whole, attend(q.const_view(), paged.view(), {path()}, variant))) << "paged";
  }
  /// The same, and token by token: for variants that do not look at a query's place in its call.
  template <class V>
  void hold_by_position(const V& variant, const Written& written, const char* name) const {
    hold(variant, written, name);
    const Types types = cache_of(type());
    const Problem p = make_problem({kHeads, 2, 24, 16, kQueries, kLength}, 172);
    const Tensor q(p.q, types.q);
    const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
    const Result whole = attend(q.const_view(), kv.view(), {path()}, variant);
    for (const Index token : {0, 1, 17, 39}) {
      const Index position[] = {kFirst + token};
      ASSERT_TRUE(same_bits(whole.slice(token, 1),
                            attend(q.const_view().slice(token, 1), kv.view(), {path()}, variant, position)))
          << name << ", token " << token << " alone";
    }
  }

  BroadcastView<float> biases() const { return {bias_.data(), 1, kHeads, kQueries, kLength}; }
  BroadcastView<std::uint8_t> flags() const { return {flags_.data(), 1, 1, kQueries, kLength}; }
  double bias(const RowContext& row, Index key) const {
    return static_cast<double>(
        bias_[static_cast<std::size_t>((row.query_head * kQueries + row.query) * kLength + key)]);
  }
  bool flag(const RowContext& row, Index key) const {
    return flags_[static_cast<std::size_t>(row.query * kLength + key)] != 0;
  }

  Random random_;
  std::vector<float> bias_ = std::vector<float>(kHeads * kQueries * kLength);
  std::vector<std::uint8_t> flags_ = std::vector<std::uint8_t>(kQueries * kLength);
  std::vector<float> sinks_ = std::vector<float>(kHeads);
  std::vector<float> slopes_ = std::vector<float>(kHeads);
};

TEST_P(Shipped, TwoSidedWindow) {
  for (const auto& [before, after] :
       {std::pair<Index, Index>{20, 3}, {0, 0}, {128, 128}, {Index{1} << 62, Index{1} << 62}})
    hold(TwoSidedWindow{before, after}, Written([&, b = before, a = after](const RowContext& row, Index key) {
           return key >= row.position - b && key - row.position <= a;
         }),
         "two-sided window");
}

TEST_P(Shipped, PrefixLm) {
  for (const Index prefix : {Index{0}, Index{100}, kFirst + 10, kLength, kLength + 50})
    hold(PrefixLm{prefix}, Written([&](const RowContext& row, Index key) {
           return key <= row.position || (key < prefix && row.position < prefix);
         }),
         "prefix");
}

TEST_P(Shipped, FirstTokensAndWindow) {
  for (const Index window : {1, 30, 290})
    hold_by_position(FirstTokensAndWindow{4, window}, Written([&](const RowContext& row, Index key) {
                       return causal(row, key) && (key < 4 || key > row.position - window);
                     }),
                     "first tokens and window");
}

TEST_P(Shipped, ChunkedLocal) {
  for (const Index chunk : {1, 16, 100, 1000})
    hold_by_position(ChunkedLocal{chunk}, Written([&](const RowContext& row, Index key) {
                       return causal(row, key) && key / chunk == row.position / chunk;
                     }),
                     "chunks");
}

TEST_P(Shipped, CausalWithBlocks) {
  const PositionRange blocks[] = {{3, 9}, {kFirst + 2, kFirst + 11}, {kFirst + 30, kLength + 20}};
  hold(CausalWithBlocks{blocks}, Written([&](const RowContext& row, Index key) {
         for (const PositionRange& block : blocks)
           if (block.begin <= row.position && row.position < block.end && block.begin <= key && key < block.end)
             return true;
         return causal(row, key);
       }),
       "causal with blocks");
}

TEST_P(Shipped, PackedDocuments) {
  const Index offsets[] = {10, 100, 100, kFirst + 7, kFirst + 8, kLength};
  const auto document = [&](Index position) {
    Index found = -1;
    for (Index i = 0; i < 5; ++i)
      if (offsets[i] <= position && position < offsets[i + 1]) found = i;
    return found;
  };
  hold_by_position(PackedDocuments{offsets}, Written([&](const RowContext& row, Index key) {
                     return causal(row, key) && document(key) == document(row.position) && document(key) >= 0;
                   }),
                   "packed documents");
  hold(PackedDocuments{offsets, false}, Written([&](const RowContext& row, Index key) {
         return document(key) == document(row.position) && document(key) >= 0;
       }),
       "packed documents, two-sided");
}

TEST_P(Shipped, DilatedWindow) {
  for (const auto& [step, count] : {std::pair<Index, Index>{1, 12}, {7, 12}, {70, 3}, {3, Index{1} << 60}})
    hold_by_position(DilatedWindow{step, count}, Written([&, s = step, c = count](const RowContext& row, Index key) {
                       const Index back = row.position - key;
                       return back >= 0 && back % s == 0 && back / s < c;
                     }),
                     "dilated window");
}

TEST_P(Shipped, BooleanMask) {
  const Written written([&](const RowContext& row, Index key) { return flag(row, key); });
  hold(BooleanMask{flags()}, written, "boolean mask");
  std::vector<std::uint8_t> wide(2 * flags_.size());
  for (std::size_t i = 0; i < flags_.size(); ++i) wide[2 * i] = flags_[i];
  hold(BooleanMask{BroadcastView<std::uint8_t>(wide.data(), 1, 1, kQueries, kLength, {0, 0, 2 * kLength, 2})}, written,
       "boolean mask with strides");
  std::vector<std::uint8_t> of_keys(flags_.begin(), flags_.begin() + kLength);
  hold_by_position(compose(Causal{}, BooleanMask{BroadcastView<std::uint8_t>(of_keys.data(), 1, 1, 1, kLength)}),
                   Written([&](const RowContext& row, Index key) {
                     return causal(row, key) && of_keys[static_cast<std::size_t>(key)] != 0;
                   }),
                   "boolean mask for all rows");
}

TEST_P(Shipped, BlockSparse) {
  for (const Index key_block : {16, 30, 64, 100}) {
    constexpr Index query_block = 25;
    std::vector<Index> offsets = {0};
    std::vector<Index> keys;
    const auto listed = [&](Index query, Index key) { return (query * 5 + key * 3) % 4 == 1; };
    for (Index b = 0; b <= kLength / query_block; ++b) {
      for (Index k = 0; k <= kLength / key_block; ++k)
        if (listed(b, k)) keys.push_back(k);
      offsets.push_back(static_cast<Index>(keys.size()));
    }
    hold_by_position(compose(Causal{}, BlockSparse{query_block, key_block, offsets, keys}),
                     Written([&](const RowContext& row, Index key) {
                       return causal(row, key) && listed(row.position / query_block, key / key_block);
                     }),
                     "block-sparse");
  }
}

TEST_P(Shipped, DraftTree) {
  std::vector<std::int32_t> parents(kQueries);
  for (Index i = 0; i < kQueries; ++i)
    parents[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(random_.below(i + 1)) - 1;
  std::vector<std::uint64_t> ancestors(static_cast<std::size_t>(kQueries * DraftTree::words_a_node(kQueries)));
  DraftTree::fill_ancestors(parents, ancestors);
  hold(DraftTree{kFirst, parents, ancestors}, Written([&](const RowContext& row, Index key) {
         if (key < kFirst) return true;
         for (Index node = row.query; node >= 0; node = parents[static_cast<std::size_t>(node)])
           if (node == key - kFirst) return true;
         return false;
       }),
       "draft tree");
}

TEST_P(Shipped, SoftCap) {
  for (const float cap : {0.5f, 30.0f})
    hold_by_position(
        compose(Causal{}, SoftCap{cap}),
        Written(causal, [&](double s, const RowContext&,
                            Index) { return static_cast<double>(cap) * std::tanh(s / static_cast<double>(cap)); }),
        "soft cap");
}

TEST_P(Shipped, Alibi) {
  hold_by_position(compose(Causal{}, Alibi{slopes_}),
                   Written(causal,
                           [&](double s, const RowContext& row, Index key) {
                             return s - std::pow(2.0, -8.0 * static_cast<double>(row.query_head + 1) / kHeads) *
                                            static_cast<double>(row.position - key);
                           }),
                   "ALiBi");
}

TEST_P(Shipped, AdditiveBias) {
  hold(compose(Causal{}, AdditiveBias{biases()}),
       Written(causal, [&](double s, const RowContext& row, Index key) { return s + bias(row, key); }), "bias");
  std::vector<bf16> rounded;
  for (Index i = 0; i < kHeads * kLength; ++i) rounded.emplace_back(bias_[static_cast<std::size_t>(i)]);
  hold_by_position(compose(Causal{}, AdditiveBias{BroadcastView<bf16>(rounded.data(), 1, kHeads, 1, kLength)}),
                   Written(causal,
                           [&](double s, const RowContext& row, Index key) {
                             return s + static_cast<double>(static_cast<float>(
                                            rounded[static_cast<std::size_t>(row.query_head * kLength + key)]));
                           }),
                   "bf16 bias for all query tokens");
}

TEST_P(Shipped, DistanceBias) {
  // T5's decoder: causal buckets, as its code computes them.
  constexpr Index buckets = 32;
  std::vector<float> table(static_cast<std::size_t>(buckets * kHeads));
  for (float& x : table) x = random_.normal();
  for (const bool two_sided : {false, true}) {
    std::vector<float> bias(static_cast<std::size_t>(kHeads * (kLength + kQueries)));
    DistanceBias::fill_t5(table, kHeads, two_sided, buckets, 128, 1 - kQueries, kLength + kQueries, bias);
    const auto bucket = [&](Index relative) {  // key position − query position
      Index n = -relative, offset = 0, count = buckets;
      if (two_sided) {
        count /= 2;
        if (n < 0) offset = count;
        n = std::abs(n);
      } else {
        n = std::max<Index>(n, 0);
      }
      const Index exact = count / 2;
      if (n < exact) return offset + n;
      const double far = static_cast<double>(exact) + std::log(static_cast<double>(n) / static_cast<double>(exact)) /
                                                          std::log(128.0 / static_cast<double>(exact)) *
                                                          static_cast<double>(count - exact);
      return offset + std::min(static_cast<Index>(far), count - 1);
    };
    const DistanceBias part{bias, kLength + kQueries, 1 - kQueries};
    const auto scored = [&](double s, const RowContext& row, Index key) {
      return s +
             static_cast<double>(table[static_cast<std::size_t>(bucket(key - row.position) * kHeads + row.query_head)]);
    };
    if (two_sided)
      hold(compose(Full{}, part), Written([](const RowContext&, Index) { return true; }, scored), "T5 encoder");
    else hold(compose(Causal{}, part), Written(causal, scored), "T5 decoder");
  }
}

TEST_P(Shipped, HeadScaleAndTemperature) {
  const float scales[] = {1.0f, 0.5f, -2.0f, 1.25f};
  hold_by_position(compose(Causal{}, HeadScale{scales}),
                   Written(causal, [&](double s, const RowContext& row,
                                       Index) { return static_cast<double>(scales[row.query_head]) * s; }),
                   "a scale for each head");
  hold_by_position(
      compose(ChunkedLocal{128}, PositionTemperature{64, 0.1f}),
      Written([](const RowContext& row, Index key) { return causal(row, key) && key / 128 == row.position / 128; },
              [](double s, const RowContext& row, Index) {
                return s * (1.0 + 0.1 * std::log(std::floor(static_cast<double>(row.position + 1) / 64.0) + 1.0));
              }),
      "temperature");
}

TEST_P(Shipped, LearnedSinks) {
  const Written written(causal, nullptr,
                        [&](Index head) { return static_cast<double>(sinks_[static_cast<std::size_t>(head)]); });
  hold_by_position(compose(Causal{}, LearnedSinks{sinks_}), written, "sinks");
  // Left out of the log-sum-exp: that of causal attention, with the outputs of sinks.
  const Types types = cache_of(type());
  const Problem p = make_problem({kHeads, 2, 24, 16, 3, kLength}, 173);
  const Result plain = solve(p, types, {path()}, Causal{});
  const Result inside = solve(p, types, {path()}, compose(Causal{}, LearnedSinks{sinks_}));
  const Result outside = solve(p, types, {path()}, compose(Causal{}, LearnedSinks{sinks_, false}));
  EXPECT_EQ(outside.out, inside.out);
  EXPECT_EQ(outside.lse, plain.lse);
  EXPECT_NE(inside.lse, plain.lse);
}

TEST_P(Shipped, PairsAndMore) {
  // Gemma 2's, and what its window layers have.
  hold_by_position(
      compose(CausalWindow{100}, SoftCap{5.0f}),
      Written([](const RowContext& row, Index key) { return causal(row, key) && key > row.position - 100; },
              [](double s, const RowContext&, Index) { return 5.0 * std::tanh(s / 5.0); }),
      "window, soft cap");
  // gpt-oss: a window and sinks.
  hold_by_position(
      compose(CausalWindow{128}, LearnedSinks{sinks_}),
      Written([](const RowContext& row, Index key) { return causal(row, key) && key > row.position - 128; }, nullptr,
              [&](Index head) { return static_cast<double>(sinks_[static_cast<std::size_t>(head)]); }),
      "window, sinks");
  // Ranges, words, an order of scores, and a sink.
  const auto all = compose(Causal{}, FirstTokensAndWindow{4, 100}, SoftCap{3.0f}, AdditiveBias{biases()},
                           BooleanMask{flags()}, LearnedSinks{sinks_});
  hold(all,
       Written([&](const RowContext& row,
                   Index key) { return causal(row, key) && (key < 4 || key > row.position - 100) && flag(row, key); },
               [&](double s, const RowContext& row, Index key) { return 3.0 * std::tanh(s / 3.0) + bias(row, key); },
               [&](Index head) { return static_cast<double>(sinks_[static_cast<std::size_t>(head)]); }),
       "six parts");
  // The other order of scores.
  hold(compose(Causal{}, AdditiveBias{biases()}, SoftCap{3.0f}),
       Written(causal,
               [&](double s, const RowContext& row, Index key) { return 3.0 * std::tanh((s + bias(row, key)) / 3.0); }),
       "bias, then soft cap");
}

/// A user's parts of every other form.
struct OddKeys {
  bool is_visible(Index, Index key_position, Index) const { return key_position % 2 == 1; }
};
struct NearOrEarly {
  auto visible(const RowContext& row, auto k) const { return row.position - k < 50 || k < 100; }
};
struct PlusOne {
  float score(float score, const RowContext&, Index) const { return 2.0f * score + 1.0f; }
};

TEST_P(Shipped, PartsOfEveryForm) {
  hold_by_position(compose(Causal{}, OddKeys{}, NearOrEarly{}, DilatedWindow{3, 90}, SoftCap{2.0f}, PlusOne{}),
                   Written(
                       [](const RowContext& row, Index key) {
                         const Index back = row.position - key;
                         return back >= 0 && key % 2 == 1 && (back < 50 || key < 100) && back % 3 == 0 && back / 3 < 90;
                       },
                       [](double s, const RowContext&, Index) { return 4.0 * std::tanh(s / 2.0) + 1.0; }),
                   "every form");
}

/// What an expression says, one score at a time: the same operations, each rounded by itself.
struct AlibiOfScalars : gqa::Causal {
  std::span<const float> slopes;
  explicit AlibiOfScalars(std::span<const float> given) : slopes(given) {}
  float score(float score, const RowContext& row, Index key) const {
    const float far = static_cast<float>(row.position) - static_cast<float>(key);
    const float product = slopes[static_cast<std::size_t>(row.query_head)] * far;
    return score - product;
  }
};

TEST_P(Shipped, AnExpressionHasTheBitsOfTheScalarFunctorThatSaysTheSame) {
  const Problem p = make_problem({kHeads, 2, 24, 16, kQueries, kLength}, 174);
  EXPECT_TRUE(same_bits(solve(p, cache_of(type()), {path()}, AlibiOfScalars(slopes_)),
                        solve(p, cache_of(type()), {path()}, compose(Causal{}, Alibi{slopes_}))));
}

INSTANTIATE_TEST_SUITE_P(EveryPath, Shipped, Shipped::cases(), Shipped::name);

}  // namespace
}  // namespace gqa::test
