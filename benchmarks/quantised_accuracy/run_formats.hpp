// SPDX-License-Identifier: Apache-2.0
/// @file
/// A model run over a text with its keys and values stored in each format, all in one pass over its layers.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "../../examples/convert_checkpoint/llama.hpp"
#include "formats.hpp"

namespace accuracy {

using namespace checkpoint;

/// A format as it is, or with rotation.
struct Run {
  Format format;
  bool rotate = false;
};
struct Outcome {
  double output_error = 0;     ///< of attention on the keys and values of the model as it is, all layers together
  std::vector<double> losses;  ///< nats, of each sequence, where every layer's keys and values are stored so
};

inline Eigen::MatrixXf attend(const Rows& rows, const Run& run, gqa::ExecutorRef executor) {
  return run.rotate ? attend_rotated(rows, run.format, executor) : attend(rows, run.format, executor);
}

/// Everything that a layer's attention reads of a sequence.
inline Rows rows_of_layer(const gqa::detail::RunnableLayer& layer, const gqa::AttentionForm& form,
                          const Eigen::MatrixXf& inputs) {
  gqa::detail::TurnedHeads turned = gqa::detail::turned_heads(layer, form, inputs);
  return {layer.shape, std::move(turned.q), std::move(turned.k), gqa::detail::project(layer.v, layer.v_bias, inputs)};
}

/// @param runs the first is what output errors are held against
inline std::vector<Outcome> run_formats(const Decoder& model, const std::vector<Run>& runs, const Sequences& text,
                                        const std::function<void(Index layer)>& on_layer) {
  const gqa::AttentionForm& form = model.form();
  const std::size_t sequences = text.size();
  std::vector<Hidden> streams(runs.size(), model.embed(text));
  std::vector<RelativeError> errors(runs.size());
  for (Index layer = 0; layer < model.layers(); ++layer) {
    const gqa::detail::RunnableLayer attention = gqa::detail::runnable(model.attention(layer));
    const std::unique_ptr<Block> block = model.block(layer);
    std::vector<Rows> rows;
    std::vector<Eigen::MatrixXf> expected;
    for (const Eigen::MatrixXf& inputs : block->inputs(streams[0])) {
      rows.push_back(rows_of_layer(attention, form, inputs));
      expected.push_back(attend(rows.back(), runs[0], form.executor));
    }
    for (std::size_t run = 0; run < runs.size(); ++run) {
      Hidden& stream = streams[run];
      const Hidden inputs = block->inputs(stream);
      for (std::size_t i = 0; i < sequences; ++i) {
        errors[run].add(attend(rows[i], runs[run], form.executor), expected[i]);
        const Eigen::MatrixXf out = attend(rows_of_layer(attention, form, inputs[i]), runs[run], form.executor);
        stream[i] += gqa::detail::project(attention.o, attention.o_bias, out);
      }
      block->finish(stream);
    }
    on_layer(layer);
  }
  std::vector<Outcome> outcomes;
  for (std::size_t run = 0; run < runs.size(); ++run)
    outcomes.push_back({errors[run].value(), sequence_losses(model, streams[run], text)});
  return outcomes;
}

}  // namespace accuracy
