// SPDX-License-Identifier: Apache-2.0
// Views from and to Eigen, and Eigen's 16-bit types as elements.
#include "gqa/eigen.hpp"

#include <gtest/gtest.h>

#include "gqa/attention.hpp"
#include "gqa/reference.hpp"
#include "support/messages.hpp"
#include "support/problem.hpp"

namespace gqa::test {
namespace {

template <class T>
using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using ColumnMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;

TEST(EigenTypes, Have16BitTypesWithTheSameBits) {
  static_assert(ElementTraits<Eigen::bfloat16>::type == ElementType::bf16);
  static_assert(ElementTraits<Eigen::half>::type == ElementType::f16);
  static_assert(sizeof(Eigen::bfloat16) == sizeof(bf16) && sizeof(Eigen::half) == sizeof(f16));
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto pattern = static_cast<std::uint16_t>(bits);
    const float as_bf16 = static_cast<float>(Eigen::numext::bit_cast<Eigen::bfloat16>(pattern));
    const float as_f16 = static_cast<float>(Eigen::numext::bit_cast<Eigen::half>(pattern));
    ASSERT_TRUE(same_value(as_bf16, static_cast<float>(std::bit_cast<bf16>(pattern)))) << bits;
    ASSERT_TRUE(same_value(as_f16, static_cast<float>(std::bit_cast<f16>(pattern)))) << bits;
  }
}

/// What a view reads at (token, head, dim).
template <class View>
float read(const View& view, Index token, Index head, Index d) {
  const auto* base = static_cast<const std::byte*>(view.data);
  return read_element(
      base + (token * view.strides.token + head * view.strides.head + d * view.strides.dim) * element_bytes(view.type),
      view.type);
}

template <class Expression, class View>
void expect_same_numbers(const Expression& matrix, const View& view, Index heads) {
  ASSERT_EQ(view.tokens, matrix.rows());
  ASSERT_EQ(view.heads, heads);
  ASSERT_EQ(view.dim, matrix.cols() / heads);
  for (Index t = 0; t < view.tokens; ++t)
    for (Index h = 0; h < heads; ++h)
      for (Index d = 0; d < view.dim; ++d)
        ASSERT_EQ(read(view, t, h, d), static_cast<float>(matrix(t, h * view.dim + d)));
}

template <class T>
class EigenViews : public testing::Test {};
using ElementTypes = testing::Types<float, Eigen::bfloat16, Eigen::half>;
TYPED_TEST_SUITE(EigenViews, ElementTypes);

TYPED_TEST(EigenViews, AMatrixOfAnyOrderBecomesATensor) {
  const RowMajor<TypeParam> rows = Eigen::MatrixXf::Random(7, 12).template cast<TypeParam>();
  const ColumnMajor<TypeParam> columns = rows;
  expect_same_numbers(rows, tensor_view(rows, 3), 3);
  expect_same_numbers(columns, tensor_view(columns, 3), 3);
  expect_same_numbers(columns.transpose(), tensor_view(columns.transpose(), 7), 7);
  EXPECT_EQ(tensor_view(rows, 3).type, ElementTraits<TypeParam>::type);
}

TYPED_TEST(EigenViews, BlocksMapsAndRefsKeepTheirSteps) {
  RowMajor<TypeParam> whole = Eigen::MatrixXf::Random(9, 20).template cast<TypeParam>();
  const auto block = whole.block(2, 3, 5, 12);
  expect_same_numbers(block, tensor_view(block, 4), 4);
  const Eigen::Ref<const RowMajor<TypeParam>> ref(whole.topRows(4));
  expect_same_numbers(ref, tensor_view(ref, 5), 5);
  using Steps = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  const Eigen::Map<const RowMajor<TypeParam>, Eigen::Unaligned, Steps> every_other(whole.data(), 4, 10, Steps(40, 2));
  expect_same_numbers(every_other, tensor_view(every_other, 5), 5);
  const auto row = whole.row(3);
  expect_same_numbers(row, tensor_view(row, 2), 2);
}

TYPED_TEST(EigenViews, WhatCanBeWrittenBecomesAnOutput) {
  RowMajor<TypeParam> matrix = RowMajor<TypeParam>::Zero(4, 6);
  const RowMajor<TypeParam>& constant = matrix;
  static_assert(std::is_same_v<decltype(tensor_view(matrix, 2)), TensorView>);
  static_assert(std::is_same_v<decltype(tensor_view(matrix.topRows(2), 2)), TensorView>);
  static_assert(std::is_same_v<decltype(tensor_view(matrix.transpose(), 2)), TensorView>);
  static_assert(std::is_same_v<decltype(tensor_view(constant, 2)), ConstTensorView>);
  static_assert(std::is_same_v<decltype(tensor_view(constant.topRows(2), 2)), ConstTensorView>);
  auto map = head_map<TypeParam>(tensor_view(matrix, 2), 1);
  map(3, 2) = TypeParam(2.5f);
  EXPECT_EQ(static_cast<float>(matrix(3, 5)), 2.5f);
}

TYPED_TEST(EigenViews, HeadsBecomeMaps) {
  const ColumnMajor<TypeParam> matrix = Eigen::MatrixXf::Random(5, 12).template cast<TypeParam>();
  const ConstTensorView view = tensor_view(matrix, 3);
  for (Index head = 0; head < 3; ++head) {
    const auto map = head_map<TypeParam>(view, head);
    EXPECT_EQ(map, matrix.middleCols(4 * head, 4));
  }
}

template <class M>
concept CanBeViewed = requires(M&& matrix) {
  tensor_view(std::forward<M>(matrix), 1);
};
static_assert(CanBeViewed<Eigen::MatrixXf&> && CanBeViewed<const Eigen::MatrixXf&>);
static_assert(CanBeViewed<Eigen::Map<Eigen::MatrixXf>>);
static_assert(!CanBeViewed<Eigen::MatrixXf>, "a view of a temporary matrix would dangle");
static_assert(!CanBeViewed<Eigen::MatrixXd&>, "double is no element type");
static_assert(!CanBeViewed<decltype(std::declval<Eigen::MatrixXf&>() * 2.0f)>, "an expression has no memory");

/// A whole call on Eigen's matrices: the same bits as on packed arrays.
TYPED_TEST(EigenViews, ACallOnMatricesIsTheCallOnArrays) {
  constexpr ElementType type = ElementTraits<TypeParam>::type;
  const Problem p = make_problem({4, 2, 8, 16, 3, 20}, 191);
  const auto fill = [](auto& matrix, const Numbers& numbers) {
    for (Index t = 0; t < numbers.tokens; ++t)
      for (Index h = 0; h < numbers.heads; ++h)
        for (Index d = 0; d < numbers.dim; ++d) matrix(t, h * numbers.dim + d) = TypeParam(numbers.at(t, h, d));
  };
  RowMajor<TypeParam> q(3, 32), k(25, 16), v(25, 32);
  k.setConstant(std::numeric_limits<TypeParam>::quiet_NaN());
  v.setConstant(std::numeric_limits<TypeParam>::quiet_NaN());
  fill(q, p.q);
  fill(k, p.kv.k);
  fill(v, p.kv.v);
  Eigen::MatrixXf out = Eigen::MatrixXf::Zero(64, 3);  // column-major, a column per token
  const KvCacheView kv = kv_cache_view(k, v, 2, 20);
  DynamicAttention{}(tensor_view(q, 4), kv, tensor_view(out.transpose(), 4));
  const Result expected = solve(p, {type, type, type, ElementType::f32}, {active_path().path});
  for (Index t = 0; t < 3; ++t)
    for (Index h = 0; h < 4; ++h)
      for (Index d = 0; d < 16; ++d) ASSERT_EQ(out(h * 16 + d, t), expected.at(t, h, d));
  // A cache in column-major matrices with a column per token, and in a part of a wider matrix.
  const ColumnMajor<TypeParam> k_columns = k.transpose(), v_columns = v.transpose();
  RowMajor<TypeParam> both(25, 48);
  both << k, v;
  for (const KvCacheView& other : {kv_cache_view(k_columns.transpose(), v_columns.transpose(), 2, 20),
                                   kv_cache_view(both.leftCols(16), both.rightCols(32), 2, 20)}) {
    Eigen::MatrixXf again = Eigen::MatrixXf::Zero(64, 3);
    DynamicAttention{}(tensor_view(q, 4), other, tensor_view(again.transpose(), 4));
    EXPECT_EQ(again, out);
  }
}

TEST(EigenErrors, AreNamed) {
  Eigen::MatrixXf matrix(4, 10);
  EXPECT_EQ(message_of([&] { static_cast<void>(tensor_view(matrix, 3)); }),
            "gqa: matrix.cols() is 10; expected a multiple of heads = 3");
  EXPECT_EQ(message_of([&] { static_cast<void>(tensor_view(matrix, 0)); }), "gqa: heads is 0; expected 1 or more");
  const RowMajor<float> k(8, 6), v(8, 9), v_short(7, 9);
  EXPECT_EQ(message_of([&] { static_cast<void>(kv_cache_view(k, v, 4)); }),
            "gqa: keys.cols() is 6; expected a multiple of kv_heads = 4");
  EXPECT_EQ(message_of([&] { static_cast<void>(kv_cache_view(k, v, 2)); }),
            "gqa: values.cols() is 9; expected a multiple of kv_heads = 2");
  EXPECT_EQ(message_of([&] { static_cast<void>(kv_cache_view(k, v_short, 3)); }),
            "gqa: values.rows() is 7; expected keys.rows() = 8");
  EXPECT_EQ(message_of([&] { static_cast<void>(kv_cache_view(k, v, 3, 9)); }),
            "gqa: length is 9; expected 0 to keys.rows() = 8");
  using Steps = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  const Eigen::Map<const RowMajor<float>, Eigen::Unaligned, Steps> spread(k.data(), 4, 3, Steps(6, 2));
  EXPECT_EQ(message_of([&] { static_cast<void>(kv_cache_view(spread, v.topRows(4), 3)); }),
            "gqa: keys' column step is 2; expected 1: the dims of a key row lie side by side in memory");
  const ConstTensorView view = tensor_view(k, 2);
  EXPECT_EQ(message_of([&] { static_cast<void>(head_map<float>(view, 2)); }),
            "gqa: head is 2; expected 0 or more and less than view.heads = 2");
  EXPECT_EQ(message_of([&] { static_cast<void>(head_map<Eigen::half>(view, 0)); }),
            "gqa: view.type is f32; expected f16, the element type of head_map");
  ConstTensorView backwards = view;
  backwards.strides.token = -6;
  EXPECT_EQ(message_of([&] { static_cast<void>(head_map<float>(backwards, 0)); }),
            "gqa: view.strides is -6; expected steps that Eigen can express: 0 or more");
}

}  // namespace
}  // namespace gqa::test
