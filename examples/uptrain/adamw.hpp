// SPDX-License-Identifier: Apache-2.0
/// @file
/// AdamW (Loshchilov and Hutter 2019) over the one vector of parameters, and the learning rate of each step.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "model.hpp"
#include "parallel.hpp"

namespace uptrain {

/// How a model is trained.
struct Recipe {
  double rate = 3e-3;        ///< learning rate after the warm-up
  double final_rate = 3e-4;  ///< at the last step, reached along half a cosine
  Index warm_up = 0;         ///< steps in which the rate rises
  Index steps = 0;           ///< in all
  double weight_decay = 0.1;
  double clip = 1.0;  ///< longest gradient

  bool operator==(const Recipe&) const = default;
};

/// Learning rate of step number `step`, counted from 0.
inline double rate_at(const Recipe& recipe, Index step) {
  if (step < recipe.warm_up) return recipe.rate * static_cast<double>(step + 1) / static_cast<double>(recipe.warm_up);
  const double done = static_cast<double>(step - recipe.warm_up) /
                      static_cast<double>(std::max<Index>(recipe.steps - recipe.warm_up, 1));
  return recipe.final_rate + (recipe.rate - recipe.final_rate) * 0.5 * (1.0 + std::cos(std::numbers::pi * done));
}

/// Moments of the gradient, and the steps that they are of.
struct Moments {
  Eigen::VectorXf first, second;
  Index steps = 0;

  static Moments none(Index parameters) {
    return {Eigen::VectorXf::Zero(parameters), Eigen::VectorXf::Zero(parameters), 0};
  }
};

/// A run of parameters that one thread changes, all of one tensor.
struct Piece {
  Index first = 0;
  Index size = 0;
  bool decays = false;
};

/// All parameters in pieces that depend on the shape alone.
inline std::vector<Piece> parameter_pieces(const ModelShape& shape) {
  constexpr Index most = 1 << 14;
  std::vector<Piece> pieces;
  for (const TensorPlace& place : tensor_places(shape))
    for (Index done = 0; done < place.size(); done += most)
      pieces.push_back({place.offset + done, std::min(most, place.size() - done), place.is_matrix});
  return pieces;
}

/// One step of AdamW. The gradient is the sum of `gradients`, added in their order and shortened to recipe.clip; its squared length is
/// added piece by piece in double precision. So no bit depends on the number of threads.
/// @return the gradient's length before it was shortened
inline double adamw_step(const Recipe& recipe, Index step, const std::vector<Piece>& pieces,
                         const std::vector<Model>& gradients, Model& model, Moments& moments, gqa::ExecutorRef executor,
                         Eigen::VectorXf& sum) {
  constexpr float beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f;
  sum.resizeLike(model.values);
  std::vector<double> squares(pieces.size());
  for_each(executor, static_cast<Index>(pieces.size()), [&](Index i) {
    const Piece& piece = pieces[static_cast<std::size_t>(i)];
    auto all = sum.segment(piece.first, piece.size);
    all = gradients.front().values.segment(piece.first, piece.size);
    for (std::size_t slice = 1; slice < gradients.size(); ++slice)
      all += gradients[slice].values.segment(piece.first, piece.size);
    squares[static_cast<std::size_t>(i)] = all.cast<double>().squaredNorm();
  });
  double square = 0;
  for (const double each : squares) square += each;
  const double length = std::sqrt(square);
  const auto shorten = static_cast<float>(length > recipe.clip ? recipe.clip / length : 1.0);

  ++moments.steps;
  const auto steps = static_cast<double>(moments.steps);
  const double rate = rate_at(recipe, step);
  const auto first_share = static_cast<float>(rate / (1.0 - std::pow(0.9, steps)));
  const auto second_share = static_cast<float>(1.0 / (1.0 - std::pow(0.95, steps)));
  const auto decay = static_cast<float>(1.0 - rate * recipe.weight_decay);
  for_each(executor, static_cast<Index>(pieces.size()), [&](Index i) {
    const Piece& piece = pieces[static_cast<std::size_t>(i)];
    const auto g = shorten * sum.segment(piece.first, piece.size).array();
    auto m = moments.first.segment(piece.first, piece.size).array();
    auto v = moments.second.segment(piece.first, piece.size).array();
    auto w = model.values.segment(piece.first, piece.size).array();
    m = beta1 * m + (1.0f - beta1) * g;
    v = beta2 * v + (1.0f - beta2) * g * g;
    if (piece.decays) w *= decay;
    w -= first_share * m / ((second_share * v).sqrt() + epsilon);
  });
  return length;
}

}  // namespace uptrain
