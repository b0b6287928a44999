// SPDX-License-Identifier: Apache-2.0
// examples/uptrain: the gradients of its layers, and of the whole model, are the derivatives of what they compute. In double precision, beside
// central differences.
#include <gtest/gtest.h>

#include <functional>
#include <numeric>

#include "support/uptrain_double.hpp"

namespace uptrain::test {
namespace {

using Matrix = MatrixOf<double>;
using Vector = VectorOf<double>;

Matrix random_matrix(gqa::test::Random& random, Index rows, Index columns, double scale = 1) {
  Matrix made(rows, columns);
  for (double& value : made.reshaped()) value = scale * static_cast<double>(random.normal());
  return made;
}

/// A central difference with step h is off by h²/6 · |f‴|, and by rounding: 2⁻⁵³ |f| times the operations of f, over h. Functions here have
/// values, and third derivatives along one input, of at most kSize, and at most 10⁴ operations, mostly of far smaller numbers.
constexpr double kStep = 1e-4, kSize = 50;
constexpr double kDifferenceError = kStep * kStep / 6 * kSize + 1e4 * 0x1p-53 * kSize / kStep;

/// Holds `gradient` to the differences of `f` by each element of `inputs`.
template <class Inputs>
void expect_derivative(Inputs& inputs, const std::function<double()>& f, const Eigen::Ref<const Vector>& gradient) {
  ASSERT_EQ(inputs.size(), gradient.size());
  for (Index i = 0; i < inputs.size(); ++i) {
    double& input = inputs.data()[i];
    const double before = input;
    input = before + kStep;
    const double above = f();
    input = before - kStep;
    const double below = f();
    input = before;
    EXPECT_NEAR((above - below) / (2 * kStep), gradient[i], kDifferenceError) << "element " << i;
  }
}

TEST(UptrainLayers, RmsNorm) {
  gqa::test::Random random(1);
  Matrix x = random_matrix(random, 7, 3);
  Vector gain = random_matrix(random, 7, 1);
  const Matrix d_y = random_matrix(random, 7, 3);
  Matrix y;
  Vector inverse;
  const auto loss = [&] {
    rms_norm(x, gain, y, inverse);
    return y.cwiseProduct(d_y).sum();
  };
  loss();
  for (Index t = 0; t < 3; ++t)  // gains of 1 leave a mean square of 1, but for epsilon
    EXPECT_NEAR((y.col(t).array() / gain.array()).square().mean(), 1,
                kNormEpsilon / x.col(t).squaredNorm() * 7 + 1e-14);
  Matrix d_x = Matrix::Zero(7, 3);
  Vector d_gain(7);
  rms_norm_backward(x, gain, inverse, d_y, d_x, d_gain);
  expect_derivative(x, loss, d_x.reshaped());
  expect_derivative(gain, loss, d_gain);
  const Matrix once = d_x;
  rms_norm_backward(x, gain, inverse, d_y, d_x, d_gain);
  EXPECT_TRUE(d_x == 2 * once) << "the gradient by x is added, not written";
}

TEST(UptrainLayers, SwiGlu) {
  gqa::test::Random random(2);
  Matrix gate_up = random_matrix(random, 10, 3);
  const Matrix d_made = random_matrix(random, 5, 3);
  Matrix made, d_gate_up;
  const auto loss = [&] {
    swiglu(gate_up, made);
    return made.cwiseProduct(d_made).sum();
  };
  loss();
  EXPECT_NEAR(made(0, 0), gate_up(0, 0) / (1 + std::exp(-gate_up(0, 0))) * gate_up(5, 0), 1e-14);
  swiglu_backward(gate_up, d_made, d_gate_up);
  expect_derivative(gate_up, loss, d_gate_up.reshaped());
}

TEST(UptrainLayers, CrossEntropy) {
  gqa::test::Random random(3);
  Matrix logits = random_matrix(random, 11, 4);
  const std::vector<std::uint8_t> targets{3, 10, 0, 3};
  Matrix d_logits;
  const auto loss = [&] { return 0.25 * cross_entropy<double>(logits, targets, 0.0, nullptr); };
  EXPECT_EQ(0.25 * cross_entropy(logits, targets, 0.25, &d_logits), loss());
  expect_derivative(logits, loss, d_logits.reshaped());
  logits.setConstant(700.0);  // exp of it overflows
  EXPECT_NEAR(loss(), std::log(11.0), 1e-12);
}

/// All of it: embedding, RoPE, grouped attention, norms, SwiGLU, classifier, in sequences that must not see each other.
TEST(UptrainLayers, WholeModel) {
  const Model small = initial_model(kTinyShape, 4);
  ModelOf<double> model{small.shape, small.values.cast<double>()};
  const DoubleAttention attention(model.shape);
  const std::vector<std::uint8_t> bytes = word_bytes(13, 5);
  const Tokens tokens{2, 6, std::span(bytes).first(12), std::span(bytes).last(12)};
  Activations<double> kept;
  constexpr double scale = 0.125;
  const auto loss = [&] { return scale * forward(model, attention, tokens, kept, scale); };
  EXPECT_NEAR(loss() / scale / 12, std::log(256.0), 1.0);
  ModelOf<double> gradient{model.shape, Vector(model.values.size())};
  backward(model, attention, tokens, kept, gradient);

  // Every 37th parameter, which is all tensors and all heads.
  for (const TensorPlace& place : tensor_places(model.shape)) {
    SCOPED_TRACE(place.name);
    for (Index i = place.offset; i<place.offset + place.size(); i += place.size()> 37 ? 37 : 1) {
      Eigen::Map<Vector> one(model.values.data() + i, 1);
      expect_derivative(one, loss, gradient.values.segment(i, 1));
    }
  }
}

TEST(UptrainLayers, SequencesDoNotSeeEachOther) {
  const Model small = initial_model(kTinyShape, 6);
  const ModelOf<double> model{small.shape, small.values.cast<double>()};
  const DoubleAttention attention(model.shape);
  std::vector<std::uint8_t> bytes = word_bytes(12, 7);
  Activations<double> kept;
  forward(model, attention, {2, 6, bytes, bytes}, kept);
  const Matrix before = kept.logits;
  bytes[0] ^= 1;
  forward(model, attention, {2, 6, bytes, bytes}, kept);
  EXPECT_TRUE(kept.logits.rightCols(6) == before.rightCols(6));
  EXPECT_FALSE(kept.logits.col(5) == before.col(5));
}

TEST(UptrainLayers, WrongShapesAreNamed) {
  const auto complaint = [](ModelShape shape) -> std::string {
    try {
      check_shape(shape);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "nothing thrown";
  };
  ModelShape shape = kTinyShape;
  EXPECT_EQ(complaint(shape), "nothing thrown");
  shape.dim = 20;
  EXPECT_NE(complaint(shape).find("dim is 20; expected a multiple of twice the 4 query heads"), std::string::npos);
  shape = kTinyShape;
  shape.kv_heads = 3;
  EXPECT_NE(complaint(shape).find("KV heads is 3; expected a divisor of the 4"), std::string::npos);
  shape = kTinyShape;
  shape.layers = 0;
  EXPECT_NE(complaint(shape).find("layers is 0; expected 1 to"), std::string::npos);
}

}  // namespace
}  // namespace uptrain::test
