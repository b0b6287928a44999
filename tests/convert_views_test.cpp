// SPDX-License-Identifier: Apache-2.0
// Weights where they lie: every element type and strides of any kind, read exactly, converted, and rounded once when written.
#include "gqa/convert/weight_view.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <vector>

#include "gqa/convert/heads.hpp"
#include "support/layers.hpp"
#include "support/messages.hpp"

namespace gqa::test {
namespace {

constexpr HeadShape kShape{8, 4, 4, 6};
constexpr Index kInputs = 10, kOutputs = 9;

/// A layer's memory in one element type: weights with gaps between rows, o stored input × output, biases two elements apart.
template <class T>
struct Storage {
  static constexpr Index pad = 3;
  std::vector<T> q, k, v, o, q_bias, k_bias, v_bias, o_bias;
  Index q_rows, kv_k, kv_v;

  explicit Storage(Index kv_heads)
      : q(32 * (kInputs + pad)),
        k(static_cast<std::size_t>(kv_heads * 4 * (kInputs + pad))),
        v(static_cast<std::size_t>(kv_heads * 6 * (kInputs + pad))),
        o(48 * kOutputs),
        q_bias(64),
        k_bias(static_cast<std::size_t>(2 * kv_heads * 4)),
        v_bias(static_cast<std::size_t>(2 * kv_heads * 6)),
        o_bias(2 * kOutputs),
        q_rows(32),
        kv_k(kv_heads * 4),
        kv_v(kv_heads * 6) {}

  template <class View>
  auto views() {
    View made;
    made.q = {q.data(), q_rows, kInputs, kInputs + pad, 1};
    made.k = {k.data(), kv_k, kInputs, kInputs + pad, 1};
    made.v = {v.data(), kv_v, kInputs, kInputs + pad, 1};
    made.o = {o.data(), kOutputs, 48, 1, kOutputs};
    made.q_bias = {q_bias.data(), q_rows, 1, 2, 1};
    made.k_bias = {k_bias.data(), kv_k, 1, 2, 1};
    made.v_bias = {v_bias.data() + 2 * (kv_v - 1), kv_v, 1, -2, 1};  // from its end
    made.o_bias = {o_bias.data(), kOutputs, 1, 2, 1};
    return made;
  }
  AttentionWeightViews out() { return views<AttentionWeightViews>(); }
  ConstAttentionWeightViews in() { return views<ConstAttentionWeightViews>(); }
  std::vector<std::vector<T>*> all() { return {&q, &k, &v, &o, &q_bias, &k_bias, &v_bias, &o_bias}; }
  void fill(std::uint64_t seed) {
    Random random(seed);
    for (std::vector<T>* part : all())
      for (T& value : *part) value = T(random.normal());
  }
  bool operator==(Storage& other) {
    for (std::size_t i = 0; i < all().size(); ++i)
      if (std::memcmp(all()[i]->data(), other.all()[i]->data(), all()[i]->size() * sizeof(T)) != 0 ||
          all()[i]->size() != other.all()[i]->size())
        return false;
    return true;
  }
};

template <class T>
class ConvertViews : public testing::Test {};
using ElementTypes = testing::Types<float, bf16, f16>;
TYPED_TEST_SUITE(ConvertViews, ElementTypes);

TYPED_TEST(ConvertViews, SameHeadsComeBackBitForBitAndGapsAreNotTouched) {
  Storage<TypeParam> from(4), to(4);
  from.fill(1);
  to.fill(1);
  for (const MergeMethod method : {MergeMethod::mean, MergeMethod::aligned_mean, MergeMethod::low_rank}) {
    const AttentionWeights w = read_attention(from.in(), kShape);
    write_attention(merge_kv_heads(w, {.kv_heads = 4, .keys = method, .values = method}).weights, to.out());
    EXPECT_TRUE(to == from);
  }
}

TYPED_TEST(ConvertViews, ReadsWhatLiesThere) {
  Storage<TypeParam> from(4);
  from.fill(2);
  const AttentionWeights w = read_attention(from.in(), kShape);
  EXPECT_EQ(w.k(5, 7), static_cast<double>(static_cast<float>(from.k[5 * 13 + 7])));
  EXPECT_EQ(w.o(3, 20), static_cast<double>(static_cast<float>(from.o[20 * 9 + 3])));
  EXPECT_EQ(w.q_bias[6], static_cast<double>(static_cast<float>(from.q_bias[12])));
  EXPECT_EQ(w.v_bias[0], static_cast<double>(static_cast<float>(from.v_bias[46])));
}

TYPED_TEST(ConvertViews, RepeatedHeadsMergeBackBitForBitWithEveryMethod) {
  Storage<TypeParam> few(2), many(8), back(2);
  few.fill(3);
  back.fill(3);
  HeadShape shape = kShape;
  shape.kv_heads = 2;
  write_attention(repeat_kv_heads(read_attention(few.in(), shape), 8), many.out());
  shape.kv_heads = 8;
  for (const MergeMethod method :
       {MergeMethod::mean, MergeMethod::first, MergeMethod::random, MergeMethod::aligned_mean, MergeMethod::low_rank}) {
    const MergedHeads made =
        merge_kv_heads(read_attention(many.in(), shape), {.kv_heads = 2, .keys = method, .values = method});
    write_attention(made.weights, back.out());
    EXPECT_TRUE(back == few) << static_cast<int>(method);
  }
}

TYPED_TEST(ConvertViews, MeansAreRoundedOnceToTheNearest) {
  Storage<TypeParam> from(4), to(2);
  from.fill(4);
  const AttentionWeights made =
      merge_kv_heads(
          read_attention(from.in(), kShape),
          {.kv_heads = 2, .keys = MergeMethod::mean, .values = MergeMethod::mean, .grouping = HeadGrouping::neighbours})
          .weights;
  write_attention(made, to.out());
  for (Index row = 0; row < 8; ++row)
    for (Index column = 0; column < kInputs; ++column) {
      const TypeParam stored = to.k[static_cast<std::size_t>(row * 13 + column)];
      const double exact = made.k(row, column), given = static_cast<double>(static_cast<float>(stored));
      // No neighbour of the stored number is nearer.
      if constexpr (sizeof(TypeParam) == 2) {
        for (const int step : {-1, 1}) {
          TypeParam next;
          next.bits = static_cast<std::uint16_t>(stored.bits + step);
          const double other = static_cast<double>(static_cast<float>(next));
          if (!std::isfinite(other)) continue;
          EXPECT_LE(std::abs(given - exact), std::abs(other - exact));
        }
      } else {
        EXPECT_EQ(given, static_cast<double>(static_cast<float>(exact)));
      }
    }
}

// 1 + 2⁻⁸ lies half way between two bf16 numbers; a little above it, what rounding to f32 first would lose.
TEST(WriteAttention, RoundsOnceNotTwice) {
  EXPECT_EQ(bf16(detail::odd_float(1 + 0x1p-8)).bits, bf16(1.0f).bits);
  EXPECT_EQ(bf16(detail::odd_float(1 + 0x1p-8 + 0x1p-40)).bits, bf16(1.0f + 0x1p-7f).bits);
  EXPECT_EQ(bf16(static_cast<float>(1 + 0x1p-8 + 0x1p-40)).bits, bf16(1.0f).bits) << "the case is none";
  EXPECT_EQ(bf16(detail::odd_float(1 + 0x1.8p-7 - 0x1p-40)).bits, bf16(1.0f + 0x1p-7f).bits);
  EXPECT_EQ(f16(detail::odd_float(-1 - 0x1p-11 - 0x1p-50)).bits, f16(-1.0f - 0x1p-10f).bits);
  EXPECT_EQ(f16(detail::odd_float(1e-300)).bits, f16(0.0f).bits);
  EXPECT_EQ(bf16(detail::odd_float(1e300)).bits, 0x7f80);
  EXPECT_EQ(std::signbit(detail::odd_float(-0.0)), true);
}

TEST(WeightView, ReadsEigenMatricesOfAnyOrder) {
  Random random(5);
  AttentionWeights w = random_layer(random, kShape, kInputs, kOutputs, false);
  const Eigen::MatrixXf q = w.q.cast<float>(), k_transposed = w.k.cast<float>().transpose();
  const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> v = w.v.cast<float>(),
                                                                              o = w.o.cast<float>();
  ConstAttentionWeightViews views;
  views.q = weight_view(q);
  views.k = weight_view(k_transposed.transpose());
  views.v = weight_view(v);
  views.o = weight_view(o);
  EXPECT_TRUE(same_bits(read_attention(views, kShape), w));
  Eigen::Matrix<Eigen::bfloat16, Eigen::Dynamic, Eigen::Dynamic> rounded = q.cast<Eigen::bfloat16>();
  views.q = weight_view(rounded);
  EXPECT_EQ(read_attention(views, kShape).q, rounded.cast<float>().cast<double>());
}

TEST(AttentionViews, NameWhatIsWrong) {
  Storage<float> from(4);
  from.fill(6);
  const auto reading = [&](auto change) {
    ConstAttentionWeightViews views = from.in();
    change(views);
    return message_of([&] { read_attention(views, kShape); });
  };
  EXPECT_EQ(reading([](auto& v) { v.k.rows = 15; }), "gqa: weights.k.rows() is 15; expected kv_heads * head_dim = 16");
  EXPECT_EQ(reading([](auto& v) { v.v.data = nullptr; }),
            "gqa: views.v.data is null; expected a pointer to f32 elements");
  EXPECT_EQ(reading([](auto& v) { v.o_bias.columns = 2; }), "gqa: views.o_bias.columns is 2; expected 1");
  EXPECT_EQ(reading([](auto& v) { v.q.rows = 0; }), "gqa: views.q.rows is 0; expected 1 to 268435456");
  EXPECT_EQ(reading([](auto& v) { v.q.type = static_cast<ElementType>(7); }),
            "gqa: views.q.type is 7; expected ElementType::f32, bf16 or f16");
  EXPECT_EQ(reading([](auto& v) { v.q.data = static_cast<const char*>(v.q.data) + 1; }),
            "gqa: views.q.data is misaligned; expected an address that is a multiple of 4");
  EXPECT_EQ(reading([](auto& v) { v.q.row_stride = Index{1} << 40; }),
            "gqa: views.q.row_stride is 1099511627776; expected within -268435456 to 268435456");
  from.k[0] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(reading([](auto&) {}), "gqa: weights.k(0, 0) is inf; expected a finite number");
  from.k[0] = 0;

  const AttentionWeights w = read_attention(from.in(), kShape);
  Storage<float> to(4), before(4);
  const auto writing = [&](auto change) {
    AttentionWeightViews views = to.out();
    change(views);
    const std::string said = message_of([&] { write_attention(w, views); });
    EXPECT_TRUE(to == before) << "something was written";
    return said;
  };
  EXPECT_EQ(writing([](auto& v) { v.o.columns = 40; }), "gqa: views.o.columns is 40; expected 48");
  EXPECT_EQ(writing([](auto& v) { v.v.row_stride = 4; }),
            "gqa: views.v.row_stride is {4, 1}; expected strides that give every (row, column) an element of its own");
  EXPECT_EQ(writing([](auto& v) { v.v_bias = {}; }),
            "gqa: views.v_bias.data is null; expected a pointer to f32 elements");
  AttentionWeights without = w;
  without.v_bias.resize(0);
  EXPECT_EQ(message_of([&] { write_attention(without, to.out()); }),
            "gqa: views.v_bias is a view; expected none: the layer has no such bias");
}

}  // namespace
}  // namespace gqa::test
