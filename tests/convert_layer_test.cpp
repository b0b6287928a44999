// SPDX-License-Identifier: Apache-2.0
// A layer run on calibration data: its outputs against plain loops in double precision, the moments of its inputs, the fit of its
// output projection, and the report of a conversion.
#include "gqa/convert.hpp"

#include <gtest/gtest.h>

#include "support/layers.hpp"
#include "support/messages.hpp"

namespace gqa::test {
namespace {

constexpr HeadShape kShape{6, 3, 8, 10};
constexpr Index kInputs = 16, kOutputs = 12;

std::vector<Eigen::MatrixXf> random_inputs(Random& random, std::initializer_list<Index> lengths) {
  std::vector<Eigen::MatrixXf> made;
  for (const Index length : lengths) made.push_back(random_matrix(random, kInputs, length).cast<float>());
  return made;
}

AttentionForm form_of(const RopeLayout& rope, bool causal = true) {
  AttentionForm form;
  form.rope = rope;
  form.causal = causal;
  return form;
}

TEST(LayerOutputs, AreTheDefinitionsUpToF32Rounding) {
  Random random(1);
  for (const RopeLayout& rope :
       {RopeLayout{}, RopeLayout{RopePairs::interleaved, 0}, RopeLayout{RopePairs::half_split, 4}})
    for (const bool causal : {true, false})
      for (const bool biases : {false, true}) {
        const AttentionWeights w = random_layer(random, kShape, kInputs, kOutputs, biases);
        const auto inputs = random_inputs(random, {70, 1, 0, 9});
        const auto outputs = layer_outputs(w, form_of(rope, causal), inputs);
        ASSERT_EQ(outputs.size(), 4u);
        EXPECT_EQ(outputs[2].cols(), 0);
        for (const std::size_t i : {0u, 1u, 3u}) {
          const PlainOutputs plain = plain_outputs(w, rope, inputs[i].cast<double>(), causal);
          // First order: each sum of n products is off by n·2⁻²⁴ of the sum of their magnitudes. A query and a key are sums of
          // kInputs + 1, a rotation adds 3 (its sines are rounded), a score is a sum of head_dim: the score is off by that share of
          // largest_score, a weight by twice as much and a few units for exp, sums and division. Values and outputs are sums again.
          const double score = (2 * (kInputs + 1 + 3) + kShape.head_dim + 2) * 0x1p-24 * plain.largest_score;
          const double share = 2 * score + (70 + 8 + kInputs + 1 + 6 * 10 + 1) * 0x1p-24;
          for (Index t = 0; t < inputs[i].cols(); ++t)
            for (Index out = 0; out < kOutputs; ++out)
              ASSERT_LE(std::abs(static_cast<double>(outputs[i](out, t)) - plain.outputs(out, t)),
                        share * plain.magnitude(out, t));
        }
      }
}

TEST(LayerOutputs, TakeFrequenciesWindowAndScale) {
  Random random(2);
  const AttentionWeights w = random_layer(random, kShape, kInputs, kOutputs, false);
  const auto inputs = random_inputs(random, {20});
  AttentionForm form = form_of({RopePairs::half_split, 0});
  const auto expected = layer_outputs(w, form, inputs);
  form.rope_frequencies = {1, 0.1, 0.01, 0.001};  // base 10000 over four pairs
  EXPECT_LE(relative_error(layer_outputs(w, form, inputs), expected), 1e-5);
  form.scale = 1 / std::sqrt(8.0f);
  EXPECT_LE(relative_error(layer_outputs(w, form, inputs), expected), 1e-5);
  form.scale = 0.0f;  // every visible token alike
  EXPECT_GT(relative_error(layer_outputs(w, form, inputs), expected), 0.01);
  form.window = 1;  // a token alone: its own value
  const auto alone = layer_outputs(w, form, inputs);
  Eigen::MatrixXd heads(60, 20);
  const Eigen::MatrixXd v = w.v * inputs[0].cast<double>();
  for (Index head = 0; head < 6; ++head) heads.middleRows(head * 10, 10) = v.middleRows(head / 2 * 10, 10);
  EXPECT_LE((alone[0].cast<double>() - w.o * heads).norm() / alone[0].norm(), 1e-5);
}

TEST(MeasureInputs, AreTheMeansOfSquaresOfInputsAndOfWhatHeadsAttendTo) {
  Random random(3);
  AttentionWeights w = random_layer(random, kShape, kInputs, kOutputs, true);
  const auto inputs = random_inputs(random, {30, 0, 11});
  const InputMoments moments = measure_inputs(w, form_of({RopePairs::interleaved, 0}), inputs);
  Eigen::MatrixXd expected = Eigen::MatrixXd::Zero(kInputs + 1, kInputs + 1);
  for (const Eigen::MatrixXf& x : inputs) {
    Eigen::MatrixXd one(kInputs + 1, x.cols());
    one << x.cast<double>(), Eigen::RowVectorXd::Ones(x.cols());
    expected += one * one.transpose() / 41;
  }
  EXPECT_LE((moments.inputs - expected).norm(), 1e-12 * expected.norm());
  EXPECT_EQ(moments.inputs(kInputs, kInputs), 1);
  EXPECT_EQ(moments.attended(kInputs, kInputs), 1);

  // With the identity as every head's value projection, the layer's own head outputs are the attended inputs.
  AttentionWeights identity = w;
  identity.shape.value_dim = kInputs;
  identity.v = Eigen::MatrixXd::Identity(kInputs, kInputs).replicate(3, 1);
  identity.v_bias.resize(0);
  identity.o_bias.resize(0);
  Eigen::MatrixXd attended = Eigen::MatrixXd::Zero(kInputs, kInputs);
  for (Index head = 0; head < 6; ++head) {
    identity.o = Eigen::MatrixXd::Zero(kInputs, 6 * kInputs);
    identity.o.middleCols(head * kInputs, kInputs).setIdentity();
    for (const Eigen::MatrixXf& x : layer_outputs(identity, form_of({RopePairs::interleaved, 0}), inputs))
      attended += x.cast<double>() * x.cast<double>().transpose() / (6 * 41);
  }
  EXPECT_LE((moments.attended.topLeftCorner(kInputs, kInputs) - attended).norm(), 1e-5 * attended.norm());
}

TEST(FitOutputProjection, FindsTheProjectionThatWasThere) {
  for (const bool biases : {false, true}) {
    Random random(4);
    const AttentionWeights w = random_layer(random, kShape, kInputs, kOutputs, biases);
    const auto inputs = random_inputs(random, {200, 200});
    const AttentionForm form = form_of({RopePairs::half_split, 0});
    const auto targets = layer_outputs(w, form, inputs);
    AttentionWeights changed = w;
    changed.o = random_matrix(random, kOutputs, 60, 0.1);
    if (biases) changed.o_bias.setZero();
    const double before = relative_error(layer_outputs(changed, form, inputs), targets);
    fit_output_projection(changed, form, inputs, targets, 1e-9);
    EXPECT_GT(before, 0.5);
    EXPECT_LE(relative_error(layer_outputs(changed, form, inputs), targets), 1e-3);
    EXPECT_EQ(changed.o_bias.size(), w.o_bias.size());
    AttentionWeights held = changed;
    held.o = w.o;
    fit_output_projection(held, form, inputs, targets, 1e9);  // a ridge that lets nothing move
    EXPECT_LE((held.o - w.o).norm(), 1e-6 * w.o.norm());
  }
}

TEST(ConvertLayer, ReportsWhatItDid) {
  Random random(5);
  const AttentionWeights w = random_layer(random, kShape, kInputs, kOutputs, true);
  const auto inputs = random_inputs(random, {150, 150});
  const AttentionForm form = form_of({RopePairs::half_split, 0});
  const auto before = layer_outputs(w, form, inputs);
  for (const MergeMethod method : {MergeMethod::mean, MergeMethod::aligned_mean, MergeMethod::low_rank}) {
    const MergeOptions options{.kv_heads = 1, .keys = method, .values = method, .rope = form.rope};
    const ConvertedLayer made = convert_layer(w, options, form, {inputs, {}});
    EXPECT_EQ(made.weights.k.rows(), 8);
    EXPECT_EQ(made.weights.v_bias.size(), 10);
    EXPECT_EQ(*made.report.fitted_error, relative_error(layer_outputs(made.weights, form, inputs), before));
    EXPECT_LT(*made.report.fitted_error, *made.report.merged_error) << "the least-squares fit is none";
    if (method == MergeMethod::mean) {
      EXPECT_EQ(*made.report.merged_error, *made.report.pooled_error);
    } else {
      EXPECT_LT(*made.report.merged_error, *made.report.pooled_error);
    }
    const ConvertedLayer unfitted = convert_layer(w, options, form, {inputs, {}}, false);
    EXPECT_EQ(*unfitted.report.merged_error, *made.report.merged_error);
    EXPECT_FALSE(unfitted.report.fitted_error.has_value());
    const ConvertedLayer blind = convert_layer(w, options, form);
    EXPECT_FALSE(blind.report.merged_error.has_value());
    EXPECT_TRUE(same_bits(blind.weights, merge_kv_heads(w, options).weights));
  }
  const ConvertedLayer same = convert_layer(w, {.kv_heads = 3, .rope = form.rope}, form, {inputs, before});
  EXPECT_TRUE(same_bits(same.weights, w));
  EXPECT_EQ(same.report.keys_kept, 1);
}

TEST(Calibration, NamesWhatIsWrong) {
  Random random(6);
  AttentionWeights w = random_layer(random, kShape, kInputs, kOutputs, false);
  auto inputs = random_inputs(random, {5, 6});
  const AttentionForm form;
  const auto outputs = layer_outputs(w, form, inputs);
  AttentionForm wrong;
  wrong.rope = {RopePairs::half_split, 6};
  wrong.rope_frequencies = {1, 2};
  EXPECT_EQ(message_of([&] { layer_outputs(w, wrong, inputs); }),
            "gqa: form.rope_frequencies.size() is 2; expected one for each rotary pair: 3, or none");
  wrong.rope_frequencies.clear();
  wrong.rope_base = 0;
  EXPECT_EQ(message_of([&] { layer_outputs(w, wrong, inputs); }),
            "gqa: form.rope_base is 0.000000; expected a positive number");
  wrong = form;
  wrong.causal = false;
  wrong.window = 4;
  EXPECT_EQ(message_of([&] { layer_outputs(w, wrong, inputs); }), "gqa: form.window is 4; expected 0 unless causal");
  EXPECT_EQ(message_of([&] { measure_inputs(w, form, {}); }),
            "gqa: inputs is without a token; expected 1 or more tokens");
  EXPECT_EQ(message_of([&] {
              convert_layer(w, {.kv_heads = 1, .rope = {RopePairs::half_split, 0}}, form);
            }),
            "gqa: form.rope is another layout; expected options.rope");
  EXPECT_EQ(message_of([&] { fit_output_projection(w, form, inputs, std::span(outputs).first(1)); }),
            "gqa: targets.size() is 1; expected inputs.size() = 2");
  EXPECT_EQ(message_of([&] { fit_output_projection(w, form, inputs, inputs); }),
            "gqa: targets[0].rows() is 16; expected weights.o.rows() = 12");
  EXPECT_EQ(message_of([&] { fit_output_projection(w, form, inputs, outputs, -1); }),
            "gqa: ridge is -1.000000; expected a positive number");
  EXPECT_EQ(message_of([&] { relative_error(outputs, inputs); }),
            "gqa: outputs[0] is 12 x 5; expected 16 x 5, as expected[0]");
  inputs[1](3, 2) = std::nanf("");
  EXPECT_EQ(message_of([&] { layer_outputs(w, form, inputs); }),
            "gqa: inputs[1] is not finite; expected finite numbers");
  inputs[1].resize(15, 2);
  EXPECT_EQ(message_of([&] { layer_outputs(w, form, inputs); }),
            "gqa: inputs[1].rows() is 15; expected weights.q.cols() = 16");
}

}  // namespace
}  // namespace gqa::test
