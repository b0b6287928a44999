// SPDX-License-Identifier: Apache-2.0
/// @file
/// A transformer run over whole sequences, layer by layer, so that no more than one layer's weights need to be held. It is run to see
/// what each layer's attention is given.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "gqa/convert.hpp"

namespace checkpoint {

using gqa::Index;
using Token = std::int64_t;
using Sequences = std::vector<std::vector<Token>>;
/// dim × tokens, a column a token; one for each sequence.
using Hidden = std::vector<Eigen::MatrixXf>;

/// What a layer has besides attention.
class Block {
 public:
  virtual ~Block() = default;
  /// What attention is given of the residual stream.
  virtual Hidden inputs(const Hidden& x) const = 0;
  /// The rest of the layer, on the stream with attention's outputs added.
  virtual void finish(Hidden& x) const = 0;
};

/// A model by its layers.
class Network {
 public:
  virtual ~Network() = default;
  virtual Index layers() const = 0;
  virtual const gqa::AttentionForm& form() const = 0;
  virtual gqa::AttentionWeights attention(Index layer) const = 0;
  virtual std::unique_ptr<Block> block(Index layer) const = 0;
  /// The stream before the first layer. @throws std::runtime_error for a token that there is not
  virtual Hidden embed(const Sequences& tokens) const = 0;
};

inline void add(Hidden& x, const Hidden& y) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

/// x through one layer with the given attention.
inline void run_layer(const gqa::AttentionWeights& attention, const gqa::AttentionForm& form, const Block& block,
                      Hidden& x) {
  add(x, gqa::layer_outputs(attention, form, block.inputs(x)));
  block.finish(x);
}

/// Each token's row of a table.
inline Hidden rows_of(const Eigen::MatrixXf& table, const Sequences& tokens) {
  Hidden made;
  for (const std::vector<Token>& sequence : tokens) {
    made.emplace_back(table.cols(), static_cast<Index>(sequence.size()));
    for (std::size_t t = 0; t < sequence.size(); ++t) {
      if (sequence[t] < 0 || sequence[t] >= table.rows())
        throw std::runtime_error("token " + std::to_string(sequence[t]) + "; the model's are 0 to " +
                                 std::to_string(table.rows() - 1));
      made.back().col(static_cast<Index>(t)) = table.row(sequence[t]).transpose();
    }
  }
  return made;
}

}  // namespace checkpoint
