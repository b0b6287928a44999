// SPDX-License-Identifier: Apache-2.0
/// @file
/// Drawn queries, keys and values: without outliers, and with those that models have.
#pragma once

#include <array>
#include <cmath>
#include <numbers>

#include "formats.hpp"
#include "gqa/convert/grouping.hpp"

namespace accuracy {

enum class Kind {
  gaussian,         ///< all normal; queries by 2, so that scores have a deviation of 2
  strong_channels,  ///< besides, 4 of the dims of each KV head are about ±16 in all keys, which no softmax sees
  sinks  ///< besides, all queries share a direction, and the first key takes about half of each one's weight, with a small value
};

inline constexpr std::array kKinds{Kind::gaussian, Kind::strong_channels, Kind::sinks};
inline const char* name_of(Kind kind) {
  constexpr const char* names[] = {"Gaussian", "strong key channels", "strong key channels and a sink"};
  return names[static_cast<int>(kind)];
}

/// The same for the same seed.
class Normal {
 public:
  explicit Normal(std::uint64_t seed) : bits_(seed) {}
  float operator()() {  // Box and Muller 1958
    const double u = (static_cast<double>(bits_() >> 11) + 1) * 0x1p-53,
                 angle = static_cast<double>(bits_() >> 11) * 0x1p-53;
    return static_cast<float>(std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * angle));
  }
  Eigen::MatrixXf matrix(Index rows, Index columns) {
    return Eigen::MatrixXf::NullaryExpr(rows, columns, [this] { return (*this)(); });
  }

 private:
  gqa::detail::SplitMix bits_;
};

/// The last 64 queries of 4096 tokens, 8 query heads over 4 KV heads of width 128.
inline Rows drawn(Kind kind, std::uint64_t seed) {
  constexpr Index dim = 128, tokens = 4096, queries = 64;
  const gqa::HeadShape shape{8, 4, dim, dim};
  Normal normal(seed);
  Rows rows{shape, 2 * normal.matrix(shape.query_heads * dim, queries), normal.matrix(shape.kv_heads * dim, tokens),
            normal.matrix(shape.kv_heads * dim, tokens)};
  if (kind == Kind::gaussian) return rows;
  for (Index head = 0; head < shape.kv_heads; ++head)
    for (const Index channel : {3, 40, 77, 120})
      rows.k.row(head * dim + (channel + 5 * head) % dim).array() += 16 + 2 * normal();
  if (kind == Kind::strong_channels) return rows;
  // Beside a deviation of 2, all other weights together are about exp(2²/2) · tokens.
  const float half = std::log(static_cast<float>(tokens)) + 2.0f;
  for (Index head = 0; head < shape.kv_heads; ++head) {
    const Eigen::VectorXf shared = normal.matrix(dim, 1).normalized() * std::sqrt(static_cast<float>(dim));
    const Index group = shape.query_heads / shape.kv_heads;
    for (Index i = head * group; i < (head + 1) * group; ++i) rows.q.middleRows(i * dim, dim).colwise() += shared;
    rows.k.col(0).segment(head * dim, dim) += half / std::sqrt(static_cast<float>(dim)) * shared;
  }
  rows.v.col(0) *= 0.01f;
  return rows;
}

}  // namespace accuracy
