// SPDX-License-Identifier: Apache-2.0
/// @file
/// Training steps and evaluation on several threads, with results that are the same bits for any number of them.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#include "adamw.hpp"
#include "attention.hpp"
#include "network.hpp"
#include "parallel.hpp"
#include "text.hpp"

namespace uptrain {

/// What training changes, and all that a checkpoint must keep of it.
struct TrainingState {
  Model model;
  Moments moments;
  Index step = 0;  ///< steps done

  explicit TrainingState(Model start) : model(std::move(start)), moments(Moments::none(model.values.size())) {}
};

/// Runs models of one shape. A batch is cut into slices by its sequences alone; a slice is computed by one thread, and slices are added in
/// their order.
class Trainer {
 public:
  /// @param executor must outlive this
  Trainer(const ModelShape& shape, gqa::ExecutorRef executor)
      : shape_(shape), attention_(shape), executor_(executor), pieces_(parameter_pieces(shape)) {}

  /// One step on a batch. @return mean loss of its tokens before the step, in nats
  double step(TrainingState& state, const Recipe& recipe, const Batch& batch) {
    const auto slices = slice_count(batch.sequences);
    while (gradients_.size() < static_cast<std::size_t>(slices))
      gradients_.push_back({shape_, Eigen::VectorXf(state.model.values.size())});
    gradients_.resize(static_cast<std::size_t>(slices));
    const auto tokens = static_cast<double>(batch.inputs.size());
    const auto share = static_cast<float>(1.0 / tokens);
    std::vector<double> losses(static_cast<std::size_t>(slices));
    for_each(executor_, slices, [&](Index i) {
      const Tokens part = slice(batch, i, slices);
      const auto at = static_cast<std::size_t>(i);
      const Borrowed kept(*this);
      losses[at] = forward(state.model, attention_, part, *kept, share);
      backward(state.model, attention_, part, *kept, gradients_[at]);
    });
    double loss = 0;
    for (const double each : losses) loss += each;
    adamw_step(recipe, state.step, pieces_, gradients_, state.model, state.moments, executor_, sum_);
    ++state.step;
    return loss / tokens;
  }

  /// Mean loss of a batch's tokens, in nats.
  double evaluate(const Model& model, const Batch& batch) {
    const Index slices = (batch.sequences + kEvaluated - 1) / kEvaluated;
    std::vector<double> losses(static_cast<std::size_t>(slices));
    for_each(executor_, slices, [&](Index i) {
      const Borrowed kept(*this);
      losses[static_cast<std::size_t>(i)] = forward(model, attention_, slice(batch, i, slices), *kept);
    });
    double loss = 0;
    for (const double each : losses) loss += each;
    return loss / static_cast<double>(batch.inputs.size());
  }

  const ModelShape& shape() const { return shape_; }

 private:
  static constexpr Index kSlices = 8;     ///< of a training batch, at most: each has a gradient of its own
  static constexpr Index kEvaluated = 4;  ///< sequences of an evaluation's slice

  static Index slice_count(Index sequences) { return std::min(kSlices, sequences); }

  static Tokens slice(const Batch& batch, Index i, Index slices) {
    const Index first = i * batch.sequences / slices, last = (i + 1) * batch.sequences / slices;
    const auto begin = static_cast<std::size_t>(first * batch.length),
               size = static_cast<std::size_t>((last - first) * batch.length);
    return {last - first, batch.length, std::span(batch.inputs).subspan(begin, size),
            std::span(batch.targets).subspan(begin, size)};
  }

  /// Activations that no other thread uses meanwhile.
  class Borrowed {
   public:
    explicit Borrowed(Trainer& owner) : owner_(owner) {
      const std::lock_guard lock(owner_.mutex_);
      if (owner_.idle_.empty()) owner_.idle_.push_back(std::make_unique<Activations<float>>());
      kept_ = std::move(owner_.idle_.back());
      owner_.idle_.pop_back();
    }
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;
    ~Borrowed() {
      const std::lock_guard lock(owner_.mutex_);
      owner_.idle_.push_back(std::move(kept_));
    }
    Activations<float>& operator*() const { return *kept_; }

   private:
    Trainer& owner_;
    std::unique_ptr<Activations<float>> kept_;
  };

  ModelShape shape_;
  Attention attention_;
  gqa::ExecutorRef executor_;
  std::vector<Piece> pieces_;
  std::vector<Model> gradients_;
  Eigen::VectorXf sum_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Activations<float>>> idle_;
};

}  // namespace uptrain
