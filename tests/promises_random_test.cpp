// SPDX-License-Identifier: Apache-2.0
// Everything at once, drawn at random: shapes, types, storages, layouts, variants, positions, executors, and NaN here and there.
// Each row must be the bits of the same row alone: one query token of one head, over one KV head packed in memory, run serially.
//
// GQA_TEST_RANDOM_CASES=5000 runs more cases than the default, GQA_TEST_RANDOM_SEED=7 other ones.
#include <gtest/gtest.h>

#include <cstdlib>

#include "support/executors.hpp"
#include "support/problem.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

/// A variant as the only head of a call sees it that is head `head` of another. A variant has no member that it cannot be asked for, so what
/// V lacks comes from bases that lack it, too.
template <class V>
struct RangesAsHead {
  V variant;
  Index head;
  PositionRange visible_range(Index query_position, Index kv_length) const {
    return variant.visible_range(query_position, kv_length);
  }
};
template <class V>
struct MaskAsHead : RangesAsHead<V> {};
template <MaskingVariant V>
struct MaskAsHead<V> : RangesAsHead<V> {
  bool is_visible(Index query_position, Index key_position, Index) const {
    return this->variant.is_visible(query_position, key_position, this->head);
  }
};
template <class V>
struct AsHead : MaskAsHead<V> {};
template <ScoringVariant V>
struct AsHead<V> : MaskAsHead<V> {
  float score(float score, Index query_position, Index key_position, Index) const {
    return this->variant.score(score, query_position, key_position, this->head);
  }
};

template <class V>
AsHead<V> as_head(const V& variant, Index head) {
  AsHead<V> alone;
  alone.variant = variant;
  alone.head = head;
  return alone;
}

long from_environment(const char* name, long otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atol(text);
}

class RandomCase {
 public:
  RandomCase(Path path, std::uint64_t seed) : random_(seed), path_(path) {
    const Index groups[] = {1, 1, 2, 3, 4, 5, 7, 8, 13, 15, 16, 17, 29, 33};
    const Index group = pick(groups);
    shape_.kv_heads = 1 + random_.below(group > 8 ? 1 : 3);
    shape_.query_heads = group * shape_.kv_heads;
    shape_.head_dim = random_.below(2) == 0 ? 8 * (1 + random_.below(12)) : 1 + random_.below(80);
    shape_.value_dim = random_.below(2) == 0 ? shape_.head_dim : 1 + random_.below(100);
    switch (random_.below(5)) {
      case 0: shape_.n_kv = random_.below(20); break;
      case 1: shape_.n_kv = random_.below(200); break;
      case 2: shape_.n_kv = detail::kSpan * (1 + random_.below(2)) - 3 + random_.below(7); break;
      case 3: shape_.n_kv = detail::kBlock * (1 + random_.below(6)) - 2 + random_.below(5); break;
      default: shape_.n_kv = random_.below(3 * detail::kSpan); break;
    }
    const Index most_queries = path == Path::portable ? 20 : 150;
    shape_.n_q = random_.below(3) == 0 ? 1 : 1 + random_.below(most_queries);
    if (random_.below(4) != 0) shape_.n_q = std::min(shape_.n_q, std::max<Index>(shape_.n_kv, 1));
    // Widths that kernels know, and sequences long enough for tasks of several spans.
    if (random_.below(3) == 0) {
      const Index widths[] = {64, 128, 128, 256};
      shape_.head_dim = pick(widths);
      shape_.value_dim = random_.below(4) == 0 ? pick(widths) : shape_.head_dim;
    }
    if (random_.below(24) == 0 && group <= 4 && path != Path::portable) {
      shape_.kv_heads = 8;
      shape_.query_heads = group * shape_.kv_heads;
      shape_.n_kv = detail::kSpan * 8 + 1 + random_.below(detail::kSpan);
      shape_.n_q = 1 + random_.below(2);
    }
    const Distribution distributions[] = {Distribution::normal,       Distribution::sinks,
                                          Distribution::large_scores, Distribution::dominant_key,
                                          Distribution::equal_keys,   Distribution::denormal};
    problem_ = make_problem(shape_, random_.bits(), pick(distributions));
    types_ = random_.below(2) == 0 ? all_of(pick(kEveryType))
                                   : Types{pick(kEveryType), pick(kEveryType), pick(kEveryType), pick(kEveryType)};
    how_.path = path;
    how_.out = types_.out;
    how_.products = pick(kEveryProducts);
    if (random_.below(4) == 0) how_.scale = random_.normal();
    how_.out_layout = pick(kTensorLayouts);
    if (random_.below(3) == 0)
      for (Index i = 0; i < shape_.n_q; ++i) positions_.push_back(random_.below(shape_.n_kv + 10));
    if (random_.below(3) == 0) sprinkle_garbage();
  }

  void run() {
    switch (random_.below(9)) {
      case 0: return check(Full{}, "full");
      case 1: return check(CausalWindow{1 + random_.below(300)}, "window");
      case 2: return check(PackedDocuments{1 + random_.below(150)}, "documents");
      case 3: return check(Sieve{}, "sieve");
      case 4: return check(SinksAndWindow{random_.below(5), 1 + random_.below(100)}, "sinks and window");
      case 5: return check(Alibi{}, "ALiBi");
      case 6: return check(SieveWithScores{}, "sieve with scores");
      case 7: return check(StrictlyBeforeOdd{}, "nothing for even positions");
      default: return check(Causal{}, "causal");
    }
  }

 private:
  template <class T, std::size_t N>
  T pick(const T (&items)[N]) {
    return items[random_.below(static_cast<Index>(N))];
  }

  void sprinkle_garbage() {
    const float kinds[] = {NAN, INFINITY, -INFINITY, 3.4e38f, -70000.0f, 0x1p-140f};
    for (std::vector<float>* values :
         {&problem_.q.values, &problem_.kv.k.values, &problem_.kv.v.values, &problem_.kv.v.values})
      if (!values->empty() && random_.below(2) == 0)
        (*values)[static_cast<std::size_t>(random_.below(static_cast<Index>(values->size())))] = pick(kinds);
  }

  Index position(Index token) const {
    return positions_.empty() ? shape_.n_kv - shape_.n_q + token : positions_[static_cast<std::size_t>(token)];
  }

  /// Any storage that holds what the queries see.
  template <class V>
  Place draw_place(const V& variant) {
    Place place;
    place.layout = pick(kCacheLayouts);
    place.seed = random_.bits();
    Index oldest = shape_.n_kv;
    for (Index token = 0; token < shape_.n_q; ++token) {
      const PositionRange range = variant.visible_range(position(token), shape_.n_kv);
      if (range.begin < std::min(range.end, shape_.n_kv)) oldest = std::min(oldest, std::max<Index>(range.begin, 0));
    }
    place.keep_from = oldest;
    switch (random_.below(3)) {
      case 0: place.slots = shape_.n_kv + random_.below(40); break;
      case 1:
        place.storage = Storage::ring;
        place.slots = std::max<Index>(1, shape_.n_kv - oldest) + random_.below(40);
        break;
      default: {
        const Index sizes[] = {1, 3, 7, 15, 16, 17, 33, 64, 100, 1000};
        place.storage = Storage::paged;
        place.page_size = pick(sizes);
      }
    }
    return place;
  }

  /// The row of `head` at `token`, alone.
  template <class V>
  Result alone(const V& variant, Index token, Index head) const {
    Problem one;
    const Index kv_head = head / (shape_.query_heads / shape_.kv_heads);
    one.q = Numbers(1, 1, shape_.head_dim);
    one.kv = {Numbers(shape_.n_kv, 1, shape_.head_dim), Numbers(shape_.n_kv, 1, shape_.value_dim)};
    for (Index d = 0; d < shape_.head_dim; ++d) one.q.at(0, 0, d) = problem_.q.at(token, head, d);
    for (Index t = 0; t < shape_.n_kv; ++t) {
      for (Index d = 0; d < shape_.head_dim; ++d) one.kv.k.at(t, 0, d) = problem_.kv.k.at(t, kv_head, d);
      for (Index d = 0; d < shape_.value_dim; ++d) one.kv.v.at(t, 0, d) = problem_.kv.v.at(t, kv_head, d);
    }
    const Tensor q(one.q, types_.q);
    const StoredCaches kv = store_cache(one.kv, types_.k, types_.v, {});
    How how = how_;
    how.executor = {};
    how.out_layout = TensorLayout::packed;
    const Index at[] = {position(token)};
    const WithStreaming streaming(token % 2 == 0 ? detail::Streaming::prefetched : detail::Streaming::followed);
    return attend(q.const_view(), kv.view(), how, as_head(variant, head), at);
  }

  template <class V>
  void check(const V& variant, const char* name) {
    const Place place = draw_place(variant);
    const TensorLayout q_layout = pick(kTensorLayouts);
    SCOPED_TRACE(describe(types_, shape_, name, place.name(), "q " + std::string(layout_name(q_layout)),
                          positions_.empty() ? "usual positions" : "given positions",
                          "products " + std::string(products_name(how_.products))));
    const Tensor q(problem_.q, types_.q, q_layout);
    const StoredCaches kv = store_cache(problem_.kv, types_.k, types_.v, place);
    ShuffledExecutor shuffled{random_.bits(), 3};
    if (random_.below(2) == 0) how_.executor = shuffled;
    const WithStreaming streaming(random_.below(2) == 0 ? detail::Streaming::prefetched : detail::Streaming::followed);
    const Result whole = attend(q.const_view(), kv.view(), how_, variant, positions_);
    for (int i = 0; i < 5; ++i) {
      const Index token = i == 0 ? shape_.n_q - 1 : random_.below(shape_.n_q);
      const Index head = random_.below(shape_.query_heads);
      Result row{1, 1, shape_.value_dim, {}, {whole.lse_at(token, head)}};
      for (Index d = 0; d < shape_.value_dim; ++d) row.out.push_back(whole.at(token, head, d));
      ASSERT_TRUE(same_bits(alone(variant, token, head), row))
          << "token " << token << ", head " << head << ", alone and here";
    }
    // And on another path with the same arithmetic.
    const std::vector<Path> others = f32_paths();
    const Path other = others[static_cast<std::size_t>(random_.below(static_cast<Index>(others.size())))];
    if (has_f32_arithmetic_only(path_) && shape_.n_q * shape_.query_heads * shape_.n_kv < 100000) {
      How there = how_;
      there.path = other;
      EXPECT_TRUE(same_bits(whole, attend(q.const_view(), kv.view(), there, variant, positions_))) << on(other);
    }
  }

  Random random_;
  Path path_;
  Shape shape_;
  Problem problem_;
  Types types_;
  How how_;
  std::vector<Index> positions_;
};

class RandomCases : public PerPath {};

TEST_P(RandomCases, EveryRowIsTheRowAlone) {
  const auto first = static_cast<std::uint64_t>(from_environment("GQA_TEST_RANDOM_SEED", 1)) * 1000000u;
  const long cases = from_environment("GQA_TEST_RANDOM_CASES", path() == Path::portable ? 25 : 150);
  for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(cases); ++i) {
    SCOPED_TRACE(describe(on(path()), "case " + std::to_string(first + i)));
    RandomCase(path(), first + i).run();
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(EveryPath, RandomCases, RandomCases::cases(), RandomCases::name);

}  // namespace
}  // namespace gqa::test
