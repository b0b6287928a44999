// SPDX-License-Identifier: Apache-2.0
// Fewer KV heads on a real model without training: TinyStories 260K, 8 query heads over 4 KV heads, made 2 and 1. Without the model's files
// these tests say that they skipped.
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "../benchmarks/convert_quality/methods.hpp"
#include "../benchmarks/convert_quality/stories_decoder.hpp"
#include "support/stories_files.hpp"

namespace quality {
namespace {

TEST(ConvertStories, AlignmentAndLowRankCloseAtLeastHalfOfTheGapThatMeanPoolingLeaves) {
  SKIP_WITHOUT_STORIES();
  const StoriesDecoder model(llama::read_weights(gqa::test::converted_stories()));
  const Sequences calibration = model.tell(12, 120, 1), held_out = model.tell(12, 120, 2);
  for (const Index kv_heads : {2, 1}) {
    const std::vector<Method> methods = every_method();
    const std::vector<Hidden> results = run_methods(model, methods, kv_heads, calibration, held_out);
    const double trained = mean_loss(model, results[0], held_out);
    std::map<std::string, double> above;
    for (std::size_t i = 0; i < methods.size(); ++i)
      above[methods[i].name] = mean_loss(model, results[i + 1], held_out) - trained;
    const double gap = above.at("mean (Ainslie et al.)");
    EXPECT_GT(gap, 1) << "nats; the model does not depend on its KV heads?";
    for (const char* name :
         {"aligned, similar heads", "low rank, similar heads", "aligned, similar heads, fitted by layer",
          "low rank, similar heads, fitted by layer", "low rank, similar heads, fitted in sequence"})
      EXPECT_LT(above.at(name), 0.5 * gap) << name << ", " << kv_heads << " KV heads";
    for (const char* method : {"mean", "aligned", "low rank"})
      EXPECT_LT(above.at(std::string(method) + ", similar heads, fitted by layer"),
                above.at(std::string(method) + ", similar heads"))
          << "the fit of output projections gains nothing";
  }
}

TEST(ConvertStories, RepeatedHeadsPredictTheSameAndMergeBackToTheSameWeights) {
  SKIP_WITHOUT_STORIES();
  const StoriesDecoder model(llama::read_weights(gqa::test::converted_stories()));
  const Sequences text = model.tell(2, 60, 3);
  std::vector<gqa::AttentionWeights> repeated;
  for (Index layer = 0; layer < model.layers(); ++layer) {
    const gqa::AttentionWeights before = model.attention(layer);
    repeated.push_back(gqa::repeat_kv_heads(before, 8));
    const gqa::MergedHeads back = gqa::merge_kv_heads(repeated.back(), {.kv_heads = 4, .rope = model.form().rope});
    EXPECT_TRUE(back.weights.k == before.k && back.weights.v == before.v && back.weights.q == before.q &&
                back.weights.o == before.o);
  }
  // Projections of more rows may be added in another order by a matrix product; attention itself gives the same bits.
  EXPECT_NEAR(loss(model, text, repeated), loss(model, text), 1e-5);
}

}  // namespace
}  // namespace quality
