// SPDX-License-Identifier: Apache-2.0
// A model that examples/uptrain has trained generates from KV caches: contiguous, paged and ring, on every path, chunked and token by token,
// the logits are the bits of one forward pass over everything, and so the tokens are the same. A quantised cache stays within its bound.
#include <gtest/gtest.h>

#include <limits>

#include "../examples/uptrain/generate.hpp"
#include "../examples/uptrain/trainer.hpp"
#include "support/paths.hpp"
#include "support/uptrain_double.hpp"

namespace uptrain::test {
namespace {

constexpr Index kLength = 150;  // more than two blocks of 64

/// Trained once: enough to prefer some bytes to others.
const Model& trained() {
  static const Model model = [] {
    const Text text(word_bytes(9000, 1), kTinyShape.context);
    gqa::SerialExecutor serial;
    Trainer trainer(kTinyShape, serial);
    TrainingState state(initial_model(kTinyShape, 2));
    const Recipe recipe{.rate = 1e-2, .final_rate = 1e-3, .warm_up = 5, .steps = 100};
    for (Index step = 0; step < recipe.steps; ++step) trainer.step(state, recipe, training_batch(text, 3, step, 8));
    return state.model;
  }();
  return model;
}

std::vector<std::uint8_t> tokens() { return word_bytes(kLength, 4); }

struct Storage {
  gqa::KvEncoding type;
  std::vector<gqa::ContiguousKvCache> contiguous() const { return of_slots<gqa::ContiguousKvCache>(); }
  std::vector<gqa::RingKvCache> ring() const { return of_slots<gqa::RingKvCache>(); }
  /// Pages of 16, taken by the layers in turn, so that a layer's pages do not lie side by side.
  std::vector<gqa::PagedSequence> paged() const {
    const Index pages = kTinyShape.layers * ((kLength + 15) / 16);
    gqa::PagedKvPool pool({.kv_heads = kTinyShape.kv_heads,
                           .head_dim = kTinyShape.head_dim(),
                           .k_type = type,
                           .page_size = 16,
                           .pages = pages});
    std::vector<gqa::PagedSequence> made;
    for (Index layer = 0; layer < kTinyShape.layers; ++layer) made.push_back(pool.sequence());
    return made;
  }

 private:
  template <class Cache>
  std::vector<Cache> of_slots() const {
    std::vector<Cache> made;
    for (Index layer = 0; layer < kTinyShape.layers; ++layer)
      made.emplace_back(gqa::KvCacheConfig{
          .kv_heads = kTinyShape.kv_heads, .head_dim = kTinyShape.head_dim(), .k_type = type, .capacity = kLength});
    return made;
  }
};

/// Logits of all tokens, `chunk` of them at a time.
template <class Cache>
Eigen::MatrixXf in_chunks(const Generator& generator, std::vector<Cache> caches, Index chunk) {
  const std::vector<std::uint8_t> all = tokens();
  Eigen::MatrixXf logits(kTinyShape.vocabulary, kLength);
  for (Index done = 0; done < kLength; done += chunk) {
    const Index count = std::min(chunk, kLength - done);
    logits.middleCols(done, count) = generator.forward(
        std::span(all).subspan(static_cast<std::size_t>(done), static_cast<std::size_t>(count)), caches);
  }
  return logits;
}

gqa::Options on_path(gqa::Path path) {
  gqa::Options options;
  options.path = path;
  return options;
}

using UptrainGenerate = gqa::test::PerPath;
INSTANTIATE_TEST_SUITE_P(Paths, UptrainGenerate, gqa::test::PerPath::cases(), gqa::test::PerPath::name);

TEST_P(UptrainGenerate, EveryCacheAndChunkGivesTheBitsOfOneForwardPass) {
  const gqa::KvEncoding types[] = {gqa::ElementType::f32, gqa::ElementType::bf16, gqa::ElementType::f16, gqa::Int8{}};
  for (const gqa::Products products : {gqa::Products::as_stored, gqa::Products::bf16}) {
    if (products == gqa::Products::bf16 && gqa::test::has_f32_arithmetic_only(path())) continue;  // the same again
    gqa::Options options = on_path(path());
    options.products = products;
    const Generator generator(trained(), kLength, options);
    for (std::size_t i = 0; i < std::size(types); ++i) {
      const Storage storage{types[i]};
      const Eigen::MatrixXf whole = in_chunks(generator, storage.contiguous(), kLength);
      ASSERT_TRUE(whole.allFinite());
      for (const Index chunk : {Index{1}, Index{7}, Index{64}, kLength}) {
        SCOPED_TRACE("type " + std::to_string(i) + ", chunks of " + std::to_string(chunk) + ", " +
                     gqa::test::products_name(products));
        EXPECT_TRUE(in_chunks(generator, storage.contiguous(), chunk) == whole);
        EXPECT_TRUE(in_chunks(generator, storage.paged(), chunk) == whole);
        EXPECT_TRUE(in_chunks(generator, storage.ring(), chunk) == whole);
      }
    }
  }
}

TEST_P(UptrainGenerate, PathsOfF32ArithmeticAgree) {
  if (!gqa::test::has_f32_arithmetic_only(path())) GTEST_SKIP() << "this path has arithmetic of its own";
  const Storage storage{gqa::ElementType::f32};
  const Generator here(trained(), kLength, on_path(path())), portable(trained(), kLength, on_path(gqa::Path::portable));
  EXPECT_TRUE(in_chunks(here, storage.contiguous(), kLength) == in_chunks(portable, storage.contiguous(), kLength));
}

TEST_P(UptrainGenerate, SameTokensFromEveryCacheAndFromScratch) {
  const Generator generator(trained(), kLength, on_path(path()));
  const Storage storage{gqa::ElementType::f32};
  const std::vector<std::uint8_t> prompt = word_bytes(20, 5);
  constexpr Index count = kLength - 20;
  auto contiguous = storage.contiguous();
  const std::vector<std::uint8_t> made = generator.greedy(prompt, count, contiguous);
  auto paged = storage.paged();
  EXPECT_EQ(generator.greedy(prompt, count, paged), made);
  auto ring = storage.ring();
  EXPECT_EQ(generator.greedy(prompt, count, ring), made);

  std::vector<std::uint8_t> all = prompt;
  all.insert(all.end(), made.begin(), made.end());
  auto once = storage.contiguous();
  const Eigen::MatrixXf logits = generator.forward(all, once);
  int kinds = 0;
  std::vector<bool> seen(256);
  for (std::size_t i = 0; i < made.size(); ++i) {
    Index best = 0;
    logits.col(static_cast<Index>(prompt.size() + i) - 1).maxCoeff(&best);
    EXPECT_EQ(best, made[i]) << i;
    kinds += !seen[made[i]];
    seen[made[i]] = true;
  }
  EXPECT_GT(kinds, 3) << "a model that writes one letter tests nothing";
}

/// The training program's forward pass computes the same function, with products of matrices: it differs by rounding alone, by at most as many
/// units of it as there are dependent operations.
TEST_P(UptrainGenerate, IsTheFunctionThatWasTrained) {
  const std::vector<std::uint8_t> all = tokens();
  const std::span<const std::uint8_t> sequence = std::span(all).first(static_cast<std::size_t>(kTinyShape.context));
  Activations<float> kept;
  forward(trained(), Attention(kTinyShape, path()), Tokens{1, kTinyShape.context, sequence, sequence}, kept);
  auto caches = Storage{gqa::ElementType::f32}.contiguous();
  const Eigen::MatrixXf logits = Generator(trained(), kLength, on_path(path())).forward(sequence, caches);
  const Index layer = 3 * kTinyShape.dim + kTinyShape.hidden + 2 * kTinyShape.head_dim() + 2 * kTinyShape.context;
  const auto operations = static_cast<float>(2 * (kTinyShape.layers * layer + kTinyShape.dim));
  EXPECT_LE((logits - kept.logits).norm(), operations * std::numeric_limits<float>::epsilon() / 2 * logits.norm());
}

/// Attention over trained keys and values in int8: a key's element is off by half a step s_k, a 127th of its row's largest; products with
/// integers round queries to within 2⁻¹⁶ of their largest. So a score is off by δ ≤ scale · Σ|q| · (s_k/2 + 2⁻¹⁶ |k|), weights by a factor
/// of at most e^2δ, and an output by (e^2δ − 1) times the largest value, half a step of the values, and what weights rounded to 2⁻¹⁵ of their
/// largest add.
TEST_P(UptrainGenerate, QuantisedCacheStaysWithinItsBound) {
  const std::vector<std::uint8_t> all = tokens();
  const std::span<const std::uint8_t> sequence = std::span(all).first(static_cast<std::size_t>(kTinyShape.context));
  Activations<float> kept;
  forward(trained(), Attention(kTinyShape, path()), Tokens{1, kTinyShape.context, sequence, sequence}, kept);
  const Eigen::MatrixXf& qkv = kept.layers.front().qkv;  // turned
  const Index width = kTinyShape.head_dim(), count = qkv.cols();
  const auto part = [&](Index row, Index heads) {
    return gqa::ConstTensorView(qkv.data() + row, count, heads, width, gqa::TensorStrides{qkv.rows(), width});
  };
  gqa::ContiguousKvCache cache(
      {.kv_heads = kTinyShape.kv_heads, .head_dim = width, .k_type = gqa::Int8{}, .capacity = count});
  cache.append(part(kTinyShape.dim, kTinyShape.kv_heads),
               part(kTinyShape.dim + kTinyShape.kv_dim(), kTinyShape.kv_heads));
  Eigen::MatrixXf out(kTinyShape.dim, count);
  const CachedAttention attention;
  attention(part(0, kTinyShape.query_heads), cache.view(),
            gqa::TensorView(out.data(), count, kTinyShape.query_heads, width), on_path(path()));

  double most = 0;
  for (Index t = 0; t < count; ++t)
    for (Index head = 0; head < kTinyShape.query_heads; ++head) {
      const Index kv = head * kTinyShape.kv_heads / kTinyShape.query_heads;
      const auto largest = [&](Index row) {
        return static_cast<double>(qkv.block(row + kv * width, 0, width, t + 1).cwiseAbs().maxCoeff());
      };
      const double k = largest(kTinyShape.dim), v = largest(kTinyShape.dim + kTinyShape.kv_dim());
      const auto q = qkv.col(t).segment(head * width, width).cwiseAbs().cast<double>();
      const double delta = (q.sum() * k / 254 + static_cast<double>(width) * q.maxCoeff() * k * 0x1p-16) /
                           std::sqrt(static_cast<double>(width));
      const double bound = std::expm1(2 * delta) * v + v / 254 + static_cast<double>(t + 1) * v * 0x1p-15 + 1e-5 * v;
      for (Index d = head * width; d < (head + 1) * width; ++d) {
        const double error =
            std::abs(static_cast<double>(out(d, t)) - static_cast<double>(kept.layers.front().attended(d, t)));
        EXPECT_LE(error, bound) << "token " << t << ", dim " << d;
        most = std::max(most, error);
      }
    }
  EXPECT_GT(most, 0) << "nothing was quantised";
}

}  // namespace
}  // namespace uptrain::test
