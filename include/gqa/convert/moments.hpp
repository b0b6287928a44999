// SPDX-License-Identifier: Apache-2.0
/// @file
/// What conversions measure heads by: second moments of a layer's inputs, and the heads' inner products under them. Needs Eigen.
#pragma once

#include <Eigen/Core>
#include <string>
#include <vector>

#include "gqa/convert/weights.hpp"

namespace gqa {

/// Which directions of a layer's inputs x matter, as E[x̃·x̃ᵀ] of x̃ = [x; 1]: the last row and column are the mean, the last element
/// is 1. An empty matrix: every direction alike, E[x·xᵀ] = I and mean 0, so that weights are compared as they are.
struct InputMoments {
  Eigen::MatrixXd inputs;  ///< (inputs + 1)²: of what keys, values and queries are made from
  Eigen::MatrixXd
      attended;  ///< (inputs + 1)²: of Σ_t p_t·x̃_t, the inputs averaged as heads attend; empty: `inputs`. Values are
                 ///< compared under it, because outputs are made of averages of values
};

namespace detail::inline GQA_ABI {

inline void check_moment(const char* name, const Eigen::MatrixXd& moment, Index inputs) {
  if (moment.size() == 0) return;
  if (moment.rows() != inputs + 1 || moment.cols() != inputs + 1)
    fail(name, std::to_string(moment.rows()) + " x " + std::to_string(moment.cols()),
         "(inputs + 1) x (inputs + 1), inputs + 1 = " + std::to_string(inputs + 1) + ", or empty");
  if (!moment.allFinite()) fail(name, "not finite", "finite numbers");
  const double scale = moment.cwiseAbs().maxCoeff();
  if (!((moment - moment.transpose()).cwiseAbs().maxCoeff() <= 1e-9 * scale))
    fail(name, "not symmetric", "a symmetric matrix");
  for (Index i = 0; i <= inputs; ++i)
    if (moment(i, i) < 0)
      fail(std::string(name) + "(" + std::to_string(i) + ", " + std::to_string(i) + ")", std::to_string(moment(i, i)),
           "0 or more: the mean of a square");
}

/// rows·M·rowsᵀ, or rows·rowsᵀ for an empty M.
inline Eigen::MatrixXd gram(const Eigen::MatrixXd& rows, const Eigen::MatrixXd& moment) {
  if (moment.size() == 0) return rows * rows.transpose();
  return rows * moment * rows.transpose();
}

/// E[(x̃ − E x̃)(x̃ − E x̃)ᵀ]. Empty stays empty.
inline Eigen::MatrixXd centred(const Eigen::MatrixXd& moment) {
  if (moment.size() == 0) return moment;
  const Eigen::VectorXd mean = moment.rightCols(1);
  return moment - mean * mean.transpose();
}

/// Heads by their inner products alone. Of head h, the rows are dims h·D … h·D + D − 1 of `inner`.
struct HeadInner {
  Index width = 0;  ///< D
  Index pairs = 0;  ///< rotary pairs; their dims come first: dim 2i and 2i + 1 are pair i's, whatever the layout was
  Eigen::MatrixXd inner;              ///< (heads·D)²: inner products of head rows
  std::vector<Eigen::MatrixXd> need;  ///< D × D a head, positive semidefinite: how much its readers make of each dim
  Index heads() const { return static_cast<Index>(need.size()); }
  auto block(Index a, Index b) const { return inner.block(a * width, b * width, width, width); }
};

/// Rows of every head in an order in which RoPE's pairs stand side by side, first.
inline std::vector<Index> pair_order(const RopeLayout& rope, Index head_dim) {
  const Index dims = check_rope(rope, head_dim);
  std::vector<Index> order;
  for (Index pair = 0; pair < dims / 2; ++pair) {
    const DimPair at = rope_pair(rope.pairs, dims, pair);
    order.push_back(at.real);
    order.push_back(at.imaginary);
  }
  for (Index dim = dims; dim < head_dim; ++dim) order.push_back(dim);
  return order;
}

/// The dims of each head in `order`, or back from it.
inline Eigen::MatrixXd reordered_dims(const Eigen::MatrixXd& rows, const std::vector<Index>& order, bool back) {
  const auto width = static_cast<Index>(order.size());
  Eigen::MatrixXd result(rows.rows(), rows.cols());
  for (Index head = 0; head < rows.rows() / width; ++head)
    for (Index dim = 0; dim < width; ++dim) {
      const Index other = head * width + order[static_cast<std::size_t>(dim)];
      if (back) result.row(other) = rows.row(head * width + dim);
      else result.row(head * width + dim) = rows.row(other);
    }
  return result;
}

/// Keys [W b] of all heads, dims in pair order. A part of a key that is the same for every token adds the same to all scores of a
/// query and changes no weight, so keys are compared without their mean; not so rotary pairs, which turn it with the position.
inline HeadInner key_inner(const Eigen::MatrixXd& q, const Eigen::MatrixXd& k, const HeadShape& shape, Index pairs,
                           const Eigen::MatrixXd& moment) {
  const Index width = shape.head_dim, group = shape.query_heads / shape.kv_heads;
  HeadInner made{width, pairs, gram(k, moment), {}};
  if (2 * pairs < width) {
    const Eigen::MatrixXd unturned = gram(k, centred(moment));
    for (Index a = 0; a < shape.kv_heads; ++a)
      for (Index b = 0; b < shape.kv_heads; ++b) {
        const Index rest = width - 2 * pairs;
        made.inner.block(a * width + 2 * pairs, b * width + 2 * pairs, rest, rest) =
            unturned.block(a * width + 2 * pairs, b * width + 2 * pairs, rest, rest);
      }
  }
  for (Index head = 0; head < shape.kv_heads; ++head) {
    Eigen::MatrixXd need = Eigen::MatrixXd::Zero(width, width);
    for (Index i = 0; i < group; ++i) need += gram(q.middleRows((head * group + i) * width, width), moment);
    made.need.push_back(std::move(need));
  }
  return made;
}

/// Values [W b] of all heads.
inline HeadInner value_inner(const Eigen::MatrixXd& v, const Eigen::MatrixXd& o, const HeadShape& shape,
                             const Eigen::MatrixXd& moment) {
  const Index width = shape.value_dim, group = shape.query_heads / shape.kv_heads;
  HeadInner made{width, 0, gram(v, moment), {}};
  for (Index head = 0; head < shape.kv_heads; ++head) {
    Eigen::MatrixXd need = Eigen::MatrixXd::Zero(width, width);
    for (Index i = 0; i < group; ++i) {
      const auto columns = o.middleCols((head * group + i) * width, width);
      need += columns.transpose() * columns;
    }
    made.need.push_back(std::move(need));
  }
  return made;
}

}  // namespace detail::inline GQA_ABI
}  // namespace gqa
