// SPDX-License-Identifier: Apache-2.0
// The published examples of FlexAttention, written as variants and expressions, each held to its definition, pair by pair, in prefill, in
// pages and token by token. What the examples compute is taken from github.com/meta-pytorch/attention-gym, attn_gym/masks and attn_gym/mods,
// at 7fdb85d0, which has those of PyTorch's "FlexAttention: The Flexibility of PyTorch with the Performance of FlashAttention", too.
// Not here: paged attention's translation of indices, for which caches are paged themselves; MLA's second product, for which heads are 576
// wide (models_test.cpp); lists of blocks and trees (shipped_variants_test.cpp); what its GPU kernels alone have (approximate tanh, Morton
// order).
#include <gtest/gtest.h>

#include <array>
#include <functional>

#include "gqa/variants.hpp"
#include "support/paths.hpp"
#include "support/problem.hpp"
#include "support/reference_check.hpp"

namespace gqa::test {
namespace {

using Sees = std::function<bool(Index head, Index q, Index k)>;
using Changes = std::function<double(double score, Index head, Index q, Index k)>;

/// An example as it is published: of a head, a query's position and a key's.
struct Published {
  Sees sees;
  Changes changes;
  PositionRange visible_range(Index, Index kv_length) const { return {0, kv_length}; }
  bool is_visible(const RowContext& row, Index key) const { return sees(row.query_head, row.position, key); }
  float score(float s, const RowContext& row, Index key) const {
    return changes ? static_cast<float>(changes(static_cast<double>(s), row.query_head, row.position, key)) : s;
  }
};

constexpr Index kHeads = 4;
constexpr Index kWidth = 20;  // of the canvas of those in two dimensions
constexpr Index kHeight = 12;
constexpr Index kLength = kWidth * kHeight;

bool causal(Index, Index q, Index k) { return k <= q; }
bool everything(Index, Index, Index) { return true; }

/// A number for each position, as what `lookup` reads.
template <class F>
std::vector<std::int32_t> for_each_position(F f) {
  std::vector<std::int32_t> numbers;
  for (Index i = 0; i < kLength; ++i) numbers.push_back(static_cast<std::int32_t>(f(i)));
  return numbers;
}
std::size_t at(Index i) { return static_cast<std::size_t>(i); }

class FlexExamples : public PerPathAndType {
 protected:
  template <class V>
  void hold(const V& variant, const Sees& sees, const Changes& changes = nullptr) const {
    const Types types = cache_of(type());
    const Problem p = make_problem({kHeads, 2, 24, 16, kLength, kLength}, 181);
    SCOPED_TRACE(describe(on(path()), types, p.shape, "FlexAttention"));
    const Tensor q(p.q, types.q);
    const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
    const Result whole = attend(q.const_view(), kv.view(), {path()}, variant);
    EXPECT_TRUE(within_bound(q.const_view(), kv.view(), {path()}, Published{sees, changes}, whole));
    const StoredCaches paged = store_cache(p.kv, types.k, types.v, paged_place(7));
    EXPECT_TRUE(same_bits(whole, attend(q.const_view(), paged.view(), {path()}, variant))) << "paged";
    for (const Index token : {Index{0}, Index{63}, Index{130}, kLength - 1}) {
      const Index position[] = {token};
      EXPECT_TRUE(same_bits(whole.slice(token, 1),
                            attend(q.const_view().slice(token, 1), kv.view(), {path()}, variant, position)))
          << "token " << token << " alone";
    }
  }
};

TEST_P(FlexExamples, Causal) { hold(Causal{}, causal); }

struct CausalAsScore {
  auto score(auto s, const RowContext& row, auto k) const { return select(k <= row.position, s, -INFINITY); }
};
TEST_P(FlexExamples, CausalByScoresOfMinusInfinity) { hold(compose(Full{}, CausalAsScore{}), causal); }

TEST_P(FlexExamples, SlidingWindow) {
  hold(CausalWindow{51}, [](Index, Index q, Index k) { return q >= k && q - k <= 50; });
}

TEST_P(FlexExamples, PrefixLm) {
  hold(PrefixLm{90}, [](Index, Index q, Index k) { return k < 90 || q >= k; });
}

constexpr std::array<Index, 5> kDocuments = {0, 30, 100, 101, kLength};
Index document_of(Index position) {
  Index found = 0;
  while (position >= kDocuments[at(found + 1)]) ++found;
  return found;
}
struct SameDocument {
  const std::int32_t* document;
  auto visible(const RowContext& row, auto k) const { return lookup(document, k) == document[row.position]; }
};
TEST_P(FlexExamples, DocumentsAndJaggedOffsets) {
  const auto same = [](Index, Index q, Index k) { return document_of(q) == document_of(k); };
  const auto same_and_causal = [&](Index, Index q, Index k) { return document_of(q) == document_of(k) && q >= k; };
  hold(PackedDocuments{kDocuments}, same_and_causal);
  hold(PackedDocuments{kDocuments, false}, same);
  const std::vector<std::int32_t> documents = for_each_position(document_of);
  hold(compose(Full{}, SameDocument{documents.data()}), same);
  hold(compose(Causal{}, SameDocument{documents.data()}), same_and_causal);
}

TEST_P(FlexExamples, BatchifiedCausal) {
  hold(ChunkedLocal{37}, [](Index, Index q, Index k) { return q / 37 == k / 37 && q % 37 >= k % 37; });
}

/// A document sees itself, causally, and all of the document that is its prefix.
struct SharedPrefix {
  std::array<PositionRange, 2> visible_range(Index q, Index) const {
    const Index d = document_of(q);
    return {PositionRange{0, d == 0 ? 0 : kDocuments[1]}, PositionRange{kDocuments[at(d)], q + 1}};
  }
};
TEST_P(FlexExamples, SharedPrefix) {
  hold(SharedPrefix{}, [](Index, Index q, Index k) {
    return (document_of(k) == document_of(q) && k <= q) || (document_of(k) == 0 && document_of(q) != 0);
  });
}

TEST_P(FlexExamples, Transfusion) {
  const PositionRange images[] = {{10, 40}, {64, 128}, {200, 231}};
  hold(CausalWithBlocks{images}, [&](Index, Index q, Index k) {
    for (const PositionRange& image : images)
      if (q >= image.begin && q < image.end && k >= image.begin && k < image.end) return true;
    return q >= k;
  });
}

struct EqualRemainders {
  const std::int32_t* remainder;
  auto visible(const RowContext& row, auto k) const { return lookup(remainder, k) == remainder[row.position]; }
};
TEST_P(FlexExamples, DilatedSlidingWindow) {
  const std::vector<std::int32_t> remainders = for_each_position([](Index i) { return i % 3; });
  hold(compose(TwoSidedWindow{40, 40}, EqualRemainders{remainders.data()}), [](Index, Index q, Index k) {
    const Index back = std::abs(q - k);
    return back <= 40 && back % 3 == 0;
  });
}

struct GlobalAndWindow {
  const std::int32_t* global;
  auto visible(const RowContext& row, auto k) const {
    const Index radius = global[row.position] != 0 ? kLength : 12;
    return abs(row.position - k) <= radius || lookup(global, k) != 0;
  }
};
TEST_P(FlexExamples, GlobalTokensAndWindow) {
  const auto is_global = [](Index i) { return i == 0 || i == 77 || i == 200; };
  const std::vector<std::int32_t> global = for_each_position(is_global);
  hold(compose(Full{}, GlobalAndWindow{global.data()}),
       [&](Index, Index q, Index k) { return std::abs(q - k) <= 12 || is_global(q) || is_global(k); });
}

/// A neighbourhood in two dimensions: rows of the canvas are a range, columns an expression.
struct Neighbourhood {
  const std::int32_t* column;
  Index radius;
  bool clamped;  ///< NATTEN's, which stays on the canvas; else stand-alone self-attention's, which is cut off
  Index centre(Index x, Index size) const { return clamped ? std::clamp(x, radius, size - 1 - radius) : x; }
  PositionRange visible_range(Index q, Index) const {
    const Index y = centre(q / kWidth, kHeight);
    return {(y - radius) * kWidth, (y + radius + 1) * kWidth};
  }
  auto visible(const RowContext& row, auto k) const {
    return abs(lookup(column, k) - centre(row.position % kWidth, kWidth)) <= radius;
  }
};
TEST_P(FlexExamples, NeighbourhoodInTwoDimensions) {
  const std::vector<std::int32_t> columns = for_each_position([](Index i) { return i % kWidth; });
  hold(Neighbourhood{columns.data(), 3, true}, [](Index, Index q, Index k) {
    const Index x = std::clamp<Index>(q % kWidth, 3, kWidth - 4), y = std::clamp<Index>(q / kWidth, 3, kHeight - 4);
    return std::abs(x - k % kWidth) <= 3 && std::abs(y - k / kWidth) <= 3;
  });
  hold(Neighbourhood{columns.data(), 2, false}, [](Index, Index q, Index k) {
    return std::abs(q % kWidth - k % kWidth) <= 2 && std::abs(q / kWidth - k / kWidth) <= 2;
  });
}

/// Positions go tile by tile, 4 × 5: a table of coordinates serves static tiles (tiled NATTEN) and whole tiles (sliding tiles).
struct NearCoordinates {
  const std::int32_t* x;
  const std::int32_t* y;
  Index radius_x, radius_y, width, height;
  auto visible(const RowContext& row, auto k) const {
    const Index cx = std::clamp<Index>(x[row.position], radius_x, width - 1 - radius_x);
    const Index cy = std::clamp<Index>(y[row.position], radius_y, height - 1 - radius_y);
    return abs(lookup(x, k) - cx) <= radius_x && abs(lookup(y, k) - cy) <= radius_y;
  }
};
TEST_P(FlexExamples, TiledNeighbourhoods) {
  constexpr Index across = kWidth / 5;
  const auto tile_x = [](Index i) { return i / 20 % across; };
  const auto tile_y = [](Index i) { return i / 20 / across; };
  const auto x_of = [&](Index i) { return tile_x(i) * 5 + i % 20 % 5; };
  const auto y_of = [&](Index i) { return tile_y(i) * 4 + i % 20 / 5; };
  const auto near_centre = [](auto x, auto y, Index radius_x, Index radius_y, Index width, Index height) {
    return [=](Index, Index q, Index k) {
      return std::abs(std::clamp<Index>(x(q), radius_x, width - 1 - radius_x) - x(k)) <= radius_x &&
             std::abs(std::clamp<Index>(y(q), radius_y, height - 1 - radius_y) - y(k)) <= radius_y;
    };
  };
  const auto xs = for_each_position(x_of), ys = for_each_position(y_of);
  hold(compose(Full{}, NearCoordinates{xs.data(), ys.data(), 4, 2, kWidth, kHeight}),
       near_centre(x_of, y_of, 4, 2, kWidth, kHeight));
  const auto tile_xs = for_each_position(tile_x), tile_ys = for_each_position(tile_y);
  hold(compose(Full{}, NearCoordinates{tile_xs.data(), tile_ys.data(), 1, 1, across, kHeight / 4}),
       near_centre(tile_x, tile_y, 1, 1, across, kHeight / 4));
}

/// Text sees images whose interval it is in.
struct ImagesOfText {
  const std::int32_t* begin;
  const std::int32_t* end;
  auto visible(const RowContext& row, auto k) const {
    return row.position >= lookup(begin, k) && row.position < lookup(end, k);
  }
};
TEST_P(FlexExamples, FlamingosCrossAttention) {
  const auto begin_of = [](Index k) { return k / 80 * 60; };
  const auto end_of = [](Index k) { return k / 80 == 1 ? 90 : 210; };
  const auto begins = for_each_position(begin_of), ends = for_each_position(end_of);
  hold(compose(Full{}, ImagesOfText{begins.data(), ends.data()}),
       [&](Index, Index q, Index k) { return q >= begin_of(k) && q < end_of(k); });
}

/// Noised tokens and then clean ones, as many, in blocks of 16.
struct BlockDiffusion {
  std::array<PositionRange, 2> visible_range(Index q, Index) const {
    constexpr Index clean = kLength / 2;
    if (q >= clean) return {PositionRange{}, PositionRange{clean, clean + ((q - clean) / 16 + 1) * 16}};
    const Index first = q / 16 * 16;
    return {PositionRange{first, std::min(first + 16, clean)}, PositionRange{clean, clean + first}};
  }
};
TEST_P(FlexExamples, BlockDiffusion) {
  hold(BlockDiffusion{}, [](Index, Index q, Index k) {
    constexpr Index clean = kLength / 2;
    const bool q_noised = q < clean, k_noised = k < clean;
    const Index q_block = q % clean / 16, k_block = k % clean / 16;
    return (q_block == k_block && q_noised == k_noised) || (q_block > k_block && q_noised && !k_noised) ||
           (q_block >= k_block && !q_noised && !k_noised);
  });
}

TEST_P(FlexExamples, Alibi) {
  std::vector<float> slopes(kHeads);
  gqa::Alibi::fill_slopes(slopes);
  hold(compose(Causal{}, gqa::Alibi{slopes}), causal, [](double s, Index head, Index q, Index k) {
    return s + static_cast<double>(k - q) * std::exp2(-static_cast<double>(head + 1) * 8.0 / kHeads);
  });
}

struct RelativePosition {
  auto score(auto s, const RowContext& row, auto k) const { return s + (row.position - k); }
};
TEST_P(FlexExamples, RelativePosition) {
  hold(compose(Full{}, RelativePosition{}), everything,
       [](double s, Index, Index q, Index k) { return s + static_cast<double>(q - k); });
}

/// Sandwich: a table of distances, times a number of the head's.
struct ScaledTable {
  const float* table;
  auto score(auto s, const RowContext& row, auto k) const {
    return s + lookup(table + row.position + kLength, k, -1) * (0.25f * static_cast<float>(row.query_head + 1));
  }
};
/// Graphormer: a number for each head, query and key.
struct EveryPair {
  const float* table;
  auto score(auto s, const RowContext& row, auto k) const {
    return s + lookup(table + (row.query_head * kLength + row.position) * kLength, k);
  }
};
TEST_P(FlexExamples, TablesOfBiases) {
  Random random(182);
  std::vector<float> table(kHeads * kLength * kLength);
  for (float& x : table) x = random.normal();
  hold(compose(Causal{}, ScaledTable{table.data()}), causal, [&](double s, Index head, Index q, Index k) {
    return s + static_cast<double>(table[at(q - k + kLength)]) * 0.25 * static_cast<double>(head + 1);
  });
  hold(compose(Full{}, EveryPair{table.data()}), everything, [&](double s, Index head, Index q, Index k) {
    return s + static_cast<double>(table[at((head * kLength + q) * kLength + k)]);
  });
}

TEST_P(FlexExamples, SoftCapping) {
  hold(compose(Causal{}, SoftCap{20.0f}), causal,
       [](double s, Index, Index, Index) { return 20.0 * std::tanh(s / 20.0); });
}

/// An activation in the place of the softmax's exponential: weights are in proportion to relu(s) + 1.
struct LogOfActivation {
  auto score(auto s, const RowContext&, auto) const { return log(max(s, 0.0f) + 1.0f); }
};
TEST_P(FlexExamples, ActivationInsteadOfSoftmax) {
  hold(compose(Full{}, LogOfActivation{}), everything,
       [](double s, Index, Index, Index) { return std::log(std::max(s, 0.0) + 1.0); });
}

INSTANTIATE_TEST_SUITE_P(EveryPath, FlexExamples, FlexExamples::cases(), FlexExamples::name);

}  // namespace
}  // namespace gqa::test
